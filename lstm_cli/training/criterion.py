"""The loss of a batch and its derivative: softmax and sigmoid fused with their loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lstm_cli.cells.expression import Expression, select, symbol
from lstm_cli.engines.reference.arrays import NUMPY
from lstm_cli.engines.types import Array, ArrayOperations, Deferred, EngineArray, RowsLoss
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
    late
        Gives `value`, once it is computed.
    gradient
        Its derivative for the logits or outputs, in their form, 0 where nothing counts.
    weight
        What the mean was divided by: rows, or the sum of their class weights.
    """

    late: Deferred
    gradient: EngineArray
    weight: float

    @cached_property
    def value(self) -> float:
        """The mean over what counts; 0 if nothing does."""
        return self.late()


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
        outputs: EngineArray,
        logits: EngineArray | None,
        targets: Any,
        lengths: Array | None,
        engine: ArrayOperations = NUMPY,
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
        rows, wanted = None, None if self.fused else engine.match_layout(targets, values)
        if wanted is None:
            shape = tuple(outputs.shape)
            rows, wanted = self.targets.counted(engine.to_host(targets), shape, lengths)
        a = engine.gather_valid(values, rows)
        with np.errstate(all="ignore"):  # what is not finite is found and named by the caller
            if self.targets.loss == "cross_entropy":
                found = engine.cross_entropy(a, wanted, self.class_weights, self.label_smoothing)
            else:
                found = self._elementwise(a, engine.convert_like(wanted, a), engine)
        gradient = engine.scatter_valid(found.gradient, values, rows)
        return LossValue(lambda: found.total() * found.scale, gradient, found.weight)

    def _elementwise(self, a: EngineArray, t: EngineArray, engine: ArrayOperations) -> RowsLoss:
        """A loss of each number apart, for rows (rows, F)."""
        equation, given = self._equation, {"a": a, "t": t}
        total = float(a.shape[0])
        if equation.weight is not None:
            total = engine.total(equation.weight, given)
        scale = 1 / (total * a.shape[1]) if total else 0.0
        d = engine.empty_like(a)
        engine.evaluate({"d": equation.derivative}, {**given, "scale": scale}, {"d": d})
        (value,) = engine.totals(equation.loss, [given])
        return RowsLoss(value, d, total, scale)

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
