"""What a network's forward pass gave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from lstm_cli.engines.types import Array, EngineArray, LayerResult, State


@dataclass(frozen=True)
class Result:
    """What a forward pass gave: arrays of NumPy, or where the inputs were the engine's, its own.

    Attributes
    ----------
    outputs
        (N, T, F), or (N, F) if the network does not return sequences. Padded steps, and
        sequences of length 0, hold 0.
    state
        Final (h, c) of every recurrent layer: h (N, directions, P or H), c (N, directions, H),
        None for gru and rnn.
    kept
        By layer index, direction and name: every gate and state of every step (N, T, H),
        where asked for.
    seconds
        Time by layer index and part.
    make_logits
        Gives `logits`.
    """

    outputs: EngineArray
    state: list[State]
    kept: Mapping[int, Mapping[str, Mapping[str, EngineArray]]] = field(default_factory=dict)
    seconds: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    make_logits: Callable[[], EngineArray | None] = lambda: None

    @cached_property
    def logits(self) -> EngineArray | None:
        """The last dense layer's values before its activation; None if another layer is last."""
        return self.make_logits()


def hosted(state: State, to_host: Callable[[EngineArray], Array]) -> State:
    """A layer's states in NumPy's memory."""
    h, c = state
    return to_host(h), None if c is None else to_host(c)


def late(
    kept: Mapping[str, Mapping[str, EngineArray]], given: Callable[[EngineArray], EngineArray]
) -> Mapping[str, Mapping[str, EngineArray]]:
    """What was kept, by direction and name."""
    return {direction: Late(values, given) for direction, values in kept.items()}


def hosted_layer(result: LayerResult, to_host: Callable[[EngineArray], Array]) -> LayerResult:
    """What a layer gave, but for its states and its tape, in NumPy's memory."""
    logits = None if result.logits is None else to_host(result.logits)
    return LayerResult(to_host(result.output), None, late(result.gates, to_host), logits)


class Late(Mapping[str, EngineArray]):
    """Values that come to the caller's memory one by one, when they are asked for.

    Parameters
    ----------
    values
        Of the engine, by name.
    given
        Makes of such a value what the caller gets.
    """

    def __init__(
        self, values: Mapping[str, EngineArray], given: Callable[[EngineArray], EngineArray]
    ) -> None:
        self._values, self._given = values, given
        self._made: dict[str, EngineArray] = {}

    def __getitem__(self, name: str) -> EngineArray:
        if name not in self._made:
            self._made[name] = self._given(self._values[name])
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
