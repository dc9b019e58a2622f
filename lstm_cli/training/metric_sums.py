"""Sums that metrics are means of: exact, so that batches, ranks and shards leave them unchanged."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.training.losses import METRICS

_UNIT = 1126
"""Every float64 is a whole multiple of 2 to the power of minus this number."""
_HALF = 26
"""Bits of the lower part of a mantissa of 53 bits."""
_BLOCK = 1 << 20
"""Numbers added at once: the sums of their parts of 27 bits are exact in float64."""


class ExactSum:
    """A sum of float64 numbers without rounding.

    The sum is an integer in units of the smallest float64. So it depends neither on the order of
    the numbers nor on their division into parts, and it is rounded once, like ``math.fsum``.
    """

    def __init__(self) -> None:
        self._units = 0
        self._not_finite = 0.0

    def add(self, values: Array) -> None:
        """Add numbers (n,)."""
        finite = np.isfinite(values)
        if not finite.all():
            self._not_finite += float(values[~finite].sum())
            values = values[finite]
        for first in range(0, len(values), _BLOCK):
            self._add_finite(np.asarray(values[first : first + _BLOCK], np.float64))

    def _add_finite(self, values: Array) -> None:
        mantissas, exponents = np.frexp(values)
        whole = np.ldexp(mantissas, 53).astype(np.int64)
        low = whole & ((1 << _HALF) - 1)
        lowest = int(exponents.min())
        places = exponents - lowest
        # Numbers of one exponent are added as integers, in two parts that float64 can hold.
        parts = (np.bincount(places, part) for part in (whole >> _HALF, low))
        for place, (high_sum, low_sum) in enumerate(zip(*parts, strict=True)):
            if high_sum or low_sum:
                units = (int(high_sum) << _HALF) + int(low_sum)
                self._units += units << (place + lowest - 53 + _UNIT)

    def merge(self, other: ExactSum) -> None:
        """Add another sum."""
        self._units += other._units
        self._not_finite += other._not_finite

    @property
    def value(self) -> float:
        """The sum, rounded once."""
        return self._not_finite or _rounded(self._units)

    def parts(self) -> Array:
        """(n,) few numbers with the same exact sum, which `add` restores."""
        parts, rest = [self._not_finite] if self._not_finite else [], self._units
        while rest:
            part = min(max(_rounded(rest), -_LARGEST), _LARGEST)
            parts.append(part)
            numerator, denominator = part.as_integer_ratio()
            rest -= (numerator << _UNIT) // denominator
        return np.array(parts, np.float64)


_LARGEST = float(np.finfo(np.float64).max)


def _rounded(units: int) -> float:
    try:
        return units / (1 << _UNIT)
    except OverflowError:
        return math.inf if units > 0 else -math.inf


class MetricSums:
    """Sums over the rows that count: valid sequences, or valid steps.

    Attributes
    ----------
    count
        Number of rows.
    sums
        Sum over rows by metric.
    """

    def __init__(self) -> None:
        self.count = 0
        self.sums: dict[str, ExactSum] = {}
        self._scores: list[Array] = []
        self._positive: list[Array] = []

    def add_rows(self, name: str, values: Array) -> None:
        """Add a value of each row to a metric."""
        self.sums.setdefault(name, ExactSum()).add(values)

    def add_scores(self, scores: Array, positive: Array) -> None:
        """Add the score of each row, in float32, and whether it is positive, for the ROC curve."""
        self._scores.append(scores.astype(np.float32))
        self._positive.append(positive)

    def add(self, other: MetricSums) -> None:
        """Add the sums over other rows."""
        for name, total in other.sums.items():
            self.sums.setdefault(name, ExactSum()).merge(total)
        self._scores += other._scores
        self._positive += other._positive
        self.count += other.count

    def result(self) -> dict[str, float]:
        """Metrics by name. Empty if no row counted."""
        if not self.count:
            return {}
        means = {name: total.value / self.count for name, total in self.sums.items()}
        if self._scores:
            auc = area_under_curve(np.concatenate(self._scores), np.concatenate(self._positive))
            if auc is not None:
                means["auc"] = auc
        return {name: means[name] for name in METRICS if name in means}

    def mean(self, name: str) -> float | None:
        """Mean of one metric so far. None if no row counted, or for ``auc``."""
        return self.sums[name].value / self.count if self.count and name in self.sums else None

    def state_arrays(self) -> dict[str, Array]:
        """State for `load_state`: counts, sums and the scores of the ROC curve."""
        arrays = {f"sum.{name}": total.parts() for name, total in self.sums.items()}
        arrays["count"] = np.asarray(self.count, np.int64)
        if self._scores:
            arrays["scores"] = np.concatenate(self._scores)
            arrays["positive"] = np.concatenate(self._positive).astype(np.uint8)
        return arrays

    def load_state(self, arrays: Mapping[str, Array]) -> None:
        """Restore a result of `state_arrays`."""
        self.count, self.sums = int(arrays["count"]), {}
        for name, value in arrays.items():
            if name.startswith("sum."):
                self.add_rows(name.removeprefix("sum."), np.reshape(value, -1))
        self._scores = [arrays["scores"]] if "scores" in arrays else []
        self._positive = [arrays["positive"].astype(bool)] if "scores" in arrays else []


def area_under_curve(scores: Array, positive: Array) -> float | None:
    """Area under the ROC curve, with ties counted half. None if a class is absent.

    It is the Mann-Whitney statistic: the probability that a positive scores above a negative.
    """
    above, below = np.sort(scores[positive]), np.sort(scores[~positive])
    if not len(above) or not len(below):
        return None
    # Pairs of a positive and a lower negative, twice, and pairs of equal scores, once: integers.
    pairs = sum(int(np.searchsorted(below, above, side).sum()) for side in ("left", "right"))
    return pairs / (2 * len(above) * len(below))
