"""What contestants do at one size: forward passes, or training steps in `training`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

from lstm_cli.bench.agreement import agreement
from lstm_cli.bench.draws import random_inputs, random_weights
from lstm_cli.bench.peers import Peer
from lstm_cli.bench.results import Agreement
from lstm_cli.bench.sizes import Size, describe, flops
from lstm_cli.engines.threads import default_threads
from lstm_cli.engines.types import Engine, Layers
from lstm_cli.network.network import Network

OURS = "lstm-cli"

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


class Contest(Protocol):
    """What is measured at a size.

    Attributes
    ----------
    words
        The layers in a few words; equal words are equal work.
    flops
        Of one call.
    """

    words: str
    flops: float

    def ours(self) -> Contestant:
        """This program."""

    def theirs(self, stack: ExitStack, peer: Peer) -> Contestant:
        """A peer, until the stack closes; raises whatever it raises if it cannot take part."""

    def compare(self, expected: Any, found: Any) -> Agreement:
        """Whether what a peer showed is what we showed."""


class ForwardContest:
    """Forward passes over a batch of full-length sequences.

    A peer takes NumPy's (N, T, D) and gives NumPy's (N, T, F), or (N, F); what that costs it,
    such as copies, is timed with it.
    """

    def __init__(self, layers: Layers, size: Size, engine: Engine, seed: int) -> None:
        dtype = numpy_dtype(engine)
        self.words, self.flops = describe(layers), flops(layers, size)
        self._size, self._engine = size, engine
        self._network = Network(layers, random_weights(layers, seed, dtype), engine)
        self._x = random_inputs(layers, size, seed, dtype)

    def ours(self) -> Contestant:
        """This program."""

        def call() -> Any:
            return self._engine.to_host(self._network.run(self._x).outputs)

        return Contestant(OURS, our_title(self._engine), call, call)

    def theirs(self, stack: ExitStack, peer: Peer) -> Contestant:
        """A peer with the same weights and inputs."""
        net, x = self._network, self._x
        threads = threads_of(self._engine)
        run = stack.enter_context(peer.prepare(net.layers, net.weights, self._size, threads))

        def call() -> Any:
            return run(x)

        return Contestant(peer.name, peer.title, call, call)

    def compare(self, expected: Any, found: Any) -> Agreement:
        """By the outputs."""
        return agreement(expected, found, TOLERANCES.get(self._engine.dtype, 0.0))


def numpy_dtype(engine: Engine) -> str:
    """The engine's dtype as NumPy knows it."""
    return "float64" if engine.dtype == "float64" else "float32"


def our_title(engine: Engine) -> str:
    """``lstm-cli (reference, float32)``."""
    return f"{OURS} ({engine.name}, {engine.dtype})"


def threads_of(engine: Engine) -> int:
    """How many threads a peer of this engine gets."""
    return engine.threads or default_threads()
