"""Windows of steps: a batch, and a layer's pass over it, cut into stretches of time.

A window of a batch is a batch itself: its sequences begin further on among the same rows, and have
as many steps as the window leaves them, so longest first they still are. Of a window, a run has
all arrays of the whole; its states are those that the window before has left.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np

from lstm_cli.engines.cuda.batch import DeviceBatch
from lstm_cli.engines.cuda.codegen.layout import gather_rows, round_operands, scatter_rows_into
from lstm_cli.engines.cuda.passes import BackwardRun, ForwardRun
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.runtime.device import Array, Device, DeviceArray


@dataclass(frozen=True, eq=False)
class TimeChunk:
    """A stretch of steps.

    Attributes
    ----------
    batch
        The window itself.
    first
        Its first step.
    rows
        (R,) int64 on the device: the numbers of its rows, where sequences differ in length; else
        they are found by counting.
    before
        (N,) int64 on the device, likewise: by the caller's order, the row of the step before. Of a
        sequence that is over any row.
    """

    batch: DeviceBatch
    first: int
    rows: DeviceArray | None = None
    before: DeviceArray | None = None


_CHUNKS: WeakKeyDictionary[DeviceBatch, dict[int, tuple[TimeChunk, ...]]] = WeakKeyDictionary()


def time_chunks(device: Device, batch: DeviceBatch, steps: int) -> tuple[TimeChunk, ...]:
    """A batch in windows of so many steps, the last with what is left; made once.

    Call it in the main lane: the tables that it makes are kept for passes to come.
    """
    made = _CHUNKS.setdefault(batch, {})
    if steps not in made:
        made[steps] = _split_batch(device, batch, steps)
    return made[steps]


def _split_batch(device: Device, batch: DeviceBatch, steps: int) -> tuple[TimeChunk, ...]:
    n = np.full(batch.N, batch.T, np.int64) if batch.lengths is None else batch.lengths
    begun, order = np.cumsum(n) - n, np.argsort(-n, kind="stable")
    tables, sizes = list[Array](), list[int]()
    for at in range(0, batch.longest, steps):
        size = min(steps, batch.longest - at)
        left = np.clip(n - at, 0, size)
        tables += [begun[order] + at, left[order]]
        if batch.ragged:
            tables += [_row_numbers(begun + at, left), np.clip(begun + at - 1, 0, batch.Q - 1)]
        sizes.append(size)
    whole = device.upload(np.concatenate([table.astype(np.int64) for table in tables]))
    ends = np.cumsum([len(table) for table in tables])
    parts = iter([whole[int(e) - len(t) : int(e)] for t, e in zip(tables, ends, strict=True)])
    found = []
    for k, size in enumerate(sizes):
        own = replace(
            batch,
            T=size,
            starts=next(parts),
            steps=next(parts),
            counts=batch.counts[k * steps : k * steps + size],
            longest=size,
            sorted_steps=np.clip(batch.sorted_steps - k * steps, 0, size),
        )
        rest = (next(parts), next(parts)) if batch.ragged else ()
        found.append(TimeChunk(own, k * steps, *rest))
    return tuple(found)


def _row_numbers(starts: Array, lengths: Array) -> Array:
    """The numbers of sequences' rows, one sequence behind the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def multiply_chunk_rows(
    device: Device,
    window: TimeChunk,
    a: DeviceArray,
    b: DeviceArray,
    out: DeviceArray,
    precision: Precision,
    *,
    transpose_b: bool = False,
) -> None:
    """The window's rows of out = a b.

    Parameters
    ----------
    a
        (Q, K) of the operands' type, or real: then its rows are rounded.
    """
    name = precision.name
    if window.rows is None:
        parts = chunk_rows(a, window), b, chunk_rows(out, window)
        device.multiply(*parts, name, transpose_b=transpose_b)
        return
    rows = gather_rows(device, a, window.rows)
    if str(rows.dtype) != precision.element:
        rows = round_operands(device, precision, rows)
    made = device.empty((rows.shape[0], out.shape[1]), precision.real)
    device.multiply(rows, b, made, name, transpose_b=transpose_b)
    scatter_rows_into(device, made, window.rows, out)


def chunk_rows(values: DeviceArray, window: TimeChunk) -> DeviceArray:
    """A window's rows where lengths do not differ: a view (N, steps, F), or (steps, F) of one."""
    N, F = window.batch.N, values.shape[1]
    steps = slice(window.first, window.first + window.batch.T)
    if N == 1:
        return values[steps]
    return values.reshape(N, values.shape[0] // N, F)[:, steps]


def forward_chunk(run: ForwardRun, window: TimeChunk) -> ForwardRun:
    """A forward run over a window."""
    return replace(run, batch=window.batch)


def backward_chunk(device: Device, run: BackwardRun, window: TimeChunk) -> BackwardRun:
    """A backward run over a window.

    The states that it begins from are those of the step before, or the run's own.
    """
    forward, h, c = forward_chunk(run.forward, window), run.h_first, run.c_first
    if window.first:
        h = _previous_rows(device, run.y, window)
        c = None if c is None else _previous_rows(device, run.forward.c_steps, window)
    return replace(run, forward=forward, h_first=h, c_first=c)


def _previous_rows(device: Device, values: DeviceArray, window: TimeChunk) -> DeviceArray:
    """Every sequence's row (N, F) of the step before a window: a view where that can be."""
    if window.before is not None:
        return gather_rows(device, values, window.before)
    N = window.batch.N
    return values.reshape(N, values.shape[0] // N, values.shape[1])[:, window.first - 1]
