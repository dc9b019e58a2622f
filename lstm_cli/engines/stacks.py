"""A network's layers one after the other, but for those that an engine takes together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Protocol, TypeAlias, cast, runtime_checkable

from lstm_cli.engines.types import (
    Array,
    Engine,
    LayerGradients,
    LayerResult,
    LayerSpec,
    Own,
    State,
    TrainingPass,
)
from lstm_cli.errors import ConfigError

Prepared: TypeAlias = Sequence[tuple[LayerSpec, Any]]
"""Layers with their weights as `Engine.prepare` made them."""


@runtime_checkable
class Stacking(Protocol):
    """An engine that may run some layers side by side."""

    def parts(self, layers: Sequence[LayerSpec], *, training: bool) -> Iterator[list[LayerSpec]]:
        """All layers in their order, those together that it may take together."""

    def forward_stack(
        self,
        layers: Prepared,
        x: Own,
        states: Mapping[int, State],
        *,
        keep: bool = False,
        training: TrainingPass | None = None,
    ) -> list[LayerResult] | None:
        """What each layer of such a part gives; None: they are to run one after the other."""

    def backward_stack(
        self, layers: Prepared, tapes: Sequence[Any], d_output: Own
    ) -> list[LayerGradients] | None:
        """Derivatives through each layer of such a part, in the layers' order; None: as above."""


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
    made: list[LayerResult] = []
    stacking = _stacking(engine)
    for part in _parts(stacking, layers, training=training is not None):
        if stacking is not None and len(part) > 1:
            found = stacking.forward_stack(part, x, states, keep=keep, training=training)
            if found is not None:
                made += found
                x = made[-1].output
                continue
        for spec, prepared in part:
            given = (spec, prepared, x, lengths, states.get(spec.index))
            made.append(engine.forward(*given, keep=keep, training=training))
            x = made[-1].output
    return made


def backward_layers(
    engine: Engine, layers: Prepared, tapes: Sequence[Any], d: Own, *, d_logits: bool
) -> list[LayerGradients]:
    """Derivatives through all layers, in the layers' order.

    Parameters
    ----------
    tapes
        What each layer's pass for training left.
    d
        The derivative for the last layer's output, or with `d_logits` for the last dense layer's
        values before its activation.

    Raises
    ------
    ConfigError
        `d_logits`, and no dense layer stands at the end.
    """
    made: list[LayerGradients] = []
    left = {spec.index: tape for (spec, _), tape in zip(layers, tapes, strict=True)}
    stacking = _stacking(engine)
    for part in reversed(_parts(stacking, layers, training=True)):
        if stacking is not None and len(part) > 1 and not d_logits:
            found = stacking.backward_stack(part, [left[spec.index] for spec, _ in part], d)
            if found is not None:
                made += reversed(found)
                d = made[-1].x
                continue
        for spec, prepared in reversed(part):
            ends = d_logits and spec.kind == "dense"
            if d_logits and spec.kind not in ("dense", "dropout"):
                raise ConfigError("the loss is computed from the logits of a last dense layer")
            one = engine.backward(spec, prepared, left[spec.index], d, d_logits=ends)
            d_logits = d_logits and not ends
            made.append(one)
            d = one.x
    return made[::-1]


def _stacking(engine: Engine) -> Stacking | None:
    """The engine, if it may run layers side by side."""
    return cast(Stacking, engine) if _stacks(type(engine)) else None


@cache
def _stacks(kind: type) -> bool:
    """Asked once for a kind of engine: the answer takes as long as a small layer."""
    return issubclass(kind, Stacking)


def _parts(stacking: Stacking | None, layers: Prepared, *, training: bool) -> list[Prepared]:
    """Layers that are taken together."""
    if stacking is None:
        return [[pair] for pair in layers]
    pairs = iter(layers)
    specs = [spec for spec, _ in layers]
    return [[next(pairs) for _ in part] for part in stacking.parts(specs, training=training)]
