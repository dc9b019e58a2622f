"""A training run in its folder, new or resumed, and plots of its metrics."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from lstm_cli.config import Config
from lstm_cli.data import DataOptions, SequenceData, open_data
from lstm_cli.engines.protocols import Engine
from lstm_cli.engines.types import Array
from lstm_cli.errors import DataError, DeviceError, LstmCliError, TrainingError, quote
from lstm_cli.formats import native
from lstm_cli.formats.interchange import Imported, ReadOptions
from lstm_cli.output_files import write_atomically
from lstm_cli.training.checkpoint import Checkpoint, Progress
from lstm_cli.training.interfaces import EpochRow, Exchange, Reporter
from lstm_cli.training.loop import End, Loop, LoopIO
from lstm_cli.training.micro_batches import ONE_RANK
from lstm_cli.workflows.model import assemble
from lstm_cli.workflows.shape_check import check_data
from lstm_cli.workflows.train.training_data import data_change
from lstm_cli.workflows.train.training_folder import (
    StoredRun,
    TrainingFolder,
    check_same_config,
    check_same_numbers,
    run_config,
)
from lstm_cli.workflows.train.training_setup import TrainingSetup

NO_MATPLOTLIB = "curves.png is drawn with the plot extra: pip install 'lstm-cli[plot]'"
NOT_PLOTTED = ("epoch", "updates", "rate", "seconds")


@dataclass(frozen=True)
class TrainReport:
    """Result of a training run.

    Attributes
    ----------
    end
        Reason why the run ended: ``epochs``, ``patience`` or ``interrupted``.
    epoch
        Number of completed epochs.
    monitor, best, best_epoch
        The metric that picks the best epoch, its best value, and that epoch. Value and epoch
        are None before the first epoch ends.
    metrics
        Metrics of the best epoch.
    rows
        Metrics of all epochs, a row for each.
    files
        Paths of the files in the folder, by name.
    notes
        Notes for the user.
    """

    end: End
    epoch: int
    monitor: str
    best: float | None
    best_epoch: int | None
    metrics: EpochRow
    rows: tuple[EpochRow, ...]
    files: Mapping[str, str]
    notes: tuple[str, ...]


@contextmanager
def open_validation(config: Config, options: DataOptions) -> Iterator[SequenceData | None]:
    """Open the dataset that ``train.validation`` names; None if it names none."""
    if not isinstance(config.validation, str):
        yield None
        return
    with open_data([config.validation], options) as data:
        # Inputs that serve as targets are compared with the training data's later.
        check_data(config, data, learning=False)
        yield data


class TrainingRun:
    """A training run, ready to start or to resume.

    Parameters
    ----------
    folder
        Folder of the run.
    config
        Config as given.
    data, validation
        Datasets for training and validation. Without `validation`, a share of `data` is held
        out, or nothing.
    engine
        Engine that computes.
    weights
        Weights to begin from; None: random weights. The config's key `weights` is not used.
    reading
        Options for reading, if `weights` is a path.
    checkpoint_every
        Seconds between two checkpoints within an epoch.
    exchange
        Exchange with other ranks. Rank 0 alone writes.

    Raises
    ------
    ConfigError, DataError, WeightsError
        Config, data and weights do not fit each other, or differ from those of the run to
        resume.
    """

    def __init__(
        self,
        folder: TrainingFolder,
        config: Config,
        data: SequenceData,
        validation: SequenceData | None,
        engine: Engine,
        *,
        weights: str | Path | Imported | None = None,
        reading: ReadOptions | None = None,
        checkpoint_every: float = 10.0,
        exchange: Exchange = ONE_RANK,
    ) -> None:
        self.exchange = exchange
        self.folder, self._stored = folder, folder.stored
        self.notes: list[str] = []
        resolved = run_config(config, folder.path)
        self.text = self.model_text = resolved.to_yaml()
        if data.windowed and data.targets_key is not None:
            # Without this key, `run` would compare windows with the inputs themselves.
            section = resolved.data.model_copy(update={"targets": data.targets_key})
            self.model_text = replace(resolved, data=section).to_yaml()
        if config.weights is not None:
            # `run` uses these weights; an earlier training has very likely written them.
            if weights is None and self._stored is None:
                path = quote(str(config.weights))
                self.notes.append(
                    f"training begins from new weights; --weights {path} begins from the "
                    "config's weights"
                )
            config = replace(config, weights=None)
        if self._stored is not None:
            self._check_same(self._stored, config, engine, weights)
        begin = self._stored.checkpoint.part("weights") if self._stored is not None else weights
        self.model = assemble(config, engine, begin, reading)
        self.notes += self.model.notes
        trained = self._stored is None and weights is not None
        self._check_same_machines(engine)
        self.setup = TrainingSetup(
            self.model, resolved, data, validation, trained=trained, exchange=exchange
        )
        self.notes += [note for one in self.setup.datasets.values() for note in one.notes]
        self.notes += self.setup.notes
        if self._stored is None:
            self.setup.check_classes()
            self.notes += self.setup.lost_digits()
        self.facts = self._facts(engine)
        self.plan = self.setup.plan(checkpoint_every)

    @property
    def epochs_before(self) -> int | None:
        """Number of completed epochs before the run resumes; None for a new run."""
        return None if self._stored is None else self._stored.checkpoint.progress.epoch

    @property
    def ended(self) -> End | None:
        """Reason why the run in the folder ended; None if the run can continue."""
        return (
            None if self._stored is None else self.plan.end_reason(self._stored.checkpoint.progress)
        )

    def run(self, reporter: Reporter, stop: Callable[[], bool]) -> TrainReport:
        """Train from the start or from the checkpoint.

        Nothing is written before the first checkpoint.

        Raises
        ------
        TrainingError, DataError
            A value is not finite.
        LstmCliError
            The run cannot be saved.
        """
        setup = self.setup
        plots_of = RunPlots if self.exchange.rank == 0 else NoPlots
        with plots_of(self.folder, self._rows()) as plots, setup.source() as source:
            store = FolderStore(self, plots)
            loop_io = LoopIO(source, setup.validator(stop), store, reporter, stop)
            loop = Loop(setup.train_step, self.plan, loop_io, setup.metrics)
            if self._stored is not None:
                loop.resume(self._stored.checkpoint)
                if self.exchange.rank == 0:
                    self.folder.write_config(self.text)
            try:
                end = loop.run()
            except (TrainingError, DataError) as error:
                raise self._with_checkpoint(error) from None
        self.notes += plots.notes
        return self._report(end, loop.progress, plots.rows)

    def report(self) -> TrainReport:
        """Return the results so far of the run in the folder."""
        progress = Progress() if self._stored is None else self._stored.checkpoint.progress
        return self._report(self.ended or "interrupted", progress, self._rows())

    def _check_same(
        self,
        stored: StoredRun,
        config: Config,
        engine: Engine,
        weights: str | Path | Imported | None,
    ) -> None:
        """Raise if the run cannot continue; add a note if a change alters the last bits."""
        path = self.folder.path
        self.notes += check_same_config(stored, config, self.text, path)
        check_same_numbers(stored, path, dtype=engine.dtype, weights=weights)
        for name, now in _machine(engine).items():
            was = stored.facts.get(name)
            if was != now and not (name == "threads" and engine.bits_ignore_threads):
                self.notes.append(
                    f"the run began with {name} {was} and continues with {now}: its last digits "
                    "will differ from those of an uninterrupted run"
                )

    def _check_same_machines(self, engine: Engine) -> None:
        """Raise if ranks compute on processors whose kernels give other bits."""
        kinds = self.exchange.gather((platform.node(), engine.kernels_title))
        first, other = kinds[0], next((k for k in kinds if k[1] != kinds[0][1]), None)
        if other is not None:
            raise DeviceError(
                "the ranks compute on processors of different kinds, which round differently",
                expected=f"{first[1]}, as on {first[0]}",
                found=f"{other[1]} on {other[0]}",
                hint="ask the launcher for nodes of one kind",
            )

    def _facts(self, engine: Engine) -> dict[str, Any]:
        """Return the values in a checkpoint that must not change until the run is resumed.

        Raises
        ------
        DataError
            The data differ from the data that the run began with.
        """
        fingerprints = self.setup.fingerprints
        facts: dict[str, Any] = {"weights_sha256": self.model.weights_sha256}
        if self._stored is not None:
            facts = dict(self._stored.facts)
            changes = [
                data_change(facts.get(role) or {}, fingerprints[role], data)
                for role, data in self.setup.datasets.items()
            ]
            if any(changes):
                raise DataError([problem for problem in changes if problem is not None])
        return facts | fingerprints | _machine(engine) | {"dtype": engine.dtype}

    def _rows(self) -> list[EpochRow]:
        epochs = 0 if self._stored is None else self._stored.checkpoint.progress.epoch
        rows = self.folder.rows(epochs)
        if len(rows) < epochs:
            self.notes.append(f"{self.folder.metrics} lacks some of the {epochs} epochs so far")
        return rows

    def _with_checkpoint(self, error: LstmCliError) -> LstmCliError:
        if not os.path.exists(self.folder.checkpoint):
            return error
        first, *others = error.problems
        where = (*first.where, f"the last good checkpoint is {self.folder.checkpoint}")
        return type(error)([replace(first, where=where), *others])

    def _report(self, end: End, progress: Progress, rows: list[EpochRow]) -> TrainReport:
        best = next((row for row in rows if row["epoch"] == progress.best_epoch), {})
        return TrainReport(
            end,
            progress.epoch,
            self.plan.monitor,
            progress.best,
            progress.best_epoch,
            best,
            tuple(rows),
            self.folder.files(),
            tuple(self.notes),
        )


def _machine(engine: Engine) -> dict[str, Any]:
    """Return the engine, device and threads, on which the last digits of a result depend."""
    return {"engine": engine.name, "device": engine.device, "threads": engine.threads}


class FolderStore:
    """Store of the training loop: writes to the run's folder, and passes rows to the plots."""

    def __init__(self, run: TrainingRun, plots: RunPlots | NoPlots) -> None:
        self.run, self.plots = run, plots

    def save_best(self, weights: Mapping[str, Array]) -> None:
        """Write the weights as a model that runs without the config, on raw data."""
        if self.run.exchange.rank:
            return
        tensors = self.run.setup.exported_tensors(weights)
        native.write(self.run.folder.model, tensors, self.run.model_text)

    def append(self, row: EpochRow) -> None:
        """Write and plot the metrics of an epoch."""
        if self.run.exchange.rank == 0:
            self.run.folder.append(row)
        self.plots.add(row)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint, if all ranks have the same weights.

        Raises
        ------
        TrainingError
            The weights of two ranks differ, by a fault of a machine or of this program.
        """
        exchange = self.run.exchange
        if exchange.size > 1:
            weights = checkpoint.part("weights").values()
            digest = hashlib.sha256(b"".join(np.asarray(w).tobytes() for w in weights)).hexdigest()
            digests = exchange.gather(digest)
            other = next((k for k, one in enumerate(digests) if one != digests[0]), None)
            if other is not None:
                raise TrainingError(
                    f"the weights of ranks 0 and {other} differ",
                    expected=f"sha256 {digests[0][:16]}… on every rank",
                    found=f"sha256 {digests[other][:16]}…",
                    hint="--resume continues from the last checkpoint",
                )
        if exchange.rank:
            return
        self.run.folder.save(checkpoint, self.run.text, self.run.facts)


class NoPlots:
    """Rows of metrics without plots, for ranks that write nothing; see `RunPlots`."""

    def __init__(self, folder: TrainingFolder, rows: list[EpochRow]) -> None:
        self.rows, self.notes = rows, list[str]()

    def __enter__(self) -> NoPlots:
        return self

    def __exit__(self, *_: object) -> None:
        """Draw nothing."""

    def add(self, row: EpochRow) -> None:
        """Add the row of an epoch."""
        self.rows.append(row)


class RunPlots:
    """Plots of a run's metrics: TensorBoard events, and learning curves at the end.

    It is a context manager; leaving the context draws the curves. Both packages are optional.
    A failure of either becomes a note, and never stops a run.

    Parameters
    ----------
    folder
        Folder of the run.
    rows
        Rows of metrics of the epochs so far; `add` appends to them.
    """

    def __init__(self, folder: TrainingFolder, rows: list[EpochRow]) -> None:
        self.folder, self.rows = folder, rows
        self.notes: list[str] = []
        self._writer: Any = None
        self._writes_events = find_spec("tensorboard") is not None

    def __enter__(self) -> RunPlots:
        for row in self.rows:
            self._write(row)
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            with suppress(Exception):
                self._writer.close()
        if find_spec("matplotlib") is None:
            self.notes.append(NO_MATPLOTLIB)
        elif self.rows:
            try:
                write_atomically(self.folder.curves, draw_curves(self.rows), "the curves")
            except Exception as error:
                self.notes.append(f"no learning curves: {error}")

    def add(self, row: EpochRow) -> None:
        """Add the row of an epoch."""
        self.rows.append(row)
        self._write(row)

    def _write(self, row: EpochRow) -> None:
        if not self._writes_events:
            return
        try:
            if self._writer is None:
                self._writer = _events(self.folder)
            for name, value in row.items():
                if name not in ("epoch", "seconds"):
                    self._writer.add_scalar(name, value, int(row["epoch"]))
            self._writer.flush()
        except Exception as error:  # a failing plot never stops a run
            self.notes.append(f"TensorBoard events end before epoch {row['epoch']}: {error}")
            self._writes_events = False


def _events(folder: TrainingFolder) -> Any:
    """Open a new file of events; a resumed run writes its earlier rows again."""
    folder.events.mkdir(exist_ok=True)
    for path in folder.events.glob("events.out.tfevents.*"):
        path.unlink()
    return import_module("tensorboard.summary").Writer(str(folder.events))


def draw_curves(rows: Sequence[EpochRow]) -> bytes:
    """Draw each metric over the epochs, training and validation in one panel; return PNG."""
    figure_type = import_module("matplotlib.figure").Figure
    names = dict.fromkeys(name for row in rows for name in row if name not in NOT_PLOTTED)
    metrics = list(dict.fromkeys(name.removeprefix("val_") for name in names))
    figure = figure_type(figsize=(4.2 * len(metrics), 3.2), layout="constrained")
    for axes, metric in zip(
        figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True
    ):
        for name, label in ((metric, "training"), (f"val_{metric}", "validation")):
            points = [(row["epoch"], row[name]) for row in rows if name in row]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, marker=".", markersize=3)
        axes.set_title(metric)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()
