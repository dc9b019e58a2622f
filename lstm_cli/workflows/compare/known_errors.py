"""Known errors of conversions: TMVA's element order, permuted units, split biases of a gru.

Each function tests whether one direction of B is the same direction of A under one error.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.workflows.compare.matching import (
    ADDITION_SLACK,
    AgreementRule,
    agreement_rules,
    agrees,
    equality,
)

MATRICES = ("weight_ih", "weight_hh")
LABELS_FOR_SLOTS = "TMVA's labels"
SLOTS_FOR_LABELS = "TMVA's slots"
PERMUTED_UNITS = "units"
PERMUTED_UNITS_AND_COLUMNS = "units and columns"

BIAS_PAIR = ("bias_ih", "bias_hh")

BIAS_SPLITS: Mapping[str, tuple[str, Callable[[Array, Array], tuple[Array, Array]]]] = {
    "": ("as in A", lambda b, b_h: (b, b_h)),
    "summed into b": ("summed into b, and b_h is 0", lambda b, b_h: (b + b_h, 0 * b)),
    "summed into b_h": ("summed into b_h, and b is 0", lambda b, b_h: (0 * b, b + b_h)),
    "halved": ("summed, and b and b_h hold half each", lambda b, b_h: ((b + b_h) / 2,) * 2),
    "doubled": ("summed, and b and b_h both hold the sum", lambda b, b_h: (b + b_h,) * 2),
    "exchanged": ("exchanged: b is A's b_h, and b_h is A's b", lambda b, b_h: (b_h, b)),
}
"""Phrase, and the function from A's two biases b and b_h to B's, by name of the split."""
OTHER_SPLIT = "shared out"
"""Name of any other split that keeps the sum."""
SPLITS_THAT_KEEP_SUM = {"", "summed into b", "summed into b_h", "halved", "exchanged", OTHER_SPLIT}


def tmva_slot_error(
    a: Mapping[str, Array], b: Mapping[str, Array], gates: int, tolerance: float
) -> str | None:
    """Return the error if B's W and U are A's with TMVA's slots and labels confused."""
    if gates < 3 or any(name not in tensors for name in MATRICES for tensors in (a, b)):
        return None
    if len({tensors[name].shape for name in MATRICES for tensors in (a, b)}) > 1:
        return None
    blocks_a, blocks_b = (
        [block for name in MATRICES for block in np.split(tensors[name], gates)]
        for tensors in (a, b)
    )
    # The file stores all W, then all U. Its labels alternate: W and U of one gate, then the next.
    by_label = [blocks_a[2 * (k % gates) + k // gates] for k in range(2 * gates)]
    by_slot = [blocks_a[(k % 2) * gates + k // 2] for k in range(2 * gates)]
    rule = equality(tolerance)
    for name, blocks in ((LABELS_FOR_SLOTS, by_label), (SLOTS_FOR_LABELS, by_slot)):
        if all(agrees(x, y, rule) for x, y in zip(blocks, blocks_b, strict=True)):
            return name
    return None


def permuted_units(
    a: Mapping[str, Array], b: Mapping[str, Array], gates: int, tolerance: float
) -> str | None:
    """Return the error if B is A with its units permuted, and perhaps W's columns too."""
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
    order[_unit_order(b[bias], H)] = _unit_order(a[bias], H)
    if (order == np.arange(H)).all():
        return None
    rule, W = equality(tolerance), "weight_ih"
    others = [name for name in names if name != W]
    if not all(agrees(_permute(name, a[name], order), b[name], rule) for name in others):
        return None
    permuted = _permute(W, a[W], order)
    if agrees(permuted, b[W], rule):
        return PERMUTED_UNITS
    return PERMUTED_UNITS_AND_COLUMNS if permuted_columns(permuted, b[W], tolerance) else None


def permuted_columns(a: Array, b: Array, tolerance: float) -> bool:
    """Return True if B is A with its columns permuted."""
    if a.shape != b.shape or a.ndim != 2 or a.size == 0:
        return False
    one, other = (np.lexsort(matrix[:8]) for matrix in (a, b))
    return agrees(a[:, one], b[:, other], equality(tolerance))


def _unit_order(bias: Array, H: int) -> Array:
    return np.lexsort(bias.reshape(-1, H))  # units in the order of their biases


def _permute(name: str, tensor: Array, order: Array) -> Array:
    """Permute the units of every gate; for U, which reads h, the columns too."""
    blocks = tensor.reshape(-1, len(order), *tensor.shape[1:])[:, order]
    blocks = blocks[:, :, order] if name == "weight_hh" else blocks
    return blocks.reshape(tensor.shape)


@dataclass(frozen=True)
class BiasSplit:
    """Split of A's two biases over B's two.

    Attributes
    ----------
    order
        The gate of A in each place of B.
    splits
        A key of `BIAS_SPLITS`, or `OTHER_SPLIT`, by gate of A.
    rule
        Rule under which the numbers agree.
    """

    order: tuple[str, ...]
    splits: Mapping[str, str]
    rule: AgreementRule


def bias_split(
    a: Mapping[str, Array],
    b: Mapping[str, Array],
    letters: tuple[str, ...],
    orders: Sequence[tuple[str, ...]],
    tolerance: float,
) -> BiasSplit | None:
    """Return the split under which B's two biases follow from A's; None if they do not.

    Parameters
    ----------
    orders
        Orders of the gates to try first.
    """
    (a_b, a_h), (b_b, b_h) = (
        [np.split(tensors[name].astype(np.float64), len(letters)) for name in BIAS_PAIR]
        for tensors in (a, b)
    )
    candidates = list(dict.fromkeys([*orders, letters, *itertools.permutations(letters)]))
    for rule, order in itertools.product(agreement_rules(tolerance), candidates):
        splits = {}
        for p, gate in enumerate(order):
            q = letters.index(gate)
            split = _gate_split((a_b[q], a_h[q]), (b_b[p], b_h[p]), rule)
            if split is None:
                break
            splits[gate] = split
        else:
            return BiasSplit(order, {gate: splits[gate] for gate in letters}, rule)
    return None


@np.errstate(all="ignore")
def _gate_split(a: tuple[Array, Array], b: tuple[Array, Array], rule: AgreementRule) -> str | None:
    slack = ADDITION_SLACK * np.max(np.abs([*a, *b]), axis=0)
    for name, (_, split) in BIAS_SPLITS.items():
        if _are_near(split(*a), b, slack if name else 0 * slack, rule):
            return name
    if rule.name == "" and _are_near([a[0] + a[1]], [b[0] + b[1]], slack, rule):
        return OTHER_SPLIT
    return None


def _are_near(a: Iterable[Array], b: Iterable[Array], slack: Array, rule: AgreementRule) -> bool:
    return all(
        bool(((np.abs(x - y) <= slack) | rule.holds(x, y)).all()) for x, y in zip(a, b, strict=True)
    )
