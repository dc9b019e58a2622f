"""Text attributes of HDF5 objects, read from the bytes of the file.

The HDF5 library must not read them. It allocates any length that a reference to a text declares.
In a damaged heap it loops forever, where no interrupt reaches it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from lstm_cli.errors import WeightsError

MAX_TEXT_BYTES = 64 << 20
"""Bytes of all texts of a file's attributes."""

ATTRIBUTE_MESSAGE, CONTINUATION_MESSAGE = 0x0C, 0x10
SHARED_FLAG = 2
MAX_BLOCKS = 1000


class DamagedHdf5Error(Exception):
    """Bytes that HDF5 does not write."""


class ByteReader:
    """Sequential reader of bytes and little-endian numbers that never passes the end."""

    def __init__(self, data: bytes | memoryview, place: int = 0, end: int | None = None) -> None:
        self._data, self.place = data, place
        self.end = len(data) if end is None else min(end, len(data))

    @property
    def remaining(self) -> int:
        """Number of bytes not yet read."""
        return self.end - self.place

    def take(self, count: int) -> bytes:
        """Read the next `count` bytes."""
        if not 0 <= count <= self.remaining:
            raise DamagedHdf5Error("it ends too soon")
        self.place += count
        return bytes(self._data[self.place - count : self.place])

    def number(self, width: int) -> int:
        """Read the next whole number, `width` bytes wide."""
        return int.from_bytes(self.take(width), "little")


@dataclass(frozen=True)
class HeaderMessage:
    """Message of an object header: type, flags and content."""

    kind: int
    flags: int
    body: bytes


def messages(data: bytes, address: int) -> Iterator[HeaderMessage]:
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


class TextAttributes:
    """Text attributes of the objects of one file.

    Parameters
    ----------
    data
        Bytes of the file from its superblock on, so that addresses are offsets into them.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._collections: dict[int, dict[int, bytes]] = {}
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
            for message in messages(self._data, address):
                if message.kind == ATTRIBUTE_MESSAGE and not message.flags & SHARED_FLAG:
                    attribute = _Attribute(message.body)
                    if attribute.name == name:
                        return list(self._decoded(attribute))
        except DamagedHdf5Error as error:
            raise WeightsError(
                f"the attribute {name} of {where} cannot be read",
                expected="intact HDF5",
                found=str(error),
                hint="the file may be damaged: copy or save it again",
            ) from None
        return None

    def _decoded(self, attribute: _Attribute) -> Iterator[str]:
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
        text = self._collections[address].get(index)
        if text is None or length > len(text):
            raise DamagedHdf5Error("a text is not where it should be")
        return text[:length]

    def _objects(self, address: int) -> Iterator[tuple[int, bytes]]:
        """Objects of the heap collection at `address`, with their indices."""
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
            yield index, collection.take(size)
            collection.take(min(-size % 8, collection.remaining))


class _Attribute:
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
