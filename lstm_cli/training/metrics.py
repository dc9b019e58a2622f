"""Metrics over a dataset, and the evaluation of a network on validation or test data.

Sums run over all batches, so that each valid row has the same weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from lstm_cli.cells.expression import Expression, symbol
from lstm_cli.engines.reference.arrays import NUMPY
from lstm_cli.engines.types import Array, ArrayOperations
from lstm_cli.errors import DataError, LstmCliError, TrainingError
from lstm_cli.network.network import Network
from lstm_cli.network.state import StateCarry
from lstm_cli.training import losses
from lstm_cli.training.interfaces import Exchange, Places, TrainingBatch
from lstm_cli.training.micro_batches import ONE_RANK, merged
from lstm_cli.training.nonfinite import first_nonfinite, location, nonfinite_data_error
from lstm_cli.training.targets import TargetFormat, select_rows
from lstm_cli.training.train_step import Chunk


def area_under_curve(scores: Array, positive: Array) -> float | None:
    """Area under the ROC curve, with ties counted half. None if a class is absent.

    It is the Mann-Whitney statistic: the probability that a positive scores above a negative.
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # the mean rank of each distinct score
    above = ranks[inverse][positive].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


@dataclass
class BatchMetrics:
    """Sums over the rows of one batch that count.

    Attributes
    ----------
    count
        Number of rows.
    sums
        Sum over rows by metric.
    scores, positive
        (rows,) score, and whether the row is positive, for the ROC curve. None: there is none.
    """

    count: int
    sums: dict[str, float] = field(default_factory=dict)
    scores: Array | None = None
    positive: Array | None = None

    def set_scores(self, scores: Array, positive: Array) -> None:
        """Set the scores of the ROC curve, in float32."""
        self.scores, self.positive = scores.astype(np.float32), positive


class Metrics:
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
        self.loss, self.features = loss, features
        self.targets = TargetFormat(loss, per_step, features, name)
        self.count = 0
        self._sums: dict[str, float] = {}
        self._scores: list[Array] = []
        self._positive: list[Array] = []

    def update(
        self,
        outputs: Array,
        logits: Array | None,
        targets: Array,
        lengths: Array | None,
        engine: ArrayOperations = NUMPY,
    ) -> None:
        """Add a batch; see `measure`."""
        self.add(self.measure(outputs, logits, targets, lengths, engine))

    def measure(
        self,
        outputs: Array,
        logits: Array | None,
        targets: Array,
        lengths: Array | None,
        engine: ArrayOperations = NUMPY,
    ) -> BatchMetrics:
        """Sums of a batch, for `add`.

        Parameters
        ----------
        outputs, logits
            (N, T, F) or (N, F).
        targets
            (N,) or (N, K), or with a step axis if the network returns sequences.
        lengths
            (N,) valid steps. Sequences of length 0 and padded steps do not count.
        engine
            Engine that computes the losses.

        Raises
        ------
        DataError
            The targets do not fit the outputs.
        """
        rows, fitted = self.targets.valid_rows(targets, outputs.shape, lengths)
        batch, axes = BatchMetrics(len(fitted)), outputs.ndim - 1
        with np.errstate(all="ignore"):  # values that are not finite show in the metrics
            if self.loss not in ("cross_entropy", "binary_cross_entropy"):
                names = {"loss": self.loss, "mse": "mse", "mae": "mae"}
                _add_elementwise(batch, names, select_rows(outputs, rows, axes), fitted, engine)
            elif logits is None:
                raise DataError(f"{self.loss} needs a dense layer at the end")
            elif self.loss == "cross_entropy":
                self._add_classes(batch, select_rows(logits, rows, axes), fitted)
            else:
                self._add_binary(batch, select_rows(logits, rows, axes), fitted, engine)
        return batch

    def add(self, batch: BatchMetrics) -> None:
        """Add the sums of a batch."""
        for name, total in batch.sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + total
        if batch.scores is not None and batch.positive is not None:
            self._scores.append(batch.scores)
            self._positive.append(batch.positive)
        self.count += batch.count

    def result(self) -> dict[str, float]:
        """Metrics by name. Empty if no row counted."""
        if not self.count:
            return {}
        means = {name: total / self.count for name, total in self._sums.items()}
        if self._scores:
            auc = area_under_curve(np.concatenate(self._scores), np.concatenate(self._positive))
            if auc is not None:
                means["auc"] = auc
        return means

    def mean(self, name: str) -> float | None:
        """Mean of one metric so far. None if no row counted, or for ``auc``."""
        return self._sums[name] / self.count if self.count and name in self._sums else None

    def state_arrays(self) -> dict[str, Array]:
        """State for `load_state`: counts, sums and the scores of the ROC curve."""
        arrays = {f"sum.{name}": np.asarray(total) for name, total in self._sums.items()}
        arrays["count"] = np.asarray(self.count, np.int64)
        if self._scores:
            arrays["scores"] = np.concatenate(self._scores)
            arrays["positive"] = np.concatenate(self._positive).astype(np.uint8)
        return arrays

    def load_state(self, arrays: Mapping[str, Array]) -> None:
        """Restore a result of `state_arrays`."""
        self.count = int(arrays["count"])
        sums = {name: value for name, value in arrays.items() if name.startswith("sum.")}
        self._sums = {name.removeprefix("sum."): float(value) for name, value in sums.items()}
        self._scores = [arrays["scores"]] if "scores" in arrays else []
        self._positive = [arrays["positive"].astype(bool)] if "scores" in arrays else []

    def _add_classes(self, batch: BatchMetrics, logits: Array, targets: Array) -> None:
        classes = targets if targets.ndim == 1 else targets.argmax(axis=-1)
        batch.sums["loss"] = float(losses.cross_entropy(logits.astype(np.float64), targets).sum())
        batch.sums["accuracy"] = float((logits.argmax(axis=-1) == classes).sum())
        if self.features == 2:
            batch.set_scores(logits[:, 1].astype(np.float64) - logits[:, 0], classes == 1)

    def _add_binary(
        self, batch: BatchMetrics, logits: Array, targets: Array, engine: ArrayOperations
    ) -> None:
        _add_elementwise(batch, {"loss": self.loss}, logits, targets, engine)
        right = (logits > 0) == (targets > 0.5)
        batch.sums["accuracy"] = float(right.sum()) / logits.shape[1]
        if self.features == 1:
            batch.set_scores(logits[:, 0], targets[:, 0] > 0.5)


def _add_elementwise(
    batch: BatchMetrics,
    names: Mapping[str, str],
    a: Array,
    targets: Array,
    engine: ArrayOperations,
) -> None:
    """Add losses of single numbers by metric name, for rows (rows, F)."""
    dtype = np.result_type(a.dtype, targets.dtype if targets.dtype.kind == "f" else a.dtype)
    values = {
        "a": np.ascontiguousarray(a, dtype),
        "t": np.ascontiguousarray(targets, dtype),
    }
    totals = {loss: engine.total(_equation(loss), values) for loss in set(names.values())}
    for name, loss in names.items():
        # Means are over rows; a row's features are averaged first.
        batch.sums[name] = totals[loss] / a.shape[1]


@lru_cache(maxsize=8)
def _equation(loss: str) -> Expression:
    return losses.ELEMENTWISE[loss](symbol("a"), symbol("t"))  # type: ignore[no-any-return]


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
    measured: dict[int, BatchMetrics] = {}
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
            result.outputs, result.logits, batch.targets, batch.lengths, network.engine
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
