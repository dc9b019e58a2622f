"""Chunks of steps of a batch and a pass, for pipelined stacks, whose benefit is unmeasured.

A chunk of a batch is a batch itself. Its sequences are parts of the same rows, in the same
longest-first order. A run over a chunk uses the arrays of the whole run; its initial states are the
final states of the chunk before.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np

from lstm_cli.engines.cuda.batch import DeviceBatch
from lstm_cli.engines.cuda.codegen.data_movement import (
    gather_rows,
    round_operands,
    scatter_rows_into,
)
from lstm_cli.engines.cuda.passes import BackwardRun, ForwardRun
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.runtime.device import Array, Device, DeviceArray


@dataclass(frozen=True, eq=False)
class TimeChunk:
    """A range of steps of a batch.

    Attributes
    ----------
    batch
        The chunk as a batch.
    first
        First step of the chunk.
    rows
        (R,) int64 on the device: row numbers of the R valid steps of the chunk. None if all
        sequences have one length, so that the sizes determine the rows.
    previous_rows
        (N,) int64 on the device, in the caller's order: row of the step before the chunk; an
        arbitrary row for a sequence that has ended. None if all sequences have one length.
    """

    batch: DeviceBatch
    first: int
    rows: DeviceArray | None = None
    previous_rows: DeviceArray | None = None


_CHUNKS: WeakKeyDictionary[DeviceBatch, dict[int, tuple[TimeChunk, ...]]] = WeakKeyDictionary()


def time_chunks(device: Device, batch: DeviceBatch, steps: int) -> tuple[TimeChunk, ...]:
    """Cut a batch into chunks of `steps` steps; the last one may be shorter. Cached per batch.

    Call it on the main stream, since later passes use the same tables.
    """
    chunks = _CHUNKS.setdefault(batch, {})
    if steps not in chunks:
        chunks[steps] = _split_batch(device, batch, steps)
    return chunks[steps]


def _split_batch(device: Device, batch: DeviceBatch, steps: int) -> tuple[TimeChunk, ...]:
    n = np.full(batch.N, batch.T, np.int64) if batch.lengths is None else batch.lengths
    starts, order = np.cumsum(n) - n, np.argsort(-n, kind="stable")
    tables, sizes = list[Array](), list[int]()
    for first in range(0, batch.longest, steps):
        size = min(steps, batch.longest - first)
        lengths = np.clip(n - first, 0, size)
        tables += [starts[order] + first, lengths[order]]
        if batch.ragged:
            previous = np.clip(starts + first - 1, 0, batch.Q - 1)
            tables += [_row_numbers(starts + first, lengths), previous]
        sizes.append(size)
    joined = device.upload(np.concatenate([table.astype(np.int64) for table in tables]))
    ends = np.cumsum([len(table) for table in tables])
    parts = iter([joined[int(e) - len(t) : int(e)] for t, e in zip(tables, ends, strict=True)])
    chunks = []
    for k, size in enumerate(sizes):
        chunk_batch = replace(
            batch,
            T=size,
            starts=next(parts),
            steps=next(parts),
            counts=batch.counts[k * steps : k * steps + size],
            longest=size,
            sorted_steps=np.clip(batch.sorted_steps - k * steps, 0, size),
        )
        rows = next(parts) if batch.ragged else None
        previous_rows = next(parts) if batch.ragged else None
        chunks.append(TimeChunk(chunk_batch, k * steps, rows, previous_rows))
    return tuple(chunks)


def _row_numbers(starts: Array, lengths: Array) -> Array:
    """Row numbers of sequences, one sequence after the other."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum())


def multiply_chunk_rows(
    device: Device,
    chunk: TimeChunk,
    a: DeviceArray,
    b: DeviceArray,
    out: DeviceArray,
    precision: Precision,
    *,
    transpose_b: bool = False,
) -> None:
    """Compute the chunk's rows of out = a b.

    Parameters
    ----------
    a
        (Q, K) of the operand type, or of the accumulator type. In the second case the rows are
        rounded.
    """
    name = precision.name
    if chunk.rows is None:
        a_rows, out_rows = chunk_rows(a, chunk), chunk_rows(out, chunk)
        device.multiply(a_rows, b, out_rows, name, transpose_b=transpose_b)
        return
    rows = gather_rows(device, a, chunk.rows)
    if str(rows.dtype) != precision.operand:
        rows = round_operands(device, precision, rows)
    product = device.empty((rows.shape[0], out.shape[1]), precision.accumulator)
    device.multiply(rows, b, product, name, transpose_b=transpose_b)
    scatter_rows_into(device, product, chunk.rows, out)


def chunk_rows(values: DeviceArray, chunk: TimeChunk) -> DeviceArray:
    """View a chunk's rows where all lengths are equal: (N, steps, F), or (steps, F) if N = 1."""
    N, F = chunk.batch.N, values.shape[1]
    steps = slice(chunk.first, chunk.first + chunk.batch.T)
    if N == 1:
        return values[steps]
    return values.reshape(N, values.shape[0] // N, F)[:, steps]


def forward_chunk(run: ForwardRun, chunk: TimeChunk) -> ForwardRun:
    """Restrict a forward run to a chunk."""
    return replace(run, batch=chunk.batch)


def backward_chunk(device: Device, run: BackwardRun, chunk: TimeChunk) -> BackwardRun:
    """Restrict a backward run to a chunk.

    Its initial states are those of the step before the chunk, or those of the whole run.
    """
    forward, h, c = forward_chunk(run.forward, chunk), run.h_initial, run.c_initial
    if chunk.first:
        h = _rows_before(device, run.y, chunk)
        c = None if c is None else _rows_before(device, run.forward.c_steps, chunk)
    return replace(run, forward=forward, h_initial=h, c_initial=c)


def _rows_before(device: Device, values: DeviceArray, chunk: TimeChunk) -> DeviceArray:
    """Rows (N, F) of the step before a chunk: a view if all lengths are equal."""
    if chunk.previous_rows is not None:
        return gather_rows(device, values, chunk.previous_rows)
    N = chunk.batch.N
    return values.reshape(N, values.shape[0] // N, values.shape[1])[:, chunk.first - 1]
