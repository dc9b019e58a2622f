"""Random layers against ONNX Runtime, with options that ONNX's reference evaluator ignores.

Where the two differ is told by a test: ONNX Runtime zeroes the final states of a sequence of
length 0, here they are its initial ones.

ONNX Runtime and this package agree that ``clip`` limits the finished pre-activations, peephole
terms and biases included, in coupled layers too, and never the cell state; that the output
gate's peephole sees the new cell state; and that a reverse pass runs within the length.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import (
    Array,
    network,
    parametrized,
    random_inputs,
    random_lengths,
    random_states,
    random_weights,
    recurrent,
)

from lstm_cli.cells import GRU, LSTM, Activation
from lstm_cli.engines.protocols import Engine
from lstm_cli.engines.types import RecurrentSpec
from lstm_cli.network.network import Network

pytest.importorskip("onnxruntime")
import onnx_models

N, T, D, H = 6, 7, 4, 5
OPSETS = range(14, 21)

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("lstm", {}),
    "lstm peepholes": ("lstm", {"peepholes": True}),
    "lstm clip": ("lstm", {"clip": 0.3}),
    "lstm peepholes clip": ("lstm", {"peepholes": True, "clip": 0.4}),
    "lstm coupled": ("lstm", {"coupled_input_forget": True}),
    "lstm coupled clip": ("lstm", {"coupled_input_forget": True, "clip": 0.3}),
    "lstm coupled peepholes": ("lstm", {"coupled_input_forget": True, "peepholes": True}),
    "gru after": ("gru", {"reset_after": True}),
    "gru before": ("gru", {"reset_after": False}),
    "gru after clip": ("gru", {"reset_after": True, "clip": 0.3}),
    "gru before clip": ("gru", {"reset_after": False, "clip": 0.3}),
    "rnn": ("rnn", {}),
    "rnn clip": ("rnn", {"clip": 0.3}),
}


def check(
    spec: RecurrentSpec, engine: Engine, *, scale: float = 1.0, opset: int = 14, full: bool = False
) -> None:
    """The layer against ONNX Runtime: from non-zero states, ragged unless `full`."""
    lengths = None if full else np.maximum(random_lengths(N, T), 1)
    weights = {name: scale * value for name, value in random_weights([spec]).items()}
    x, state = scale * random_inputs(N, T, spec.input_size), random_states([spec], N)
    y, h, c = onnx_models.run(spec, weights, x, lengths, state[0], opset=opset)
    actual = Network([spec], weights, engine).run(x, lengths, state)
    close(actual.outputs, y)
    close(actual.state[0][0], h)
    if c is not None:
        close(actual.state[0][1], c)


def close(actual: Any, expected: Array) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("full", [True, False], ids=["full", "ragged"])
@pytest.mark.parametrize("option", OPTIONS)
def test_option(option: str, full: bool, directions: int, engine: Engine) -> None:
    kind, options = OPTIONS[option]
    check(recurrent(kind, H, D, directions=directions, **options), engine, full=full)


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_opset(kind: str, opset: int, engine: Engine) -> None:
    check(recurrent(kind, H, D, directions=2), engine, opset=opset)


@pytest.mark.parametrize("name", onnx_models.NAMES)
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_activation_of_the_candidate(kind: str, name: str, engine: Engine) -> None:
    check(recurrent(kind, H, D, activation=parametrized(name), directions=2), engine, scale=0.5)


@pytest.mark.parametrize("name", onnx_models.NAMES)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_activation_of_the_gates(kind: str, name: str, engine: Engine) -> None:
    check(recurrent(kind, H, D, recurrent_activation=parametrized(name)), engine, scale=0.5)


@pytest.mark.parametrize("name", onnx_models.NAMES)
def test_activation_of_the_cell_state(name: str, engine: Engine) -> None:
    check(recurrent("lstm", H, D, cell_activation=parametrized(name)), engine, scale=0.5)


@pytest.mark.parametrize("name", ["affine", "elu", "hard_sigmoid", "leaky_relu", "scaled_tanh"])
def test_default_parameters(name: str, engine: Engine) -> None:
    check(recurrent("rnn", H, D, activation=Activation(name)), engine)


def test_directions_with_activations_of_their_own(engine: Engine) -> None:
    forward = LSTM(hidden_size=H, activation=parametrized("elu"))
    reverse = LSTM(
        hidden_size=H,
        recurrent_activation=parametrized("hard_sigmoid"),
        cell_activation=Activation("softsign"),
    )
    check(RecurrentSpec(0, D, (forward, reverse)), engine)
    pair = (GRU(hidden_size=H), GRU(hidden_size=H, activation=parametrized("scaled_tanh")))
    check(RecurrentSpec(0, D, pair), engine)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("option", ["lstm peepholes", "gru after", "gru before", "rnn"])
def test_one_direction_is_half_of_both(option: str, direction: str, engine: Engine) -> None:
    kind, options = OPTIONS[option]
    spec = recurrent(kind, H, D, directions=2, **options)
    lengths, x = np.maximum(random_lengths(N, T), 1), random_inputs(N, T, D)
    state, weights = random_states([spec], N), random_weights([spec])
    y, h, _ = onnx_models.run(spec, weights, x, lengths, state[0], direction=direction)
    actual = network([spec], engine).run(x, lengths, state)
    d = 0 if direction == "forward" else 1
    close(actual.outputs[:, :, d * H : (d + 1) * H], y)
    close(actual.state[0][0][:, d : d + 1], h)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_a_sequence_of_length_0(kind: str, engine: Engine) -> None:
    spec = recurrent(kind, H, D, directions=2)
    lengths, x, state = random_lengths(N, T), random_inputs(N, T, D), random_states([spec], N)
    y, h, _ = onnx_models.run(spec, random_weights([spec]), x, lengths, state[0])
    actual = network([spec], engine).run(x, lengths, state)
    close(actual.outputs, y)
    empty = lengths == 0
    assert empty.any()
    close(actual.state[0][0][~empty], h[~empty])
    assert not h[empty].any()  # ONNX Runtime's own choice
    close(actual.state[0][0][empty], state[0][0][empty])
