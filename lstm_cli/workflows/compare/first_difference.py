"""First difference of two networks on the same sequences: layer, gate and step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lstm_cli.data import Batch, SequenceData
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import DIRECTIONS, Array, LayerResult, LayerSpec
from lstm_cli.errors import WeightsError
from lstm_cli.network.difference import absolute_difference, largest
from lstm_cli.network.network import Network
from lstm_cli.workflows.compare.diagnosis import listed
from lstm_cli.workflows.compare.inputs import ComparedFile
from lstm_cli.workflows.shape_check import check_data, misfit_describer

SEQUENCES = 64
"""Most sequences that are run, counted from the first."""
NUMBERS = 1 << 22
"""Most values of the widest layer that each network keeps at once."""
ROUNDING = 1e-6
"""Smallest threshold: smaller differences are rounding."""
STATES = {"h": "state h", "c": "state c", "output": "its output"}


@dataclass(frozen=True)
class ValueDifference:
    """Difference of one value of a layer between two networks.

    Attributes
    ----------
    layer, direction, value
        Such as 0, ``reverse``, ``f``; the direction is empty if there is only one.
    turn
        Number of steps that the direction ran before the first difference; None: no difference.
    first_step, first_sequence
        Step and sequence at which the difference first exceeds the threshold, in the
        direction's own order. The step is None for a value without steps; both are None
        without a difference.
    largest
        Largest difference, at `sequence` and `step`.
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
    def exceeds(self) -> bool:
        """True if the difference exceeds the threshold."""
        return self.turn is not None

    def merge(self, before: ValueDifference | None) -> ValueDifference:
        """Merge with the difference in an earlier batch."""
        if before is None:
            return self
        first = before if _turn(before) <= _turn(self) else self
        largest = before if before.largest >= self.largest else self
        return replace(first, largest=largest.largest, sequence=largest.sequence, step=largest.step)


def _turn(difference: ValueDifference) -> float:
    return float("inf") if difference.turn is None else difference.turn


@dataclass(frozen=True)
class Divergence:
    """Differences between two networks that ran on the same sequences.

    Attributes
    ----------
    sequences, of, steps
        Number of sequences that were run, number of sequences in the data, and most steps of
        each sequence; None: all steps.
    threshold
        Difference above which values differ.
    parts
        Differences by layer, direction and value.
    what
        Sentence on the first difference.
    outputs
        Difference of the networks' outputs; None where their shapes differ.
    notes
        Values that were not compared.
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
    def outputs_differ(self) -> bool:
        """True if the networks' outputs differ."""
        return self.outputs is not None and self.outputs.exceeds


def find_divergence(
    a: ComparedFile, b: ComparedFile, data: SequenceData, tolerance: float
) -> Divergence:
    """Run both networks over the first sequences, in float64, and compare every value.

    Raises
    ------
    WeightsError
        A file has no config, or its tensors do not fit the config.
    DataError
        The data cannot be read, or do not fit a network.
    """
    for file in (a, b):
        if file.config is not None:
            check_data(file.config, data)
    runs = _ParallelRun(_network(a), _network(b), max(tolerance, ROUNDING))
    limit = max(1, NUMBERS // runs.width)
    steps = limit if data.max_steps > limit else None
    count = 0
    size = max(1, limit // max(1, min(data.max_steps, limit)))
    for batch in data.batches(min(size, SEQUENCES), np.float64, targets=False):
        batch = _cut(batch, SEQUENCES - count, steps)
        runs.run(batch)
        count += batch.count
        if count >= SEQUENCES:
            break
    differences = tuple(runs.differences.values())
    return Divergence(
        count,
        data.count,
        steps,
        runs.threshold,
        differences,
        difference_sentence(differences, runs.threshold),
        runs.outputs,
        tuple(runs.notes),
    )


def _network(file: ComparedFile) -> Network:
    config = file.config
    if config is None:
        raise WeightsError(
            f"{file.imported.path} carries no config, so it cannot be run",
            expected="a config in the file, or with --config",
            hint="--config names a YAML config for the file that has none",
        )
    describe = misfit_describer(config, str(file.imported.path))
    tensors = file.imported.tensors
    return Network(config.specs, tensors, ReferenceEngine("float64"), describe)


def _cut(batch: Batch, count: int, steps: int | None) -> Batch:
    lengths = batch.lengths
    if lengths is not None:
        lengths = lengths[:count] if steps is None else np.minimum(lengths[:count], steps)
    return replace(batch, x=batch.x[:count, :steps], lengths=lengths)


@dataclass
class _ParallelRun:
    """Two networks that run on the same batches, a layer at a time."""

    a: Network
    b: Network
    threshold: float
    differences: dict[tuple[int, str, str], ValueDifference] = field(default_factory=dict)
    outputs: ValueDifference | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def width(self) -> int:
        """Values of the widest layer at one step."""
        return max(_width(spec) for network in (self.a, self.b) for spec in network.layers)

    def run(self, batch: Batch) -> None:
        """Run one batch through both networks."""
        layers_a, layers_b = (_layer_results(network, batch) for network in (self.a, self.b))
        for (spec, a, lengths), (other_spec, b, _) in zip(layers_a, layers_b, strict=False):
            finder = DifferenceFinder(batch.first, lengths, self.threshold)
            if spec is not None and other_spec is not None:
                self._add_layer(spec, finder, a, b)
                continue
            # One network may have more layers; its last result is its outputs.
            outputs_a, outputs_b = _last(a, layers_a), _last(b, layers_b)
            self._add_outputs(finder, outputs_a.output, outputs_b.output)

    def _add_layer(
        self, spec: LayerSpec, finder: DifferenceFinder, a: LayerResult, b: LayerResult
    ) -> None:
        if not a.gates or not b.gates:
            self._add((spec.index, "", "output"), finder, a.output, b.output)
            return
        for direction in DIRECTIONS:
            values_a, values_b = a.gates.get(direction, {}), b.gates.get(direction, {})
            for name in _gates_first(spec, values_a):
                if name in values_b:
                    label = direction if len(a.gates) > 1 else ""
                    self._add((spec.index, label, name), finder, values_a[name], values_b[name])

    def _add(self, key: tuple[int, str, str], finder: DifferenceFinder, a: Array, b: Array) -> None:
        layer, direction, value = key
        if a.shape != b.shape:
            place = f"layer {layer}" + (f" {direction}" if direction else "")
            note = f"{place}: {value} has other shapes in A and B, and was not compared"
            if note not in self.notes:
                self.notes.append(note)
            return
        difference = finder.difference(layer, direction, value, a, b)
        self.differences[key] = difference.merge(self.differences.get(key))

    def _add_outputs(self, finder: DifferenceFinder, a: Array, b: Array) -> None:
        if a.shape == b.shape:
            difference = finder.difference(-1, "", "outputs", a, b)
            self.outputs = difference.merge(self.outputs)
        elif not self.notes or "the outputs" not in self.notes[-1]:
            shapes = f"{a.shape[1:]} a sequence in A, {b.shape[1:]} in B"
            self.notes.append(f"the outputs were not compared: {shapes}")


def _last(result: LayerResult, later: Iterator[tuple[Any, LayerResult, Any]]) -> LayerResult:
    results = [result, *(last for _, last, _ in later)]
    return results[-1]


def _width(spec: LayerSpec) -> int:
    cells = getattr(spec, "cells", ())
    gates = sum((len(cell.gates) + len(cell.states)) * cell.hidden_size for cell in cells)
    return max(spec.input_size, spec.output_size, int(gates))


def _gates_first(spec: LayerSpec, values: Mapping[str, Any]) -> list[str]:
    """Return names of values: gates in the order of the equations, then the states."""
    cell = spec.cells[0] if hasattr(spec, "cells") else None
    letters = cell.letters if cell is not None else ()
    return [*(name for name in letters if name in values), *(n for n in values if n not in letters)]


def _layer_results(
    network: Network, batch: Batch
) -> Iterator[tuple[LayerSpec | None, LayerResult, Array | None]]:
    """Yield every layer with weights and its result, and at the end None and the outputs."""
    x, lengths = network.check(batch.x, batch.lengths)
    y, engine, steps = network.engine.from_padded(x, lengths), network.engine, x.shape[1]
    for layer in network.engine_layers:
        result = layer.forward(y, lengths, return_gates=True)
        y = result.output
        if layer.spec.parameters():
            yield layer.spec, result, lengths
    outputs = network.without_empty(engine.to_host(y), steps, lengths)
    yield None, LayerResult(outputs), lengths


@dataclass(frozen=True)
class DifferenceFinder:
    """Compares values of one batch.

    Attributes
    ----------
    number
        Number of the batch's first sequence.
    lengths
        (N,) valid steps; None: all are valid.
    threshold
        Difference above which values differ.
    """

    number: int
    lengths: Array | None
    threshold: float

    def difference(
        self, layer: int, direction: str, value: str, a: Array, b: Array
    ) -> ValueDifference:
        """Return the difference of two arrays (N, T, F) or (N, F)."""
        size = absolute_difference(a, b)
        worst = largest(size)
        first = self._first((size > self.threshold).any(axis=-1), direction)
        turn, row, step = first if first is not None else (None, None, None)
        return ValueDifference(
            layer,
            direction,
            value,
            turn,
            step,
            None if row is None else self.number + row,
            worst.value,
            self.number + worst.sequence,
            worst.step,
        )

    def _first(self, exceeds: Any, direction: str) -> tuple[int, int, int | None] | None:
        """Return turn, row and step of the first difference, of flags (N, T) or (N,)."""
        rows, *steps = np.nonzero(exceeds)
        if not len(rows):
            return None
        if not steps:
            return 0, int(rows[0]), None
        turns = steps[0]
        if direction == "reverse":
            T = exceeds.shape[1]
            lengths = np.full(len(exceeds), T) if self.lengths is None else self.lengths
            turns = lengths[rows] - 1 - turns
        k = int(np.lexsort((rows, turns))[0])
        return int(turns[k]), int(rows[k]), int(steps[0][k])


def difference_sentence(differences: Sequence[ValueDifference], threshold: float) -> str:
    """Name the first difference: the first layer that differs, its first step, the gates there."""
    exceeding = [difference for difference in differences if difference.exceeds]
    if not exceeding:
        largest = max((difference.largest for difference in differences), default=None)
        place = "" if largest is None else f"; the largest difference is {largest:.3g}"
        return f"no value differs by more than {threshold:g}{place}"
    layer = exceeding[0].layer
    of_layer = [difference for difference in exceeding if difference.layer == layer]
    turn = min(_turn(difference) for difference in of_layer)
    direction = next(d.direction for d in of_layer if d.turn == turn)
    first = [d for d in of_layer if (d.turn, d.direction) == (turn, direction)]
    gates = [d for d in first if d.value not in STATES] or first
    row = min(d.first_sequence or 0 for d in gates)
    of_row = [d for d in gates if d.first_sequence == row]
    label = f" {direction}" if direction else ""
    step = "" if of_row[0].first_step is None else f", step {of_row[0].first_step}"
    place = f"layer {layer}{label}, {_value_names(of_row)}{step} (sequence {row})"
    return f"the networks first differ at {place}"


def _value_names(differences: Sequence[ValueDifference]) -> str:
    values = [difference.value for difference in differences]
    if values[0] in STATES:
        return listed([STATES[value] for value in values])
    return f"gate{'s' if len(values) > 1 else ''} {listed(values)}"
