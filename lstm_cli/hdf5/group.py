"""Groups of an HDF5 file, walked link by link, so that nothing leads out of the file unseen.

HDF5 follows soft and external links by itself, also in the middle of a path; checking the last
component alone is not enough.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import h5py
import numpy as np
from h5py import h5l, h5o

from lstm_cli.errors import DataError, printable
from lstm_cli.hdf5.dataset import OCTAVE, Stored, Turned, read_attribute
from lstm_cli.hdf5.heap_check import Array, Guard
from lstm_cli.hdf5.limits import Declared, declared, reading, storage_kind

MAX_RECENT = 8
"""Datasets of a file that are kept open while parts of them are read."""
MAX_LINKS = 32
"""Soft and external links followed for one path; more is taken for a circle."""


@dataclass(frozen=True)
class Folder:
    """A group of an open file.

    Attributes
    ----------
    file
        The file as the user named it.
    path
        Of the group in the file, such as ``/test``.
    """

    group: Any
    file: str
    path: str
    guard: Guard

    @property
    def where(self) -> str:
        """File and path as the DATA argument writes them, such as ``words.h5:/test``."""
        return f"{self.file}:{printable(self.path)}"

    def find(self, name: str) -> Folder | Stored | None:
        """What stands under `name`, which may be a path; None if nothing does.

        Raises
        ------
        DataError
            The way leads out of the file or in a circle, or the dataset is refused.
        """
        path = _join(self.path, name)
        where = f"{self.file}:{printable(path)}"
        with reading(where):
            found, guard = self._walk(name, where)
        if isinstance(found, h5py.Dataset):
            return (Turned if guard.transpose else Stored)(found, path, where, guard)
        if isinstance(found, h5py.Group):
            return Folder(found, self.file, path, guard)
        return None

    def dataset(self, name: str) -> Stored | None:
        """The dataset under `name`, or None."""
        found = self.find(name)
        return found if isinstance(found, Stored) else None

    def folder(self, name: str) -> Folder | None:
        """The group under `name`, or None; a dataset there is not looked at."""
        path = _join(self.path, name)
        where = f"{self.file}:{printable(path)}"
        with reading(where):
            found, guard = self._walk(name, where)
        if not isinstance(found, h5py.Group):
            return None
        return Folder(found, self.file, path, guard)

    def again(self, name: str, rows: slice | EllipsisType = ...) -> Array:
        """All values, or some rows, of a dataset that `find` has let pass before."""
        key = _join(self.path, name)
        recent = self.guard.recent
        if rows is ... and key not in recent:
            where = f"{self.file}:{printable(key)}"
            with reading(where):
                found, guard = self._walk(name, where)
                if not guard.transpose and storage_kind(found.id.get_create_plist()) != "virtual":
                    return np.asarray(found[...])
        # Of parts of one dataset its chunks are unpacked once, as long as it stays open.
        if key not in recent:
            stored = self.dataset(name)
            if stored is None:
                raise DataError(f"{self.file}:{printable(key)} is no dataset any more")
            recent[key] = stored
            if len(recent) > MAX_RECENT:
                recent.popitem(last=False)
        recent.move_to_end(key)
        return recent[key].read(rows)

    def soft_link(self, name: str) -> str | None:
        """The path that a soft link in this group names, or None if `name` is none."""
        with reading(self.where):
            raw = name.encode("utf-8", "surrogateescape")
            links = self.group.id.links
            if not links.exists(raw) or links.get_info(raw).type != h5l.TYPE_SOFT:
                return None
            return printable(links.get_val(raw).decode("utf-8", "surrogateescape"))

    def declared(self, name: str) -> Declared:
        """What a dataset that `find` refuses says of itself, without following or reading it."""
        try:
            with reading(self.where):
                found, _ = self._walk(name, self.where)
                return declared(found) if isinstance(found, h5py.Dataset) else Declared()
        except DataError as error:
            outside = isinstance(error, LeavesFileError)
            return Declared(storage="external link" if outside else "unreadable")

    def names(self) -> list[str]:
        """Names of all links in the group, in natural order."""
        with reading(self.where):
            return natural_order(self.group)

    def members(self) -> Iterator[Folder | Stored]:
        """What can be opened, in natural order; what is refused or broken is left out."""
        for name in self.names():
            try:
                found = self.find(name)
            except DataError:
                continue
            if found is not None:
                yield found

    def attribute(self, name: str) -> Any:
        """An attribute's value, or None."""
        return read_attribute(self.group, name, self.where, self.guard)

    def identity(self) -> tuple[int, int]:
        """Equal for two paths to one group."""
        with reading(self.where):
            info = h5o.get_info(self.group.id)
            return int(info.fileno), int(info.addr)

    def _walk(self, path: str, where: str) -> tuple[Any, Guard]:
        """Follow `path` one component at a time, to None if it leads nowhere.

        The guard is that of the file in which it ends.
        """
        guard = self.guard
        here = self.group.file["/"] if path.startswith("/") else self.group
        todo = deque(_components(path))
        followed = 0
        while todo:
            name = todo.popleft()
            if not isinstance(here, h5py.Group):
                return None, guard
            link = self._link(here, name, where)
            if link is None:
                return None, guard
            if link.path is None:
                here = self._unwrapped(here[name], where)
                continue
            followed += 1
            if followed > MAX_LINKS:
                raise _refused(where, f"links in a circle, at {printable(name)}")
            if link.file is not None:
                other = guard.other(link.file)
                here, guard = other.group, other.guard
            elif link.path.startswith("/"):
                here = here.file["/"]
            todo.extendleft(reversed(_components(link.path)))
        return here, guard

    def _unwrapped(self, found: Any, where: str) -> Any:
        """The value of a variable of Octave, which keeps each in a group; else `found`."""
        if isinstance(found, h5py.Group) and OCTAVE in found.attrs:
            link = self._link(found, "value", where)
            if link is not None and link.path is None:
                return found["value"]
        return found

    def _link(self, group: Any, name: str, where: str) -> _Link | None:
        """How `name` is linked in `group`; None if it is not. Refuses what leaves the file."""
        raw = name.encode("utf-8", "surrogateescape")
        links = group.id.links
        if not links.exists(raw):
            return None
        kind = links.get_info(raw).type
        if kind == h5l.TYPE_SOFT:
            return _Link(links.get_val(raw).decode("utf-8", "surrogateescape"))
        if kind == h5l.TYPE_HARD:
            return _Link(None)
        file = path = ""
        found = f"{printable(name)}, an external link"
        if kind == h5l.TYPE_EXTERNAL:
            file, path = (part.decode("utf-8", "surrogateescape") for part in links.get_val(raw))
            found += f" to {printable(file)}:{printable(path)}"
        if self.guard.allow_external and file:
            return _Link(path, file)
        raise LeavesFileError(
            f"{where} leads out of the file",
            expected="links within the file",
            found=found,
            where=where,
            hint=None if self.guard.allow_external else self.guard.hint("follows it"),
        )


@dataclass(frozen=True)
class _Link:
    path: str | None
    """The path that a link names; None: a hard link."""
    file: str | None = None
    """The file that an external link names."""


class LeavesFileError(DataError):
    """A link leads out of the file."""


def _refused(where: str, found: str) -> DataError:
    return DataError(
        f"{where} leads nowhere", expected="links within the file", found=found, where=where
    )


def _components(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _join(folder: str, name: str) -> str:
    parts = _components(name) if name.startswith("/") else _components(folder) + _components(name)
    return "/" + "/".join(parts)


def natural_order(names: Iterable[str]) -> list[str]:
    """Sorted with numbers by their value: ``seq2`` before ``seq10``."""

    def key(name: str) -> tuple[list[tuple[int, int, str]], str]:
        parts = re.split(r"([0-9]+)", name)
        # Digits stand at odd places; compare them by length first, so that no number is too long.
        return [
            (k % 2, len(part.lstrip("0")) if k % 2 else 0, part.lstrip("0") if k % 2 else part)
            for k, part in enumerate(parts)
        ], name

    return sorted(names, key=key)
