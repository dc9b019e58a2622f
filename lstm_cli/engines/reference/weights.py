"""Tensors of one direction of a recurrent layer, by role, and the rows of each gate in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lstm_cli.cells import Cell
from lstm_cli.engines.types import Array


@dataclass(frozen=True)
class DirectionWeights:
    """Tensors of one direction, and the rows of each gate in them."""

    weight_ih: Array  # (G*H, D)
    weight_hh: Array  # (G*H, P)
    bias: Array  # (G*H,)
    bias_hh: Array | None  # (G*H,)
    weight_hr: Array | None  # (P, H)
    peepholes: Mapping[str, Array]  # each (H,)
    blocks: Mapping[str, slice]

    @classmethod
    def from_tensors(cls, cell: Cell, tensors: Mapping[str, Array]) -> DirectionWeights:
        """Weights from tensors by their names within the direction."""
        H = cell.hidden_size
        blocks = {gate: slice(k * H, (k + 1) * H) for k, gate in enumerate(cell.letters)}
        peepholes = {
            gate: tensors["peephole"][k * H : (k + 1) * H]
            for k, gate in enumerate(cell.peephole_gates)
        }
        return cls(
            tensors["weight_ih"],
            tensors["weight_hh"],
            tensors["bias_ih" if cell.recurrent_bias else "bias"],
            tensors.get("bias_hh"),
            tensors.get("weight_hr"),
            peepholes,
            blocks,
        )

    def rows(self, gates: tuple[str, ...]) -> slice:
        """Rows of gates that are stored next to each other."""
        return slice(self.blocks[gates[0]].start, self.blocks[gates[-1]].stop)
