"""Metrics of two weights files, block by block: differences, norms and correlation."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.workflows.compare.inputs import SYMBOLS, ComparedDirection, ComparedLayer
from lstm_cli.workflows.convert.equivalence import absolute_difference

CHUNK_NUMBERS = 1 << 18
"""Most numbers that are converted to float64 at once."""


@dataclass(frozen=True)
class BlockMetrics:
    """Metrics of two blocks of one shape.

    Attributes
    ----------
    difference
        Largest absolute difference of two elements; infinite where one is NaN.
    relative
        That difference over the largest absolute element of A; None where that is 0.
    norm_a, norm_b
        Square roots of the sums of squares.
    correlation
        Pearson's correlation over the elements; None where one side is constant.
    """

    difference: float
    relative: float | None
    norm_a: float
    norm_b: float
    correlation: float | None


@dataclass(frozen=True)
class ComparedBlock:
    """One gate's matrix or vector on both sides: a row of the table of a comparison.

    Attributes
    ----------
    layer
        Index of the layer in A; in B where A has no such layer.
    kind, direction, gate, matrix
        Such as ``lstm``, ``reverse``, ``f``, ``U``; `gate` is empty for a tensor without gates.
    tensor
        Name of the tensor within its layer.
    shape_a, shape_b
        Shapes of the block; None: the file has no such block.
    figures
        Metrics; None: the shapes differ.
    equal
        Every element is within the tolerance.
    gates
        Number of gates that the tensor stacks; 0 if it stacks none.
    """

    layer: int
    kind: str
    direction: str
    gate: str
    matrix: str
    tensor: str
    shape_a: tuple[int, ...] | None
    shape_b: tuple[int, ...] | None
    figures: BlockMetrics | None
    equal: bool
    gates: int = 0

    @property
    def name(self) -> str:
        """Name in the equations: ``U_f``."""
        return f"{self.matrix}_{self.gate}" if self.gate else self.matrix


def float64_chunks(a: Array, b: Array) -> Iterator[tuple[Array, Array]]:
    """Yield both arrays in float64, some rows at a time."""
    rows = max(1, CHUNK_NUMBERS // max(1, math.prod(a.shape[1:])))
    for start in range(0, len(a), rows):
        stop = start + rows
        yield a[start:stop].astype(np.float64), b[start:stop].astype(np.float64)


def block_metrics(a: Array, b: Array) -> BlockMetrics:
    """Return the metrics of two arrays of one shape, of at least one axis."""
    largest = size_a = 0.0
    sums = np.zeros(5)
    with np.errstate(all="ignore"):
        for x, y in float64_chunks(a, b):
            largest = max(largest, float(absolute_difference(x, y).max(initial=0.0)))
            size_a = max(size_a, float(np.abs(x).max(initial=0.0)))
            x, y = x.ravel(), y.ravel()
            sums += [x.sum(), y.sum(), x @ x, y @ y, x @ y]
        relative = largest / size_a if size_a > 0 else None
        norms = np.sqrt(sums[2:4])
        correlation = _correlation(sums, a.size)
        return BlockMetrics(largest, relative, float(norms[0]), float(norms[1]), correlation)


def _correlation(sums: Array, count: int) -> float | None:
    a, b, aa, bb, ab = (float(value) for value in sums)
    variances = (aa - a * a / count, bb - b * b / count) if count else (0.0, 0.0)
    # Equal numbers have a variance of some rounding, not of 0.
    if not (variances[0] > 1e-12 * aa and variances[1] > 1e-12 * bb):
        return None
    value = (ab - a * b / count) / math.sqrt(variances[0]) / math.sqrt(variances[1])
    return max(-1.0, min(1.0, value)) if math.isfinite(value) else None


def norm(values: Array) -> float:
    """Return the square root of the sum of squares."""
    with np.errstate(all="ignore"):
        squares = sum(float((x * x).sum()) for x, _ in float64_chunks(values, values[:0]))
    return math.sqrt(squares) if math.isfinite(squares) else math.inf


def compared_blocks(
    a: ComparedLayer,
    b: ComparedLayer,
    one: ComparedDirection | None,
    other: ComparedDirection | None,
    tolerance: float,
) -> Iterator[ComparedBlock]:
    """Yield the blocks of one direction of two layers; one side may lack the direction."""
    tensors_a = {} if one is None else one.tensors
    tensors_b = {} if other is None else other.tensors
    direction = one or other
    direction_name = "" if direction is None or a.kind == "dense" else direction.name
    for tensor in dict.fromkeys([*tensors_a, *tensors_b]):
        x, y = tensors_a.get(tensor), tensors_b.get(tensor)
        layer = a if tensor in tensors_a else b
        gates = () if _is_transposed(x, y) else layer.gates(tensor)
        for k, gate in enumerate(gates or ("",)):
            pair = [_gate_rows(value, k, len(gates)) for value in (x, y)]
            block = _block(a, direction_name, gate, tensor, pair, tolerance)
            yield replace(block, gates=len(gates))


def _is_transposed(a: Array | None, b: Array | None) -> bool:
    """Return True if one shape is the other one reversed: then its rows are not gates."""
    return a is not None and b is not None and a.shape != b.shape and a.shape == b.shape[::-1]


def _gate_rows(value: Array | None, k: int, gates: int) -> Array | None:
    """Return the rows of the k-th gate; all rows if their number is no multiple of the gates."""
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
    metrics = None
    if a is not None and b is not None and a.shape == b.shape:
        metrics = block_metrics(a, b)
    return ComparedBlock(
        layer.index,
        layer.kind,
        direction,
        gate,
        SYMBOLS.get(tensor, tensor),
        tensor,
        None if a is None else a.shape,
        None if b is None else b.shape,
        metrics,
        metrics is not None and metrics.difference <= tolerance,
    )
