"""What may be read of an HDF5 file: checks before a dataset is read, and errors of HDF5."""

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

from lstm_cli.errors import DataError, counted, has_memory, is_memory, printable, short_of_memory
from lstm_cli.hdf5.heap_check import Guard, HeapError

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
        if is_memory(error) or (nbytes and not has_memory(nbytes)):
            raise short_of_memory(where) from error
        raise DataError(
            f"{where} cannot be read",
            expected="intact HDF5",
            found=printable(" ".join(str(error).split())) or type(error).__name__,
            where=where,
            hint="the file may be damaged: copy or make it again",
        ) from error


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


def refuse_outside_storage(plist: Any, where: str, guard: Guard) -> None:
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


def refuse_unstored_shape(dataset: Any, declared: int, where: str, guard: Guard) -> None:
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
    held, of = allocated_size(dataset, declared)
    if held * BOMB_RATIO >= of:
        return
    raise DataError(
        f"{where} declares far more than the file stores",
        expected=f"storage for shape {tuple(dataset.shape)}, {declared:,} bytes",
        found=f"{held:,} of {of:,} " + ("chunks" if dataset.chunks else "bytes"),
        where=where,
        hint=guard.hint("reads it"),
    )


def allocated_size(dataset: Any, declared: int) -> tuple[int, int]:
    """What is stored and what the shape declares, in chunks or in bytes."""
    if dataset.chunks is None:
        return int(dataset.id.get_storage_size()), declared
    sizes = zip(dataset.shape, dataset.chunks, strict=True)
    return int(dataset.id.get_num_chunks()), prod(-(-size // chunk) for size, chunk in sizes)


def dataset_filters(plist: Any) -> list[tuple[int, str]]:
    found = [plist.get_filter(k) for k in range(plist.get_nfilters())]
    return [(code, printable(name.decode(errors="replace"))) for code, _, _, name in found]


def require_filters(plist: Any, where: str) -> None:
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
        # Importing it registers its filters.
        import_module("hdf5plugin")
    except ImportError:
        return False
    return bool(h5z.filter_avail(code))


DEEPEST = 32
"""Virtual datasets of virtual datasets that are followed."""

MOST_SOURCES = 20_000
"""Sources that reading a virtual dataset may open, those of its sources among them."""

_Key = tuple[int, int, int]
"""Device and number of a file, and the address of an object in it."""


def check_virtual(dataset: Any, path: str, where: str) -> None:
    """Raise DataError unless following a virtual dataset comes to an end.

    Parameters
    ----------
    path
        Of the file that holds it.
    """
    with ExitStack() as files:
        _Search(where, files).follow(dataset, path, ())


@dataclass
class _Search:
    where: str
    files: ExitStack
    sources: dict[_Key, int] = field(default_factory=dict)
    """Sources below each dataset that was followed to its ends."""
    handles: dict[str, Any] = field(default_factory=dict)

    def follow(self, dataset: Any, path: str, above: tuple[_Key, ...]) -> int:
        """Sources that reading a dataset opens."""
        plist = dataset.id.get_create_plist()
        if plist.get_layout() != h5d.VIRTUAL:
            return 0
        status = os.stat(path)
        key = status.st_dev, status.st_ino, int(h5o.get_info(dataset.id).addr)
        if key in above:
            raise self._refused("it is among its own sources")
        if len(above) >= DEEPEST:
            raise self._refused(f"sources of sources, more than {DEEPEST} deep")
        if key not in self.sources:
            total = count = plist.get_virtual_count()
            self._bound(total)
            named = Counter(
                (plist.get_virtual_filename(k), plist.get_virtual_dsetname(k)) for k in range(count)
            )
            for (file, name), times in named.items():
                below = 0
                for source, found in self._candidates(file, name, path):
                    below = max(below, self.follow(found, source, (*above, key)))
                total += below * times
                self._bound(total)
            self.sources[key] = total
        return self.sources[key]

    def _bound(self, total: int) -> None:
        if total > MOST_SOURCES:
            raise self._refused(f"{total:,} sources and more")

    def _candidates(self, file: str, name: str, path: str) -> Iterator[tuple[str, Any]]:
        """Every dataset that HDF5 may take for a source, wherever it looks for the file."""
        places = [path] if file == "." else list(_places(file, path))
        for place in places:
            handle = self._open(place)
            for one in () if handle is None else _named(handle, name):
                try:
                    found = handle[one]
                except Exception:
                    continue
                if isinstance(found, h5py.Dataset):
                    yield found.file.filename, found

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

    def _refused(self, found: str) -> DataError:
        return DataError(
            f"{self.where} is a virtual dataset that cannot be followed to its sources",
            expected="sources that hold values themselves, at the end",
            found=found,
            where=self.where,
        )


def _places(file: str, path: str) -> Iterator[str]:
    """Paths at which HDF5 looks for a source file."""
    here = os.path.dirname(os.path.abspath(path))
    folders = [here, os.path.dirname(os.path.realpath(path)), os.getcwd()]
    for prefix in os.environ.get("HDF5_VDS_PREFIX", "").split(":"):
        folders += [prefix.replace("${ORIGIN}", here)] if prefix else []
    for folder in dict.fromkeys(folders):
        for name in dict.fromkeys((file, os.path.basename(file))):
            place = os.path.join(folder, name)
            if os.path.isfile(place):
                yield place
            elif "%" in name:
                inner = os.path.dirname(place)
                known = os.listdir(inner) if os.path.isdir(inner) else []
                pattern = _pattern(os.path.basename(place))
                yield from (os.path.join(inner, one) for one in known if pattern.fullmatch(one))


def _named(handle: Any, name: str) -> list[str]:
    """The dataset of a name, or those that a name with a number in it stands for."""
    if "%" not in name:
        return [name]
    folder, _, last = name.rpartition("/")
    try:
        group = handle[folder or "/"]
        known = [f"{folder}/{one}" for one in group if _pattern(last).fullmatch(one)]
    except Exception:
        known = []
    return known


def _pattern(name: str) -> re.Pattern[str]:
    """Names that a printf-like one stands for, which has ``%b`` for a number."""
    parts = re.split(r"(%%|%\d*b)", name)
    return re.compile("".join(
        "%" if part == "%%" else r"\d+" if re.fullmatch(r"%\d*b", part) else re.escape(part)
        for part in parts
    ))  # fmt: skip
