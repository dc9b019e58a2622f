"""Activations: ONNX's formulas at known points, their parameters, NaN, and saturation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from networks import parametrized

from lstm_cli.cells import FORMULAS, Activation
from lstm_cli.errors import ConfigError

E = math.e
LITERALS = {
    "sigmoid": {0.0: 0.5, 1.0: 0.7310585786300049, -2.0: 0.11920292202211755},
    "tanh": {0.0: 0.0, 1.0: 0.7615941559557649, -0.5: -0.46211715726000973},
    "relu": {-3.0: 0.0, 0.0: 0.0, 2.5: 2.5},
    "identity": {-3.0: -3.0, 2.5: 2.5},
    "affine": {-3.0: -3.0, 2.5: 2.5},
    "elu": {-1.0: 1 / E - 1, 0.0: 0.0, 2.5: 2.5},
    "hard_sigmoid": {-2.5: 0.0, -1.0: 0.3, 0.0: 0.5, 1.0: 0.7, 2.5: 1.0, 9.0: 1.0},
    "leaky_relu": {-2.0: -0.02, 3.0: 3.0},
    "scaled_tanh": {1.0: 0.7615941559557649},
    "softplus": {0.0: 0.6931471805599453, 1.0: 1.3132616875182228, -1.0: 0.31326168751822286},
    "softsign": {0.0: 0.0, 1.0: 0.5, -3.0: -0.75},
    "thresholded_relu": {-2.0: 0.0, 0.9: 0.0, 1.0: 0.0, 1.5: 1.5},
    "symmrelu": {-3.0: 3.0, 0.0: 0.0, 2.0: 2.0},
    "gauss": {0.0: 1.0, 1.0: 1 / E, -2.0: E**-4},
}
WITH_PARAMETERS = [
    ("affine", 2.0, 0.5, 1.5, 3.5),
    ("elu", 0.5, None, -1.0, 0.5 * (1 / E - 1)),
    ("hard_sigmoid", 0.25, 0.4, 1.0, 0.65),
    ("hard_sigmoid", 1 / 6, 0.5, 1.0, 4 / 6),
    ("leaky_relu", 0.3, None, -2.0, -0.6),
    ("scaled_tanh", 2.0, 0.5, 2.0, 2 * 0.7615941559557649),
    ("thresholded_relu", 0.5, None, 0.9, 0.9),
    ("thresholded_relu", 2.0, None, 1.5, 0.0),
]


def test_every_activation_has_literals() -> None:
    assert LITERALS.keys() == FORMULAS.keys()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", FORMULAS)
def test_values(name: str, dtype: str) -> None:
    x, expected = (
        np.array(list(side), dtype) for side in zip(*LITERALS[name].items(), strict=True)
    )
    actual = Activation(name)(x)
    assert actual.dtype == dtype
    np.testing.assert_allclose(actual, expected, rtol=1e-6 if dtype == "float32" else 1e-14)


@pytest.mark.parametrize(("name", "alpha", "beta", "x", "expected"), WITH_PARAMETERS)
def test_parameters(name: str, alpha: float, beta: float | None, x: float, expected: float) -> None:
    actual = Activation(name, alpha, beta)(np.array([x]))
    np.testing.assert_allclose(actual, [expected], rtol=1e-14)


@pytest.mark.parametrize("name", FORMULAS)
def test_nan_stays_nan_and_changes_no_other_value(name: str) -> None:
    activation = parametrized(name)
    actual = activation(np.array([np.nan, 0.4, np.nan, -0.4]))
    np.testing.assert_array_equal(np.isnan(actual), [True, False, True, False])
    np.testing.assert_array_equal(actual[[1, 3]], activation(np.array([0.4, -0.4])))


LIMITS = {
    "sigmoid": (0, 1),
    "tanh": (-1, 1),
    "elu": (-1, 1e4),
    "hard_sigmoid": (0, 1),
    "relu": (0, 1e4),
    "softplus": (0, 1e4),
    "softsign": (-1e4 / 10001, 1e4 / 10001),
    "gauss": (0, 0),
    "scaled_tanh": (-1, 1),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LIMITS)
def test_saturates_without_a_warning(name: str, dtype: str) -> None:
    actual = Activation(name)(np.array([-1e4, 1e4], dtype))
    np.testing.assert_allclose(actual, np.array(LIMITS[name], dtype), rtol=1e-6, atol=0)


def test_synonyms() -> None:
    assert Activation("linear") == Activation("none") == Activation("identity")
    assert hash(Activation("linear")) == hash(Activation("identity"))


def test_defaults_are_filled_in() -> None:
    assert Activation("hard_sigmoid") == Activation("hard_sigmoid", 0.2, 0.5)
    assert Activation("elu", 2) == Activation("elu", alpha=2.0)
    assert isinstance(Activation("elu", 2).alpha, float)
    assert Activation("tanh").alpha is None


@pytest.mark.parametrize(
    ("activation", "text"),
    [
        (Activation("tanh"), "tanh"),
        (Activation("hard_sigmoid"), "hard_sigmoid"),
        (Activation("hard_sigmoid", 0.25), "hard_sigmoid(alpha=0.25)"),
        (Activation("affine", 2, 1), "affine(alpha=2, beta=1)"),
    ],
)
def test_as_text(activation: Activation, text: str) -> None:
    assert str(activation) == text


def test_an_unknown_name() -> None:
    with pytest.raises(ConfigError) as error:
        Activation("sigmiod")
    assert "'sigmiod' is not an activation" in str(error.value)
    assert error.value.hints == ("did you mean `sigmoid`?",)
    assert "softsign" in str(error.value)


@pytest.mark.parametrize(("name", "key"), [("tanh", "alpha"), ("elu", "beta"), ("gauss", "beta")])
def test_a_parameter_it_does_not_have(name: str, key: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} has no {key}"):
        Activation(name, **{key: 0.5})
