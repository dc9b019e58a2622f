"""Roles of the datasets in a group, found by names in the config or by usual names.

The roles are inputs, targets, lengths, offsets, mask, sequence names and class labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from lstm_cli.data.types import Array, DataOptions
from lstm_cli.errors import (
    DataError,
    nearest,
    printable,
    quote,
)
from lstm_cli.hdf5.dataset import Dataset, type_name
from lstm_cli.hdf5.group import Group

INPUTS = ("inputs", "x", "X", "data", "features", "sequences")

LENGTHS = ("lengths", "seqLengths", "sequence_lengths")

OFFSETS = ("offsets",)

MASK = ("mask",)

TARGETS = ("targets", "labels", "y", "targetClasses", "targetPatterns")

NAMES = ("names", "seqTags")

CLASSES = ("classes", "class_names")

OTHER_ROLES = frozenset(LENGTHS + OFFSETS + MASK + TARGETS + NAMES + CLASSES)

MAX_LISTED = 8
"""Largest number of members that an error lists."""


@dataclass(frozen=True)
class DatasetRoles:
    """Datasets of one group by role. Targets are found by `find_targets`."""

    inputs: Dataset | None = None
    lengths: Dataset | None = None
    offsets: Dataset | None = None
    mask: Dataset | None = None

    @property
    def row_divider(self) -> Dataset | None:
        """Lengths or offsets, which divide flat rows into sequences."""
        return self.lengths or self.offsets

    def paths(self, targets: TargetDataset | None = None) -> dict[str, str]:
        """Role of each dataset by its path in the file, with that of the targets."""
        datasets = {role: getattr(self, role) for role in ("inputs", "lengths", "offsets", "mask")}
        paths = {one.path: role for role, one in datasets.items() if one is not None}
        return paths if targets is None else paths | {targets.dataset.path: "targets"}


def find_roles(group: Group, options: DataOptions, *, forced_inputs: bool = True) -> DatasetRoles:
    """Find the inputs, lengths, offsets and mask of a group.

    Parameters
    ----------
    forced_inputs
        A missing dataset of configured inputs is an error.

    Raises
    ------
    DataError
        A configured dataset is missing, or a link leaves the file.
    """
    return DatasetRoles(
        _find_role(group, options, "inputs", INPUTS, required=forced_inputs),
        _as_vector(_find_role(group, options, "lengths", LENGTHS)),
        _as_vector(_find_role(group, options, "offsets", OFFSETS)),
        _find_role(group, options, "mask", MASK),
    )


def _as_vector(dataset: Dataset | None) -> Dataset | None:
    return None if dataset is None else dataset.as_vector()


def _find_role(
    group: Group,
    options: DataOptions,
    role: str,
    usual: tuple[str, ...],
    *,
    required: bool = True,
) -> Dataset | None:
    """The dataset configured for `role`, or the first dataset with a usual name.

    Raises
    ------
    DataError
        The configured dataset is `required` and missing.
    """
    configured: str | None = getattr(options, role)
    if configured is None:
        first = _first_dataset(group, usual)
        if role == "inputs" and first is not None and not first.numeric:
            candidates = (group.dataset(name) for name in usual)
            return next((one for one in candidates if one is not None and one.numeric), None)
        return first
    dataset = group.dataset(configured)
    if dataset is None and required:
        raise missing_error(group, configured, role, options)
    return dataset


def _first_dataset(group: Group, names: tuple[str, ...]) -> Dataset | None:
    for name in names:
        dataset = group.dataset(name)
        if dataset is not None:
            return dataset
    return None


class MissingDatasetError(DataError):
    """A configured dataset is missing."""


def missing_error(group: Group, name: str, role: str, options: DataOptions) -> MissingDatasetError:
    """The error for a configured dataset that is missing."""
    near = nearest(name, group.names())
    setting = quote(f"data.{role}={near}")
    return MissingDatasetError(
        f"{group.where} holds no dataset {name}",
        expected=f"the {role}, as data.{role} says",
        found=group_contents(group),
        where=options.places(group.where),
        hint=f"--set {setting}" if near else f"lstm-cli data {quote(group.file)}",
    )


def group_contents(group: Group) -> str:
    """Members of a group in one line, such as ``frames (5687, 12), lengths (370,)``."""
    members = filter(None, (_member_summary(group, name) for name in group.names()))
    return ", ".join(islice(members, MAX_LISTED)) or "nothing that can be read"


def _member_summary(group: Group, name: str) -> str | None:
    """A member in a few words; None if it cannot be read."""
    try:
        member = group.find(name)
        link = group.soft_link_target(name) if member is None else None
    except DataError:
        return None
    if isinstance(member, Group):
        return f"group {printable(name)}"
    if member is not None:
        return f"{printable(name)} {member.shape}"
    return None if link is None else f"{printable(name)} (a link to {link}, which is missing)"


AS_CLASSES = (
    "in Python, np.unique(texts, return_inverse=True) gives the classes, and the index of each text"
)
"""Hint for targets that are text."""


def require_numeric(
    dataset: Dataset, role: str, places: tuple[str, ...], others: str | None = None
) -> None:
    """Raise DataError unless `dataset` holds integers or real numbers.

    Parameters
    ----------
    role
        Role of the dataset, for the message.
    places
        Places that the error names.
    others
        A hint that names numeric datasets.
    """
    if not dataset.numeric:
        hint = others or f"in a config, data.{role} names another dataset"
        if dataset.text and role == "targets":
            hint = AS_CLASSES
        elif dataset.is_matlab_cell:
            hint = "a struct with one matrix for each sequence, as FILE:/struct, can be read"
        raise DataError(
            f"{role} {dataset.where} does not hold numbers",
            expected="integers or real numbers",
            found=f"type {type_name(dataset)}",
            where=places,
            hint=hint,
        )


def require_length_type(dataset: Dataset, role: str, places: tuple[str, ...]) -> None:
    """Raise DataError unless lengths, offsets or a mask have a type that holds them exactly."""
    mask = role == "mask"
    kinds = "iubf" if mask else "iuf"
    fits = dataset.numeric and not dataset.vlen and dataset.dtype.kind in kinds
    if fits and dataset.dtype != np.float16 and not dataset.is_enum:
        return
    raise DataError(
        f"{role} {dataset.where} {'does' if mask else 'do'} not hold whole numbers",
        expected="booleans or integers" if mask else "integers, such as int64",
        found=f"type {type_name(dataset)}",
        where=places,
        hint=f"in a config, data.{role} names another dataset",
    )


@dataclass(frozen=True)
class TargetDataset:
    """The dataset of the targets.

    Attributes
    ----------
    key
        Name of the dataset in RETURNN's ``targets/data``.
    column
        Column of the targets in RETURNN's ``seqLengths``.
    """

    dataset: Dataset
    key: str | None = None
    column: int | None = None

    def for_counts(self, *counts: int) -> Dataset:
        """The dataset. A single row or column is a vector, unless it has one of `counts` rows."""
        rows, columns = (*self.dataset.shape, 1, 1)[:2]
        return self.dataset if columns > 1 and rows in counts else self.dataset.as_vector()


def find_targets(group: Group, options: DataOptions) -> TargetDataset | None:
    """The configured targets, or targets with a usual name; None if the group has none.

    Raises
    ------
    DataError
        The configured dataset is missing or not numeric, or the choice is ambiguous.
    """
    if options.targets is not None:
        return _configured_targets(group, options.targets, options)
    candidates = (usable_targets(group.find(name), options) for name in TARGETS)
    return next((one for one in candidates if one is not None), None)


def usable_targets(member: Group | Dataset | None, options: DataOptions) -> TargetDataset | None:
    """A member with a usual name as targets; None if it cannot be targets."""
    if isinstance(member, Group):
        return _returnn_targets(member, options)
    if member is None or member.text or member.is_matlab_cell:  # `unread_datasets` notes text
        return None
    require_numeric(member, "targets", options.places(member.where))
    return TargetDataset(member)


def _configured_targets(group: Group, name: str, options: DataOptions) -> TargetDataset | None:
    member = group.find(name)
    if isinstance(member, Group):
        targets = _returnn_targets(member, options)
        if targets is not None:
            return targets
    if not isinstance(member, Dataset):
        if member is None and not options.need_targets:
            return None
        raise missing_error(group, name, "targets", options)
    require_numeric(member, "targets", options.places(member.where))
    path, _, key = name.strip("/").rpartition("/")
    if path.endswith("targets/data"):
        parent = group.group(path.removesuffix("/data"))
        keys = [] if parent is None else _returnn_keys(parent)
        column = 1 + keys.index(key) if key in keys else None
        return TargetDataset(member, key, column)
    return TargetDataset(member)


def _returnn_targets(group: Group, options: DataOptions) -> TargetDataset | None:
    """RETURNN's targets: ``data/classes``, or the only dataset in ``data``."""
    data = group.group("data")
    keys = _returnn_keys(group)
    if data is None or not keys:
        return None
    key = "classes" if "classes" in keys else keys[0]
    if len(keys) > 1 and key != "classes":
        raise DataError(
            f"{data.where} holds several targets",
            expected="one dataset, or one called classes",
            found=", ".join(keys),
            where=options.places(data.where),
            hint=f"in a config, data.targets names one: targets/data/{keys[0]}",
        )
    dataset = data.dataset(key)
    if dataset is None:
        return None
    require_numeric(dataset, "targets", options.places(dataset.where))
    return TargetDataset(dataset, key, 1 + keys.index(key))


def _returnn_keys(group: Group) -> list[str]:
    """Names in ``data``, sorted like the further columns of ``seqLengths``."""
    data = group.group("data")
    return [] if data is None else sorted(data.names())


def read_sequence_names(group: Group, count: int) -> list[str] | None:
    """Names of the sequences in a group; None unless there are `count` names."""
    for name in NAMES:
        dataset = group.dataset(name)
        texts = None if dataset is None else read_texts(dataset)
        if texts is not None and len(texts) == count:
            return texts
    return None


def class_labels(group: Group, root: Group, key: str | None) -> list[str] | None:
    """Class labels of the group, else of the file; None if there are none.

    Class labels are the attribute or dataset ``classes``, ``class_names``, RETURNN's
    ``targets/labels/<key>`` or CURRENNT's ``labels``.
    """
    datasets = (*CLASSES, *(() if key is None else (f"targets/labels/{key}",)), "labels")
    for place in (group, root):
        texts = _texts(place.attribute("classes"))
        if texts:
            return texts
        for name in datasets:
            dataset = place.dataset(name)
            texts = None if dataset is None else read_texts(dataset)
            if texts:
                return texts
    return None


def read_texts(dataset: Dataset) -> list[str] | None:
    """Texts of a dataset of strings, or of NetCDF's characters (N, width); else None."""
    odd = dataset.vlen or dataset.dtype.kind in "cVO"
    if dataset.null or (odd and not dataset.text):
        raise DataError(
            f"{dataset.where} does not hold names",
            expected="texts",
            found=f"type {type_name(dataset)}",
            where=dataset.where,
        )
    if not dataset.text and dataset.dtype.kind != "S":
        return None
    if dataset.rank == 2 and dataset.dtype == np.dtype("S1"):
        rows = np.ascontiguousarray(dataset.read())
        width = rows.shape[1]
        if width == 0:
            return [""] * len(rows)
        return [_text(row) for row in rows.view(f"S{width}")[:, 0]]
    return _texts(dataset.read()) if dataset.rank == 1 else None


def _texts(values: Any) -> list[str] | None:
    """Texts of an array or list of str or bytes; None for other values."""
    if values is None or np.ndim(values) != 1:
        return None
    array: Array = np.asarray(values)
    if array.dtype.kind not in "SUO":
        return None
    items = array.tolist()
    if not all(isinstance(item, str | bytes) for item in items):
        return None
    return [_text(item) for item in items]


def _text(item: str | bytes) -> str:
    return item if isinstance(item, str) else item.decode("utf-8", "replace")


REVERSING_ATTRIBUTES = {"MATLAB_class": "MATLAB", "rhdf5-NA.OK": "R (rhdf5)"}
"""Attributes of datasets, and the program that writes them with reversed axes."""


class ReversedAxesError(DataError):
    """The file declares reversed axes, and the config does not set data.transpose."""


def transpose_hint(options: DataOptions) -> str | None:
    """Hint for a file whose sizes fit in reversed order; None if they are already reversed."""
    if options.transpose:
        return None
    return "--set data.transpose=true, if MATLAB, Julia, Fortran or R wrote the file"


def require_known_axes(inputs: Dataset, options: DataOptions) -> None:
    """Raise `ReversedAxesError` if the file declares reversed axes and no option is set."""
    if options.transpose is not None or inputs.rank < 2:
        return
    program = inputs.reversing_program(REVERSING_ATTRIBUTES)
    if program is None:
        return
    raise ReversedAxesError(
        f"{inputs.where} was written by {program}, which stores the axes in reversed order",
        expected="data.transpose: true to reverse them, or false to keep them",
        found=f"{inputs.shape} as stored, {inputs.shape[::-1]} reversed",
        where=options.places(inputs.where),
        hint="--set data.transpose=true",
    )
