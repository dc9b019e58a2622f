"""Agreement of a peer's results with this program's, checked before anything is timed.

Where operands are rounded to 16 bits, a difference does not show which side is wrong. So the peer
also computes the results in float64. This program may differ from those as much as rounding
explains, or twice as much as the peer. A peer that differs far more computes something else, and
cannot be compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.network.difference import largest_difference, scaled_difference
from lstm_cli.training.optimizers import Optimizer
from lstm_cli.workflows.bench.results import PeerAgreement

NOISE = 1e-3
"""Smallest scale of a tensor's gradients, as a share of the largest gradient of all tensors.

Tensors with smaller gradients are sums whose terms cancel, and the rest is rounding."""


@dataclass(frozen=True)
class FirstStep:
    """The first training step of a candidate.

    Attributes
    ----------
    loss
        Loss before the update.
    gradients
        Gradients of that loss by stored name.
    weights
        Weights after the update by stored name.
    """

    loss: float
    gradients: Mapping[str, Array]
    weights: Mapping[str, Array]


def output_agreement(
    expected: Any, actual: Any, tolerance: float, what: str = "outputs"
) -> PeerAgreement:
    """Compare element by element in float64: absolute up to 1, relative above."""
    if np.shape(expected) != np.shape(actual):
        return PeerAgreement(float("inf"), tolerance, False, what)
    expected, actual = np.atleast_1d(expected), np.atleast_1d(actual)
    return _within(largest_difference(expected, actual, scaled_difference).value, tolerance, what)


def gradient_agreement(
    expected: Mapping[str, Array], actual: Mapping[str, Array], tolerance: float
) -> PeerAgreement:
    """Compare gradients tensor by tensor, relative to the largest number of each tensor.

    A mean over many steps has small gradients, so any absolute difference would be small. A
    difference relative to each single number would count the rounding of its terms.
    """
    differences = relative_differences(expected, actual)
    return worst([_within(d, tolerance, f"gradient of {name}") for name, d in differences.items()])


def relative_differences(
    expected: Mapping[str, Array], actual: Mapping[str, Array]
) -> dict[str, float]:
    """Largest difference over largest number of each tensor; infinite if a side lacks it."""
    least = NOISE * max((_largest(g) for g in expected.values()), default=0.0)
    return {
        name: _relative(expected[name], actual[name], least)
        if name in expected
        and name in actual
        and np.shape(expected[name]) == np.shape(actual[name])
        else float("inf")
        for name in [*expected, *sorted(actual.keys() - expected.keys())]
    }


def update_agreement(
    before: Mapping[str, Array], step: FirstStep, optimizer: Optimizer, tolerance: float
) -> PeerAgreement:
    """Compare the weights after a step with the optimizer's equation in float64.

    The equation gets the step's own gradients. Adam's first step is nearly the rate times the
    gradient's sign: two gradients close to 0 that agree can move their weights apart by twice
    the rate. So the weights of two candidates are not compared with each other. Equal gradients
    and correct updates together mean equal steps.
    """
    agreements = []
    for name, w in before.items():
        what = f"{name} after a step"
        if name not in step.gradients or name not in step.weights:
            return PeerAgreement(float("inf"), tolerance, False, what)
        g = np.asarray(step.gradients[name], np.float64)
        slots = {slot: np.zeros_like(g) for slot in optimizer.slots}
        rate = optimizer.learning_rate
        with np.errstate(all="ignore"):  # non-finite values do not agree
            expected, _ = optimizer.update(np.asarray(w, np.float64), g, slots, rate, 1)
        agreements.append(output_agreement(expected, step.weights[name], tolerance, what))
    return worst(agreements)


def worst(agreements: Sequence[PeerAgreement]) -> PeerAgreement:
    """The first failed agreement; if all hold, the one with the largest difference."""
    failed = [a for a in agreements if not a.ok]
    return failed[0] if failed else max(agreements, key=lambda a: a.difference)


def _relative(expected: Array, actual: Array, least: float) -> float:
    a, b = np.asarray(expected, np.float64), np.asarray(actual, np.float64)
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
    """Largest differences from float64 that rounding the operands of products explains.

    Attributes
    ----------
    outputs
        Largest difference of outputs and the loss, absolute up to 1 and relative above.
    gradients
        Largest difference of gradients over the largest number of their tensor.
    most
        Largest difference of a peer; beyond it the peer computes something else.
    """

    outputs: float
    gradients: float
    most: float


ROUNDING_TOLERANCES: Mapping[str, RoundingTolerance] = {
    "tf32": RoundingTolerance(3e-3, 5e-3, 0.02),
    "float16": RoundingTolerance(3e-3, 5e-3, 0.05),
    "bfloat16": RoundingTolerance(2e-2, 4e-2, 0.3),
}
"""Tolerances of dtypes that round operands. TF32 and float16 have 11 bits, bfloat16 has 8.

LSTMs of 64 to 1536 units were run over 64 to 1024 steps with rounded operands. Outputs change by at
most 1.1e-3 in TF32 and float16, and by 8e-3 in bfloat16. PyTorch's outputs, which it stores in 16
bits, change by 2.3e-3 and 1.2e-2."""

PEER_FACTOR = 2.0
"""Largest ratio of this program's difference to the peer's, beyond the tolerance."""


def rounded_agreement(
    result: Any, peer_result: Any, exact: Any, dtype: str, what: str = "outputs"
) -> PeerAgreement:
    """Compare this program's result and a peer's with float64; the difference is this program's."""
    rounding = ROUNDING_TOLERANCES[dtype]
    difference = output_agreement(exact, result, rounding.outputs, what).difference
    peer_difference = output_agreement(exact, peer_result, rounding.outputs, what).difference
    return _against_float64(difference, peer_difference, rounding.outputs, rounding.most, what)


def rounded_gradients(
    step: FirstStep, peer_step: FirstStep, exact: FirstStep, dtype: str
) -> list[PeerAgreement]:
    """Compare training steps with float64: agreement of the loss, and of the worst gradient."""
    rounding = ROUNDING_TOLERANCES[dtype]
    differences = relative_differences(exact.gradients, step.gradients)
    peer_differences = relative_differences(exact.gradients, peer_step.gradients)
    gradients = [
        _against_float64(
            differences[name],
            peer_differences[name],
            rounding.gradients,
            rounding.most,
            f"gradient of {name}",
        )
        for name in exact.gradients
    ]
    loss = rounded_agreement(step.loss, peer_step.loss, exact.loss, dtype, "loss")
    return [loss, worst(gradients)]


def _against_float64(
    difference: float, peer_difference: float, tolerance: float, most: float, what: str
) -> PeerAgreement:
    if not peer_difference <= most:  # also a NaN
        what = f"the peer's {what} against float64"
        return PeerAgreement(peer_difference, most, False, what)
    tolerance = max(tolerance, PEER_FACTOR * peer_difference)
    if not difference <= tolerance:
        return PeerAgreement(difference, tolerance, False, f"{what} against float64")
    return PeerAgreement(difference, tolerance, True, what)
