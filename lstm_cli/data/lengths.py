"""Lengths of sequences from what the file has: lengths, offsets or a mask."""

from __future__ import annotations

import numpy as np

from lstm_cli.data.masks import MaskRows, refuse_values
from lstm_cli.data.ragged import Lengths, check_lengths, whole_numbers
from lstm_cli.data.storage import Stored, need_lengths
from lstm_cli.data.types import DataOptions
from lstm_cli.errors import DataError, counted

MASK_BLOCK_BYTES = 16 << 20
"""A mask is turned into lengths in blocks of about this size."""


def lengths_table(stored: Stored, options: DataOptions) -> Lengths:
    """(N, columns) lengths: column 0 the inputs', further ones RETURNN's targets'."""
    places = options.places(stored.where)
    need_lengths(stored, "lengths", places)
    if stored.rank not in (1, 2) or (stored.rank == 2 and stored.shape[1] == 0):
        raise DataError(
            f"{stored.where} has shape {stored.shape}",
            expected="lengths (N,), or (N, 1 + targets)",
            found=str(stored.shape),
            where=places,
        )
    table = whole_numbers(stored.read(), stored.where, places)
    return table.reshape(len(table), -1) if table.size else np.zeros((0, 1), np.int64)


def only_lengths(stored: Stored, options: DataOptions) -> Lengths:
    """(N,) lengths; DataError if there are further columns that say something else."""
    table = lengths_table(stored, options)
    if (table != table[:, :1]).any():
        n = int(np.argmax((table != table[:, :1]).any(axis=1)))
        raise DataError(
            f"{stored.where} has {counted(table.shape[1], 'column')}, which differ in sequence {n}",
            expected=f"one length each, ({len(table)},)",
            found=", ".join(map(str, table[n].tolist())),
            where=options.places(stored.where),
        )
    return table[:, 0]


def lengths_of_offsets(stored: Stored, rows: int, options: DataOptions) -> Lengths:
    """(N,) lengths from offsets (N+1,), which begin at 0 and end at `rows`."""
    places = options.places(stored.where)
    need_lengths(stored, "offsets", places)
    if stored.rank != 1 or stored.shape[0] == 0:
        raise DataError(
            f"{stored.where} has shape {stored.shape}",
            expected="offsets (N + 1,)",
            found=str(stored.shape),
            where=places,
        )
    offsets = whole_numbers(stored.read(), stored.where, places)
    if offsets[0] != 0 or offsets[-1] != rows:
        raise DataError(
            f"the offsets run from {offsets[0]} to {offsets[-1]}",
            expected=f"0 to {rows}, the rows of the inputs",
            found=f"{offsets[0]} to {offsets[-1]} in {stored.where}",
            where=places,
        )
    lengths = np.diff(offsets)
    check_lengths(lengths, stored.where, places, rows)
    return lengths


def rows_of_mask(stored: Stored, N: int, T: int, file: str, options: DataOptions) -> MaskRows:
    """How the valid steps lie in a mask (N, T), which is read in blocks.

    Raises
    ------
    DataError
        It has another shape, or holds more than 0 and 1.
    """
    places = options.places(stored.where)
    need_lengths(stored, "mask", places)
    shape = (*stored.shape[:2], *(size for size in stored.shape[2:] if size != 1))
    if shape != (N, T):
        raise DataError(
            f"{stored.where} has shape {stored.shape}",
            expected=f"mask (N, T) = {(N, T)}",
            found=str(stored.shape),
            where=places,
        )
    sums, first, last = np.zeros((3, N), np.int64)
    block = max(1, MASK_BLOCK_BYTES // max(1, T * stored.dtype.itemsize))
    for start in range(0, N if T else 0, block):
        values = stored.read(slice(start, start + block)).reshape(-1, T)
        refuse_values(values, start, stored, file, options)
        kept, own = values != 0, slice(start, start + block)
        sums[own] = kept.sum(axis=1)
        first[own] = kept.argmax(axis=1)
        last[own] = np.where(kept.any(axis=1), T - kept[:, ::-1].argmax(axis=1), 0)
    return MaskRows(stored, sums, first, last, T)


def check_count(
    lengths: Lengths, N: int, name: str, options: DataOptions, hint: str | None = None
) -> None:
    """Raise DataError unless there is one length a sequence."""
    if len(lengths) != N:
        raise DataError(
            f"{name} has {counted(len(lengths), 'length')} for {counted(N, 'sequence')}",
            expected=f"({N},)",
            found=f"({len(lengths)},)",
            where=options.places(name),
            hint=hint,
        )


def agreed(told: dict[str, Lengths], options: DataOptions) -> Lengths | None:
    """The lengths that all sources tell; DataError if two differ."""
    names = list(told)
    for other in names[1:]:
        a, b = told[names[0]], told[other]
        if len(a) != len(b):
            raise DataError(
                f"{names[0]} and {other} disagree",
                expected=f"{counted(len(a), 'sequence')}, as {names[0]} says",
                found=f"{len(b)} in {other}",
                where=options.places(names[0], other),
            )
        if (a != b).any():
            n = int(np.argmax(a != b))
            raise DataError(
                f"{names[0]} and {other} disagree on sequence {n}",
                expected=f"{counted(a[n], 'step')}, as {names[0]} says",
                found=f"{b[n]} in {other}",
                where=options.places(names[0], other),
            )
    return told[names[0]] if names else None
