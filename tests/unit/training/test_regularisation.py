"""Penalties, decay and clipping against the sums they stand for."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lstm_cli.cells.expression import evaluate, symbol
from lstm_cli.training.updates import clipped, decayed, exceeds, global_norm, norm_factor, penalized

W = np.array([[-2.0, 0.0, 3.0], [0.5, -0.25, 1.5]])
G = np.array([[0.1, 0.2, -0.3], [0.4, -0.5, 0.6]])


def gradients() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"a": rng.standard_normal((3, 4)), "b": rng.standard_normal(5), "c": np.zeros((0, 2))}


def test_penalties_are_the_derivatives_of_their_sums() -> None:
    l1, l2, step = 0.3, 0.7, 1e-6

    def penalty(w: Any) -> float:
        return float(l1 * np.abs(w).sum() + l2 / 2 * (w**2).sum())

    found = penalized(W, G, l1, l2)
    for place in np.ndindex(W.shape):
        shift = np.zeros_like(W)
        shift[place] = step
        slope = (penalty(W + shift) - penalty(W - shift)) / (2 * step)
        assert found[place] - G[place] == pytest.approx(slope, abs=1e-8)


def test_without_penalties_nothing_is_computed() -> None:
    assert penalized(W, G, 0.0, 0.0) is G
    assert decayed(W, 0.1, 0.0) is W


def test_decay() -> None:
    np.testing.assert_allclose(decayed(W, 0.1, 0.5), 0.95 * W, rtol=1e-15)


def test_symbols_give_what_arrays_give_in_their_precision() -> None:
    w, g, rate = symbol("w"), symbol("g"), symbol("rate")
    roots = {"penalised": penalized(w, g, 0.3, 0.7), "decayed": decayed(w, rate, 0.5)}
    single = {"w": W.astype(np.float32), "g": G.astype(np.float32)}
    found = evaluate(roots, {**single, "rate": 0.1})
    np.testing.assert_array_equal(found["penalised"], penalized(single["w"], single["g"], 0.3, 0.7))
    np.testing.assert_array_equal(found["decayed"], decayed(single["w"], 0.1, 0.5))
    assert {value.dtype for value in found.values()} == {np.dtype(np.float32)}


def test_norm_is_that_of_all_numbers_in_a_row() -> None:
    found = gradients()
    row = np.concatenate([g.ravel() for g in found.values()])
    assert global_norm(found) == pytest.approx(float(np.linalg.norm(row)), rel=1e-14)
    assert global_norm({}) == 0.0


def test_norm_is_summed_in_double_precision_in_any_order() -> None:
    # In single precision the ones would vanish beside 1e8.
    parts = {"large": np.full(1, 1e4, np.float32), "ones": np.ones(10_000, np.float32)}
    assert global_norm(parts) == math.sqrt(1e8 + 1e4)
    rng = np.random.default_rng(1)
    many = {str(k): rng.standard_normal(7) * 10.0**k for k in range(-8, 8)}
    orders = [rng.permutation(list(many)) for _ in range(20)]
    assert len({global_norm({name: many[name] for name in order}) for order in orders}) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_norm_of_what_is_not_finite_is_not_finite(bad: float) -> None:
    found = gradients()
    found["b"][2] = bad
    assert not math.isfinite(global_norm(found))
    assert global_norm({"huge": np.array([1e200])}) == math.inf


def test_clipping_by_value() -> None:
    for g in gradients().values():
        expected = [min(max(float(x), -0.6), 0.6) for x in g.ravel()]
        assert clipped(g, 0.6).ravel().tolist() == expected
        assert clipped(g, None) is g
    limited = {name: clipped(g, 0.6) for name, g in gradients().items()}
    assert global_norm(gradients(), limit=0.6) == pytest.approx(global_norm(limited), rel=1e-14)


def test_a_number_outside_the_limits_is_found_on_either_side() -> None:
    largest = max(float(np.abs(g).max(initial=0)) for g in gradients().values())
    for sign in (1, -1):
        found = {name: sign * g for name, g in gradients().items()}
        assert exceeds(found, 0.99 * largest)
        assert not exceeds(found, largest)


def test_clipping_by_norm() -> None:
    norm = global_norm(gradients())
    assert norm_factor(norm, 0.5) == 0.5 / norm
    assert norm_factor(norm, norm) == 1.0
    assert norm_factor(0.0, norm) == 1.0
