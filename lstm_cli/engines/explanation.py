"""Explanation of an engine's choices for a recurrent layer, shown by ``bench --explain``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from lstm_cli.engines.types import LayerSpec, RecurrentSpec


@dataclass(frozen=True)
class Explanation:
    """An engine's choice of kernels for one layer and one batch size.

    Attributes
    ----------
    way
        Summary of the choice, such as ``persistent, clusters of 8`` or ``4 threads that share the
        units``.
    reasons
        Short sentences, each a decision and the sizes that led to it.
    floor
        Least seconds per step of all directions, by a cost model that no measurement has
        confirmed. None: there is no model.
    numbers
        Parameters of the plan by name.
    """

    way: str
    reasons: tuple[str, ...] = ()
    floor: float | None = None
    numbers: Mapping[str, str | int | float] = field(default_factory=dict)


@runtime_checkable
class ExplainingEngine(Protocol):
    """An engine that chooses between kernels for a layer and explains the choice."""

    def explain(
        self, spec: RecurrentSpec, N: int, T: int, *, training: bool = False
    ) -> Explanation:
        """The choice for a batch of N sequences of T steps."""


@runtime_checkable
class StackExplainingEngine(Protocol):
    """An engine that may run layers at the same time, so that it explains them together."""

    def explain_layers(
        self,
        layers: Sequence[LayerSpec],
        N: int,
        T: int,
        *,
        training: bool = False,
    ) -> Mapping[int, Explanation]:
        """The choice for each recurrent layer of a network, by layer index."""
