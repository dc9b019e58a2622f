"""The data of one run: the sequences of one or several files, read in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import DTypeLike

from lstm_cli.data.batches import (
    Access,
    Files,
    Indices,
    batch_steps,
    batch_stop,
    common_targets,
    read_batch,
    target_infos,
)
from lstm_cli.data.dataset_roles import class_labels
from lstm_cli.data.layouts.base import Layout
from lstm_cli.data.layouts.dense import Dense
from lstm_cli.data.layouts.detect import open_layout
from lstm_cli.data.layouts.groups import Groups
from lstm_cli.data.layouts.series import Series
from lstm_cli.data.lengths import Lengths
from lstm_cli.data.not_sequences import netcdf_notes
from lstm_cli.data.types import MAX_BATCH_BYTES, Batch, DataOptions, Room, TargetInfo, holding
from lstm_cli.data.unread_datasets import passed_over
from lstm_cli.data.windows import StepTargets, Windows, need_windows
from lstm_cli.errors import DataError, UsageError, counted
from lstm_cli.hdf5.file import Hdf5File
from lstm_cli.hdf5.group import Folder
from lstm_cli.hdf5.writing import copying, text


@dataclass(frozen=True)
class Part:
    """What one file adds: its sequences, and the number of the first of them."""

    file: Hdf5File
    folder: Folder
    layout: Layout
    reason: str
    first: int
    options: DataOptions
    argument: str = ""

    @property
    def class_labels(self) -> list[str] | None:
        """Labels of the classes, if the file has them."""
        targets = self.layout.targets
        key = None if targets is None else targets.info.name.rpartition("/")[2]
        return class_labels(self.folder, self.file.root, key)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on data in the file that are not read, and that windows leave out."""
        own = self.layout.notes if isinstance(self.layout, Windows) else ()
        base = self.layout.base if isinstance(self.layout, Windows) else self.layout
        path = next((path for path, role in base.roles().items() if role == "inputs"), "")
        inputs = self.folder.dataset(path)
        told = () if inputs is None else netcdf_notes(self.folder, inputs)
        return (*passed_over(self.folder, base, self.options), *told, *own)


@dataclass(frozen=True)
class Sources:
    """Where each of N windows was cut.

    Attributes
    ----------
    files
        The DATA argument, as typed, of each one's file.
    sequence
        (N,) number of its sequence in the file, from 0.
    step
        (N,) step of the sequence that is the window's first.
    names
        Name of its sequence, where the files name them.
    """

    files: list[str]
    sequence: Indices
    step: Indices
    names: list[str] | None


class Dataset:
    """Sequences of one or several files, in the order given. Made by `open_data`.

    Attributes
    ----------
    count, features
        Sequences N over all files, and features D.
    layout
        One of ``dense, concatenated, vlen, groups, series``.
    min_steps, max_steps, total_steps
        Valid steps of the shortest and longest sequence, and of all together.
    varying
        The lengths vary, or the files give them.
    windowed
        Its sequences are windows that other sequences were cut into.
    padded, width
        Results are written as (N, T, F): dense inputs, and windows; T = `width`.
    input_names
        Where the inputs stand, one a file, such as ``words.h5:/test/inputs``.
    starts
        Number of the first sequence, and the count, of each file.
    paths
        The files.
    files
        Their layouts, with the sequences counted through.
    """

    def __init__(self, parts: Sequence[Part], options: DataOptions, files: ExitStack) -> None:
        self._parts = tuple(parts)
        self._files = files
        layouts = [part.layout for part in parts]
        need_alike(layouts, options)
        self.count = sum(layout.count for layout in layouts)
        self.features = layouts[0].features
        self.layout = layouts[0].name
        self.padded = layouts[0].padded
        self.windowed = isinstance(layouts[0], Windows)
        self.max_steps = max(layout.steps for layout in layouts)
        self.min_steps = min(_shortest(layout) for layout in layouts)
        self.width = max(layout.width for layout in layouts)
        self.total_steps = sum(_total(layout) for layout in layouts)
        told = any(layout.lengths is not None for layout in layouts)
        self.varying = told or self.min_steps != self.max_steps
        self.input_names = tuple(layout.inputs for layout in layouts)
        self.starts = tuple((part.first, part.layout.count) for part in parts)
        self.paths = tuple(part.file.path for part in parts)
        self.reasons = tuple(part.reason for part in parts)
        self.files = Files(tuple(layouts))
        self._access = Access(self.files)

    @property
    def input_name(self) -> str:
        """Where the first file's inputs stand."""
        return self.input_names[0]

    @property
    def dtype(self) -> str:
        """Type of the first file's inputs as stored."""
        return self._parts[0].layout.dtype

    def holding(self, dtype: DTypeLike) -> str:
        """The type, at least `dtype`, that holds the inputs of all files as they are stored."""
        return holding(dtype, *(part.layout.dtype for part in self._parts)).name

    def holding_targets(self, dtype: DTypeLike) -> str:
        """The type, at least `dtype`, that holds the targets of all files as they are stored."""
        targets = [part.layout.targets for part in self._parts]
        return holding(dtype, *(one.info.dtype for one in targets if one is not None)).name

    @cached_property
    def targets(self) -> TargetInfo | None:
        """What the targets are, or None; a file whose shapes allow both goes with the others."""
        return common_targets([part.layout for part in self._parts])

    @property
    def noun(self) -> str:
        """``sequence`` or ``window``."""
        return "window" if self.windowed else "sequence"

    @property
    def targets_key(self) -> str | None:
        """Name of the targets for `DataOptions.targets`; None if no dataset holds any."""
        part = self._parts[0]
        base = part.layout.base if isinstance(part.layout, Windows) else part.layout
        path = next((path for path, role in base.roles().items() if role == "targets"), None)
        if path is None:
            return None
        name = path.removeprefix(part.folder.path.rstrip("/") + "/")
        return name.partition("/")[2] if isinstance(base, Groups) else name

    def relabeling(self, labels: Sequence[int], label: int) -> str:
        """A command that writes a copy of the first file with other class targets."""
        folder, key = self._parts[0].folder, text(self.targets_key or "")
        own = f"f[{text(folder.path)}]"
        each = f"({own}[n][{key}] for n in {own})" if self.layout == "groups" else f"[{own}[{key}]]"
        value = f"np.where(np.isin(d[...], {list(labels)}), {label}, d[...])"
        command = copying(folder.file, [f"[d.__setitem__(..., {value}) for d in {each}]"])
        return f"{command} has {label} in its place"

    @property
    def targets_are_inputs(self) -> bool:
        """Windows are to predict the inputs themselves, as the data hold no other targets."""
        return self.targets_of == "the inputs themselves"

    @property
    def targets_of(self) -> str | None:
        """Origin of the targets of windows, if it is no dataset of one a step."""
        layout = self.files.layouts[0]
        return layout.targets_of if isinstance(layout, Windows) else None

    @property
    def reversed_features(self) -> int | None:
        """Features if the axes of dense inputs or of a series were the other way round."""
        layout = self.files.layouts[0]
        base = layout.base if isinstance(layout, Windows) else layout
        if isinstance(base, Dense | Series):
            return base.stored.shape[0]
        return None

    @cached_property
    def numbers(self) -> Indices:
        """Sequences that may be learned from: windows of which the targets exist, else all."""
        every = np.arange(self.count, dtype=np.int64)
        known = None if self.targets is None else self.files.known(every)
        return every if known is None else every[known]

    @property
    def description(self) -> str:
        """In a line: ``370 sequences, 7–29 steps, 12 features (concatenated)``."""
        low, high = self.min_steps, self.max_steps
        steps = counted(high, "step") if low == high else f"{low}–{high} steps"
        return (
            f"{counted(self.count, self.noun)}, {steps}, {counted(self.features, 'feature')} "
            f"({self.layout})"
        )

    @cached_property
    def names(self) -> list[str] | None:
        """Names of all sequences, or None if a file does not name them."""
        names: list[str] = []
        for part in self._parts:
            own = part.layout.sequence_names()
            if own is None:
                return None
            names += own
        return names

    @cached_property
    def class_labels(self) -> list[str] | None:
        """Labels of the classes; DataError if two files differ."""
        labels: list[str] | None = None
        for part in self._parts:
            own = part.class_labels
            if own is not None and labels is not None and own != labels:
                raise DataError(
                    f"{part.file.path} labels its classes otherwise than the files before it",
                    expected=", ".join(labels),
                    found=", ".join(own),
                    where=self.paths,
                )
            labels = own if labels is None else labels
        return labels

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """Why datasets that might be taken for targets were not, a sentence each."""
        return tuple(note for part in self._parts for note in part.notes)

    @property
    def sources(self) -> Sources:
        """Where each window was cut; for data that are `windowed`."""
        every = np.arange(self.count, dtype=np.int64)
        of = self.files.file_of(every)
        sequence, step, names = np.zeros_like(every), np.zeros_like(every), []
        for file, layout in enumerate(self.files.layouts):
            if isinstance(layout, Windows):
                own = every[of == file] - self.files.firsts[file]
                sequence[of == file] = layout.cuts.sequences(own)
                step[of == file] = layout.cuts.starts(own)
                named = layout.base.sequence_names()
                names += [] if named is None else [named[n] for n in sequence[of == file].tolist()]
        files = [self._parts[file].argument for file in of.tolist()]
        return Sources(files, sequence, step, names if len(names) == self.count else None)

    def place(self, number: int) -> str:
        """Where the inputs of a sequence stand: in the groups layout, those of its group."""
        layout, within = self._within(number)
        return layout.place(within)

    def sequence(self, number: int) -> str:
        """A sequence by its number in its file, and its name: ``sequence 17 (ba-7)``."""
        layout, within = self._within(number)
        base, window = layout, ""
        if isinstance(layout, Windows):
            window, base = f"window {within} of ", layout.base
            within = int(layout.cuts.sequences(np.array([within]))[0])
        names = base.sequence_names()
        return f"{window}sequence {within}" + ("" if names is None else f" ({names[within]})")

    def input_place(self, number: int, step: int, feature: int) -> str:
        """``words.h5:/inputs, sequence 17, step 3, feature 5``; steps are those of the file."""
        layout, within = self._within(number)
        if isinstance(layout, Windows):
            step += int(layout.cuts.starts(np.array([within]))[0])
        return f"{self.place(number)}, {self.sequence(number)}, step {step}, feature {feature}"

    def target_place(self, number: int, step: int | None, value: int | None) -> str:
        """``words.h5:/targets, sequence 17, step 3, value 5``, as far as they are given."""
        layout, within = self._within(number)
        name = "targets" if layout.targets is None else layout.targets.place(within)
        if isinstance(layout, Windows) and isinstance(layout.targets, StepTargets):
            window, sizes = layout.cuts.window, layout.targets.step_shape
            ahead, value = divmod(value or 0, sizes[0] if sizes else 1)
            value = value if sizes else None
            start = int(layout.cuts.starts(np.array([within]))[0])
            step = start + window.length - 1 + window.horizon + ahead
        parts = [name, self.sequence(number)]
        parts += [] if step is None else [f"step {step}"]
        parts += [] if value is None else [f"value {value}"]
        return ", ".join(parts)

    def _within(self, number: int) -> tuple[Layout, int]:
        """The layout that holds a sequence, and its number there."""
        file = int(self.files.file_of(np.array([number]))[0])
        return self.files.layouts[file], number - int(self.files.firsts[file])

    def lengths(self, first: int = 0, count: int | None = None) -> Lengths:
        """(count,) int64 valid steps of consecutive sequences, by default of all."""
        return self.files.lengths[first : None if count is None else first + count]

    def roles(self) -> dict[str, str]:
        """Path of every dataset used in the first file, and what it was taken for."""
        return self._parts[0].layout.roles()

    def batches(
        self,
        size: int,
        dtype: DTypeLike,
        *,
        targets: bool = True,
        per_step: bool | None = None,
        max_bytes: int = MAX_BATCH_BYTES,
        keep_rows: bool = False,
        room: Room = np.empty,
    ) -> Iterator[Batch]:
        """Batches in order; none holds sequences of two files.

        Parameters
        ----------
        size
            Sequences in a batch, at most.
        dtype
            Of the inputs, and at least of targets that are values.
        targets
            Read them too.
        per_step
            Take targets as one a step, where their shape allows both (`TargetInfo.per_step` is
            None); otherwise without effect.
        max_bytes
            Split a batch whose padded inputs would take more.
        keep_rows
            Never split: stateful layers continue row by row.
        room
            Makes the arrays that inputs are read into.

        Raises
        ------
        DataError
            A file is damaged.
        """
        if size < 1:
            raise UsageError("a batch holds at least one sequence", found=f"size {size}")
        dtype = np.dtype(dtype)
        if self.targets is not None and self.targets.per_step is not None:
            per_step = self.targets.per_step
        for number, part in enumerate(self._parts):
            step_bytes = self.features * dtype.itemsize
            bound = None if keep_rows else max_bytes // step_bytes
            start = 0
            while start < part.layout.count:
                stop = batch_stop(part.layout, start, size, bound)
                x = room(
                    (stop - start, batch_steps(part.layout, start, stop), self.features), dtype
                )
                yield read_batch(part.layout, part.first, number, start, stop, x, targets, per_step)
                start = stop

    @property
    def fits_in_memory(self) -> bool:
        """Whether `take` reads everything once and keeps it."""
        return self._access.in_memory

    def take(self, indices: Indices, dtype: DTypeLike, *, per_step: bool | None = None) -> Batch:
        """Sequences by number, of any files, as a batch in the order of `indices`.

        A small dataset is read at the first call and kept; the bits are the same either way,
        and those of `batches`.

        Parameters
        ----------
        indices
            Numbers (n,), counted over all files; at least one.
        dtype, per_step
            As `batches` takes them.

        Raises
        ------
        DataError
            A file is damaged.
        UsageError
            There is no such sequence.
        """
        return self._access.take(indices, np.dtype(dtype), per_step)

    def close(self) -> None:
        """Close all files."""
        self._files.close()

    def __enter__(self) -> Dataset:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_data(paths: Sequence[str], options: DataOptions | None = None) -> Dataset:
    """Open one or several DATA arguments as one dataset; a context manager.

    Parameters
    ----------
    paths
        ``FILE.h5`` or ``FILE.h5:/group``, each.
    options
        Names, layout and window, where they are not to be found out.

    Raises
    ------
    DataError
        A file is missing, damaged or refused, holds no layout, or does not go with the others.
    """
    options = options or DataOptions()
    if isinstance(paths, str) or not paths:
        raise UsageError("no data", expected="a list of at least one file", found=repr(paths))
    with ExitStack() as files:
        parts: list[Part] = []
        first = 0
        for path in paths:
            file = Hdf5File(
                path,
                allow_external=options.allow_external,
                transpose=options.transpose is True,
            )
            files.callback(file.close)
            layout, reason = open_layout(file.folder, options)
            parts.append(Part(file, file.folder, layout, reason, first, options, path))
            first += layout.count
        need_windows([part.layout for part in parts], options)
        return Dataset(parts, options, files.pop_all())


def _shortest(layout: Layout) -> int:
    return layout.steps if layout.lengths is None else int(layout.lengths.min(initial=layout.steps))


def _total(layout: Layout) -> int:
    return layout.count * layout.steps if layout.lengths is None else int(layout.lengths.sum())


def need_alike(layouts: Sequence[Layout], options: DataOptions) -> None:
    """Raise DataError unless layouts, features and targets of all files go together."""
    _need_one_placing(layouts, options)
    common = common_targets(layouts)
    per_step = None if common is None else common.per_step
    sides: dict[str, Callable[[Layout], object]] = {
        "layout": lambda layout: layout.name,
        "number of features": lambda layout: layout.features,
        "targets": lambda layout: _target_form(layout, per_step),
    }
    for side, of in sides.items():
        for other in layouts[1:]:
            if of(other) != of(layouts[0]):
                raise DataError(
                    f"the files differ in {side}: {of(layouts[0])} in {layouts[0].inputs}, "
                    f"{of(other)} in {other.inputs}",
                    expected=str(of(layouts[0])),
                    found=", ".join(f"{of(one)} in {one.inputs}" for one in layouts),
                    where=options.places(*(layout.inputs for layout in layouts)),
                    hint="run the files one at a time",
                )


def _need_one_placing(layouts: Sequence[Layout], options: DataOptions) -> None:
    """Raise DataError if one file has a target a step and another one a sequence."""
    infos = target_infos(layouts)
    by_step = [info.name for info in infos if info.per_step is True]
    by_sequence = [info.name for info in infos if info.per_step is False]
    if by_step and by_sequence:
        raise DataError(
            "the files differ in targets: one a step in some, one a sequence in others",
            expected=f"one a step, as in {by_step[0]}",
            found=f"one a sequence in {by_sequence[0]}",
            where=options.places(by_step[0], by_sequence[0]),
            hint="run the files one at a time",
        )


def _target_form(layout: Layout, per_step: bool | None) -> str:
    if layout.targets is None:
        return "no targets"
    if isinstance(layout, Windows) and layout.targets_of is not None:
        return f"{layout.targets_of} {layout.targets.info.shape}"
    info = layout.targets.info.placed(per_step)
    # Where the network is to decide, its kinds are those of one a step.
    kind = info.kind if info.per_step is not None else info.placed(True).kind
    return f"{kind} {info.shape}" if info.shape else kind
