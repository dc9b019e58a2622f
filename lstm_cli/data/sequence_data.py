"""The data of one run: the sequences of one or several files, read in batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import DTypeLike

from lstm_cli.data.batches import (
    FileLayouts,
    Indices,
    RandomAccess,
    batch_steps,
    batch_stop,
    common_target_info,
    read_batch,
    target_infos,
)
from lstm_cli.data.dataset_roles import class_labels
from lstm_cli.data.file_arguments import allow_open_files, data_files
from lstm_cli.data.layouts.base import SequenceLayout
from lstm_cli.data.layouts.dense import DenseLayout
from lstm_cli.data.layouts.detection import open_layout
from lstm_cli.data.layouts.groups import Groups
from lstm_cli.data.layouts.series import Series
from lstm_cli.data.lengths import Lengths
from lstm_cli.data.not_sequences import netcdf_notes
from lstm_cli.data.types import (
    MAX_BATCH_BYTES,
    Allocator,
    Batch,
    DataOptions,
    TargetInfo,
    common_dtype,
)
from lstm_cli.data.unread_datasets import unread_notes
from lstm_cli.data.windows import StepTargets, Windows, require_windows
from lstm_cli.errors import DataError, UsageError, counted
from lstm_cli.hdf5.file import Hdf5File
from lstm_cli.hdf5.group import Group
from lstm_cli.hdf5.writer import changed_copy_command, python_string


@dataclass(frozen=True)
class DataSource:
    """One file of a dataset: its sequences, and the number of the first one.

    Attributes
    ----------
    file, group
        The open file, and the group with the sequences.
    layout, reason
        The sequences, and the reason for their layout in words.
    first
        Number of the first sequence, counted over all files.
    options
        Options for reading.
    argument
        The file with its group as typed, or as a folder or a pattern gave it.
    """

    file: Hdf5File
    group: Group
    layout: SequenceLayout
    reason: str
    first: int
    options: DataOptions
    argument: str = ""

    @property
    def class_labels(self) -> list[str] | None:
        """Class labels, or None."""
        targets = self.layout.targets
        key = None if targets is None else targets.info.name.rpartition("/")[2]
        return class_labels(self.group, self.file.root, key)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on data in the file that are not read, or not used by windows."""
        window_notes = self.layout.notes if isinstance(self.layout, Windows) else ()
        base = self.layout.base if isinstance(self.layout, Windows) else self.layout
        path = next((path for path, role in base.roles().items() if role == "inputs"), "")
        inputs = self.group.dataset(path)
        netcdf = () if inputs is None else netcdf_notes(self.group, inputs)
        return (*unread_notes(self.group, base, self.options), *netcdf, *window_notes)


@dataclass(frozen=True)
class Origins:
    """Origins of N sequences or windows.

    Attributes
    ----------
    files
        File of each sequence, with its group, as typed.
    sequence
        (N,) number of each sequence, or of each window's sequence, in its file, from 0.
    step
        (N,) first step of each window in its sequence; None without windows.
    names
        Name of each sequence, or of each window's; None if the files have no names.
    """

    files: list[str]
    sequence: Indices
    step: Indices | None
    names: list[str] | None


class SequenceData:
    """Sequences of one or several files, in the order of the files. Made by `open_data`.

    Attributes
    ----------
    count, features
        Number of sequences N over all files, and of features D.
    layout
        One of ``dense, concatenated, vlen, groups, series``.
    min_steps, max_steps, total_steps
        Valid steps of the shortest and longest sequence, and of all together.
    varying
        The lengths vary, or the files hold lengths.
    windowed
        The sequences are windows of other sequences.
    padded, width
        Results are written as (N, T, F) with T = `width`: for dense inputs and windows.
    input_names
        File and path of the inputs of each file, such as ``words.h5:/test/inputs``.
    starts
        Number of the first sequence, and count of sequences, of each file.
    paths, arguments
        Paths of the files, and these with their groups as typed.
    reasons
        Reason for the layout of each file, in words.
    files
        Layouts of the files.
    """

    def __init__(
        self, sources: Sequence[DataSource], options: DataOptions, files: ExitStack
    ) -> None:
        self._sources = tuple(sources)
        self._files = files
        layouts = [source.layout for source in sources]
        _require_compatible(layouts, options)
        self.count = sum(layout.count for layout in layouts)
        self.features = layouts[0].features
        self.layout = layouts[0].name
        self.padded = layouts[0].padded
        self.windowed = isinstance(layouts[0], Windows)
        self.max_steps = max(layout.steps for layout in layouts)
        self.min_steps = min(_min_steps(layout) for layout in layouts)
        self.width = max(layout.width for layout in layouts)
        self.total_steps = sum(_total_steps(layout) for layout in layouts)
        has_lengths = any(layout.lengths is not None for layout in layouts)
        self.varying = has_lengths or self.min_steps != self.max_steps
        self.input_names = tuple(layout.inputs for layout in layouts)
        self.starts = tuple((source.first, source.layout.count) for source in sources)
        self.paths = tuple(source.file.path for source in sources)
        self.arguments = tuple(source.argument for source in sources)
        self.reasons = tuple(source.reason for source in sources)
        self.files = FileLayouts(tuple(layouts))
        self._access = RandomAccess(self.files)

    @property
    def input_name(self) -> str:
        """File and path of the inputs of the first file."""
        return self.input_names[0]

    @property
    def dtype(self) -> str:
        """Type of the inputs in the first file."""
        return self._sources[0].layout.dtype

    def dtype_for_inputs(self, dtype: DTypeLike) -> str:
        """The type, at least `dtype`, that holds the inputs of all files exactly."""
        return common_dtype(dtype, *(source.layout.dtype for source in self._sources)).name

    def dtype_for_targets(self, dtype: DTypeLike) -> str:
        """The type, at least `dtype`, that holds the targets of all files exactly."""
        targets = [source.layout.targets for source in self._sources]
        return common_dtype(dtype, *(one.info.dtype for one in targets if one is not None)).name

    @cached_property
    def targets(self) -> TargetInfo | None:
        """Facts about the targets of all files, or None."""
        return common_target_info([source.layout for source in self._sources])

    @property
    def noun(self) -> str:
        """``sequence`` or ``window``."""
        return "window" if self.windowed else "sequence"

    @property
    def targets_key(self) -> str | None:
        """Name of the targets for `DataOptions.targets`; None if no dataset holds targets."""
        source = self._sources[0]
        base = source.layout.base if isinstance(source.layout, Windows) else source.layout
        path = next((path for path, role in base.roles().items() if role == "targets"), None)
        if path is None:
            return None
        name = path.removeprefix(source.group.path.rstrip("/") + "/")
        return name.partition("/")[2] if isinstance(base, Groups) else name

    def relabeling_command(self, labels: Sequence[int], label: int) -> str:
        """A command that writes a copy of the first file with `labels` replaced by `label`."""
        group, key = self._sources[0].group, python_string(self.targets_key or "")
        parent = f"f[{python_string(group.path)}]"
        datasets = f"[{parent}[{key}]]"
        if self.layout == "groups":
            datasets = f"({parent}[n][{key}] for n in {parent})"
        value = f"np.where(np.isin(d[...], {list(labels)}), {label}, d[...])"
        command = changed_copy_command(
            group.file, [f"[d.__setitem__(..., {value}) for d in {datasets}]"]
        )
        return f"{command} has {label} in its place"

    @property
    def targets_are_inputs(self) -> bool:
        """Whether windows predict the inputs themselves, as the data hold no other targets."""
        return self.targets_origin == "the inputs themselves"

    @property
    def targets_origin(self) -> str | None:
        """Origin of the targets of windows in words; None for a dataset of targets per step."""
        layout = self.files.layouts[0]
        return layout.targets_origin if isinstance(layout, Windows) else None

    @property
    def reversed_features(self) -> int | None:
        """Features of dense inputs or of a series if their axes were reversed; else None."""
        layout = self.files.layouts[0]
        base = layout.base if isinstance(layout, Windows) else layout
        if isinstance(base, DenseLayout | Series):
            return base.dataset.shape[0]
        return None

    @cached_property
    def numbers(self) -> Indices:
        """Numbers of the sequences for training: windows with targets, else all sequences."""
        numbers = np.arange(self.count, dtype=np.int64)
        has_target = None if self.targets is None else self.files.has_target(numbers)
        return numbers if has_target is None else numbers[has_target]

    @property
    def description(self) -> str:
        """The data in one line: ``370 sequences, 7–29 steps, 12 features (concatenated)``."""
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
        for source in self._sources:
            file_names = source.layout.sequence_names()
            if file_names is None:
                return None
            names += file_names
        return names

    @cached_property
    def class_labels(self) -> list[str] | None:
        """Class labels, or None; DataError if two files differ."""
        labels: list[str] | None = None
        for source in self._sources:
            file_labels = source.class_labels
            if file_labels is not None and labels is not None and file_labels != labels:
                raise DataError(
                    f"{source.file.path} has other class labels than the files before it",
                    expected=", ".join(labels),
                    found=", ".join(file_labels),
                    where=self.paths,
                )
            labels = file_labels if labels is None else labels
        return labels

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """Notes on data that are not read, one sentence each."""
        return tuple(note for source in self._sources for note in source.notes)

    def origins(self, first: int, stop: int) -> Origins:
        """Origins of the sequences from `first` to `stop`."""
        numbers = np.arange(first, stop, dtype=np.int64)
        file_numbers = self.files.file_of(numbers)
        sequence = numbers - self.files.firsts[file_numbers]
        step = np.zeros_like(numbers) if self.windowed else None
        for file, layout in enumerate(self.files.layouts):
            if isinstance(layout, Windows) and step is not None:
                in_file = file_numbers == file
                windows = sequence[in_file]
                sequence[in_file] = layout.positions.sequences(windows)
                step[in_file] = layout.positions.starts(windows)
        files = [self.arguments[file] for file in file_numbers.tolist()]
        names = None
        if self.has_names:
            places = zip(file_numbers.tolist(), sequence.tolist(), strict=True)
            names = [(self._uncut_names[file] or [])[number] for file, number in places]
        return Origins(files, sequence, step, names)

    @property
    def has_names(self) -> bool:
        """Whether all files name their sequences, or those that windows are cut from."""
        return None not in self._uncut_names

    @cached_property
    def _uncut_names(self) -> list[list[str] | None]:
        """Names of the uncut sequences of each file."""
        layouts = self.files.layouts
        uncut = (layout.base if isinstance(layout, Windows) else layout for layout in layouts)
        return [layout.sequence_names() for layout in uncut]

    def place(self, number: int) -> str:
        """File and path of the inputs of a sequence."""
        layout, local_number = self._locate(number)
        return layout.place(local_number)

    def sequence(self, number: int) -> str:
        """Label of a sequence with its number in the file and its name: ``sequence 17 (ba-7)``."""
        layout, local_number = self._locate(number)
        base, window = layout, ""
        if isinstance(layout, Windows):
            window, base = f"window {local_number} of ", layout.base
            local_number = int(layout.positions.sequences(np.array([local_number]))[0])
        names = base.sequence_names()
        return f"{window}sequence {local_number}" + (
            "" if names is None else f" ({names[local_number]})"
        )

    def input_location(self, number: int, step: int, feature: int) -> str:
        """Location of a value: ``words.h5:/inputs, sequence 17, step 3, feature 5``.

        Steps are counted in the sequence of the file, also for windows.
        """
        layout, local_number = self._locate(number)
        if isinstance(layout, Windows):
            step += int(layout.positions.starts(np.array([local_number]))[0])
        return f"{self.place(number)}, {self.sequence(number)}, step {step}, feature {feature}"

    def target_location(self, number: int, step: int | None, value: int | None) -> str:
        """Location of a target: ``words.h5:/targets, sequence 17, step 3, value 5``."""
        layout, local_number = self._locate(number)
        name = "targets" if layout.targets is None else layout.targets.place(local_number)
        if isinstance(layout, Windows) and isinstance(layout.targets, StepTargets):
            window, sizes = layout.positions.window, layout.targets.step_shape
            ahead, value = divmod(value or 0, sizes[0] if sizes else 1)
            value = value if sizes else None
            start = int(layout.positions.starts(np.array([local_number]))[0])
            step = start + window.length - 1 + window.horizon + ahead
        parts = [name, self.sequence(number)]
        parts += [] if step is None else [f"step {step}"]
        parts += [] if value is None else [f"value {value}"]
        return ", ".join(parts)

    def _locate(self, number: int) -> tuple[SequenceLayout, int]:
        file = int(self.files.file_of(np.array([number]))[0])
        return self.files.layouts[file], number - int(self.files.firsts[file])

    def lengths(self, first: int = 0, count: int | None = None) -> Lengths:
        """(count,) int64 valid steps of consecutive sequences, by default of all sequences."""
        return self.files.lengths[first : None if count is None else first + count]

    def roles(self) -> dict[str, str]:
        """Role of every dataset in use in the first file, by its path."""
        return self._sources[0].layout.roles()

    def batches(
        self,
        size: int,
        dtype: DTypeLike,
        *,
        targets: bool = True,
        per_step: bool | None = None,
        max_bytes: int = MAX_BATCH_BYTES,
        keep_rows: bool = False,
        allocate: Allocator = np.empty,
        span: tuple[int, int] | None = None,
    ) -> Iterator[Batch]:
        """Batches in the order of the files. Each batch holds sequences of one file.

        Parameters
        ----------
        size
            Largest number of sequences in a batch.
        dtype
            Type of the inputs, and at least of targets that are values.
        targets
            Read the targets too.
        per_step
            Take targets as one per step if their shape allows both (`TargetInfo.per_step` is
            None); otherwise without effect.
        max_bytes
            Split a batch if its padded inputs would take more bytes.
        keep_rows
            Never split a batch: stateful layers continue row by row.
        allocate
            Makes the arrays for the inputs.
        span
            Number of the first sequence, and of the one after the last; None: all.

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
        for number, source in enumerate(self._sources):
            step_bytes = self.features * dtype.itemsize
            bound = None if keep_rows else max_bytes // step_bytes
            start, end = 0, source.layout.count
            if span is not None:
                start, end = max(0, span[0] - source.first), min(end, span[1] - source.first)
            while start < end:
                stop = min(end, batch_stop(source.layout, start, size, bound))
                shape = (stop - start, batch_steps(source.layout, start, stop), self.features)
                x = allocate(shape, dtype)
                yield read_batch(
                    source.layout, source.first, number, start, stop, x, targets, per_step
                )
                start = stop

    @property
    def fits_in_memory(self) -> bool:
        """Whether `take` loads all sequences into memory at its first call."""
        return self._access.in_memory

    def take(self, indices: Indices, dtype: DTypeLike, *, per_step: bool | None = None) -> Batch:
        """Sequences of any files by number, as a batch in the order of `indices`.

        Small data are loaded into memory at the first call. The values have the same bits as
        those of `batches` in both cases.

        Parameters
        ----------
        indices
            Numbers (n,), counted over all files; at least one.
        dtype, per_step
            See `batches`.

        Raises
        ------
        DataError
            A file is damaged.
        UsageError
            A number is out of range.
        """
        return self._access.take(indices, np.dtype(dtype), per_step)

    def close(self) -> None:
        """Close all files."""
        self._files.close()

    def __enter__(self) -> SequenceData:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_data(paths: Sequence[str], options: DataOptions | None = None) -> SequenceData:
    """Open one or several DATA arguments as one dataset; a context manager.

    Parameters
    ----------
    paths
        ``FILE.h5`` or ``FILE.h5:/group``, each; or a folder, or a pattern of `glob`.
    options
        Names, layout and window. Other properties are detected.

    Raises
    ------
    DataError
        A file is missing, damaged or refused, holds no layout, or does not fit the others; or
        there is none.
    """
    options = options or DataOptions()
    if isinstance(paths, str) or not paths:
        raise UsageError("no data", expected="a list of at least one file", found=repr(paths))
    with ExitStack() as files:
        sources: list[DataSource] = []
        first = 0
        names = data_files(paths)
        allow_open_files(len(names))
        for path in names:
            file = Hdf5File(
                path,
                allow_external=options.allow_external,
                transpose=options.transpose is True,
            )
            files.callback(file.close)
            layout, reason = open_layout(file.group, options)
            sources.append(DataSource(file, file.group, layout, reason, first, options, path))
            first += layout.count
        require_windows([source.layout for source in sources], options)
        return SequenceData(sources, options, files.pop_all())


def _min_steps(layout: SequenceLayout) -> int:
    return layout.steps if layout.lengths is None else int(layout.lengths.min(initial=layout.steps))


def _total_steps(layout: SequenceLayout) -> int:
    return layout.count * layout.steps if layout.lengths is None else int(layout.lengths.sum())


def _require_compatible(layouts: Sequence[SequenceLayout], options: DataOptions) -> None:
    """Raise DataError unless layouts, features and targets of all files are the same."""
    _require_one_placement(layouts, options)
    common = common_target_info(layouts)
    per_step = None if common is None else common.per_step
    properties: dict[str, Callable[[SequenceLayout], object]] = {
        "layout": lambda layout: layout.name,
        "number of features": lambda layout: layout.features,
        "targets": lambda layout: _target_form(layout, per_step),
    }
    for noun, value in properties.items():
        for other in layouts[1:]:
            if value(other) != value(layouts[0]):
                raise DataError(
                    f"the files differ in {noun}: {value(layouts[0])} in {layouts[0].inputs}, "
                    f"{value(other)} in {other.inputs}",
                    expected=str(value(layouts[0])),
                    found=", ".join(f"{value(one)} in {one.inputs}" for one in layouts),
                    where=options.places(*(layout.inputs for layout in layouts)),
                    hint="run the files one at a time",
                )


def _require_one_placement(layouts: Sequence[SequenceLayout], options: DataOptions) -> None:
    """Raise DataError if one file has targets per step and another one per sequence."""
    infos = target_infos(layouts)
    by_step = [info.name for info in infos if info.per_step is True]
    by_sequence = [info.name for info in infos if info.per_step is False]
    if by_step and by_sequence:
        raise DataError(
            "the files differ in targets: one per step in some, one per sequence in others",
            expected=f"one per step, as in {by_step[0]}",
            found=f"one per sequence in {by_sequence[0]}",
            where=options.places(by_step[0], by_sequence[0]),
            hint="run the files one at a time",
        )


def _target_form(layout: SequenceLayout, per_step: bool | None) -> str:
    if layout.targets is None:
        return "no targets"
    if isinstance(layout, Windows) and layout.targets_origin is not None:
        return f"{layout.targets_origin} {layout.targets.info.shape}"
    info = layout.targets.info.resolve(per_step)
    # If the network decides, the kind is that of targets per step.
    kind = info.kind if info.per_step is not None else info.resolve(True).kind
    return f"{kind} {info.shape}" if info.shape else kind
