"""Derivatives of weights: out[u][d] = sum over q of dz[q][u] a[q][d], over all steps q.

Blocks of steps are the same for any number of threads, which share out the result: so are, then,
the bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lstm_cli.engines.jit.compiler import kernels
from lstm_cli.engines.jit.layout import Columns, Split
from lstm_cli.engines.jit.machine import Machine, host
from lstm_cli.engines.jit.memory import Workspace, address
from lstm_cli.engines.jit.outer import ARGUMENTS, GROUP, build, strip_units
from lstm_cli.engines.jit.pool import run
from lstm_cli.engines.jit.products import Lines, tight_columns
from lstm_cli.engines.types import Array

_FEWEST, _MOST = 128, 512
"""Steps in a block: so many that a tile's sums pay for being added to the result."""

_SHARE = 1 << 17
"""Multiply-adds that are worth a thread: a few microseconds."""

_PACKING = 0.5
"""What packing a panel costs, of what a tile of it does."""


@dataclass(frozen=True)
class GradientKernel:
    """A compiled kernel, for results with rows of as many numbers as `columns` says.

    Attributes
    ----------
    dtype
        NumPy's name of it.
    panels
        Into how many panels a row is cut.
    strip
        Units of a tile.
    block
        Steps in a block.
    machine
        What it was made for.
    """

    address: int
    columns: Columns
    dtype: str
    panels: int
    strip: int
    block: int
    machine: Machine


@lru_cache(maxsize=256)
def gradient_kernel(size: int, element: str, machine: Machine | None = None) -> GradientKernel:
    """The kernel for rows `a` of `size` numbers, ``float`` or ``double``."""
    machine = machine or host()
    cut = tight_columns(size, machine.lanes(element))
    if cut.count == 0 and cut.split.tail is not None:
        cut = Columns(Split(cut.split.tail, None), size, 1)
    split = cut.split
    built = kernels(f"weight gradient {split.name}", lambda: build(split, machine), machine)
    return GradientKernel(
        address=built["weight_gradient"],
        columns=cut,
        dtype="float32" if element == "float" else "float64",
        panels=cut.count + (split.tail is not None),
        strip=strip_units(split, machine),
        block=_block(split, machine),
        machine=machine,
    )


def _block(split: Split, machine: Machine) -> int:
    """Steps in a block: as many as a panel has in an eighth of the cache."""
    fit = machine.cache // 8 // (split.main.per * split.main.lanes.bytes)
    return max(_FEWEST, min(_MOST, fit))


@dataclass(slots=True)
class WeightGradient:
    """What a weight's derivatives are computed of.

    Attributes
    ----------
    steps
        Q.
    dz
        Rows of derivatives, `units` numbers for each gate; what lies elsewhere is not used.
    gates
        (gates,) int64: where in a row of `dz` each gate begins.
    units
        H.
    a
        Rows of what the weights were multiplied with, D numbers each.
    out
        (gates * H, D), overwritten.
    bias
        (gates * H,) to be overwritten with the sums of `dz`; None: not wanted.
    """

    steps: int
    dz: Lines
    gates: Array
    units: int
    a: Lines
    out: Array
    bias: Array | None = None


def run_gradient(
    kernel: GradientKernel, given: WeightGradient, space: Workspace, threads: int
) -> None:
    """Compute derivatives on up to `threads` threads; the results do not depend on how many."""
    if given.steps == 0:
        given.out[...] = 0
        if given.bias is not None:
            given.bias[...] = 0
    elif _narrow(kernel, given):
        _run_transposed(kernel, given, space, threads)
    else:
        _run(kernel, given, space, threads, kernel.columns.size, kernel.panels)


def _narrow(kernel: GradientKernel, given: WeightGradient) -> bool:
    """Whether D fills so little of a vector that vectors had better lie along the units."""
    lanes = kernel.machine.lanes(kernel.columns.split.main.lanes.element).count
    return 2 * kernel.columns.size <= lanes <= given.units


def _run_transposed(
    kernel: GradientKernel, given: WeightGradient, space: Workspace, threads: int
) -> None:
    """The same with both factors exchanged, all gates' units at once."""
    D, H = kernel.columns.size, given.units
    first = int(given.gates.min())
    size = int(given.gates.max()) - first + H
    wide = gradient_kernel(size, kernel.columns.split.main.lanes.element, kernel.machine)
    found = space.shaped("transposed gradients", (D, size), kernel.dtype)
    base = given.dz.base + first * given.out.itemsize
    rows = Lines(base, given.dz.step, given.dz.offsets)
    swapped = WeightGradient(given.steps, given.a, np.zeros(1, np.int64), D, rows, found)
    _run(wide, swapped, space, threads, size, wide.panels)
    for gate, place in enumerate(given.gates - first):
        given.out[gate * H : (gate + 1) * H] = found[:, place : place + H].T
    if given.bias is not None:
        _run(kernel, given, space, threads, 0, 0)


def _run(
    kernel: GradientKernel,
    given: WeightGradient,
    space: Workspace,
    threads: int,
    size: int,
    panels: int,
) -> None:
    """Call the kernel; a result of no panels leaves the bias."""
    cut, gates = kernel.columns, len(given.gates)
    per_gate = -(-given.units // kernel.strip)
    work = given.steps * given.units * gates * cut.padded
    threads = max(1, min(threads, work // _SHARE))
    rows, across = _grid(gates * per_gate, panels, threads)
    block = min(given.steps, kernel.block)
    a_size = block * -(-panels // across) * cut.split.main.width
    own = a_size + (block * GROUP * kernel.strip if given.dz.offsets is not None else 0)
    values = {
        "steps": given.steps,
        "gates": gates,
        "units": given.units,
        "size": size,
        "whole": min(cut.count, panels),
        "panels": panels,
        "per_gate": per_gate,
        "rows": rows,
        "across": across,
        "block": block,
        "own": own,
        "a_size": a_size,
        "places": address(given.gates),
        "out": address(given.out),
        "bias": address(given.bias),
        "space": address(space.get("gradients", threads * own, kernel.dtype)),
        **given.dz.values("dz"),
        **given.a.values("a"),
    }
    filled = ARGUMENTS.block(values)
    run(kernel.address, address(filled), threads)


@lru_cache(maxsize=256)
def _grid(strips: int, panels: int, threads: int) -> tuple[int, int]:
    """Into how many runs of strips, and of panels, the result is cut for that many threads."""

    def cost(cut: tuple[int, int]) -> float:
        high, wide = -(-strips // cut[0]), -(-panels // cut[1])
        return max(wide, 1) * (high + _PACKING)

    # Never more runs of panels than panels: whoever has the first one sums the bias.
    cuts = [(k, min(threads // k, max(panels, 1))) for k in range(1, threads + 1)]
    return min(cuts, key=cost)
