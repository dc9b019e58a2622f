"""One HDF5 dataset, checked before it is read; every failure of HDF5 becomes a DataError."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from copy import copy
from itertools import count, zip_longest
from math import prod
from types import EllipsisType
from typing import Any, TypeAlias

import h5py
import numpy as np
from h5py import h5d, h5o, h5r

from lstm_cli.errors import DataError, printable
from lstm_cli.hdf5.heap_check import Array, Guard
from lstm_cli.hdf5.limits import (
    Declared,
    allocated_size,
    check_virtual,
    dataset_filters,
    declared,
    reading,
    refuse_outside_storage,
    refuse_unstored_shape,
    require_filters,
    storage_kind,
)

CHUNK_CACHE_BYTES = 64 << 20
"""Held by HDF5 for a dataset that is being read, so that its chunks are unpacked once."""

KEPT_BYTES = 448 << 20
"""Held here, of all datasets together."""

WASTE_BYTES = 2 << 30
"""Unpacked of one dataset and not used, where nothing can be kept, at most."""

_kept: OrderedDict[tuple[int, int], Array] = OrderedDict()
"""Bands of all datasets, by the dataset's and their own number; the last used stands last."""

_lock = threading.RLock()

_numbers = count()


class Bands:
    """A dataset along one axis, in bands as wide as its chunks.

    Attributes
    ----------
    nbytes
        Bytes of a band, unpacked.
    wasted
        Bytes that were unpacked and not used, because a band is too large to keep.
    """

    def __init__(self, dataset: Any, axis: int, itemsize: int) -> None:
        self._dataset, self._axis = dataset, axis
        self._width = dataset.chunks[axis]
        self._size = dataset.shape[axis]
        sizes = zip(dataset.shape, dataset.chunks, strict=True)
        padded = [-(-size // chunk) * chunk for size, chunk in sizes]
        padded[axis] = self._width
        self.nbytes = prod(padded) * itemsize
        self.wasted = 0
        self._number = next(_numbers)
        weakref.finalize(self, _drop, self._number)

    @property
    def are_kept(self) -> bool:
        """Whether a band fits in memory."""
        return bool(self.nbytes <= KEPT_BYTES)

    def touched(self, part: slice) -> int:
        """Bytes to unpack for a part of the axis."""
        begin, end, _ = part.indices(self._size)
        return (-(-end // self._width) - begin // self._width) * self.nbytes if begin < end else 0

    def parts(self, part: slice) -> Iterator[tuple[slice, Array, slice]]:
        """Where each piece of `part` goes, the band that holds it, and where it stands there."""
        begin, end, _ = part.indices(self._size)
        for number in range(begin // self._width, -(-end // self._width)):
            start = number * self._width
            low, high = max(begin, start), min(end, start + self._width)
            if low < high:
                yield (
                    slice(low - begin, high - begin),
                    self._band(number),
                    slice(low - start, high - start),
                )

    def close(self) -> None:
        """Keep nothing."""
        _drop(self._number)

    def _band(self, number: int) -> Array:
        key = self._number, number
        with _lock:
            if key in _kept:
                _kept.move_to_end(key)
                return _kept[key]
            held = sum(band.nbytes for band in _kept.values())
            while _kept and held + self.nbytes > KEPT_BYTES:  # before another is unpacked
                held -= _kept.popitem(last=False)[1].nbytes
        start = number * self._width
        where = (slice(None),) * self._axis + (slice(start, start + self._width),)
        band: Array = self._dataset[where]
        with _lock:
            _kept[key] = band
        return band


def _drop(dataset: int) -> None:
    """Keep nothing more of a dataset that nothing reads."""
    with _lock:
        for key in [key for key in _kept if key[0] == dataset]:
            del _kept[key]


Selection: TypeAlias = EllipsisType | slice | tuple[slice, ...]

HEAP_REFERENCE_BYTES = 16
"""What a value of variable length takes where it stands: its length and its place in the heap."""

OCTAVE = "OCTAVE_NEW_FORMAT"
"""Attribute of the groups in which Octave keeps each variable, under ``value``."""

FIRST_ROWS = 64
"""Rows of variable length that are read together while nothing is known of their sizes."""

SCAN_BYTES = 16 << 20
"""Read together, about, of rows of variable length once their sizes are known."""

SMALL_BYTES = 1 << 20
"""Up to this size values of variable length may share their bytes."""


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
        self._guard = guard
        self.path = path
        self.where = where
        with reading(where):
            plist = dataset.id.get_create_plist()
            if not guard.allow_external:
                refuse_outside_storage(plist, where, guard)
            elif plist.get_layout() == h5d.VIRTUAL:
                check_virtual(dataset, guard.source.path, where)
                dataset = _as_hdf5(dataset, guard)
            self._dataset = dataset
            self.null = dataset.shape is None
            """It has no values, and no shape: a null dataspace."""
            self.shape: tuple[int, ...] = (0,) if self.null else tuple(dataset.shape)
            dtype: np.dtype[Any] = _dtype(dataset, where)
            base = h5py.check_vlen_dtype(dtype)
            self.vlen = base is not None
            self.text = h5py.check_string_dtype(dtype) is not None
            self.dtype = np.dtype(dtype if base is None else base)
            # MATLAB writes text as numbers, and of an empty array its shape.
            self.text |= self.dtype == np.uint16 and is_word(self.attribute("MATLAB_class"), "char")
            self._empty = self.dtype == np.uint64 and "MATLAB_empty" in dataset.attrs
            self.enumerated = h5py.check_enum_dtype(dtype) is not None and dtype.kind != "b"
            width = HEAP_REFERENCE_BYTES if dtype.kind == "O" else dtype.itemsize
            self.nbytes = prod(self.shape) * width
            self._foreign = storage_kind(plist) in ("virtual", "external storage")
            if not guard.allow_external and not self.null:
                refuse_unstored_shape(dataset, self.nbytes, where, guard)
            require_filters(plist, where)
            self._packed = bool(dataset.chunks) and plist.get_nfilters() > 0
            # Deflate doubles its buffer as it goes, beside the chunk and the values read.
            self._unpacking = 4 * prod(dataset.chunks) * width if self._packed else 0
        self._bands: dict[int, Bands] = {}
        self._references: Array | None = None

    @property
    def held_bytes(self) -> int:
        """Bytes of the values that the file stores, unpacked; the rest are fill values."""
        with reading(self.where):
            held, of = allocated_size(self._dataset, self.nbytes)
        return self.nbytes if of == 0 else self.nbytes * min(held, of) // of

    @property
    def identity(self) -> tuple[int, int]:
        """Equal for two paths to one dataset."""
        with reading(self.where):
            info = h5o.get_info(self._dataset.id)
            return int(info.fileno), int(info.addr)

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def numeric(self) -> bool:
        """Integers, booleans or real numbers."""
        return self.dtype.kind in "iufb" and not (self.text or self._empty or self.null)

    @property
    def is_axis(self) -> bool:
        """One of the datasets that NetCDF-4 writes for each axis."""
        return is_word(self.attribute("CLASS"), "DIMENSION_SCALE")

    @property
    def is_cell(self) -> bool:
        """A MATLAB cell array, whose values stand in other datasets."""
        return self.dtype.kind == "O" and is_word(self.attribute("MATLAB_class"), "cell")

    @property
    def integral(self) -> bool:
        """Integers or booleans."""
        return self.dtype.kind in "iub"

    def read(self, selection: Selection = ...) -> Array:
        """The values selected, in the stored dtype."""
        if self.null:
            raise _no_values(self)
        parts = (selection,) if isinstance(selection, slice) else selection
        with reading(self.where, self._unpacking):
            self._guard.source.begin()
            if self.in_heap:
                return self._from_heap(selection)
            axis, bands = self._banded(parts)
            if bands is None or isinstance(parts, EllipsisType):
                return np.asarray(self._dataset[selection])
            values = np.empty(_selected(self._dataset.shape, parts), self.dtype)
            self._from_bands(bands, axis, parts, values)
            return values

    def read_into(self, selection: Selection, out: Array) -> int:
        """Read the values selected into an array of as many; the bytes read.

        Where the file holds them as `out` does, HDF5 puts them there itself.
        """
        plain = out.dtype == self.dtype and out.flags.c_contiguous and not self.in_heap
        parts = (selection,) if isinstance(selection, slice) else selection
        if not plain or not out.size or self._banded(parts)[1] is not None:
            values = self.read(selection)
            with np.errstate(all="ignore"):  # what a smaller type cannot hold becomes infinite
                out[...] = values.reshape(out.shape)
            return values.nbytes
        with reading(self.where, self._unpacking):
            self._dataset.read_direct(out.reshape(self._selected(selection)), selection)
        return out.nbytes

    def _banded(self, parts: tuple[slice, ...] | EllipsisType) -> tuple[int, Bands | None]:
        """The axis along which a part is read, and its bands where HDF5 cannot keep them."""
        if not self._packed or isinstance(parts, EllipsisType) or 0 in self.shape:
            return 0, None
        sizes = self._dataset.shape
        shares = [n / size for n, size in zip(_selected(sizes, parts), sizes, strict=True)]
        axis = shares.index(min(shares))
        if shares[axis] == 1:  # all of it, for which each chunk is unpacked once
            return 0, None
        if axis not in self._bands:
            self._bands[axis] = Bands(self._dataset, axis, self.dtype.itemsize)
            self._guard.bands.add(self._bands[axis])
        bands = self._bands[axis]
        return axis, bands if bands.nbytes > CHUNK_CACHE_BYTES else None

    def _from_bands(self, bands: Bands, axis: int, parts: tuple[slice, ...], values: Array) -> None:
        part = parts[axis] if parts else slice(None)
        if not bands.are_kept:
            bands.wasted += max(0, bands.touched(part) - values.nbytes)
            if bands.wasted > WASTE_BYTES:
                raise _unpacked_anew(self, bands)
            values[...] = self._dataset[parts]
            return
        rest = (*parts[:axis], slice(None), *parts[axis + 1 :])
        front = (slice(None),) * axis
        for place, band, own in bands.parts(part):
            values[(*front, place)] = band[(*front, own)][rest]

    def _from_heap(self, selection: Selection) -> Array:
        """Rows or texts, which HDF5 copies out of the heap one by one."""
        self._need_own_heap()
        first = selection[:1] if isinstance(selection, tuple) else (selection,)
        lengths = self.value_lengths() if self.rank else None
        if lengths is not None:
            self.need_held(int(lengths[first].sum()))
        elif self.rank:
            (rows,) = first
            begin, end, _ = (slice(None) if rows is ... else rows).indices(self._dataset.shape[0])
            if end - begin > FIRST_ROWS:
                parts = [values for _, values in self._pieces(begin, end)]
                return np.concatenate(parts)
        return np.asarray(self._dataset[selection])

    def _pieces(self, begin: int, end: int) -> Iterator[tuple[slice, Array]]:
        """Rows or texts in pieces that stay small, even if many share the bytes of a few."""
        held, start, block = 0, begin, FIRST_ROWS
        while start < end:
            stop = min(end, start + block)
            values = np.asarray(self._dataset[start:stop])
            held += sum(map(_size, values.reshape(-1)))
            self.need_held(held)
            yield slice(start, stop), values
            mean = held // (stop - begin) + 1
            start, block = stop, min(2 * block, max(FIRST_ROWS, SCAN_BYTES // mean))

    def read_sizes(self) -> Array:
        """(N,) bytes of each row of variable length, which only reading tells."""
        self._need_own_heap()
        sizes = np.zeros(self.shape[0], np.int64)
        with reading(self.where):
            self._guard.source.begin()
            for rows, values in self._pieces(0, len(sizes)):
                sizes[rows] = [_size(value) for value in values]
        return sizes

    def _need_own_heap(self) -> None:
        if self._foreign:
            raise DataError(
                f"{self.where} has values of variable length that stand in other datasets",
                expected="rows or texts that the dataset holds itself",
                where=self.where,
            )

    def value_lengths(self) -> Array | None:
        """Bytes of each value of variable length, if its references stand in one piece."""
        if self._references is None and not (self._foreign or self.null) and self.rank:
            with reading(self.where):
                place = None if self._dataset.chunks else self._dataset.id.get_offset()
                if place is not None:
                    source, width = self._guard.source, self._guard.offset_bytes
                    lengths = source.references(place, prod(self.shape), width)
                    item = 1 if self.text else self.dtype.itemsize
                    self._references = lengths.reshape(self._dataset.shape) * item
        return self._references

    def need_held(self, nbytes: int) -> None:
        """Raise DataError if values take more than the file: they share their bytes."""
        if nbytes > max(self._guard.source.size, SMALL_BYTES):
            raise DataError(
                f"{self.where} declares far more than the file stores",
                expected=f"values of at most {self._guard.source.size:,} bytes, as the file has",
                found=f"{nbytes:,} bytes",
                where=self.where,
            )

    def _selected(self, selection: Selection) -> tuple[int, ...]:
        """Shape of what is selected."""
        return _selected(self.shape, selection)

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
            names = [name for _, name in dataset_filters(self._dataset.id.get_create_plist())]
            return ", ".join(names) or None

    @property
    def in_heap(self) -> bool:
        """Its values stand in the file's heap, and only references to them in the dataset."""
        return self.vlen or self.dtype.kind == "O"


def _selected(shape: tuple[int, ...], selection: Selection) -> tuple[int, ...]:
    if isinstance(selection, EllipsisType):
        return shape
    parts = (selection,) if isinstance(selection, slice) else selection
    cut = [len(range(*p.indices(n))) for p, n in zip(parts, shape, strict=False)]
    return (*cut, *shape[len(cut) :])


def is_word(value: object, word: str) -> bool:
    """Whether an attribute's value is this one word, and no array of words."""
    return isinstance(value, str | bytes) and value in (word, word.encode())


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
        guard.source.begin()
        value = holder.attrs[name]
        return None if isinstance(value, h5py.Empty) else value


def type_name(stored: Stored) -> str:
    """The type of a dataset, in HDF5's and in plain words."""
    if stored.null:
        return f"{printable(str(stored.dtype))}, but no values (a null dataspace)"
    if stored.text:
        return "text"
    if stored.vlen:
        return f"rows of variable length of {printable(str(stored.dtype))}"
    if stored.is_cell:
        return "references to other datasets, as MATLAB writes a cell array"
    kinds = {
        "c": "complex",
        "S": "string",
        "O": "references",
        "V": "compound or opaque",
        "f": "floating point",
        "b": "booleans",
    }
    kind = "an enumeration" if stored.enumerated else kinds.get(stored.dtype.kind, "integers")
    return f"{printable(str(stored.dtype))} ({kind})"


def _no_values(stored: Stored) -> DataError:
    return DataError(
        f"{stored.where} has no values: its dataspace is null",
        expected="an array, which may be of size 0",
        found=f"type {type_name(stored)}",
        where=stored.where,
    )


def _unpacked_anew(stored: Stored, bands: Bands) -> DataError:
    return DataError(
        f"{stored.where} has chunks so large that each batch would unpack them all anew",
        expected=f"chunks of a few sequences: {KEPT_BYTES:,} bytes of them can be kept",
        found=f"chunks {tuple(stored.declared().chunks or ())}, {bands.nbytes:,} bytes together",
        where=stored.where,
        hint="in h5py, create_dataset(..., chunks=True, compression='gzip') makes small ones",
    )


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes) else int(np.asarray(value).nbytes)


def _dtype(dataset: Any, where: str) -> np.dtype[Any]:
    """The type as NumPy has it; DataError if it has none."""
    try:
        dtype: np.dtype[Any] = dataset.dtype
    except (TypeError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"{where} has a type that is not read",
            expected="integers or real numbers",
            found=printable(str(error)),
            where=where,
        ) from error
    return dtype


def _as_hdf5(dataset: Any, guard: Guard) -> Any:
    """The dataset as HDF5 opens it by itself: it can open the sources of virtual storage."""
    reference = h5r.create(dataset.id, b".", h5r.OBJECT)
    return h5py.Dataset(h5r.dereference(reference, guard.native().id))


class Turned(Stored):
    """A dataset read with its axes reversed.

    Parameters
    ----------
    dataset, path, where, guard
        As for `Stored`.
    """

    def __init__(self, dataset: Any, path: str, where: str, guard: Guard) -> None:
        super().__init__(dataset, path, where, guard)
        self._stored_rank = len(self.shape)
        self.shape = self.shape[::-1]
        self._axes: tuple[int | None, ...] = tuple(reversed(range(len(self.shape))))
        """The stored axis that each axis is read from; None: a new one of size 1."""

    def vector(self) -> Stored:
        """A vector of the values, if they are a row or a column."""
        if self.rank != 2 or 1 not in self.shape:
            return self
        axis = int(np.argmax(self.shape))
        return self._with((self.shape[axis],), (self._axes[axis],))

    def widened(self) -> Stored:
        """These values with a last axis of size 1, which MATLAB leaves out."""
        return self._with((*self.shape, 1), (*self._axes, None))

    def read(self, selection: Selection = ...) -> Array:
        """The values selected, in the stored dtype."""
        parts = self._parts(selection)
        chosen = dict(zip(self._axes, parts, strict=True))
        every = range(self._stored_rank)
        values = super().read(tuple(chosen.get(axis, slice(None)) for axis in every))
        kept = [axis for axis in self._axes if axis is not None]
        order = kept + [axis for axis in every if axis not in kept]
        return np.ascontiguousarray(values.transpose(order)).reshape(self._selected(selection))

    def read_into(self, selection: Selection, out: Array) -> int:
        """Read the values selected into an array of as many; the bytes read."""
        values = self.read(selection)
        with np.errstate(all="ignore"):  # what a smaller type cannot hold becomes infinite
            out[...] = values.reshape(out.shape)
        return values.nbytes

    def _parts(self, selection: Selection) -> list[slice]:
        """A slice for each axis."""
        given: tuple[slice, ...] = ()
        if not isinstance(selection, EllipsisType):
            given = (selection,) if isinstance(selection, slice) else selection
        every = zip_longest(given, self.shape)
        return [slice(None) if part is None else part for part, _ in every]

    def _with(self, shape: tuple[int, ...], axes: tuple[int | None, ...]) -> Turned:
        other = copy(self)
        other.shape, other._axes = shape, axes
        return other
