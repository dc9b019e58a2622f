"""How much arithmetic a layer is."""

from __future__ import annotations

from lstm_cli.engines.types import DenseSpec, LayerSpec, RecurrentSpec


def layer_flops(spec: LayerSpec, positions: int) -> dict[str, float]:
    """Floating-point operations of the matrix products, by part: a multiply-add is two.

    Only valid steps count, so that padding does not look like work.
    """
    if isinstance(spec, RecurrentSpec):
        cell, H = spec.cells[0], spec.hidden_size
        stacked = len(cell.gates) * H
        projection = cell.output_size * H if cell.projects else 0
        per_step = 2.0 * spec.directions * positions
        return {
            "input projection": per_step * stacked * spec.input_size,
            "recurrence": per_step * (stacked * cell.output_size + projection),
        }
    if isinstance(spec, DenseSpec):
        return {"product": 2.0 * spec.units * spec.input_size * positions}
    return {}
