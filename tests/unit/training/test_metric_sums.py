"""Exact sums: rounded once, whatever the order of the numbers and their division into parts."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from lstm_cli.training.metric_sums import ExactSum, MetricSums


def exact_sum(*blocks: object) -> ExactSum:
    total = ExactSum()
    for block in blocks:
        total.add(np.array(block, np.float64))
    return total


def awkward_numbers(seed: int, count: int = 500) -> np.ndarray:
    """Numbers of all sizes and signs, many of which cancel, some below the normal range."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(count) * 10.0 ** rng.integers(-320, 300, count)
    return rng.permutation(np.concatenate([values, -values[: count // 2], [5e-324, 0.0, -0.0]]))


@pytest.mark.parametrize("seed", range(10))
def test_a_sum_is_that_of_fsum_in_any_division(seed: int) -> None:
    values = awkward_numbers(seed)
    cuts = np.sort(np.random.default_rng(seed).integers(0, len(values), 6))
    assert exact_sum(values).value == math.fsum(values)
    assert exact_sum(*np.split(values[::-1], cuts)).value == math.fsum(values)
    merged = ExactSum()
    for part in np.split(values, cuts):
        merged.merge(exact_sum(part))
    assert merged.value == math.fsum(values)


def test_blocks_of_many_numbers_are_exact() -> None:
    values = np.full((1 << 20) + 3, 0.1)
    assert exact_sum(values).value == float(len(values) * Fraction(0.1))


@pytest.mark.parametrize("seed", range(5))
def test_parts_restore_the_exact_sum(seed: int) -> None:
    values = awkward_numbers(seed)
    restored = exact_sum(exact_sum(values).parts())
    restored.add(-values)
    assert restored.value == 0.0
    assert len(exact_sum([0.5, 0.25]).parts()) == 1


def test_values_that_are_not_finite_or_too_large() -> None:
    largest = np.finfo(np.float64).max
    assert exact_sum([1.0, np.inf], [2.0]).value == np.inf
    assert math.isnan(exact_sum([np.inf], [-np.inf]).value)
    assert math.isnan(exact_sum(exact_sum([1.0, np.nan]).parts()).value)
    assert exact_sum([largest, largest]).value == np.inf
    assert exact_sum([-largest, -largest]).value == -np.inf
    assert exact_sum(exact_sum([largest, largest]).parts(), [-largest]).value == largest
    assert exact_sum().value == exact_sum([]).value == 0.0


def test_a_state_of_older_checkpoints_is_read() -> None:
    sums = MetricSums()
    sums.load_state({"count": np.array(4), "sum.loss": np.array(3.0)})
    assert sums.result() == {"loss": 0.75}
