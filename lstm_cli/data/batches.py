"""Batches of sequences: consecutive ones, or any by number, from the files or from memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lstm_cli.data.layouts.base import SequenceLayout
from lstm_cli.data.lengths import Lengths, starts_of, valid_steps
from lstm_cli.data.types import Array, Batch, TargetInfo
from lstm_cli.data.windows import StepTargets, Windows
from lstm_cli.errors import UsageError

Indices: TypeAlias = NDArray[np.int64]
"""Sequence numbers, counted over all files."""


class SequenceSource(Protocol):
    """Source of inputs and targets by sequence number, each with the bytes read."""

    def inputs(self, numbers: Indices, steps: int) -> tuple[Array, int]:
        """Inputs (n, steps, D) in the order of `numbers`, padded with 0."""

    def targets(self, numbers: Indices, steps: int) -> tuple[Array | None, int]:
        """Targets (n, ...) or (n, steps, ...) in the order of `numbers`, or None."""


@dataclass(frozen=True)
class _Run:
    """Consecutive sequences start to stop of one file, and their rows in the batch."""

    file: int
    start: int
    stop: int
    rows: slice


@dataclass(frozen=True, eq=False)
class FileLayouts:
    """Layouts of all files, with sequence numbers counted over all files."""

    layouts: tuple[SequenceLayout, ...]

    @cached_property
    def firsts(self) -> Lengths:
        """(files + 1,) number of the first sequence of each file, and the total count."""
        return np.cumsum([0, *(layout.count for layout in self.layouts)], dtype=np.int64)

    @cached_property
    def lengths(self) -> Lengths:
        """(N,) valid steps of every sequence."""
        return np.concatenate([sequence_lengths(layout) for layout in self.layouts])

    @property
    def features(self) -> int:
        """Number of features D."""
        return self.layouts[0].features

    @cached_property
    def targets(self) -> TargetInfo | None:
        """Facts about the targets of all files, or None."""
        return common_target_info(self.layouts)

    def has_target(self, numbers: Indices) -> NDArray[np.bool_] | None:
        """(n,) true for sequences with a target; None if all have one."""
        if not any(isinstance(layout, Windows) for layout in self.layouts):
            return None
        has_target, files = np.ones(len(numbers), np.bool_), self.file_of(numbers)
        for file, layout in enumerate(self.layouts):
            in_file = files == file
            if isinstance(layout, Windows):
                known = layout.has_target(numbers[in_file] - self.firsts[file])
                has_target[in_file] = True if known is None else known
        return None if has_target.all() else has_target

    def sequences(self, numbers: Indices) -> Indices:
        """(n,) sequence of each window, counted over all files."""
        sequences, first = numbers.copy(), 0
        files = self.file_of(numbers)
        for file, layout in enumerate(self.layouts):
            if isinstance(layout, Windows):
                in_file = files == file
                sequences[in_file] = first + layout.positions.sequences(
                    numbers[in_file] - self.firsts[file]
                )
                first += layout.base.count
        return sequences

    def step_ranges(self, numbers: Indices) -> tuple[Indices, Indices]:
        """(n,) first and last step that each window uses, targets included."""
        first = np.zeros(len(numbers), np.int64)
        files = self.file_of(numbers)
        reach = 0
        for file, layout in enumerate(self.layouts):
            if isinstance(layout, Windows):
                in_file = files == file
                first[in_file] = layout.positions.starts(numbers[in_file] - self.firsts[file])
                has_step_targets = isinstance(layout.targets, StepTargets)
                reach = (
                    layout.steps - 1 + (layout.positions.window.reach if has_step_targets else 0)
                )
        return first, first + reach

    def file_of(self, numbers: Indices) -> Indices:
        """(n,) number of the file of each sequence."""
        return np.searchsorted(self.firsts, numbers, side="right") - 1

    def runs(self, numbers: Indices) -> Iterator[_Run]:
        """Runs of consecutive sequences in ascending unique numbers."""
        if not len(numbers):
            return
        files = self.file_of(numbers)
        gaps = (np.diff(numbers) != 1) | (np.diff(files) != 0)
        edges = [0, *(np.flatnonzero(gaps) + 1).tolist(), len(numbers)]
        for begin, end in pairwise(edges):
            file = int(files[begin])
            start = int(numbers[begin] - self.firsts[file])
            yield _Run(file, start, start + end - begin, slice(begin, end))

    def steps(self, numbers: Indices) -> int:
        """Padded steps T of these sequences, at least 1."""
        return max(1, int(self.lengths[numbers].max(initial=0)))

    def pieces(self, numbers: Indices, size: int, max_steps: int) -> Iterator[Indices]:
        """Pieces of 1 to `size` sequences, with at most `max_steps` padded steps if possible."""
        start = 0
        while start < len(numbers):
            lengths = np.maximum(self.lengths[numbers[start : start + size]], 1)
            padded = np.maximum.accumulate(lengths) * np.arange(1, len(lengths) + 1)
            stop = start + max(1, int(np.searchsorted(padded, max_steps, side="right")))
            yield numbers[start:stop]
            start = stop


@dataclass(frozen=True, eq=False)
class SequencesInFiles:
    """Sequences that are read from the files at each request.

    Attributes
    ----------
    dtype
        Type of the inputs, and at least of targets that are values.
    per_step
        Targets are one per step.
    """

    files: FileLayouts
    dtype: DTypeLike
    per_step: bool

    def inputs(self, numbers: Indices, steps: int) -> tuple[Array, int]:
        """See `SequenceSource`."""
        ordered, back = _ordered(numbers)
        x = np.zeros((len(ordered), steps, self.files.features), self.dtype)
        nbytes = 0
        for run in self.files.runs(ordered):
            T = self.files.steps(ordered[run.rows])
            layout = self.files.layouts[run.file]
            nbytes += layout.read(run.start, run.stop, x[run.rows, :T])
        return x if back is None else x[back], nbytes

    def targets(self, numbers: Indices, steps: int) -> tuple[Array | None, int]:
        """See `SequenceSource`."""
        ordered, back = _ordered(numbers)
        rows = (len(ordered), steps) if self.per_step else (len(ordered),)
        y: Array | None = None
        nbytes = 0
        for run in self.files.runs(ordered):
            targets = self.files.layouts[run.file].targets
            if targets is None:
                return None, 0
            T = self.files.steps(ordered[run.rows])
            values, more = targets.read(run.start, run.stop, T, self.dtype, self.per_step)
            if y is None:
                # The values tell the shape of one target if (N, T) could also be (N, K).
                y = np.zeros((*rows, *values.shape[len(rows) :]), values.dtype)
            # The targets of another file may have a wider dtype.
            y = y.astype(np.result_type(y, values), copy=False)
            y[(run.rows, slice(0, T)) if self.per_step else run.rows] = values
            nbytes += more
        return y if y is None or back is None else y[back], nbytes


def _ordered(numbers: Indices) -> tuple[Indices, Indices | None]:
    """Sorted unique numbers, and the position of each number; None if nothing changed."""
    if (np.diff(numbers) > 0).all():
        return numbers, None
    ordered, back = np.unique(numbers, return_inverse=True)
    return ordered, back


def sequence_lengths(layout: SequenceLayout) -> Lengths:
    """(N,) valid steps of the sequences of a file."""
    if layout.lengths is None:
        return np.full(layout.count, layout.steps, np.int64)
    return layout.lengths


def targets_are_per_step(info: TargetInfo | None, per_step: bool | None) -> bool:
    """Whether targets are one per step, by the files, or by `per_step` if both are possible."""
    decided = None if info is None else info.per_step
    return bool(per_step if decided is None else decided)


def common_target_info(layouts: Sequence[SequenceLayout]) -> TargetInfo | None:
    """Facts about the targets of all files. A file that allows both placements follows the others.

    Targets (N, T) of files with different T can only be one per step.
    """
    infos = target_infos(layouts)
    decided = [info for info in infos if info.per_step is not None]
    if not decided and len({info.shape for info in infos}) > 1:
        return infos[0].resolve(True)
    return next(iter(decided + infos), None)


def target_infos(layouts: Sequence[SequenceLayout]) -> list[TargetInfo]:
    """Facts about the targets of each file that has targets."""
    return [layout.targets.info for layout in layouts if layout.targets is not None]


def read_batch(
    layout: SequenceLayout,
    first: int,
    file: int,
    start: int,
    stop: int,
    x: Array,
    targets: bool,
    per_step: bool | None,
) -> Batch:
    """Sequences start to stop of a file, with their inputs in `x`.

    Parameters
    ----------
    layout, first, file
        Sequences of the file, number of the first one, and number of the file.
    x
        (n, T, D) array to fill.
    targets, per_step
        See `SequenceData.batches`.
    """
    T = x.shape[1]
    lengths = None if layout.lengths is None else layout.lengths[start:stop]
    nbytes = layout.read(start, stop, x)
    y = has_target = None
    if targets and layout.targets is not None:
        y, more = layout.targets.read(start, stop, T, x.dtype, per_step)
        nbytes += more
        if isinstance(layout, Windows):
            has_target = layout.has_target(np.arange(start, stop, dtype=np.int64))
    if lengths is None and layout.steps == 0:
        lengths = np.zeros(stop - start, np.int64)
    if lengths is not None and (lengths == T).all():
        lengths = None
    if has_target is not None and has_target.all():
        has_target = None
    return Batch(x, lengths, y, first + start, file, nbytes, has_target)


def batch_steps(layout: SequenceLayout, start: int, stop: int) -> int:
    """Padded steps T of sequences start to stop, at least 1."""
    if layout.lengths is None:
        return max(1, layout.steps)
    return max(1, int(layout.lengths[start:stop].max()))


def batch_stop(layout: SequenceLayout, start: int, size: int, bound: int | None) -> int:
    """End of the batch that starts at `start`, with at most `bound` padded steps N x T."""
    stop = min(start + size, layout.count)
    if bound is None:
        return stop
    if layout.lengths is None:
        return min(stop, start + max(1, bound // max(1, layout.steps)))
    longest = np.maximum.accumulate(np.maximum(layout.lengths[start:stop], 1))
    padded = longest * np.arange(1, stop - start + 1)
    return start + max(1, int(np.searchsorted(padded, bound, side="right")))


MEMORY_BYTES = 256 << 20
"""Largest number of bytes of inputs and targets in memory, at `VALUE_BYTES` per value."""

VALUE_BYTES = 8
"""Bytes counted for a value of any dtype.

Batches of data in memory have another order than batches from files. That order must not depend
on the dtype.
"""

PIECE_SEQUENCES = 1024
"""Largest number of sequences that are loaded into memory together."""

PIECE_BYTES = 32 << 20
"""Approximate bytes of inputs that are loaded into memory together."""


@dataclass(frozen=True, eq=False)
class SequencesInMemory:
    """Rows of all sequences one after the other. Windows of a sequence share rows.

    Attributes
    ----------
    rows
        (R, D) steps of all sequences.
    starts, lengths
        (N,) first row and number of steps of each sequence.
    values
        Targets (N, ...), or (R, ...) if they are one per step; None without targets.
    """

    rows: Array
    starts: Lengths
    lengths: Lengths
    values: Array | None
    per_step: bool

    def inputs(self, numbers: Indices, steps: int) -> tuple[Array, int]:
        """See `SequenceSource`."""
        return self._gather(self.rows, numbers, steps), 0

    def targets(self, numbers: Indices, steps: int) -> tuple[Array | None, int]:
        """See `SequenceSource`."""
        if self.values is None:
            return None, 0
        if not self.per_step:
            return self.values[numbers], 0
        return self._gather(self.values, numbers, steps), 0

    def _gather(self, rows: Array, numbers: Indices, steps: int) -> Array:
        valid = valid_steps(self.lengths[numbers], steps)
        at = self.starts[numbers][:, None] + np.arange(steps)
        gathered = np.zeros((*valid.shape, *rows.shape[1:]), rows.dtype)
        gathered[valid] = rows[at[valid]]
        return gathered


def fits_in_memory(files: FileLayouts) -> bool:
    """Whether all inputs and targets fit `MEMORY_BYTES`."""
    return sum(_value_count(layout) for layout in files.layouts) * VALUE_BYTES <= MEMORY_BYTES


def _value_count(layout: SequenceLayout) -> int:
    """Number of values in a file."""
    base = layout.base if isinstance(layout, Windows) else layout
    steps = int(sequence_lengths(base).sum())
    targets = 0
    if layout.targets is not None:
        info = layout.targets.info
        targets = prod(info.shape) * (steps if info.per_step else layout.count)
    return steps * layout.features + targets


def load_into_memory(source: SequencesInFiles) -> SequencesInMemory:
    """Load all sequences into memory, with the same bits as a read from the files.

    Raises
    ------
    DataError
        A file is damaged.
    """
    files = source.files
    rows: list[Array] = []
    values: list[Array] = []
    starts: list[Lengths] = []
    row_count = 0
    for file, layout in enumerate(files.layouts):
        numbers = np.arange(files.firsts[file], files.firsts[file + 1], dtype=np.int64)
        if isinstance(layout, Windows):
            base = SequencesInFiles(FileLayouts((layout.base,)), source.dtype, per_step=False)
            rows += _rows(base, np.arange(layout.base.count, dtype=np.int64))
            positions, windows = layout.positions, numbers - files.firsts[file]
            begin = starts_of(positions.lengths)[positions.sequences(windows)]
            starts.append(row_count + begin + positions.starts(windows))
        else:
            rows += _rows(source, numbers)
            starts.append(row_count + starts_of(files.lengths[numbers])[:-1])
        values += _targets(source, numbers)
        row_count = sum(map(len, rows))
    return SequencesInMemory(
        np.concatenate(rows),
        np.concatenate(starts),
        files.lengths,
        np.concatenate(values) if values else None,
        source.per_step,
    )


def _rows(source: SequencesInFiles, numbers: Indices) -> list[Array]:
    files, pieces = source.files, []
    for piece in _pieces(files, numbers):
        T = files.steps(piece)
        pieces.append(source.inputs(piece, T)[0][valid_steps(files.lengths[piece], T)])
    return pieces


def _targets(source: SequencesInFiles, numbers: Indices) -> list[Array]:
    """Targets of sequences, or of their valid steps, in pieces."""
    files, pieces = source.files, []
    for piece in _pieces(files, numbers):
        T = files.steps(piece)
        values, _ = source.targets(piece, T)
        if values is not None:
            valid = valid_steps(files.lengths[piece], T) if source.per_step else slice(None)
            pieces.append(values[valid])
    return pieces


def _pieces(files: FileLayouts, numbers: Indices) -> list[Indices]:
    max_steps = PIECE_BYTES // (VALUE_BYTES * files.features)
    return list(files.pieces(numbers, PIECE_SEQUENCES, max_steps))


class RandomAccess:
    """Sequences by number, read from the files or from memory. See `SequenceData.take`."""

    def __init__(self, files: FileLayouts) -> None:
        self.files = files
        self._in_memory: tuple[object, SequenceSource] | None = None

    @cached_property
    def in_memory(self) -> bool:
        """Whether all sequences are loaded into memory."""
        return fits_in_memory(self.files)

    def take(self, indices: Indices, dtype: np.dtype[Any], per_step: bool | None) -> Batch:
        """Batch of the sequences with these numbers, in their order."""
        files = self.files
        numbers = _checked_numbers(indices, int(files.firsts[-1]))
        sequences = self._sequences(dtype, targets_are_per_step(files.targets, per_step))
        lengths, T = files.lengths[numbers], files.steps(numbers)
        x, nbytes = sequences.inputs(numbers, T)
        y, more = sequences.targets(numbers, T)
        valid = None if (lengths == T).all() else lengths
        file = int(files.file_of(numbers[:1])[0])
        has_target = None if y is None else files.has_target(numbers)
        return Batch(x, valid, y, int(numbers[0]), file, nbytes + more, has_target)

    def _sequences(self, dtype: np.dtype[Any], per_step: bool) -> SequenceSource:
        source = SequencesInFiles(self.files, dtype, per_step)
        if not self.in_memory:
            return source
        if self._in_memory is None or self._in_memory[0] != (dtype, per_step):
            self._in_memory = (dtype, per_step), load_into_memory(source)
        return self._in_memory[1]


def _checked_numbers(indices: Indices, count: int) -> Indices:
    """The numbers as int64; UsageError if a number is out of range."""
    numbers = np.asarray(indices, np.int64)
    if numbers.ndim != 1 or not len(numbers) or numbers.min() < 0 or numbers.max() >= count:
        raise UsageError(
            "no such sequences",
            expected=f"at least one number from 0 to {count - 1}",
            found=f"{numbers.min()} to {numbers.max()}" if numbers.size else "none",
        )
    return numbers
