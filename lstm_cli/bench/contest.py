"""What contestants do at one size: forward passes, or training steps in `training`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lstm_cli.bench.agreement import agreement
from lstm_cli.bench.clocks import Clock
from lstm_cli.bench.draws import random_inputs, random_lengths, random_weights
from lstm_cli.bench.peers import Peer, Run
from lstm_cli.bench.residence import (
    clock_of,
    numpy_dtype,
    resident,
    setting_of,
    weight_bytes,
)
from lstm_cli.bench.results import Agreement
from lstm_cli.bench.rounding import ROUNDED, rounded_agreement
from lstm_cli.bench.sizes import Size, describe, flops, recurrent_reads
from lstm_cli.engines.types import Array, Engine, Layers
from lstm_cli.network.network import Network

OURS, PADDED = "lstm-cli", "padded"

TOLERANCES: Mapping[str, float] = {"float32": 2e-5, "float64": 1e-10}
"""By dtype, the largest difference at which outputs count as equal; see `Agreement`. Of the others
see `lstm_cli.bench.rounding`."""


@dataclass(frozen=True)
class Contestant:
    """Who is measured.

    Attributes
    ----------
    name, title
        As `Timing` has them.
    call
        What is timed.
    clock
        What takes the time of `call`.
    shown
        Called once before: gives what is compared.
    exact
        The same in float64, where roundings are to be told from mistakes; None: not needed.
    """

    name: str
    title: str
    clock: Clock
    call: Callable[[], Any]
    shown: Callable[[], Any]
    exact: Callable[[], Any] | None = None


@dataclass(frozen=True)
class Batch:
    """How much a call computes on.

    Attributes
    ----------
    lengths
        (N,) of a ragged batch; None: all T.
    positions, longest
        Valid steps of all sequences together, and of the longest one.
    """

    lengths: Array | None
    positions: int
    longest: int

    @classmethod
    def drawn(cls, size: Size, seed: int, *, ragged: bool) -> Batch:
        """With random lengths if it is ragged."""
        if not ragged:
            return cls(None, size.batch * size.steps, size.steps)
        lengths = random_lengths(size, seed)
        return cls(lengths, int(lengths.sum()), int(lengths.max()))

    def words(self, layers: Layers) -> str:
        """The layers, and whether the batch is ragged."""
        return describe(layers) + ("" if self.lengths is None else ", ragged")

    def valid(self, y: Array) -> Array:
        """The outputs that count: of (N, T, F) the valid steps, of (N, F) all."""
        if self.lengths is None or y.ndim != 3:
            return y
        return np.asarray(y[np.arange(y.shape[1]) < self.lengths[:, None]])


class Contest(Protocol):
    """What is measured at a size.

    Attributes
    ----------
    words
        The layers in a few words; equal words are equal work.
    flops, padded_flops
        Of one call; of one on full-length sequences.
    reads
        By bytes of a recurrent matrix, how many times a call cannot but read it.
    batch
        What it computes on.
    """

    words: str
    flops: float
    padded_flops: float
    reads: Mapping[int, int]
    batch: Batch

    def ours(self) -> Contestant:
        """This program."""

    def padded(self) -> Contestant:
        """This program, on the same inputs as if every sequence had all steps."""

    def theirs(self, stack: ExitStack, peer: Peer) -> Contestant:
        """A peer, until the stack closes; raises whatever it raises if it cannot take part."""

    def compare(self, expected: Any, found: Any, exact: Any = None) -> Agreement:
        """Whether what a peer showed is what we showed; `exact` as `Contestant` has it."""


class ForwardContest:
    """Forward passes over a batch.

    Inputs are where a contestant computes before it is timed, and outputs stay there. On the
    processor that is NumPy's memory: what it costs a peer to use that, such as copies, is timed
    with it.
    """

    def __init__(
        self, layers: Layers, size: Size, engine: Engine, seed: int, *, ragged: bool = False
    ) -> None:
        dtype = numpy_dtype(engine)
        self.batch = Batch.drawn(size, seed, ragged=ragged)
        self.words = self.batch.words(layers)
        self.flops, self.padded_flops = (
            flops(layers, size, self.batch.positions),
            flops(layers, size),
        )
        self.reads = recurrent_reads(layers, self.batch.longest, weight_bytes(engine))
        self._size, self._engine = size, engine
        self._network = Network(layers, random_weights(layers, seed, dtype), engine)
        self._x = random_inputs(layers, size, seed, dtype)

    def ours(self) -> Contestant:
        """This program."""
        return self._own(OURS, our_title(self._engine), self.batch.lengths)

    def padded(self) -> Contestant:
        """This program, on full-length sequences."""
        return self._own(PADDED, our_title(self._engine, PADDED), None)

    def _own(self, name: str, title: str, lengths: Array | None) -> Contestant:
        engine, network = self._engine, self._network
        x = resident(engine, self._x)

        def call() -> Any:
            return network.run(x, lengths).outputs

        return Contestant(name, title, clock_of(engine), call, lambda: engine.to_host(call()))

    def theirs(self, stack: ExitStack, peer: Peer) -> Contestant:
        """A peer with the same weights and inputs."""
        run = stack.enter_context(self._run(peer))
        x = run.place(self._x)

        def call() -> Any:
            return run.call(x)

        def exact() -> Array:
            with self._run(peer, "float64") as run:
                return run(self._x.astype(np.float64))

        dtype = self._engine.dtype
        return Contestant(
            peer.name,
            peer.title,
            run.clock,
            call,
            lambda: run.fetch(call()),
            exact if dtype in ROUNDED else None,
        )

    def _run(self, peer: Peer, dtype: str | None = None) -> AbstractContextManager[Run]:
        """The peer's network, in the engine's dtype or in another."""
        net, setting = self._network, setting_of(self._engine, dtype)
        return peer.prepare(net.layers, net.weights, self._size, setting, self.batch.lengths)

    def compare(self, expected: Any, found: Any, exact: Any = None) -> Agreement:
        """By the outputs of valid steps."""
        dtype = self._engine.dtype
        tolerance = TOLERANCES.get(dtype, 0.0)
        if np.shape(expected) != np.shape(found):
            return agreement(expected, found, tolerance)
        valid = self.batch.valid
        if exact is not None:
            return rounded_agreement(valid(expected), valid(found), valid(exact), dtype)
        return agreement(valid(expected), valid(found), tolerance)


def our_title(engine: Engine, *more: str) -> str:
    """``lstm-cli (reference, float32)``."""
    return f"{OURS} ({', '.join((engine.name, engine.dtype, *more))})"
