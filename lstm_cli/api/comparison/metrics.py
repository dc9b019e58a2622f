"""M"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from lstm_cli.api.comparison.inputs import SYMBOLS, ComparedDirection, ComparedLayer
from lstm_cli.engines.types import Array

CHUNK_NUMBERS = 1 << 18
"""Numbers that are widened to float64 at once."""


@dataclass(frozen=True)
class BlockMetrics:
    """Two blocks of one shape side by side.

    Attributes
    ----------
    difference
        Largest absolute difference of two elements; infinite where one is NaN.
    relative
        That difference over the largest absolute element of A; None where that is 0.
    norm_a, norm_b
        Square roots of the sums of squares.
    correlation
        Pearson's, over the elements; None where one side is constant.
    """

    difference: float
    relative: float | None
    norm_a: float
    norm_b: float
    correlation: float | None


def float64_chunks(a: Array, b: Array) -> Iterator[tuple[Array, Array]]:
    """Both arrays in float64, some rows at a time."""
    rows = max(1, CHUNK_NUMBERS // max(1, math.prod(a.shape[1:])))
    for start in range(0, len(a), rows):
        stop = start + rows
        yield a[start:stop].astype(np.float64), b[start:stop].astype(np.float64)


def block_metrics(a: Array, b: Array) -> BlockMetrics:
    """BlockMetrics of two arrays of one shape, of at least one axis."""
    largest = size_a = 0.0
    sums = np.zeros(5)
    with np.errstate(all="ignore"):
        for x, y in float64_chunks(a, b):
            largest = max(largest, _largest_difference(x, y))
            size_a = max(size_a, float(np.abs(x).max(initial=0.0)))
            x, y = x.ravel(), y.ravel()
            sums += [x.sum(), y.sum(), x @ x, y @ y, x @ y]
        relative = largest / size_a if size_a > 0 else None
        norms = np.sqrt(sums[2:4])
        correlation = _correlation(sums, a.size)
        return BlockMetrics(largest, relative, float(norms[0]), float(norms[1]), correlation)


def _largest_difference(x: Array, y: Array) -> float:
    """NaN equals NaN, and infinity itself: what is compared is what was stored."""
    apart = np.abs(x - y)
    if not np.isfinite(apart).all():
        same = (x == y) | (np.isnan(x) & np.isnan(y))
        apart = np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))
    return float(apart.max(initial=0.0))


def _correlation(sums: Array, count: int) -> float | None:
    a, b, aa, bb, ab = (float(value) for value in sums)
    spread = (aa - a * a / count, bb - b * b / count) if count else (0.0, 0.0)
    # What is left of equal numbers after rounding is no spread.
    if not (spread[0] > 1e-12 * aa and spread[1] > 1e-12 * bb):
        return None
    found = (ab - a * b / count) / math.sqrt(spread[0]) / math.sqrt(spread[1])
    return max(-1.0, min(1.0, found)) if math.isfinite(found) else None


def norm(values: Array) -> float:
    """Square root of the sum of squares."""
    with np.errstate(all="ignore"):
        squares = sum(float((x * x).sum()) for x, _ in float64_chunks(values, values[:0]))
    return math.sqrt(squares) if math.isfinite(squares) else math.inf


@dataclass(frozen=True)
class ComparedBlock:
    """One gate's matrix or vector on both sides.

    Attributes
    ----------
    layer
        Index in A, or in B where A has none.
    kind, direction, gate, matrix
        Such as ``lstm``, ``reverse``, ``f``, ``U``; `gate` is empty for a tensor not by gate.
    tensor
        Name within its layer.
    shape_a, shape_b
        None: not there.
    figures
        None: the shapes differ.
    equal
        Within the tolerance, on every element.
    gates
        How many gates the tensor stacks; 0 if it is not by gate.
    """

    layer: int
    kind: str
    direction: str
    gate: str
    matrix: str
    tensor: str
    shape_a: tuple[int, ...] | None
    shape_b: tuple[int, ...] | None
    block_metrics: BlockMetrics | None
    equal: bool
    gates: int = 0

    @property
    def name(self) -> str:
        """As it is written in the equations: ``U_f``."""
        return f"{self.matrix}_{self.gate}" if self.gate else self.matrix


def compared_blocks(
    a: ComparedLayer,
    b: ComparedLayer,
    one: ComparedDirection | None,
    other: ComparedDirection | None,
    tolerance: float,
) -> Iterator[ComparedBlock]:
    """Blocks of one direction of two layers; one side may lack it."""
    mine = {} if one is None else one.tensors
    theirs = {} if other is None else other.tensors
    direction = one or other
    place = "" if direction is None or a.kind == "dense" else direction.name
    for tensor in dict.fromkeys([*mine, *theirs]):
        x, y = mine.get(tensor), theirs.get(tensor)
        gates = () if _turned(x, y) else (a if tensor in mine else b).gates(tensor)
        for k, gate in enumerate(gates or ("",)):
            pair = [_part(value, k, len(gates)) for value in (x, y)]
            block = _block(a, place, gate, tensor, pair, tolerance)
            yield replace(block, gates=len(gates))


def _turned(a: Array | None, b: Array | None) -> bool:
    """Whether one is as wide as the other is long: its rows are no gates then."""
    return a is not None and b is not None and a.shape != b.shape and a.shape == b.shape[::-1]


def _part(value: Array | None, k: int, gates: int) -> Array | None:
    """The k-th gate's rows; the whole where the rows are no multiple of the gates."""
    if value is None:
        return None
    value = np.atleast_1d(value)
    if gates < 2 or len(value) % gates:
        return value
    rows = len(value) // gates
    return value[k * rows : (k + 1) * rows]


def _block(
    layer: ComparedLayer,
    direction: str,
    gate: str,
    tensor: str,
    pair: list[Array | None],
    tolerance: float,
) -> ComparedBlock:
    a, b = pair
    found = None
    if a is not None and b is not None and a.shape == b.shape:
        found = block_metrics(a, b)
    return ComparedBlock(
        layer.index,
        layer.kind,
        direction,
        gate,
        SYMBOLS.get(tensor, tensor),
        tensor,
        None if a is None else a.shape,
        None if b is None else b.shape,
        found,
        found is not None and found.difference <= tolerance,
    )
