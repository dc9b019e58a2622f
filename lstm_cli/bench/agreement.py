"""Whether a peer computes the same, decided before anything is timed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lstm_cli.bench.results import PeerAgreement
from lstm_cli.engines.types import Array
from lstm_cli.training.optimisers import Optimiser

NOISE = 1e-3
"""Gradients of a tensor are held against this share of the largest one of all, where they are
smaller throughout: such are sums whose terms cancel, and what is left of them is rounding."""


BLOCK = 1 << 24
"""Numbers that are compared at a time: outputs may be larger than what memory is left."""


@dataclass(frozen=True)
class FirstStep:
    """A contestant's first training step.

    Attributes
    ----------
    loss
        Before the update.
    gradients, weights
        By stored name: of that loss, and after the update.
    """

    loss: float
    gradients: Mapping[str, Array]
    weights: Mapping[str, Array]


def output_agreement(
    expected: Any, found: Any, tolerance: float, what: str = "outputs"
) -> PeerAgreement:
    """Compare element by element, in float64: absolute up to 1, relative above."""
    if np.shape(expected) != np.shape(found):
        return PeerAgreement(float("inf"), tolerance, False, what)
    expected, found = np.atleast_1d(expected), np.atleast_1d(found)
    largest = [0.0]
    rows = max(1, BLOCK * len(expected) // max(expected.size, 1))
    for first in range(0, len(expected), rows):
        part = slice(first, first + rows)
        a, b = np.asarray(expected[part], np.float64), np.asarray(found[part], np.float64)
        with np.errstate(invalid="ignore"):
            scaled = np.abs(a - b) / np.maximum(1.0, np.abs(a))
        largest.append(float(scaled.max(initial=0.0)))
    return _within(float(np.max(largest)), tolerance, what)  # which is NaN if one of them is


def gradient_agreement(
    expected: Mapping[str, Array], found: Mapping[str, Array], tolerance: float
) -> PeerAgreement:
    """Compare derivatives tensor by tensor, each beside the largest number it holds.

    A mean over many steps has small derivatives: beside 1 they would all look alike. Beside
    its own value a single one would look wrong for the rounding of its terms.
    """
    differences = relative_differences(expected, found)
    return worst(
        [
            _within(difference, tolerance, f"gradient of {name}")
            for name, difference in differences.items()
        ]
    )


def relative_differences(
    expected: Mapping[str, Array], found: Mapping[str, Array]
) -> dict[str, float]:
    """By tensor, the largest difference beside the largest number; infinite if one is missing."""
    least = NOISE * max((_largest(g) for g in expected.values()), default=0.0)
    return {
        name: _relative(expected[name], found[name], least)
        if name in expected and name in found and np.shape(expected[name]) == np.shape(found[name])
        else float("inf")
        for name in [*expected, *sorted(found.keys() - expected.keys())]
    }


def update_agreement(
    before: Mapping[str, Array], step: FirstStep, optimiser: Optimiser, tolerance: float
) -> PeerAgreement:
    """Compare the weights after a step with what the optimiser makes of the step's own gradients.

    Adam's first step is the rate times the gradient's sign, nearly: where a gradient is close
    to 0, two that agree can move their weights apart by twice the rate. So weights are not
    held against another's, but against the equation with the gradients that led to them, in
    float64; what is left is rounding. Together with equal gradients it says the same.
    """
    found = []
    for name, w in before.items():
        what = f"{name} after a step"
        if name not in step.gradients or name not in step.weights:
            return PeerAgreement(float("inf"), tolerance, False, what)
        g = np.asarray(step.gradients[name], np.float64)
        slots = {slot: np.zeros_like(g) for slot in optimiser.slots}
        rate = optimiser.learning_rate
        with np.errstate(all="ignore"):  # what is not finite does not agree
            expected, _ = optimiser.update(np.asarray(w, np.float64), g, slots, rate, 1)
        found.append(output_agreement(expected, step.weights[name], tolerance, what))
    return worst(found)


def worst(found: Sequence[PeerAgreement]) -> PeerAgreement:
    """The first that is no output_agreement; without one, the one with the largest difference."""
    wrong = [a for a in found if not a.ok]
    return wrong[0] if wrong else max(found, key=lambda a: a.difference)


def _relative(expected: Array, found: Array, least: float) -> float:
    """The largest difference of two tensors beside their largest number, at least `least`."""
    a, b = np.asarray(expected, np.float64), np.asarray(found, np.float64)
    with np.errstate(invalid="ignore"):
        difference = float(np.abs(a - b).max(initial=0.0))
    scale = max(_largest(a), _largest(b), least)
    return difference / scale if scale else difference


def _largest(array: Array) -> float:
    return float(np.abs(array).max(initial=0.0))


def _within(difference: float, tolerance: float, what: str) -> PeerAgreement:
    return PeerAgreement(difference, tolerance, difference <= tolerance, what)  # NaN is not within


@dataclass(frozen=True)
class RoundingTolerance:
    """What rounding the operands of products to a dtype explains.

    Attributes
    ----------
    outputs, gradients
        The largest difference from float64: of outputs and the loss, absolute up to 1 and relative
        above; of gradients, beside the largest number of their tensor.
    most
        A peer that is farther than so much of either computes something else.
    """

    outputs: float
    gradients: float
    most: float


ROUNDING_TOLERANCES: Mapping[str, RoundingTolerance] = {
    "tf32": RoundingTolerance(3e-3, 5e-3, 0.02),
    "float16": RoundingTolerance(3e-3, 5e-3, 0.05),
    "bfloat16": RoundingTolerance(2e-2, 4e-2, 0.3),
}
"""By dtype. TF32 and float16 have 11 bits, bfloat16 has 8. With operands rounded and all else
exact, outputs of an LSTM of 64 to 1536 units move by at most 1.1e-3 in the former and 8e-3 in
bfloat16, whether there are 64 steps or 1024; PyTorch's own, stored in 16 bits, by 2.3e-3 and
1.2e-2."""

AS_FAR = 2.0
"""How many times as far from float64 as the peer we may be, if it is farther than `ROUNDED`."""


def rounded_agreement(
    ours: Any, theirs: Any, exact: Any, dtype: str, what: str = "outputs"
) -> PeerAgreement:
    """Whether our numbers are as near to float64 as they should be: our difference from it."""
    rounding = ROUNDING_TOLERANCES[dtype]
    own = output_agreement(exact, ours, rounding.outputs, what).difference
    other = output_agreement(exact, theirs, rounding.outputs, what).difference
    return _judged(own, other, rounding.outputs, rounding.most, what)


def rounded_gradients(
    ours: FirstStep, theirs: FirstStep, exact: FirstStep, dtype: str
) -> list[PeerAgreement]:
    """The same of a training step: of its loss, and of the gradient that is farthest off."""
    rounding = ROUNDING_TOLERANCES[dtype]
    own = relative_differences(exact.gradients, ours.gradients)
    other = relative_differences(exact.gradients, theirs.gradients)
    judged = [
        _judged(own[name], other[name], rounding.gradients, rounding.most, f"gradient of {name}")
        for name in exact.gradients
    ]
    return [rounded_agreement(ours.loss, theirs.loss, exact.loss, dtype, "loss"), worst(judged)]


def _judged(own: float, other: float, tolerance: float, most: float, what: str) -> PeerAgreement:
    tolerance = max(tolerance, AS_FAR * other)
    if not other <= most:  # NaN is not either
        return PeerAgreement(other, most, False, f"the peer's own {what} beside float64")
    found = PeerAgreement(own, tolerance, own <= tolerance, what)
    return replace(found, what=f"{what} beside float64") if not found.ok else found
