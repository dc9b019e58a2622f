"""The loss of a batch and its derivative: softmax and sigmoid fused with their loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.errors import DataError
from lstm_cli.training import losses
from lstm_cli.training.targets import Targets

FUSED = ("cross_entropy", "binary_cross_entropy")
"""Losses that are computed from the logits."""


@dataclass(frozen=True)
class LossValue:
    """A batch's loss.

    Attributes
    ----------
    value
        The mean over what counts; 0 if nothing does.
    gradient
        Its derivative for the logits or outputs, in their shape and dtype, 0 where nothing
        counts.
    weight
        What the mean was divided by: rows, or the sum of their class weights.
    """

    value: float
    gradient: Array
    weight: float


class Criterion:
    """What is minimised.

    Parameters
    ----------
    targets
        Loss and shape of the outputs.
    class_weights
        What a row of each class counts for: (F,) under cross_entropy; (2,), of 0 and of 1,
        under binary_cross_entropy of one unit. None: all alike.
    label_smoothing
        Under either: this share of each target is spread over all classes
        (Szegedy et al. 2016).
    """

    def __init__(
        self,
        targets: Targets,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        self.targets = targets
        self.class_weights = None if class_weights is None else np.asarray(class_weights, float)
        self.label_smoothing = label_smoothing

    @property
    def fused(self) -> bool:
        """Whether the derivative is for the logits."""
        return self.targets.loss in FUSED

    def __call__(
        self, outputs: Array, logits: Array | None, targets: Array, lengths: Array | None
    ) -> LossValue:
        """Loss of a batch: outputs and logits (N, T, F) or (N, F); see `Targets.counted`.

        Raises
        ------
        DataError
            Targets that do not fit, or a fused loss without a dense layer at the end.
        """
        values = logits if self.fused else outputs
        if values is None:
            raise DataError(f"{self.targets.loss} wants a dense layer at the end")
        rows, wanted = self.targets.counted(targets, outputs.shape, lengths)
        with np.errstate(all="ignore"):  # what is not finite is found and named by the caller
            per_row, d, weights = self._rows(values[rows].astype(np.float64), wanted)
            total = float(weights.sum())
            scale = 1 / total if total else 0.0
            gradient = np.zeros(values.shape, values.dtype)
            gradient[rows] = d * (weights * scale)[:, None]
            return LossValue(float((per_row * weights).sum() * scale), gradient, total)

    def _rows(self, a: Array, wanted: Array) -> tuple[Array, Array, Array]:
        """Loss (rows,), derivative (rows, F) and weight (rows,) of every row that counts."""
        if self.targets.loss == "cross_entropy":
            return self._cross_entropy(a, wanted)
        wanted = wanted.astype(np.float64)
        if self.targets.loss == "binary_cross_entropy":
            return self._binary_cross_entropy(a, wanted)
        value = losses.ELEMENTWISE[self.targets.loss](a, wanted)
        d = losses.DERIVATIVES[self.targets.loss](a, wanted)
        return value.mean(axis=1), d / a.shape[1], np.ones(len(a))

    def _binary_cross_entropy(self, a: Array, t: Array) -> tuple[Array, Array, Array]:
        smooth = (1 - self.label_smoothing) * t + self.label_smoothing / 2
        value = losses.binary_cross_entropy(a, smooth)
        d = losses.sigmoid(a) - smooth
        if self.class_weights is None:
            return value.mean(axis=1), d / a.shape[1], np.ones(len(a))
        # As under cross_entropy: each class's share counts for its own weight.
        zero, one = self.class_weights
        weights = (zero * (1 - t) + one * t)[:, 0]
        scale = 1 / np.where(weights, weights, 1)[:, None]
        negative, positive = zero * (1 - smooth) * scale, one * smooth * scale
        value = negative * losses.binary_cross_entropy(a, np.zeros_like(a))
        value += positive * losses.binary_cross_entropy(a, np.ones_like(a))
        p = losses.sigmoid(a)
        return value[:, 0], negative * p - positive * (1 - p), weights

    def _cross_entropy(self, a: Array, wanted: Array) -> tuple[Array, Array, Array]:
        F = a.shape[1]
        t = wanted if wanted.ndim == 2 else np.eye(F)[wanted]
        weights = np.ones(len(a))
        if self.class_weights is not None:
            weights = t @ self.class_weights
        smooth = (1 - self.label_smoothing) * t + self.label_smoothing / F
        if self.class_weights is not None:
            # Each class's share counts for its own weight, as in PyTorch; the row's weight is
            # multiplied in later.
            smooth = smooth * self.class_weights / np.where(weights, weights, 1)[:, None]
        logs = losses.log_softmax(a)
        d = np.exp(logs) * smooth.sum(axis=1, keepdims=True) - smooth
        return -(smooth * logs).sum(axis=1), d, weights
