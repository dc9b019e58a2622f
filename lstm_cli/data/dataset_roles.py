"""Which dataset of a group plays which role: found by the config's name, or by the usual ones."""

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
from lstm_cli.hdf5.dataset import Stored, type_name
from lstm_cli.hdf5.group import Folder

INPUTS = ("inputs", "x", "X", "data", "features", "sequences")

LENGTHS = ("lengths", "seqLengths", "sequence_lengths")

OFFSETS = ("offsets",)

MASK = ("mask",)

TARGETS = ("targets", "labels", "y", "targetClasses", "targetPatterns")

NAMES = ("names", "seqTags")

CLASSES = ("classes", "class_names")

OTHER_ROLES = frozenset(LENGTHS + OFFSETS + MASK + TARGETS + NAMES + CLASSES)

SHOWN = 8
"""Members of a group that an error lists."""


@dataclass(frozen=True)
class Roles:
    """The datasets of one group by the part they play; targets are found later."""

    inputs: Stored | None = None
    lengths: Stored | None = None
    offsets: Stored | None = None
    mask: Stored | None = None

    @property
    def divided(self) -> Stored | None:
        """What divides flat rows into sequences."""
        return self.lengths or self.offsets

    def paths(self) -> dict[str, str]:
        """Path in the file to part."""
        parts = ("inputs", "lengths", "offsets", "mask")
        stored = {part: getattr(self, part) for part in parts}
        return {found.path: part for part, found in stored.items() if found is not None}


def find_roles(folder: Folder, options: DataOptions, *, forced_inputs: bool = True) -> Roles:
    """Find the datasets of `folder`.

    Raises
    ------
    DataError
        A configured name is missing (for inputs only with `forced_inputs`), or one leads out
        of the file.
    """
    return Roles(
        find_role(folder, options, "inputs", INPUTS, required=forced_inputs),
        as_vector(find_role(folder, options, "lengths", LENGTHS)),
        as_vector(find_role(folder, options, "offsets", OFFSETS)),
        find_role(folder, options, "mask", MASK),
    )


def as_vector(stored: Stored | None) -> Stored | None:
    """A dataset that may be a row or column, if its axes are turned, as a vector."""
    return None if stored is None else stored.vector()


def find_role(
    folder: Folder,
    options: DataOptions,
    role: str,
    usual: tuple[str, ...],
    *,
    required: bool = True,
) -> Stored | None:
    """The dataset configured for `role`, or the first that bears a usual name.

    Raises
    ------
    DataError
        The configured one is `required` and not there.
    """
    configured: str | None = getattr(options, role)
    if configured is None:
        found = first_dataset(folder, usual)
        if role == "inputs" and found is not None and not found.numeric:
            numeric = (folder.dataset(name) for name in usual)
            found = next((one for one in numeric if one is not None and one.numeric), None)
        return found
    found = folder.dataset(configured)
    if found is None and required:
        raise missing(folder, configured, role, options)
    return found


def first_dataset(folder: Folder, names: tuple[str, ...]) -> Stored | None:
    """The first of `names` that is a dataset."""
    for name in names:
        found = folder.dataset(name)
        if found is not None:
            return found
    return None


class MissingDatasetError(DataError):
    """A configured dataset is not there."""


def missing(folder: Folder, name: str, role: str, options: DataOptions) -> MissingDatasetError:
    """The error for a configured dataset that is not there."""
    near = nearest(name, folder.names())
    named = quote(f"data.{role}={near}")
    return MissingDatasetError(
        f"{folder.where} holds no dataset {name}",
        expected=f"the {role}, as data.{role} says",
        found=contents(folder),
        where=options.places(folder.where),
        hint=f"--set {named}" if near else f"lstm-cli data {quote(folder.file)}",
    )


def contents(folder: Folder) -> str:
    """What the group holds, in a line: ``frames (5687, 12), lengths (370,)``."""
    members = filter(None, (_content(folder, name) for name in folder.names()))
    return ", ".join(islice(members, SHOWN)) or "nothing that can be read"


def _content(folder: Folder, name: str) -> str | None:
    """A member in a few words; None if it cannot be read."""
    try:
        found = folder.find(name)
        link = folder.soft_link(name) if found is None else None
    except DataError:
        return None
    if isinstance(found, Folder):
        return f"group {printable(name)}"
    if found is not None:
        return f"{printable(name)} {found.shape}"
    return None if link is None else f"{printable(name)} (a link to {link}, which is not there)"


AS_CLASSES = (
    "np.unique(texts, return_inverse=True) in Python gives the classes, and an index for each"
)
"""Hint for targets that are text."""


def need_numeric(
    stored: Stored, role: str, places: tuple[str, ...], others: str | None = None
) -> None:
    """Raise DataError unless `stored` holds integers or real numbers.

    Parameters
    ----------
    others
        A hint on datasets that do.
    """
    if not stored.numeric:
        hint = others or f"in a config, data.{role} names another dataset"
        if stored.text and role == "targets":
            hint = AS_CLASSES
        elif stored.is_cell:
            hint = "a struct with one matrix for each sequence, as FILE:/struct, can be read"
        raise DataError(
            f"{role} {stored.where} does not hold numbers",
            expected="integers or real numbers",
            found=f"type {type_name(stored)}",
            where=places,
            hint=hint,
        )


def need_lengths(stored: Stored, role: str, places: tuple[str, ...]) -> None:
    """Raise DataError unless lengths, offsets or a mask are of a type that tells them exactly."""
    mask = role == "mask"
    kinds = "iubf" if mask else "iuf"
    fits = stored.numeric and not stored.vlen and stored.dtype.kind in kinds
    if fits and stored.dtype != np.float16 and not stored.enumerated:
        return
    raise DataError(
        f"{role} {stored.where} {'does' if mask else 'do'} not hold whole numbers",
        expected="booleans or integers" if mask else "integers, such as int64",
        found=f"type {type_name(stored)}",
        where=places,
        hint=f"in a config, data.{role} names another dataset",
    )


@dataclass(frozen=True)
class FoundTargets:
    """The dataset of the targets.

    Attributes
    ----------
    key
        Its name under RETURNN's ``targets/data``.
    column
        Its column in RETURNN's ``seqLengths``.
    """

    stored: Stored
    key: str | None = None
    column: int | None = None

    def fitting(self, *counts: int) -> Stored:
        """The dataset; a row or column of MATLAB's as a vector, unless it has `counts` rows."""
        rows, columns = (*self.stored.shape, 1, 1)[:2]
        return self.stored if columns > 1 and rows in counts else self.stored.vector()


def find_targets(folder: Folder, options: DataOptions) -> FoundTargets | None:
    """The targets as configured, or under a usual name; None if the group has none.

    Raises
    ------
    DataError
        The configured dataset is missing or not numeric, or several could be meant.
    """
    if options.targets is not None:
        return _configured(folder, options.targets, options)
    found = (usable(folder.find(name), options) for name in TARGETS)
    return next((one for one in found if one is not None), None)


def usable(found: Folder | Stored | None, options: DataOptions) -> FoundTargets | None:
    """What stands under a usual name, if it can be targets."""
    if isinstance(found, Folder):
        return _returnn(found, options)
    if found is None or found.text or found.is_cell:  # texts are noted, and left out
        return None
    need_numeric(found, "targets", options.places(found.where))
    return FoundTargets(found)


def _configured(folder: Folder, name: str, options: DataOptions) -> FoundTargets | None:
    found = folder.find(name)
    if isinstance(found, Folder):
        keyed = _returnn(found, options)
        if keyed is not None:
            return keyed
    if not isinstance(found, Stored):
        if found is None and not options.need_targets:
            return None
        raise missing(folder, name, "targets", options)
    need_numeric(found, "targets", options.places(found.where))
    path, _, key = name.strip("/").rpartition("/")
    if path.endswith("targets/data"):
        group = folder.folder(path.removesuffix("/data"))
        keys = [] if group is None else _keys(group)
        column = 1 + keys.index(key) if key in keys else None
        return FoundTargets(found, key, column)
    return FoundTargets(found)


def _returnn(group: Folder, options: DataOptions) -> FoundTargets | None:
    """RETURNN's targets: ``classes``, or the only one under ``data``."""
    data = group.folder("data")
    keys = _keys(group)
    if data is None or not keys:
        return None
    key = "classes" if "classes" in keys else keys[0]
    if len(keys) > 1 and key != "classes":
        raise DataError(
            f"{data.where} holds several targets",
            expected="one, or one called classes",
            found=", ".join(keys),
            where=options.places(data.where),
            hint=f"in a config, data.targets names one: targets/data/{keys[0]}",
        )
    stored = data.dataset(key)
    if stored is None:
        return None
    need_numeric(stored, "targets", options.places(stored.where))
    return FoundTargets(stored, key, 1 + keys.index(key))


def _keys(group: Folder) -> list[str]:
    """Names under ``data``, sorted as the further columns of seqLengths are."""
    data = group.folder("data")
    return [] if data is None else sorted(data.names())


def stored_names(folder: Folder, count: int) -> list[str] | None:
    """The group's sequence names, if there is one for each of `count`."""
    for name in NAMES:
        stored = folder.dataset(name)
        texts = None if stored is None else texts_of_dataset(stored)
        if texts is not None and len(texts) == count:
            return texts
    return None


def class_labels(folder: Folder, root: Folder, key: str | None) -> list[str] | None:
    """Labels of the classes: of the group, else of the file.

    Looks at the attribute or dataset ``classes``, at ``class_names``, at RETURNN's
    ``targets/labels/<key>`` and at CURRENNT's ``labels``.
    """
    datasets = (*CLASSES, *(() if key is None else (f"targets/labels/{key}",)), "labels")
    for place in (folder, root):
        found = _texts(place.attribute("classes"))
        if found:
            return found
        for name in datasets:
            stored = place.dataset(name)
            texts = None if stored is None else texts_of_dataset(stored)
            if texts:
                return texts
    return None


def texts_of_dataset(stored: Stored) -> list[str] | None:
    """A dataset of strings, or of characters (N, width) as NetCDF writes it; else None."""
    odd = stored.vlen or stored.dtype.kind in "cVO"
    if stored.null or (odd and not stored.text):
        raise DataError(
            f"{stored.where} does not hold names",
            expected="texts",
            found=f"type {type_name(stored)}",
            where=stored.where,
        )
    if not stored.text and stored.dtype.kind != "S":
        return None
    if stored.rank == 2 and stored.dtype == np.dtype("S1"):
        rows = np.ascontiguousarray(stored.read())
        width = rows.shape[1]
        if width == 0:
            return [""] * len(rows)
        return [_text(row) for row in rows.view(f"S{width}")[:, 0]]
    return _texts(stored.read()) if stored.rank == 1 else None


def _texts(values: Any) -> list[str] | None:
    """A list of text, from an array or list of str or bytes; None if it is something else."""
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


MARKS = {"MATLAB_class": "MATLAB", "rhdf5-NA.OK": "R (rhdf5)"}
"""Attributes of datasets, and what wrote them."""


class ReversedAxesError(DataError):
    """The file says that its axes are reversed, and the config does not say what to do."""


def turning(options: DataOptions) -> str | None:
    """A hint for a file whose sizes fit in reversed order; None if they are reversed already."""
    if options.transpose:
        return None
    return "--set data.transpose=true, if MATLAB, Julia, Fortran or R wrote the file"


def need_known_axes(inputs: Stored, options: DataOptions) -> None:
    """Raise `ReversedAxesError` if the file says that axes are reversed, and no option does."""
    writer = None if options.transpose is not None or inputs.rank < 2 else inputs.writer(MARKS)
    if writer is None:
        return
    raise ReversedAxesError(
        f"{inputs.where} was written by {writer}, which stores the axes in reversed order",
        expected="data.transpose: true to reverse them, or false to take them as they stand",
        found=f"{inputs.shape} as stored, {inputs.shape[::-1]} reversed",
        where=options.places(inputs.where),
        hint="--set data.transpose=true",
    )
