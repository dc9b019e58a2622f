"""Expressions on NumPy arrays: results do not depend on the chunks."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lstm_cli.cells.expression import evaluate, exp, symbol
from lstm_cli.engines.reference.arrays import CHUNK, NUMPY

X, Y = symbol("x"), symbol("y")


def random_arrays(shape: Any, dtype: Any = np.float32) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(dtype) for name in "xy"}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (CHUNK,), (CHUNK + 1,), (7, CHUNK // 2)])
def test_chunks_have_the_bits_of_the_whole(shape: Any, dtype: Any) -> None:
    roots = {"sum": X + exp(Y) * symbol("n"), "product": X * Y}
    given = {**random_arrays(shape, dtype), "n": 0.3}
    out = {name: np.zeros(shape, dtype) for name in roots}
    NUMPY.evaluate(roots, given, out)
    for name, expected in evaluate(roots, given).items():
        np.testing.assert_array_equal(out[name], expected)


def test_a_result_may_take_the_place_of_an_input() -> None:
    arrays = random_arrays(2 * CHUNK + 3)
    expected = {"x": arrays["x"] + arrays["y"], "y": arrays["x"].copy()}
    NUMPY.evaluate({"y": X, "x": X + Y}, arrays, arrays)
    for name, value in expected.items():
        np.testing.assert_array_equal(arrays[name], value)


@pytest.mark.parametrize("size", [1, 7, CHUNK, 2 * CHUNK + 3])
def test_a_sum_is_in_double_precision(size: int) -> None:
    given = random_arrays(size)
    products = [float(x) * float(y) for x, y in zip(given["x"], given["y"], strict=True)]
    assert NUMPY.total(X * Y, given) == pytest.approx(math.fsum(products), abs=1e-10)
    ones = np.full(size, 1e30, np.float32)
    assert NUMPY.total(X * X, {"x": ones}) == pytest.approx(size * 1e60)


def test_a_sum_of_a_constant_counts_the_elements() -> None:
    assert NUMPY.total(X * 0.0 + 2.0, {"x": np.ones((3, 5))}) == 30.0
    assert NUMPY.total(symbol("n"), {"x": np.ones((3, 5)), "n": 2.0}) == 30.0
    assert NUMPY.total(X, {"x": np.zeros((0, 4))}) == 0.0


def test_what_overflows_is_no_warning() -> None:
    x = np.array([1e30, -1e30], np.float32)
    NUMPY.evaluate({"x": X * X * X}, {"x": x}, {"x": x})
    np.testing.assert_array_equal(x, [np.inf, -np.inf])
    assert math.isnan(NUMPY.total(X, {"x": x}))
