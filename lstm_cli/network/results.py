"""Result of a network's forward pass, and the number of operations of its layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from lstm_cli.engines.types import (
    Array,
    DenseSpec,
    EngineArray,
    LayerResult,
    LayerSpec,
    RecurrentSpec,
    State,
)


@dataclass(frozen=True)
class Result:
    """Result of a forward pass: NumPy arrays, or the engine's arrays for inputs in its memory.

    Attributes
    ----------
    outputs
        (N, T, F), or (N, F) if the network does not return sequences. Padded steps are 0, as are
        sequences of length 0.
    state
        Final (h, c) of every recurrent layer: h (N, directions, P or H), c (N, directions, H).
        c is None for gru and rnn.
    kept
        Every gate and state of every step, if requested, by layer index, direction and name:
        (N, T, H), or (N, T, P) for h.
    seconds
        Seconds by layer index and part.
    make_logits
        Function that returns `logits`.
    """

    outputs: EngineArray
    state: list[State]
    kept: Mapping[int, Mapping[str, Mapping[str, EngineArray]]] = field(default_factory=dict)
    seconds: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    make_logits: Callable[[], EngineArray | None] = lambda: None

    @cached_property
    def logits(self) -> EngineArray | None:
        """Values of the last dense layer before its activation. None if another layer is last."""
        return self.make_logits()


def state_to_host(state: State, to_host: Callable[[EngineArray], Array]) -> State:
    """States (h, c) of a layer, each converted with `to_host`."""
    h, c = state
    return to_host(h), None if c is None else to_host(c)


def converted_gates(
    gates: Mapping[str, Mapping[str, EngineArray]], convert: Callable[[EngineArray], EngineArray]
) -> Mapping[str, Mapping[str, EngineArray]]:
    """Gates by direction and name, each converted at its first use."""
    return {direction: LazyValues(values, convert) for direction, values in gates.items()}


def layer_to_host(result: LayerResult, to_host: Callable[[EngineArray], Array]) -> LayerResult:
    """Result of a layer as NumPy arrays, without its states and tape."""
    logits = None if result.logits is None else to_host(result.logits)
    return LayerResult(to_host(result.output), None, converted_gates(result.gates, to_host), logits)


class LazyValues(Mapping[str, EngineArray]):
    """Values that are converted one by one, at their first use.

    Parameters
    ----------
    values
        The engine's arrays by name.
    convert
        Converter from an engine's array to the caller's.
    """

    def __init__(
        self,
        values: Mapping[str, EngineArray],
        convert: Callable[[EngineArray], EngineArray],
    ) -> None:
        self._values, self._convert = values, convert
        self._converted: dict[str, EngineArray] = {}

    def __getitem__(self, name: str) -> EngineArray:
        if name not in self._converted:
            self._converted[name] = self._convert(self._values[name])
        return self._converted[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def layer_flops(spec: LayerSpec, positions: int) -> dict[str, float]:
    """Floating-point operations of a layer's matrix products, by part.

    A multiply-add is two operations. Only valid steps count, so that padding adds no work.

    Parameters
    ----------
    positions
        Valid steps of all sequences together.
    """
    if isinstance(spec, RecurrentSpec):
        cell, H = spec.cells[0], spec.hidden_size
        stacked = len(cell.gates) * H
        projection = cell.output_size * H if cell.projects else 0
        per_step = 2.0 * spec.directions * positions
        return {
            "input projection": per_step * stacked * spec.input_size,
            "recurrence": per_step * (stacked * cell.output_size + projection),
        }
    if isinstance(spec, DenseSpec):
        return {"product": 2.0 * spec.units * spec.input_size * positions}
    return {}
