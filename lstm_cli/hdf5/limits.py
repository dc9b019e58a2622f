"""Checks before a dataset is read: storage, declared size, filters, virtual sources.

Also the errors that HDF5 raises, turned into `DataError`, and a dataset's metadata.

A virtual dataset that leads back to itself makes HDF5 call itself until the process crashes.
One that doubles at each of thirty steps keeps HDF5 busy forever. `check_virtual` follows virtual
datasets to their sources before HDF5 does.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from math import prod
from typing import Any

import h5py
from h5py import h5d, h5o, h5z

from lstm_cli.errors import DataError, counted, has_memory, is_memory_error, memory_error, printable
from lstm_cli.hdf5.heap_check import FileAccess, HeapError

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
"""Errors that h5py raises on damaged files. Caught only around calls of h5py."""

BOMB_BYTES = 64 << 20
"""Bytes that any shape may declare without check: they fit in memory."""

BOMB_RATIO = 4
"""Largest ratio of declared to stored size of larger shapes."""

MOST_EMPTY = 100_000
"""Largest number of rows of a dataset without values: each row may be a sequence."""


@contextmanager
def reading_errors(where: str, nbytes: int = 0) -> Iterator[None]:
    """Turn errors of h5py into a DataError that names `where`.

    Parameters
    ----------
    nbytes
        Bytes of memory that HDF5 needs besides the values. HDF5 does not always report that
        memory was short.
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


@dataclass(frozen=True)
class DatasetMetadata:
    """Facts about a dataset that need no reading; None for unknown facts.

    Attributes
    ----------
    shape, dtype, chunks
        Shape, type in words, and shape of a chunk.
    storage
        Kind of storage: ``contiguous``, ``chunked``, ``compact``, ``virtual``,
        ``external storage``, ``external link``, or ``unreadable``.
    nbytes
        Bytes of the dataset in the file.
    """

    shape: tuple[int, ...] | None = None
    dtype: str = "?"
    chunks: tuple[int, ...] | None = None
    nbytes: int | None = None
    storage: str = "unreadable"


def read_metadata(dataset: Any) -> DatasetMetadata:
    """Metadata of an h5py dataset."""
    storage = storage_kind(dataset.id.get_create_plist())
    base = h5py.check_vlen_dtype(dataset.dtype)
    dtype = str(dataset.dtype) if base is None else f"rows of {base}"
    if dataset.dtype.names:
        dtype = counted(len(dataset.dtype.names), "column")
    if dataset.shape is None:
        dtype = f"{dtype} (null)"
    text = h5py.check_string_dtype(dataset.dtype) is not None
    return DatasetMetadata(
        None if dataset.shape is None else tuple(dataset.shape),
        "text" if text else dtype,
        dataset.chunks,
        int(dataset.id.get_storage_size()),
        storage,
    )


def storage_kind(plist: Any) -> str:
    """Kind of storage, from the creation properties of a dataset."""
    if plist.get_external_count():
        return "external storage"
    kinds = {h5d.VIRTUAL: "virtual", h5d.CHUNKED: "chunked", h5d.COMPACT: "compact"}
    return kinds.get(plist.get_layout(), "contiguous")


def refuse_outside_storage(plist: Any, where: str, access: FileAccess) -> None:
    """Raise DataError for virtual and external storage."""
    storage = storage_kind(plist)
    if storage == "virtual":
        kind = "a virtual dataset: its values are stored in other datasets"
    elif storage == "external storage":
        name = plist.get_external(0)[0].decode(errors="replace")
        kind = f"external storage: its values are stored in {printable(name)}"
    else:
        return
    raise DataError(
        f"{where} is {kind}",
        expected="values stored in the dataset itself",
        where=where,
        hint=access.external_hint("reads it"),
    )


def refuse_unstored_shape(dataset: Any, nbytes: int, where: str, access: FileAccess) -> None:
    """Raise DataError for a shape of `nbytes` that is far larger than the stored values."""
    if not nbytes and max(dataset.shape, default=0) > MOST_EMPTY:
        raise DataError(
            f"{where} declares too many rows and stores no values",
            expected=f"sizes of at most {MOST_EMPTY:,} if one size is 0",
            found=f"shape {tuple(dataset.shape)}",
            where=where,
            hint=access.external_hint("reads it"),
        )
    if nbytes <= BOMB_BYTES:
        return
    allocated, declared = allocated_size(dataset, nbytes)
    if allocated * BOMB_RATIO >= declared:
        return
    raise DataError(
        f"{where} declares far more than the file stores",
        expected=f"storage for shape {tuple(dataset.shape)}, {nbytes:,} bytes",
        found=f"{allocated:,} of {declared:,} " + ("chunks" if dataset.chunks else "bytes"),
        where=where,
        hint=access.external_hint("reads it"),
    )


def allocated_size(dataset: Any, nbytes: int) -> tuple[int, int]:
    """Stored and declared size, in chunks if the dataset is chunked, else in bytes."""
    if dataset.chunks is None:
        return int(dataset.id.get_storage_size()), nbytes
    sizes = zip(dataset.shape, dataset.chunks, strict=True)
    return int(dataset.id.get_num_chunks()), prod(-(-size // chunk) for size, chunk in sizes)


def dataset_filters(plist: Any) -> list[tuple[int, str]]:
    """Code and name of each compression filter."""
    filters = [plist.get_filter(k) for k in range(plist.get_nfilters())]
    return [(code, printable(name.decode(errors="replace"))) for code, _, _, name in filters]


def require_filters(plist: Any, where: str) -> None:
    """Raise DataError if a compression filter is not installed."""
    if plist.get_layout() != h5d.CHUNKED:
        return
    for code, name in dataset_filters(plist):
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
        # The import registers the filters.
        import_module("hdf5plugin")
    except ImportError:
        return False
    return bool(h5z.filter_avail(code))


MAX_VIRTUAL_DEPTH = 32
"""Levels of virtual datasets that are followed."""

MOST_SOURCES = 20_000
"""Largest number of sources that a virtual dataset may open, directly and indirectly."""

_Key = tuple[int, int, int]
"""Device and inode of a file, and address of an object in the file."""


def check_virtual(dataset: Any, path: str, where: str) -> None:
    """Raise DataError unless a virtual dataset leads to a bounded number of sources.

    Parameters
    ----------
    path
        Path of the file that holds the dataset.
    """
    with ExitStack() as files:
        _SourceSearch(where, files).follow(dataset, path, ())


@dataclass
class _SourceSearch:
    where: str
    files: ExitStack
    sources: dict[_Key, int] = field(default_factory=dict)
    """Number of sources below each dataset that was followed to its sources."""
    handles: dict[str, Any] = field(default_factory=dict)

    def follow(self, dataset: Any, path: str, above: tuple[_Key, ...]) -> int:
        """Number of sources that a read of the dataset opens."""
        plist = dataset.id.get_create_plist()
        if plist.get_layout() != h5d.VIRTUAL:
            return 0
        status = os.stat(path)
        key = status.st_dev, status.st_ino, int(h5o.get_info(dataset.id).addr)
        if key in above:
            raise self._refused("the dataset is among its own sources")
        if len(above) >= MAX_VIRTUAL_DEPTH:
            raise self._refused(f"sources of sources on more than {MAX_VIRTUAL_DEPTH} levels")
        if key not in self.sources:
            total = count = plist.get_virtual_count()
            self._bound(total)
            named = Counter(
                (plist.get_virtual_filename(k), plist.get_virtual_dsetname(k)) for k in range(count)
            )
            for (file, name), times in named.items():
                below = 0
                for source_path, source in self._candidates(file, name, path):
                    below = max(below, self.follow(source, source_path, (*above, key)))
                total += below * times
                self._bound(total)
            self.sources[key] = total
        return self.sources[key]

    def _bound(self, total: int) -> None:
        if total > MOST_SOURCES:
            raise self._refused(f"{total:,} sources and more")

    def _candidates(self, file: str, name: str, path: str) -> Iterator[tuple[str, Any]]:
        """Every dataset that HDF5 may open as a source, in all folders that it searches."""
        for candidate in [path] if file == "." else list(_source_paths(file, path)):
            handle = self._open(candidate)
            for source_name in () if handle is None else _matching_names(handle, name):
                try:
                    source = handle[source_name]
                except Exception:
                    continue
                if isinstance(source, h5py.Dataset):
                    yield source.file.filename, source

    def _open(self, path: str) -> Any:
        key = os.path.realpath(path)
        if key not in self.handles:
            if len(self.handles) > MOST_SOURCES:
                raise self._refused(f"{MOST_SOURCES:,} files and more")
            try:
                self.handles[key] = self.files.enter_context(h5py.File(path, "r"))
            except Exception:
                self.handles[key] = None
        return self.handles[key]

    def _refused(self, reason: str) -> DataError:
        return DataError(
            f"{self.where} is a virtual dataset that cannot be followed to its sources",
            expected="sources that hold values themselves",
            found=reason,
            where=self.where,
        )


def _source_paths(file: str, path: str) -> Iterator[str]:
    """Paths at which HDF5 searches for a source file."""
    here = os.path.dirname(os.path.abspath(path))
    folders = [here, os.path.dirname(os.path.realpath(path)), os.getcwd()]
    for prefix in os.environ.get("HDF5_VDS_PREFIX", "").split(":"):
        folders += [prefix.replace("${ORIGIN}", here)] if prefix else []
    for folder in dict.fromkeys(folders):
        for name in dict.fromkeys((file, os.path.basename(file))):
            candidate = os.path.join(folder, name)
            if os.path.isfile(candidate):
                yield candidate
            elif "%" in name:
                inner = os.path.dirname(candidate)
                entries = os.listdir(inner) if os.path.isdir(inner) else []
                pattern = _pattern(os.path.basename(candidate))
                yield from (os.path.join(inner, one) for one in entries if pattern.fullmatch(one))


def _matching_names(handle: Any, name: str) -> list[str]:
    """Paths of the datasets that a name, or a printf-like pattern, stands for."""
    if "%" not in name:
        return [name]
    parent, _, last = name.rpartition("/")
    try:
        group = handle[parent or "/"]
        return [f"{parent}/{one}" for one in group if _pattern(last).fullmatch(one)]
    except Exception:
        return []


def _pattern(name: str) -> re.Pattern[str]:
    parts = re.split(r"(%%|%\d*b)", name)
    return re.compile("".join(
        "%" if part == "%%" else r"\d+" if re.fullmatch(r"%\d*b", part) else re.escape(part)
        for part in parts
    ))  # fmt: skip
