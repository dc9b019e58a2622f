"""Whole directions of a layer changed in known ways: TMVA's labels, units in another order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lstm_cli.api.comparison.matching import agrees
from lstm_cli.api.comparison.rules import equality
from lstm_cli.engines.types import Array

MATRICES = ("weight_ih", "weight_hh")
LABELS_FOR_SLOTS = "TMVA's labels"
SLOTS_FOR_LABELS = "TMVA's slots"
OTHER_UNITS = "units"
OTHER_UNITS_AND_COLUMNS = "units and columns"


def tmva_mistake(
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


def other_units(
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
    return OTHER_UNITS_AND_COLUMNS if other_columns(moved, b[W], tolerance) else None


def other_columns(a: Array, b: Array, tolerance: float) -> bool:
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
