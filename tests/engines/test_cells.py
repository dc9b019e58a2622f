"""Every cell and option, on every engine, against the slow loop twin."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import (
    assert_close,
    assert_states_close,
    network,
    parametrised,
    random_inputs,
    random_lengths,
    random_states,
    random_weights,
    recurrent,
)
from twin import twin

from lstm_cli.cells import FORMULAS, LSTM, Activation
from lstm_cli.engines.types import DenseSpec, Engine, RecurrentSpec, TrainingPass
from lstm_cli.network import backpropagation
from lstm_cli.network.network import Network

N, T, D, H = 5, 6, 4, 7
SMALL = 0.5  # keeps what an activation without bounds lets grow

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("lstm", {}),
    "lstm peepholes": ("lstm", {"peepholes": True}),
    "lstm narrow projection": ("lstm", {"projection_size": 3}),
    "lstm wide projection": ("lstm", {"projection_size": 9}),
    "lstm square projection": ("lstm", {"projection_size": H}),
    "lstm coupled": ("lstm", {"coupled_input_forget": True}),
    "lstm no forget gate": ("lstm", {"use_forget_gate": False}),
    "lstm clip": ("lstm", {"clip": 0.3}),
    "lstm clip peepholes": ("lstm", {"clip": 0.4, "peepholes": True}),
    "lstm clip coupled": ("lstm", {"clip": 0.5, "coupled_input_forget": True}),
    "lstm peepholes coupled": ("lstm", {"peepholes": True, "coupled_input_forget": True}),
    "lstm peepholes no forget gate": ("lstm", {"peepholes": True, "use_forget_gate": False}),
    "lstm peepholes projection": ("lstm", {"peepholes": True, "projection_size": 5}),
    "lstm three activations": (
        "lstm",
        {
            "recurrent_activation": parametrised("hard_sigmoid"),
            "activation": Activation("softsign"),
            "cell_activation": parametrised("elu"),
        },
    ),
    "gru reset after": ("gru", {"reset_after": True}),
    "gru reset before": ("gru", {"reset_after": False}),
    "gru reset after clip": ("gru", {"reset_after": True, "clip": 0.3}),
    "gru reset before clip": ("gru", {"reset_after": False, "clip": 0.3}),
    "gru two activations": (
        "gru",
        {
            "recurrent_activation": parametrised("hard_sigmoid"),
            "activation": parametrised("leaky_relu"),
        },
    ),
    "rnn": ("rnn", {}),
    "rnn clip": ("rnn", {"clip": 0.3}),
}


def check(spec: RecurrentSpec, engine: Engine, scale: float = 1.0) -> None:
    """The layer against its twin: ragged, from non-zero states."""
    lengths, state = random_lengths(N, T), random_states([spec], N)
    x = scale * random_inputs(N, T, spec.input_size)
    weights = {name: scale * value for name, value in random_weights([spec]).items()}
    expected = twin([spec], weights, x, lengths, state)
    found = Network([spec], weights, engine).run(x, lengths, state)
    assert_close(found.outputs, expected.outputs, engine.dtype)
    assert_states_close(found.state, expected.state, engine.dtype)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("sequences", [True, False], ids=["sequences", "last"])
@pytest.mark.parametrize("option", OPTIONS)
def test_option(option: str, sequences: bool, directions: int, engine: Engine) -> None:
    kind, options = OPTIONS[option]
    spec = recurrent(kind, H, D, directions=directions, return_sequences=sequences, **options)
    check(spec, engine)


UNBIASED = ["lstm peepholes projection", "lstm no forget gate", "lstm coupled", "gru reset after",
            "gru reset before clip", "rnn"]  # fmt: skip


@pytest.mark.parametrize("option", UNBIASED)
def test_no_biases_are_biases_of_zero(option: str, engine: Engine) -> None:
    """Equal bits forward and backward; no gradient, tensor or parameter of a bias."""
    kind, options = OPTIONS[option]
    specs, biased = (
        [
            recurrent(kind, H, D, directions=2, bias=bias, **options),
            DenseSpec(1, 2 * options.get("projection_size", H), 3, None, bias),
        ]
        for bias in (False, True)
    )
    weights = random_weights(specs)
    zeros = {name: np.zeros(p.shape) for spec in biased for name, p in spec.parameters().items()}
    lengths, state, x = random_lengths(N, T), random_states(specs, N), random_inputs(N, T, D)
    found = []
    for layers, given in ((specs, weights), (biased, zeros | weights)):
        net = Network(layers, given, engine)
        tape = backpropagation.forward(net, x, lengths, state, TrainingPass())
        d = np.cos(np.arange(tape.outputs.size)).reshape(tape.outputs.shape)
        d[np.arange(T) >= lengths[:, None]] = 0
        gradients = backpropagation.backward(net, tape, d, d_logits=False)
        found.append((net, net.run(x, lengths, state), gradients))
    (net, one, own), (_, other, wanted) = found
    np.testing.assert_array_equal(one.outputs, other.outputs)
    for a, b in zip(one.state[0], other.state[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert not any("bias" in name for name in (*net.weights, *own.weights))
    assert net.parameter_count == sum(value.size for value in weights.values())
    for name, value in own.weights.items():
        np.testing.assert_array_equal(value, wanted.weights[name], err_msg=name)
    np.testing.assert_array_equal(own.inputs, wanted.inputs)
    expected = twin(specs, weights, x, lengths, state)
    assert_close(one.outputs, expected.outputs, engine.dtype)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_activation_of_the_candidate(kind: str, name: str, engine: Engine) -> None:
    check(recurrent(kind, H, D, activation=parametrised(name)), engine, SMALL)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_activation_of_the_gates(kind: str, name: str, engine: Engine) -> None:
    check(recurrent(kind, H, D, recurrent_activation=parametrised(name)), engine, SMALL)


@pytest.mark.parametrize("name", FORMULAS)
def test_activation_of_the_cell_state(name: str, engine: Engine) -> None:
    check(recurrent("lstm", H, D, cell_activation=parametrised(name)), engine, SMALL)


def test_directions_have_activations_of_their_own(engine: Engine) -> None:
    forward = LSTM(hidden_size=H, activation=Activation("softsign"))
    reverse = LSTM(hidden_size=H, activation=parametrised("scaled_tanh"), clip=0.6)
    check(RecurrentSpec(0, D, (forward, reverse)), engine)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_without_lengths_all_steps_count(kind: str, engine: Engine) -> None:
    spec = recurrent(kind, H, D, directions=2)
    x = random_inputs(N, T, D)
    expected = twin([spec], random_weights([spec]), x)
    found = network([spec], engine).run(x)
    assert_close(found.outputs, expected.outputs, engine.dtype)
    assert_states_close(found.state, expected.state, engine.dtype)


@pytest.mark.parametrize("option", ["lstm coupled", "lstm no forget gate"])
def test_the_block_of_a_gate_that_is_not_there_is_ignored(option: str, engine: Engine) -> None:
    kind, options = OPTIONS[option]
    spec = recurrent(kind, H, D, **options)
    weights, x = random_weights([spec]), random_inputs(N, T, D)
    expected = twin([spec], weights, x)
    changed = {name: value.copy() for name, value in weights.items()}
    for value in changed.values():
        value[H : 2 * H] = 1e6
    for given in (weights, changed):
        found = Network([spec], given, engine).run(x)
        assert_close(found.outputs, expected.outputs, engine.dtype)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_saturated_gates_are_as_the_twins(kind: str, engine: Engine) -> None:
    spec = recurrent(kind, H, D, directions=2)
    x = 1e4 * random_inputs(N, T, D)
    with np.errstate(over="ignore"):
        expected = twin([spec], random_weights([spec]), x)
    found = network([spec], engine).run(x)
    assert np.abs(expected.outputs).max() > 0.9
    # A pre-activation of 1e4 is rounded by 1e-3 in float32.
    np.testing.assert_allclose(found.outputs, expected.outputs, rtol=0, atol=1e-3)
