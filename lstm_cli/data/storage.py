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
from h5py import h5d, h5o, h5r, h5z

from lstm_cli.data.bands import CHUNK_CACHE_BYTES, KEPT_BYTES, WASTE_BYTES, Bands
from lstm_cli.data.declared import Declared, declared, storage_kind
from lstm_cli.data.guard import Guard, HeapError
from lstm_cli.data.types import Array
from lstm_cli.data.virtual import check_virtual
from lstm_cli.errors import DataError, has_memory, is_memory_error, memory_error, printable

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

FIRST_ROWS = 64
"""Rows of variable length that are read together while nothing is known of their sizes."""
SCAN_BYTES = 16 << 20
"""Read together, about, of rows of variable length once their sizes are known."""
SMALL_BYTES = 1 << 20
"""Up to this size values of variable length may share their bytes."""
BOMB_BYTES = 64 << 20
"""Below this a shape may declare what it likes: it fits in memory."""
BOMB_RATIO = 4
"""Above it, at least one chunk in so many must exist."""
MOST_EMPTY = 100_000
"""Rows of a dataset that holds no values: each may be a sequence to go through."""


@contextmanager
def reading(where: str, nbytes: int = 0) -> Iterator[None]:
    """Turn what h5py raises into a DataError that names `where`.

    Parameters
    ----------
    nbytes
        Memory that HDF5 needs beside what is read. It does not always say that it lacked.
    """
    try:
        yield
    except HeapError as error:
        raise DataError(
            f"{where} cannot be read: the file's heap is damaged",
            expected="intact HDF5",
            found=str(error),
            where=where,
            hint="the file may be damaged: copy or make it again",
        ) from error
    except H5_ERRORS as error:
        if is_memory_error(error) or (nbytes and not has_memory(nbytes)):
            raise memory_error(where) from error
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
        self._guard = guard
        self.path = path
        self.where = where
        with reading(where):
            plist = dataset.id.get_create_plist()
            if not guard.allow_external:
                _refuse_foreign(plist, where, guard)
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
                _refuse_bomb(dataset, self.nbytes, where, guard)
            _need_filters(plist, where)
            self._packed = bool(dataset.chunks) and plist.get_nfilters() > 0
            # Deflate doubles its buffer as it goes, beside the chunk and the values read.
            self._unpacking = 4 * prod(dataset.chunks) * width if self._packed else 0
        self._bands: dict[int, Bands] = {}
        self._references: Array | None = None

    @property
    def held_bytes(self) -> int:
        """Bytes of the values that the file stores, unpacked; the rest are fill values."""
        with reading(self.where):
            held, of = _allocated(self._dataset, self.nbytes)
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
            names = [name for _, name in _filters(self._dataset.id.get_create_plist())]
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


def _refuse_foreign(plist: Any, where: str, guard: Guard) -> None:
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
        hint=guard.hint("reads it"),
    )


def _refuse_bomb(dataset: Any, declared: int, where: str, guard: Guard) -> None:
    if not declared and max(dataset.shape, default=0) > MOST_EMPTY:
        raise DataError(
            f"{where} declares rows without end and stores no values",
            expected=f"axes of at most {MOST_EMPTY:,} where one is 0",
            found=f"shape {tuple(dataset.shape)}",
            where=where,
            hint=guard.hint("reads it"),
        )
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
        hint=guard.hint("reads it"),
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
