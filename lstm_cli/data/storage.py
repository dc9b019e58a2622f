"""One HDF5 dataset, checked before it is read; every failure of HDF5 becomes a DataError."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from math import prod
from types import EllipsisType
from typing import Any, TypeAlias

import h5py
import numpy as np
from h5py import h5d, h5z

from lstm_cli.data.declared import Declared, declared, storage_kind
from lstm_cli.data.guard import Guard
from lstm_cli.data.types import Array
from lstm_cli.errors import DataError, printable

Selection: TypeAlias = EllipsisType | slice | tuple[slice, ...]

H5_ERRORS = (
    OSError,
    KeyError,
    ValueError,
    RuntimeError,
    TypeError,
    IndexError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    SystemError,
)
"""What h5py is known to raise on damaged files. Caught around calls of h5py alone."""

HEAP_REFERENCE_BYTES = 16
"""What a value of variable length takes where it stands: its length and its place in the heap."""

OCTAVE = "OCTAVE_NEW_FORMAT"
"""Attribute of the groups in which Octave keeps each variable, under ``value``."""

BOMB_BYTES = 64 << 20
"""Below this a shape may declare what it likes: it fits in memory."""
BOMB_RATIO = 4
"""Above it, at least one chunk in so many must exist."""


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Turn what h5py raises into a DataError that names `where`."""
    try:
        yield
    except H5_ERRORS as error:
        raise DataError(
            f"{where} cannot be read",
            expected="intact HDF5",
            found=printable(" ".join(str(error).split())) or type(error).__name__,
            where=where,
            hint="the file may be damaged: copy or make it again",
        ) from error


class Stored:
    """A dataset that is safe to read.

    Parameters
    ----------
    dataset
        The h5py dataset.
    where
        File and path, for errors.
    guard
        What the file is allowed: virtual and external storage, any shape.

    Attributes
    ----------
    path
        Within its file.
    shape, dtype
        As stored; a variable-length dataset has the dtype of its elements.
    vlen
        Each element is a row of its own length.
    nbytes
        Bytes the shape declares.

    Raises
    ------
    DataError
        It is refused, damaged, or compressed with a filter that is not installed.
    """

    def __init__(self, dataset: Any, path: str, where: str, guard: Guard) -> None:
        self._dataset = dataset
        self._guard = guard
        self.path = path
        self.where = where
        with reading(where):
            self.shape: tuple[int, ...] = (0,) if dataset.shape is None else tuple(dataset.shape)
            dtype: np.dtype[Any] = dataset.dtype
            base = h5py.check_vlen_dtype(dtype)
            self.vlen = base is not None
            self.text = h5py.check_string_dtype(dtype) is not None
            self.dtype = np.dtype(dtype if base is None else base)
            # MATLAB writes text as numbers, and of an empty array its shape.
            self.text |= self.dtype == np.uint16 and self.attribute("MATLAB_class") == b"char"
            self._empty = self.dtype == np.uint64 and "MATLAB_empty" in dataset.attrs
            width = HEAP_REFERENCE_BYTES if dtype.kind == "O" else dtype.itemsize
            self.nbytes = prod(self.shape) * width
            plist = dataset.id.get_create_plist()
            if not guard.allow_external:
                _refuse_foreign(plist, where)
                _refuse_bomb(dataset, self.nbytes, where)
            _need_filters(plist, where)

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def numeric(self) -> bool:
        """Integers, booleans or real numbers."""
        return self.dtype.kind in "iufb" and not self.text and not self._empty

    @property
    def is_axis(self) -> bool:
        """One of the datasets that NetCDF-4 writes for each axis."""
        return self.attribute("CLASS") in (b"DIMENSION_SCALE", "DIMENSION_SCALE")

    @property
    def is_cell(self) -> bool:
        """A MATLAB cell array, whose values stand in other datasets."""
        return self.dtype.kind == "O" and self.attribute("MATLAB_class") == b"cell"

    @property
    def integral(self) -> bool:
        """Integers or booleans."""
        return self.dtype.kind in "iub"

    def read(self, selection: Selection = ...) -> Array:
        """The values selected, in the stored dtype."""
        with reading(self.where):
            if self.in_heap:
                self._guard.check_heap(self.where, rows=self.vlen)
            return np.asarray(self._dataset[selection])

    def read_into(self, selection: Selection, out: Array) -> int:
        """Read the values selected into an array of as many; the bytes read.

        Where the file holds them as `out` does, HDF5 puts them there itself.
        """
        if out.dtype != self.dtype or not out.flags.c_contiguous or self.in_heap or not out.size:
            values = self.read(selection)
            with np.errstate(all="ignore"):  # what a smaller type cannot hold becomes infinite
                out[...] = values.reshape(out.shape)
            return values.nbytes
        with reading(self.where):
            self._dataset.read_direct(out.reshape(self._selected(selection)), selection)
        return out.nbytes

    def _selected(self, selection: Selection) -> tuple[int, ...]:
        """Shape of what is selected."""
        if isinstance(selection, EllipsisType):
            return self.shape
        parts = (selection,) if isinstance(selection, slice) else selection
        cut = [len(range(*p.indices(n))) for p, n in zip(parts, self.shape, strict=False)]
        return (*cut, *self.shape[len(cut) :])

    def vector(self) -> Stored:
        """The values as a vector; only turned datasets have rows and columns that are one."""
        return self

    def writer(self, marks: Mapping[str, str]) -> str | None:
        """Name of the program that wrote the file, if it is known to reverse axes.

        Parameters
        ----------
        marks
            Attributes of a dataset, and what wrote it.
        """
        with reading(self.where):
            found = next(
                (name for mark, name in marks.items() if mark in self._dataset.attrs), None
            )
            octave = OCTAVE in self._dataset.parent.attrs
        return found or ("Octave" if octave else self._guard.writer)

    def attribute(self, name: str) -> Any:
        """An attribute's value, or None."""
        return read_attribute(self._dataset, name, self.where, self._guard)

    def declared(self) -> Declared:
        """How it is stored."""
        with reading(self.where):
            return declared(self._dataset)

    @property
    def compression(self) -> str | None:
        """Names of the filters, or None."""
        with reading(self.where):
            names = [name for _, name in _filters(self._dataset.id.get_create_plist())]
            return ", ".join(names) or None

    @property
    def in_heap(self) -> bool:
        """Its values stand in the file's heap, and only references to them in the dataset."""
        return self.vlen or self.dtype.kind == "O"


def read_attribute(holder: Any, name: str, where: str, guard: Guard) -> Any:
    """A number, text, or array of them that stands in an attribute; None for anything else."""
    with reading(where):
        if name not in holder.attrs:
            return None
        # Other types than these crash HDF5 where they are damaged.
        dtype = holder.attrs.get_id(name).dtype
        text = h5py.check_string_dtype(dtype)
        if text is None and dtype.kind not in "iufbSU":
            return None
        if text is not None and text.length is None:
            guard.check_heap(where, rows=False)
        return holder.attrs[name]


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


def type_name(stored: Stored) -> str:
    """The type of a dataset, in HDF5's and in plain words."""
    if stored.text:
        return "text"
    if stored.is_cell:
        return "references to other datasets, as MATLAB writes a cell array"
    kinds = {"c": "complex", "S": "string", "O": "object or string", "V": "compound or opaque"}
    return f"{printable(str(stored.dtype))} ({kinds.get(stored.dtype.kind, 'unsupported')})"


def _refuse_foreign(plist: Any, where: str) -> None:
    storage = storage_kind(plist)
    if storage == "virtual":
        kind = "a virtual dataset: its values stand in other datasets"
    elif storage == "external storage":
        name = plist.get_external(0)[0].decode(errors="replace")
        kind = f"external storage: its values stand in {printable(name)}"
    else:
        return
    raise DataError(
        f"{where} is {kind}",
        expected="values stored in the dataset itself",
        where=where,
        hint="--allow-external reads it, if you trust the file",
    )


def _refuse_bomb(dataset: Any, declared: int, where: str) -> None:
    if declared <= BOMB_BYTES:
        return
    held, of = _allocated(dataset, declared)
    if held * BOMB_RATIO >= of:
        return
    raise DataError(
        f"{where} declares far more than the file stores",
        expected=f"storage for shape {tuple(dataset.shape)}, {declared:,} bytes",
        found=f"{held:,} of {of:,} " + ("chunks" if dataset.chunks else "bytes"),
        where=where,
        hint="--allow-external reads it, if you trust the file",
    )


def _allocated(dataset: Any, declared: int) -> tuple[int, int]:
    """What is stored and what the shape declares, in chunks or in bytes."""
    if dataset.chunks is None:
        return int(dataset.id.get_storage_size()), declared
    sizes = zip(dataset.shape, dataset.chunks, strict=True)
    return int(dataset.id.get_num_chunks()), prod(-(-size // chunk) for size, chunk in sizes)


def _filters(plist: Any) -> list[tuple[int, str]]:
    found = [plist.get_filter(k) for k in range(plist.get_nfilters())]
    return [(code, printable(name.decode(errors="replace"))) for code, _, _, name in found]


def _need_filters(plist: Any, where: str) -> None:
    if plist.get_layout() != h5d.CHUNKED:
        return
    for code, name in _filters(plist):
        if not _filter_available(code):
            raise DataError(
                f"{where} is compressed with a filter that is not installed",
                expected="a filter HDF5 can load",
                found=f"filter {code}" + (f", {name}" if name else ""),
                where=where,
                hint="pip install hdf5plugin",
            )


def _filter_available(code: int) -> bool:
    if h5z.filter_avail(code):
        return True
    try:
        # Importing it registers its filters.
        import_module("hdf5plugin")
    except ImportError:
        return False
    return bool(h5z.filter_avail(code))
