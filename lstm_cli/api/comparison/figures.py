"""How far two blocks of weights are apart, computed a piece at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lstm_cli.engines.types import Array

PIECE = 1 << 18
"""Numbers that are widened to float64 at once."""


@dataclass(frozen=True)
class Figures:
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


def pieces(a: Array, b: Array) -> Iterator[tuple[Array, Array]]:
    """Both arrays in float64, some rows at a time."""
    rows = max(1, PIECE // max(1, math.prod(a.shape[1:])))
    for start in range(0, len(a), rows):
        stop = start + rows
        yield a[start:stop].astype(np.float64), b[start:stop].astype(np.float64)


def figures(a: Array, b: Array) -> Figures:
    """Figures of two arrays of one shape, of at least one axis."""
    largest = size_a = 0.0
    sums = np.zeros(5)
    with np.errstate(all="ignore"):
        for x, y in pieces(a, b):
            largest = max(largest, _largest_difference(x, y))
            size_a = max(size_a, float(np.abs(x).max(initial=0.0)))
            x, y = x.ravel(), y.ravel()
            sums += [x.sum(), y.sum(), x @ x, y @ y, x @ y]
        relative = largest / size_a if size_a > 0 else None
        norms = np.sqrt(sums[2:4])
        correlation = _correlation(sums, a.size)
        return Figures(largest, relative, float(norms[0]), float(norms[1]), correlation)


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
        squares = sum(float((x * x).sum()) for x, _ in pieces(values, values[:0]))
    return math.sqrt(squares) if math.isfinite(squares) else math.inf
