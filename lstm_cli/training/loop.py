"""The training loop: epochs of batches, validation, best weights and checkpoints.

`StopRule.improves` says which epoch is the best; its weights go to a file of their own. The
checkpoint, from which a run is resumed, is written apart from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Literal

import numpy as np

from lstm_cli.engines.types import Array, State
from lstm_cli.errors import ConfigError, DataError, WeightsError
from lstm_cli.network.state import StateCarry
from lstm_cli.training.checkpoint import Checkpoint, Progress, with_prefix
from lstm_cli.training.interfaces import (
    EpochRow,
    Reporter,
    RunStore,
    TrainingBatch,
    TrainingSource,
    Validation,
)
from lstm_cli.training.losses import METRICS
from lstm_cli.training.metric_sums import MetricSums
from lstm_cli.training.metrics import Metrics
from lstm_cli.training.micro_batches import merged, rank_rows
from lstm_cli.training.nonfinite import nonfinite_error
from lstm_cli.training.train_step import Division, StepTrace, TrainStep

End = Literal["epochs", "patience", "interrupted"]
"""Reason why a run ended: all epochs done, patience exhausted, or a request to stop."""


@dataclass(frozen=True)
class StopRule:
    """Length of a run, and the metric that picks the best epoch.

    Attributes
    ----------
    epochs
        Largest number of epochs.
    monitor
        The metric that picks the best epoch: ``val_loss``, ``accuracy``, ...
    patience
        Epochs without improvement after which the run ends. None: no limit.
    checkpoint_every
        Seconds between checkpoints within an epoch.
    """

    epochs: int
    monitor: str
    patience: int | None = None
    checkpoint_every: float = 10.0

    @property
    def larger_is_better(self) -> bool:
        """Whether larger values of the monitored metric are better."""
        return self.monitor.removeprefix("val_") in ("accuracy", "auc")

    def end_reason(self, progress: Progress) -> End | None:
        """Reason why the run has ended. None: it has not."""
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
class LoopIO:
    """Objects that connect the loop with data, storage and user.

    The loop calls `stop` after every batch. If it returns True, the loop saves and ends.
    """

    source: TrainingSource
    validation: Validation
    store: RunStore
    reporter: Reporter
    stop: Callable[[], bool] = lambda: False


class Loop:
    """One training run. A run that is killed at any time and resumed ends with the same bits.

    An epoch ends in three writes: best weights, row of metrics, checkpoint. A resumed run repeats
    everything after the last checkpoint bit for bit. So the process may die between any two
    writes.

    Parameters
    ----------
    train_step
        Network, loss and updates.
    stop_rule
        Length of the run and monitored metric.
    io
        Data, validation, storage and reports.
    metrics
        Function that returns empty metrics for an epoch.
    """

    def __init__(
        self,
        train_step: TrainStep,
        stop_rule: StopRule,
        io: LoopIO,
        metrics: Callable[[], Metrics],
    ) -> None:
        self.train_step, self.stop_rule, self.io = train_step, stop_rule, io
        self.progress = Progress()
        self._new_metrics = metrics
        self._metrics = metrics()
        self._carry = StateCarry(train_step.network.recurrent)
        self._carried: list[State] = []
        self._timer_start = self._last_save = perf_counter()
        self._has_checkpoint = False

    def resume(self, checkpoint: Checkpoint) -> None:
        """Restore a checkpoint.

        Raises
        ------
        WeightsError
            The checkpoint belongs to another network, optimizer or schedule.
        """
        try:
            self.train_step.load_weights(checkpoint.part("weights"))
            self.train_step.updates.load_state(checkpoint.part("updates"))
            self._metrics.load_state(checkpoint.part("metrics"))
        except KeyError as error:
            raise WeightsError(f"the checkpoint lacks {error.args[0]}") from None
        self.progress = replace(checkpoint.progress)
        self._has_checkpoint = True
        self._load_carry(checkpoint.part("carry"))

    def run(self) -> End:
        """Train until all epochs are done, patience is exhausted, or `stop` returns True.

        Raises
        ------
        TrainingError, DataError
            A value is not finite. The last checkpoint remains.
        LstmCliError
            The run cannot be saved. The last checkpoint remains.
        """
        self._timer_start = self._last_save = perf_counter()
        while (end := self.stop_rule.end_reason(self.progress)) is None:
            if any(self.train_step.exchange.gather(self.io.stop())) or not self._epoch():
                return "interrupted"
        return end

    def checkpoint(self) -> Checkpoint:
        """The current state of the run."""
        self._count_time()
        tensors = {
            **with_prefix("weights", self.train_step.tensors),
            **with_prefix(
                "updates", self.train_step.updates.state_arrays(self.train_step.network.engine)
            ),
            **with_prefix("metrics", self._metrics.state_arrays()),
            **with_prefix("carry", self._carry_arrays()),
        }
        return Checkpoint(replace(self.progress), tensors)

    def save(self) -> None:
        """Write a checkpoint."""
        self.io.store.save(self.checkpoint())
        self._last_save, self._has_checkpoint = perf_counter(), True

    def _epoch(self) -> bool:
        """Run the rest of an epoch. False if it was interrupted and saved."""
        progress = self.progress
        order = self.io.source.order(progress.epoch)
        for numbers in order[progress.batch :]:
            self._batch(numbers, len(order))
            due = perf_counter() - self._last_save >= self.stop_rule.checkpoint_every
            # Rank 0 says when a checkpoint is due; a request to stop on any rank stops all.
            asked = self.train_step.exchange.gather((self.io.stop(), due))
            if any(stop for stop, _ in asked):
                self.save()
                return False
            if asked[0][1]:
                self.save()
        validation = self.io.validation(self.train_step.weights)
        if validation is None:
            self.save()
            return False
        self._end_epoch(validation)
        return True

    def _batch(self, numbers: Array, batches: int) -> None:
        own, batch = self._read(numbers)
        if self.progress.batch == 0 or own.file != self.progress.file:
            self._carry.reset()
        when = f"epoch {self.progress.epoch + 1}, batch {self.progress.batch + 1} of {batches}"
        report = self.train_step.step(
            own.x,
            own.targets,
            own.lengths,
            self._carry.start(None, len(numbers)),
            division=batch,
            watch=lambda trace: self._watch(trace, numbers, when),
        )
        if self._carry.active:
            self._carried = report.states()
            self._carry.store(self._carried)
        self.progress.batch += 1
        self.progress.file = own.file
        loss = self._metrics.mean("loss")
        self.io.reporter.on_batch_end(self.progress, batches, loss)

    def _read(self, numbers: Array) -> tuple[TrainingBatch, Division | None]:
        """The rows of a batch that this rank computes, and which these are."""
        exchange, count = self.train_step.exchange, len(numbers)
        if exchange.size == 1:
            return self.io.source.read(numbers), None
        rows = rank_rows(self.train_step.micro_batches, count, exchange)
        # A rank without rows reads one all the same, for the shapes of its arrays.
        batch = self.io.source.read(numbers[rows] if len(rows) else numbers[:1])
        steps = max(exchange.gather(int(batch.x.shape[1])))
        return batch, Division(rows, count, steps)

    def _watch(self, trace: StepTrace, numbers: Array, when: str) -> None:
        """Add an update's passes to the metrics. Raise if a value is not finite."""
        update, finite = trace.update, math.isfinite(trace.loss.value)
        exchange, raw = self.train_step.exchange, self.io.source.raw
        if update is not None:
            self.progress.rate = update.rate
            finite = update.finite and self.train_step.weights_finite
        if not finite:
            raise nonfinite_error(self.train_step, trace, numbers, self.io.source.places, when)
        measured: dict[int, MetricSums] = {}
        for one in trace.passes:
            tape, targets = one.tape, raw(one.chunk.targets)
            measured[one.chunk.micro_batch] = self._metrics.measure(
                raw(tape.outputs), tape.logits, targets, tape.lengths
            )
        for batch in merged(exchange.gather(measured)).values():
            self._metrics.add(batch)

    def _end_epoch(self, validation: dict[str, float]) -> None:
        progress, store = self.progress, self.io.store
        row = self._row(validation)
        value = row[self.stop_rule.monitor]
        improved = self.stop_rule.improves(value, progress.best)
        if not self._has_checkpoint:  # a best model without a checkpoint could not be resumed
            self.save()
        progress.epoch += 1
        progress.batch, progress.file, progress.seconds = 0, 0, 0.0
        if improved:
            progress.best, progress.best_epoch = value, progress.epoch
            store.save_best(self.train_step.weights)
        self.train_step.updates.on_epoch_end(value, self.stop_rule.larger_is_better)
        self._metrics = self._new_metrics()
        self._carry.reset()
        self._carried = []
        store.append(row)
        self.save()
        self.io.reporter.on_epoch_end(progress, row, improved)

    def _row(self, validation: dict[str, float]) -> EpochRow:
        """The row of metrics of the epoch."""
        self._count_time()
        training = self._metrics.result()
        row: EpochRow = {"epoch": self.progress.epoch + 1, "updates": self.train_step.updates.count}
        row |= {name: training[name] for name in METRICS if name in training}
        row |= {f"val_{name}": validation[name] for name in METRICS if name in validation}
        row |= {"rate": self.progress.rate, "seconds": round(self.progress.seconds, 3)}
        if not training:
            raise DataError(
                "nothing can be learned from the data: no step has a target that counts",
                where=self.io.source.places.sequence(0),
            )
        if self.stop_rule.monitor not in row:
            two = "auc needs two classes, both in the data"
            raise ConfigError(
                f"train.monitor is {self.stop_rule.monitor}, a metric that these data do not have",
                expected=", ".join(name for name in row if name.rpartition("_")[2] in METRICS),
                hint=two if "auc" in self.stop_rule.monitor else None,
            )
        return row

    def _count_time(self) -> None:
        now = perf_counter()
        self.progress.seconds += now - self._timer_start
        self._timer_start = now

    def _carry_arrays(self) -> dict[str, Array]:
        """Carried states of stateful layers, by layer and state."""
        arrays: dict[str, Array] = {}
        for spec, (h, c) in zip(self._carry.layers, self._carried, strict=False):
            if spec.stateful:
                arrays[f"{spec.index}/h"] = h
                if c is not None:
                    arrays[f"{spec.index}/c"] = c
        return arrays

    def _load_carry(self, arrays: dict[str, Array]) -> None:
        if not arrays:
            return
        nothing = np.zeros((0, 0, 0))
        self._carried = [
            (arrays.get(f"{spec.index}/h", nothing), arrays.get(f"{spec.index}/c"))
            for spec in self._carry.layers
        ]
        self._carry.store(self._carried)
