"""Cross-entropy of rows in NumPy: the loss and its derivative for the logits."""

from __future__ import annotations

import numpy as np

from lstm_cli.engines.arrays import Array, RowsLoss

COLUMNS = 32
"""Classes up to which logits are turned."""


def turned(logits: Array) -> Array:
    """A copy for sums over the last axis: with few classes, column by column in memory.

    NumPy is fast where the longer axis lies together.
    """
    return np.array(logits, order="F" if logits.shape[-1] <= COLUMNS else "C")


@np.errstate(all="ignore")  # what is not finite shows in the loss
def log_softmax(logits: Array) -> Array:
    """Logarithm of the softmax over the last axis."""
    shifted = turned(logits)
    shifted -= shifted.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


@np.errstate(all="ignore")  # what is not finite shows in the loss
def cross_entropy(
    a: Array, wanted: Array, class_weights: Array | None, label_smoothing: float
) -> RowsLoss:
    """The loss of logits (rows, F); see `lstm_cli.engines.arrays.Elementwise`."""
    if wanted.ndim == 1 and not label_smoothing:
        weights = np.ones(len(a)) if class_weights is None else class_weights[wanted]
        return _of_classes(a, wanted, weights)
    a, F = a.astype(np.float64), a.shape[1]
    t = wanted if wanted.ndim == 2 else np.eye(F)[wanted]
    weights = np.ones(len(a))
    if class_weights is not None:
        weights = t @ class_weights
    smooth = (1 - label_smoothing) * t + label_smoothing / F
    if class_weights is not None:
        # Each class's share counts for its own weight, as in PyTorch; the row's weight is
        # multiplied in later.
        smooth = smooth * class_weights / np.where(weights, weights, 1)[:, None]
    logs = log_softmax(a)
    d = np.exp(logs) * smooth.sum(axis=1, keepdims=True) - smooth
    total = float(weights.sum())
    scale = 1 / total if total else 0.0
    value = -float(((smooth * logs).sum(axis=1) * weights).sum())
    return RowsLoss(lambda: value, d * (weights * scale)[:, None], total, scale)


def _of_classes(a: Array, classes: Array, weights: Array) -> RowsLoss:
    """The same where each row's target is one class, and nothing is smoothed."""
    total = float(weights.sum())
    scale = 1 / total if total else 0.0
    e = turned(a)
    e -= e.max(axis=1, keepdims=True)
    own = np.arange(len(a)), classes
    margin = e[own].astype(np.float64)
    np.exp(e, out=e)
    sums = e.sum(axis=1, dtype=np.float64)
    value = float(((np.log(sums) - margin) * weights).sum())
    e *= (weights * scale / sums).astype(e.dtype)[:, None]
    e[own] -= (weights * scale).astype(e.dtype)
    return RowsLoss(lambda: value, np.ascontiguousarray(e), total, scale)
