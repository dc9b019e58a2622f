"""Stateful layers: a row of a batch continues the same row of the last one, until a reset."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import network, random_inputs, random_states, recurrent, rows

from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.errors import DataError
from lstm_cli.network.network import Network
from lstm_cli.network.state import StateCarry

N, T, D = 4, 8, 3
LAYERS = [
    recurrent("lstm", 5, D, stateful=True),
    recurrent("gru", 7, 5, index=1, stateful=True),
    recurrent("rnn", 2, 7, index=2),
]


def step(net: Network, carry: StateCarry, x: Any) -> Any:
    result = net.run(x, None, carry.start(None, len(x)))
    carry.store(result.state)
    return result.outputs


def test_batches_continue_row_by_row() -> None:
    net = network(LAYERS[:2], ReferenceEngine("float64"))
    carry, x = StateCarry(net.recurrent), random_inputs(N, T, D)
    parts = [step(net, carry, x[:, part]) for part in (slice(0, 3), slice(3, 4), slice(4, T))]
    whole = net.run(x).outputs
    np.testing.assert_allclose(np.concatenate(parts, axis=1), whole, atol=1e-12)


def test_a_layer_that_is_not_stateful_starts_anew() -> None:
    net = network(LAYERS, ReferenceEngine("float64"))
    carry, x = StateCarry(net.recurrent), random_inputs(N, T, D)
    first = net.run(x[:, :3])
    carry.store(first.state)
    start = carry.start(None, N)
    assert start is not None
    assert start[2] is None
    np.testing.assert_array_equal(start[0][1], first.state[0][1])
    actual = step(net, carry, x[:, 3:])
    expected = net.run(x[:, 3:], None, [*first.state[:2], None]).outputs
    np.testing.assert_array_equal(actual, expected)


def test_the_reverse_direction_starts_anew() -> None:
    specs = [recurrent("lstm", 5, D, directions=2, stateful=True)]
    net = network(specs, ReferenceEngine("float64"))
    carry, x = StateCarry(net.recurrent), random_inputs(N, T, D)
    first = net.run(x[:, :3])
    carry.store(first.state)
    actual = step(net, carry, x[:, 3:])
    h, c = first.state[0]
    assert h[:, 1].any()  # what was found is not changed, only what is carried
    zeros = np.zeros_like(h[:, :1])
    start = [(np.concatenate([h[:, :1], zeros], axis=1), np.concatenate([c[:, :1], zeros], axis=1))]
    np.testing.assert_array_equal(actual, net.run(x[:, 3:], None, start).outputs)
    np.testing.assert_array_equal(actual[:, :, 5:], net.run(x[:, 3:]).outputs[:, :, 5:])


def test_reset() -> None:
    net = network(LAYERS[:2], ReferenceEngine())
    carry, x = StateCarry(net.recurrent), random_inputs(N, T, D)
    assert carry.active
    assert not carry.has_states
    first = step(net, carry, x)
    assert carry.has_states
    assert (step(net, carry, x) != first).any()
    carry.reset()
    assert not carry.has_states
    np.testing.assert_array_equal(step(net, carry, x), first)


def test_a_smaller_last_batch_continues_its_rows() -> None:
    net = network(LAYERS[:2], ReferenceEngine("float64"))
    carry, x = StateCarry(net.recurrent), random_inputs(N, T, D)
    first = net.run(x[:, :3])
    carry.store(first.state)
    actual = step(net, carry, x[:2, 3:])
    expected = net.run(x[:2, 3:], None, rows(first.state, slice(2))).outputs
    np.testing.assert_allclose(actual, expected, atol=1e-12)


def test_more_rows_than_before_continue_nothing() -> None:
    net = network(LAYERS[:2], ReferenceEngine())
    carry = StateCarry(net.recurrent)
    step(net, carry, random_inputs(2, T, D))
    with pytest.raises(DataError) as error:
        carry.start(None, 3)
    assert "layer 0 is stateful" in str(error.value)
    assert "at most 2 sequences" in str(error.value)
    assert "reset_state()" in str(error.value)


def test_given_states_win() -> None:
    net = network(LAYERS[:2], ReferenceEngine())
    carry = StateCarry(net.recurrent)
    step(net, carry, random_inputs(N, T, D))
    given = random_states(LAYERS[:2], N)
    assert carry.start(given, N) is given


def test_without_stateful_layers_nothing_is_carried() -> None:
    specs = [recurrent("lstm", 5, D)]
    net = network(specs, ReferenceEngine())
    carry = StateCarry(net.recurrent)
    step(net, carry, random_inputs(N, T, D))
    assert not carry.active
    assert not carry.has_states
    assert carry.start(None, N) is None
