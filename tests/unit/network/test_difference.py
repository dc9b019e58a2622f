"""Largest difference between two arrays, its place, and numbers that are not finite."""

from __future__ import annotations

import numpy as np
import pytest

from lstm_cli.network import difference
from lstm_cli.network.difference import (
    Difference,
    absolute_difference,
    largest,
    largest_difference,
    scaled_difference,
)

NAN, INF = np.nan, np.inf


def test_the_place_does_not_depend_on_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    a = np.random.default_rng(0).standard_normal((7, 5, 3)).astype(np.float32)
    b = a.copy()
    b[4, 2, 1] += 0.5
    b[5, 0, 0] -= 0.25
    whole = largest_difference(a, b)
    assert whole.index == (4, 2, 1)
    assert (whole.sequence, whole.step) == (4, 2)
    assert whole.value == abs(float(a[4, 2, 1]) - float(b[4, 2, 1]))
    monkeypatch.setattr(difference, "CHUNK_NUMBERS", 20)
    assert largest_difference(a, b) == whole


def test_places_in_words() -> None:
    assert Difference(1.0, (0, 3, 2)).place() == "sequence 0, step 3, feature 2"
    assert Difference(1.0, (0, 1, 2)).place("direction") == "sequence 0, direction 1, feature 2"
    assert Difference(1.0, (4, 2)).place() == "sequence 4, feature 2"
    assert Difference(1.0, (4, 2)).step is None


def test_numbers_that_are_not_finite() -> None:
    a, b = np.array([NAN, NAN, INF, INF, 1.0]), np.array([NAN, 1.0, INF, -INF, 1.5])
    np.testing.assert_array_equal(absolute_difference(a, b), [0, INF, 0, INF, 0.5])
    assert largest_difference(a, b) == Difference(INF, (1,))
    assert np.isnan(largest_difference(a, b, scaled_difference).value)
    assert largest(scaled_difference(a, b)).index == (0,)


def test_scaled_differences_are_relative_above_1() -> None:
    a, b = np.array([0.5, -8.0]), np.array([0.25, -6.0])
    np.testing.assert_array_equal(scaled_difference(a, b), [0.25, 0.25])


def test_empty_arrays_do_not_differ() -> None:
    empty = np.zeros((0, 3))
    assert largest_difference(empty, empty) == largest(empty) == Difference(0.0)
