"""Layers of a network in order, or in groups that run together (benefit unmeasured).

Only the cuda engine runs groups, and it has never run on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

from lstm_cli.engines.types import (
    Array,
    Engine,
    EngineArray,
    LayerGradients,
    LayerResult,
    LayerSpec,
    State,
    TrainingPass,
)
from lstm_cli.errors import ConfigError

PreparedLayers: TypeAlias = Sequence[tuple[LayerSpec, Any]]
"""Layers with their weights as `Engine.prepare` returned them."""


@runtime_checkable
class StackingEngine(Protocol):
    """An engine that may run several layers at the same time."""

    def layer_groups(
        self, layers: Sequence[LayerSpec], *, training: bool
    ) -> Iterator[list[LayerSpec]]:
        """All layers in order, in groups that the engine may run at the same time."""

    def forward_stack(
        self,
        layers: PreparedLayers,
        x: EngineArray,
        states: Mapping[int, State],
        *,
        return_gates: bool = False,
        training: TrainingPass | None = None,
    ) -> list[LayerResult] | None:
        """Result of each layer of a group. None: run its layers one after another."""

    def backward_stack(
        self, layers: PreparedLayers, tapes: Sequence[Any], d_output: EngineArray
    ) -> list[LayerGradients] | None:
        """Derivatives through each layer of a group, in layer order.

        None: run its layers one after another.
        """


def forward_layers(
    engine: Engine,
    layers: PreparedLayers,
    x: EngineArray,
    lengths: Array | None,
    states: Mapping[int, State],
    *,
    return_gates: bool = False,
    training: TrainingPass | None = None,
) -> list[LayerResult]:
    """Forward pass of all layers over a batch. Each layer reads the output of the previous one.

    Parameters
    ----------
    states
        Initial states by layer index. A layer without an entry starts from zeros.

    See `Engine.forward` for the others.
    """
    results: list[LayerResult] = []
    stacking = _stacking(engine)
    for group in _groups(stacking, layers, training=training is not None):
        if stacking is not None and len(group) > 1:
            together = stacking.forward_stack(
                group, x, states, return_gates=return_gates, training=training
            )
            if together is not None:
                results += together
                x = results[-1].output
                continue
        for spec, prepared in group:
            results.append(
                engine.forward(
                    spec,
                    prepared,
                    x,
                    lengths,
                    states.get(spec.index),
                    return_gates=return_gates,
                    training=training,
                )
            )
            x = results[-1].output
    return results


def backward_layers(
    engine: Engine,
    layers: PreparedLayers,
    tapes: Sequence[Any],
    d: EngineArray,
    *,
    d_logits: bool,
) -> list[LayerGradients]:
    """Derivatives through all layers, in layer order.

    Parameters
    ----------
    tapes
        Each layer's `LayerResult.tape` of the forward pass.
    d
        Derivative for the last layer's output. With `d_logits` it is for the last dense layer's
        values before its activation.

    Raises
    ------
    ConfigError
        `d_logits` is set, and the network does not end in a dense layer.
    """
    results: list[LayerGradients] = []  # last layer first
    tape_of = {spec.index: tape for (spec, _), tape in zip(layers, tapes, strict=True)}
    stacking = _stacking(engine)
    for group in reversed(_groups(stacking, layers, training=True)):
        if stacking is not None and len(group) > 1 and not d_logits:
            group_tapes = [tape_of[spec.index] for spec, _ in group]
            together = stacking.backward_stack(group, group_tapes, d)
            if together is not None:
                results += reversed(together)
                d = results[-1].x
                continue
        for spec, prepared in reversed(group):
            ends = d_logits and spec.kind == "dense"
            if d_logits and spec.kind not in ("dense", "dropout"):
                raise ConfigError("the loss is computed from the logits of a last dense layer")
            one = engine.backward(spec, prepared, tape_of[spec.index], d, d_logits=ends)
            d_logits = d_logits and not ends
            results.append(one)
            d = one.x
    return results[::-1]


def _stacking(engine: Engine) -> StackingEngine | None:
    return cast(StackingEngine, engine) if _is_stacking(type(engine)) else None


@cache
def _is_stacking(kind: type) -> bool:
    """Cached, since checking a protocol takes as long as a small layer."""
    return issubclass(kind, StackingEngine)


def _groups(
    stacking: StackingEngine | None, layers: PreparedLayers, *, training: bool
) -> list[PreparedLayers]:
    if stacking is None:
        return [[pair] for pair in layers]
    pairs = iter(layers)
    specs = [spec for spec, _ in layers]
    groups = stacking.layer_groups(specs, training=training)
    return [[next(pairs) for _ in group] for group in groups]
