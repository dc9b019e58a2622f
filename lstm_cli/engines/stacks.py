"""Layers of a network in order, or in groups that run together (benefit unmeasured).

Only the cuda engine runs groups, and it has never run on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Protocol, cast, runtime_checkable

from lstm_cli.engines.protocols import Engine, Layer
from lstm_cli.engines.types import (
    A,
    Array,
    LayerGradients,
    LayerResult,
    LayerSpec,
    LayerTape,
    State,
    TrainingPass,
    V,
)
from lstm_cli.errors import ConfigError


@runtime_checkable
class StackingEngine(Protocol[A, V]):
    """An engine that may run several layers at the same time."""

    def layer_groups(
        self, layers: Sequence[LayerSpec], *, training: bool
    ) -> Iterator[list[LayerSpec]]:
        """All layers in order, in groups that the engine may run at the same time."""

    def forward_stack(
        self,
        layers: Sequence[Layer[A, V]],
        x: V,
        states: Mapping[int, State[A | Array]],
        *,
        return_gates: bool = False,
        training: TrainingPass | None = None,
    ) -> list[LayerResult[A, V]] | None:
        """Result of each layer of a group. None: run its layers one after another."""

    def backward_stack(
        self, layers: Sequence[Layer[A, V]], tapes: Sequence[LayerTape], d_output: V | Array
    ) -> list[LayerGradients[A, V]] | None:
        """Derivatives through each layer of a group, in layer order.

        None: run its layers one after another.
        """


def forward_layers(
    engine: Engine[A, V],
    layers: Sequence[Layer[A, V]],
    x: V,
    lengths: Array | None,
    states: Mapping[int, State[A | Array]],
    *,
    return_gates: bool = False,
    training: TrainingPass | None = None,
) -> list[LayerResult[A, V]]:
    """Forward pass of all layers over a batch. Each layer reads the output of the previous one.

    Parameters
    ----------
    states
        Initial states by layer index. A layer without an entry starts from zeros.

    See `Layer.forward` for the others.
    """
    results: list[LayerResult[A, V]] = []
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
        for layer in group:
            state = states.get(layer.spec.index)
            result = layer.forward(x, lengths, state, return_gates=return_gates, training=training)
            results.append(result)
            x = result.output
    return results


def backward_layers(
    engine: Engine[A, V],
    layers: Sequence[Layer[A, V]],
    tapes: Sequence[LayerTape | None],
    d: V | Array,
    *,
    d_logits: bool,
) -> list[LayerGradients[A, V]]:
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
    results: list[LayerGradients[A, V]] = []  # last layer first
    tape_of = {layer.spec.index: tape for layer, tape in zip(layers, tapes, strict=True)}
    stacking = _stacking(engine)
    for group in reversed(_groups(stacking, layers, training=True)):
        if stacking is not None and len(group) > 1 and not d_logits:
            group_tapes = [_recorded(tape_of[layer.spec.index]) for layer in group]
            together = stacking.backward_stack(group, group_tapes, d)
            if together is not None:
                results += reversed(together)
                d = results[-1].x
                continue
        for layer in reversed(group):
            kind = layer.spec.kind
            ends = d_logits and kind == "dense"
            if d_logits and kind not in ("dense", "dropout"):
                raise ConfigError("the loss is computed from the logits of a last dense layer")
            one = layer.backward(_recorded(tape_of[layer.spec.index]), d, d_logits=ends)
            d_logits = d_logits and not ends
            results.append(one)
            d = one.x
    return results[::-1]


def _recorded(tape: LayerTape | None) -> LayerTape:
    """The tape of a layer.

    Raises
    ------
    ValueError
        The forward pass was not for training: a mistake in the caller.
    """
    if tape is None:
        raise ValueError("the forward pass was not for training")
    return tape


def _stacking(engine: Engine[A, V]) -> StackingEngine[A, V] | None:
    return cast(StackingEngine[A, V], engine) if _is_stacking(type(engine)) else None


@cache
def _is_stacking(kind: type) -> bool:
    """Cached, since checking a protocol takes as long as a small layer."""
    return issubclass(kind, StackingEngine)


def _groups(
    stacking: StackingEngine[A, V] | None, layers: Sequence[Layer[A, V]], *, training: bool
) -> list[list[Layer[A, V]]]:
    if stacking is None:
        return [[layer] for layer in layers]
    rest = iter(layers)
    groups = stacking.layer_groups([layer.spec for layer in layers], training=training)
    return [[next(rest) for _ in group] for group in groups]
