"""Initial and final states: a run can continue where another one ended."""

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

from lstm_cli.engines.protocols import Engine
from lstm_cli.engines.types import LayerSpec

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
def test_a_sequence_in_two_parts_equals_the_whole(name: str, first: int, engine: Engine) -> None:
    specs = FORWARD[name]
    net, x = network(specs, engine), random_inputs(N, T, D)
    first_part = net.run(x[:, :first], None, random_states(specs, N))
    second_part = net.run(x[:, first:], None, first_part.state)
    whole = twin(specs, random_weights(specs), x, None, random_states(specs, N))
    outputs = np.concatenate([first_part.outputs, second_part.outputs], axis=1)
    assert_close(outputs, whole.outputs, engine.dtype)
    assert_states_close(second_part.state, whole.state, engine.dtype)


def test_the_reverse_direction_starts_at_the_end(engine: Engine) -> None:
    specs = [recurrent("lstm", 5, D, directions=2)]
    x, state = random_inputs(N, T, D), random_states(specs, N)
    lengths = np.array([9, 3, 1, 6])
    actual = network(specs, engine).run(x, lengths, state)
    expected = twin(specs, random_weights(specs), x, lengths, state)
    assert_close(actual.outputs, expected.outputs, engine.dtype)
    # Its final state is its output at the first step.
    np.testing.assert_array_equal(actual.state[0][0][:, 1], actual.outputs[:, 0, 5:])
    last = actual.outputs[np.arange(N), lengths - 1, :5]
    np.testing.assert_array_equal(actual.state[0][0][:, 0], last)


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_no_state_is_zeros(kind: str, engine: Engine) -> None:
    specs = [recurrent(kind, 5, D, directions=2)]
    x = random_inputs(N, T, D)
    zeros = [tuple(None if s is None else 0 * s for s in random_states(specs, N)[0])]
    actual, other = network(specs, engine).run(x), network(specs, engine).run(x, None, zeros)
    np.testing.assert_array_equal(actual.outputs, other.outputs)
    assert_close(actual.outputs, twin(specs, random_weights(specs), x).outputs, engine.dtype)


def test_one_layer_may_lack_an_initial_state(engine: Engine) -> None:
    specs = FORWARD["stack"]
    x, state = random_inputs(N, T, D), random_states(specs, N)
    for partial in ([None, state[1]], [state[0], None], [(state[0][0], None), state[1]]):
        actual = network(specs, engine).run(x, None, partial)
        expected = twin(specs, random_weights(specs), x, None, partial)
        assert_close(actual.outputs, expected.outputs, engine.dtype)


def test_state_shapes(engine: Engine) -> None:
    specs = [
        recurrent("lstm", 5, D, directions=2, projection_size=2),
        recurrent("gru", 7, 4, index=1),
    ]
    actual = network(specs, engine).run(random_inputs(N, T, D))
    (h, c), (h_gru, c_gru) = actual.state
    assert h.shape == (N, 2, 2)
    assert c is not None
    assert c.shape == (N, 2, 5)
    assert h_gru.shape == (N, 1, 7)
    assert c_gru is None
    expected = twin(specs, random_weights(specs), random_inputs(N, T, D))
    assert_states_close(actual.state, expected.state, engine.dtype)
