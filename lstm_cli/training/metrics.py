"""Metrics over a dataset, gathered batch by batch: each counted number weighs the same."""

from __future__ import annotations

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.errors import DataError
from lstm_cli.training import losses


def area_under_curve(scores: Array, positive: Array) -> float | None:
    """Area under the ROC curve, ties counted half; None if a class is absent.

    The Mann-Whitney statistic: the chance that a positive scores above a negative.
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        return None
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2  # the mean rank of each distinct score
    above = ranks[inverse][positive].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


class Metrics:
    """Loss and metrics of a network on targets.

    Parameters
    ----------
    loss
        One of `losses.LOSSES`.
    per_step
        Whether the network returns sequences.
    features
        Features F of its output.
    name
        The targets' name, for errors.
    """

    def __init__(self, loss: str, *, per_step: bool, features: int, name: str) -> None:
        self.loss, self.per_step, self.features, self.name = loss, per_step, features, name
        self.count = 0
        self._sums: dict[str, float] = {}
        self._scores: list[Array] = []
        self._positive: list[Array] = []

    def update(
        self, outputs: Array, logits: Array | None, targets: Array, lengths: Array | None
    ) -> None:
        """Add a batch.

        Parameters
        ----------
        outputs, logits
            (N, T, F) or (N, F).
        targets
            (N,) or (N, K); one for each step where the network returns sequences.
        lengths
            (N,) valid steps; sequences of length 0 and padded steps are not counted.

        Raises
        ------
        DataError
            Targets that do not fit the outputs.
        """
        targets = self._fitting(targets, outputs.shape)
        counted = self._counted(outputs.shape, lengths)
        rows = outputs[counted].astype(np.float64)
        wanted = targets[counted]
        if self.loss == "cross_entropy" and wanted.ndim == 1:
            wanted = self._classes(wanted)
        with np.errstate(all="ignore"):  # what is not finite shows in the figures
            if self.loss not in ("cross_entropy", "binary_cross_entropy"):
                self._regress(rows, wanted.astype(np.float64))
            elif logits is not None:
                self._classify(logits[counted].astype(np.float64), wanted)
            else:
                raise DataError(f"{self.loss} wants a dense layer at the end")

    def result(self) -> dict[str, float]:
        """Metrics by name; empty if nothing was counted."""
        if not self.count:
            return {}
        means = {name: total / self.count for name, total in self._sums.items()}
        if self._scores:
            auc = area_under_curve(np.concatenate(self._scores), np.concatenate(self._positive))
            if auc is not None:
                means["auc"] = auc
        return means

    def _counted(self, shape: tuple[int, ...], lengths: Array | None) -> Array:
        """Which rows count: (N, T) per step, else (N,)."""
        if lengths is None:
            return np.ones(shape[:-1], bool)
        if self.per_step:
            return np.asarray(np.arange(shape[1]) < lengths[:, None])
        return np.asarray(lengths > 0)

    def _fitting(self, targets: Array, shape: tuple[int, ...]) -> Array:
        """Targets as (N, [T]) classes or (N, [T], F) values."""
        rank = len(shape)
        if self.loss == "cross_entropy" and targets.ndim == rank and targets.shape[-1] == 1:
            targets = targets[..., 0]
        if self.loss == "cross_entropy" and targets.shape == shape[:-1]:
            return targets
        if targets.ndim == rank - 1 and self.features == 1:
            targets = targets[..., None]
        if targets.shape != shape:
            raise DataError(
                f"the targets {self.name} do not fit the network's outputs",
                expected=f"{shape}, the shape of the outputs"
                + (f", or classes {shape[:-1]}" if self.loss == "cross_entropy" else ""),
                found=f"{targets.shape} in a batch of {shape[0]}",
                hint=self._shape_hint(targets, shape),
            )
        return targets

    def _shape_hint(self, targets: Array, shape: tuple[int, ...]) -> str | None:
        if self.per_step and targets.ndim < len(shape):
            return (
                "one target a sequence wants `return_sequences: false` in the last recurrent layer"
            )
        if not self.per_step and targets.ndim > len(shape):
            return "one target a step wants `return_sequences: true` in the last recurrent layer"
        if targets.ndim == len(shape) - 1 and targets.dtype.kind in "iu":
            return "class targets want a softmax at the end and `train.loss: cross_entropy`"
        return None

    def _classes(self, targets: Array) -> Array:
        wrong = (targets < 0) | (targets >= self.features) | (targets != np.floor(targets))
        if wrong.any():
            raise DataError(
                f"{self.name} holds a class that the network does not have",
                expected=f"whole numbers 0 to {self.features - 1}: the last layer has "
                f"{self.features} units",
                found=f"{targets[wrong][0]}",
            )
        return targets.astype(np.int64)

    def _add(self, name: str, values: Array) -> None:
        # Means are over rows; a row's features are averaged first.
        self._sums[name] = self._sums.get(name, 0.0) + float(values.sum())

    def _classify(self, logits: Array, targets: Array) -> None:
        self.count += len(logits)
        if self.loss == "cross_entropy":
            classes = targets if targets.ndim == 1 else targets.argmax(axis=-1)
            self._add("loss", losses.cross_entropy(logits, targets))
            self._add("accuracy", logits.argmax(axis=-1) == classes)
            if self.features == 2:
                self._score(logits[:, 1] - logits[:, 0], classes == 1)
            return
        values = targets.astype(np.float64)
        if ((values < 0) | (values > 1)).any():
            raise DataError(
                f"{self.name} holds values that binary_cross_entropy does not take",
                expected="0 to 1",
                found=f"{values.min():g} to {values.max():g}",
            )
        self._add("loss", losses.binary_cross_entropy(logits, values).mean(axis=-1))
        self._add("accuracy", ((logits > 0) == (values > 0.5)).mean(axis=-1))
        if self.features == 1:
            self._score(logits[:, 0], values[:, 0] > 0.5)

    def _score(self, scores: Array, positive: Array) -> None:
        self._scores.append(scores.astype(np.float32))
        self._positive.append(positive)

    def _regress(self, outputs: Array, targets: Array) -> None:
        self.count += len(outputs)
        for name in ("loss", "mse", "mae"):
            function = losses.ELEMENTWISE[self.loss if name == "loss" else name]
            self._add(name, function(outputs, targets).mean(axis=-1))
