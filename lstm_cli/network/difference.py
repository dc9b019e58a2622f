"""Largest difference between two arrays, and its place."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lstm_cli.engines.types import Array

CHUNK_NUMBERS = 1 << 18
"""Most numbers that are converted to float64 at once."""


@dataclass(frozen=True)
class Difference:
    """The largest difference between two arrays.

    Attributes
    ----------
    value
        Largest difference.
    index
        Place of the largest difference; empty for empty arrays.
    """

    value: float
    index: tuple[int, ...] = ()

    @property
    def sequence(self) -> int:
        """Sequence of arrays (N, T, F) or (N, F)."""
        return self.index[0]

    @property
    def step(self) -> int | None:
        """Step of arrays (N, T, F); None for arrays (N, F)."""
        return self.index[1] if len(self.index) == 3 else None

    def place(self, middle: str = "step") -> str:
        """Place in words: ``sequence 0, step 3, feature 2``.

        Parameters
        ----------
        middle
            Name of the second of three axes.
        """
        words = ["sequence", middle, "feature"] if len(self.index) == 3 else ["sequence", "feature"]
        return ", ".join(f"{word} {k}" for word, k in zip(words, self.index, strict=True))


def absolute_difference(a: Array, b: Array) -> Array:
    """Elementwise |a - b|. Two NaN and equal infinities differ by 0, one NaN by infinity."""
    with np.errstate(all="ignore"):
        difference = np.abs(a - b)
    if not np.isfinite(difference).all():
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        difference = np.where(same, 0.0, np.where(np.isnan(difference), math.inf, difference))
    return np.asarray(difference)


def scaled_difference(expected: Array, actual: Array) -> Array:
    """Elementwise |expected - actual| over max(1, |expected|); NaN where a side is NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.abs(expected - actual) / np.maximum(1.0, np.abs(expected)))


def largest(differences: Array) -> Difference:
    """The first largest of elementwise differences; a NaN counts as the largest."""
    if not differences.size:
        return Difference(0.0)
    at = np.unravel_index(int(np.argmax(differences)), differences.shape)
    return Difference(float(differences[at]), tuple(int(k) for k in at))


def largest_difference(
    expected: Array, actual: Array, measure: Callable[[Array, Array], Array] = absolute_difference
) -> Difference:
    """The largest difference of two arrays of one shape and at least one axis, in float64.

    Parameters
    ----------
    measure
        Function that gives elementwise differences.
    """
    if not expected.size:
        return Difference(0.0)
    parts: list[Difference] = []
    row = 0
    for a, b in float64_chunks(expected, actual):
        part = largest(measure(a, b))
        parts.append(Difference(part.value, (row + part.index[0], *part.index[1:])))
        row += len(a)
    return parts[largest(np.array([part.value for part in parts])).index[0]]


def float64_chunks(a: Array, b: Array) -> Iterator[tuple[Array, Array]]:
    """Both arrays in float64, some rows at a time."""
    rows = max(1, CHUNK_NUMBERS // max(1, math.prod(a.shape[1:])))
    for start in range(0, len(a), rows):
        stop = start + rows
        yield (
            a[start:stop].astype(np.float64, copy=False),
            b[start:stop].astype(np.float64, copy=False),
        )
