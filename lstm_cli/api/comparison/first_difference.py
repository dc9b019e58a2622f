"""F"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lstm_cli.api.comparison.diagnosis import listed
from lstm_cli.api.comparison.inputs import ComparedFile
from lstm_cli.api.shape_check import check_data, check_weights
from lstm_cli.api.weights_files import tensors_for
from lstm_cli.data import Batch, Dataset
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

STATES = {"h": "state h", "c": "state c", "output": "its output"}


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
    parts: tuple[ValueDifference, ...]
    what: str
    outputs: ValueDifference | None
    notes: tuple[str, ...] = ()

    @property
    def parted(self) -> bool:
        """Whether the networks' outputs do."""
        return self.outputs is not None and self.outputs.apart


def find_divergence(
    a: ComparedFile, b: ComparedFile, data: Dataset, tolerance: float
) -> Divergence:
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
        difference_sentence(parts, twins.threshold),
        twins.outputs,
        tuple(twins.notes),
    )


def _network(side: ComparedFile) -> Network:
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


def _batches(data: Dataset, size: int) -> Iterator[Batch]:
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
    parts: dict[tuple[int, str, str], ValueDifference] = field(default_factory=dict)
    outputs: ValueDifference | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def width(self) -> int:
        """Values of the widest layer at one step."""
        return max(_width(spec) for network in (self.a, self.b) for spec in network.layers)

    def run(self, batch: Batch) -> None:
        """One batch through both."""
        mine, theirs = (_walk(network, batch) for network in (self.a, self.b))
        for (spec, one, lengths), (other_spec, other, _) in zip(mine, theirs, strict=False):
            parting = DifferenceFinder(batch.first, lengths, self.threshold)
            if spec is not None and other_spec is not None:
                self._layer(spec, parting, one, other)
                continue
            # One network may have more layers: what comes last are its outputs.
            one, other = (_last(made, walk) for made, walk in ((one, mine), (other, theirs)))
            self._outputs(parting, one.output, other.output)

    def _layer(
        self, spec: LayerSpec, parting: DifferenceFinder, one: LayerResult, other: LayerResult
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

    def _add(
        self, key: tuple[int, str, str], parting: DifferenceFinder, one: Array, other: Array
    ) -> None:
        if one.shape != other.shape:
            place = f"layer {key[0]}" + (f" {key[1]}" if key[1] else "")
            note = f"{place}: {key[2]} has other shapes in A and B, and was not compared"
            if note not in self.notes:
                self.notes.append(note)
            return
        part = parting.part(*key, one, other)
        self.parts[key] = part.joined(self.parts.get(key))

    def _outputs(self, parting: DifferenceFinder, one: Array, other: Array) -> None:
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


@dataclass(frozen=True)
class ValueDifference:
    """How one value of a layer parts.

    Attributes
    ----------
    layer, direction, value
        Such as 0, ``reverse``, ``f``; the direction is empty where there is one only.
    first_step, first_sequence
        Where the difference first exceeds the threshold, in the order in which the direction
        runs; the step is None for a value without steps, and both where it never does.
    turn
        How many steps its direction had run there.
    largest
        Difference anywhere, and its `sequence` and `step`.
    """

    layer: int
    direction: str
    value: str
    turn: int | None
    first_step: int | None
    first_sequence: int | None
    largest: float
    sequence: int
    step: int | None

    @property
    def apart(self) -> bool:
        """Whether the threshold was exceeded."""
        return self.turn is not None

    def joined(self, before: ValueDifference | None) -> ValueDifference:
        """With what an earlier batch gave."""
        if before is None:
            return self
        first = before if _turn(before) <= _turn(self) else self
        most = before if before.largest >= self.largest else self
        return replace(first, largest=most.largest, sequence=most.sequence, step=most.step)


def _turn(part: ValueDifference) -> float:
    return float("inf") if part.turn is None else part.turn


@dataclass(frozen=True)
class DifferenceFinder:
    """Compares values of one batch.

    Attributes
    ----------
    number
        Of the batch's first sequence.
    lengths
        (N,); None if all steps are valid.
    """

    number: int
    lengths: Array | None
    threshold: float

    def part(self, layer: int, direction: str, value: str, a: Array, b: Array) -> ValueDifference:
        """How two arrays (N, T, F) or (N, F) part."""
        with np.errstate(all="ignore"):
            apart = np.abs(a - b).max(axis=-1, initial=0.0)
        apart = np.where(np.isnan(apart), np.where(_same_nan(a, b), 0.0, np.inf), apart)
        per_step = apart.ndim == 2
        at = np.unravel_index(int(np.argmax(apart)), apart.shape)
        first = self._first(apart, direction) if per_step else _first_row(apart, self.threshold)
        turn, row, step = first if first is not None else (None, None, None)
        return ValueDifference(
            layer,
            direction,
            value,
            turn,
            step,
            None if row is None else self.number + row,
            float(apart[at]),
            self.number + int(at[0]),
            int(at[1]) if per_step else None,
        )

    def _first(self, apart: Array, direction: str) -> tuple[int, int, int] | None:
        """The turn, sequence and step of the first difference beyond the threshold."""
        rows, steps = np.nonzero(apart > self.threshold)
        if not len(rows):
            return None
        turns = steps
        if direction == "reverse":
            lengths = np.full(len(apart), apart.shape[1]) if self.lengths is None else self.lengths
            turns = lengths[rows] - 1 - steps
        k = int(np.lexsort((rows, turns))[0])
        return int(turns[k]), int(rows[k]), int(steps[k])


def _first_row(apart: Array, threshold: float) -> tuple[int, int, None] | None:
    rows = np.flatnonzero(apart > threshold)
    return (0, int(rows[0]), None) if len(rows) else None


def _same_nan(a: Array, b: Array) -> Array:
    """Whether all of the last axis that is NaN on one side is on the other."""
    return np.asarray((np.isnan(a) == np.isnan(b)).all(axis=-1))


def difference_sentence(parts: Sequence[ValueDifference], threshold: float) -> str:
    """Where the networks part first: the first layer, its first step, the gates there."""
    apart = [part for part in parts if part.apart]
    if not apart:
        most = max(parts, key=lambda part: part.largest, default=None)
        place = "" if most is None else f"; the largest difference is {most.largest:.3g}"
        return f"nothing parts by more than {threshold:g}{place}"
    layer = apart[0].layer
    mine = [part for part in apart if part.layer == layer]
    turn = min(_turn(part) for part in mine)
    first = [part for part in mine if part.turn == turn and part.direction == _leading(mine, turn)]
    gates = [part for part in first if part.value not in STATES] or first
    row = min(part.first_sequence or 0 for part in gates)
    there = [part for part in gates if part.first_sequence == row]
    direction = f" {there[0].direction}" if there[0].direction else ""
    step = "" if there[0].first_step is None else f", step {there[0].first_step}"
    return f"the outputs part at layer {layer}{direction}, {_named(there)}{step} (sequence {row})"


def _leading(parts: Sequence[ValueDifference], turn: float) -> str:
    return next(part.direction for part in parts if part.turn == turn)


def _named(parts: Sequence[ValueDifference]) -> str:
    values = [part.value for part in parts]
    if values[0] in STATES:
        return listed([STATES[value] for value in values])
    return f"gate{'s' if len(values) > 1 else ''} {listed(values)}"
