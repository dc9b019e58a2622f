"""Where two networks part on the same sequences: layer, gate and step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lstm_cli.api.comparison.parting import Part, Parting, sentence
from lstm_cli.api.comparison.sides import Side
from lstm_cli.api.fit import check_data, check_weights
from lstm_cli.api.weights_files import tensors_for
from lstm_cli.data import Batch, SequenceData
from lstm_cli.engines.reference import ReferenceEngine
from lstm_cli.engines.types import DIRECTIONS, Array, LayerResult, LayerSpec
from lstm_cli.errors import WeightsError
from lstm_cli.network.network import Network

SEQUENCES = 64
"""So many are run, from the first on."""
NUMBERS = 1 << 22
"""Of the widest layer's values, that are kept at once on each side."""
ROUNDING = 1e-6
"""A difference below which values have not parted, unless the tolerance is larger."""


@dataclass(frozen=True)
class Divergence:
    """How two networks part.

    Attributes
    ----------
    sequences, of, steps
        How many sequences were run, of how many, and how many steps of each at most; None: all.
    threshold
        What counts as parted.
    parts
        By layer, direction and value.
    what
        The sentence.
    outputs
        The networks' outputs; None where their shapes differ.
    """

    sequences: int
    of: int
    steps: int | None
    threshold: float
    parts: tuple[Part, ...]
    what: str
    outputs: Part | None
    notes: tuple[str, ...] = ()

    @property
    def parted(self) -> bool:
        """Whether the networks' outputs do."""
        return self.outputs is not None and self.outputs.apart


def diverge(a: Side, b: Side, data: SequenceData, tolerance: float) -> Divergence:
    """Run both networks over the first sequences, in float64, and compare every value.

    Raises
    ------
    WeightsError
        A side has no config, or its tensors do not fit it.
    DataError
        The data cannot be read, or fits one of the networks not.
    """
    for side in (a, b):
        if side.config is not None:
            check_data(side.config, data)
    twins = _Twins(_network(a), _network(b), max(tolerance, ROUNDING))
    limit = max(1, NUMBERS // twins.width)
    steps = limit if data.max_steps > limit else None
    done = 0
    for batch in _batches(data, max(1, limit // max(1, min(data.max_steps, limit)))):
        batch = _cut(batch, SEQUENCES - done, steps)
        twins.run(batch)
        done += batch.count
        if done >= SEQUENCES:
            break
    parts = tuple(part for part in twins.parts.values())
    return Divergence(
        done,
        data.count,
        steps,
        twins.threshold,
        parts,
        sentence(parts, twins.threshold),
        twins.outputs,
        tuple(twins.notes),
    )


def _network(side: Side) -> Network:
    config = side.config
    if config is None:
        raise WeightsError(
            f"{side.path} carries no config, so it cannot be run",
            expected="a config in the file, or with --config",
            hint="--config names a YAML config for the file that has none",
        )
    tensors = tensors_for(config.specs, side.imported)
    check_weights(config, tensors, str(side.path))
    return Network(config.specs, tensors, ReferenceEngine("float64"))


def _batches(data: SequenceData, size: int) -> Iterator[Batch]:
    return data.batches(min(size, SEQUENCES), np.float64, targets=False)


def _cut(batch: Batch, count: int, steps: int | None) -> Batch:
    """The first sequences and steps of a batch."""
    lengths = batch.lengths
    if lengths is not None:
        lengths = lengths[:count] if steps is None else np.minimum(lengths[:count], steps)
    return replace(batch, x=batch.x[:count, :steps], lengths=lengths)


@dataclass
class _Twins:
    """Two networks that are run side by side, a layer at a time."""

    a: Network
    b: Network
    threshold: float
    parts: dict[tuple[int, str, str], Part] = field(default_factory=dict)
    outputs: Part | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def width(self) -> int:
        """Values of the widest layer at one step."""
        return max(_width(spec) for network in (self.a, self.b) for spec in network.layers)

    def run(self, batch: Batch) -> None:
        """One batch through both."""
        mine, theirs = (_walk(network, batch) for network in (self.a, self.b))
        for (spec, one, lengths), (other_spec, other, _) in zip(mine, theirs, strict=False):
            parting = Parting(batch.first, lengths, self.threshold)
            if spec is not None and other_spec is not None:
                self._layer(spec, parting, one, other)
                continue
            # One network may have more layers: what comes last are its outputs.
            one, other = (_last(made, walk) for made, walk in ((one, mine), (other, theirs)))
            self._outputs(parting, one.output, other.output)

    def _layer(
        self, spec: LayerSpec, parting: Parting, one: LayerResult, other: LayerResult
    ) -> None:
        if not one.kept or not other.kept:
            self._add((spec.index, "", "output"), parting, one.output, other.output)
            return
        for direction in DIRECTIONS:
            mine, theirs = one.kept.get(direction, {}), other.kept.get(direction, {})
            for name in _by_gate(spec, mine):
                if name in theirs:
                    shown = direction if len(one.kept) > 1 else ""
                    self._add((spec.index, shown, name), parting, mine[name], theirs[name])

    def _add(self, key: tuple[int, str, str], parting: Parting, one: Array, other: Array) -> None:
        if one.shape != other.shape:
            place = f"layer {key[0]}" + (f" {key[1]}" if key[1] else "")
            note = f"{place}: {key[2]} has other shapes in A and B, and was not compared"
            if note not in self.notes:
                self.notes.append(note)
            return
        part = parting.part(*key, one, other)
        self.parts[key] = part.joined(self.parts.get(key))

    def _outputs(self, parting: Parting, one: Array, other: Array) -> None:
        if one.shape == other.shape:
            found = parting.part(-1, "", "outputs", one, other)
            self.outputs = found.joined(self.outputs)
        elif not self.notes or "the outputs" not in self.notes[-1]:
            shapes = f"{one.shape[1:]} a sequence in A, {other.shape[1:]} in B"
            self.notes.append(f"the outputs were not compared: {shapes}")


def _last(made: LayerResult, walk: Iterator[tuple[Any, LayerResult, Any]]) -> LayerResult:
    rest = [later for _, later, _ in walk]
    return rest[-1] if rest else made


def _width(spec: LayerSpec) -> int:
    cells = getattr(spec, "cells", ())
    kept = sum((len(cell.gates) + len(cell.states)) * cell.hidden_size for cell in cells)
    return max(spec.input_size, spec.output_size, int(kept))


def _by_gate(spec: LayerSpec, kept: Mapping[str, Any]) -> list[str]:
    """Gates in the order of the equations, then the states."""
    cell = spec.cells[0] if hasattr(spec, "cells") else None
    letters = cell.letters if cell is not None else ()
    return [*(name for name in letters if name in kept), *(n for n in kept if n not in letters)]


def _walk(
    network: Network, batch: Batch
) -> Iterator[tuple[LayerSpec | None, LayerResult, Array | None]]:
    """Every layer with weights and what it gives, and at the end the outputs."""
    x, lengths = network.check(batch.x, batch.lengths)
    y, engine, steps = network.engine.batch(x, lengths), network.engine, x.shape[1]
    for spec, prepared in network.prepared():
        made = engine.forward(spec, prepared, y, lengths, keep=True)
        y = made.output
        if spec.parameters():
            yield spec, made, lengths
    outputs = network.without_empty(engine.to_host(y), steps, lengths)
    yield None, LayerResult(outputs), lengths
