"""Names of sequences and of classes, in the forms in which files hold text."""

from __future__ import annotations

from typing import Any

import numpy as np

from lstm_cli.data.links import Folder
from lstm_cli.data.roles import CLASSES, NAMES
from lstm_cli.data.storage import Stored, type_name
from lstm_cli.data.types import Array
from lstm_cli.errors import DataError


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
