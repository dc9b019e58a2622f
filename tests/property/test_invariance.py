"""Random networks: batching, padding and order do not matter, and the loop twin agrees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

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
from twin import Twin, twin

from lstm_cli.engines.protocols import Engine
from lstm_cli.engines.types import LayerSpec
from lstm_cli.network.network import Network

Draw: TypeAlias = Callable[[st.SearchStrategy[Any]], Any]


@dataclass(frozen=True)
class Case:
    """A network on a batch.

    To compile a network takes longer than to check it, so one network is held against all
    properties.
    """

    specs: list[LayerSpec]
    N: int
    T: int
    seed: int
    engine: Engine

    @cached_property
    def net(self) -> Network:
        return network(self.specs, self.engine, self.seed)

    @cached_property
    def batch(self) -> tuple[Any, Any, Any]:
        """Inputs, lengths and initial states."""
        x = random_inputs(self.N, self.T, self.specs[0].input_size, self.seed)
        lengths = random_lengths(self.N, self.T, self.seed)
        return x, lengths, random_states(self.specs, self.N, self.seed)

    def twin(self, x: Any, lengths: Any, state: Any) -> Twin:
        return twin(self.specs, random_weights(self.specs, self.seed), x, lengths, state)


Property: TypeAlias = Callable[[Case, Draw], None]


def the_twin_agrees(case: Case, draw: Draw) -> None:
    actual, expected = case.net.run(*case.batch), case.twin(*case.batch)
    assert_close(actual.outputs, expected.outputs, case.engine.dtype)
    assert_states_close(actual.state, expected.state, case.engine.dtype)


def padding_does_not_matter(case: Case, draw: Draw) -> None:
    x, lengths, state = case.batch
    N, T, D = x.shape
    padded = np.full((N, T + draw(st.integers(0, 3)), D), draw(st.floats(width=32)))
    for n, length in enumerate(lengths):
        padded[n, :length] = x[n, :length]
    actual, expected = case.net.run(padded, lengths, state), case.net.run(x, lengths, state)
    if case.net.returns_sequences:
        assert not actual.outputs[:, T:].any()
        actual = type(actual)(actual.outputs[:, :T], actual.state)
    assert_same(actual, expected, case.engine)


def batching_and_order_do_not_matter(case: Case, draw: Draw) -> None:
    x, lengths, state = case.batch
    chosen = draw(st.lists(st.integers(0, case.N - 1), min_size=1, max_size=8))
    whole = case.net.run(x, lengths, state)
    some = case.net.run(x[chosen], lengths[chosen], rows(state, chosen))
    assert_same(some, type(whole)(whole.outputs[chosen], rows(whole.state, chosen)), case.engine)


def one_sequence_of_one_step(case: Case, draw: Draw) -> None:
    x, _, state = case.batch
    x, state, length = x[:1, :1], rows(state, slice(1)), draw(st.integers(0, 1))
    actual, expected = (run(x, np.array([length]), state) for run in (case.net.run, case.twin))
    assert_close(actual.outputs, expected.outputs, case.engine.dtype)
    assert actual.outputs.any() == bool(length)
    cut = case.net.run(x[:, :length], None, state)
    assert_states_close(cut.state, expected.state, case.engine.dtype)


def time_can_be_cut_anywhere(case: Case, draw: Draw) -> None:
    x, _, state = case.batch
    cuts = sorted(draw(st.lists(st.integers(0, case.T), max_size=3)))
    outputs, carried = [], state
    for start, stop in zip([0, *cuts], [*cuts, case.T], strict=True):
        part = case.net.run(x[:, start:stop], None, carried)
        outputs.append(part.outputs)
        carried = part.state
    whole = case.net.run(x, None, state)
    assert_states_close(carried, whole.state, case.engine.dtype)
    if case.net.returns_sequences:
        assert_close(np.concatenate(outputs, axis=1), whole.outputs, case.engine.dtype)


def every_sequence_can_be_cut_on_its_own(case: Case, draw: Draw) -> None:
    x, lengths, state = case.batch
    firsts = np.array([draw(st.integers(0, int(length))) for length in lengths])
    begun = case.net.run(x, firsts, state)
    rest = np.zeros_like(x)
    for n, (first, length) in enumerate(zip(firsts, lengths, strict=True)):
        rest[n, : length - first] = x[n, first:length]
    ended = case.net.run(rest, lengths - firsts, begun.state)
    whole = case.net.run(x, lengths, state)
    assert_states_close(ended.state, whole.state, case.engine.dtype)


PROPERTIES: tuple[Property, ...] = (
    the_twin_agrees,
    padding_does_not_matter,
    batching_and_order_do_not_matter,
    one_sequence_of_one_step,
)
FORWARD_PROPERTIES: tuple[Property, ...] = (
    time_can_be_cut_anywhere,
    every_sequence_can_be_cut_on_its_own,
)
"""Properties of networks whose layers all run forward."""

counts = st.integers(1, 6)
seeds = st.integers(0, 2**20)


@given(specs=stacks(), N=counts, T=counts, seed=seeds, data=st.data())
def test_any_network(
    engine: Engine, specs: list[LayerSpec], N: int, T: int, seed: int, data: st.DataObject
) -> None:
    case = Case(specs, N, T, seed, engine)
    for holds in PROPERTIES:
        holds(case, data.draw)


@given(specs=stacks(most_directions=1), N=counts, T=counts, seed=seeds, data=st.data())
def test_any_forward_network(
    engine: Engine, specs: list[LayerSpec], N: int, T: int, seed: int, data: st.DataObject
) -> None:
    case = Case(specs, N, T, seed, engine)
    for holds in FORWARD_PROPERTIES:
        holds(case, data.draw)
