"""One HDF5 dataset, checked before it is read, and a cache of its large chunks.

Every failure of HDF5 becomes a `DataError`. HDF5 decompresses a whole chunk to read any value in
it. HDF5 caches only chunks that fit its own cache. HDF5 would decompress a larger chunk of many
sequences again for every batch. `ChunkSlabs` caches such chunks.
"""

from __future__ import annotations

import os
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
from lstm_cli.hdf5.heap_check import Array, FileAccess
from lstm_cli.hdf5.limits import (
    DatasetMetadata,
    allocated_size,
    check_virtual,
    dataset_filters,
    read_metadata,
    reading_errors,
    refuse_outside_storage,
    refuse_unstored_shape,
    require_filters,
    storage_kind,
)
from lstm_cli.hdf5.raw_attributes import check_declared_texts

CHUNK_CACHE_BYTES = 64 << 20
"""Bytes of HDF5's own cache for each dataset. HDF5 decompresses a cached chunk once."""

SLAB_CACHE_BYTES = 448 << 20
"""Bytes of decompressed slabs that are cached for all datasets together."""

MAX_WASTED_BYTES = 2 << 30
"""Largest number of decompressed bytes of one dataset that are not used.

Such bytes arise if a slab exceeds the cache.
"""

_slab_cache: OrderedDict[tuple[int, int], Array] = OrderedDict()
"""Cached slabs by dataset number and slab number; the most recently used slab is the last."""

_lock = threading.RLock()

if hasattr(os, "register_at_fork"):  # a forked child must not inherit a lock that is held
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )

_numbers = count()


class ChunkSlabs:
    """A dataset that is cut along one axis into slabs, each one chunk wide.

    Attributes
    ----------
    nbytes
        Bytes of a decompressed slab.
    wasted_bytes
        Bytes that were decompressed and not used, because a slab exceeds the cache.
    """

    def __init__(self, dataset: Any, axis: int, itemsize: int) -> None:
        self._dataset, self._axis = dataset, axis
        self._width = dataset.chunks[axis]
        self._size = dataset.shape[axis]
        sizes = zip(dataset.shape, dataset.chunks, strict=True)
        padded = [-(-size // chunk) * chunk for size, chunk in sizes]
        padded[axis] = self._width
        self.nbytes = prod(padded) * itemsize
        self.wasted_bytes = 0
        self._number = next(_numbers)
        weakref.finalize(self, _evict, self._number)

    @property
    def fit_cache(self) -> bool:
        """Whether a slab fits the cache."""
        return bool(self.nbytes <= SLAB_CACHE_BYTES)

    def decompressed_bytes(self, part: slice) -> int:
        """Bytes to decompress for a part of the axis."""
        begin, end, _ = part.indices(self._size)
        return (-(-end // self._width) - begin // self._width) * self.nbytes if begin < end else 0

    def pieces(self, part: slice) -> Iterator[tuple[slice, Array, slice]]:
        """Yield each piece of a part: its range in the part, its slab, its range in the slab."""
        begin, end, _ = part.indices(self._size)
        for number in range(begin // self._width, -(-end // self._width)):
            start = number * self._width
            low, high = max(begin, start), min(end, start + self._width)
            if low < high:
                yield (
                    slice(low - begin, high - begin),
                    self._slab(number),
                    slice(low - start, high - start),
                )

    def close(self) -> None:
        """Remove the slabs of this dataset from the cache."""
        _evict(self._number)

    def _slab(self, number: int) -> Array:
        key = self._number, number
        with _lock:
            if key in _slab_cache:
                _slab_cache.move_to_end(key)
                return _slab_cache[key]
            cached_bytes = sum(slab.nbytes for slab in _slab_cache.values())
            # Free the space before another slab is decompressed.
            while _slab_cache and cached_bytes + self.nbytes > SLAB_CACHE_BYTES:
                cached_bytes -= _slab_cache.popitem(last=False)[1].nbytes
        start = number * self._width
        where = (slice(None),) * self._axis + (slice(start, start + self._width),)
        slab: Array = self._dataset[where]
        with _lock:
            _slab_cache[key] = slab
        return slab


def _evict(dataset: int) -> None:
    with _lock:
        for key in [key for key in _slab_cache if key[0] == dataset]:
            del _slab_cache[key]


Selection: TypeAlias = EllipsisType | slice | tuple[slice, ...]

HEAP_REFERENCE_BYTES = 16
"""Bytes of one stored reference to a variable-length value: its length, its heap address."""

OCTAVE = "OCTAVE_NEW_FORMAT"
"""Attribute of the groups in which Octave stores each variable, under ``value``."""

FIRST_ROWS = 64
"""Variable-length rows that are read together while their sizes are unknown."""

SCAN_BYTES = 16 << 20
"""Approximate bytes of variable-length rows that are read together, once sizes are known."""

SMALL_BYTES = 1 << 20
"""Bytes of variable-length values that are read without check, even if they share storage."""


class Dataset:
    """A dataset that is safe to read.

    Parameters
    ----------
    dataset
        The h5py dataset.
    path
        Path in the file.
    where
        File and path, for errors.
    access
        Permissions of the user: virtual and external storage, any shape.

    Attributes
    ----------
    path
        Path in the file.
    shape, dtype
        Shape and type in the file; a variable-length dataset has the dtype of its elements.
    vlen
        Each element is a row; rows differ in length.
    null
        The dataset has a null dataspace: no values and no shape.
    nbytes
        Bytes that the shape declares.

    Raises
    ------
    DataError
        The dataset is refused, damaged, or compressed with a filter that is not installed.
    """

    def __init__(self, dataset: Any, path: str, where: str, access: FileAccess) -> None:
        self._access = access
        self.path = path
        self.where = where
        with reading_errors(where):
            plist = dataset.id.get_create_plist()
            if not access.allow_external:
                refuse_outside_storage(plist, where, access)
            elif plist.get_layout() == h5d.VIRTUAL:
                check_virtual(dataset, access.source.path, where)
                dataset = _open_natively(dataset, access)
            self._dataset = dataset
            self.null = dataset.shape is None
            self.shape: tuple[int, ...] = (0,) if self.null else tuple(dataset.shape)
            dtype: np.dtype[Any] = _dtype(dataset, where)
            base = h5py.check_vlen_dtype(dtype)
            self.vlen = base is not None
            self.text = h5py.check_string_dtype(dtype) is not None
            self.dtype = np.dtype(dtype if base is None else base)
            # MATLAB writes text as numbers, and the shape of an empty array as its values.
            self.text |= self.dtype == np.uint16 and is_word(self.attribute("MATLAB_class"), "char")
            self._matlab_empty = self.dtype == np.uint64 and "MATLAB_empty" in dataset.attrs
            self.is_enum = h5py.check_enum_dtype(dtype) is not None and dtype.kind != "b"
            width = HEAP_REFERENCE_BYTES if dtype.kind == "O" else dtype.itemsize
            self.nbytes = prod(self.shape) * width
            self._stored_elsewhere = storage_kind(plist) in ("virtual", "external storage")
            if not access.allow_external and not self.null:
                refuse_unstored_shape(dataset, self.nbytes, where, access)
            require_filters(plist, where)
            self._compressed = bool(dataset.chunks) and plist.get_nfilters() > 0
            # Deflate doubles its buffer step by step, besides the chunk and the values.
            self._decompression_bytes = 4 * prod(dataset.chunks) * width if self._compressed else 0
        self._slabs: dict[int, ChunkSlabs] = {}
        self._value_lengths: Array | None = None

    @property
    def stored_bytes(self) -> int:
        """Decompressed bytes of the values in the file; all other values are fill values."""
        with reading_errors(self.where):
            stored, declared = allocated_size(self._dataset, self.nbytes)
        return self.nbytes if declared == 0 else self.nbytes * min(stored, declared) // declared

    @property
    def identity(self) -> tuple[int, int]:
        """File and object number, which are equal for two paths to one dataset."""
        with reading_errors(self.where):
            info = h5o.get_info(self._dataset.id)
            return int(info.fileno), int(info.addr)

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def numeric(self) -> bool:
        """Whether the values are integers, booleans or real numbers."""
        return self.dtype.kind in "iufb" and not (self.text or self._matlab_empty or self.null)

    @property
    def is_dimension_scale(self) -> bool:
        """Whether this is one of the datasets that NetCDF-4 writes for each axis."""
        return is_word(self.attribute("CLASS"), "DIMENSION_SCALE")

    @property
    def is_matlab_cell(self) -> bool:
        """Whether this is a MATLAB cell array, whose values are stored in other datasets."""
        return self.dtype.kind == "O" and is_word(self.attribute("MATLAB_class"), "cell")

    @property
    def integral(self) -> bool:
        """Whether the values are integers or booleans."""
        return self.dtype.kind in "iub"

    def read(self, selection: Selection = ...) -> Array:
        """The selected values, in the stored dtype."""
        if self.null:
            raise _no_values(self)
        parts = (selection,) if isinstance(selection, slice) else selection
        with reading_errors(self.where, self._decompression_bytes):
            self._access.source.start_read()
            if self.in_heap:
                return self._read_heap(selection)
            axis, slabs = self._slabs_for(parts)
            if slabs is None or isinstance(parts, EllipsisType):
                return np.asarray(self._dataset[selection])
            values = np.empty(_selected(self._dataset.shape, parts), self.dtype)
            self._read_slabs(slabs, axis, parts, values)
            return values

    def read_into(self, selection: Selection, out: Array) -> int:
        """Read the selected values into `out`, of the same size; returns the bytes read.

        HDF5 writes to `out` directly if the file has the type of `out`.
        """
        plain = out.dtype == self.dtype and out.flags.c_contiguous and not self.in_heap
        parts = (selection,) if isinstance(selection, slice) else selection
        if not plain or not out.size or self._slabs_for(parts)[1] is not None:
            values = self.read(selection)
            with np.errstate(all="ignore"):  # values out of range become infinite
                out[...] = values.reshape(out.shape)
            return values.nbytes
        with reading_errors(self.where, self._decompression_bytes):
            self._dataset.read_direct(out.reshape(self._selected(selection)), selection)
        return out.nbytes

    def _slabs_for(self, parts: tuple[slice, ...] | EllipsisType) -> tuple[int, ChunkSlabs | None]:
        """The axis with the smallest part, and its slabs if they exceed HDF5's cache."""
        if not self._compressed or isinstance(parts, EllipsisType) or 0 in self.shape:
            return 0, None
        sizes = self._dataset.shape
        shares = [n / size for n, size in zip(_selected(sizes, parts), sizes, strict=True)]
        axis = shares.index(min(shares))
        if shares[axis] == 1:  # the whole dataset: each chunk is decompressed once
            return 0, None
        if axis not in self._slabs:
            self._slabs[axis] = ChunkSlabs(self._dataset, axis, self.dtype.itemsize)
            self._access.slabs.add(self._slabs[axis])
        slabs = self._slabs[axis]
        return axis, slabs if slabs.nbytes > CHUNK_CACHE_BYTES else None

    def _read_slabs(
        self, slabs: ChunkSlabs, axis: int, parts: tuple[slice, ...], values: Array
    ) -> None:
        part = parts[axis] if parts else slice(None)
        if not slabs.fit_cache:
            slabs.wasted_bytes += max(0, slabs.decompressed_bytes(part) - values.nbytes)
            if slabs.wasted_bytes > MAX_WASTED_BYTES:
                raise _repeated_decompression(self, slabs)
            values[...] = self._dataset[parts]
            return
        rest = (*parts[:axis], slice(None), *parts[axis + 1 :])
        front = (slice(None),) * axis
        for place, slab, in_slab in slabs.pieces(part):
            values[(*front, place)] = slab[(*front, in_slab)][rest]

    def _read_heap(self, selection: Selection) -> Array:
        """Read rows or texts, which HDF5 copies from the heap one by one."""
        self._require_own_heap()
        first = selection[:1] if isinstance(selection, tuple) else (selection,)
        lengths = self.value_lengths() if self.rank else None
        if lengths is not None:
            self.require_stored(int(lengths[first].sum()))
        elif self.rank:
            (rows,) = first
            begin, end, _ = (slice(None) if rows is ... else rows).indices(self._dataset.shape[0])
            if end - begin > FIRST_ROWS:
                parts = [values for _, values in self._heap_pieces(begin, end)]
                return np.concatenate(parts)
        return np.asarray(self._dataset[selection])

    def _heap_pieces(self, begin: int, end: int) -> Iterator[tuple[slice, Array]]:
        """Rows or texts in small pieces: many values in a hostile file may share their bytes."""
        read_bytes, start, block = 0, begin, FIRST_ROWS
        while start < end:
            stop = min(end, start + block)
            values = np.asarray(self._dataset[start:stop])
            read_bytes += sum(map(_value_bytes, values.reshape(-1)))
            self.require_stored(read_bytes)
            yield slice(start, stop), values
            mean = read_bytes // (stop - begin) + 1
            start, block = stop, min(2 * block, max(FIRST_ROWS, SCAN_BYTES // mean))

    def read_sizes(self) -> Array:
        """(N,) bytes of each variable-length row. The method reads all rows."""
        self._require_own_heap()
        sizes = np.zeros(self.shape[0], np.int64)
        with reading_errors(self.where):
            self._access.source.start_read()
            for rows, values in self._heap_pieces(0, len(sizes)):
                sizes[rows] = [_value_bytes(value) for value in values]
        return sizes

    def _require_own_heap(self) -> None:
        if self._stored_elsewhere:
            raise DataError(
                f"{self.where} has values of variable length that are stored in other datasets",
                expected="rows or texts stored in the dataset itself",
                where=self.where,
            )

    def value_lengths(self) -> Array | None:
        """Bytes of each variable-length value; None if chunked storage scatters the references."""
        if self._value_lengths is None and not (self._stored_elsewhere or self.null) and self.rank:
            with reading_errors(self.where):
                place = None if self._dataset.chunks else self._dataset.id.get_offset()
                if place is not None:
                    source, width = self._access.source, self._access.offset_bytes
                    lengths = source.heap_value_lengths(place, prod(self.shape), width)
                    item = 1 if self.text else self.dtype.itemsize
                    self._value_lengths = lengths.reshape(self._dataset.shape) * item
        return self._value_lengths

    def require_stored(self, nbytes: int) -> None:
        """Raise DataError if values take more bytes than the file: they share their bytes."""
        size = self._access.source.size
        if nbytes > max(size, SMALL_BYTES):
            raise DataError(
                f"{self.where} declares far more than the file stores",
                expected=f"at most {size:,} bytes of values, the size of the file",
                found=f"{nbytes:,} bytes",
                where=self.where,
            )

    def _selected(self, selection: Selection) -> tuple[int, ...]:
        return _selected(self.shape, selection)

    def as_vector(self) -> Dataset:
        """The dataset itself. A reversed dataset of one row or column becomes a vector."""
        return self

    def reversing_program(self, programs: Mapping[str, str]) -> str | None:
        """Name of the program that wrote the file, if it is known to reverse axes.

        Parameters
        ----------
        programs
            Name of an attribute of datasets to the program that writes the attribute.
        """
        with reading_errors(self.where):
            attributes = self._dataset.attrs
            program = next((name for mark, name in programs.items() if mark in attributes), None)
            octave = OCTAVE in self._dataset.parent.attrs
        return program or ("Octave" if octave else self._access.reversing_program)

    def attribute(self, name: str) -> Any:
        """Value of an attribute, or None."""
        return read_attribute(self._dataset, name, self.where, self._access)

    def read_metadata(self) -> DatasetMetadata:
        """Shape, type and storage."""
        with reading_errors(self.where):
            return read_metadata(self._dataset)

    @property
    def compression(self) -> str | None:
        """Names of the compression filters, or None."""
        with reading_errors(self.where):
            names = [name for _, name in dataset_filters(self._dataset.id.get_create_plist())]
            return ", ".join(names) or None

    @property
    def in_heap(self) -> bool:
        """Whether the values are stored in the file's heap and the dataset holds references."""
        return self.vlen or self.dtype.kind == "O"


def _selected(shape: tuple[int, ...], selection: Selection) -> tuple[int, ...]:
    if isinstance(selection, EllipsisType):
        return shape
    parts = (selection,) if isinstance(selection, slice) else selection
    cut = [len(range(*p.indices(n))) for p, n in zip(parts, shape, strict=False)]
    return (*cut, *shape[len(cut) :])


def is_word(value: object, word: str) -> bool:
    """Whether the value of an attribute is one word, and not an array of words."""
    return isinstance(value, str | bytes) and value in (word, word.encode())


def read_attribute(holder: Any, name: str, where: str, access: FileAccess) -> Any:
    """Value of an attribute that holds numbers or text; None for any other attribute."""
    with reading_errors(where):
        if name not in holder.attrs:
            return None
        # Damaged attributes of other types crash HDF5.
        dtype = holder.attrs.get_id(name).dtype
        text = h5py.check_string_dtype(dtype)
        if text is None and dtype.kind not in "iufbSU":
            return None
        if text is not None and text.length is None:
            check_declared_texts(holder, name, access)
        access.source.start_read()
        value = holder.attrs[name]
        return None if isinstance(value, h5py.Empty) else value


def type_name(dataset: Dataset) -> str:
    """Type of a dataset for messages: NumPy's name and the kind in words."""
    if dataset.null:
        return f"{printable(str(dataset.dtype))}, but no values (a null dataspace)"
    if dataset.text:
        return "text"
    if dataset.vlen:
        return f"rows of variable length of {printable(str(dataset.dtype))}"
    if dataset.is_matlab_cell:
        return "references to other datasets, as MATLAB writes a cell array"
    kinds = {
        "c": "complex",
        "S": "string",
        "O": "references",
        "V": "compound or opaque",
        "f": "floating point",
        "b": "booleans",
    }
    kind = "an enumeration" if dataset.is_enum else kinds.get(dataset.dtype.kind, "integers")
    return f"{printable(str(dataset.dtype))} ({kind})"


def _no_values(dataset: Dataset) -> DataError:
    return DataError(
        f"{dataset.where} has no values: its dataspace is null",
        expected="an array, which may be of size 0",
        found=f"type {type_name(dataset)}",
        where=dataset.where,
    )


def _repeated_decompression(dataset: Dataset, slabs: ChunkSlabs) -> DataError:
    return DataError(
        f"{dataset.where} has chunks so large that each batch would decompress all of them again",
        expected=f"chunks of a few sequences: {SLAB_CACHE_BYTES:,} bytes of them can be cached",
        found=f"chunks {dataset.read_metadata().chunks}, {slabs.nbytes:,} bytes together",
        where=dataset.where,
        hint="in h5py, create_dataset(..., chunks=True, compression='gzip') makes small chunks",
    )


def _value_bytes(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes) else int(np.asarray(value).nbytes)


def _dtype(dataset: Any, where: str) -> np.dtype[Any]:
    """The NumPy type; DataError if NumPy has no such type."""
    try:
        dtype: np.dtype[Any] = dataset.dtype
    except (TypeError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"{where} has a type that cannot be read",
            expected="integers or real numbers",
            found=printable(str(error)),
            where=where,
        ) from error
    return dtype


def _open_natively(dataset: Any, access: FileAccess) -> Any:
    """The dataset opened without `CheckedFile`, so that HDF5 can open the virtual sources."""
    reference = h5r.create(dataset.id, b".", h5r.OBJECT)
    return h5py.Dataset(h5r.dereference(reference, access.open_native().id))


class ReversedDataset(Dataset):
    """A dataset read with its axes reversed.

    Parameters
    ----------
    dataset, path, where, access
        See `Dataset`.
    """

    def __init__(self, dataset: Any, path: str, where: str, access: FileAccess) -> None:
        super().__init__(dataset, path, where, access)
        self._stored_rank = len(self.shape)
        self.shape = self.shape[::-1]
        self._axes: tuple[int | None, ...] = tuple(reversed(range(len(self.shape))))
        """The stored axis that each axis is read from; None for a new axis of size 1."""

    def as_vector(self) -> Dataset:
        """The values as a vector if they are one row or column, else the dataset itself."""
        if self.rank != 2 or 1 not in self.shape:
            return self
        axis = int(np.argmax(self.shape))
        return self._view((self.shape[axis],), (self._axes[axis],))

    def with_feature_axis(self) -> Dataset:
        """The values with a last axis of size 1, which MATLAB omits."""
        return self._view((*self.shape, 1), (*self._axes, None))

    def read(self, selection: Selection = ...) -> Array:
        """The selected values, in the stored dtype."""
        slices = dict(zip(self._axes, self._slices(selection), strict=True))
        stored_axes = range(self._stored_rank)
        values = super().read(tuple(slices.get(axis, slice(None)) for axis in stored_axes))
        front = [axis for axis in self._axes if axis is not None]
        order = front + [axis for axis in stored_axes if axis not in front]
        return np.ascontiguousarray(values.transpose(order)).reshape(self._selected(selection))

    def read_into(self, selection: Selection, out: Array) -> int:
        """Read the selected values into `out`, of the same size; returns the bytes read."""
        values = self.read(selection)
        with np.errstate(all="ignore"):  # values out of range become infinite
            out[...] = values.reshape(out.shape)
        return values.nbytes

    def _slices(self, selection: Selection) -> list[slice]:
        parts: tuple[slice, ...] = ()
        if not isinstance(selection, EllipsisType):
            parts = (selection,) if isinstance(selection, slice) else selection
        pairs = zip_longest(parts, self.shape)
        return [slice(None) if part is None else part for part, _ in pairs]

    def _view(self, shape: tuple[int, ...], axes: tuple[int | None, ...]) -> ReversedDataset:
        other = copy(self)
        other.shape, other._axes = shape, axes
        return other
