"""Sequences by number, in any order: read from the files in runs of neighbours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lstm_cli.data.agreement import common_targets
from lstm_cli.data.ragged import Lengths
from lstm_cli.data.types import Array, Layout, TargetInfo
from lstm_cli.data.windows import StepTargets, Windows

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
