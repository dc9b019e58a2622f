"""The sources of all GPU kernels, for the gate that compiles them."""

from __future__ import annotations

from collections.abc import Iterator

from lstm_cli.cells import Cell
from lstm_cli.engines.cuda import backward, forward, reduce, rounding, rows, weights
from lstm_cli.engines.cuda.precision import PRECISIONS
from lstm_cli.engines.schedule import inference, inspection, training

ROWS = {"float32": (1, 4, 8), "float64": (1, 4)}
"""Of a general kernel's tile, by what it adds up in."""


def general_sources(cell: Cell) -> Iterator[tuple[str, str]]:
    """A cell's general kernels, each with a name: every precision, purpose and tile."""
    for precision in PRECISIONS.values():
        for count in ROWS[precision.real]:
            for schedule in (inference(cell), inspection(cell), training(cell, True)):
                name = f"forward {schedule.name} {precision.name} {count}"
                yield name, forward.source(cell, schedule, precision, count)
            if precision.backward is precision:
                name = f"backward {precision.name} {count}"
                yield name, backward.source(cell, training(cell, True), precision, count)


def layer_sources() -> Iterator[tuple[str, str]]:
    """What a layer needs beside a cell's kernels."""
    for module in (weights, rounding, reduce, rows):
        for precision in PRECISIONS.values():
            yield f"{module.__name__} {precision.name}", module.source(precision)
