"""An HDF5 file in memory, walked link by link: datasets by path, nothing that leads outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import h5py
from h5py import h5d, h5f, h5g, h5l, h5o, h5s

from lstm_cli.engines.types import Array
from lstm_cli.errors import WeightsError, is_memory_error, memory_error, require_memory
from lstm_cli.formats.keras.attributes import Attributes
from lstm_cli.formats.keras.storage import read_dataset
from lstm_cli.formats.keras.words import shown

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MOST_OBJECTS = 200_000
DEEPEST = 64

_ERRORS = (
    OSError,
    LookupError,
    ValueError,
    RuntimeError,
    TypeError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    SystemError,
)
"""What h5py is known to raise on damaged files. Caught around calls of h5py alone."""


@dataclass(frozen=True)
class Variable:
    """A stored tensor.

    Attributes
    ----------
    name
        Its path, as the file has it.
    value
        As stored; a half widened to float32.
    dtype
        As stored.
    """

    name: str
    value: Array
    dtype: str


@dataclass(frozen=True)
class _Node:
    name: str
    parent: Any
    link: bytes
    address: int
    group: bool


class Tree:
    """The objects of a file by path, such as ``layers/lstm/cell/vars/0``.

    Older Keras writes ``_layer_checkpoint_dependencies`` for ``layers``, and on Windows one name
    with backslashes for a whole path; both are found under today's path.

    Raises
    ------
    WeightsError
        It is damaged, or a link leads out of it, in a circle, or to what another one leads to.
    """

    def __init__(self, data: bytes) -> None:
        self._attributes = Attributes(data[_superblock(data) :])
        self._left = len(data)
        self._nodes: dict[str, _Node] = {}
        require_memory(2 * len(data), "the HDF5 file")  # HDF5 gives another reason
        with _reading("the HDF5 file"):
            self._file = h5py.File(h5f.open_file_image(data))
            root = h5g.open(self._file.id, b"/")
            self._root = int(h5o.get_info(root).addr)
            self._walk(root)

    def __contains__(self, path: str) -> bool:
        return path in self._nodes

    def paths(self) -> list[str]:
        """Paths of all groups and datasets."""
        return list(self._nodes)

    def datasets(self) -> list[str]:
        """Paths of all datasets."""
        return [path for path, node in self._nodes.items() if not node.group]

    def variable(self, path: str) -> Variable | None:
        """The values of a dataset; None if there is none of this path."""
        node = self._nodes.get(path)
        if node is None or node.group:
            return None
        with _reading(f"the dataset {shown(node.name)}"):
            dataset = h5d.open(node.parent, node.link)
            _need_values(dataset, node.name)
            value, dtype, stored = read_dataset(dataset, shown(node.name), self._left)
        self._left -= stored
        return Variable(node.name, value, dtype)

    def shape(self, path: str) -> tuple[int, ...] | None:
        """The shape of a dataset, not read yet; None if there is none of this path."""
        node = self._nodes.get(path)
        if node is None or node.group:
            return None
        with _reading(f"the dataset {shown(node.name)}"):
            dataset = h5d.open(node.parent, node.link)
            _need_values(dataset, node.name)
            return tuple(dataset.shape)

    def texts(self, path: str, name: str) -> list[str] | None:
        """An attribute of texts, or one text, in as many parts as it was written; None: none.

        Parameters
        ----------
        path
            Of a group; empty for the root.
        """
        first = self._attribute(path, name)
        if first is not None:
            return first
        # What is too long for one attribute stands in name0, name1, ...
        found: list[str] = []
        for k in range(1000):
            more = self._attribute(path, f"{name}{k}")
            if more is None:
                return found if k else None
            found += more
        return found

    def text(self, path: str, name: str) -> str | None:
        """An attribute that is one text."""
        found = self._attribute(path, name)
        return found[0] if found and len(found) == 1 else None

    def _attribute(self, path: str, name: str) -> list[str] | None:
        node = self._nodes.get(path)
        if path and (node is None or not node.group):
            return None
        address = self._root if node is None else node.address
        where = "the HDF5 file" if node is None else shown(node.name)
        return self._attributes.texts(address, name, where)

    def _walk(self, root: Any) -> None:
        todo: list[tuple[Any, str, int]] = [(root, "", 0)]
        seen = {self._root}
        while todo:
            group, path, depth = todo.pop()
            for link in _links(group):
                name = f"{path}{link.decode('utf-8', 'backslashreplace')}"
                self._check_link(group, link, name, depth)
                info = h5o.get_info(group, link)
                if info.addr in seen:
                    raise _refused(name, "a second link to one object")
                seen.add(info.addr)
                is_group = info.type == h5o.TYPE_GROUP
                if is_group:
                    todo.append((h5g.open(group, link), f"{name}/", depth + 1))
                if is_group or info.type == h5o.TYPE_DATASET:
                    node = _Node(name, group, link, info.addr, is_group)
                    self._nodes.setdefault(_today(name), node)

    def _check_link(self, group: Any, link: bytes, name: str, depth: int) -> None:
        kind = group.links.get_info(link).type
        if kind != h5l.TYPE_HARD:
            kinds = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "an external link"}
            raise _refused(name, kinds.get(kind, "a link of an unknown kind"))
        if depth > DEEPEST or len(self._nodes) > MOST_OBJECTS:
            raise _refused(name, "more groups and datasets, or deeper ones, than Keras writes")


def _need_values(dataset: Any, name: str) -> None:
    if dataset.get_space().get_simple_extent_type() == h5s.NULL:
        raise WeightsError(
            f"{shown(name)} has no values: its dataspace is null",
            expected="an array of floating-point numbers",
        )


def _links(group: Any) -> list[bytes]:
    found: list[bytes] = []

    def add(link: bytes) -> bool | None:
        found.append(bytes(link))
        return True if len(found) > MOST_OBJECTS else None

    group.links.iterate(add)
    return found


def _today(name: str) -> str:
    return name.replace("\\", "/").replace("_layer_checkpoint_dependencies", "layers")


def _superblock(data: bytes) -> int:
    """Where it is. Addresses and sizes are of 8 bytes in all that Keras writes."""
    place = data.find(SIGNATURE)
    if place < 0:
        raise WeightsError("this is no HDF5 file", expected="HDF5's signature")
    version = data[place + 8 : place + 9]
    sizes = place + (13 if version in (b"\x00", b"\x01") else 9)
    if data[sizes : sizes + 2] != b"\x08\x08":
        raise WeightsError("the HDF5 file is damaged, or of a kind that Keras does not write")
    return place


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Turn what h5py raises into a WeightsError that names `what`."""
    try:
        yield
    except _ERRORS as error:
        if is_memory_error(error):
            raise memory_error(what) from error
        raise WeightsError(
            f"{what} cannot be read",
            expected="intact HDF5",
            found=shown(" ".join(str(error).split()) or type(error).__name__),
            hint="the file may be damaged: copy or save it again",
        ) from None


def _refused(name: str, found: str) -> WeightsError:
    return WeightsError(
        f"the HDF5 file is refused: Keras does not write what {shown(name)} is", found=found
    )
