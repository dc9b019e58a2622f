"""How each size was computed and why, beside what a step took."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lstm_cli.bench.results import SizeResult
from lstm_cli.bench.sizes import Size
from lstm_cli.engines.explanation import ExplainingEngine, Explanation, StackExplainingEngine
from lstm_cli.engines.types import Engine, LayerSpec, RecurrentSpec


@dataclass(frozen=True)
class LayerExplanation:
    """Of one recurrent layer; `layer` in a few words, ``0 lstm``."""

    layer: str
    explanation: Explanation


@dataclass(frozen=True)
class SizeExplanation:
    """Of one size.

    Attributes
    ----------
    layers
        The recurrent ones; none where the engine has one way only.
    step
        Measured seconds of a call, over the steps of its longest sequence.
    floor
        Modelled seconds that a step takes at least, all recurrent layers together; None where
        one of them has no model.
    """

    size: Size
    layers: tuple[LayerExplanation, ...]
    step: float
    floor: float | None


def explain(
    results: Sequence[SizeResult],
    layers_of: Callable[[Size], tuple[LayerSpec, ...]],
    engine: Engine,
) -> tuple[SizeExplanation, ...]:
    """What the engine chose at every size that was measured."""
    return tuple(_explained(result, layers_of(result.size), engine) for result in results)


def _explained(result: SizeResult, layers: Sequence[LayerSpec], engine: Engine) -> SizeExplanation:
    size, training = result.size, result.mode == "train"
    N, T, told = size.batch, size.steps, dict[int, Explanation]()
    recurrent = [spec for spec in layers if isinstance(spec, RecurrentSpec)]
    if isinstance(engine, StackExplainingEngine):
        told |= engine.explain_layers(layers, N, T, training=training)
    elif isinstance(engine, ExplainingEngine):
        told |= {s.index: engine.explain(s, N, T, training=training) for s in recurrent}
    found = tuple(
        LayerExplanation(f"{s.index} {s.kind}", told[s.index]) for s in recurrent if s.index in told
    )
    floors = [one.explanation.floor for one in found]
    known = [floor for floor in floors if floor is not None]
    floor = sum(known) if known and len(known) == len(floors) else None
    return SizeExplanation(size, found, result.ours.median / size.steps, floor)
