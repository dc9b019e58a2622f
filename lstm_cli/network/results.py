"""What a network's forward pass gave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from lstm_cli.engines.types import Array, LayerResult, Own, State


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

    outputs: Own
    state: list[State]
    kept: Mapping[int, Mapping[str, Mapping[str, Own]]] = field(default_factory=dict)
    seconds: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    make_logits: Callable[[], Own | None] = lambda: None

    @cached_property
    def logits(self) -> Own | None:
        """The last dense layer's values before its activation; None if another layer is last."""
        return self.make_logits()


def hosted(state: State, to_host: Callable[[Own], Array]) -> State:
    """A layer's states in NumPy's memory."""
    h, c = state
    return to_host(h), None if c is None else to_host(c)


def late(
    kept: Mapping[str, Mapping[str, Own]], given: Callable[[Own], Own]
) -> Mapping[str, Mapping[str, Own]]:
    """What was kept, by direction and name."""
    return {direction: Late(values, given) for direction, values in kept.items()}


def hosted_layer(result: LayerResult, to_host: Callable[[Own], Array]) -> LayerResult:
    """What a layer gave, but for its states and its tape, in NumPy's memory."""
    logits = None if result.logits is None else to_host(result.logits)
    return LayerResult(to_host(result.output), None, late(result.kept, to_host), logits)


class Late(Mapping[str, Own]):
    """Values that come to the caller's memory one by one, when they are asked for.

    Parameters
    ----------
    values
        Of the engine, by name.
    given
        Makes of such a value what the caller gets.
    """

    def __init__(self, values: Mapping[str, Own], given: Callable[[Own], Own]) -> None:
        self._values, self._given = values, given
        self._made: dict[str, Own] = {}

    def __getitem__(self, name: str) -> Own:
        if name not in self._made:
            self._made[name] = self._given(self._values[name])
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
