"""Initial weights: bounds and moments of each scheme, and dependence on name and seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from networks import recurrent

from lstm_cli.cells import GRU
from lstm_cli.engines.types import DenseSpec, LayerSpec, RecurrentSpec
from lstm_cli.network.initializers import SCHEMES, initialize

H, D = 120, 80
SPECS: list[LayerSpec] = [
    recurrent("lstm", H, D, directions=2, peepholes=True, projection_size=40),
    recurrent("gru", 30, 80, index=1),
    recurrent("rnn", 20, 30, index=2),
    DenseSpec(3, 20, 7, None),
]
BOUNDS: dict[str, Callable[[int, int], float]] = {
    "glorot_uniform": lambda m, n: np.sqrt(6 / (m + n)),
    "xavier_uniform": lambda m, n: np.sqrt(6 / (m + n)),
    "he_uniform": lambda m, n: np.sqrt(6 / n),
    "uniform": lambda m, n: np.sqrt(2 / n),
    "xavier": lambda m, n: 2 * np.sqrt(6 / (m + n)),
}
# A Gaussian cut at 2 sigma has this share of its standard deviation left.
CUT = 0.8796
DEVIATIONS: dict[str, Callable[[int, int], float]] = {
    "glorot_uniform": lambda m, n: np.sqrt(2 / (m + n)),
    "xavier_uniform": lambda m, n: np.sqrt(2 / (m + n)),
    "he_uniform": lambda m, n: np.sqrt(2 / n),
    "uniform": lambda m, n: np.sqrt(2 / n / 3),
    "glorot_normal": lambda m, n: np.sqrt(2 / (m + n)),
    "he_normal": lambda m, n: np.sqrt(2 / n),
    "gauss": lambda m, n: np.sqrt(2 / n),
    "xavier": lambda m, n: CUT * np.sqrt(6 / (m + n)),
    "orthogonal": lambda m, n: 1 / np.sqrt(max(m, n)),
}


def gates_of(weights: dict[str, Any], name: str, count: int) -> list[Any]:
    return np.split(weights[name], count)


def matrices(weights: dict[str, Any]) -> list[Any]:
    """Every gate's matrix of the first layer, and the dense matrix."""
    actual = gates_of(weights, "layers.0.weight_ih", 4) + gates_of(weights, "layers.0.weight_hh", 4)
    actual += gates_of(weights, "layers.0.reverse.weight_hh", 4)
    return [*actual, weights["layers.0.weight_hr"]]


@pytest.mark.parametrize("scheme", BOUNDS)
def test_bounds_are_those_of_one_gate(scheme: str) -> None:
    for matrix in matrices(initialize(SPECS, scheme, dtype="float64")):
        bound = BOUNDS[scheme](*matrix.shape)
        assert 0.97 * bound < np.abs(matrix).max() <= bound


@pytest.mark.parametrize("scheme", DEVIATIONS)
def test_deviations_are_those_of_one_gate(scheme: str) -> None:
    for matrix in matrices(initialize(SPECS, scheme, dtype="float64")):
        expected = DEVIATIONS[scheme](*matrix.shape)
        assert matrix.std() == pytest.approx(expected, rel=0.05)
        assert abs(matrix.mean()) < 0.05 * expected


def test_every_drawn_scheme_is_measured() -> None:
    assert set(SCHEMES) == {*DEVIATIONS, "zero", "identity"}


def test_orthogonal() -> None:
    for matrix in matrices(initialize(SPECS, "orthogonal", dtype="float64")):
        m, n = matrix.shape
        product = matrix @ matrix.T if m <= n else matrix.T @ matrix
        np.testing.assert_allclose(product, np.eye(min(m, n)), atol=1e-12)


def test_zero() -> None:
    weights = initialize(SPECS, "zero")
    assert not any(value.any() for name, value in weights.items() if "weight" in name)
    assert weights["layers.0.bias"].sum() == H


def test_identity_is_one_in_every_gate() -> None:
    weights = initialize(SPECS, "identity")
    for block in gates_of(weights, "layers.0.weight_ih", 4):
        np.testing.assert_array_equal(block, np.eye(H, D))
    for block in gates_of(weights, "layers.1.weight_hh", 3):
        np.testing.assert_array_equal(block, np.eye(30))


@pytest.mark.parametrize("forget_bias", [1.0, 0.0, 2.5])
def test_the_forget_bias_stands_in_f_alone(forget_bias: float) -> None:
    spec = recurrent("lstm", 5, 3, directions=2, peepholes=True, forget_bias=forget_bias)
    weights = initialize([spec])
    for name in ("layers.0.bias", "layers.0.reverse.bias"):
        i, f, g, o = np.split(weights[name], 4)
        np.testing.assert_array_equal(f, np.full(5, forget_bias))
        assert not np.concatenate([i, g, o]).any()
    assert not weights["layers.0.peephole"].any()


def test_other_vectors_are_zero() -> None:
    weights = initialize(SPECS)
    for name in ("1.bias_ih", "1.bias_hh", "2.bias", "3.bias"):
        assert not weights[f"layers.{name}"].any()


def test_shapes_names_and_dtype() -> None:
    for dtype in ("float32", "float64"):
        weights = initialize(SPECS, dtype=dtype)
        wanted = {n: p.shape for spec in SPECS for n, p in spec.parameters().items()}
        assert {name: value.shape for name, value in weights.items()} == wanted
        assert {value.dtype.name for value in weights.values()} == {dtype}


def test_float32_is_float64_rounded() -> None:
    single, double = initialize(SPECS, dtype="float32"), initialize(SPECS, dtype="float64")
    for name, value in double.items():
        np.testing.assert_array_equal(single[name], value.astype("float32"))


def test_seeds() -> None:
    one, same, other = (initialize(SPECS, seed=seed) for seed in (3, 3, 4))
    for name, value in one.items():
        np.testing.assert_array_equal(value, same[name])
        assert "weight" not in name or (value != other[name]).mean() > 0.99
    large = initialize(SPECS, seed=2**63 - 1)
    assert (large["layers.0.weight_ih"] != one["layers.0.weight_ih"]).any()


def test_no_two_tensors_and_no_two_gates_are_alike() -> None:
    weights = initialize(SPECS)
    drawn = [block for name in ("", "reverse.") for block in
             gates_of(weights, f"layers.0.{name}weight_ih", 4)]  # fmt: skip
    flat = np.stack([block.ravel() for block in drawn])
    correlation = np.corrcoef(flat) - np.eye(len(flat))
    assert np.abs(correlation).max() < 0.05


def test_a_layer_does_not_depend_on_the_others() -> None:
    whole = initialize(SPECS)
    changed = [*SPECS[:1], RecurrentSpec(1, 80, (GRU(hidden_size=11),)), SPECS[3]]
    for name, value in initialize(changed).items():
        if not name.startswith("layers.1."):
            np.testing.assert_array_equal(value, whole[name])
