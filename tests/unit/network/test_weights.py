"""Tensors that do not fit the layers: all are named at once, by gate, with both shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import random_weights, recurrent

from lstm_cli.engines.types import DenseSpec, LayerSpec
from lstm_cli.errors import WeightsError
from lstm_cli.network.weights import fit_weights, misfits

LSTM = [recurrent("lstm", 5, 3)]
GRU = [recurrent("gru", 5, 3)]
RNN = [recurrent("rnn", 5, 3)]


def refused(specs: list[LayerSpec], weights: dict[str, Any], source: str | None = None) -> str:
    with pytest.raises(WeightsError) as error:
        fit_weights(specs, weights, source)
    assert error.value.exit_code == 4
    return str(error.value)


def changed(specs: list[LayerSpec], **shapes: tuple[int, ...]) -> dict[str, Any]:
    """Weights of the first layer, some in other shapes."""
    weights = random_weights(specs)
    return weights | {f"layers.0.{name}": np.ones(shape) for name, shape in shapes.items()}


def test_what_fits_comes_back_in_the_layers_order() -> None:
    specs = [recurrent("lstm", 5, 3, directions=2, peepholes=True), DenseSpec(1, 10, 4, None)]
    weights = random_weights(specs)
    fitted = fit_weights(specs, dict(reversed(weights.items())))
    assert list(fitted) == [name for spec in specs for name in spec.parameters()]
    for name, value in fitted.items():
        np.testing.assert_array_equal(value, weights[name])


@pytest.mark.parametrize("specs", [LSTM, RNN], ids=["lstm", "rnn"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_two_biases_are_added(specs: list[LayerSpec], dtype: str) -> None:
    weights = random_weights(specs)
    whole = weights.pop("layers.0.bias").astype(dtype)
    weights["layers.0.bias_ih"], weights["layers.0.bias_hh"] = whole, 2 * whole[::-1]
    fitted = fit_weights(specs, weights)
    assert "layers.0.bias_ih" not in fitted
    np.testing.assert_array_equal(fitted["layers.0.bias"], whole + 2 * whole[::-1])


def test_two_biases_in_half_precision_do_not_overflow_in_their_sum() -> None:
    weights = random_weights(LSTM)
    del weights["layers.0.bias"]
    for name in ("bias_ih", "bias_hh"):
        weights[f"layers.0.{name}"] = np.full(20, 60000, np.float16)
    assert (fit_weights(LSTM, weights)["layers.0.bias"] == 120000).all()


def test_two_biases_of_small_integers_do_not_wrap() -> None:
    weights = random_weights(LSTM)
    del weights["layers.0.bias"]
    weights["layers.0.bias_ih"] = np.full(20, 200, np.uint8)
    weights["layers.0.bias_hh"] = np.full(20, 100, np.uint8)
    assert (fit_weights(LSTM, weights)["layers.0.bias"] == 300).all()


def test_a_gru_keeps_its_two_biases() -> None:
    fitted = fit_weights(GRU, random_weights(GRU))
    assert {"layers.0.bias_ih", "layers.0.bias_hh"} <= fitted.keys()
    text = refused(GRU, random_weights(GRU) | {"layers.0.bias": np.ones(15)})
    assert "layers.0.bias (15,) belongs to no layer" in text


def test_one_of_two_biases() -> None:
    weights = random_weights(LSTM)
    weights["layers.0.bias_ih"] = weights.pop("layers.0.bias")
    text = refused(LSTM, weights)
    assert "layers.0.bias is missing: bias b_i, b_f, b_g, b_o of layer 0 (lstm), (20,)" in text
    assert "layers.0.bias_ih (20,) belongs to no layer" in text


def test_every_misfit_is_named_at_once() -> None:
    specs = [recurrent("lstm", 5, 3, directions=2), DenseSpec(1, 10, 4, None)]
    weights = random_weights(specs)
    weights["layers.0.weight_ih"] = np.ones((20, 4))
    del weights["layers.0.reverse.weight_hh"]
    weights["layers.1.bias"] = np.ones(3)
    weights["layers.1.wieght"] = weights.pop("layers.1.weight")
    text = refused(specs, weights, "mine.safetensors")
    for name in ("0.weight_ih", "0.reverse.weight_hh", "1.bias", "1.weight", "1.wieght"):
        assert f"layers.{name}" in text
    assert text.startswith("5 problems")
    assert text.count("mine.safetensors") == 5
    assert "the nearest name there is layers.1.wieght" in text
    assert "the nearest name it has is layers.1.weight" in text


@pytest.mark.parametrize(
    ("specs", "name", "shape", "mark", "parts"),
    [
        (LSTM, "weight_ih", (20, 4), "D", ["W_i, W_f, W_g, W_o are (5, 4)", "(5, 3) = (H, D)"]),
        (LSTM, "weight_hh", (20, 6), "H", ["U_i, U_f, U_g, U_o are (5, 6)", "(5, 5) = (H, H)"]),
        (LSTM, "weight_ih", (24, 3), "H", ["W_i, W_f, W_g, W_o are (6, 3)", "(5, 3) = (H, D)"]),
        (LSTM, "weight_ih", (3, 20), "transposed", ["looks transposed", "(3, 20)", "(20, 3)"]),
        (LSTM, "weight_ih", (15, 3), "gate missing", ["three gates of 5", "a gru's", "(20, 3)"]),
        (LSTM, "weight_ih", (5, 3), "gate missing", ["one gate of 5", "an rnn's"]),
        (GRU, "weight_hh", (20, 5), "gate too many", ["four gates of 5", "an lstm's", "(15, 5)"]),
        (RNN, "weight_ih", (20, 3), "gate too many", ["four gates of 5", "an lstm's", "W_h is"]),
        (LSTM, "bias", (40,), "two biases", ["twice as long", "b_i, b_f, b_g, b_o", "(20,)"]),
        (LSTM, "bias", (20, 1), "rank", ["2 dimensions instead of 1", "(20, 1)"]),
        (LSTM, "weight_ih", (20,), "rank", ["1 dimension instead of 2"]),
        (LSTM, "weight_ih", (), "rank", ["0 dimensions instead of 2"]),
        (LSTM, "weight_hh", (24, 6), "H, H", ["are (6, 6), expected (5, 5) = (H, H)"]),
        (LSTM, "weight_ih", (0, 3), "H", ["(0, 3)"]),
    ],
)
def test_shapes(
    specs: list[LayerSpec], name: str, shape: tuple[int, ...], mark: str, parts: list[str]
) -> None:
    weights = changed(specs, **{name: shape})
    text = refused(specs, weights)
    assert text.startswith(f"layers.0.{name}")
    for part in parts:
        assert part in text
    (misfit,) = misfits(specs, {key: value.shape for key, value in weights.items()})
    assert misfit.mark == mark
    assert (misfit.name, misfit.layer, misfit.found) == (f"layers.0.{name}", 0, shape)


def test_projection_and_peepholes() -> None:
    specs: list[LayerSpec] = [recurrent("lstm", 5, 3, projection_size=2, peepholes=True)]
    text = refused(specs, changed(specs, weight_hr=(5, 2), peephole=(20,), weight_hh=(20, 5)))
    assert "layers.0.weight_hr: W_hr is (5, 2), expected (2, 5) = (P, H)" in text
    assert "layers.0.peephole: p_i, p_f, p_o" in text
    assert "U_i, U_f, U_g, U_o are (5, 5), expected (5, 2) = (H, P)" in text


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_located(bad: float) -> None:
    weights = random_weights(LSTM)
    weights["layers.0.weight_ih"][13, 2] = bad
    weights["layers.0.weight_ih"][17, 0] = np.nan
    assert f"layers.0.weight_ih is not finite: {bad} at [13, 2]" in refused(LSTM, weights)


def test_every_value_that_is_not_finite_is_named_at_once() -> None:
    weights = random_weights(LSTM)
    for value in weights.values():
        value.flat[-1] = np.inf
    text = refused(LSTM, weights, "mine.safetensors")
    assert text.startswith("3 problems")
    assert text.count("mine.safetensors") == 3


def test_no_tensor_is_copied() -> None:
    weights = random_weights(LSTM)
    fitted = fit_weights(LSTM, weights)
    assert all(fitted[name] is value for name, value in weights.items())


@pytest.mark.parametrize("dtype", ["complex128", "bool", "U3", "object"])
def test_what_is_no_real_number(dtype: str) -> None:
    weights = random_weights(LSTM)
    weights["layers.0.bias"] = np.ones(20).astype(dtype)
    assert "layers.0.bias holds" in refused(LSTM, weights)


def test_integers_are_numbers() -> None:
    weights = random_weights(LSTM) | {"layers.0.bias": np.arange(20)}
    np.testing.assert_array_equal(fit_weights(LSTM, weights)["layers.0.bias"], np.arange(20))


def test_nothing_at_all() -> None:
    assert refused(LSTM, {}).count("is missing") == 3
