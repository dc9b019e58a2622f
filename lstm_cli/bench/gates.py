"""Where the time of a forward pass goes, gate by gate, as the reference engine sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lstm_cli.bench.sizes import GridSize, random_inputs, random_weights
from lstm_cli.engines.reference import ReferenceEngine
from lstm_cli.engines.types import Layers, LayerSpec, RecurrentSpec
from lstm_cli.network.network import Network

PARTS: Mapping[str, str] = {"input": "W x", "recurrent": "U h", "function": "function"}
"""The engine's word for a part of a gate to the one that is shown."""

RUNS = 5


@dataclass(frozen=True)
class GateCost:
    """What one part of one gate costs, both directions of a layer together.

    Attributes
    ----------
    layer
        Index of the layer.
    gate, name
        Its letter and its name, ``i`` and ``input``; empty for what belongs to no gate.
    part
        ``W x``, ``U h`` or ``function``; without a gate ``states`` (c, h and the projection),
        ``rest`` (biases, copies, the loop itself) or ``product`` (a dense layer).
    seconds
        Of one forward pass.
    share
        Of the whole pass; all rows together make 1.
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
    """The cost of every gate's parts, in the pass of median length out of a few.

    Raises
    ------
    DeviceError
        A dtype that the reference engine does not compute in.
    """
    engine = ReferenceEngine(dtype, threads, by_gate=True)
    net = Network(layers, random_weights(layers, seed, dtype), engine)
    x = random_inputs(layers, size, seed, dtype)
    net.run(x)  # warms up
    passes = sorted((_costs(net, net.run(x).seconds) for _ in range(RUNS)), key=_total)
    chosen = passes[RUNS // 2]
    whole = _total(chosen)
    return tuple(
        GateCost(*labels, seconds, seconds / whole if whole else 0.0)
        for labels, seconds in chosen.items()
    )


_Labels = tuple[int, str, str, str]
"""layer, gate, name, part"""


def _total(costs: Mapping[_Labels, float]) -> float:
    return sum(costs.values())


def _costs(net: Network, seconds: Mapping[int, Mapping[str, float]]) -> dict[_Labels, float]:
    """One pass by layer, gate and part, in the order of the equations."""
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
            if key in seconds:  # the function of a gate that is not used never ran
                accounted += seconds[key]
                yield (gate.letter, gate.name, part), seconds[key]
    states = seconds.get("states", 0.0)
    yield ("", "", "states"), states
    whole = seconds["input projection"] + seconds["recurrence"]
    yield ("", "", "rest"), max(0.0, whole - accounted - states)
