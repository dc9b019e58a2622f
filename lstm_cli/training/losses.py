"""Losses of each number or row of what is counted; cross-entropies from the logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from lstm_cli.cells.expression import Value, clip, exp, log1p, select, sigmoid
from lstm_cli.engines.reference.arrays import log_softmax
from lstm_cli.engines.types import Array, DenseSpec, Layers

LOSSES = ("cross_entropy", "binary_cross_entropy", "mse", "mae", "huber")

_BY_ACTIVATION = {"softmax": "cross_entropy", "sigmoid": "binary_cross_entropy"}


def loss_for(layers: Layers) -> str:
    """The loss that suits the last layer: what is meant where none is named."""
    last = layers[-1]
    name = last.activation_name if isinstance(last, DenseSpec) else ""
    return _BY_ACTIVATION.get(name, "mse")


@np.errstate(all="ignore")  # what is not finite shows in the loss
def cross_entropy(logits: Array, targets: Array) -> Array:
    """-log p of the class (targets (rows,)), or - sum t log p (targets (rows, F)): (rows,)."""
    logs = log_softmax(logits)
    if targets.ndim == 1:
        return np.asarray(-logs[np.arange(len(targets)), targets])
    return np.asarray(-(targets * logs).sum(axis=-1))


@np.errstate(all="ignore")  # what is not finite shows in the loss
def binary_cross_entropy(logits: Value, targets: Value) -> Value:
    """-t log p - (1 - t) log(1 - p) with p = sigmoid(logits), without overflow."""
    # max(a, 0) - a t + log(1 + exp(-|a|)) is the same sum, rearranged.
    at_least_0 = select(logits < 0.0, 0.0, logits)
    return at_least_0 - logits * targets + log1p(exp(-_absolute(logits)))


def mse(outputs: Value, targets: Value) -> Value:
    """Squared error, without a half."""
    error = outputs - targets
    return error * error


def mae(outputs: Value, targets: Value) -> Value:
    """Absolute error."""
    return _absolute(outputs - targets)


def huber(outputs: Value, targets: Value) -> Value:
    """Huber 1964 with delta 1: half the square up to 1, then |error| - 1/2."""
    error = _absolute(outputs - targets)
    return select(error <= 1.0, 0.5 * (error * error), error - 0.5)


def _absolute(x: Value) -> Value:
    return select(x < 0.0, -x, x)


def _sign(x: Value) -> Value:
    """-1 or 1; of 0 and NaN the number itself."""
    return select(x < 0.0, -1.0, select(-x < 0.0, 1.0, x))


ELEMENTWISE: Mapping[str, Callable[[Value, Value], Value]] = {
    "binary_cross_entropy": binary_cross_entropy,
    "mse": mse,
    "mae": mae,
    "huber": huber,
}
"""Losses of each number apart, of arrays or expressions."""

DERIVATIVES: Mapping[str, Callable[[Value, Value], Value]] = {
    "binary_cross_entropy": lambda logits, targets: sigmoid(logits) - targets,
    "mse": lambda outputs, targets: 2.0 * (outputs - targets),
    "mae": lambda outputs, targets: _sign(outputs - targets),
    "huber": lambda outputs, targets: clip(outputs - targets, -1.0, 1.0),
}
"""Of each number's loss for the output, or for the logit."""
