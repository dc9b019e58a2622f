"""Windows of sequences. Each sequence is cut separately: no window spans two sequences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import DTypeLike, NDArray

from lstm_cli.data.layouts.base import (
    LayoutTargets,
    SequenceLayout,
    UncutLayout,
    UncutTargets,
    cast_targets,
)
from lstm_cli.data.layouts.groups import Groups
from lstm_cli.data.lengths import Lengths, starts_of
from lstm_cli.data.types import Array, DataOptions, TargetInfo, TargetKind, Window, common_dtype
from lstm_cli.errors import DataError, counted

MIN_BLOCK_SEQUENCES = 3
"""Smallest number of sequences that are read together."""
MAX_PADDING_RATIO = 2
"""Largest ratio of padded steps that are read together to steps of windows."""


@dataclass(frozen=True)
class SequenceBlock:
    """Neighboring sequences that are read together, and the windows in them.

    Attributes
    ----------
    first, last
        Numbers of the first sequence, and of the one after the last.
    steps
        Steps to which the sequences are padded.
    rows, starts
        (n,) for each window, the row of its sequence in the block, and its first step.
    """

    first: int
    last: int
    steps: int
    rows: Lengths
    starts: Lengths

    def pick(self, padded: Array, offset: int, count: int) -> Array:
        """(n, count, ...) steps from `offset` after the start of each window."""
        at = self.starts[:, None] + np.arange(offset, offset + count)
        steps: Array = padded[self.rows[:, None], np.minimum(at, self.steps - 1)]
        return steps


@dataclass(frozen=True)
class WindowPositions:
    """Positions of the windows in all sequences of a file.

    A sequence of T steps gives (T - length) // stride + 1 windows. If none of them ends at the
    last step, one more window does: the newest data are always used.

    Attributes
    ----------
    lengths
        (S,) steps of each sequence.
    """

    window: Window
    lengths: Lengths

    @cached_property
    def firsts(self) -> Lengths:
        """(S + 1,) number of the first window of each sequence, and the total count."""
        excess = self.lengths - self.window.length
        return starts_of(np.where(excess < 0, 0, -(-excess // self.window.stride) + 1))

    @property
    def count(self) -> int:
        """Number of windows."""
        return int(self.firsts[-1])

    def sequences(self, numbers: Lengths) -> Lengths:
        """(n,) number of the sequence of each window."""
        return np.searchsorted(self.firsts, numbers, side="right") - 1

    def starts(self, numbers: Lengths) -> Lengths:
        """(n,) first step of each window in its sequence."""
        sequences = self.sequences(numbers)
        regular = (numbers - self.firsts[sequences]) * self.window.stride
        return np.asarray(np.minimum(regular, self.lengths[sequences] - self.window.length))

    def has_target(self, numbers: Lengths) -> NDArray[np.bool_]:
        """(n,) true for windows with all targets in their sequence."""
        last = self.starts(numbers) + self.window.length - 1 + self.window.reach
        return np.asarray(last < self.lengths[self.sequences(numbers)])

    def block(self, start: int, stop: int) -> SequenceBlock | None:
        """The sequences of windows start to stop; None if separate reads are better."""
        numbers = np.arange(start, stop, dtype=np.int64)
        sequences = self.sequences(numbers)
        first, last = int(sequences[0]), int(sequences[-1]) + 1
        steps = int(self.lengths[first:last].max())
        if (
            last - first < MIN_BLOCK_SEQUENCES
            or (last - first) * steps > MAX_PADDING_RATIO * len(numbers) * self.window.length
        ):
            return None
        return SequenceBlock(first, last, steps, sequences - first, self.starts(numbers))

    def by_sequence(self, start: int, stop: int) -> Iterator[tuple[int, slice, list[int]]]:
        """Windows start to stop by sequence: sequence number, rows of windows, first steps."""
        numbers = np.arange(start, stop, dtype=np.int64)
        starts, sequences = self.starts(numbers), self.sequences(numbers)
        edges = [0, *(np.flatnonzero(np.diff(sequences)) + 1).tolist(), len(numbers)]
        for begin, end in pairwise(edges):
            yield int(sequences[begin]), slice(begin, end), starts[begin:end].tolist()


@dataclass(frozen=True)
class Windows:
    """Windows of the sequences of another layout. Each window is one sequence.

    Results are written as in the dense layout.
    """

    base: UncutLayout
    positions: WindowPositions
    targets: StepTargets | SequenceTargets | None
    padded: bool = True
    lengths: Lengths | None = None

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def inputs(self) -> str:
        return self.base.inputs

    @property
    def count(self) -> int:
        return self.positions.count

    @property
    def features(self) -> int:
        return self.base.features

    @property
    def steps(self) -> int:
        return self.positions.window.length

    @property
    def width(self) -> int:
        return self.steps

    @property
    def dtype(self) -> str:
        return self.base.dtype

    def read(self, start: int, stop: int, out: Array) -> int:
        """Read windows start to stop. Overlapping windows share one read."""
        nbytes = 0
        out[:, self.steps :] = 0
        block = self.positions.block(start, stop)
        if block is not None:
            shape = (block.last - block.first, block.steps, self.features)
            padded = np.empty(shape, out.dtype)
            nbytes = self.base.read(block.first, block.last, padded)
            out[:, : self.steps] = block.pick(padded, 0, self.steps)
            return nbytes
        for sequence, rows, starts in self.positions.by_sequence(start, stop):
            nbytes += self._read_sequence(sequence, starts, out[rows, : self.steps])
        return nbytes

    def _read_sequence(self, sequence: int, starts: list[int], out: Array) -> int:
        """Read windows of one sequence into `out` (n, length, D); returns the bytes read."""
        length, stride = self.steps, self.positions.window.stride
        if stride > length:
            windows = [self.base.read_steps(sequence, start, start + length) for start in starts]
            with np.errstate(all="ignore"):  # values out of range become infinite
                out[...] = np.stack(windows)
            return sum(window.nbytes for window in windows)
        steps = self.base.read_steps(sequence, starts[0], starts[-1] + length)
        views = sliding_window_view(steps, length, axis=0)  # (.., D, length)
        # The window that ends at the last step may have another distance to the one before.
        regular = len(range(starts[0], starts[-1] + 1, stride))
        with np.errstate(all="ignore"):
            out[:regular] = views[::stride].transpose(0, 2, 1)
            out[-1] = steps[len(steps) - length :]
        return steps.nbytes

    def place(self, number: int) -> str:
        return self.base.place(int(self.positions.sequences(np.array([number]))[0]))

    def roles(self) -> dict[str, str]:
        return self.base.roles()

    def sequence_names(self) -> list[str] | None:
        return None

    def has_target(self, numbers: Lengths) -> NDArray[np.bool_] | None:
        """(n,) true for windows with targets; None if all have targets."""
        return self.positions.has_target(numbers) if isinstance(self.targets, StepTargets) else None

    @property
    def targets_origin(self) -> str | None:
        """Origin of the targets in words; None for a dataset of targets per step."""
        if isinstance(self.targets, SequenceTargets):
            return "one per sequence"
        if isinstance(self.targets, StepTargets) and isinstance(
            self.targets.steps, InputsAsTargets
        ):
            return "the inputs themselves"
        return None

    @property
    def _location(self) -> str:
        return self.base.group.where if isinstance(self.base, Groups) else self.inputs

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on sequences that are too short, and on the origin of the targets."""
        window, targets = self.positions.window, self.targets
        lengths = self.positions.lengths
        short = np.flatnonzero(lengths < window.length)
        notes = []
        if len(short):
            n, names = int(short[0]), self.base.sequence_names()
            name = "" if names is None else f" ({names[n]})"
            notes.append(
                f"{len(short)} of {counted(len(lengths), 'sequence')} of {self._location} "
                f"{'is' if len(short) == 1 else 'are'} shorter than a window of "
                f"{counted(window.length, 'step')} and not used: the first is sequence {n}{name}, "
                f"of {counted(lengths[n], 'step')}"
            )
        if targets is not None and self.targets_origin == "one per sequence":
            notes.append(
                f"targets {targets.info.name} are one per sequence: each window has the target of "
                "its sequence, and data.window.horizon has no effect"
            )
        elif self.targets_origin == "the inputs themselves":
            notes.append(
                f"{self._location} holds no targets: a window predicts the inputs themselves, "
                f"{counted(window.horizon, 'step')} after its last step"
            )
        return tuple(notes)


@dataclass(frozen=True)
class StepTargets:
    """Targets that are `horizon` to `horizon + predict - 1` steps after a window's last step.

    Attributes
    ----------
    steps
        Source of the targets: targets per step, or the inputs themselves.
    step_shape
        Shape of the values of one step.
    """

    steps: UncutTargets | InputsAsTargets
    step_shape: tuple[int, ...]
    info: TargetInfo
    positions: WindowPositions

    def read(
        self, start: int, stop: int, steps: int, dtype: DTypeLike, per_step: bool | None
    ) -> tuple[Array, int]:
        """Targets of windows start to stop; 0 for windows without all targets."""
        window, nbytes = self.positions.window, 0
        has_target = self.positions.has_target(np.arange(start, stop, dtype=np.int64))
        block = self.positions.block(start, stop)
        if block is not None:
            padded, nbytes = self.steps.read(block.first, block.last, block.steps, dtype, True)
            values = block.pick(padded, window.length - 1 + window.horizon, window.predict)
            values[~has_target] = 0
            return cast_targets(values.reshape(-1, *self.info.shape), self.info, dtype), nbytes
        shape = (stop - start, window.predict, *self.step_shape)
        is_class = self.info.kind == "class"
        targets = np.zeros(shape, np.int64 if is_class else common_dtype(dtype, self.info.dtype))
        for sequence, rows, starts in self.positions.by_sequence(start, stop):
            complete = np.flatnonzero(has_target[rows]) + rows.start
            if not len(complete):
                continue
            first = starts[int(complete[0]) - rows.start] + window.length - 1 + window.horizon
            last = starts[int(complete[-1]) - rows.start] + window.length - 1 + window.horizon
            regular = (last - first) % window.stride == 0
            for step in range(window.predict):
                if regular:
                    values = self._read(sequence, first + step, last + step + 1)
                else:  # the window that ends at the last step has another distance
                    last_regular = last - (last - first) % window.stride
                    end = self._read(sequence, last + step, last + step + 1)
                    values = self._read(sequence, first + step, last_regular + step + 1)
                    values = np.concatenate([values, end])
                with np.errstate(all="ignore"):  # values out of range become infinite
                    targets[complete, step] = values
                nbytes += values.nbytes
        return targets.reshape(-1, *self.info.shape), nbytes

    def _read(self, sequence: int, begin: int, end: int) -> Array:
        values = self.steps.read_steps(sequence, begin, end, self.positions.window.stride)
        return values.reshape(-1, *self.step_shape)

    def place(self, number: int) -> str:
        return self.steps.place(int(self.positions.sequences(np.array([number]))[0]))


@dataclass(frozen=True)
class SequenceTargets:
    """Targets per sequence: each window has the target of its sequence."""

    base: LayoutTargets
    info: TargetInfo
    positions: WindowPositions

    def read(
        self, start: int, stop: int, steps: int, dtype: DTypeLike, per_step: bool | None
    ) -> tuple[Array, int]:
        sequences = self.positions.sequences(np.arange(start, stop, dtype=np.int64))
        first = int(sequences[0])
        values, nbytes = self.base.read(first, int(sequences[-1]) + 1, 1, dtype, False)
        return values[sequences - first], nbytes

    def place(self, number: int) -> str:
        return self.base.place(int(self.positions.sequences(np.array([number]))[0]))


@dataclass(frozen=True)
class InputsAsTargets:
    """The inputs themselves as targets per step, for a forecast without other targets."""

    layout: UncutLayout

    def read(
        self, start: int, stop: int, steps: int, dtype: DTypeLike, per_step: bool | None
    ) -> tuple[Array, int]:
        wide = common_dtype(dtype, self.layout.dtype)
        padded = np.empty((stop - start, steps, self.layout.features), wide)
        return padded, self.layout.read(start, stop, padded)

    def read_steps(self, number: int, begin: int, end: int, stride: int) -> Array:
        return self.layout.read_steps(number, begin, end)[::stride]

    def place(self, number: int) -> str:
        return self.layout.place(number)


def open_windows(base: UncutLayout, options: DataOptions, window: Window) -> Windows:
    """Cut the sequences of a layout.

    Raises
    ------
    DataError
        The window cannot be cut.
    """
    if min(window.length, window.stride, window.predict) < 1 or window.horizon < 0:
        raise DataError(
            "data.window cannot be cut",
            expected="length, stride and predict of 1 or more, horizon of 0 or more",
            found=f"length {window.length}, stride {window.stride}, horizon {window.horizon}, "
            f"predict {window.predict}",
            where=options.places(),
        )
    lengths = base.lengths
    if lengths is None:
        lengths = np.full(base.count, base.steps, np.int64)
    positions = WindowPositions(window, lengths)
    return Windows(base, positions, _targets(base, positions, options))


def require_windows(layouts: Sequence[SequenceLayout], options: DataOptions) -> None:
    """Raise DataError if sequences are cut and no sequence is as long as a window."""
    window = options.window
    if window is None or any(layout.count for layout in layouts):
        return
    longest = _longest_sequence(layouts)
    fits = longest - window.reach if longest > window.reach else longest
    raise DataError(
        f"no window fits: the longest sequence has {counted(longest, 'step')}",
        expected=f"at least {counted(window.length, 'step')}, as data.window.length says",
        found=f"{counted(longest, 'step')}",
        where=options.places(*(layout.inputs for layout in layouts)),
        hint=f"--set data.window.length={fits}" if fits else None,
    )


def targets_beyond_error(layouts: Sequence[SequenceLayout]) -> DataError:
    """The error for windows with all targets beyond the end of their sequence."""
    window = next(one.positions.window for one in layouts if isinstance(one, Windows))
    longest = _longest_sequence(layouts)
    hint = None
    if longest > window.reach:
        hint = f"--set data.window.length={longest - window.reach}"
    elif longest >= window.predict:
        hint = f"--set data.window.length=1 --set data.window.horizon={longest - window.predict}"
    return DataError(
        "the targets of every window lie beyond the end of its sequence",
        expected=f"sequences of at least {counted(window.length + window.reach, 'step')}, "
        "which hold a window and its targets",
        found=f"{counted(longest, 'step')} in the longest",
        where=tuple(layout.inputs for layout in layouts),
        hint=hint,
    )


def _longest_sequence(layouts: Sequence[SequenceLayout]) -> int:
    longest = [one.positions.lengths.max(initial=0) for one in layouts if isinstance(one, Windows)]
    return int(max(longest, default=0))


def _targets(
    base: UncutLayout, positions: WindowPositions, options: DataOptions
) -> StepTargets | SequenceTargets | None:
    """Targets of the windows, from the targets of the sequences or from the inputs."""
    targets, window = base.targets, positions.window
    if targets is None and options.targets is not None:
        return None  # the configured dataset is missing: the inputs are no substitute
    if targets is not None and targets.info.per_step is False:
        if window.predict > 1:
            raise DataError(
                f"data.window.predict is {window.predict}, but the targets are one per sequence",
                expected="targets for each step, or predict: 1",
                found=targets.info.name,
                where=options.places(targets.info.name),
                hint="--set data.window.predict=1",
            )
        return SequenceTargets(targets, targets.info, positions)
    if targets is None:
        steps: UncutTargets | InputsAsTargets = InputsAsTargets(base)
        info = TargetInfo(base.inputs, "values", (base.features,), False, base.dtype)
    else:
        info, steps = targets.info.resolve(True), targets
    shape = info.shape
    if window.predict > 1:
        shape = (window.predict * (shape[0] if shape else 1),)
    kind: TargetKind = "class" if info.kind == "class" and shape == () else "values"
    return StepTargets(
        steps, info.shape, replace(info, kind=kind, shape=shape, per_step=False), positions
    )
