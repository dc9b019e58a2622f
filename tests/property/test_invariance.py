"""For any network: batching, padding and order do not matter, and the loop twin agrees."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from networks import (
    assert_close,
    assert_same,
    assert_states_close,
    network,
    random_inputs,
    random_lengths,
    random_states,
    random_weights,
    rows,
)
from strategies import stacks
from twin import twin

from lstm_cli.engines.types import Engine, LayerSpec
from lstm_cli.network.network import Network

Batch = tuple[Any, Any, Any]
seeds = st.integers(0, 2**20)
counts = st.integers(1, 6)


def batch(specs: list[LayerSpec], N: int, T: int, seed: int) -> Batch:
    x = random_inputs(N, T, specs[0].input_size, seed)
    return x, random_lengths(N, T, seed), random_states(specs, N, seed)


@given(specs=stacks(), N=counts, T=counts, seed=seeds)
def test_the_twin_agrees(engine: Engine, specs: list[LayerSpec], N: int, T: int, seed: int) -> None:
    x, lengths, state = batch(specs, N, T, seed)
    found = network(specs, engine, seed).run(x, lengths, state)
    expected = twin(specs, random_weights(specs, seed), x, lengths, state)
    assert_close(found.outputs, expected.outputs, engine.dtype)
    assert_states_close(found.state, expected.state, engine.dtype)


@given(
    specs=stacks(),
    N=counts,
    T=counts,
    seed=seeds,
    filling=st.floats(width=32),
    more=st.integers(0, 3),
)
def test_padding(
    engine: Engine, specs: list[LayerSpec], N: int, T: int, seed: int, filling: float, more: int
) -> None:
    x, lengths, state = batch(specs, N, T, seed)
    net = network(specs, engine, seed)
    padded = np.full((N, T + more, x.shape[2]), filling)
    for n, length in enumerate(lengths):
        padded[n, :length] = x[n, :length]
    found, expected = net.run(padded, lengths, state), net.run(x, lengths, state)
    if net.returns_sequences:
        assert not found.outputs[:, T:].any()
        found = type(found)(found.outputs[:, :T], found.state)
    assert_same(found, expected, engine)


@given(specs=stacks(), N=counts, T=counts, seed=seeds, data=st.data())
def test_batching_and_order(
    engine: Engine, specs: list[LayerSpec], N: int, T: int, seed: int, data: st.DataObject
) -> None:
    x, lengths, state = batch(specs, N, T, seed)
    chosen = data.draw(st.lists(st.integers(0, N - 1), min_size=1, max_size=8))
    net = network(specs, engine, seed)
    whole = net.run(x, lengths, state)
    some = net.run(x[chosen], lengths[chosen], rows(state, chosen))
    assert_same(some, type(whole)(whole.outputs[chosen], rows(whole.state, chosen)), engine)


@given(specs=stacks(most_directions=1), N=counts, T=counts, seed=seeds, data=st.data())
def test_time_can_be_cut_anywhere(
    engine: Engine, specs: list[LayerSpec], N: int, T: int, seed: int, data: st.DataObject
) -> None:
    x, _, state = batch(specs, N, T, seed)
    cuts = sorted(data.draw(st.lists(st.integers(0, T), max_size=3)))
    net = network(specs, engine, seed)
    outputs, carried = [], state
    for start, stop in zip([0, *cuts], [*cuts, T], strict=True):
        part = net.run(x[:, start:stop], None, carried)
        outputs.append(part.outputs)
        carried = part.state
    whole = net.run(x, None, state)
    assert_states_close(carried, whole.state, engine.dtype)
    if net.returns_sequences:
        assert_close(np.concatenate(outputs, axis=1), whole.outputs, engine.dtype)


@given(specs=stacks(most_directions=1), N=counts, T=counts, seed=seeds, data=st.data())
def test_every_sequence_can_be_cut_on_its_own(
    engine: Engine, specs: list[LayerSpec], N: int, T: int, seed: int, data: st.DataObject
) -> None:
    x, lengths, state = batch(specs, N, T, seed)
    firsts = np.array([data.draw(st.integers(0, int(length))) for length in lengths])
    net = network(specs, engine, seed)
    begun = net.run(x, firsts, state)
    rest = np.zeros_like(x)
    for n, (first, length) in enumerate(zip(firsts, lengths, strict=True)):
        rest[n, : length - first] = x[n, first:length]
    ended = net.run(rest, lengths - firsts, begun.state)
    assert_states_close(ended.state, net.run(x, lengths, state).state, engine.dtype)


@given(specs=stacks(), seed=seeds, length=st.integers(0, 1))
def test_one_sequence_of_one_step(
    engine: Engine, specs: list[LayerSpec], seed: int, length: int
) -> None:
    x, state = random_inputs(1, 1, specs[0].input_size, seed), random_states(specs, 1, seed)
    lengths = np.array([length])
    net: Network = network(specs, engine, seed)
    found = net.run(x, lengths, state)
    expected = twin(specs, random_weights(specs, seed), x, lengths, state)
    assert_close(found.outputs, expected.outputs, engine.dtype)
    assert found.outputs.any() == bool(length)
    cut = net.run(x[:, :length], None, state)
    assert_states_close(cut.state, expected.state, engine.dtype)
