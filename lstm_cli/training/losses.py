"""Losses, their derivatives, and the criterion of a batch.

Cross-entropies are computed from the logits, together with their softmax or sigmoid. The other
losses are computed from the outputs, for each number separately.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lstm_cli.cells.expression import (
    Expression,
    Value,
    clip,
    exp,
    log1p,
    select,
    sigmoid,
    symbol,
)
from lstm_cli.engines.protocols import ArrayOperations
from lstm_cli.engines.reference.arrays import NUMPY, log_softmax
from lstm_cli.engines.types import Array, Deferred, DenseSpec, EngineArray, Layers, RowsLoss
from lstm_cli.errors import DataError
from lstm_cli.training.targets import TargetFormat

LOSSES = ("cross_entropy", "binary_cross_entropy", "mse", "mae", "huber")
METRICS = ("loss", "accuracy", "auc", "mse", "mae")
"""Every metric that `lstm_cli.training.metrics` computes, in the order of tables."""

FINAL_ACTIVATIONS = {"cross_entropy": "softmax", "binary_cross_entropy": "sigmoid"}
"""Activation of the last layer that each classification loss needs."""


def loss_for(layers: Layers) -> str:
    """Default loss for the activation of the last layer."""
    last = layers[-1]
    name = last.activation_name if isinstance(last, DenseSpec) else ""
    return next((loss for loss, final in FINAL_ACTIVATIONS.items() if final == name), "mse")


@np.errstate(all="ignore")  # a value that is not finite shows in the loss
def cross_entropy(logits: Array, targets: Array) -> Array:
    """Cross-entropy of each row, (rows,), from logits (rows, F), with p = softmax(logits).

    The loss is -log p of the class for targets (rows,), and -sum t log p for targets (rows, F).
    """
    logs = log_softmax(logits)
    if targets.ndim == 1:
        return np.asarray(-logs[np.arange(len(targets)), targets])
    return np.asarray(-(targets * logs).sum(axis=-1))


@np.errstate(all="ignore")  # a value that is not finite shows in the loss
def binary_cross_entropy(logits: Value, targets: Value) -> Value:
    """Binary cross-entropy -t log p - (1 - t) log(1 - p), with p = sigmoid(logits).

    The computation does not overflow for large logits.
    """
    # max(a, 0) - a t + log(1 + exp(-|a|)) is the same sum, rearranged.
    at_least_0 = select(logits < 0.0, 0.0, logits)
    return at_least_0 - logits * targets + log1p(exp(-_absolute(logits)))


def mse(outputs: Value, targets: Value) -> Value:
    """Squared error (outputs - targets)², without a factor 1/2."""
    error = outputs - targets
    return error * error


def mae(outputs: Value, targets: Value) -> Value:
    """Absolute error."""
    return _absolute(outputs - targets)


def huber(outputs: Value, targets: Value) -> Value:
    """Huber loss with delta 1 (Huber 1964): error² / 2 for |error| <= 1, else |error| - 1/2."""
    error = _absolute(outputs - targets)
    return select(error <= 1.0, 0.5 * (error * error), error - 0.5)


def _absolute(x: Value) -> Value:
    return select(x < 0.0, -x, x)


def _sign(x: Value) -> Value:
    """-1 or 1; 0 and NaN unchanged."""
    return select(x < 0.0, -1.0, select(-x < 0.0, 1.0, x))


ELEMENTWISE: Mapping[str, Callable[[Value, Value], Value]] = {
    "binary_cross_entropy": binary_cross_entropy,
    "mse": mse,
    "mae": mae,
    "huber": huber,
}
"""Losses of single numbers, for arrays or expressions of outputs (or logits) and targets."""

DERIVATIVES: Mapping[str, Callable[[Value, Value], Value]] = {
    "binary_cross_entropy": lambda logits, targets: sigmoid(logits) - targets,
    "mse": lambda outputs, targets: 2.0 * (outputs - targets),
    "mae": lambda outputs, targets: _sign(outputs - targets),
    "huber": lambda outputs, targets: clip(outputs - targets, -1.0, 1.0),
}
"""Derivatives of the `ELEMENTWISE` losses for the output, or for the logit."""


# The loss of a batch

FUSED = tuple(FINAL_ACTIVATIONS)
"""Losses that are computed from the logits."""


@dataclass(frozen=True)
class MeanLoss:
    """Mean loss of the rows that count.

    Attributes
    ----------
    deferred
        Function that waits for `value`, and returns the number.
    weight
        Divisor of the mean: the number of rows, or the sum of the class weights of the rows.
    """

    deferred: Deferred
    weight: float

    @cached_property
    def value(self) -> float:
        """Mean over the rows that count. 0 if none does."""
        return self.deferred()


@dataclass(frozen=True)
class LossValue(MeanLoss):
    """Loss of a batch and its derivative.

    Attributes
    ----------
    gradient
        Derivative for the logits or outputs, in their layout. Rows that do not count are 0.
    """

    gradient: EngineArray


class Criterion:
    """The loss that training minimizes.

    Parameters
    ----------
    targets
        Name of the loss, and shape of the outputs.
    class_weights
        Weight of a row by its class. (F,) for cross_entropy; (2,), for 0 and for 1, for
        binary_cross_entropy of one unit. None: all weights are 1.
    label_smoothing
        For both cross-entropies: share of each target that is spread over all classes
        (Szegedy et al. 2016).
    """

    def __init__(
        self,
        targets: TargetFormat,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        self.targets = targets
        self.class_weights = None if class_weights is None else np.asarray(class_weights, float)
        self.label_smoothing = label_smoothing

    @property
    def fused(self) -> bool:
        """Whether the loss is a function of the logits, and `LossValue.gradient` is for logits."""
        return self.targets.loss in FUSED

    def __call__(
        self,
        outputs: EngineArray,
        logits: EngineArray | None,
        targets: Any,
        lengths: Array | None,
        engine: ArrayOperations = NUMPY,
        whole: float | None = None,
    ) -> LossValue:
        """Loss of a batch with outputs and logits (N, T, F) or (N, F).

        `TargetFormat.valid_rows` describes the targets.

        Parameters
        ----------
        whole
            Divisor of the mean whose derivative is returned, if these rows are a part of a batch:
            the sum of the `weight` of all parts. None: the weight of these rows.

        Raises
        ------
        DataError
            The targets do not fit, or a cross-entropy has no dense layer at the end.
        """
        values = logits if self.fused else outputs
        if values is None:
            raise DataError(f"{self.targets.loss} needs a dense layer at the end")
        rows, fitted = None, None if self.fused else engine.match_layout(targets, values)
        if fitted is None:
            shape = tuple(outputs.shape)
            rows, fitted = self.targets.valid_rows(engine.to_host(targets), shape, lengths)
        a = engine.gather_valid(values, rows)
        with np.errstate(all="ignore"):  # the caller reports values that are not finite
            if self.targets.loss == "cross_entropy":
                loss = engine.cross_entropy(a, fitted, self.class_weights, self.label_smoothing)
            else:
                loss = self._elementwise(a, engine.convert_like(fitted, a), engine)
        if whole is not None and whole != loss.weight:
            share, d = loss.weight / whole if whole else 0.0, loss.gradient
            engine.evaluate(_SCALED, {"d": d, "share": share}, {"d": d})
        gradient = engine.scatter_valid(loss.gradient, values, rows)
        return LossValue(lambda: loss.total() * loss.scale, loss.weight, gradient)

    def weight(self, targets: Array, lengths: Array | None, steps: int) -> float:
        """Divisor of the mean over a batch, from its targets alone.

        Parameters
        ----------
        steps
            Number of steps T of the batch.
        """
        N, F = len(targets), self.targets.features
        shape = (N, steps, F) if self.targets.per_step else (N, F)
        _, t = self.targets.valid_rows(targets, shape, lengths)
        weights = self.class_weights
        if weights is None or self.targets.loss not in FUSED:
            return float(len(t))
        if self.targets.loss == "cross_entropy":
            return float((weights[t] if t.ndim == 1 else t @ weights).sum())
        return float((weights[0] * (1.0 - t) + weights[1] * t).sum())

    def _elementwise(self, a: EngineArray, t: EngineArray, engine: ArrayOperations) -> RowsLoss:
        """Loss of rows (rows, F), for each number separately."""
        equation, values = self._equation, {"a": a, "t": t}
        total = float(a.shape[0])
        if equation.weight is not None:
            total = engine.total(equation.weight, values)
        scale = 1 / (total * a.shape[1]) if total else 0.0
        d = engine.empty_like(a)
        engine.evaluate({"d": equation.derivative}, {**values, "scale": scale}, {"d": d})
        (total_loss,) = engine.totals(equation.loss, [values])
        return RowsLoss(total_loss, d, total, scale)

    @cached_property
    def _equation(self) -> _Equation:
        """Loss of one number in symbols: a is the output or logit, t the target."""
        a, t, scale = symbol("a"), symbol("t"), symbol("scale")
        function = ELEMENTWISE[self.targets.loss]
        derivative = DERIVATIVES[self.targets.loss]
        if self.label_smoothing and self.targets.loss == "binary_cross_entropy":
            smooth = (1 - self.label_smoothing) * t + self.label_smoothing / 2
        else:
            smooth = t
        if self.class_weights is None or self.targets.loss != "binary_cross_entropy":
            return _Equation(function(a, smooth), derivative(a, smooth) * scale, None)
        # As for cross_entropy: each class's share counts with the weight of the class.
        zero, one = (float(weight) for weight in self.class_weights)
        weight = zero * (1.0 - t) + one * t
        counts = select(weight <= 0.0, 0.0, 1.0)
        negative, positive = zero * (1.0 - smooth) * counts, one * smooth * counts
        loss = negative * function(a, 0.0) + positive * function(a, 1.0)
        d = negative * derivative(a, 0.0) + positive * derivative(a, 1.0)
        return _Equation(loss, d * scale, weight)


_SCALED = {"d": symbol("d") * symbol("share")}


@dataclass(frozen=True)
class _Equation:
    """Expressions of the loss of one number.

    Attributes
    ----------
    loss, derivative
        Loss and derivative, multiplied by the weight. The derivative is also multiplied by the
        symbol ``scale``.
    weight
        Weight of the number. None: the weight is 1.
    """

    loss: Expression
    derivative: Expression
    weight: Expression | None
