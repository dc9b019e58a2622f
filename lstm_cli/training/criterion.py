"""The loss of a batch and its derivative: softmax and sigmoid fused with their loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from lstm_cli.cells.expression import Expression, select, symbol
from lstm_cli.engines.programs import NUMPY
from lstm_cli.engines.types import Array, Elementwise
from lstm_cli.errors import DataError
from lstm_cli.training import losses
from lstm_cli.training.targets import Targets, taken

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
        self,
        outputs: Array,
        logits: Array | None,
        targets: Array,
        lengths: Array | None,
        engine: Elementwise = NUMPY,
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
        a = np.ascontiguousarray(taken(values, rows, values.ndim - 1))
        with np.errstate(all="ignore"):  # what is not finite is found and named by the caller
            if self.targets.loss == "cross_entropy":
                found = self._cross_entropy(a, wanted)
            else:
                found = self._elementwise(a, np.ascontiguousarray(wanted, a.dtype), engine)
        gradient = found.gradient.astype(values.dtype, copy=False)
        if rows is not None:
            gradient = np.zeros(values.shape, values.dtype)
            gradient[rows] = found.gradient
        return replace(found, gradient=gradient.reshape(values.shape))

    def _elementwise(self, a: Array, t: Array, engine: Elementwise) -> LossValue:
        """A loss of each number apart, for rows (rows, F)."""
        equation, given = self._equation, {"a": a, "t": t}
        total = float(len(a))
        if equation.weight is not None:
            total = engine.total(equation.weight, given)
        scale = 1 / (total * a.shape[1]) if total else 0.0
        d = np.empty_like(a)
        engine.evaluate({"d": equation.derivative}, {**given, "scale": scale}, {"d": d})
        return LossValue(engine.total(equation.loss, given) * scale, d, total)

    @cached_property
    def _equation(self) -> _Equation:
        """The loss of one number in symbols: a is the output or logit, t the target."""
        a, t, scale = symbol("a"), symbol("t"), symbol("scale")
        function = losses.ELEMENTWISE[self.targets.loss]
        derivative = losses.DERIVATIVES[self.targets.loss]
        if self.label_smoothing and self.targets.loss == "binary_cross_entropy":
            smooth = (1 - self.label_smoothing) * t + self.label_smoothing / 2
        else:
            smooth = t
        if self.class_weights is None or self.targets.loss != "binary_cross_entropy":
            return _Equation(function(a, smooth), derivative(a, smooth) * scale, None)
        # As under cross_entropy: each class's share counts for its own weight.
        zero, one = (float(weight) for weight in self.class_weights)
        weight = zero * (1.0 - t) + one * t
        counts = select(weight <= 0.0, 0.0, 1.0)
        negative, positive = zero * (1.0 - smooth) * counts, one * smooth * counts
        loss = negative * function(a, 0.0) + positive * function(a, 1.0)
        d = negative * derivative(a, 0.0) + positive * derivative(a, 1.0)
        return _Equation(loss, d * scale, weight)

    def _cross_entropy(self, a: Array, wanted: Array) -> LossValue:
        if wanted.ndim == 1 and not self.label_smoothing:
            weights = np.ones(len(a)) if self.class_weights is None else self.class_weights[wanted]
            return _of_classes(a, wanted, weights)
        a, F = a.astype(np.float64), a.shape[1]
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
        total = float(weights.sum())
        scale = 1 / total if total else 0.0
        value = -float(((smooth * logs).sum(axis=1) * weights).sum()) * scale
        return LossValue(value, d * (weights * scale)[:, None], total)


@dataclass(frozen=True)
class _Equation:
    """The loss of one number.

    Attributes
    ----------
    loss, derivative
        Times its weight; the derivative also times the symbol ``scale``.
    weight
        None for 1.
    """

    loss: Expression
    derivative: Expression
    weight: Expression | None


def _of_classes(a: Array, classes: Array, weights: Array) -> LossValue:
    """Cross-entropy of logits (rows, F), each row's target one class."""
    total = float(weights.sum())
    scale = 1 / total if total else 0.0
    e = losses.turned(a)
    e -= e.max(axis=1, keepdims=True)
    own = np.arange(len(a)), classes
    margin = e[own].astype(np.float64)
    np.exp(e, out=e)
    sums = e.sum(axis=1, dtype=np.float64)
    value = float(((np.log(sums) - margin) * weights).sum()) * scale
    e *= (weights * scale / sums).astype(e.dtype)[:, None]
    e[own] -= (weights * scale).astype(e.dtype)
    return LossValue(value, np.ascontiguousarray(e), total)
