"""A sequence's result depends on no other sequence, and on nothing past its own end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import (
    Array,
    assert_close,
    assert_same,
    assert_states_close,
    network,
    random_inputs,
    random_lengths,
    random_states,
    random_weights,
    recurrent,
    rows,
)
from twin import Twin, twin

from lstm_cli.engines.protocols import Engine
from lstm_cli.engines.types import DenseSpec, DropoutSpec, FlattenSpec, LayerSpec

N, T, D = 7, 6, 4
LENGTHS = random_lengths(N, T, 3)

STACKS: dict[str, list[LayerSpec]] = {
    "lstm": [recurrent("lstm", 5, D, directions=2, peepholes=True, projection_size=3)],
    "gru": [recurrent("gru", 5, D, directions=2)],
    "gru before": [recurrent("gru", 5, D, directions=2, reset_after=False)],
    "rnn last": [recurrent("rnn", 5, D, directions=2, return_sequences=False)],
    "stack": [
        recurrent("lstm", 5, D, directions=2),
        recurrent("gru", 3, 10, index=1, directions=2),
        DenseSpec(2, 6, 3, None),
    ],
    "flatten first": [FlattenSpec(0, D, T), DenseSpec(1, D * T, 2, None)],
    "dropout alone": [DropoutSpec(0, D, 0.5)],
    "flat": [recurrent("lstm", 5, D), FlattenSpec(1, 5, T), DenseSpec(2, 5 * T, 2, None)],
}


@pytest.fixture(params=STACKS)
def specs(request: pytest.FixtureRequest) -> list[LayerSpec]:
    return STACKS[request.param]


def expected_of(specs: list[LayerSpec], x: Array, lengths: Any, state: Any) -> Twin:
    return twin(specs, random_weights(specs), x, lengths, state)


@pytest.mark.parametrize("filling", [np.nan, np.inf, -np.inf, 1e30, "random"])
def test_padding_does_not_matter(filling: Any, specs: list[LayerSpec], engine: Engine) -> None:
    x, state = random_inputs(N, T, D), random_states(specs, N)
    net = network(specs, engine)
    clean, dirty = x.copy(), x.copy()
    for n, length in enumerate(LENGTHS):
        clean[n, length:] = 0
        rest = dirty[n, length:]
        rest[:] = random_inputs(*rest.shape, 1, seed=9)[..., 0] if filling == "random" else filling
    first, second = net.run(clean, LENGTHS, state), net.run(dirty, LENGTHS, state)
    np.testing.assert_array_equal(first.outputs, second.outputs)
    for one, other in zip(first.state, second.state, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_array_equal(a, b)
    assert_close(second.outputs, expected_of(specs, x, LENGTHS, state).outputs, engine.dtype)


def test_padding_that_overflows_the_dtype_does_not_matter(engine: Engine) -> None:
    specs = STACKS["lstm"]
    x = random_inputs(N, T, D)
    expected = expected_of(specs, x, LENGTHS, None)
    for n, length in enumerate(LENGTHS):
        x[n, length:] = 1e300
    assert_close(network(specs, engine).run(x, LENGTHS).outputs, expected.outputs, engine.dtype)


def test_padded_steps_are_zero(specs: list[LayerSpec], engine: Engine) -> None:
    x, state = random_inputs(N, T, D), random_states(specs, N)
    actual = network(specs, engine).run(x, LENGTHS, state).outputs
    valid = np.arange(T) < LENGTHS[:, None] if actual.ndim == 3 else LENGTHS > 0
    assert not actual[~valid].any()
    assert actual[valid].all()
    assert_close(actual, expected_of(specs, x, LENGTHS, state).outputs, engine.dtype)


def test_an_empty_sequence_keeps_its_states(specs: list[LayerSpec], engine: Engine) -> None:
    state = random_states(specs, N)
    actual = network(specs, engine).run(random_inputs(N, T, D), LENGTHS, state)
    empty = int(np.argmin(LENGTHS))
    assert LENGTHS[empty] == 0
    assert not actual.outputs[empty].any()
    for one, other in zip(actual.state, state, strict=True):
        for a, b in zip(one, other, strict=True):
            if b is not None:
                np.testing.assert_array_equal(a[empty], b[empty].astype(engine.dtype))


def test_a_batch_of_empty_sequences(specs: list[LayerSpec], engine: Engine) -> None:
    state = random_states(specs, 3)
    actual = network(specs, engine).run(np.full((3, T, D), np.nan), np.zeros(3, int), state)
    assert not actual.outputs.any()
    initial = [tuple(None if s is None else s.astype(engine.dtype) for s in p) for p in state]
    assert_states_close(actual.state, initial, engine.dtype)


def test_the_batch_does_not_matter(specs: list[LayerSpec], engine: Engine) -> None:
    x, state = random_inputs(N, T, D), random_states(specs, N)
    net = network(specs, engine)
    whole = net.run(x, LENGTHS, state)
    assert_close(whole.outputs, expected_of(specs, x, LENGTHS, state).outputs, engine.dtype)
    for part in (slice(0, 1), slice(2, 5), slice(5, None)):
        alone = net.run(x[part], LENGTHS[part], rows(state, part))
        expected = type(whole)(whole.outputs[part], rows(whole.state, part))
        assert_same(alone, expected, engine)


def test_the_common_padding_does_not_matter(specs: list[LayerSpec], engine: Engine) -> None:
    x, lengths = random_inputs(N, T, D), np.minimum(LENGTHS, 4)
    net = network(specs, engine)
    long, short = net.run(x, lengths), net.run(x[:, :4], lengths)
    if net.returns_sequences:
        long = type(long)(long.outputs[:, :4], long.state)
    assert_same(short, long, engine)
    expected = expected_of(specs, x[:, :4], lengths, None)
    assert_close(short.outputs, expected.outputs, engine.dtype)


def test_the_order_does_not_matter(specs: list[LayerSpec], engine: Engine) -> None:
    x, state = random_inputs(N, T, D), random_states(specs, N)
    net = network(specs, engine)
    order = np.random.default_rng(4).permutation(N)
    straight = net.run(x, LENGTHS, state)
    shuffled = net.run(x[order], LENGTHS[order], rows(state, order))
    assert_same(
        shuffled, type(straight)(straight.outputs[order], rows(straight.state, order)), engine
    )
    expected = expected_of(specs, x[order], LENGTHS[order], rows(state, order))
    assert_close(shuffled.outputs, expected.outputs, engine.dtype)


def test_lengths_of_all_steps_are_as_none(specs: list[LayerSpec], engine: Engine) -> None:
    x = random_inputs(N, T, D)
    net = network(specs, engine)
    full = net.run(x, np.full(N, T))
    assert_same(full, net.run(x), engine)
    assert_close(full.outputs, expected_of(specs, x, None, None).outputs, engine.dtype)


def test_the_callers_arrays_stay_unchanged(specs: list[LayerSpec], engine: Engine) -> None:
    x, state = random_inputs(N, T, D).astype(engine.dtype), random_states(specs, N)
    copies = [x.copy(), *(s.copy() for pair in state for s in pair if s is not None)]
    actual = network(specs, engine).run(x, LENGTHS, state)
    for one, other in zip(
        copies, [x, *(s for p in state for s in p if s is not None)], strict=True
    ):
        np.testing.assert_array_equal(one, other)
    assert not np.shares_memory(actual.outputs, x)
    assert_close(actual.outputs, expected_of(specs, x, LENGTHS, state).outputs, engine.dtype)
