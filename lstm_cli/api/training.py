"""A training run: a task, kept in a folder, begun or gone on with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lstm_cli.api.assembly import assemble
from lstm_cli.api.fit import check_data
from lstm_cli.api.learning_data import changed
from lstm_cli.api.observers import Observers
from lstm_cli.api.resuming import check_same_config, check_same_numbers, resolved_for
from lstm_cli.api.run_folder import RunFolder, Stored
from lstm_cli.api.task import Task
from lstm_cli.config import Config
from lstm_cli.data import DataOptions, Dataset, open_data
from lstm_cli.engines.types import Array, Engine
from lstm_cli.errors import DataError, LstmCliError, Problem, TrainingError, quote
from lstm_cli.formats import native
from lstm_cli.formats.interchange import Imported, ReadOptions
from lstm_cli.training.loop import End, Loop, Surroundings
from lstm_cli.training.progress import Checkpoint, Progress
from lstm_cli.training.surroundings import Reporter, Row


@dataclass(frozen=True)
class TrainReport:
    """What a run came to.

    Attributes
    ----------
    end
        Why it ended: ``epochs``, ``patience`` or ``interrupted``.
    epoch
        Epochs ended.
    monitor, best, best_epoch
        The metric that picks the best epoch, its best value, and that epoch; None before any.
    metrics
        The best epoch's row.
    rows
        All epochs'.
    files
        What the folder holds, by name.
    notes
        What a user should know.
    """

    end: End
    epoch: int
    monitor: str
    best: float | None
    best_epoch: int | None
    metrics: Row
    rows: tuple[Row, ...]
    files: Mapping[str, str]
    notes: tuple[str, ...]


@contextmanager
def open_validation(config: Config, options: DataOptions) -> Iterator[Dataset | None]:
    """The dataset that ``train.validation`` names; None if it names none."""
    if not isinstance(config.validation, str):
        yield None
        return
    with open_data([config.validation], options) as data:
        # Inputs in the place of targets are compared with the training data's later.
        check_data(config, data, learning=False)
        yield data


class TrainingRun:
    """A run, ready to begin or to go on.

    Parameters
    ----------
    folder
        Where it is kept.
    config
        As it was given.
    data, validation
        What is learned from, and what is measured on; None: a share of `data`, or nothing.
    engine
        What computes.
    weights
        What to begin from; None: drawn. The config's own are what `run` computes with.
    reading
        How to read the file that `weights` names.
    checkpoint_every
        Seconds between two checkpoints within an epoch.

    Raises
    ------
    ConfigError, DataError, WeightsError
        Something does not fit, or is not as in the run that is to go on.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: Config,
        data: Dataset,
        validation: Dataset | None,
        engine: Engine,
        *,
        weights: str | Path | Imported | None = None,
        reading: ReadOptions | None = None,
        checkpoint_every: float = 10.0,
    ) -> None:
        self.folder, self._stored = folder, folder.held
        self.notes: list[str] = []
        resolved = resolved_for(config, folder.path)
        self.text = self.model_text = resolved.to_yaml()
        if data.windowed and data.targets_key is not None:
            # Windows of data without targets would be compared with the inputs themselves.
            named = resolved.data.model_copy(update={"targets": data.targets_key})
            self.model_text = replace(resolved, data=named).to_yaml()
        if config.weights is not None:
            # They are what `run` computes with, very likely what this section `train` gave.
            if weights is None and self._stored is None:
                own = quote(str(config.weights))
                self.notes.append(
                    f"training begins from new weights; --weights {own} begins from the config's"
                )
            config = replace(config, weights=None)
        source = weights
        if self._stored is not None:
            self._check_same(self._stored, config, engine, source)
        begin = self._stored.checkpoint.part("weights") if self._stored is not None else source
        self.model = assemble(config, engine, begin, reading)
        self.notes += self.model.notes
        trained = self._stored is None and source is not None
        self.task = Task(self.model, resolved, data, validation, trained=trained)
        self.notes += [note for side in self.task.sides.values() for note in side.notes]
        self.notes += self.task.notes
        if self._stored is None:
            self.task.check_classes()
            self.notes += self.task.lost()
        self.facts = self._facts(engine)
        self.plan = self.task.plan(checkpoint_every)

    @property
    def epochs_before(self) -> int | None:
        """Epochs that ended before the run was resumed; None if it begins."""
        return None if self._stored is None else self._stored.checkpoint.progress.epoch

    @property
    def ended(self) -> End | None:
        """Whether the run that the folder holds has ended already, and why."""
        return None if self._stored is None else self.plan.ended(self._stored.checkpoint.progress)

    def run(self, reporter: Reporter, stop: Callable[[], bool]) -> TrainReport:
        """Train, from the start or from the checkpoint. Nothing is written before the first one.

        Raises
        ------
        TrainingError, DataError
            A value that is not finite.
        LstmCliError
            The run cannot be saved.
        """
        task = self.task
        with Observers(self.folder, self._rows()) as observers, task.reading() as source:
            store = FolderStore(self, observers)
            around = Surroundings(source, task.validate(stop), store, reporter, stop)
            loop = Loop(task.learner, self.plan, around, task.metrics)
            if self._stored is not None:
                loop.resume(self._stored.checkpoint)
                self.folder.write_config(self.text)
            try:
                end = loop.run()
            except (TrainingError, DataError) as error:
                raise self._with_checkpoint(error) from None
        self.notes += observers.notes
        return self._report(end, loop.progress, observers.rows)

    def report(self) -> TrainReport:
        """What the run that the folder holds has come to so far."""
        progress = Progress() if self._stored is None else self._stored.checkpoint.progress
        return self._report(self.ended or "interrupted", progress, self._rows())

    def _check_same(
        self,
        stored: Stored,
        config: Config,
        engine: Engine,
        weights: str | Path | Imported | None,
    ) -> None:
        """Raise unless the run can go on in the same bits; note where it can but will not."""
        path = self.folder.path
        self.notes += check_same_config(stored, config, self.text, path)
        check_same_numbers(stored, path, dtype=engine.dtype, weights=weights)
        for name, now in _machine(engine).items():
            was = stored.facts.get(name)
            if was != now:
                self.notes.append(
                    f"the run began with {name} {was} and goes on with {now}: its last digits "
                    "will differ from those of an undisturbed run"
                )

    def _facts(self, engine: Engine) -> dict[str, Any]:
        """What the checkpoint keeps to tell whether all is as it was.

        Raises
        ------
        DataError
            The data are not those that the run began with.
        """
        found = self.task.fingerprints
        begun: dict[str, Any] = {"weights_sha256": self.model.weights_sha256}
        if self._stored is not None:
            begun = dict(self._stored.facts)
            wrong = [
                changed(begun.get(name) or {}, found[name], side)
                for name, side in self.task.sides.items()
            ]
            if any(wrong):
                raise DataError([problem for problem in wrong if problem is not None])
        return begun | found | _machine(engine) | {"dtype": engine.dtype}

    def _rows(self) -> list[Row]:
        """The rows of metrics up to the checkpoint."""
        epochs = 0 if self._stored is None else self._stored.checkpoint.progress.epoch
        rows = self.folder.rows(epochs)
        if len(rows) < epochs:
            self.notes.append(f"{self.folder.metrics} lacks some of the {epochs} epochs so far")
        return rows

    def _with_checkpoint(self, error: LstmCliError) -> LstmCliError:
        """The same error, with where the run can still be found, if it was saved."""
        if not os.path.exists(self.folder.checkpoint):
            return error
        first, *others = error.problems
        where = (*first.where, f"the last good checkpoint is {self.folder.checkpoint}")
        told = Problem(first.what, first.expected, first.found, where, first.hint)
        return type(error)([told, *others])

    def _report(self, end: End, progress: Progress, rows: list[Row]) -> TrainReport:
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
    """What the last digits of a result may depend on."""
    return {"engine": engine.name, "device": engine.device, "threads": engine.threads}


class FolderStore:
    """The loop's store: a folder, and those who look at every epoch."""

    def __init__(self, run: TrainingRun, observers: Observers) -> None:
        self.run, self.observers = run, observers

    def keep_best(self, weights: Mapping[str, Array]) -> None:
        """Write the weights as a model that runs alone, on raw data."""
        native.write(self.run.folder.model, self.run.task.written(weights), self.run.model_text)

    def append(self, row: Row) -> None:
        """Write the epoch's metrics, and show them."""
        self.run.folder.append(row)
        self.observers.epoch_ended(row)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint."""
        self.run.folder.save(checkpoint, self.run.text, self.run.facts)
