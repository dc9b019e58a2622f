"""One direction of a recurrent layer forwards: what its kernel is given, and what it leaves."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from struct import Struct
from time import perf_counter
from typing import Any

import numpy as np

from lstm_cli.cells import Cell
from lstm_cli.engines.jit.batch import Rows
from lstm_cli.engines.jit.codegen import forward
from lstm_cli.engines.jit.codegen.forward import Blocks, Shape
from lstm_cli.engines.jit.runtime.compiler import kernels
from lstm_cli.engines.jit.runtime.memory import Workspace, address
from lstm_cli.engines.jit.runtime.thread_pool import run, yield_address
from lstm_cli.engines.jit.runtime.worker_ir import team_words
from lstm_cli.engines.jit.weights import Plan, RecurrentWeights
from lstm_cli.engines.schedule import Schedule
from lstm_cli.engines.setup import setup_total
from lstm_cli.engines.types import Array

_SHARING = 8
"""Threads that share columns and fill more of their caches with input projections."""

_CALL = Struct("8q")
"""The entries of `forward.Blocks.call`."""


@dataclass(frozen=True, eq=False)
class ForwardKernel:
    """A compiled forward kernel, the layout of its block, and what that says of the weights."""

    address: int
    schedule: Schedule
    blocks: Blocks
    weights: bytes


def forward_kernel(weights: RecurrentWeights, plan: Schedule) -> ForwardKernel:
    """The kernel for a cell and the shapes of its panels, made once for these weights."""
    found = weights.kernels.get(plan)
    if found is None:
        blocks = forward.blocks(len(plan.phases))
        packed = blocks.weights.pack(_weight_entries(weights))
        code = _compiled(weights.plan, plan)
        found = weights.kernels[plan] = ForwardKernel(code, plan, blocks, packed)
    return found


@lru_cache(maxsize=256)
def _compiled(weights: Plan, schedule: Schedule) -> int:
    """The kernel's address."""
    machine = weights.machine
    splits = tuple(packing.columns.split for packing in weights.products)
    shape = Shape(weights.lanes, weights.inputs.columns.split, splits)
    name = f"forward {equations(weights.cell)} {shape.name} {schedule.name}"
    made = kernels(name, lambda: forward.build(weights.cell, schedule, shape, machine), machine)
    return made["forward"]


def equations(cell: Cell) -> str:
    """What of a cell shows in a kernel: all but its sizes."""
    sizes = {"hidden_size": 1}
    if getattr(cell, "projection_size", None) is not None:
        sizes["projection_size"] = 1
    return repr(replace(cell, **sizes))  # type: ignore[arg-type]


def _weight_entries(weights: RecurrentWeights) -> dict[str, int]:
    named = {"x": weights.inputs}
    named |= {str(k): packed for k, packed in enumerate(weights.products)}
    entries = {"p": address(weights.peepholes)}
    for key, packed in named.items():
        entries |= {f"K_{key}": packed.K, f"panels_{key}": packed.columns.count}
        entries |= {f"w_{key}": address(packed.panels), f"b_{key}": address(packed.init)}
    return entries


@dataclass(slots=True)
class Sequences:
    """What one direction computes on.

    Attributes
    ----------
    x
        (N, T, D), numbers of a step side by side.
    rows
        The order in which the kernel takes the sequences.
    reverse
        From each sequence's last step to its first.
    states
        Initial (h, c), each (N, size); None for zeros.
    mask
        (N, P) of recurrent dropout.
    keep
        Keep the states and slots of every step.
    threads
        As many at most.
    """

    x: Array
    rows: Rows
    reverse: bool
    states: tuple[Array | None, ...]
    mask: Array | None
    keep: bool
    threads: int


@dataclass
class Buffers:
    """A direction's buffers for a kind of batch, and the block that tells the kernel of them.

    Attributes
    ----------
    h, c
        (turns, N, stride) by row: a turn for each step and one more, or for the last ones only.
    mask, masked
        (N, stride) of recurrent dropout, and h times it as `h` is.
    record
        (numbers, slots, stride) what is kept of each step, by its number in all steps.
    firsts
        (groups,) the number of a group's first step.
    meeting
        What threads that share columns meet at.
    offsets
        By an array's strides, the distance of steps, and where rows begin.
    told
        Whose weights stand in the block.
    """

    block: Array
    h: Array
    c: Array
    mask: Array | None
    masked: Array | None
    record: Array | None
    firsts: Array
    meeting: Array
    offsets: dict[tuple[int, ...], tuple[int, int, Array]] = field(default_factory=dict)
    told: ForwardKernel | None = None


def run_forward(
    weights: RecurrentWeights,
    kernel: ForwardKernel,
    given: Sequences,
    y: tuple[Array, int] | None,
    space: Workspace,
) -> tuple[Buffers, tuple[float, float]]:
    """The forward kernel over a batch.

    Parameters
    ----------
    y
        (N, T, F) to be written from a column on; None: nowhere. Padding is left as it is.

    Returns
    -------
    buffers, seconds
        What it left in the workspace; time of the input projection, and of the recurrence.
    """
    rows = given.rows
    if rows.order is None:
        key = (kernel.address, weights.sizes, rows, *_kind(given))
        buffers = space.plan(key) or space.keep(key, _buffers(weights, kernel, given, space))
    else:
        buffers = _buffers(weights, kernel, given, space)
    _begin(buffers, given)
    block = buffers.block
    if buffers.told is not kernel:
        kernel.blocks.all.fill(block, kernel.blocks.weights, kernel.weights)
        buffers.told = kernel
    _tell(buffers, given, y)
    if given.threads > 1:
        buffers.meeting.fill(0)
    begun, before = perf_counter(), setup_total()
    run(kernel.address, address(block), given.threads)
    seconds = perf_counter() - begun - (setup_total() - before)
    x, rest = block.item(0), block.item(1)  # the clock's ticks, by part
    share = seconds * x / (x + rest or 1)
    return buffers, (share, seconds - share)


def _kind(given: Sequences) -> tuple[object, ...]:
    """What, beside the rows and the cell, buffers depend on."""
    return given.reverse, given.keep, given.mask is None, given.threads


def _buffers(
    weights: RecurrentWeights, kernel: ForwardKernel, given: Sequences, space: Workspace
) -> Buffers:
    """Buffers for the batch, and the block's entries that are the same for all such batches."""
    rows, dtype, keep = given.rows, weights.dtype.name, given.keep
    N, T, G = rows.count, rows.T, len(weights.cell.letters)
    units, outputs, slots = weights.units.stride, weights.outputs.stride, len(kernel.schedule.slots)
    h = space.shaped("h", (T + 1 if keep else 2, N, outputs), dtype)
    c = space.shaped("c", (T + 1 if keep else 1, N, units), dtype)
    mask = masked = record = None
    if given.mask is not None:
        mask, masked = space.shaped("mask", h.shape[1:], dtype), space.shaped("hm", h.shape, dtype)
    if slots:
        numbers = int(rows.active.sum()) if keep else N
        record = space.shaped("record", (numbers, slots, units), dtype)
    limit = _limit(rows, G * units * h.itemsize, given.threads, weights.cache)
    shares = given.threads if rows.alone else 1  # threads that share columns share these, too
    firsts = rows.firsts() if keep else rows.starts
    meeting = space.shaped("meeting", (team_words(given.threads),), "int64")
    entries = {
        "T": T,
        "groups": rows.groups if rows.alone else 0,
        "apart": rows.apart,
        "limit": limit,
        "out_size": weights.cell.output_size,
        "ld": units,
        "ld_h": outputs,
        "h_step": N * outputs,
        "h_turn": -1 if keep else 1,
        "c_step": N * units,
        "c_turn": -1 if keep else 0,
        "keep": keep,
        "slots": slots,
        "z_size": limit * G * units,
        "active": address(rows.active),
        "starts": address(rows.starts),
        "firsts": address(firsts),
        "meeting": address(meeting),
        "yield": yield_address(),
        "h": address(h),
        "c": address(c),
        "m": address(mask),
        "hm": address(masked),
        "record": address(record),
        "z": address(space.get("z", shares * limit * G * units, dtype)),
        "rows": address(space.get("rows", given.threads * 2 * limit, "int64")),
        "in_size": weights.sizes[2],
        "ld_x": 0,
        "halves_x": 0,
        "halves_h": 0,
    }
    if weights.pairs:
        wide = -(-weights.sizes[2] // 32) * 16
        halves_x = space.get("halves of x", shares * limit * wide, dtype)
        halves_h = space.get("halves of h", h.size // 2, dtype)
        entries |= {"ld_x": wide, "halves_x": address(halves_x), "halves_h": address(halves_h)}
    for k in range(1, len(weights.products)):
        entries[f"reads_{k}"] = address(space.get(f"reads {k}", N * units, dtype))
    layout = kernel.blocks
    block = layout.all.empty()
    layout.all.fill(block, layout.batch, layout.batch.pack(entries))
    return Buffers(block, h, c, mask, masked, record, firsts, meeting)


def _limit(rows: Rows, row: int, threads: int, cache: int) -> int:
    """Rows of input projections at once: half a thread's cache, a step at least, no more than all.

    Threads that share columns hold a part of each row. A few of them are counted: more rows would
    bring no speed, and every thread has its own list of rows.
    """
    own = row if rows.alone else -(-row // min(threads, _SHARING))
    steps = int(rows.active.sum(axis=1).max(initial=0))
    return max(rows.largest, min(steps, cache // 2 // max(1, own)), 1)


def _begin(buffers: Buffers, given: Sequences) -> None:
    """Initial states by row, and the mask."""
    rows = given.rows
    for buffer, state in zip((buffers.h, buffers.c), given.states, strict=False):
        _by_row(buffer[0], state, rows)
    if buffers.mask is not None and buffers.masked is not None:
        _by_row(buffers.mask, given.mask, rows)
        np.multiply(buffers.h[0], buffers.mask, buffers.masked[0])


def _by_row(into: Array, values: Array | None, rows: Rows) -> None:
    """Values by sequence in the order of rows; columns that only fill the last vector are 0."""
    into.fill(0)
    if values is not None:
        into[:, : values.shape[1]] = values if rows.order is None else values[rows.order]


def _tell(buffers: Buffers, given: Sequences, y: tuple[Array, int] | None) -> None:
    """Fill the entries that change from call to call, which come first in the block."""
    x_step, x_at = _steps(buffers, given, given.x, 0)
    y_step = y_at = y_address = 0
    if y is not None:
        y_step, y_at = _steps(buffers, given, *y)
        y_address = address(y[0])
    into: Any = buffers.block
    _CALL.pack_into(into, 0, 0, 0, x_step, y_step, address(given.x), x_at, y_address, y_at)


def _steps(buffers: Buffers, given: Sequences, array: Array, column: int) -> tuple[int, int]:
    """From one of the pass's steps to the next, and the address of where each row begins."""
    key = (*array.strides, column)
    found = buffers.offsets.get(key)
    if found is None:
        row, step = (stride // array.itemsize for stride in array.strides[:2])
        at = given.rows.offsets(row, step, column, reverse=given.reverse)
        found = (-step if given.reverse else step), address(at), at
        buffers.offsets[key] = found
    return found[:2]


def final_states(weights: RecurrentWeights, rows: Rows, left: Buffers) -> tuple[Array, ...]:
    """The last states, each (N, size), in the caller's order."""
    found = []
    for buffer, size in zip((left.h, left.c), weights.cell.state_sizes, strict=False):
        if rows.lengths is None:
            found.append(buffer[rows.T % len(buffer), :, :size].copy())
        else:
            last = buffer[rows.lengths % len(buffer), np.arange(rows.count), :size]
            final = np.empty_like(last)
            final[rows.order] = last
            found.append(final)
    return tuple(found)
