"""Sequences kept in memory: read once, so that every further epoch costs no reading."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np

from lstm_cli.data.ragged import Lengths, starts_of, valid_steps
from lstm_cli.data.sequences import Files, Indices, StoredSequences, lengths_of
from lstm_cli.data.types import Array, Layout
from lstm_cli.data.windows import Windows

KEPT_BYTES = 256 << 20
"""What inputs and targets may take in memory, at `VALUE_BYTES` each."""
VALUE_BYTES = 8
"""Counted for a value of any dtype: whether data are kept decides on the order of batches,
which must be the same in every dtype."""
PIECE = 1024
PIECE_BYTES = 32 << 20


@dataclass(frozen=True, eq=False)
class KeptSequences:
    """Rows of all sequences, one after the other; the windows of a sequence share theirs.

    Attributes
    ----------
    rows
        (R, D) steps.
    starts, lengths
        (N,) where each sequence begins, and its steps.
    values
        Targets (N, ...), or (R, ...) if they are one a step; None without targets.
    """

    rows: Array
    starts: Lengths
    lengths: Lengths
    values: Array | None
    by_step: bool

    def inputs(self, numbers: Indices, steps: int) -> tuple[Array, int]:
        """See `lstm_cli.data.sequences.Sequences`."""
        return self._gather(self.rows, numbers, steps), 0

    def targets(self, numbers: Indices, steps: int) -> tuple[Array | None, int]:
        """See `lstm_cli.data.sequences.Sequences`."""
        if self.values is None:
            return None, 0
        if not self.by_step:
            return self.values[numbers], 0
        return self._gather(self.values, numbers, steps), 0

    def _gather(self, rows: Array, numbers: Indices, steps: int) -> Array:
        valid = valid_steps(self.lengths[numbers], steps)
        at = self.starts[numbers][:, None] + np.arange(steps)
        gathered = np.zeros((*valid.shape, *rows.shape[1:]), rows.dtype)
        gathered[valid] = rows[at[valid]]
        return gathered


def fits_in_memory(files: Files) -> bool:
    """Whether all inputs and targets take no more than `KEPT_BYTES`."""
    return sum(_values(layout) for layout in files.layouts) * VALUE_BYTES <= KEPT_BYTES


def _values(layout: Layout) -> int:
    """Numbers to keep of a file."""
    base = layout.base if isinstance(layout, Windows) else layout
    steps = int(lengths_of(base).sum())
    targets = 0
    if layout.targets is not None:
        info = layout.targets.info
        targets = prod(info.shape) * (steps if info.per_step else layout.count)
    return steps * layout.features + targets


def keep(stored: StoredSequences) -> KeptSequences:
    """All sequences in memory, in the bits that reading gives.

    Raises
    ------
    DataError
        A file is damaged.
    """
    files = stored.files
    rows: list[Array] = []
    values: list[Array] = []
    starts: list[Lengths] = []
    held = 0
    for file, layout in enumerate(files.layouts):
        numbers = np.arange(files.firsts[file], files.firsts[file + 1], dtype=np.int64)
        if isinstance(layout, Windows):
            base = StoredSequences(Files((layout.base,)), stored.dtype, by_step=False)
            rows += _rows(base, np.arange(layout.base.count, dtype=np.int64))
            cuts, own = layout.cuts, numbers - files.firsts[file]
            begin = starts_of(cuts.lengths)[cuts.sequences(own)]
            starts.append(held + begin + cuts.starts(own))
        else:
            rows += _rows(stored, numbers)
            starts.append(held + starts_of(files.lengths[numbers])[:-1])
        values += _targets(stored, numbers)
        held = sum(map(len, rows))
    return KeptSequences(
        np.concatenate(rows),
        np.concatenate(starts),
        files.lengths,
        np.concatenate(values) if values else None,
        stored.by_step,
    )


def _rows(stored: StoredSequences, numbers: Indices) -> list[Array]:
    """The valid steps of sequences, a piece at a time."""
    files, found = stored.files, []
    for piece in _pieces(files, numbers):
        T = files.steps(piece)
        found.append(stored.inputs(piece, T)[0][valid_steps(files.lengths[piece], T)])
    return found


def _targets(stored: StoredSequences, numbers: Indices) -> list[Array]:
    """The targets of sequences, or of their valid steps."""
    files, found = stored.files, []
    for piece in _pieces(files, numbers):
        T = files.steps(piece)
        values, _ = stored.targets(piece, T)
        if values is not None:
            by_step = valid_steps(files.lengths[piece], T) if stored.by_step else slice(None)
            found.append(values[by_step])
    return found


def _pieces(files: Files, numbers: Indices) -> list[Indices]:
    most = PIECE_BYTES // (VALUE_BYTES * files.features)
    return list(files.pieces(numbers, PIECE, most))
