"""Metrics over a dataset, and the evaluation of a network on validation or test data.

Sums run over all batches, so that each valid row has the same weight; see `metric_sums`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.errors import DataError, LstmCliError, TrainingError
from lstm_cli.network.network import Network
from lstm_cli.network.state import StateCarry
from lstm_cli.training import losses
from lstm_cli.training.interfaces import Exchange, Places, TrainingBatch
from lstm_cli.training.metric_sums import MetricSums
from lstm_cli.training.micro_batches import ONE_RANK, merged
from lstm_cli.training.nonfinite import first_nonfinite, location, nonfinite_data_error
from lstm_cli.training.targets import TargetFormat, select_rows
from lstm_cli.training.train_step import Chunk


class Metrics(MetricSums):
    """Loss and metrics of a network on targets.

    Parameters
    ----------
    loss
        One of `losses.LOSSES`.
    per_step
        Whether the network returns sequences.
    features
        Number of features F of the network's output.
    name
        Name of the targets, for error messages.
    """

    def __init__(self, loss: str, *, per_step: bool, features: int, name: str) -> None:
        super().__init__()
        self.loss, self.features = loss, features
        self.targets = TargetFormat(loss, per_step, features, name)

    def update(
        self, outputs: Array, logits: Array | None, targets: Array, lengths: Array | None
    ) -> None:
        """Add a batch; see `measure`."""
        self.add(self.measure(outputs, logits, targets, lengths))

    def measure(
        self, outputs: Array, logits: Array | None, targets: Array, lengths: Array | None
    ) -> MetricSums:
        """Sums of a batch, for `add`.

        The value of a row depends on no other row, and sums are exact. So metrics depend on no
        division into batches.

        Parameters
        ----------
        outputs, logits
            (N, T, F) or (N, F).
        targets
            (N,) or (N, K), or with a step axis if the network returns sequences.
        lengths
            (N,) valid steps. Sequences of length 0 and padded steps do not count.

        Raises
        ------
        DataError
            The targets do not fit the outputs.
        """
        rows, fitted = self.targets.valid_rows(targets, outputs.shape, lengths)
        batch, axes = MetricSums(), outputs.ndim - 1
        batch.count = len(fitted)
        with np.errstate(all="ignore"):  # values that are not finite show in the metrics
            if self.loss not in ("cross_entropy", "binary_cross_entropy"):
                values = select_rows(outputs, rows, axes)
                for loss in {self.loss, "mse", "mae"}:
                    batch.add_rows(loss, _row_losses(loss, values, fitted))
                names = {"loss": self.loss, "mse": "mse", "mae": "mae"}
                batch.sums = {name: batch.sums[loss] for name, loss in names.items()}
            elif logits is None:
                raise DataError(f"{self.loss} needs a dense layer at the end")
            elif self.loss == "cross_entropy":
                self._add_classes(batch, select_rows(logits, rows, axes), fitted)
            else:
                self._add_binary(batch, select_rows(logits, rows, axes), fitted)
        return batch

    def _add_classes(self, batch: MetricSums, logits: Array, targets: Array) -> None:
        classes = targets if targets.ndim == 1 else targets.argmax(axis=-1)
        batch.add_rows("loss", _row_cross_entropies(logits, targets))
        batch.add_rows("accuracy", (logits.argmax(axis=-1) == classes).astype(np.float64))
        if self.features == 2:
            batch.add_scores(logits[:, 1].astype(np.float64) - logits[:, 0], classes == 1)

    def _add_binary(self, batch: MetricSums, logits: Array, targets: Array) -> None:
        batch.add_rows("loss", _row_losses(self.loss, logits, targets))
        right = (logits > 0) == (targets > 0.5)
        batch.add_rows("accuracy", right.sum(axis=1) / logits.shape[1])
        if self.features == 1:
            batch.add_scores(logits[:, 0], targets[:, 0] > 0.5)


def _row_losses(loss: str, a: Array, targets: Array) -> Array:
    """(rows,) mean loss of the numbers (rows, F) of each row."""
    values = losses.ELEMENTWISE[loss](np.ascontiguousarray(a, np.float64), targets)
    return np.asarray(np.asarray(values).sum(axis=1) / a.shape[1])


def _row_cross_entropies(logits: Array, targets: Array) -> Array:
    """(rows,) cross-entropy of the softmax of logits (rows, F).

    `losses.cross_entropy` adds a row's exponentials in an order that depends on the number of
    rows.
    """
    logs = np.array(logits, np.float64, order="C")
    logs -= logs.max(axis=1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(axis=1, keepdims=True))
    if targets.ndim == 1:
        return np.asarray(-logs[np.arange(len(targets)), targets])
    return np.asarray(-(targets * logs).sum(axis=1))


# Evaluation


def evaluate(
    network: Network,
    batches: Iterable[tuple[int, TrainingBatch]],
    metrics: Metrics,
    places: Places,
    stop: Callable[[], bool] = lambda: False,
    exchange: Exchange = ONE_RANK,
) -> dict[str, float] | None:
    """Run a network over batches in the order of the data.

    Parameters
    ----------
    batches
        Batches of this rank with their numbers. All ranks together have every batch once.
    metrics
        Empty metrics, which the function fills.
    places
        Names of places in the data, for error messages.
    stop
        Function that is called after every batch. True ends the evaluation.
    exchange
        Exchange with the ranks that run the other batches.

    Returns
    -------
    Metrics by name, on every rank. None if `stop` returned True on any rank.

    Raises
    ------
    DataError
        An input or target is not finite.
    TrainingError
        An output is not finite.
    """
    carry, file, stopped = StateCarry(network.recurrent), None, False
    measured: dict[int, MetricSums] = {}
    for number, batch in batches:
        if batch.file != file:
            carry.reset()
            file = batch.file
        state = carry.start(None, len(batch.x))
        result = network.run(batch.x, batch.lengths, state)
        if not (np.isfinite(result.outputs).all() and np.isfinite(batch.targets).all()):
            error = _not_finite(network, batch, state, places)
            if error is not None:
                raise error
        measured[number] = metrics.measure(
            result.outputs, result.logits, batch.targets, batch.lengths
        )
        if carry.active:
            carry.store(result.state)
        if stopped := stop():
            break
    if any(exchange.gather(stopped)):
        return None
    for one in merged(exchange.gather(measured)).values():
        metrics.add(one)
    return metrics.result()


def _not_finite(
    network: Network, batch: TrainingBatch, state: Any, places: Places
) -> LstmCliError | None:
    """Error for a value in a batch that is not finite. None if all such values are padding."""
    chunk = Chunk(batch.x, batch.targets, batch.lengths)
    stopped = "training stopped in validation"
    data = nonfinite_data_error(chunk, network.returns_sequences, batch.numbers, places, stopped)
    if data is not None:
        return data
    value = first_nonfinite(network, batch.x, batch.lengths, state)
    if value is None:
        return None
    return TrainingError(
        "a value in validation is not finite",
        found=value.what,
        where=location(value, chunk, batch.numbers, places),
        hint="the weights have become too large: train slower, or limit train.clip_norm",
    )
