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

from lstm_cli.data.layouts.base import Layout
from lstm_cli.data.lengths import Lengths, starts_of, valid_steps
from lstm_cli.data.types import Array, Batch, TargetInfo
from lstm_cli.data.windows import StepTargets, Windows
from lstm_cli.errors import UsageError

Indices: TypeAlias = NDArray[np.int64]
"""Numbers of sequences, counted over all files."""


class Sequences(Protocol):
    """Where a batch's rows come from; (rows, bytes read) each."""

    def inputs(self, numbers: Indices, steps: int) -> tuple[Array, int]:
        """(n, steps, D) in the order of `numbers`, padding 0."""

    def targets(self, numbers: Indices, steps: int) -> tuple[Array | None, int]:
        """(n, ...) or (n, steps, ...) in the order of `numbers`, or None."""


@dataclass(frozen=True)
class _Run:
    """Neighbours in one file, which one read gives; `rows` is where they go."""

    file: int
    start: int
    stop: int
    rows: slice


@dataclass(frozen=True, eq=False)
class Files:
    """The layouts of all files, their sequences counted through."""

    layouts: tuple[Layout, ...]

    @cached_property
    def firsts(self) -> Lengths:
        """(files + 1,) number of each file's first sequence, and the count of all."""
        return np.cumsum([0, *(layout.count for layout in self.layouts)], dtype=np.int64)

    @cached_property
    def lengths(self) -> Lengths:
        """(N,) valid steps of every sequence."""
        return np.concatenate([lengths_of(layout) for layout in self.layouts])

    @property
    def features(self) -> int:
        """Features D."""
        return self.layouts[0].features

    @cached_property
    def targets(self) -> TargetInfo | None:
        """What the targets of all files are, or None."""
        return common_targets(self.layouts)

    def known(self, numbers: Indices) -> NDArray[np.bool_] | None:
        """(n,) true for sequences that have a target; None if all have."""
        if not any(isinstance(layout, Windows) for layout in self.layouts):
            return None
        known, files = np.ones(len(numbers), np.bool_), self.file_of(numbers)
        for file, layout in enumerate(self.layouts):
            of = files == file
            if isinstance(layout, Windows):
                own = layout.known(numbers[of] - self.firsts[file])
                known[of] = True if own is None else own
        return None if known.all() else known

    def sequences(self, numbers: Indices) -> Indices:
        """(n,) the sequence, counted over all files, that each window is of."""
        found, first = numbers.copy(), 0
        files = self.file_of(numbers)
        for file, layout in enumerate(self.layouts):
            if isinstance(layout, Windows):
                of = files == file
                found[of] = first + layout.cuts.sequences(numbers[of] - self.firsts[file])
                first += layout.base.count
        return found

    def seen(self, numbers: Indices) -> tuple[Indices, Indices]:
        """(n,) first and last step of its sequence that each window sees, targets included."""
        first = np.zeros(len(numbers), np.int64)
        files = self.file_of(numbers)
        reach = 0
        for file, layout in enumerate(self.layouts):
            if isinstance(layout, Windows):
                of = files == file
                first[of] = layout.cuts.starts(numbers[of] - self.firsts[file])
                stepwise = isinstance(layout.targets, StepTargets)
                reach = layout.steps - 1 + (layout.cuts.window.reach if stepwise else 0)
        return first, first + reach

    def file_of(self, numbers: Indices) -> Indices:
        """(n,) the file that holds each sequence."""
        return np.searchsorted(self.firsts, numbers, side="right") - 1

    def runs(self, numbers: Indices) -> Iterator[_Run]:
        """Numbers, sorted and each once, as runs of neighbours."""
        if not len(numbers):
            return
        files = self.file_of(numbers)
        apart = (np.diff(numbers) != 1) | (np.diff(files) != 0)
        edges = [0, *(np.flatnonzero(apart) + 1).tolist(), len(numbers)]
        for begin, end in pairwise(edges):
            file = int(files[begin])
            start = int(numbers[begin] - self.firsts[file])
            yield _Run(file, start, start + end - begin, slice(begin, end))

    def steps(self, numbers: Indices) -> int:
        """Steps T that these sequences are padded to, at least 1."""
        return max(1, int(self.lengths[numbers].max(initial=0)))

    def pieces(self, numbers: Indices, size: int, max_steps: int) -> Iterator[Indices]:
        """Cut into pieces of at most `size` sequences and `max_steps` padded steps, at least one
        sequence each."""
        start = 0
        while start < len(numbers):
            lengths = np.maximum(self.lengths[numbers[start : start + size]], 1)
            padded = np.maximum.accumulate(lengths) * np.arange(1, len(lengths) + 1)
            stop = start + max(1, int(np.searchsorted(padded, max_steps, side="right")))
            yield numbers[start:stop]
            start = stop


@dataclass(frozen=True, eq=False)
class StoredSequences:
    """Sequences that are read from the files whenever they are asked for.

    Attributes
    ----------
    dtype
        Of the inputs, and at least of targets that are values.
    by_step
        Targets are one a step.
    """

    files: Files
    dtype: DTypeLike
    by_step: bool

    def inputs(self, numbers: Indices, steps: int) -> tuple[Array, int]:
        """See `Sequences`."""
        ordered, back = _ordered(numbers)
        x = np.zeros((len(ordered), steps, self.files.features), self.dtype)
        nbytes = 0
        for run in self.files.runs(ordered):
            own = self.files.steps(ordered[run.rows])
            layout = self.files.layouts[run.file]
            nbytes += layout.read(run.start, run.stop, x[run.rows, :own])
        return x if back is None else x[back], nbytes

    def targets(self, numbers: Indices, steps: int) -> tuple[Array | None, int]:
        """See `Sequences`."""
        ordered, back = _ordered(numbers)
        rows = (len(ordered), steps) if self.by_step else (len(ordered),)
        y: Array | None = None
        nbytes = 0
        for run in self.files.runs(ordered):
            targets = self.files.layouts[run.file].targets
            if targets is None:
                return None, 0
            own = self.files.steps(ordered[run.rows])
            values, more = targets.read(run.start, run.stop, own, self.dtype, self.by_step)
            if y is None:
                # Only what was read tells the shape of one, where (N, T) could also be (N, K).
                y = np.zeros((*rows, *values.shape[len(rows) :]), values.dtype)
            y = y.astype(np.result_type(y, values), copy=False)  # of another file, maybe wider
            y[(run.rows, slice(0, own)) if self.by_step else run.rows] = values
            nbytes += more
        return y if y is None or back is None else y[back], nbytes


def _ordered(numbers: Indices) -> tuple[Indices, Indices | None]:
    """The numbers sorted, each once, and where each came to stand; None if nothing changed."""
    if (np.diff(numbers) > 0).all():
        return numbers, None
    ordered, back = np.unique(numbers, return_inverse=True)
    return ordered, back


def lengths_of(layout: Layout) -> Lengths:
    """(N,) valid steps of a file's sequences."""
    if layout.lengths is None:
        return np.full(layout.count, layout.steps, np.int64)
    return layout.lengths


def placing(info: TargetInfo | None, per_step: bool | None) -> bool:
    """Whether targets are one a step: as the files say, or `per_step` where they leave it open."""
    told = None if info is None else info.per_step
    return bool(per_step if told is None else told)


def common_targets(layouts: Sequence[Layout]) -> TargetInfo | None:
    """What the targets of all files are: a file that leaves open goes with those that tell.

    (N, T) of files with different T can only be one a step.
    """
    infos = target_infos(layouts)
    told = [info for info in infos if info.per_step is not None]
    if not told and len({info.shape for info in infos}) > 1:
        return infos[0].placed(True)
    return next(iter(told + infos), None)


def target_infos(layouts: Sequence[Layout]) -> list[TargetInfo]:
    return [layout.targets.info for layout in layouts if layout.targets is not None]


def read_batch(
    layout: Layout,
    first: int,
    file: int,
    start: int,
    stop: int,
    x: Array,
    targets: bool,
    per_step: bool | None,
) -> Batch:
    """Sequences start to stop of a part, their inputs in `x`."""
    T = x.shape[1]
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
    return Batch(x, lengths, y, first + start, file, nbytes, known)


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
        """See `lstm_cli.data.batches.Sequences`."""
        return self._gather(self.rows, numbers, steps), 0

    def targets(self, numbers: Indices, steps: int) -> tuple[Array | None, int]:
        """See `lstm_cli.data.batches.Sequences`."""
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


class Access:
    """Sequences of some files by number; see `lstm_cli.data.sequence_data.Dataset.take`."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self._kept: tuple[object, Sequences] | None = None

    @cached_property
    def in_memory(self) -> bool:
        """Whether everything is read once and kept."""
        return fits_in_memory(self.files)

    def take(self, indices: Indices, dtype: np.dtype[Any], per_step: bool | None) -> Batch:
        """The sequences of these numbers, in their order."""
        files = self.files
        numbers = _checked(indices, int(files.firsts[-1]))
        sequences = self._sequences(dtype, placing(files.targets, per_step))
        lengths, T = files.lengths[numbers], files.steps(numbers)
        x, nbytes = sequences.inputs(numbers, T)
        y, more = sequences.targets(numbers, T)
        told = None if (lengths == T).all() else lengths
        file = int(files.file_of(numbers[:1])[0])
        known = None if y is None else files.known(numbers)
        return Batch(x, told, y, int(numbers[0]), file, nbytes + more, known)

    def _sequences(self, dtype: np.dtype[Any], by_step: bool) -> Sequences:
        """Where rows come from."""
        stored = StoredSequences(self.files, dtype, by_step)
        if not self.in_memory:
            return stored
        if self._kept is None or self._kept[0] != (dtype, by_step):
            self._kept = (dtype, by_step), keep(stored)
        return self._kept[1]


def _checked(indices: Indices, count: int) -> Indices:
    """The numbers as int64; UsageError if one is of no sequence."""
    numbers = np.asarray(indices, np.int64)
    if numbers.ndim != 1 or not len(numbers) or numbers.min() < 0 or numbers.max() >= count:
        raise UsageError(
            "no such sequences",
            expected=f"at least one number from 0 to {count - 1}",
            found=f"{numbers.min()} to {numbers.max()}" if numbers.size else "none",
        )
    return numbers
