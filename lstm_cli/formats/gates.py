"""Gate orders: reordering the gate blocks of a stacked tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lstm_cli.cells import CELLS, LSTM, Cell
from lstm_cli.engines.types import Array

NATIVE_GATES = {kind: tuple(gate.letter for gate in cell.gates) for kind, cell in CELLS.items()}
"""Letters of the gates in native order, by kind of layer: ``("i", "f", "g", "o")`` for lstm."""
KERAS_GATES = NATIVE_GATES | {"gru": ("z", "r", "n")}
"""Keras's order of the gates, in native letters."""
ONNX_GATES = NATIVE_GATES | {"lstm": ("i", "o", "f", "g"), "gru": ("z", "r", "n")}
"""Order of the gates in ONNX's W, R and B, in native letters."""
KIND_OF_GATES = {len(letters): kind for kind, letters in NATIVE_GATES.items()}
"""Kind of layer by number of gates."""
PEEPHOLE_GATES = LSTM(hidden_size=1, peepholes=True).peephole_gates
"""Letters of the gates with peepholes, in native order."""
ONNX_PEEPHOLES = tuple(letter for letter in ONNX_GATES["lstm"] if letter in PEEPHOLE_GATES)
"""Order of the peepholes in ONNX's P."""

OPEN_GATE_BIAS = 40.0
"""Bias at which a forget gate without weights is 1 to the last bit of float64."""


def lacks_forget_gate(cell: Cell) -> bool:
    """Whether a cell is an lstm without a forget gate."""
    return isinstance(cell, LSTM) and not cell.use_forget_gate


def open_forget_gate(
    tensors: Mapping[str, Array], bias: float = OPEN_GATE_BIAS
) -> dict[str, Array]:
    """Give an lstm a forget gate that is 1: c = c_prev + i g, the LSTM of 1997.

    Parameters
    ----------
    tensors
        Tensors of one direction, with ``bias``, by name within the layer.
    bias
        Bias of the forget gate; its other weights are 0.
    """
    opened = dict(tensors)
    for name in ("weight_ih", "weight_hh", "bias", "peephole"):
        if name in opened:
            letters = PEEPHOLE_GATES if name == "peephole" else NATIVE_GATES["lstm"]
            opened[name] = opened[name].copy()
            gate = np.split(opened[name], len(letters))[letters.index("f")]
            gate[...] = bias if name == "bias" else 0
    return opened


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
