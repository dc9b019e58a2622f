"""A worked example of an LSTM with one unit, to the last published digit.

"Backpropagating an LSTM: a numerical example", A. Gomez 2016: two steps of two features, one
unit, started from zeros. Its order of gates is candidate, input, forget, output.
"""

from __future__ import annotations

import numpy as np
import pytest
from networks import recurrent

from lstm_cli.engines.protocols import Engine
from lstm_cli.engines.types import TrainingPass
from lstm_cli.network import backpropagation
from lstm_cli.network.network import Network

W = {"g": (0.45, 0.25), "i": (0.95, 0.8), "f": (0.7, 0.45), "o": (0.6, 0.4)}
U = {"g": 0.15, "i": 0.8, "f": 0.1, "o": 0.25}
B = {"g": 0.2, "i": 0.65, "f": 0.15, "o": 0.1}
X = np.array([[[1.0, 2.0], [0.5, 3.0]]])

PUBLISHED = {
    "g": ("0.81775408", "0.84980402"),
    "i": ("0.96083428", "0.98118397"),
    "f": ("0.8519528", "0.87030197"),
    "o": ("0.81757448", "0.84993334"),
    "c": ("0.78572615", "1.5176331"),
    "h": ("0.5363134", "0.77198111"),
}


def worked_example(engine: Engine) -> Network:
    """The example's network: native order is i, f, g, o."""
    weights = {
        "layers.0.weight_ih": np.array([W[gate] for gate in "ifgo"]),
        "layers.0.weight_hh": np.array([[U[gate]] for gate in "ifgo"]),
        "layers.0.bias": np.array([B[gate] for gate in "ifgo"]),
    }
    return Network([recurrent("lstm", 1, 2)], weights, engine)


@pytest.mark.parametrize("value", PUBLISHED)
@pytest.mark.parametrize("step", [0, 1])
def test_value(value: str, step: int, engine: Engine) -> None:
    result = worked_example(engine).run(X, keep=True)
    actual = float(result.kept[0]["forward"][value][0, step, 0])
    published = PUBLISHED[value][step]
    if engine.dtype == "float64":
        assert f"{actual:.8g}" == published
    assert actual == pytest.approx(float(published), abs=3e-7)


def test_final_states(engine: Engine) -> None:
    result = worked_example(engine).run(X)
    h, c = result.state[0]
    assert c is not None
    assert float(h[0, 0, 0]) == pytest.approx(float(PUBLISHED["h"][1]), abs=3e-7)
    assert float(c[0, 0, 0]) == pytest.approx(float(PUBLISHED["c"][1]), abs=3e-7)
    np.testing.assert_array_equal(result.outputs[0, -1], h[0, 0])


TARGETS = np.array([0.5, 1.25])  # the loss is half the summed squared error
GRADIENTS = {
    "g": ("-0.02671622", "-0.09220113", "-0.01039609", "-0.03640839"),
    "i": ("-0.00220369", "-0.00663861", "-0.00059832", "-0.0027615"),
    "f": ("-0.00315327", "-0.01891963", "-0.00338228", "-0.00630654"),
    "o": ("-0.02592411", "-0.16260389", "-0.02969987", "-0.05361303"),
}
"""For each gate: two of W, one of U, one of b."""
INPUT_GRADIENTS = (("-0.00816553", "-0.0048668"), ("-0.04742407", "-0.03072765"))


def published(text: str) -> float:
    return pytest.approx(float(text), abs=0.6 * 10.0 ** -len(text.partition(".")[2]))


def test_gradients(engine: Engine) -> None:
    net = worked_example(engine)
    tape = backpropagation.forward(net, X, None, None, TrainingPass())
    d = (tape.outputs[0, :, 0] - TARGETS).reshape(1, 2, 1).astype(engine.dtype)
    actual = backpropagation.backward(net, tape, d, d_logits=False)
    exact = engine.dtype == "float64"
    for gate, texts in GRADIENTS.items():
        k = "ifgo".index(gate)
        values = [
            *actual.weights["layers.0.weight_ih"][k],
            actual.weights["layers.0.weight_hh"][k, 0],
            actual.weights["layers.0.bias"][k],
        ]
        for value, text in zip(values, texts, strict=True):
            expected = published(text) if exact else pytest.approx(float(text), abs=3e-7)
            assert float(value) == expected, gate
    for t, texts in enumerate(INPUT_GRADIENTS):
        for value, text in zip(actual.inputs[0, t], texts, strict=True):
            expected = published(text) if exact else pytest.approx(float(text), abs=3e-7)
            assert float(value) == expected
