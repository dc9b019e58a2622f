"""What contestants do at one size: forward passes, or training steps in `training`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from lstm_cli.bench.agreement import agreement
from lstm_cli.bench.draws import random_inputs, random_lengths, random_weights
from lstm_cli.bench.peers import Peer
from lstm_cli.bench.results import Agreement
from lstm_cli.bench.sizes import Size, describe, flops, recurrent_reads
from lstm_cli.engines.threads import default_threads
from lstm_cli.engines.types import Array, Engine, Layers
from lstm_cli.network.network import Network

OURS, PADDED = "lstm-cli", "padded"

TOLERANCES: Mapping[str, float] = {"float32": 2e-5, "float64": 1e-10}
"""By dtype, the largest difference at which outputs count as equal; see `Agreement`."""


@dataclass(frozen=True)
class Contestant:
    """Who is measured.

    Attributes
    ----------
    name, title
        As `Timing` has them.
    call
        What is timed.
    shown
        Called once before: gives what is compared.
    """

    name: str
    title: str
    call: Callable[[], Any]
    shown: Callable[[], Any]


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

    def compare(self, expected: Any, found: Any) -> Agreement:
        """Whether what a peer showed is what we showed."""


class ForwardContest:
    """Forward passes over a batch.

    A peer takes NumPy's (N, T, D) and gives NumPy's (N, T, F), or (N, F); what that costs it,
    such as copies, is timed with it.
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
        def call() -> Any:
            return self._engine.to_host(self._network.run(self._x, lengths).outputs)

        return Contestant(name, title, call, call)

    def theirs(self, stack: ExitStack, peer: Peer) -> Contestant:
        """A peer with the same weights and inputs."""
        net, x = self._network, self._x
        threads, lengths = threads_of(self._engine), self.batch.lengths
        prepared = peer.prepare(net.layers, net.weights, self._size, threads, lengths)
        run = stack.enter_context(prepared)

        def call() -> Any:
            return run(x)

        return Contestant(peer.name, peer.title, call, call)

    def compare(self, expected: Any, found: Any) -> Agreement:
        """By the outputs of valid steps."""
        tolerance = TOLERANCES.get(self._engine.dtype, 0.0)
        if np.shape(expected) != np.shape(found):
            return agreement(expected, found, tolerance)
        return agreement(self.batch.valid(expected), self.batch.valid(found), tolerance)


def numpy_dtype(engine: Engine) -> str:
    """The engine's dtype as NumPy knows it."""
    return "float64" if engine.dtype == "float64" else "float32"


def weight_bytes(engine: Engine) -> int:
    """Of one number of a recurrent layer's matrices."""
    return 2 if engine.dtype in ("bfloat16", "float16") else np.dtype(numpy_dtype(engine)).itemsize


def our_title(engine: Engine, *more: str) -> str:
    """``lstm-cli (reference, float32)``."""
    return f"{OURS} ({', '.join((engine.name, engine.dtype, *more))})"


def threads_of(engine: Engine) -> int:
    """How many threads a peer of this engine gets."""
    return engine.threads or default_threads()
