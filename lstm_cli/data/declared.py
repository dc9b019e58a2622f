"""What a dataset says of itself, known without reading it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import h5py
from h5py import h5d

from lstm_cli.errors import counted


@dataclass(frozen=True)
class Declared:
    """What can be known of a dataset without reading it; None where it cannot.

    Attributes
    ----------
    storage
        How its values stand: ``contiguous``, ``chunked``, ``compact``, ``virtual``,
        ``external storage``, ``external link``, or ``unreadable``.
    nbytes
        Bytes it takes in the file.
    """

    shape: tuple[int, ...] | None = None
    dtype: str = "?"
    chunks: tuple[int, ...] | None = None
    nbytes: int | None = None
    storage: str = "unreadable"


def declared(dataset: Any) -> Declared:
    """What an h5py dataset says of itself."""
    storage = storage_kind(dataset.id.get_create_plist())
    base = h5py.check_vlen_dtype(dataset.dtype)
    dtype = str(dataset.dtype) if base is None else f"rows of {base}"
    if dataset.dtype.names:
        dtype = counted(len(dataset.dtype.names), "column")
    if dataset.shape is None:
        dtype = f"{dtype} (null)"
    text = h5py.check_string_dtype(dataset.dtype) is not None
    return Declared(
        None if dataset.shape is None else tuple(dataset.shape),
        "text" if text else dtype,
        dataset.chunks,
        int(dataset.id.get_storage_size()),
        storage,
    )


def storage_kind(plist: Any) -> str:
    """How the values of a dataset stand, from its creation properties."""
    if plist.get_external_count():
        return "external storage"
    kinds = {h5d.VIRTUAL: "virtual", h5d.CHUNKED: "chunked", h5d.COMPACT: "compact"}
    return kinds.get(plist.get_layout(), "contiguous")
