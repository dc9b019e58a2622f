"""Every cell and option on every engine, compared with the loop twin."""

from __future__ import annotations

import numpy as np
import pytest
from networks import (
    CELL_OPTIONS,
    assert_close,
    assert_states_close,
    network,
    parametrized,
    random_inputs,
    random_lengths,
    random_states,
    random_weights,
    recurrent,
)
from twin import check_forward, twin

from lstm_cli.cells import FORMULAS, LSTM, Activation
from lstm_cli.engines.protocols import Engine
from lstm_cli.engines.types import DenseSpec, RecurrentSpec, TrainingPass
from lstm_cli.network import backpropagation
from lstm_cli.network.network import Network

N, T, D, H = 5, 6, 4, 7
SMALL = 0.5  # scale at which unbounded activations keep values small


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("sequences", [True, False], ids=["sequences", "last"])
@pytest.mark.parametrize("option", CELL_OPTIONS)
def test_option(option: str, sequences: bool, directions: int, engine: Engine) -> None:
    kind, options = CELL_OPTIONS[option]
    spec = recurrent(kind, H, D, directions=directions, return_sequences=sequences, **options)
    check_forward([spec], engine, N, T)


UNBIASED = ["lstm peepholes projection", "lstm no forget gate", "lstm coupled", "gru reset after",
            "gru reset before clip", "rnn"]  # fmt: skip


@pytest.mark.parametrize("option", UNBIASED)
def test_no_biases_are_biases_of_zero(option: str, engine: Engine) -> None:
    """Equal bits forward and backward; no gradient, tensor or parameter of a bias."""
    kind, options = CELL_OPTIONS[option]
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
    runs = []
    for layers, tensors in ((specs, weights), (biased, zeros | weights)):
        net = Network(layers, tensors, engine)
        tape = backpropagation.forward(net, x, lengths, state, TrainingPass())
        d = np.cos(np.arange(tape.outputs.size)).reshape(tape.outputs.shape)
        d[np.arange(T) >= lengths[:, None]] = 0
        gradients = backpropagation.backward(net, tape, d, d_logits=False)
        runs.append((net, net.run(x, lengths, state), gradients))
    (net, one, unbiased), (_, other, zero_biased) = runs
    np.testing.assert_array_equal(one.outputs, other.outputs)
    for a, b in zip(one.state[0], other.state[0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert not any("bias" in name for name in (*net.weights, *unbiased.weights))
    assert net.parameter_count == sum(value.size for value in weights.values())
    for name, value in unbiased.weights.items():
        np.testing.assert_array_equal(value, zero_biased.weights[name], err_msg=name)
    np.testing.assert_array_equal(unbiased.inputs, zero_biased.inputs)
    expected = twin(specs, weights, x, lengths, state)
    assert_close(one.outputs, expected.outputs, engine.dtype)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_activation_of_the_candidate(kind: str, name: str, engine: Engine) -> None:
    spec = recurrent(kind, H, D, activation=parametrized(name))
    check_forward([spec], engine, N, T, scale=SMALL)


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_activation_of_the_gates(kind: str, name: str, engine: Engine) -> None:
    spec = recurrent(kind, H, D, recurrent_activation=parametrized(name))
    check_forward([spec], engine, N, T, scale=SMALL)


@pytest.mark.parametrize("name", FORMULAS)
def test_activation_of_the_cell_state(name: str, engine: Engine) -> None:
    spec = recurrent("lstm", H, D, cell_activation=parametrized(name))
    check_forward([spec], engine, N, T, scale=SMALL)


def test_directions_have_activations_of_their_own(engine: Engine) -> None:
    forward = LSTM(hidden_size=H, activation=Activation("softsign"))
    reverse = LSTM(hidden_size=H, activation=parametrized("scaled_tanh"), clip=0.6)
    check_forward([RecurrentSpec(0, D, (forward, reverse))], engine, N, T)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_without_lengths_all_steps_count(kind: str, engine: Engine) -> None:
    spec = recurrent(kind, H, D, directions=2)
    x = random_inputs(N, T, D)
    expected = twin([spec], random_weights([spec]), x)
    actual = network([spec], engine).run(x)
    assert_close(actual.outputs, expected.outputs, engine.dtype)
    assert_states_close(actual.state, expected.state, engine.dtype)


@pytest.mark.parametrize("option", ["lstm coupled", "lstm no forget gate"])
def test_the_block_of_a_gate_that_is_not_there_is_ignored(option: str, engine: Engine) -> None:
    kind, options = CELL_OPTIONS[option]
    spec = recurrent(kind, H, D, **options)
    weights, x = random_weights([spec]), random_inputs(N, T, D)
    expected = twin([spec], weights, x)
    changed = {name: value.copy() for name, value in weights.items()}
    for value in changed.values():
        value[H : 2 * H] = 1e6
    for tensors in (weights, changed):
        actual = Network([spec], tensors, engine).run(x)
        assert_close(actual.outputs, expected.outputs, engine.dtype)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_saturated_gates_are_as_the_twins(kind: str, engine: Engine) -> None:
    spec = recurrent(kind, H, D, directions=2)
    x = 1e4 * random_inputs(N, T, D)
    with np.errstate(over="ignore"):
        expected = twin([spec], random_weights([spec]), x)
    actual = network([spec], engine).run(x)
    assert np.abs(expected.outputs).max() > 0.9
    # A pre-activation of 1e4 is rounded by 1e-3 in float32.
    np.testing.assert_allclose(actual.outputs, expected.outputs, rtol=0, atol=1e-3)
