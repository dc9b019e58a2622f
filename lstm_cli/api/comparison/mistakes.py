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


def unit_order(
    a: Mapping[str, Array], b: Mapping[str, Array], gates: int, tolerance: float
) -> Array | None:
    """(H,) A's units in B's places, where B is A with its units in another order; else None."""
    names = [name for name in a if name in b]
    if not set(MATRICES) <= set(names) or "weight_hr" in a or len(names) != len(a):
        return None
    if any(a[name].shape != b[name].shape for name in names):
        return None
    H = a["weight_hh"].shape[1]
    if len(a["weight_ih"]) != gates * H:
        return None
    order = np.empty(H, np.int64)
    order[_sorted(b, gates)] = _sorted(a, gates)
    if (order == np.arange(H)).all():
        return None
    rule = equality(tolerance)
    same = all(agrees(_units(name, a[name], order), b[name], rule) for name in names)
    return order if same else None


def _sorted(tensors: Mapping[str, Array], gates: int) -> Array:
    """Units sorted by their first gate's weights of x."""
    keys = np.split(tensors["weight_ih"], gates)[0][:, :8]
    return np.lexsort(keys.T)


def _units(name: str, tensor: Array, order: Array) -> Array:
    """A tensor with the units of every gate, and where it reads h its columns, in this order."""
    blocks = tensor.reshape(-1, len(order), *tensor.shape[1:])[:, order]
    blocks = blocks[:, :, order] if name == "weight_hh" else blocks
    return blocks.reshape(tensor.shape)
