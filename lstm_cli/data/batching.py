"""Batches of consecutive sequences: where one ends, and how it is read."""

from __future__ import annotations

import numpy as np

from lstm_cli.data.part import Part
from lstm_cli.data.types import Array, Batch, Layout
from lstm_cli.data.windows import Windows


def read_batch(
    part: Part,
    file: int,
    start: int,
    stop: int,
    x: Array,
    targets: bool,
    per_step: bool | None,
) -> Batch:
    """Sequences start to stop of a part, their inputs in `x`."""
    layout, T = part.layout, x.shape[1]
    lengths = None if layout.lengths is None else layout.lengths[start:stop]
    nbytes = layout.read(start, stop, x)
    y = known = None
    if targets and layout.targets is not None:
        y, more = layout.targets.read(start, stop, T, x.dtype, per_step)
        nbytes += more
        if isinstance(layout, Windows):
            known = layout.known(np.arange(start, stop, dtype=np.int64))
    if lengths is None and layout.steps == 0:
        lengths = np.zeros(stop - start, np.int64)
    if lengths is not None and (lengths == T).all():
        lengths = None
    if known is not None and known.all():
        known = None
    return Batch(x, lengths, y, part.first + start, file, nbytes, known)


def batch_steps(layout: Layout, start: int, stop: int) -> int:
    """Steps T that sequences start to stop are padded to, at least 1."""
    if layout.lengths is None:
        return max(1, layout.steps)
    return max(1, int(layout.lengths[start:stop].max()))


def batch_stop(layout: Layout, start: int, size: int, bound: int | None) -> int:
    """End of the batch that starts at `start`: N x T padded steps at most `bound`, if given."""
    stop = min(start + size, layout.count)
    if bound is None:
        return stop
    if layout.lengths is None:
        return min(stop, start + max(1, bound // max(1, layout.steps)))
    longest = np.maximum.accumulate(np.maximum(layout.lengths[start:stop], 1))
    padded = longest * np.arange(1, stop - start + 1)
    return start + max(1, int(np.searchsorted(padded, bound, side="right")))
