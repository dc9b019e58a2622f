"""Forward pass of one direction: its kernel's buffers and arguments, and the call.

`codegen.forward` writes the kernel itself. Start at `run_forward`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from struct import Struct
from time import perf_counter
from typing import Any

import numpy as np

from lstm_cli.cells import Cell
from lstm_cli.engines.jit.batch import RowGroups
from lstm_cli.engines.jit.codegen import forward
from lstm_cli.engines.jit.codegen.forward import ForwardArguments, ForwardVariant
from lstm_cli.engines.jit.runtime.compiler import load_kernels
from lstm_cli.engines.jit.runtime.memory import Workspace, address
from lstm_cli.engines.jit.runtime.thread_pool import run, syscall_address
from lstm_cli.engines.jit.runtime.worker_ir import shared_phase_words
from lstm_cli.engines.jit.weights import PackingPlan, RecurrentWeights
from lstm_cli.engines.schedule import CellSchedule
from lstm_cli.engines.setup_time import total_setup_seconds
from lstm_cli.engines.types import Array

_COUNTED_THREADS = 8
"""Largest number of threads with shared columns whose caches count for `_projected_rows`."""

_CALL = Struct("8q")
"""Entries of `codegen.forward.ForwardArguments.call`, in order."""


@dataclass(frozen=True, eq=False)
class ForwardKernel:
    """A compiled forward kernel bound to weights.

    Attributes
    ----------
    address, schedule
        Address of the kernel, and phases of the cell's step.
    arguments
        Layout of the kernel's argument block.
    weights
        The block's entries about the weights, packed as bytes.
    """

    address: int
    schedule: CellSchedule
    arguments: ForwardArguments
    weights: bytes


def forward_kernel(weights: RecurrentWeights, schedule: CellSchedule) -> ForwardKernel:
    """The kernel for a cell and the shapes of its panels, built once for these weights."""
    kernel = weights.kernels.get(schedule)
    if kernel is None:
        arguments = forward.forward_arguments(len(schedule.phases))
        packed = arguments.weights.pack(_weight_entries(weights))
        code = _compiled(weights.plan, schedule)
        kernel = ForwardKernel(code, schedule, arguments, packed)
        weights.kernels[schedule] = kernel
    return kernel


@lru_cache(maxsize=256)
def _compiled(plan: PackingPlan, schedule: CellSchedule) -> int:
    """The kernel's address."""
    machine = plan.machine
    splits = tuple(packing.columns.split for packing in plan.products)
    variant = ForwardVariant(plan.vector, plan.inputs.columns.split, splits)
    name = f"forward {equations(plan.cell)} {variant.name} {schedule.name}"
    kernels = load_kernels(
        name, lambda: forward.build(plan.cell, schedule, variant, machine), machine
    )
    return kernels["forward"]


def equations(cell: Cell) -> str:
    """Text of a cell without its sizes: equal for cells with equal kernels."""
    sizes = {"hidden_size": 1}
    if getattr(cell, "projection_size", None) is not None:
        sizes["projection_size"] = 1
    return repr(replace(cell, **sizes))  # type: ignore[arg-type]


def _weight_entries(weights: RecurrentWeights) -> dict[str, int]:
    matrices = {"x": weights.inputs}
    matrices |= {str(k): packed for k, packed in enumerate(weights.products)}
    entries = {"p": address(weights.peepholes)}
    for key, packed in matrices.items():
        entries |= {f"K_{key}": packed.K, f"panels_{key}": packed.columns.count}
        entries |= {f"w_{key}": address(packed.panels), f"b_{key}": address(packed.init)}
    return entries


@dataclass(slots=True)
class ForwardInputs:
    """Inputs and options of one direction's forward pass.

    Attributes
    ----------
    x
        (N, T, D) inputs; the numbers of a step are contiguous.
    rows
        Order in which the kernel computes the sequences.
    reverse
        True: the pass runs from each sequence's last step to its first.
    states
        Initial (h, c), each (N, size); None for zeros.
    mask
        (N, P) mask of recurrent dropout; None without dropout.
    record_steps
        True: store the states and slots of every step.
    threads
        Number of threads.
    """

    x: Array
    rows: RowGroups
    reverse: bool
    states: tuple[Array | None, ...]
    mask: Array | None
    record_steps: bool
    threads: int


@dataclass
class ForwardBuffers:
    """Buffers of one direction for one kind of batch.

    Attributes
    ----------
    block
        The kernel's argument block.
    h, c
        (times, N, stride) states by row: T + 1 times if all steps are recorded, else the last ones.
    mask, masked
        (N, stride) mask of recurrent dropout, and h times the mask in the shape of `h`.
    record
        (step records, slots, stride) slots of each step.
    first_records
        (groups,) number of a group's first step record.
    phase_memory
        Memory of `worker_ir.SharedPhases`, zero before each call.
    offsets
        By an array's strides and column: step stride, address of the row starts, and row starts.
    bound_kernel
        Kernel whose weight entries are in `block`.
    """

    block: Array
    h: Array
    c: Array
    mask: Array | None
    masked: Array | None
    record: Array | None
    first_records: Array
    phase_memory: Array
    offsets: dict[tuple[int, ...], tuple[int, int, Array]] = field(default_factory=dict)
    bound_kernel: ForwardKernel | None = None


def run_forward(
    weights: RecurrentWeights,
    kernel: ForwardKernel,
    inputs: ForwardInputs,
    y: tuple[Array, int] | None,
    workspace: Workspace,
) -> tuple[ForwardBuffers, tuple[float, float]]:
    """Run the forward kernel over a batch.

    Parameters
    ----------
    y
        Output (N, T, F), and the first column of this direction. The kernel writes no padding.
        None: the output of single steps is not needed.

    Returns
    -------
    buffers, seconds
        Buffers that the kernel filled; seconds of the input projection and of the recurrence.
    """
    buffers = prepared_buffers(weights, kernel, inputs, y, workspace)
    _load_initial_states(buffers, inputs)
    block = buffers.block
    if inputs.threads > 1:
        buffers.phase_memory.fill(0)
    start, setup_before = perf_counter(), total_setup_seconds()
    run(kernel.address, address(block), inputs.threads)
    seconds = perf_counter() - start - (total_setup_seconds() - setup_before)
    x_cycles, cycles = block.item(0), block.item(1)
    share = seconds * x_cycles / (x_cycles + cycles or 1)
    return buffers, (share, seconds - share)


def prepared_buffers(
    weights: RecurrentWeights,
    kernel: ForwardKernel,
    inputs: ForwardInputs,
    y: tuple[Array, int] | None,
    workspace: Workspace,
) -> ForwardBuffers:
    """Buffers for a run, with a complete argument block; see `run_forward`."""
    rows = inputs.rows
    if rows.order is None:
        key = (kernel.address, weights.sizes, rows, *_variant_key(inputs))
        buffers: ForwardBuffers | None = workspace.cached(key)
        if buffers is None:
            buffers = workspace.remember(key, _buffers(weights, kernel, inputs, workspace))
    else:
        buffers = _buffers(weights, kernel, inputs, workspace)
    if buffers.bound_kernel is not kernel:
        kernel.arguments.all.fill(buffers.block, kernel.arguments.weights, kernel.weights)
        buffers.bound_kernel = kernel
    _write_call_arguments(buffers, inputs, y)
    return buffers


def _variant_key(inputs: ForwardInputs) -> tuple[object, ...]:
    """Options that the buffers depend on, besides the rows and the cell."""
    return inputs.reverse, inputs.record_steps, inputs.mask is None, inputs.threads


def _buffers(
    weights: RecurrentWeights, kernel: ForwardKernel, inputs: ForwardInputs, workspace: Workspace
) -> ForwardBuffers:
    """Buffers for the batch, and the block's entries that all such batches share."""
    rows, dtype, recorded = inputs.rows, weights.dtype.name, inputs.record_steps
    N, T, G = rows.count, rows.T, len(weights.cell.letters)
    units, outputs, slots = weights.units.stride, weights.outputs.stride, len(kernel.schedule.slots)
    h = workspace.shaped("h", (T + 1 if recorded else 2, N, outputs), dtype)
    c = workspace.shaped("c", (T + 1 if recorded else 1, N, units), dtype)
    mask = masked = record = None
    if inputs.mask is not None:
        mask = workspace.shaped("mask", h.shape[1:], dtype)
        masked = workspace.shaped("hm", h.shape, dtype)
    if slots:
        records = int(rows.active.sum()) if recorded else N
        record = workspace.shaped("record", (records, slots, units), dtype)
    limit = _projected_rows(rows, G * units * h.itemsize, inputs.threads, weights.cache)
    # Threads that share columns also share the input projections.
    shares = inputs.threads if rows.thread_owns_groups else 1
    first_records = rows.first_records() if recorded else rows.starts
    phase_memory = workspace.shaped("phases", (shared_phase_words(inputs.threads),), "int64")
    entries = {
        "T": T,
        "groups": rows.groups if rows.thread_owns_groups else 0,
        "step_stride": rows.step_stride,
        "limit": limit,
        "out_size": weights.cell.output_size,
        "ld": units,
        "ld_h": outputs,
        "h_step": N * outputs,
        "h_mask": -1 if recorded else 1,
        "c_step": N * units,
        "c_mask": -1 if recorded else 0,
        "recorded": recorded,
        "slots": slots,
        "z_size": limit * G * units,
        "active": address(rows.active),
        "starts": address(rows.starts),
        "first_records": address(first_records),
        "phase_memory": address(phase_memory),
        "syscall": syscall_address(),
        "h": address(h),
        "c": address(c),
        "m": address(mask),
        "hm": address(masked),
        "record": address(record),
        "z": address(workspace.get("z", shares * limit * G * units, dtype)),
        "rows": address(workspace.get("rows", inputs.threads * 2 * limit, "int64")),
        "in_size": weights.sizes[2],
        "ld_x": 0,
        "bf16_x": 0,
        "bf16_h": 0,
    }
    if weights.bf16:
        ld_x = -(-weights.sizes[2] // 32) * 16
        bf16_x = workspace.get("bf16 x", shares * limit * ld_x, dtype)
        bf16_h = workspace.get("bf16 h", h.size // 2, dtype)
        entries |= {"ld_x": ld_x, "bf16_x": address(bf16_x), "bf16_h": address(bf16_h)}
    for k in range(1, len(weights.products)):
        entries[f"reads_{k}"] = address(workspace.get(f"reads {k}", N * units, dtype))
    arguments = kernel.arguments
    block = arguments.all.empty()
    arguments.all.fill(block, arguments.batch, arguments.batch.pack(entries))
    return ForwardBuffers(block, h, c, mask, masked, record, first_records, phase_memory)


def _projected_rows(rows: RowGroups, row_bytes: int, threads: int, cache: int) -> int:
    """Number of rows of input projections that fit half a cache, at least those of one step.

    Threads that share columns hold a part of each row. Only a few of them are counted: more rows
    bring no speed, and every thread has its own list of rows.
    """
    counted = min(threads, _COUNTED_THREADS)
    bytes_per_thread = row_bytes if rows.thread_owns_groups else -(-row_bytes // counted)
    steps = int(rows.active.sum(axis=1).max(initial=0))
    return max(rows.largest, min(steps, cache // 2 // max(1, bytes_per_thread)), 1)


def _load_initial_states(buffers: ForwardBuffers, inputs: ForwardInputs) -> None:
    """Copy initial states and the dropout mask by row."""
    rows = inputs.rows
    for buffer, state in zip((buffers.h, buffers.c), inputs.states, strict=False):
        _copy_by_row(buffer[0], state, rows)
    if buffers.mask is not None and buffers.masked is not None:
        _copy_by_row(buffers.mask, inputs.mask, rows)
        np.multiply(buffers.h[0], buffers.mask, buffers.masked[0])


def _copy_by_row(target: Array, values: Array | None, rows: RowGroups) -> None:
    """Copy values (N, size) in the order of rows; padding columns become 0."""
    target.fill(0)
    if values is not None:
        target[:, : values.shape[1]] = values if rows.order is None else values[rows.order]


def _write_call_arguments(
    buffers: ForwardBuffers, inputs: ForwardInputs, y: tuple[Array, int] | None
) -> None:
    """Write the block's first entries, which change from call to call."""
    x_step, x_at = _row_starts(buffers, inputs, inputs.x, 0)
    y_step = y_at = y_address = 0
    if y is not None:
        y_step, y_at = _row_starts(buffers, inputs, y[0], y[1])
        y_address = address(y[0])
    block: Any = buffers.block
    _CALL.pack_into(block, 0, 0, 0, x_step, y_step, address(inputs.x), x_at, y_address, y_at)


def _row_starts(
    buffers: ForwardBuffers, inputs: ForwardInputs, array: Array, column: int
) -> tuple[int, int]:
    """Stride from one step of the pass to the next, in numbers; address of the row starts."""
    key = (*array.strides, column)
    entry = buffers.offsets.get(key)
    if entry is None:
        row, step = (stride // array.itemsize for stride in array.strides[:2])
        starts = inputs.rows.offsets(row, step, column, reverse=inputs.reverse)
        entry = (-step if inputs.reverse else step), address(starts), starts
        buffers.offsets[key] = entry
    return entry[:2]


def final_states(
    weights: RecurrentWeights, rows: RowGroups, buffers: ForwardBuffers
) -> tuple[Array, ...]:
    """Last states, each (N, size), in the caller's order of sequences."""
    states = []
    for buffer, size in zip((buffers.h, buffers.c), weights.cell.state_sizes, strict=False):
        if rows.lengths is None:
            states.append(buffer[rows.T % len(buffer), :, :size].copy())
        else:
            last = buffer[rows.lengths % len(buffer), np.arange(rows.count), :size]
            final = np.empty_like(last)
            final[rows.order] = last
            states.append(final)
    return tuple(states)
