"""The loop: epochs of batches, validation, the best weights, checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal

import numpy as np

from lstm_cli.engines.types import Array, State
from lstm_cli.errors import ConfigError, DataError, WeightsError
from lstm_cli.network.carry import StateCarry
from lstm_cli.training.forensics import explain
from lstm_cli.training.learner import Learner, Moment
from lstm_cli.training.metrics import METRICS, Metrics
from lstm_cli.training.progress import Checkpoint, Progress, prefixed
from lstm_cli.training.surroundings import LearningBatch, Reporter, Row, Source, Store, Validation

End = Literal["epochs", "patience", "interrupted"]
"""Why a run ended: all epochs done, none better for too long, or asked to stop."""


@dataclass(frozen=True)
class Plan:
    """How long, and what counts.

    Attributes
    ----------
    epochs
        At most so many.
    monitor
        The metric that picks the best epoch: ``val_loss``, ``accuracy``, ...
    patience
        End after so many epochs without a better one; None: never.
    checkpoint_every
        Seconds between two checkpoints within an epoch.
    """

    epochs: int
    monitor: str
    patience: int | None = None
    checkpoint_every: float = 10.0

    @property
    def larger_is_better(self) -> bool:
        """Of the monitored metric."""
        return self.monitor.removeprefix("val_") in ("accuracy", "auc")

    def ended(self, progress: Progress) -> End | None:
        """Whether the run has ended, and why."""
        if progress.epoch >= self.epochs:
            return "epochs"
        waited = progress.epoch - (progress.best_epoch or 0)
        if self.patience is not None and progress.best_epoch and waited >= self.patience:
            return "patience"
        return None

    def improves(self, value: float, best: float | None) -> bool:
        """Whether `value` is better than the best so far."""
        return best is None or (value > best if self.larger_is_better else value < best)


@dataclass(frozen=True)
class Surroundings:
    """What the loop works with; see `lstm_cli.training.surroundings`.

    `stop` is asked after every batch whether to save and end.
    """

    source: Source
    validation: Validation
    store: Store
    reporter: Reporter
    stop: Callable[[], bool] = lambda: False


class Loop:
    """One run. Killed at any moment and resumed, it ends in the same bits.

    An epoch ends in three writes: the best weights, its row of metrics, the checkpoint. What
    stands after the last checkpoint is done again, to the bit, so that it does not matter
    between which of them a process dies.

    Parameters
    ----------
    learner
        Network, loss and updates.
    plan, around
        How long, and with what.
    metrics
        Makes the empty metrics of an epoch.
    """

    def __init__(
        self, learner: Learner, plan: Plan, around: Surroundings, metrics: Callable[[], Metrics]
    ) -> None:
        self.learner, self.plan, self.around = learner, plan, around
        self.progress = Progress()
        self._new_metrics = metrics
        self._metrics = metrics()
        self._carry = StateCarry(learner.network.recurrent)
        self._carried: list[State] = []
        self._since = self._saved = perf_counter()
        self._is_kept = False

    def resume(self, checkpoint: Checkpoint) -> None:
        """Go on from a checkpoint.

        Raises
        ------
        WeightsError
            It is one of another network, optimiser or schedule.
        """
        try:
            self.learner.load_weights(checkpoint.part("weights"))
            self.learner.updates.load_state(checkpoint.part("updates"))
            self._metrics.load_state(checkpoint.part("metrics"))
        except KeyError as error:
            raise WeightsError(f"the checkpoint lacks {error.args[0]}") from None
        self.progress = replace(checkpoint.progress)
        self._is_kept = True
        self._load_carry(checkpoint.part("carry"))

    def run(self) -> End:
        """Train until all epochs are done, patience is at its end, or `stop` says so.

        Raises
        ------
        TrainingError, DataError
            The first value that is not finite. The last checkpoint stays.
        LstmCliError
            The run cannot be saved. The last checkpoint stays.
        """
        self._since = self._saved = perf_counter()
        while (end := self.plan.ended(self.progress)) is None:
            if self.around.stop() or not self._epoch():
                return "interrupted"
        return end

    def checkpoint(self) -> Checkpoint:
        """The run as it stands."""
        self._count_time()
        tensors = {
            **prefixed("weights", self.learner.tensors),
            **prefixed("updates", self.learner.updates.state_arrays(self.learner.network.engine)),
            **prefixed("metrics", self._metrics.state_arrays()),
            **prefixed("carry", self._carry_arrays()),
        }
        return Checkpoint(replace(self.progress), tensors)

    def save(self) -> None:
        """Write a checkpoint."""
        self.around.store.save(self.checkpoint())
        self._saved, self._is_kept = perf_counter(), True

    def _epoch(self) -> bool:
        """The rest of an epoch; False if it was interrupted, and saved."""
        progress = self.progress
        order = self.around.source.order(progress.epoch)
        for numbers in order[progress.batch :]:
            self._batch(numbers, len(order))
            if self.around.stop():
                self.save()
                return False
            if perf_counter() - self._saved >= self.plan.checkpoint_every:
                self.save()
        measured = self.around.validation(self.learner.weights)
        if measured is None:
            self.save()
            return False
        self._end_epoch(measured)
        return True

    def _batch(self, numbers: Array, batches: int) -> None:
        batch = self.around.source.read(numbers)
        if self.progress.batch == 0 or batch.file != self.progress.file:
            self._carry.reset()
        when = f"epoch {self.progress.epoch + 1}, batch {self.progress.batch + 1} of {batches}"
        report = self.learner.step(
            batch.x,
            batch.targets,
            batch.lengths,
            self._carry.start(None, batch.x.shape[0]),
            watch=lambda moment: self._watch(moment, batch, when),
        )
        if self._carry.active:
            self._carried = report.state
            self._carry.keep(report.state)
        self.progress.batch += 1
        self.progress.file = batch.file
        loss = self._metrics.mean("loss")
        self.around.reporter.stepped(self.progress, batches, loss)

    def _watch(self, moment: Moment, batch: LearningBatch, when: str) -> None:
        """Count a piece's metrics, unless something is not finite."""
        update, sound = moment.update, math.isfinite(moment.loss.value)
        if update is not None:
            self.progress.rate = update.rate
            sound = update.finite and self.learner.finite
        if not sound:
            raise explain(self.learner, moment, batch.numbers, self.around.source.places, when)
        piece, tape, raw = moment.piece, moment.tape, self.around.source.raw
        engine = self.learner.network.engine
        self._metrics.update(
            raw(tape.outputs), tape.logits, raw(piece.targets), tape.lengths, engine
        )

    def _end_epoch(self, measured: dict[str, float]) -> None:
        progress, store = self.progress, self.around.store
        row = self._row(measured)
        value = row[self.plan.monitor]
        improved = self.plan.improves(value, progress.best)
        if not self._is_kept:  # a best model beside no checkpoint could not be gone on with
            self.save()
        progress.epoch += 1
        progress.batch, progress.file, progress.seconds = 0, 0, 0.0
        if improved:
            progress.best, progress.best_epoch = value, progress.epoch
            store.keep_best(self.learner.weights)
        self.learner.updates.epoch_ended(value, self.plan.larger_is_better)
        self._metrics = self._new_metrics()
        self._carry.reset()
        self._carried = []
        store.append(row)
        self.save()
        self.around.reporter.epoch_ended(progress, row, improved)

    def _row(self, measured: dict[str, float]) -> Row:
        """The epoch's line of metrics."""
        self._count_time()
        own = self._metrics.result()
        row: Row = {"epoch": self.progress.epoch + 1, "updates": self.learner.updates.count}
        row |= {name: own[name] for name in METRICS if name in own}
        row |= {f"val_{name}": measured[name] for name in METRICS if name in measured}
        row |= {"rate": self.progress.rate, "seconds": round(self.progress.seconds, 3)}
        if not own:
            raise DataError(
                "nothing can be learned from the data: no step has a target that counts",
                where=self.around.source.places.sequence(0),
            )
        if self.plan.monitor not in row:
            two = "auc wants two classes, both in the data"
            raise ConfigError(
                f"train.monitor is {self.plan.monitor}, which the data do not give",
                expected=", ".join(name for name in row if name.rpartition("_")[2] in METRICS),
                hint=two if "auc" in self.plan.monitor else None,
            )
        return row

    def _count_time(self) -> None:
        now = perf_counter()
        self.progress.seconds += now - self._since
        self._since = now

    def _carry_arrays(self) -> dict[str, Array]:
        """What stateful layers carry, by layer and state."""
        found: dict[str, Array] = {}
        for spec, (h, c) in zip(self._carry.layers, self._carried, strict=False):
            if spec.stateful:
                found[f"{spec.index}/h"] = h
                if c is not None:
                    found[f"{spec.index}/c"] = c
        return found

    def _load_carry(self, arrays: dict[str, Array]) -> None:
        if not arrays:
            return
        nothing = np.zeros((0, 0, 0))
        self._carried = [
            (arrays.get(f"{spec.index}/h", nothing), arrays.get(f"{spec.index}/c"))
            for spec in self._carry.layers
        ]
        self._carry.keep(self._carried)
