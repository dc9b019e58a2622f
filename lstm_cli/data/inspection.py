"""What an HDF5 file holds, which layout it was taken for, and what is wrong with it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from lstm_cli.data.axes import ReversedAxesError
from lstm_cli.data.dataset import Dataset
from lstm_cli.data.declared import Declared
from lstm_cli.data.dense import Dense, padding_in_front
from lstm_cli.data.files import Hdf5File
from lstm_cli.data.links import Folder
from lstm_cli.data.origin import OriginError, is_network
from lstm_cli.data.part import Part
from lstm_cli.data.recognise import open_layout, parts_of, recognise
from lstm_cli.data.report import FileReport, GroupReport, StoredReport
from lstm_cli.data.roles import INPUTS, LENGTHS, MASK, OFFSETS, TARGETS
from lstm_cli.data.statistics import (
    gather,
    ignored,
    input_problems,
    spare_class,
    target_problems,
)
from lstm_cli.data.storage import Stored, is_word
from lstm_cli.data.types import DataOptions
from lstm_cli.data.vlen import UnknownFeaturesError
from lstm_cli.errors import DataError, Problem, quote_yaml

MAX_DEPTH = 16
SHOWN_NAMES = 5
USUAL = {
    "inputs": INPUTS,
    "targets": TARGETS,
    "lengths": LENGTHS,
    "offsets": OFFSETS,
    "mask": MASK,
}

WINDOW = 20
"""Steps of the windows that are suggested for a series."""


def describe(path: str, options: DataOptions | None = None) -> FileReport:
    """Look a file, or a group of it, through from end to end.

    Parameters
    ----------
    path
        ``FILE.h5`` or ``FILE.h5:/group``.
    options
        As for `open_data`.

    Raises
    ------
    DataError
        The file cannot be opened at all. What is wrong inside it stands in the report.
    """
    options = options or DataOptions()
    try:
        return _described(path, options)
    except ReversedAxesError as error:
        turned = _described(path, replace(options, transpose=True))
        told = [replace(one, hint="in a config, data.transpose: true") for one in error.problems]
        return replace(turned, problems=(*told, *turned.problems))


def holds_data(argument: str) -> str | None:
    """Words for an HDF5 file, or a group of one, that holds no network but data; else None.

    Data are sequences that can be read, and what lstm-cli itself writes: results and gates.
    """
    try:
        with Hdf5File(argument) as file:
            if is_network(file.root):
                return None
            parts = parts_of(file.folder, DataOptions())
            try:
                recognise(file.folder, DataOptions())
            except OriginError as error:
                return error.problems[0].what if error.own else None
            except DataError:
                return f"{argument} holds sequences" if parts else None
            return f"{argument} holds sequences"
    except DataError:
        return None


def holds_network(argument: str) -> bool:
    """Whether an HDF5 file is one of Keras."""
    try:
        with Hdf5File(argument) as file:
            return is_network(file.root)
    except DataError:
        return False


def _described(path: str, options: DataOptions) -> FileReport:
    """The report; `ReversedAxesError` if the file says that its axes are reversed."""
    transpose = options.transpose is True
    with Hdf5File(path, allow_external=options.allow_external, transpose=transpose) as file:
        problems: list[Problem] = []
        groups: list[GroupReport] = []
        roles: dict[str, str] = {}
        keys: dict[str, str] = {}
        for folder in _holders(file.folder, options):
            try:
                groups.append(_any_group(file, folder, options, roles, problems))
            except ReversedAxesError:
                raise
            except DataError as error:
                problems += error.problems
                roles |= getattr(error, "roles", {})
        datasets = tuple(_stored(file.folder, roles, problems))
        if groups:
            keys = _unusual(roles, groups[0], file.path)
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


def _holders(folder: Folder, options: DataOptions) -> list[Folder]:
    """The groups to look into: the parts of a data set, or the group itself."""
    try:
        recognise(folder, options)
    except DataError:
        return parts_of(folder, options) or [folder]
    return [folder]


def _any_group(
    file: Hdf5File,
    folder: Folder,
    options: DataOptions,
    roles: dict[str, str],
    problems: list[Problem],
) -> GroupReport:
    """One group, even if nothing says how many features a step has."""
    try:
        return _group(file, folder, options, roles, problems)
    except UnknownFeaturesError as error:
        problems += error.problems
        guessed = replace(options, features=error.common)
        # What is wrong with a feature, and in which step, is not known without D.
        report = _group(file, folder, guessed, roles, [])
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
            candidates=_divisors(error.common),
        )


def _divisors(number: int) -> tuple[int, ...]:
    small = [k for k in range(1, math.isqrt(number) + 1) if number % k == 0]
    return tuple(sorted({*small, *(number // k for k in small)}))


def _group(
    file: Hdf5File,
    folder: Folder,
    options: DataOptions,
    roles: dict[str, str],
    problems: list[Problem],
) -> GroupReport:
    """Read one group through; adds to `roles` and `problems`."""
    layout, reason = open_layout(folder, options)
    roles |= layout.roles()
    dataset = Dataset([Part(file, folder, layout, reason, 0, options)], options, ExitStack())
    statistics = gather(dataset)
    problems += input_problems(dataset, statistics)
    problems += target_problems(dataset, statistics)
    if isinstance(layout, Dense) and (padding := padding_in_front(layout)) is not None:
        problems.append(padding)
    problems += [Problem(note, where=(folder.where,)) for note in dataset.notes]
    lengths = dataset.lengths()
    labels, names = dataset.class_labels, dataset.names
    return GroupReport(
        folder.where,
        layout.name,
        reason,
        dataset.count,
        dataset.features,
        (dataset.min_steps, float(np.median(lengths)), dataset.max_steps),
        dataset.total_steps,
        dataset.dtype,
        dataset.targets,
        None if names is None else tuple(names[:SHOWN_NAMES]),
        None if labels is None else tuple(labels),
        dict(sorted(statistics.classes.items())),
    )


def _stored(top: Folder, roles: dict[str, str], problems: list[Problem]) -> Iterator[StoredReport]:
    """Every dataset below `top`, each group once whatever links lead to it."""
    seen: set[tuple[int, int]] = set()
    todo = [top]
    while todo:
        folder = todo.pop()
        try:
            identity, names = folder.identity(), folder.names()
        except DataError as error:
            problems += error.problems
            continue
        if identity in seen or folder.path.count("/") > MAX_DEPTH:
            continue
        seen.add(identity)
        below: list[Folder] = []
        for name in names:
            path = f"{folder.path.rstrip('/')}/{name}"
            try:
                found = folder.find(name)
                if isinstance(found, Folder):
                    if not is_word(found.attribute("CLASS"), "TINDEX"):  # of PyTables
                        below.append(found)
                elif found is not None:
                    yield _report(found, roles.get(path, ""))
            except DataError as error:
                problems += error.problems
                yield _stored_report(path, folder.declared(name), "refused")
        todo += reversed(below)


def _report(stored: Stored, role: str) -> StoredReport:
    report = _stored_report(stored.path, stored.declared(), role)
    return replace(report, compression=stored.compression, in_heap=stored.in_heap)


def _stored_report(path: str, told: Declared, role: str) -> StoredReport:
    return StoredReport(
        path, told.shape, told.dtype, told.storage, told.chunks, None, told.nbytes, False, role
    )


def _format(file: Hdf5File) -> str:
    try:
        netcdf = file.root.attribute("_NCProperties") is not None
    except DataError:
        netcdf = False
    return "NetCDF-4 (an HDF5 file)" if netcdf else "HDF5"


def _unusual(roles: dict[str, str], group: GroupReport, file: str) -> dict[str, str]:
    """Keys for a config's ``data``: the datasets that do not bear a usual name."""
    base = group.name.removeprefix(f"{file}:").rstrip("/")
    keys: dict[str, str] = {}
    for path, role in roles.items():
        if not path.startswith(f"{base}/"):
            continue  # of another group
        name = path.removeprefix(f"{base}/")
        if group.layout == "groups":
            if "/" not in name:
                continue  # every dataset is a sequence: one name would leave out the others
            name = name.rpartition("/")[2]
        if role in USUAL and name not in USUAL[role] and not name.startswith("targets/data/"):
            keys.setdefault(role, quote_yaml(name))
    return keys


def _suggestion(groups: list[GroupReport], keys: dict[str, str]) -> str:
    """YAML for the first group: input size, a last layer for its targets, names to set."""
    if not groups:
        return ""
    group = groups[0]
    size = str(group.features)
    if group.features is None:
        size = f"{group.candidates[-1]}  # or another that divides every row"
    lines = ["model:", f"  input_size: {size}", "  layers:"]
    targets = None if group.targets is None else group.targets.placed(True)
    if group.targets is not None and group.targets.per_step is None:
        units = (*group.targets.shape, 1)[0]
        lines.append(f"    # taken as one a step; return_sequences: false and units: {units} take")
        lines.append(f"    # them as {units} a sequence")
    sequences = str(targets is not None and targets.per_step is True).lower()
    lines.append(f"    - {{type: lstm, hidden_size: 100, return_sequences: {sequences}}}")
    loss = "mse"
    if targets is not None and targets.kind == "class" and group.class_counts:
        left_out, spare = ignored(group.class_counts), spare_class(group.class_counts)
        units = spare + 1 if left_out else len(group.class_labels or ()) or spare
        lines.append(f"    - {{type: dense, units: {units}, activation: softmax}}")
        loss = f"cross_entropy\n  class_weights: {{{spare}: 0}}" if left_out else "cross_entropy"
    elif targets is not None:
        units = targets.shape[0] if targets.shape else 1
        lines.append(f"    - {{type: dense, units: {units}}}")
    steps = group.steps[2] if group.layout == "series" and group.steps is not None else 0
    series = targets is None and steps > 2
    if series:  # the next value from those before it
        lines.append(f"    - {{type: dense, units: {group.features}}}")
    named = [f"  {role}: {name}" for role, name in keys.items()]
    if series:
        length = min(WINDOW, steps // 2)
        named.append(f"  window: {{length: {length}, stride: 1, horizon: 1}}")
    if named:
        lines += ["data:", *named]
    if targets is not None or series:
        lines += ["train:", f"  loss: {loss}"]
    return "\n".join(lines) + "\n"
