"""Forward pass of a model over a dataset, batch by batch: result files, metrics and timings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from lstm_cli.data import Allocator, Batch, GateWriter, ResultWriter, SequenceData, StateReader
from lstm_cli.engines.protocols import array_dtype
from lstm_cli.engines.types import Array
from lstm_cli.errors import DataError
from lstm_cli.network.network import ends_sequence
from lstm_cli.network.results import Result
from lstm_cli.output_files import HDF5_ATTRIBUTE
from lstm_cli.training.losses import loss_for
from lstm_cli.training.metric_sums import MetricSums
from lstm_cli.training.metrics import Metrics
from lstm_cli.training.nonfinite import nonfinite_data_error
from lstm_cli.training.train_step import Chunk
from lstm_cli.version import __version__
from lstm_cli.workflows.data_notes import input_dtype, lost_digits_note, misplaced_state_note
from lstm_cli.workflows.model import Model
from lstm_cli.workflows.pipeline import ForwardPipeline
from lstm_cli.workflows.timing import Stopwatch, TimingRow, timing_rows
from lstm_cli.workflows.train.training_data import DataPlaces

AUTO_BYTES = 64 << 20
"""Most bytes of the widest layer's values over a batch, for an automatic batch size."""
STEP_BYTES = 256 << 10
"""Most bytes of the largest recurrent layer's gates at one step, so that a cache holds them."""

STATEFUL_BATCH = 64
"""Sequences per batch of a stateful network, for an automatic batch size."""

StateShape = tuple[int, int, int, int | None]
"""Layer index, directions, features of h, features of c or None."""


@dataclass(frozen=True)
class RunFiles:
    """Files of a run: results, every gate's values, and initial states to read.

    Attributes
    ----------
    force
        Replace files that another program wrote.
    """

    output: Path | None = None
    gates: Path | None = None
    state: str | Path | None = None
    force: bool = False


@dataclass(frozen=True)
class PartialRun:
    """Run over some consecutive sequences, whose results are put together with others later.

    Attributes
    ----------
    span
        Number of the first sequence, and of the one after the last.
    group
        Group of the results file that gets the results.
    complete
        Function that completes the results file from the report, before it gets its name.
    """

    span: tuple[int, int]
    group: str
    complete: Callable[[ResultWriter, RunReport], None]


@dataclass(frozen=True)
class NotFiniteOutputs:
    """Outputs that are NaN or infinite: the number of sequences, and the first sequence."""

    sequences: int
    first: int


@dataclass(frozen=True)
class RunReport:
    """Result of `run_dataset`.

    Attributes
    ----------
    sequences, steps
        Sequences and valid steps, over all files.
    output_shape
        Shape of ``outputs``; ``"T"`` is the number of steps if lengths vary.
    timings
        Rows of the table of timings.
    seconds
        Seconds of reading, computing and writing together.
    metrics
        Metrics by name; empty without targets, and for a `PartialRun`, which has `sums`.
    loss
        Name of the loss among the metrics.
    notes
        Notes for the user, such as the reason why targets were not used.
    not_finite
        Outputs that are NaN or infinite; None if there are none.
    sums
        Sums that the metrics are means of; None if targets are missing or were not used.
    """

    sequences: int
    steps: int
    output_shape: tuple[int | str, ...]
    timings: tuple[TimingRow, ...]
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    loss: str | None = None
    notes: tuple[str, ...] = ()
    not_finite: NotFiniteOutputs | None = None
    sums: MetricSums | None = None


TARGETS_NOT_USED = "the targets were not used"
"""Beginning of the notes on targets that do not fit."""


def state_shapes(model: Model) -> list[StateShape]:
    """Return the sizes of each recurrent layer's states, as a results file stores them."""
    shapes: list[StateShape] = []
    for spec in model.network.recurrent:
        sizes = spec.cells[0].state_sizes
        shapes.append((spec.index, spec.directions, sizes[0], (*sizes, None)[1]))
    return shapes


def metric_loss(model: Model) -> tuple[str, bool]:
    """Return the name of the loss among the metrics, and True if the config names the loss.

    Without ``train.loss``, the last layer implies the loss.
    """
    if model.config.train is not None and model.config.train.loss is not None:
        return model.config.train.loss, True
    return loss_for(model.network.layers), False


def automatic_batch_size(model: Model, data: SequenceData) -> int:
    """Return a batch size whose gates fit `STEP_BYTES` and whose values fit `AUTO_BYTES`.

    The results of a stateful network depend on the batch size, so that it is always the same.
    """
    if model.stateful:
        return STATEFUL_BATCH
    size = np.dtype(array_dtype(model.network.engine)).itemsize
    layers = model.network.layers
    width = max(max(spec.input_size, spec.output_size) for spec in layers) * size
    gates = max((len(s.cells[0].gates) * s.hidden_size for s in model.network.recurrent), default=1)
    by_step = min(max(STEP_BYTES // (gates * size), 16), 256)
    return int(max(1, min(by_step, AUTO_BYTES // (width * max(data.max_steps, 1)))))


def run_dataset(
    model: Model,
    data: SequenceData,
    *,
    batch_size: int = 64,
    halve: bool = False,
    files: RunFiles = RunFiles(),
    progress: Callable[[int], None] | None = None,
    part: PartialRun | None = None,
) -> RunReport:
    """Run the forward pass over a dataset.

    Parameters
    ----------
    batch_size
        Sequences computed together. No result depends on it, unless layers are stateful.
    halve
        Divide a batch where the device's memory is too small for it.
    files
        Files for results, and for initial states to read.
    progress
        Function that is called after every batch, with its number of sequences.
    part
        Sequences to run; None: all.

    Raises
    ------
    DataError, LstmCliError
        The data cannot be read or does not fit; a file cannot be written.
    """
    return _Run(model, data, batch_size, halve, files, progress, part).run()


class _Run:
    def __init__(
        self,
        model: Model,
        data: SequenceData,
        batch_size: int,
        halve: bool,
        files: RunFiles,
        progress: Callable[[int], None] | None,
        part: PartialRun | None,
    ) -> None:
        self.model, self.data, self.batch_size = model, data, batch_size
        self.files, self.progress, self.part = files, progress, part
        self.watch = Stopwatch()
        self.notes = list(data.notes)
        if (lost := lost_digits_note(model.network, data)) is not None:
            self.notes.append(f"{lost}; --dtype float64 keeps them")
        if (misplaced := misplaced_state_note(model.network, data, batch_size)) is not None:
            self.notes.append(misplaced)
        self.bad_sequences, self.first_bad = 0, -1
        self.metrics, self.loss_is_named = self._metrics()
        with_logits = self.metrics is not None
        self.pipeline = ForwardPipeline(model, self.watch, halve=halve, logits=with_logits)
        self.stack = ExitStack()
        self.writer: ResultWriter | None = None
        self.gates: GateWriter | None = None
        self.states: StateReader | None = None

    def _metrics(self) -> tuple[Metrics | None, bool]:
        network = self.model.network
        loss, is_named = metric_loss(self.model)
        window = self.model.config.data.window
        if self.data.targets is None:
            return None, is_named
        if loss == "cross_entropy" and window is not None and window.predict > 1:
            self.notes.append(
                f"{TARGETS_NOT_USED}: cross_entropy compares one class per window, but "
                f"data.window.predict is {window.predict}"
            )
            return None, is_named
        metrics = Metrics(
            loss,
            per_step=network.returns_sequences,
            features=network.output_size,
            name=self.data.targets.name,
        )
        return metrics, is_named

    def run(self) -> RunReport:
        start = perf_counter()
        writes = self.files.output is not None or self.files.gates is not None
        with self.stack:
            with self.watch.section("write") if writes else nullcontext():
                self._open()
            file = -1
            # Closed here: the garbage collector may close a generator, and join its thread,
            # at any point.
            with closing(self.pipeline.batches(self._batches)) as batches:
                for batch, upload in batches:
                    if batch.file != file:
                        self.model.reset_state()
                        file = batch.file
                    initial, keep = self._initial(batch), self.gates is not None
                    for part, result in self.pipeline.results(batch, upload, initial, keep=keep):
                        self._take(part, result)
            for part, result in self.pipeline.remaining():
                self._take(part, result)
            if self.part is not None and self.writer is not None:
                self.part.complete(self.writer, self._report(perf_counter() - start))
            with self.watch.section("write") if writes else nullcontext():
                self.stack.close()  # renames the complete files of results
        return self._report(perf_counter() - start)

    def _open(self) -> None:
        if self.files == RunFiles():
            return
        network, shapes = self.model.network, state_shapes(self.model)
        dtype = array_dtype(network.engine)
        attributes = {
            HDF5_ATTRIBUTE: __version__,
            "config": self.model.config.to_yaml(),
            "weights_sha256": self.model.weights_sha256,
        }
        if self.files.state is not None:
            directions = {spec.index: spec.directions for spec in network.recurrent}
            zero = network.zero_states.items()
            unread = [key for key, sides in zero if len(sides) == directions[key[0]]]
            one_sided = [spec.index for spec in network.recurrent if network.is_one_sided(spec)]
            reader = StateReader(str(self.files.state), shapes, self.data.count, unread, one_sided)
            self.states = self.stack.enter_context(reader)
        if self.files.output is not None:
            writer = ResultWriter(
                str(self.files.output),
                self.data,
                features=network.output_size,
                per_step=network.returns_sequences,
                dtype=dtype,
                attributes=attributes,
                states=shapes,
                force=self.files.force,
                span=None if self.part is None else self.part.span,
                group="" if self.part is None else self.part.group,
            )
            self.writer = self.stack.enter_context(writer)
        if self.files.gates is not None:
            gates = GateWriter(
                str(self.files.gates),
                self.data,
                dtype=dtype,
                attributes=attributes,
                force=self.files.force,
            )
            self.gates = self.stack.enter_context(gates)

    def _batches(self, allocate: Allocator) -> Iterator[Batch]:
        return self.data.batches(
            self.batch_size,
            input_dtype(self.model.network, self.data),
            targets=self.metrics is not None,
            per_step=self.model.network.returns_sequences,
            keep_rows=self.model.stateful,
            allocate=allocate,
            span=None if self.part is None else self.part.span,
        )

    def _take(self, batch: Batch, result: Result) -> None:
        rows, steps = batch.x.shape[:2]
        positions = rows * steps if batch.lengths is None else int(batch.lengths.sum())
        for spec in self.model.network.layers:
            self.watch.add_layer(spec, result.seconds[spec.index], positions)
            if ends_sequence(spec):
                positions = rows
        if self.metrics is not None:
            self._measure(self.metrics, batch, result)
        self._note_not_finite(batch, result.outputs)
        self._write(batch, result)
        if self.progress is not None:
            self.progress(rows)

    def _initial(self, batch: Batch) -> list[Any] | None:
        if self.states is None or (self.model.stateful and self.model.carries_state):
            return None
        read = self.states.read(batch.first, len(batch.x))
        return [read[spec.index] for spec in self.model.network.recurrent]

    def _measure(self, metrics: Metrics, batch: Batch, result: Result) -> None:
        start, bad = perf_counter(), None
        try:
            if batch.targets is not None:
                bad = self._update(metrics, batch, result, batch.targets)
        except DataError as error:
            if self.loss_is_named and not self.data.targets_are_inputs:
                raise
            self.metrics = None
            problem = error.problems[0]
            shapes = f": expected {problem.expected}, found {problem.found}"
            self.notes.append(
                f"{TARGETS_NOT_USED}: {problem.what}{shapes if problem.expected else ''}"
            )
        if bad is not None:
            raise bad
        self.watch.add("metrics", perf_counter() - start)

    def _update(
        self, metrics: Metrics, batch: Batch, result: Result, targets: Array
    ) -> DataError | None:
        """Update the metrics by sequences with targets; return an error for data not finite."""
        x, outputs, logits, lengths = batch.x, result.outputs, result.logits, batch.lengths
        numbers = batch.first + np.arange(batch.count)
        if batch.has_target is not None:
            known = batch.has_target
            x, outputs, targets, numbers = x[known], outputs[known], targets[known], numbers[known]
            logits = None if logits is None else logits[known]
            lengths = None if lengths is None else lengths[known]
        metrics.targets.check_shape(targets, outputs.shape)
        with np.errstate(all="ignore"):  # a sum is finite only if every input is
            finite = np.isfinite(x.sum()) and np.isfinite(targets).all()
        if not finite:
            per_step = self.model.network.returns_sequences
            chunk, places = Chunk(x, targets, lengths), DataPlaces(self.data)
            error = nonfinite_data_error(
                chunk, per_step, numbers, places, "its metrics would mean nothing"
            )
            if error is not None:
                return error
        metrics.update(outputs, logits, targets, lengths)
        return None

    def _note_not_finite(self, batch: Batch, outputs: Any) -> None:
        finite = np.isfinite(outputs).reshape(len(outputs), -1).all(axis=1)
        if not finite.all():
            if self.bad_sequences == 0:
                self.first_bad = batch.first + int(np.argmin(finite))
            self.bad_sequences += int((~finite).sum())

    def _write(self, batch: Batch, result: Result) -> None:
        if self.writer is not None:
            with self.watch.section("write"):
                layers = [spec.index for spec in self.model.network.recurrent]
                states = dict(zip(layers, result.state, strict=True))
                self.writer.write(batch, result.outputs, states)
        if self.gates is not None:
            with self.watch.section("write gates"):
                self.gates.write(batch, result.kept)

    def _report(self, seconds: float) -> RunReport:
        network, data, notes = self.model.network, self.data, list(self.notes)
        if self.metrics is not None and not len(data.numbers):
            notes.append(
                "no metrics: the targets of every window lie beyond the end of its sequence"
            )
        if self.states is not None and self.states.not_finite is not None:
            notes.append(self.states.not_finite)
        first, stop = (0, data.count) if self.part is None else self.part.span
        steps: tuple[int | str, ...] = ()
        if network.returns_sequences:
            steps = ("T",) if data.varying else (data.max_steps,)
        return RunReport(
            stop - first,
            data.total_steps if self.part is None else int(data.lengths(first, stop - first).sum()),
            (stop - first, *steps, network.output_size),
            timing_rows(self.watch, network.layers, seconds, stop - first),
            seconds,
            self.metrics.result() if self.metrics is not None and self.part is None else {},
            self.metrics.loss if self.metrics is not None else None,
            (*notes, *self.pipeline.notes),
            NotFiniteOutputs(self.bad_sequences, self.first_bad) if self.bad_sequences else None,
            self.metrics,
        )
