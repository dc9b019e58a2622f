"""Groups of an HDF5 file. Paths are followed link by link, so that no link leaves the file.

HDF5 follows soft and external links by itself, also in the middle of a path. A check of the last
component is not enough.
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
from lstm_cli.hdf5.dataset import OCTAVE, Dataset, ReversedDataset, read_attribute
from lstm_cli.hdf5.heap_check import Array, FileAccess
from lstm_cli.hdf5.limits import DatasetMetadata, read_metadata, reading_errors, storage_kind

MAX_RECENT = 8
"""Largest number of datasets of a file that stay open between partial reads."""
MAX_LINKS = 32
"""Largest number of links that are followed for one path; more links count as a loop."""


@dataclass(frozen=True)
class Group:
    """A group of an open file.

    Attributes
    ----------
    handle
        The h5py group.
    file
        Path of the file, as the user typed it.
    path
        Path of the group in the file, such as ``/test``.
    access
        Access to the file that holds the group.
    """

    handle: Any
    file: str
    path: str
    access: FileAccess

    @property
    def where(self) -> str:
        """File and path in the form of the DATA argument, such as ``words.h5:/test``."""
        return f"{self.file}:{printable(self.path)}"

    def find(self, name: str) -> Group | Dataset | None:
        """The group or dataset called `name`, which may be a path; None if there is none.

        Raises
        ------
        DataError
            A link leaves the file or the links form a loop, or the dataset is refused.
        """
        path = _join(self.path, name)
        where = f"{self.file}:{printable(path)}"
        with reading_errors(where):
            node, access = self._follow(name, where)
        if isinstance(node, h5py.Dataset):
            return (ReversedDataset if access.transpose else Dataset)(node, path, where, access)
        if isinstance(node, h5py.Group):
            return Group(node, self.file, path, access)
        return None

    def dataset(self, name: str) -> Dataset | None:
        """The dataset called `name`, or None."""
        node = self.find(name)
        return node if isinstance(node, Dataset) else None

    def group(self, name: str) -> Group | None:
        """The group called `name`, or None. A dataset of that name is not checked."""
        path = _join(self.path, name)
        where = f"{self.file}:{printable(path)}"
        with reading_errors(where):
            node, access = self._follow(name, where)
        if not isinstance(node, h5py.Group):
            return None
        return Group(node, self.file, path, access)

    def read_unchecked(self, name: str, rows: slice | EllipsisType = ...) -> Array:
        """Values or rows of a dataset that `find` has checked before."""
        key = _join(self.path, name)
        recent_datasets = self.access.recent_datasets
        if rows is ... and key not in recent_datasets:
            where = f"{self.file}:{printable(key)}"
            with reading_errors(where):
                node, access = self._follow(name, where)
                if not access.transpose and storage_kind(node.id.get_create_plist()) != "virtual":
                    return np.asarray(node[...])
        # While a dataset stays open, partial reads decompress each chunk once.
        if key not in recent_datasets:
            dataset = self.dataset(name)
            if dataset is None:
                raise DataError(f"{self.file}:{printable(key)} is no longer a dataset")
            recent_datasets[key] = dataset
            if len(recent_datasets) > MAX_RECENT:
                recent_datasets.popitem(last=False)
        recent_datasets.move_to_end(key)
        return recent_datasets[key].read(rows)

    def soft_link_target(self, name: str) -> str | None:
        """The path that a soft link in this group names, or None if `name` is none."""
        with reading_errors(self.where):
            raw = name.encode("utf-8", "surrogateescape")
            links = self.handle.id.links
            if not links.exists(raw) or links.get_info(raw).type != h5l.TYPE_SOFT:
                return None
            return printable(links.get_val(raw).decode("utf-8", "surrogateescape"))

    def read_metadata(self, name: str) -> DatasetMetadata:
        """Metadata of a dataset that `find` refuses. No external link is followed."""
        try:
            with reading_errors(self.where):
                node, _ = self._follow(name, self.where)
                is_dataset = isinstance(node, h5py.Dataset)
                return read_metadata(node) if is_dataset else DatasetMetadata()
        except DataError as error:
            outside = isinstance(error, ExternalLinkError)
            return DatasetMetadata(storage="external link" if outside else "unreadable")

    def names(self) -> list[str]:
        """Names of all links in the group, in natural order."""
        with reading_errors(self.where):
            return natural_order(self.handle)

    def members(self) -> Iterator[Group | Dataset]:
        """Groups and datasets in natural order, without those that are refused or damaged."""
        for name in self.names():
            try:
                node = self.find(name)
            except DataError:
                continue
            if node is not None:
                yield node

    def attribute(self, name: str) -> Any:
        """Value of an attribute, or None."""
        return read_attribute(self.handle, name, self.where, self.access)

    def identity(self) -> tuple[int, int]:
        """File and object number, which are equal for two paths to one group."""
        with reading_errors(self.where):
            info = h5o.get_info(self.handle.id)
            return int(info.fileno), int(info.addr)

    def _follow(self, path: str, where: str) -> tuple[Any, FileAccess]:
        """Follow `path` one component at a time, to the h5py object and the access to its file.

        The object is None if the path leads nowhere.
        """
        access = self.access
        here = self.handle.file["/"] if path.startswith("/") else self.handle
        todo = deque(_components(path))
        followed = 0
        while todo:
            name = todo.popleft()
            if not isinstance(here, h5py.Group):
                return None, access
            link = self._link(here, name, where)
            if link is None:
                return None, access
            if link.path is None:
                here = self._octave_value(here[name], where)
                continue
            followed += 1
            if followed > MAX_LINKS:
                raise _broken_link_error(where, f"a loop of links at {printable(name)}")
            if link.file is not None:
                other = access.open_other(link.file)
                here, access = other.handle, other.access
            elif link.path.startswith("/"):
                here = here.file["/"]
            todo.extendleft(reversed(_components(link.path)))
        return here, access

    def _octave_value(self, node: Any, where: str) -> Any:
        """The value of an Octave variable, which is stored in a group; else `node`."""
        if isinstance(node, h5py.Group) and OCTAVE in node.attrs:
            link = self._link(node, "value", where)
            if link is not None and link.path is None:
                return node["value"]
        return node

    def _link(self, handle: Any, name: str, where: str) -> _Link | None:
        """The link called `name` in an h5py group, or None. A link out of the file is refused."""
        raw = name.encode("utf-8", "surrogateescape")
        links = handle.id.links
        if not links.exists(raw):
            return None
        kind = links.get_info(raw).type
        if kind == h5l.TYPE_SOFT:
            return _Link(links.get_val(raw).decode("utf-8", "surrogateescape"))
        if kind == h5l.TYPE_HARD:
            return _Link(None)
        file = path = ""
        description = f"{printable(name)}, an external link"
        if kind == h5l.TYPE_EXTERNAL:
            file, path = (part.decode("utf-8", "surrogateescape") for part in links.get_val(raw))
            description += f" to {printable(file)}:{printable(path)}"
        if self.access.allow_external and file:
            return _Link(path, file)
        raise ExternalLinkError(
            f"{where} leads out of the file",
            expected="links within the file",
            found=description,
            where=where,
            hint=None if self.access.allow_external else self.access.external_hint("follows it"),
        )


@dataclass(frozen=True)
class _Link:
    path: str | None
    """Target path of a soft or external link; None for a hard link."""
    file: str | None = None
    """Target file of an external link."""


class ExternalLinkError(DataError):
    """A link leads out of the file."""


def _broken_link_error(where: str, found: str) -> DataError:
    return DataError(
        f"{where} leads nowhere", expected="links within the file", found=found, where=where
    )


def _components(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]


def _join(group: str, name: str) -> str:
    parts = _components(name) if name.startswith("/") else _components(group) + _components(name)
    return "/" + "/".join(parts)


def natural_order(names: Iterable[str]) -> list[str]:
    """Names sorted with numbers by value: ``seq2`` before ``seq10``."""

    def key(name: str) -> tuple[list[tuple[int, int, str]], str]:
        parts = re.split(r"([0-9]+)", name)
        # Every second part is a number. Numbers of equal length compare as text, without int(),
        # which limits the digits.
        return [
            (k % 2, len(part.lstrip("0")) if k % 2 else 0, part.lstrip("0") if k % 2 else part)
            for k, part in enumerate(parts)
        ], name

    return sorted(names, key=key)
