"""Inspection of an HDF5 file for `lstm-cli data`: datasets, layouts and problems."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np

from lstm_cli.data.dataset_roles import INPUTS, LENGTHS, MASK, OFFSETS, TARGETS, ReversedAxesError
from lstm_cli.data.layouts.dense import DenseLayout, padding_in_front
from lstm_cli.data.layouts.detection import detect_layout, open_layout, subgroups_with_layout
from lstm_cli.data.layouts.vlen import UnknownFeaturesError
from lstm_cli.data.not_sequences import NotSequencesError, is_keras_network
from lstm_cli.data.sequence_data import DataSource, SequenceData
from lstm_cli.data.statistics import (
    ignored_labels,
    input_problems,
    scan_data,
    spare_class,
    target_problems,
)
from lstm_cli.data.types import DataOptions, TargetInfo
from lstm_cli.errors import DataError, Problem, quote_yaml
from lstm_cli.hdf5.dataset import Dataset, is_word
from lstm_cli.hdf5.file import Hdf5File
from lstm_cli.hdf5.group import Group
from lstm_cli.hdf5.limits import DatasetMetadata

Spread: TypeAlias = tuple[int, float, int]
"""Smallest, median and largest value."""


@dataclass(frozen=True)
class DatasetReport:
    """Facts about one dataset.

    Attributes
    ----------
    path
        Path in the file.
    shape, dtype
        Declared shape and type; None and ``?`` if the dataset cannot be opened.
    storage
        ``contiguous``, ``chunked``, ``compact``, ``virtual``, ``external storage``, ``external
        link``, or ``unreadable``.
    chunks, compression
        None for contiguous or uncompressed storage.
    nbytes
        Bytes of the dataset in the file, or None.
    in_heap
        The dataset holds references; the values of variable length are stored in the heap.
    role
        Role of the dataset: ``inputs``, ``targets``, ..., ``refused``, or empty.
    """

    path: str
    shape: tuple[int, ...] | None
    dtype: str
    storage: str
    chunks: tuple[int, ...] | None
    compression: str | None
    nbytes: int | None
    in_heap: bool
    role: str


@dataclass(frozen=True)
class GroupReport:
    """Facts about a group that holds sequences.

    Attributes
    ----------
    name
        File and path, such as ``words.h5:/test``.
    layout, reason
        Layout of the group, and the reason in words.
    count, features
        Number of sequences N and of features D.
    steps
        Steps of the shortest, median and longest sequence.
    total_steps
        Steps of all sequences together.
    dtype
        Type of the inputs in the file.
    targets
        Facts about the targets, or None.
    names
        The first few sequence names, or None.
    class_labels
        Labels of the classes, or None.
    class_counts
        Count of each class index in the targets, if they may be class indices.
    values, candidates
        Values in the shortest, median and longest row, and the divisors of all rows. Both are
        set if D is unknown; then `features`, `steps` and `total_steps` are None.
    """

    name: str
    layout: str
    reason: str
    count: int
    features: int | None
    steps: Spread | None
    total_steps: int | None
    dtype: str
    targets: TargetInfo | None
    names: tuple[str, ...] | None
    class_labels: tuple[str, ...] | None
    class_counts: Mapping[int, int]
    values: Spread | None = None
    candidates: tuple[int, ...] = ()


@dataclass(frozen=True)
class FileReport:
    """Facts about a file: its datasets, the groups that hold sequences, and all problems.

    Attributes
    ----------
    path, size
        Path and bytes of the file.
    format
        ``HDF5`` or ``NetCDF-4``.
    datasets, groups
        Datasets, and groups with sequences.
    problems
        All problems; empty if there are none.
    suggestion
        YAML to begin a config with, or empty.
    """

    path: str
    size: int
    format: str
    datasets: tuple[DatasetReport, ...]
    groups: tuple[GroupReport, ...]
    problems: tuple[Problem, ...]
    suggestion: str


MAX_DEPTH = 16
"""Largest depth of groups that are read."""

MAX_NAMES = 5
"""Largest number of sequence names in a report."""

USUAL_NAMES = {
    "inputs": INPUTS,
    "targets": TARGETS,
    "lengths": LENGTHS,
    "offsets": OFFSETS,
    "mask": MASK,
}
"""Usual names of datasets by role."""

SUGGESTED_WINDOW = 20
"""Largest number of steps of the windows that are suggested for a series."""


def describe(path: str, options: DataOptions | None = None) -> FileReport:
    """Inspect a file, or one group of it, from end to end.

    Parameters
    ----------
    path
        ``FILE.h5`` or ``FILE.h5:/group``.
    options
        See `open_data`.

    Raises
    ------
    DataError
        The file cannot be opened at all. The report holds all other problems.
    """
    options = options or DataOptions()
    try:
        return _describe(path, options)
    except ReversedAxesError as error:
        report = _describe(path, replace(options, transpose=True))
        axes = [replace(one, hint="in a config, data.transpose: true") for one in error.problems]
        return replace(report, problems=(*axes, *report.problems))


def holds_data(argument: str) -> str | None:
    """Description of an HDF5 file, or a group, that holds data and no network; else None.

    Data are sequences, and results and gates of lstm-cli.
    """
    try:
        with Hdf5File(argument) as file:
            if is_keras_network(file.root):
                return None
            subgroups = subgroups_with_layout(file.group, DataOptions())
            try:
                detect_layout(file.group, DataOptions())
            except NotSequencesError as error:
                return error.problems[0].what if error.by_lstm_cli else None
            except DataError:
                return f"{argument} holds sequences" if subgroups else None
            return f"{argument} holds sequences"
    except DataError:
        return None


def holds_network(argument: str) -> bool:
    """Whether an HDF5 file holds a Keras network."""
    try:
        with Hdf5File(argument) as file:
            return is_keras_network(file.root)
    except DataError:
        return False


def _describe(path: str, options: DataOptions) -> FileReport:
    """The report; `ReversedAxesError` if the file declares reversed axes."""
    transpose = options.transpose is True
    with Hdf5File(path, allow_external=options.allow_external, transpose=transpose) as file:
        problems: list[Problem] = []
        groups: list[GroupReport] = []
        roles: dict[str, str] = {}
        keys: dict[str, str] = {}
        for group in _groups_with_layout(file.group, options):
            try:
                groups.append(_report_group(file, group, options, roles, problems))
            except ReversedAxesError:
                raise
            except DataError as error:
                problems += error.problems
                roles |= getattr(error, "roles", {})
        datasets = tuple(_dataset_reports(file.group, roles, problems))
        if groups:
            keys = _config_keys(roles, groups[0], file.path)
            keys |= {"transpose": "true"} if transpose else {}
        return FileReport(
            file.path,
            os.path.getsize(file.path),
            _format(file),
            datasets,
            tuple(groups),
            tuple(dict.fromkeys(problems)),
            _suggestion(groups, keys),
        )


def _groups_with_layout(group: Group, options: DataOptions) -> list[Group]:
    try:
        detect_layout(group, options)
    except DataError:
        return subgroups_with_layout(group, options) or [group]
    return [group]


def _report_group(
    file: Hdf5File,
    group: Group,
    options: DataOptions,
    roles: dict[str, str],
    problems: list[Problem],
) -> GroupReport:
    """Report on one group, even if the number of features is unknown."""
    try:
        return _group_report(file, group, options, roles, problems)
    except UnknownFeaturesError as error:
        problems += error.problems
        with_features = replace(options, features=error.common_divisor)
        # Problems of features and steps are unknown without D: they are dropped.
        report = _group_report(file, group, with_features, roles, [])
        low, middle, high = np.quantile(error.sizes, (0, 0.5, 1)).tolist()
        by_sequence = report.targets is not None and report.targets.per_step is False
        return replace(
            report,
            features=None,
            steps=None,
            total_steps=None,
            targets=report.targets if by_sequence else None,
            class_counts=report.class_counts if by_sequence else {},
            values=(int(low), middle, int(high)),
            candidates=_divisors(error.common_divisor),
        )


def _divisors(number: int) -> tuple[int, ...]:
    small = [k for k in range(1, math.isqrt(number) + 1) if number % k == 0]
    return tuple(sorted({*small, *(number // k for k in small)}))


def _group_report(
    file: Hdf5File,
    group: Group,
    options: DataOptions,
    roles: dict[str, str],
    problems: list[Problem],
) -> GroupReport:
    """Report on one group. Adds to `roles` and `problems`."""
    layout, reason = open_layout(group, options)
    roles |= layout.roles()
    dataset = SequenceData(
        [DataSource(file, group, layout, reason, 0, options)], options, ExitStack()
    )
    scan = scan_data(dataset)
    problems += input_problems(dataset, scan)
    problems += target_problems(dataset, scan)
    if isinstance(layout, DenseLayout) and (padding := padding_in_front(layout)) is not None:
        problems.append(padding)
    problems += [Problem(note, where=(group.where,)) for note in dataset.notes]
    lengths = dataset.lengths()
    labels, names = dataset.class_labels, dataset.names
    return GroupReport(
        group.where,
        layout.name,
        reason,
        dataset.count,
        dataset.features,
        (dataset.min_steps, float(np.median(lengths)), dataset.max_steps),
        dataset.total_steps,
        dataset.dtype,
        dataset.targets,
        None if names is None else tuple(names[:MAX_NAMES]),
        None if labels is None else tuple(labels),
        dict(sorted(scan.classes.items())),
    )


def _dataset_reports(
    top: Group, roles: dict[str, str], problems: list[Problem]
) -> Iterator[DatasetReport]:
    """Report on every dataset below a group. Each group is visited once."""
    visited: set[tuple[int, int]] = set()
    todo = [top]
    while todo:
        group = todo.pop()
        try:
            identity, names = group.identity(), group.names()
        except DataError as error:
            problems += error.problems
            continue
        if identity in visited or group.path.count("/") > MAX_DEPTH:
            continue
        visited.add(identity)
        below: list[Group] = []
        for name in names:
            path = f"{group.path.rstrip('/')}/{name}"
            try:
                member = group.find(name)
                if isinstance(member, Group):
                    if not is_word(member.attribute("CLASS"), "TINDEX"):  # index of PyTables
                        below.append(member)
                elif member is not None:
                    yield _dataset_report(member, roles.get(path, ""))
            except DataError as error:
                problems += error.problems
                yield _metadata_report(path, group.read_metadata(name), "refused")
        todo += reversed(below)


def _dataset_report(dataset: Dataset, role: str) -> DatasetReport:
    report = _metadata_report(dataset.path, dataset.read_metadata(), role)
    return replace(report, compression=dataset.compression, in_heap=dataset.in_heap)


def _metadata_report(path: str, metadata: DatasetMetadata, role: str) -> DatasetReport:
    return DatasetReport(
        path,
        metadata.shape,
        metadata.dtype,
        metadata.storage,
        metadata.chunks,
        None,
        metadata.nbytes,
        False,
        role,
    )


def _format(file: Hdf5File) -> str:
    try:
        netcdf = file.root.attribute("_NCProperties") is not None
    except DataError:
        netcdf = False
    return "NetCDF-4 (an HDF5 file)" if netcdf else "HDF5"


def _config_keys(roles: dict[str, str], group: GroupReport, file: str) -> dict[str, str]:
    """Keys of ``data`` in a config for the datasets without a usual name."""
    base = group.name.removeprefix(f"{file}:").rstrip("/")
    keys: dict[str, str] = {}
    for path, role in roles.items():
        if not path.startswith(f"{base}/"):
            continue  # another group
        name = path.removeprefix(f"{base}/")
        if group.layout == "groups":
            if "/" not in name:
                continue  # every dataset is a sequence: a name would exclude the others
            name = name.rpartition("/")[2]
        if (
            role in USUAL_NAMES
            and name not in USUAL_NAMES[role]
            and not name.startswith("targets/data/")
        ):
            keys.setdefault(role, quote_yaml(name))
    return keys


def _suggestion(groups: list[GroupReport], keys: dict[str, str]) -> str:
    """YAML of a config for the first group: input size, last layer, names of datasets."""
    if not groups:
        return ""
    group = groups[0]
    size = str(group.features)
    if group.features is None:
        size = f"{group.candidates[-1]}  # or another divisor of all row sizes"
    lines = ["model:", f"  input_size: {size}", "  layers:"]
    targets = None if group.targets is None else group.targets.resolve(True)
    if group.targets is not None and group.targets.per_step is None:
        units = (*group.targets.shape, 1)[0]
        lines.append("    # the targets are read as one per step; to read them as")
        lines.append(f"    # {units} per sequence: return_sequences: false and units: {units}")
    sequences = str(targets is not None and targets.per_step is True).lower()
    lines.append(f"    - {{type: lstm, hidden_size: 100, return_sequences: {sequences}}}")
    loss = "mse"
    if targets is not None and targets.kind == "class" and group.class_counts:
        ignored, spare = ignored_labels(group.class_counts), spare_class(group.class_counts)
        units = spare + 1 if ignored else len(group.class_labels or ()) or spare
        lines.append(f"    - {{type: dense, units: {units}, activation: softmax}}")
        loss = f"cross_entropy\n  class_weights: {{{spare}: 0}}" if ignored else "cross_entropy"
    elif targets is not None:
        units = targets.shape[0] if targets.shape else 1
        lines.append(f"    - {{type: dense, units: {units}}}")
    steps = group.steps[2] if group.layout == "series" and group.steps is not None else 0
    series = targets is None and steps > 2
    if series:  # forecast of the next value
        lines.append(f"    - {{type: dense, units: {group.features}}}")
    data_lines = [f"  {role}: {name}" for role, name in keys.items()]
    if series:
        length = min(SUGGESTED_WINDOW, steps // 2)
        data_lines.append(f"  window: {{length: {length}, stride: 1, horizon: 1}}")
    if data_lines:
        lines += ["data:", *data_lines]
    if targets is not None or series:
        lines += ["train:", f"  loss: {loss}"]
    return "\n".join(lines) + "\n"
