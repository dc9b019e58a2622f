"""An HDF5 file in memory, walked link by link: floating-point datasets by path. For Keras files.

Links that leave the file are refused, and no dataset declares more values than the file can hold.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any

import h5py
import numpy as np
from h5py import h5d, h5f, h5g, h5l, h5o, h5s, h5t, h5z

from lstm_cli.errors import (
    WeightsError,
    counted,
    is_memory_error,
    memory_error,
    require_memory,
    shortened,
)
from lstm_cli.hdf5.heap_check import Array
from lstm_cli.hdf5.limits import H5_ERRORS
from lstm_cli.hdf5.raw_attributes import TextAttributes

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MAX_OBJECTS = 200_000
MAX_DEPTH = 64


@dataclass(frozen=True)
class StoredVariable:
    """A dataset of floating-point numbers.

    Attributes
    ----------
    name
        Path of the dataset, as the file has it.
    value
        Values as stored; float16 and bfloat16 widened to float32.
    dtype
        Dtype in the file.
    """

    name: str
    value: Array
    dtype: str


@dataclass(frozen=True)
class _TreeNode:
    name: str
    parent: Any
    link: bytes
    address: int
    group: bool


class Hdf5Tree:
    """Objects of a file by path, such as ``layers/lstm/cell/vars/0``.

    Parameters
    ----------
    data
        Bytes of the file.
    writer
        Program that writes such files, for messages.
    current_path
        Function from a path in the file to the path that a current version of the writer gives it.

    Raises
    ------
    WeightsError
        The file is damaged, or a link leaves it, forms a circle, or shares its target with another.
    """

    def __init__(
        self, data: bytes, writer: str, current_path: Callable[[str], str] = lambda path: path
    ) -> None:
        self._writer, self._current_path = writer, current_path
        self._attributes = TextAttributes(data[_superblock(data, writer) :])
        self._unread_bytes = len(data)
        self._nodes: dict[str, _TreeNode] = {}
        require_memory(2 * len(data), "the HDF5 file")  # HDF5 would give another reason
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

    def variable(self, path: str) -> StoredVariable | None:
        """Values of a dataset; None if no dataset has this path."""
        node = self._nodes.get(path)
        if node is None or node.group:
            return None
        with _reading(f"the dataset {shortened(node.name)}"):
            dataset = h5d.open(node.parent, node.link)
            _need_values(dataset, node.name)
            value, dtype, stored = read_dataset(dataset, shortened(node.name), self._unread_bytes)
        self._unread_bytes -= stored
        return StoredVariable(node.name, value, dtype)

    def shape(self, path: str) -> tuple[int, ...] | None:
        """Shape of a dataset, without reading it; None if no dataset has this path."""
        node = self._nodes.get(path)
        if node is None or node.group:
            return None
        with _reading(f"the dataset {shortened(node.name)}"):
            dataset = h5d.open(node.parent, node.link)
            _need_values(dataset, node.name)
            return tuple(dataset.shape)

    def texts(self, path: str, name: str) -> list[str] | None:
        """Texts of an attribute, from all of its parts; None if there is no such attribute.

        Parameters
        ----------
        path
            Path of a group; empty for the root.
        """
        first = self._attribute(path, name)
        if first is not None:
            return first
        # Keras splits a list too long for one attribute into name0, name1, ...
        texts: list[str] = []
        for k in range(1000):
            more = self._attribute(path, f"{name}{k}")
            if more is None:
                return texts if k else None
            texts += more
        return texts

    def text(self, path: str, name: str) -> str | None:
        """Attribute that is one text; None if it is missing, or is a list."""
        texts = self._attribute(path, name)
        return texts[0] if texts and len(texts) == 1 else None

    def _attribute(self, path: str, name: str) -> list[str] | None:
        node = self._nodes.get(path)
        if path and (node is None or not node.group):
            return None
        address = self._root if node is None else node.address
        where = "the HDF5 file" if node is None else shortened(node.name)
        return self._attributes.texts(address, name, where)

    def _walk(self, root: Any) -> None:
        pending: list[tuple[Any, str, int]] = [(root, "", 0)]
        visited = {self._root}
        while pending:
            group, path, depth = pending.pop()
            for link in _links(group):
                name = f"{path}{link.decode('utf-8', 'backslashreplace')}"
                self._check_link(group, link, name, depth)
                info = h5o.get_info(group, link)
                if info.addr in visited:
                    raise self._refused(name, "a second link to one object")
                visited.add(info.addr)
                is_group = info.type == h5o.TYPE_GROUP
                if is_group:
                    pending.append((h5g.open(group, link), f"{name}/", depth + 1))
                if is_group or info.type == h5o.TYPE_DATASET:
                    node = _TreeNode(name, group, link, info.addr, is_group)
                    self._nodes.setdefault(self._current_path(name), node)

    def _check_link(self, group: Any, link: bytes, name: str, depth: int) -> None:
        kind = group.links.get_info(link).type
        if kind != h5l.TYPE_HARD:
            kinds = {h5l.TYPE_SOFT: "a soft link", h5l.TYPE_EXTERNAL: "an external link"}
            raise self._refused(name, kinds.get(kind, "a link of an unknown kind"))
        if depth > MAX_DEPTH or len(self._nodes) > MAX_OBJECTS:
            found = f"more groups and datasets, or deeper ones, than {self._writer} writes"
            raise self._refused(name, found)

    def _refused(self, name: str, found: str) -> WeightsError:
        return WeightsError(
            f"the HDF5 file is refused: {self._writer} writes no object like {shortened(name)}",
            found=found,
        )


def _need_values(dataset: Any, name: str) -> None:
    if dataset.get_space().get_simple_extent_type() == h5s.NULL:
        raise WeightsError(
            f"{shortened(name)} has no values: its dataspace is null",
            expected="an array of floating-point numbers",
        )


def _links(group: Any) -> list[bytes]:
    links: list[bytes] = []

    def add(link: bytes) -> bool | None:
        links.append(bytes(link))
        return True if len(links) > MAX_OBJECTS else None

    group.links.iterate(add)
    return links


def _superblock(data: bytes, writer: str) -> int:
    """Offset of the superblock, with addresses and sizes of 8 bytes."""
    offset = data.find(SIGNATURE)
    if offset < 0:
        raise WeightsError("this is not an HDF5 file", expected="HDF5's signature")
    version = data[offset + 8 : offset + 9]
    sizes = offset + (13 if version in (b"\x00", b"\x01") else 9)
    if data[sizes : sizes + 2] != b"\x08\x08":
        raise WeightsError(f"the HDF5 file is damaged, or of a kind that {writer} does not write")
    return offset


@contextmanager
def _reading(what: str) -> Iterator[None]:
    """Turn errors of h5py into a WeightsError that names `what`."""
    try:
        yield
    except H5_ERRORS as error:
        if is_memory_error(error):
            raise memory_error(what) from error
        raise WeightsError(
            f"{what} cannot be read",
            expected="intact HDF5",
            found=shortened(" ".join(str(error).split()) or type(error).__name__),
            hint="the file may be damaged: copy or save it again",
        ) from None


MAX_CHUNKS = 200_000
MAX_RATIO, MIN_RATIO_BYTES = 200, 1 << 20
"""Largest ratio of unpacked to stored bytes of a dataset, and bytes for which any ratio will do."""
_FILTERS = (h5z.FILTER_DEFLATE, h5z.FILTER_SHUFFLE, h5z.FILTER_FLETCHER32)


def read_dataset(dataset: Any, name: str, available: int) -> tuple[Array, str, int]:
    """Values of a dataset, its dtype in the file, and the bytes that it occupies there.

    Parameters
    ----------
    available
        Bytes of the file that no other dataset occupies.

    Raises
    ------
    WeightsError
        The values are not floating-point numbers, are stored elsewhere, or do not fit the file.
    """
    code = _code(dataset.get_type(), name)
    shape, stored = tuple(dataset.shape), int(dataset.get_storage_size())
    size = math.prod(shape) * np.dtype(code).itemsize
    plist = dataset.get_create_plist()
    layout = plist.get_layout()
    plain = layout in (h5d.CONTIGUOUS, h5d.COMPACT) and plist.get_external_count() == 0
    if not plain and layout != h5d.CHUNKED:
        raise WeightsError(f"{name} is stored outside its dataset", found="external or virtual")
    limit = stored if plain else max(MIN_RATIO_BYTES, stored * MAX_RATIO)
    if stored > available or size > limit:
        raise WeightsError(
            f"{name} declares a shape that the file does not hold",
            expected=f"{counted(size, 'byte', grouped=True)} for {shape}",
            found=counted(min(stored, available), "byte", grouped=True),
        )
    if plain:
        return (*_widened(_contiguous(dataset, shape, code)), stored)
    return (*_widened(_Chunks(dataset, plist, shape, code, name, limit).read()), stored)


def _code(kind: Any, name: str) -> str:
    """NumPy's code of a stored type; Keras writes bfloat16 as opaque pairs of bytes."""
    if kind.get_class() == h5t.OPAQUE and kind.get_size() == 2:
        return "V2"
    known = {"f2": "IEEE_F16", "f4": "IEEE_F32", "f8": "IEEE_F64"}
    if kind.get_class() == h5t.FLOAT:
        for code, standard in known.items():
            for sign, order in (("<", "LE"), (">", "BE")):
                if kind.equal(getattr(h5t, standard + order)):
                    return sign + code
    raise WeightsError(
        f"{name} holds no floating-point numbers",
        expected="float16, bfloat16, float32 or float64",
        hint="lstm-cli reads no quantized weights: save the model before it is quantized",
    )


def _widened(values: Array) -> tuple[Array, str]:
    if values.dtype.kind == "V":
        bits = np.frombuffer(values.tobytes(), "<u2").reshape(values.shape)
        return (bits.astype(np.uint32) << 16).view(np.float32), "bfloat16"
    if values.dtype.itemsize == 2:
        return values.astype(np.float32), "float16"
    return values.astype(values.dtype.newbyteorder("=")), values.dtype.name


def _contiguous(dataset: Any, shape: tuple[int, ...], code: str) -> Array:
    values = np.empty(shape, code)
    if values.size:
        dataset.read(dataset.get_space(), dataset.get_space(), values)
    return values


class _Chunks:
    """Chunks of a dataset, unpacked here so that no chunk grows beyond its declared size."""

    def __init__(
        self, dataset: Any, plist: Any, shape: tuple[int, ...], code: str, name: str, most: int
    ) -> None:
        self._dataset, self._shape, self._name = dataset, shape, name
        self._dtype = np.dtype(code)
        self._chunk = tuple(plist.get_chunk())
        self._filters = [int(plist.get_filter(k)[0]) for k in range(plist.get_nfilters())]
        self._bytes = math.prod(self._chunk) * self._dtype.itemsize
        unknown = [k for k in self._filters if k not in _FILTERS]
        if unknown:
            raise WeightsError(
                f"{name} is compressed with a filter that lstm-cli does not read: {unknown[0]}"
            )
        if self._bytes > most:
            raise self._damaged("its chunks are larger than it")

    def read(self) -> Array:
        """Values of all chunks as one array."""
        counts = [-(-n // c) for n, c in zip(self._shape, self._chunk, strict=True)]
        total = math.prod(counts)
        if total > MAX_CHUNKS or total != self._dataset.get_num_chunks():
            raise self._damaged("chunks are missing")
        values = np.empty(self._shape, self._dtype)
        for place in product(*map(range, counts)):
            start = tuple(k * c for k, c in zip(place, self._chunk, strict=True))
            target = values[tuple(slice(s, s + c) for s, c in zip(start, self._chunk, strict=True))]
            target[...] = self._one(start)[tuple(slice(n) for n in target.shape)]
        return values

    def _one(self, start: tuple[int, ...]) -> Array:
        mask, raw = self._dataset.read_direct_chunk(start)
        for k in reversed(range(len(self._filters))):
            if not mask >> k & 1:
                raw = self._unfiltered(self._filters[k], raw)
        if len(raw) != self._bytes:
            raise self._damaged("a chunk of another size")
        return np.frombuffer(raw, self._dtype).reshape(self._chunk)

    def _unfiltered(self, code: int, raw: bytes) -> bytes:
        if code == h5z.FILTER_DEFLATE:
            try:
                return zlib.decompressobj().decompress(raw, self._bytes + 5)
            except zlib.error as error:
                raise self._damaged(str(error)) from None
        if code == h5z.FILTER_FLETCHER32:
            return raw[:-4]
        width = self._dtype.itemsize
        if len(raw) % width:
            raise self._damaged("a chunk of another size")
        return np.frombuffer(raw, np.uint8).reshape(width, -1).T.tobytes()

    def _damaged(self, found: str) -> WeightsError:
        return WeightsError(f"{self._name} is damaged", found=found)
