"""What may have been done to a tensor: to its layout as a whole, or to one gate's block of it."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lstm_cli.engines.types import Array

BLOCK_CHANGES = ("", "transposed", "negated", "negated and transposed", "by columns", "zero")
"""Of one gate's block, the simplest first. ``by columns``: its numbers in another order."""

WHOLE_CHANGES = {
    "transposed": "is stored transposed",
    "by columns": "holds the numbers in column order, as if a transposed kernel had been reshaped",
    "reshaped": "has rows and columns exchanged but the numbers in the old order",
    "interleaved": "has the gates of one unit next to each other, not the units of one gate",
    "apart": "has the units of one gate next to each other where A has the gates of one unit",
    "columns": "has its columns in another order, as if the layer before had its units in another",
    "halves": "has the two halves of its columns exchanged, as if the layer before had forward "
    "and reverse exchanged",
}
"""Layouts of a whole tensor, and how each is said."""


def changed(block: Array, change: str) -> Array:
    """A gate's block with a change that is possible for it; see `picked`."""
    if change == "zero":
        return np.zeros_like(block)
    if change == "by columns":
        return block.T.reshape(block.shape)
    block = -block if change.startswith("negated") else block
    return block.T if change.endswith("transposed") else block


def picked(block: Array, change: str, at: Array) -> Array | None:
    """Numbers of a changed block, by flat index, in float64, without changing all of it.

    None where the change is impossible for this block, or the identity.
    """
    if change == "zero":
        return np.zeros(len(at)) if block.any() else None
    turned = "transposed" in change or change == "by columns"
    if turned and (block.ndim != 2 or min(block.shape) < 2):
        return None
    if turned and (block.shape[0] == block.shape[1]) == (change == "by columns"):
        return None
    shape = block.shape[::-1] if turned else block.shape
    places = np.unravel_index(at, shape)
    values = np.asarray(block[places[::-1] if turned else places], np.float64)
    return -values if change.startswith("negated") else values


def layouts(b: Array, shape: tuple[int, ...], gates: int) -> Iterator[tuple[str, Array]]:
    """B's tensor in A's layout, if it was stored in another: name of the layout, and tensor."""
    if b.shape == shape:
        yield "", b
    if b.ndim != 2 or b.size == 0 or b.size != shape[0] * shape[-1] or len(shape) != 2:
        if b.shape == shape:
            yield from _between_gates(b, gates)
        return
    if b.shape == shape[::-1] and min(shape) > 1:
        yield "transposed", b.T
        if b.shape != shape:
            yield "reshaped", b.reshape(shape)
    if b.shape == shape:
        if min(shape) > 1 and shape[0] != shape[1]:
            yield "by columns", b.reshape(shape[::-1]).T
            yield "by columns", b.T.reshape(shape)
        yield from _between_gates(b, gates)
        if shape[1] % 2 == 0:
            yield "halves", np.roll(b, shape[1] // 2, axis=1)


def _between_gates(b: Array, gates: int) -> Iterator[tuple[str, Array]]:
    """Rows ordered by unit, then gate, and the other way about."""
    if gates < 2 or len(b) % gates or len(b) == gates:
        return
    units = len(b) // gates
    yield "interleaved", b.reshape(units, gates, *b.shape[1:]).swapaxes(0, 1).reshape(b.shape)
    if units != gates:
        yield "apart", b.reshape(gates, units, *b.shape[1:]).swapaxes(0, 1).reshape(b.shape)
