"""Time of a forward pass by gate, as the reference engine measures it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import Layers, LayerSpec, RecurrentSpec
from lstm_cli.network.network import Network
from lstm_cli.workflows.bench.sizes import GridSize, random_inputs, random_weights

PARTS: Mapping[str, str] = {"input": "W x", "recurrent": "U h", "function": "function"}
"""Displayed name of each part of a gate, by the engine's name."""

RUNS = 5
"""Number of timed passes."""


@dataclass(frozen=True)
class GateCost:
    """Time of one part of one gate, summed over a layer's directions.

    Attributes
    ----------
    layer
        Index of the layer.
    gate, name
        Letter and name of the gate, ``i`` and ``input``; empty for parts outside gates.
    part
        ``W x``, ``U h`` or ``function``. Outside gates: ``states`` (c, h and the projection),
        ``rest`` (biases, copies and the loop) or ``product`` (a dense layer).
    seconds
        Seconds of one forward pass.
    share
        Share of the whole pass; all shares sum to 1.
    """

    layer: int
    gate: str
    name: str
    part: str
    seconds: float
    share: float


def by_gate(
    layers: Layers,
    size: GridSize,
    threads: int | None = None,
    dtype: str = "float32",
    seed: int = 0,
) -> tuple[GateCost, ...]:
    """Time of every gate's parts, in the median pass out of `RUNS`.

    Raises
    ------
    DeviceError
        The reference engine does not support the dtype.
    """
    engine = ReferenceEngine(dtype, threads, by_gate=True)
    net = Network(layers, random_weights(layers, seed, dtype), engine)
    x = random_inputs(layers, size, seed, dtype)
    net.run(x)  # warm-up
    passes = sorted((_costs(net, net.run(x).seconds) for _ in range(RUNS)), key=_total)
    median = passes[RUNS // 2]
    total = _total(median)
    return tuple(
        GateCost(layer, gate, name, part, seconds, seconds / total if total else 0.0)
        for (layer, gate, name, part), seconds in median.items()
    )


_Labels = tuple[int, str, str, str]
"""Index of the layer, letter and name of the gate, and the part."""


def _total(costs: Mapping[_Labels, float]) -> float:
    return sum(costs.values())


def _costs(net: Network, seconds: Mapping[int, Mapping[str, float]]) -> dict[_Labels, float]:
    return {
        (spec.index, *labels): spent
        for spec in net.layers
        for labels, spent in _layer_costs(spec, seconds[spec.index])
    }


def _layer_costs(
    spec: LayerSpec, seconds: Mapping[str, float]
) -> Iterator[tuple[tuple[str, str, str], float]]:
    if not isinstance(spec, RecurrentSpec):
        for part, spent in seconds.items():
            yield ("", "", part), spent
        return
    accounted = 0.0
    for gate in spec.cells[0].gates:
        for word, part in PARTS.items():
            key = f"{gate.letter} {word}"
            if key in seconds:  # an unused gate has no function
                accounted += seconds[key]
                yield (gate.letter, gate.name, part), seconds[key]
    states = seconds.get("states", 0.0)
    yield ("", "", "states"), states
    whole = seconds["input projection"] + seconds["recurrence"]
    yield ("", "", "rest"), max(0.0, whole - accounted - states)
