"""Initial and final states: where one run ends, the next can go on."""

from __future__ import annotations

import numpy as np
import pytest
from networks import (
    assert_close,
    assert_states_close,
    network,
    random_inputs,
    random_states,
    random_weights,
    recurrent,
)
from twin import twin

from lstm_cli.engines.types import Engine, LayerSpec

N, T, D = 4, 9, 3

FORWARD: dict[str, list[LayerSpec]] = {
    "lstm": [recurrent("lstm", 5, D)],
    "projected": [recurrent("lstm", 5, D, projection_size=2, peepholes=True)],
    "gru": [recurrent("gru", 5, D)],
    "gru before": [recurrent("gru", 5, D, reset_after=False)],
    "rnn": [recurrent("rnn", 5, D)],
    "stack": [recurrent("lstm", 5, D), recurrent("gru", 7, 5, index=1)],
}


@pytest.mark.parametrize("first", [0, 1, 4, 8, 9])
@pytest.mark.parametrize("name", FORWARD)
def test_a_sequence_cut_in_two_goes_on(name: str, first: int, engine: Engine) -> None:
    specs = FORWARD[name]
    net, x = network(specs, engine), random_inputs(N, T, D)
    begun = net.run(x[:, :first], None, random_states(specs, N))
    ended = net.run(x[:, first:], None, begun.state)
    whole = twin(specs, random_weights(specs), x, None, random_states(specs, N))
    outputs = np.concatenate([begun.outputs, ended.outputs], axis=1)
    assert_close(outputs, whole.outputs, engine.dtype)
    assert_states_close(ended.state, whole.state, engine.dtype)


def test_the_reverse_direction_starts_at_the_end(engine: Engine) -> None:
    specs = [recurrent("lstm", 5, D, directions=2)]
    x, state = random_inputs(N, T, D), random_states(specs, N)
    lengths = np.array([9, 3, 1, 6])
    found = network(specs, engine).run(x, lengths, state)
    expected = twin(specs, random_weights(specs), x, lengths, state)
    assert_close(found.outputs, expected.outputs, engine.dtype)
    # Its final state is its output at the first step.
    np.testing.assert_array_equal(found.state[0][0][:, 1], found.outputs[:, 0, 5:])
    last = found.outputs[np.arange(N), lengths - 1, :5]
    np.testing.assert_array_equal(found.state[0][0][:, 0], last)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_no_state_is_zeros(kind: str, engine: Engine) -> None:
    specs = [recurrent(kind, 5, D, directions=2)]
    x = random_inputs(N, T, D)
    zeros = [tuple(None if s is None else 0 * s for s in random_states(specs, N)[0])]
    found, other = network(specs, engine).run(x), network(specs, engine).run(x, None, zeros)
    np.testing.assert_array_equal(found.outputs, other.outputs)
    assert_close(found.outputs, twin(specs, random_weights(specs), x).outputs, engine.dtype)


def test_a_layer_may_go_without(engine: Engine) -> None:
    specs = FORWARD["stack"]
    x, state = random_inputs(N, T, D), random_states(specs, N)
    for given in ([None, state[1]], [state[0], None], [(state[0][0], None), state[1]]):
        found = network(specs, engine).run(x, None, given)
        expected = twin(specs, random_weights(specs), x, None, given)
        assert_close(found.outputs, expected.outputs, engine.dtype)


def test_state_shapes(engine: Engine) -> None:
    specs = [
        recurrent("lstm", 5, D, directions=2, projection_size=2),
        recurrent("gru", 7, 4, index=1),
    ]
    found = network(specs, engine).run(random_inputs(N, T, D))
    (h, c), (h_gru, c_gru) = found.state
    assert h.shape == (N, 2, 2)
    assert c is not None
    assert c.shape == (N, 2, 5)
    assert h_gru.shape == (N, 1, 7)
    assert c_gru is None
    expected = twin(specs, random_weights(specs), random_inputs(N, T, D))
    assert_states_close(found.state, expected.state, engine.dtype)
