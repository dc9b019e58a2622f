"""Text attributes of HDF5 objects, read from the bytes of the file.

HDF5 allocates any length that a reference to a text declares, and writes to all of it. In a
damaged heap it loops forever, where no interrupt reaches it. So the texts of weights files are read
here alone. In data files, the declared lengths are checked here before HDF5 reads the texts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from h5py import h5o

from lstm_cli.errors import WeightsError
from lstm_cli.hdf5.heap_check import CheckedFile, FileAccess

MAX_TEXT_BYTES = 64 << 20
"""Bytes of all texts of a file's attributes."""

ATTRIBUTE_MESSAGE, CONTINUATION_MESSAGE = 0x0C, 0x10
SHARED_FLAG = 2
MAX_BLOCKS = 1000
BLOCK_BYTES = 4096
"""Bytes of a file that are read at once, at least."""


class DamagedHdf5Error(Exception):
    """Bytes that HDF5 does not write."""


class DeclaredTextError(OSError):
    """References that declare far more text than the file stores."""


class FileBytes(Protocol):
    """Bytes of a file, all in memory or read by slices."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes: ...


class SourceBytes:
    """Bytes of an open file from `start` on, read in blocks."""

    def __init__(self, source: CheckedFile, start: int) -> None:
        self._source, self._start = source, start
        self._block, self._place = b"", 0

    def __len__(self) -> int:
        return self._source.size - self._start

    def __getitem__(self, part: slice, /) -> bytes:
        start, stop, _ = part.indices(len(self))
        if not self._place <= start <= stop <= self._place + len(self._block):
            size = max(stop - start, BLOCK_BYTES)
            self._block, self._place = self._source.bytes_at(self._start + start, size), start
        return self._block[start - self._place : stop - self._place]


class ByteReader:
    """Sequential reader of bytes and little-endian numbers that never passes the end."""

    def __init__(self, data: FileBytes, place: int = 0, end: int | None = None) -> None:
        self._data, self.place = data, place
        self.end = len(data) if end is None else min(end, len(data))

    @property
    def remaining(self) -> int:
        """Number of bytes not yet read."""
        return self.end - self.place

    def take(self, count: int) -> bytes:
        """Read the next `count` bytes."""
        return self._data[self.skip(count) : self.place]

    def skip(self, count: int) -> int:
        """Skip `count` bytes and return the place of the first of them."""
        if not 0 <= count <= self.remaining:
            raise DamagedHdf5Error("it ends too soon")
        self.place += count
        return self.place - count

    def number(self, width: int) -> int:
        """Read the next whole number, `width` bytes wide."""
        return int.from_bytes(self.take(width), "little")


@dataclass(frozen=True)
class HeaderMessage:
    """Message of an object header: type, flags and content."""

    kind: int
    flags: int
    body: bytes


def messages(data: FileBytes, address: int) -> Iterator[HeaderMessage]:
    """All messages of the object header at `address` and of its continuation blocks.

    Raises
    ------
    DamagedHdf5Error
        There is no object header, or its blocks form a circle.
    """
    new = data[address : address + 4] == b"OHDR"
    head = ByteReader(data, address)
    flags, size = _new_head(head) if new else _old_head(head)
    blocks = [(head.place, size)]
    for k in range(MAX_BLOCKS):
        if k == len(blocks):
            return
        start, size = blocks[k]
        for message in _block(ByteReader(data, start, start + size), flags if new else None):
            if message.kind == CONTINUATION_MESSAGE:
                body = ByteReader(message.body)
                at, length = body.number(8), body.number(8)
                # A block of version 2 has a signature before its messages, a checksum after them.
                blocks.append((at + 4, length - 8) if new else (at, length))
            yield message
    raise DamagedHdf5Error("its header has no end")


def find_attribute(data: FileBytes, address: int, name: str) -> AttributeMessage | None:
    """Attribute of the object at `address`; None if its header has no such attribute."""
    for message in messages(data, address):
        if message.kind == ATTRIBUTE_MESSAGE and not message.flags & SHARED_FLAG:
            attribute = AttributeMessage(message.body)
            if attribute.name == name:
                return attribute
    return None


def _old_head(head: ByteReader) -> tuple[int, int]:
    if head.number(1) != 1:
        raise DamagedHdf5Error("it has no header")
    head.take(7)
    size = head.number(4)
    head.take(4)
    return 0, size


def _new_head(head: ByteReader) -> tuple[int, int]:
    head.take(5)
    flags = head.number(1)
    head.take((16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0))
    return flags, head.number(1 << (flags & 3))


def _block(block: ByteReader, flags: int | None) -> Iterator[HeaderMessage]:
    """Messages of one block; `flags` are those of a header of version 2, None for version 1."""
    if flags is None:
        while block.remaining >= 8:
            kind, size, message_flags = block.number(2), block.number(2), block.number(1)
            block.take(3)
            yield HeaderMessage(kind, message_flags, block.take(size))
        return
    order = 2 if flags & 4 else 0
    while block.remaining >= 4 + order:
        kind, size, message_flags = block.number(1), block.number(2), block.number(1)
        block.take(order)
        yield HeaderMessage(kind, message_flags, block.take(size))


FIXED_TEXT, VARIABLE_LENGTH = 3, 9
_REFERENCE_BYTES = 16
"""Bytes of a reference to a text in the heap: length, collection, index in the collection."""
_HEAP_HEADER_BYTES = 16
"""Bytes of the header of a heap collection, and of the header of each object in it."""


def check_declared_texts(holder: Any, name: str, access: FileAccess) -> None:
    """Check that the texts of an attribute are not declared far larger than the file.

    Attributes that are stored in another way than among the headers of their object stay unchecked.

    Raises
    ------
    DeclaredTextError
        They are.
    """
    if access.superblock is None:
        return
    data = SourceBytes(access.source, access.superblock)
    with suppress(DamagedHdf5Error):  # HDF5 reads more than this module does, or reports the damage
        attribute = find_attribute(data, int(h5o.get_info(holder.id).addr), name)
        lengths = () if attribute is None else attribute.referenced_lengths()
        if sum(lengths) > max(MAX_TEXT_BYTES, len(data)):
            raise DeclaredTextError("an attribute declares far more text than the file stores")


class TextAttributes:
    """Text attributes of the objects of one file.

    Parameters
    ----------
    data
        Bytes of the file from its superblock on, so that addresses are offsets into them.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._collections: dict[int, dict[int, tuple[int, int]]] = {}
        self._unread_text_bytes, self._heap_objects_left = (
            MAX_TEXT_BYTES,
            len(data) // _HEAP_HEADER_BYTES + 1,
        )

    def texts(self, address: int, name: str, where: str) -> list[str] | None:
        """Texts of an attribute of the object at `address`; None if it has no such attribute.

        Raises
        ------
        WeightsError
            The attribute is damaged, or holds no text.
        """
        try:
            attribute = find_attribute(self._data, address, name)
            return None if attribute is None else list(self._decoded(attribute))
        except DamagedHdf5Error as error:
            raise WeightsError(
                f"the attribute {name} of {where} cannot be read",
                expected="intact HDF5",
                found=str(error),
                hint="the file may be damaged: copy or save it again",
            ) from None

    def _decoded(self, attribute: AttributeMessage) -> Iterator[str]:
        if attribute.count and (
            attribute.kind not in (FIXED_TEXT, VARIABLE_LENGTH) or attribute.size == 0
        ):
            raise DamagedHdf5Error("it holds no text")
        for _ in range(attribute.count):
            if attribute.kind == FIXED_TEXT:
                raw = attribute.data.take(attribute.size)
            else:
                raw = self._referenced(ByteReader(attribute.data.take(_REFERENCE_BYTES)))
            self._unread_text_bytes -= len(raw)
            if self._unread_text_bytes < 0:
                raise DamagedHdf5Error(f"its texts are longer than {MAX_TEXT_BYTES:,} bytes")
            yield raw.rstrip(b"\0").decode("utf-8", "backslashreplace")

    def _referenced(self, reference: ByteReader) -> bytes:
        length, address, index = reference.number(4), reference.number(8), reference.number(4)
        if length == 0:
            return b""
        if address not in self._collections:
            self._collections[address] = dict(self._objects(address))
        place, size = self._collections[address].get(index, (0, 0))
        if length > size:
            raise DamagedHdf5Error("a text is not where it should be")
        return self._data[place : place + length]

    def _objects(self, address: int) -> Iterator[tuple[int, tuple[int, int]]]:
        """Indices of the objects in the heap collection at `address`, with places and sizes."""
        head = ByteReader(self._data, min(address, len(self._data)))
        if head.take(5) != b"GCOL\x01":
            raise DamagedHdf5Error("a part of its heap is missing")
        head.take(3)
        collection = ByteReader(self._data, head.place + 8, address + head.number(8))
        while collection.remaining >= _HEAP_HEADER_BYTES:
            self._heap_objects_left -= 1
            if self._heap_objects_left < 0:
                raise DamagedHdf5Error("parts of its heap overlap")
            index = collection.number(2)
            collection.take(6)
            size = collection.number(8)
            if index == 0:
                return
            yield index, (collection.skip(size), size)
            collection.skip(min(-size % 8, collection.remaining))


class AttributeMessage:
    """Attribute message: name, type class, element size, count, and a reader of the values."""

    def __init__(self, body: bytes) -> None:
        reader = ByteReader(body)
        version, flags = reader.number(1), reader.number(1)
        if version not in (1, 2, 3) or (version > 1 and flags):
            raise DamagedHdf5Error("an attribute of an unknown kind")
        sizes = [reader.number(2) for _ in range(3)]
        reader.take(1 if version == 3 else 0)
        parts = []
        for size in sizes:
            parts.append(reader.take(size))
            reader.take(min(-size % 8, reader.remaining) if version == 1 else 0)
        self.name = parts[0].rstrip(b"\0").decode("utf-8", "backslashreplace")
        self.data = reader
        self.count = _count(ByteReader(parts[2]))
        self.kind, self.size = _type(ByteReader(parts[1]))

    def referenced_lengths(self) -> Iterator[int]:
        """Lengths that the references to texts declare."""
        for _ in range(self.count if self.kind == VARIABLE_LENGTH else 0):
            yield ByteReader(self.data.take(_REFERENCE_BYTES)).number(4)


def _type(reader: ByteReader) -> tuple[int, int]:
    """Class and size of a type; -1 for a type of variable length that is not a text."""
    kind, bits = reader.number(1) & 15, reader.number(3)
    size = reader.number(4)
    if kind == VARIABLE_LENGTH and (bits & 15 != 1 or size != _REFERENCE_BYTES):
        return -1, size
    return kind, size


def _count(reader: ByteReader) -> int:
    """Number of elements of a dataspace."""
    version, rank, flags = reader.number(1), reader.number(1), reader.number(1)
    kind = reader.number(1)
    if version == 1:
        reader.take(4)
    elif version != 2 or flags > 1:
        raise DamagedHdf5Error("a shape of an unknown kind")
    elif kind == 2:
        return 0
    return math.prod(reader.number(8) for _ in range(rank))
