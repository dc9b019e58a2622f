"""K"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lstm_cli.api.comparison.matching import SLACK, AgreementRule, agreement_rules, agrees, equality
from lstm_cli.engines.types import Array

MATRICES = ("weight_ih", "weight_hh")

LABELS_FOR_SLOTS = "TMVA's labels"

SLOTS_FOR_LABELS = "TMVA's slots"

OTHER_UNITS = "units"

OTHER_UNITS_AND_COLUMNS = "units and columns"

PAIR = ("bias_ih", "bias_hh")

BIAS_SPLITS: Mapping[str, tuple[str, Callable[[Array, Array], tuple[Array, Array]]]] = {
    "": ("as in A", lambda b, b_h: (b, b_h)),
    "summed into b": ("summed into b, and b_h is 0", lambda b, b_h: (b + b_h, 0 * b)),
    "summed into b_h": ("summed into b_h, and b is 0", lambda b, b_h: (0 * b, b + b_h)),
    "halved": ("summed, and b and b_h hold half each", lambda b, b_h: ((b + b_h) / 2,) * 2),
    "doubled": ("summed, and b and b_h both hold the sum", lambda b, b_h: (b + b_h,) * 2),
    "exchanged": ("exchanged: b is A's b_h, and b_h is A's b", lambda b, b_h: (b_h, b)),
}
"""How B may have A's two biases b and b_h: in words, and made of them."""

SHARED_OTHERWISE = "shared out"
"""Neither of the above, but the sums agree."""

KEEPS_SUM = {"", "summed into b", "summed into b_h", "halved", "exchanged", SHARED_OTHERWISE}


def tmva_slot_error(
    a: Mapping[str, Array], b: Mapping[str, Array], gates: int, tolerance: float
) -> str | None:
    """Whether B's W and U are A's as TMVA's elements are mixed up: read by label, or by slot."""
    if gates < 3 or any(name not in side for name in MATRICES for side in (a, b)):
        return None
    if len({side[name].shape for name in MATRICES for side in (a, b)}) > 1:
        return None
    ours, theirs = (
        [x for name in MATRICES for x in np.split(side[name], gates)] for side in (a, b)
    )
    # In the file stand all W, then all U; the labels say W and U of one gate, then the next's.
    by_label = [ours[2 * (k % gates) + k // gates] for k in range(2 * gates)]
    by_slot = [ours[(k % 2) * gates + k // 2] for k in range(2 * gates)]
    rule = equality(tolerance)
    for name, made in ((LABELS_FOR_SLOTS, by_label), (SLOTS_FOR_LABELS, by_slot)):
        if all(agrees(x, y, rule) for x, y in zip(made, theirs, strict=True)):
            return name
    return None


def permuted_units(
    a: Mapping[str, Array], b: Mapping[str, Array], gates: int, tolerance: float
) -> str | None:
    """Whether B is A with its units in another order, and perhaps W's columns in one too."""
    names = [name for name in a if name in b]
    if not {*MATRICES} <= set(names) or "weight_hr" in a or set(a) != set(b):
        return None
    bias = "bias" if "bias" in a else "bias_ih"
    H = a["weight_hh"].shape[-1]
    if bias not in a or len(a["weight_hh"]) != gates * H or gates * H == 0:
        return None
    if any(a[name].shape != b[name].shape or len(a[name]) % H for name in names):
        return None
    order = np.empty(H, np.int64)
    order[_sorted(b[bias], H)] = _sorted(a[bias], H)
    if (order == np.arange(H)).all():
        return None
    rule, W = equality(tolerance), "weight_ih"
    if not all(agrees(_units(name, a[name], order), b[name], rule) for name in names if name != W):
        return None
    moved = _units(W, a[W], order)
    if agrees(moved, b[W], rule):
        return OTHER_UNITS
    return OTHER_UNITS_AND_COLUMNS if permuted_columns(moved, b[W], tolerance) else None


def permuted_columns(a: Array, b: Array, tolerance: float) -> bool:
    """Whether B is A with its columns in another order."""
    if a.shape != b.shape or a.ndim != 2 or a.size == 0:
        return False
    one, other = (np.lexsort(matrix[:8]) for matrix in (a, b))
    return agrees(a[:, one], b[:, other], equality(tolerance))


def _sorted(bias: Array, H: int) -> Array:
    """Units sorted by their biases."""
    return np.lexsort(bias.reshape(-1, H))


def _units(name: str, tensor: Array, order: Array) -> Array:
    """A tensor with the units of every gate, and where it reads h its columns, in this order."""
    blocks = tensor.reshape(-1, len(order), *tensor.shape[1:])[:, order]
    blocks = blocks[:, :, order] if name == "weight_hh" else blocks
    return blocks.reshape(tensor.shape)


@dataclass(frozen=True)
class BiasSplit:
    """How B has A's two biases.

    Attributes
    ----------
    order
        The gates of A that stand in B's places.
    shares
        By gate of A: a key of `BIAS_SPLITS`, or `SHARED_OTHERWISE`.
    rule
        How the numbers agree.
    """

    order: tuple[str, ...]
    shares: Mapping[str, str]
    rule: AgreementRule

    @property
    def neutral(self) -> frozenset[str]:
        """Gates whose biases have the same sum as in A."""
        return frozenset(gate for gate, share in self.shares.items() if share in KEEPS_SUM)


def bias_split(
    a: Mapping[str, Array],
    b: Mapping[str, Array],
    letters: tuple[str, ...],
    orders: Sequence[tuple[str, ...]],
    tolerance: float,
) -> BiasSplit | None:
    """How B's two biases follow from A's, or None; `orders` of the gates are tried first."""
    pairs = [
        [np.split(side[name].astype(np.float64), len(letters)) for name in PAIR] for side in (a, b)
    ]
    (a_b, a_h), (b_b, b_h) = pairs
    every = list(dict.fromkeys([*orders, letters, *itertools.permutations(letters)]))
    for rule, order in itertools.product(agreement_rules(tolerance), every):
        shares = {}
        for p, gate in enumerate(order):
            q = letters.index(gate)
            share = _share((a_b[q], a_h[q]), (b_b[p], b_h[p]), rule)
            if share is None:
                break
            shares[gate] = share
        else:
            return BiasSplit(order, {gate: shares[gate] for gate in letters}, rule)
    return None


@np.errstate(all="ignore")
def _share(a: tuple[Array, Array], b: tuple[Array, Array], rule: AgreementRule) -> str | None:
    slack = SLACK * np.max(np.abs([*a, *b]), axis=0)
    for name, (_, made) in BIAS_SPLITS.items():
        if _near(made(*a), b, slack if name else 0 * slack, rule):
            return name
    if rule.name == "" and _near([a[0] + a[1]], [b[0] + b[1]], slack, rule):
        return SHARED_OTHERWISE
    return None


def _near(
    found: Iterable[Array], wanted: Iterable[Array], slack: Array, rule: AgreementRule
) -> bool:
    """Whether numbers agree under a rule, or as nearly as after an addition in float32."""
    return all(
        bool(((np.abs(x - y) <= slack) | rule.holds(x, y)).all())
        for x, y in zip(found, wanted, strict=True)
    )
