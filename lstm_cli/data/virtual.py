"""Virtual datasets, followed to their ends before HDF5 follows them without looking.

A virtual dataset that leads back to itself makes HDF5 call itself until the process crashes, and
one that doubles at each of thirty steps keeps it busy for ever.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import h5py
from h5py import h5d, h5o

from lstm_cli.errors import DataError

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
