"""Agreement where operands are rounded: nobody is right, so everybody is held against float64.

Two programs that round to 16 bits in different places differ by roundings, and the difference does
not say whose mistake it is. So a peer computes the same in float64, and we may be as far from that
as rounding operands explains, or twice as far as the peer is. A peer that is much farther computes
something else: then there is nothing to compare with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lstm_cli.bench.agreement import FirstStep, agreement, relative_differences, worst
from lstm_cli.bench.results import Agreement


@dataclass(frozen=True)
class Rounding:
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


ROUNDED: Mapping[str, Rounding] = {
    "tf32": Rounding(3e-3, 5e-3, 0.02),
    "float16": Rounding(3e-3, 5e-3, 0.05),
    "bfloat16": Rounding(2e-2, 4e-2, 0.3),
}
"""By dtype. TF32 and float16 have 11 bits, bfloat16 has 8. With operands rounded and all else
exact, outputs of an LSTM of 64 to 1536 units move by at most 1.1e-3 in the former and 8e-3 in
bfloat16, whether there are 64 steps or 1024; PyTorch's own, stored in 16 bits, by 2.3e-3 and
1.2e-2."""

AS_FAR = 2.0
"""How many times as far from float64 as the peer we may be, if it is farther than `ROUNDED`."""


def rounded_agreement(
    ours: Any, theirs: Any, exact: Any, dtype: str, what: str = "outputs"
) -> Agreement:
    """Whether our numbers are as near to float64 as they should be: our difference from it."""
    rounding = ROUNDED[dtype]
    own = agreement(exact, ours, rounding.outputs, what).difference
    other = agreement(exact, theirs, rounding.outputs, what).difference
    return _judged(own, other, rounding.outputs, rounding.most, what)


def rounded_gradients(
    ours: FirstStep, theirs: FirstStep, exact: FirstStep, dtype: str
) -> list[Agreement]:
    """The same of a training step: of its loss, and of the gradient that is farthest off."""
    rounding = ROUNDED[dtype]
    own = relative_differences(exact.gradients, ours.gradients)
    other = relative_differences(exact.gradients, theirs.gradients)
    judged = [
        _judged(own[name], other[name], rounding.gradients, rounding.most, f"gradient of {name}")
        for name in exact.gradients
    ]
    return [rounded_agreement(ours.loss, theirs.loss, exact.loss, dtype, "loss"), worst(judged)]


def _judged(own: float, other: float, tolerance: float, most: float, what: str) -> Agreement:
    tolerance = max(tolerance, AS_FAR * other)
    if not other <= most:  # NaN is not either
        return Agreement(other, most, False, f"the peer's own {what} beside float64")
    found = Agreement(own, tolerance, own <= tolerance, what)
    return replace(found, what=f"{what} beside float64") if not found.ok else found
