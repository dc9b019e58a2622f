"""Gate orders: reordering the gate blocks of a stacked tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lstm_cli.cells import CELLS
from lstm_cli.engines.types import Array

NATIVE_GATES = {kind: tuple(gate.letter for gate in cell.gates) for kind, cell in CELLS.items()}
"""Letters of the gates in native order, by kind of layer: ``("i", "f", "g", "o")`` for lstm."""


def reorder_gates(stacked: Array, order: Sequence[str], new_order: Sequence[str]) -> Array:
    """Reorder the gate blocks on the first axis of a tensor.

    Parameters
    ----------
    stacked
        Tensor of G gates in the order `order`, (G * H, ...).
    order, new_order
        Letters of the gates, such as ``("i", "f", "g", "o")``.
    """
    blocks = dict(zip(order, np.split(np.asarray(stacked), len(order)), strict=True))
    return np.concatenate([blocks[letter] for letter in new_order])
