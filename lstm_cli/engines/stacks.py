"""A network's layers, one after the other or all at once, as the engine takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

from lstm_cli.engines.types import (
    Array,
    Engine,
    LayerResult,
    LayerSpec,
    Own,
    State,
    TrainingPass,
)

Prepared: TypeAlias = Sequence[tuple[LayerSpec, Any]]
"""Layers with their weights as `Engine.prepare` made them."""


@runtime_checkable
class Stacking(Protocol):
    """An engine that takes all layers at once, since it may run some of them side by side."""

    def forward_layers(
        self,
        layers: Prepared,
        x: Own,
        lengths: Array | None,
        states: Mapping[int, State],
        *,
        keep: bool = False,
        training: TrainingPass | None = None,
    ) -> list[LayerResult]:
        """What each layer gave; see `forward_layers`."""


def forward_layers(
    engine: Engine,
    layers: Prepared,
    x: Own,
    lengths: Array | None,
    states: Mapping[int, State],
    *,
    keep: bool = False,
    training: TrainingPass | None = None,
) -> list[LayerResult]:
    """All layers over a batch, each reading what the one before it gave.

    Parameters
    ----------
    states
        Initial states by layer index; zeros where there are none.

    See `Engine.forward` for the others.
    """
    if isinstance(engine, Stacking):
        return engine.forward_layers(layers, x, lengths, states, keep=keep, training=training)
    made: list[LayerResult] = []
    for spec, prepared in layers:
        given = states.get(spec.index)
        made.append(engine.forward(spec, prepared, x, lengths, given, keep=keep, training=training))
        x = made[-1].output
    return made
