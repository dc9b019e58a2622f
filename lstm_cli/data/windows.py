"""Windows of sequences: every sequence is cut on its own, so that no window sees two."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import DTypeLike, NDArray

from lstm_cli.data.layouts.base import Layout, Targets, cast_targets
from lstm_cli.data.layouts.groups import Groups
from lstm_cli.data.lengths import Lengths, starts_of
from lstm_cli.data.types import Array, DataOptions, TargetInfo, TargetKind, Window, holding
from lstm_cli.errors import DataError, counted

MANY = 3
"""Sequences from which on they are read together."""
WASTE = 2
"""Padded steps that are read together for each step of a window, at most."""


@dataclass(frozen=True)
class Block:
    """Neighbouring sequences that are read together, for the windows in them.

    Attributes
    ----------
    first, last, steps
        Sequences first to last, padded to this many steps.
    rows, starts
        (n,) row among them of each window's sequence, and the step at which it begins.
    """

    first: int
    last: int
    steps: int
    rows: Lengths
    starts: Lengths

    def pick(self, padded: Array, offset: int, count: int) -> Array:
        """(n, count, ...) steps of each window's sequence from `offset` after its start."""
        at = self.starts[:, None] + np.arange(offset, offset + count)
        picked: Array = padded[self.rows[:, None], np.minimum(at, self.steps - 1)]
        return picked


@dataclass(frozen=True)
class Cuts:
    """Where the windows of all sequences of a file stand.

    A sequence of T steps gives (T - length) // stride + 1 complete windows, and one more that
    ends at its last step where none does: the newest data are always seen.

    Attributes
    ----------
    lengths
        (S,) steps of the sequences.
    """

    window: Window
    lengths: Lengths

    @cached_property
    def firsts(self) -> Lengths:
        """(S + 1,) number of each sequence's first window, and the count of all."""
        room = self.lengths - self.window.length
        return starts_of(np.where(room < 0, 0, -(-room // self.window.stride) + 1))

    @property
    def count(self) -> int:
        """Windows of all sequences."""
        return int(self.firsts[-1])

    def sequences(self, numbers: Lengths) -> Lengths:
        """(n,) the sequence of each window."""
        return np.searchsorted(self.firsts, numbers, side="right") - 1

    def starts(self, numbers: Lengths) -> Lengths:
        """(n,) the step of its sequence at which each window begins."""
        of = self.sequences(numbers)
        regular = (numbers - self.firsts[of]) * self.window.stride
        return np.asarray(np.minimum(regular, self.lengths[of] - self.window.length))

    def known(self, numbers: Lengths) -> NDArray[np.bool_]:
        """(n,) true for windows whose targets all stand in their sequence."""
        last = self.starts(numbers) + self.window.length - 1 + self.window.reach
        return np.asarray(last < self.lengths[self.sequences(numbers)])

    def block(self, start: int, stop: int) -> Block | None:
        """The sequences of windows start to stop, if there are many and best read together."""
        numbers = np.arange(start, stop, dtype=np.int64)
        of = self.sequences(numbers)
        first, last = int(of[0]), int(of[-1]) + 1
        steps = int(self.lengths[first:last].max())
        if (
            last - first < MANY
            or (last - first) * steps > WASTE * len(numbers) * self.window.length
        ):
            return None
        return Block(first, last, steps, of - first, self.starts(numbers))

    def by_sequence(self, start: int, stop: int) -> Iterator[tuple[int, slice, list[int]]]:
        """Windows start to stop, in pieces of one sequence: its number, rows, starts."""
        numbers = np.arange(start, stop, dtype=np.int64)
        starts, of = self.starts(numbers), self.sequences(numbers)
        edges = [0, *(np.flatnonzero(np.diff(of)) + 1).tolist(), len(numbers)]
        for begin, end in pairwise(edges):
            yield int(of[begin]), slice(begin, end), starts[begin:end].tolist()


@dataclass(frozen=True)
class Windows:
    """Windows of another layout's sequences, each a sequence of its own; written as dense."""

    base: Layout
    cuts: Cuts
    targets: Targets | None
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
        return self.cuts.count

    @property
    def features(self) -> int:
        return self.base.features

    @property
    def steps(self) -> int:
        return self.cuts.window.length

    @property
    def width(self) -> int:
        return self.steps

    @property
    def dtype(self) -> str:
        return self.base.dtype

    def read(self, start: int, stop: int, out: Array) -> int:
        """Overlapping windows share one read; windows apart leave out what is between them."""
        nbytes = 0
        out[:, self.steps :] = 0
        block = self.cuts.block(start, stop)
        if block is not None:
            shape = (block.last - block.first, block.steps, self.features)
            padded = np.empty(shape, out.dtype)
            nbytes = self.base.read(block.first, block.last, padded)
            out[:, : self.steps] = block.pick(padded, 0, self.steps)
            return nbytes
        for sequence, rows, starts in self.cuts.by_sequence(start, stop):
            nbytes += self._read_sequence(sequence, starts, out[rows, : self.steps])
        return nbytes

    def _read_sequence(self, sequence: int, starts: list[int], out: Array) -> int:
        """Windows of one sequence into `out` (n, length, D); the bytes read."""
        length, stride = self.steps, self.cuts.window.stride
        if stride > length:
            read = [self.base.span(sequence, start, start + length) for start in starts]
            with np.errstate(all="ignore"):  # what a smaller type cannot hold becomes infinite
                out[...] = np.stack(read)
            return sum(steps.nbytes for steps in read)
        steps = self.base.span(sequence, starts[0], starts[-1] + length)
        windows = sliding_window_view(steps, length, axis=0)  # (.., D, length)
        # The window that ends at the last step may be out of step with the others.
        regular = len(range(starts[0], starts[-1] + 1, stride))
        with np.errstate(all="ignore"):
            out[:regular] = windows[::stride].transpose(0, 2, 1)
            out[-1] = steps[len(steps) - length :]
        return steps.nbytes

    def span(self, number: int, begin: int, end: int) -> Array:
        sequence, _, (start,) = next(self.cuts.by_sequence(number, number + 1))
        return self.base.span(sequence, start + begin, start + end)

    def place(self, number: int) -> str:
        return self.base.place(int(self.cuts.sequences(np.array([number]))[0]))

    def roles(self) -> dict[str, str]:
        return self.base.roles()

    def sequence_names(self) -> list[str] | None:
        return None

    def known(self, numbers: Lengths) -> NDArray[np.bool_] | None:
        """(n,) true for windows that have targets; None if all have."""
        return self.cuts.known(numbers) if isinstance(self.targets, StepTargets) else None

    @property
    def targets_of(self) -> str | None:
        """Origin of the targets, if it is no dataset of one a step."""
        if isinstance(self.targets, SequenceTargets):
            return "one a sequence"
        if isinstance(self.targets, StepTargets) and isinstance(
            self.targets.steps, InputsAsTargets
        ):
            return "the inputs themselves"
        return None

    @property
    def _where(self) -> str:
        """Where the sequences stand: their group, where each has one of its own."""
        return self.base.folder.where if isinstance(self.base, Groups) else self.inputs

    @property
    def notes(self) -> tuple[str, ...]:
        """Sequences that give no window, and targets that could be meant otherwise."""
        window, targets = self.cuts.window, self.targets
        short = np.flatnonzero(self.cuts.lengths < window.length)
        notes = []
        if len(short):
            n, names = int(short[0]), self.base.sequence_names()
            name = "" if names is None else f" ({names[n]})"
            notes.append(
                f"{len(short)} of {counted(len(self.cuts.lengths), 'sequence')} of {self._where} "
                f"{'is' if len(short) == 1 else 'are'} shorter "
                f"than a window of {counted(window.length, 'step')} and give none: first sequence "
                f"{n}{name} with {self.cuts.lengths[n]}"
            )
        if targets is not None and self.targets_of == "one a sequence":
            notes.append(
                f"targets {targets.info.name} are one a sequence: each window takes its "
                "sequence's, whatever data.window.horizon says"
            )
        elif self.targets_of == "the inputs themselves":
            notes.append(
                f"{self._where} holds no targets: what a window predicts are the inputs "
                f"themselves, {window.horizon} {'step' if window.horizon == 1 else 'steps'} after "
                "its last one"
            )
        return tuple(notes)


@dataclass(frozen=True)
class StepTargets:
    """The values `horizon` to `horizon + predict - 1` steps after each window's last step.

    Attributes
    ----------
    steps
        Where they come from: targets that are one a step, or the inputs themselves.
    step_shape
        Shape of a step's values.
    """

    steps: Targets | InputsAsTargets
    step_shape: tuple[int, ...]
    info: TargetInfo
    cuts: Cuts

    def read(
        self, start: int, stop: int, steps: int, dtype: DTypeLike, per_step: bool | None
    ) -> tuple[Array, int]:
        """Windows whose targets are not all there get zeros; `Cuts.known` tells them."""
        window, nbytes = self.cuts.window, 0
        known = self.cuts.known(np.arange(start, stop, dtype=np.int64))
        block = self.cuts.block(start, stop)
        if block is not None:
            padded, nbytes = self.steps.read(block.first, block.last, block.steps, dtype, True)
            picked = block.pick(padded, window.length - 1 + window.horizon, window.predict)
            picked[~known] = 0
            return cast_targets(picked.reshape(-1, *self.info.shape), self.info, dtype), nbytes
        shape = (stop - start, window.predict, *self.step_shape)
        own = np.int64 if self.info.kind == "class" else holding(dtype, self.info.dtype)
        found = np.zeros(shape, own)
        for sequence, rows, starts in self.cuts.by_sequence(start, stop):
            there = np.flatnonzero(known[rows]) + rows.start
            if not len(there):
                continue
            first = starts[int(there[0]) - rows.start] + window.length - 1 + window.horizon
            last = starts[int(there[-1]) - rows.start] + window.length - 1 + window.horizon
            regular = (last - first) % window.stride == 0
            for step in range(window.predict):
                if regular:
                    values = self._read(sequence, first + step, last + step + 1)
                else:  # the window that ends at the last step is out of step with the others
                    most = last - (last - first) % window.stride
                    end = self._read(sequence, last + step, last + step + 1)
                    values = self._read(sequence, first + step, most + step + 1)
                    values = np.concatenate([values, end])
                with np.errstate(all="ignore"):  # what a smaller type cannot hold
                    found[there, step] = values
                nbytes += values.nbytes
        return found.reshape(-1, *self.info.shape), nbytes

    def _read(self, sequence: int, begin: int, end: int) -> Array:
        values = self.steps.span(sequence, begin, end, self.cuts.window.stride)
        return values.reshape(-1, *self.step_shape)

    def span(self, number: int, begin: int, end: int, stride: int) -> Array:
        raise NotImplementedError  # windows are not cut again

    def place(self, number: int) -> str:
        return self.steps.place(int(self.cuts.sequences(np.array([number]))[0]))


@dataclass(frozen=True)
class SequenceTargets:
    """The target of its sequence for each window."""

    base: Targets
    info: TargetInfo
    cuts: Cuts

    def read(
        self, start: int, stop: int, steps: int, dtype: DTypeLike, per_step: bool | None
    ) -> tuple[Array, int]:
        of = self.cuts.sequences(np.arange(start, stop, dtype=np.int64))
        first = int(of[0])
        values, nbytes = self.base.read(first, int(of[-1]) + 1, 1, dtype, False)
        return values[of - first], nbytes

    def span(self, number: int, begin: int, end: int, stride: int) -> Array:
        raise NotImplementedError  # windows are not cut again

    def place(self, number: int) -> str:
        return self.base.place(int(self.cuts.sequences(np.array([number]))[0]))


@dataclass(frozen=True)
class InputsAsTargets:
    """The inputs themselves, one a step: what a forecast learns without other targets."""

    layout: Layout

    def read(
        self, start: int, stop: int, steps: int, dtype: DTypeLike, per_step: bool | None
    ) -> tuple[Array, int]:
        wide = holding(dtype, self.layout.dtype)
        padded = np.empty((stop - start, steps, self.layout.features), wide)
        return padded, self.layout.read(start, stop, padded)

    def span(self, number: int, begin: int, end: int, stride: int) -> Array:
        return self.layout.span(number, begin, end)[::stride]

    def place(self, number: int) -> str:
        return self.layout.place(number)


def open_windows(base: Layout, options: DataOptions, window: Window) -> Windows:
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
    cuts = Cuts(window, lengths)
    return Windows(base, cuts, _targets(base, cuts, options))


def need_windows(layouts: Sequence[Layout], options: DataOptions) -> None:
    """Raise DataError if sequences are to be cut, and none is as long as a window."""
    window = options.window
    if window is None or any(layout.count for layout in layouts):
        return
    longest = _longest(layouts)
    fits = longest - window.reach if longest > window.reach else longest
    raise DataError(
        f"no window fits: the longest sequence has {counted(longest, 'step')}",
        expected=f"at least {counted(window.length, 'step')}, as data.window.length says",
        found=f"{counted(longest, 'step')}",
        where=options.places(*(layout.inputs for layout in layouts)),
        hint=f"--set data.window.length={fits}" if fits else None,
    )


def targets_beyond(layouts: Sequence[Layout]) -> DataError:
    """The error for windows all of whose targets lie beyond the end of their sequence."""
    window = next(one.cuts.window for one in layouts if isinstance(one, Windows))
    longest = _longest(layouts)
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


def _longest(layouts: Sequence[Layout]) -> int:
    """Steps of the longest sequence that was cut."""
    cut = [one.cuts.lengths.max(initial=0) for one in layouts if isinstance(one, Windows)]
    return int(max(cut, default=0))


def _targets(base: Layout, cuts: Cuts, options: DataOptions) -> Targets | None:
    """Targets of the windows: from the base's, or else from the inputs themselves."""
    found, window = base.targets, cuts.window
    if found is None and options.targets is not None:
        return None  # named, and not there: the inputs are not what was meant
    if found is not None and found.info.per_step is False:
        if window.predict > 1:
            raise DataError(
                f"data.window.predict is {window.predict}, but the targets are one a sequence",
                expected="targets for each step, or predict: 1",
                found=found.info.name,
                where=options.places(found.info.name),
                hint="--set data.window.predict=1",
            )
        return SequenceTargets(found, found.info, cuts)
    if found is None:
        steps: Targets | InputsAsTargets = InputsAsTargets(base)
        info = TargetInfo(base.inputs, "values", (base.features,), False, base.dtype)
    else:
        info, steps = found.info.placed(True), found
    shape = info.shape
    if window.predict > 1:
        shape = (window.predict * (shape[0] if shape else 1),)
    kind: TargetKind = "class" if info.kind == "class" and shape == () else "values"
    return StepTargets(
        steps, info.shape, replace(info, kind=kind, shape=shape, per_step=False), cuts
    )
