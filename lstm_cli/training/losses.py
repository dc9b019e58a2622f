"""Losses, summed over what is counted; cross-entropies from the logits.

Every loss takes rows of shape (rows, F) and gives the loss of each number or row, in
float64, so that means over any number of batches come out the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from lstm_cli.engines.types import Array, DenseSpec, Layers

LOSSES = ("cross_entropy", "binary_cross_entropy", "mse", "mae", "huber")

_BY_ACTIVATION = {"softmax": "cross_entropy", "sigmoid": "binary_cross_entropy"}


def loss_for(layers: Layers) -> str:
    """The loss that suits the last layer: what is meant where none is named."""
    last = layers[-1]
    name = last.activation_name if isinstance(last, DenseSpec) else ""
    return _BY_ACTIVATION.get(name, "mse")


@np.errstate(all="ignore")  # what is not finite shows in the loss
def log_softmax(logits: Array) -> Array:
    """Logarithm of the softmax over the last axis."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


@np.errstate(all="ignore")  # what is not finite shows in the loss
def cross_entropy(logits: Array, targets: Array) -> Array:
    """-log p of the class (targets (rows,)), or - sum t log p (targets (rows, F)): (rows,)."""
    logs = log_softmax(logits)
    if targets.ndim == 1:
        return np.asarray(-logs[np.arange(len(targets)), targets])
    return np.asarray(-(targets * logs).sum(axis=-1))


@np.errstate(all="ignore")  # what is not finite shows in the loss
def binary_cross_entropy(logits: Array, targets: Array) -> Array:
    """-t log p - (1 - t) log(1 - p) with p = sigmoid(logits), without overflow: (rows, F)."""
    # max(a, 0) - a t + log(1 + exp(-|a|)) is the same sum, rearranged.
    return np.asarray(np.maximum(logits, 0) - logits * targets + np.log1p(np.exp(-np.abs(logits))))


def mse(outputs: Array, targets: Array) -> Array:
    """Squared error, without a half: (rows, F)."""
    return np.asarray((outputs - targets) ** 2)


def mae(outputs: Array, targets: Array) -> Array:
    """Absolute error: (rows, F)."""
    return np.asarray(np.abs(outputs - targets))


def huber(outputs: Array, targets: Array) -> Array:
    """Huber 1964 with delta 1: half the square up to 1, then |error| - 1/2: (rows, F)."""
    error = np.abs(outputs - targets)
    return np.asarray(np.where(error <= 1, 0.5 * error**2, error - 0.5))


def sigmoid(a: Array) -> Array:
    """1 / (1 + exp(-a)), without overflow."""
    e = np.exp(-np.abs(a))
    return np.asarray(np.where(a >= 0, 1, e) / (1 + e))


ELEMENTWISE: Mapping[str, Callable[[Array, Array], Array]] = {
    "mse": mse,
    "mae": mae,
    "huber": huber,
}

DERIVATIVES: Mapping[str, Callable[[Array, Array], Array]] = {
    "mse": lambda outputs, targets: 2 * (outputs - targets),
    "mae": lambda outputs, targets: np.sign(outputs - targets),
    "huber": lambda outputs, targets: np.clip(outputs - targets, -1, 1),
}
"""Of each element's loss for the output."""
