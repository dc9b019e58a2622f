"""Gate orders: reordering the gate blocks of a stacked tensor, and naming their sources."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from lstm_cli.cells import CELLS
from lstm_cli.engines.types import Array
from lstm_cli.formats.interchange import TensorSource

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


def index_text(start: int, stop: int, axis: int = 0, leading: Iterable[int] = ()) -> str:
    """Index as text: ``[0:100]``, ``[:, 100:200]``, ``[1, 0:100]``."""
    indices = [*map(str, leading), *[":"] * axis, f"{start}:{stop}"]
    return f"[{', '.join(indices)}]"


def gate_sources(
    name: str,
    tensor: Array,
    native: str,
    order: Sequence[str],
    *,
    axis: int = 0,
    leading: tuple[int, ...] = (),
    offset: int = 0,
    size: int | None = None,
    change: str = "",
) -> list[TensorSource]:
    """Sources of the gate blocks of one tensor, a `TensorSource` for each gate.

    Parameters
    ----------
    name, native
        Name of the tensor in the file, and of the native tensor.
    tensor
        Tensor in the file; only its shape and dtype matter.
    order
        Native letters of the gates, in the file's order.
    axis
        Axis that stacks the gates, not counting the axes of `leading`.
    leading
        Indices on the first axes, such as ONNX's direction.
    offset, size
        Start of the first gate along `axis`, and length of each gate; None: an equal share of
        the rest of the axis.
    change
        Conversion in a few words; see `TensorSource`.
    """
    if size is None:
        size = (tensor.shape[len(leading) + axis] - offset) // len(order)
    starts = [offset + k * size for k in range(len(order))]
    return [
        TensorSource(
            name,
            tuple(tensor.shape),
            str(tensor.dtype),
            index_text(start, start + size, axis, leading),
            native,
            letter,
            change,
        )
        for letter, start in zip(order, starts, strict=True)
    ]
