"""How an engine runs a recurrent layer, and why: what ``bench --explain`` shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from lstm_cli.engines.types import LayerSpec, RecurrentSpec


@dataclass(frozen=True)
class Explanation:
    """What was chosen for one layer and one size of batch.

    Attributes
    ----------
    way
        In a few words, such as ``persistent, clusters of 8``.
    reasons
        Why, in short sentences: what was decided, and the sizes that decided it.
    floor
        Seconds that a step of all directions takes at least by a model of the machine, nothing of
        it measured; None where there is no model.
    numbers
        The plan itself, by name.
    """

    way: str
    reasons: tuple[str, ...] = ()
    floor: float | None = None
    numbers: Mapping[str, str | int | float] = field(default_factory=dict)


@runtime_checkable
class Explaining(Protocol):
    """An engine that chooses between ways to run a layer, and can say which and why."""

    def explain(
        self, spec: RecurrentSpec, N: int, T: int, *, training: bool = False
    ) -> Explanation:
        """What it does with a batch of N sequences of T steps."""


@runtime_checkable
class ExplainingStacks(Protocol):
    """An engine that may run layers side by side, so that one layer tells only a part."""

    def explain_layers(
        self,
        layers: Sequence[LayerSpec],
        N: int,
        T: int,
        *,
        training: bool = False,
    ) -> Mapping[int, Explanation]:
        """What it does with each recurrent layer of a network, by its index."""
