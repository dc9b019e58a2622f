"""Text attributes of HDF5 objects, read from the bytes of the file.

The HDF5 library must not read them. It allocates whatever length a reference to a text declares,
and it follows a damaged heap forever, where no interrupt reaches it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from lstm_cli.errors import WeightsError
from lstm_cli.formats.limits import MAX_TEXT_BYTES

ATTRIBUTE, CONTINUATION = 0x0C, 0x10
SHARED = 2
MAX_BLOCKS = 1000


class DamagedHdf5Error(Exception):
    """The bytes are not what HDF5 writes."""


class Reader:
    """Little-endian numbers and stretches, one after the other; never past the end."""

    def __init__(self, data: bytes | memoryview, place: int = 0, end: int | None = None) -> None:
        self._data, self.place = data, place
        self.end = len(data) if end is None else min(end, len(data))

    @property
    def left(self) -> int:
        """Bytes not yet read."""
        return self.end - self.place

    def take(self, count: int) -> bytes:
        """The next bytes."""
        if not 0 <= count <= self.left:
            raise DamagedHdf5Error("it ends too soon")
        self.place += count
        return bytes(self._data[self.place - count : self.place])

    def number(self, width: int) -> int:
        """The next whole number of so many bytes."""
        return int.from_bytes(self.take(width), "little")


@dataclass(frozen=True)
class Message:
    """One message of an object header."""

    kind: int
    flags: int
    body: bytes


def messages(data: bytes, address: int) -> Iterator[Message]:
    """All messages of the object header at `address`, those of its continuations too.

    Raises
    ------
    DamagedError
        There is no object header, or its blocks lead in a circle.
    """
    new = data[address : address + 4] == b"OHDR"
    head = Reader(data, address)
    flags, size = _new_head(head) if new else _old_head(head)
    blocks = [(head.place, size)]
    for k in range(MAX_BLOCKS):
        if k == len(blocks):
            return
        start, size = blocks[k]
        for message in _block(Reader(data, start, start + size), flags if new else None):
            if message.kind == CONTINUATION:
                body = Reader(message.body)
                at, length = body.number(8), body.number(8)
                # Of the newer kind: a signature before the messages, a checksum after them.
                blocks.append((at + 4, length - 8) if new else (at, length))
            yield message
    raise DamagedHdf5Error("its header has no end")


def _old_head(head: Reader) -> tuple[int, int]:
    if head.number(1) != 1:
        raise DamagedHdf5Error("it has no header")
    head.take(7)
    size = head.number(4)
    head.take(4)
    return 0, size


def _new_head(head: Reader) -> tuple[int, int]:
    head.take(5)
    flags = head.number(1)
    head.take((16 if flags & 0x20 else 0) + (4 if flags & 0x10 else 0))
    return flags, head.number(1 << (flags & 3))


def _block(block: Reader, flags: int | None) -> Iterator[Message]:
    """The messages of one block; `flags` are those of a header of the newer kind."""
    if flags is None:
        while block.left >= 8:
            kind, size, own = block.number(2), block.number(2), block.number(1)
            block.take(3)
            yield Message(kind, own, block.take(size))
        return
    order = 2 if flags & 4 else 0
    while block.left >= 4 + order:
        kind, size, own = block.number(1), block.number(2), block.number(1)
        block.take(order)
        yield Message(kind, own, block.take(size))


FIXED, VARIABLE = 3, 9
_REFERENCE = 16
"""Bytes of a reference to a text in the heap: its length, the collection, its number there."""
_HEADER = 16
"""Bytes of the header of a collection in the heap, and of each object's in it."""


class TextAttributes:
    """The attributes of one file's objects.

    Parameters
    ----------
    data
        The file from its superblock on, so that addresses are places in it.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._collections: dict[int, dict[int, bytes]] = {}
        self._left, self._steps = MAX_TEXT_BYTES, len(data) // _HEADER + 1

    def texts(self, address: int, name: str, where: str) -> list[str] | None:
        """The texts of an attribute of the object at `address`; None if it has none so named.

        Raises
        ------
        WeightsError
            It is damaged, or holds no text.
        """
        try:
            for message in messages(self._data, address):
                if message.kind == ATTRIBUTE and not message.flags & SHARED:
                    found = _Attribute(message.body)
                    if found.name == name:
                        return list(self._decoded(found))
        except DamagedHdf5Error as error:
            raise WeightsError(
                f"the attribute {name} of {where} cannot be read",
                expected="intact HDF5",
                found=str(error),
                hint="the file may be damaged: copy or save it again",
            ) from None
        return None

    def _decoded(self, attribute: _Attribute) -> Iterator[str]:
        if attribute.count and (attribute.kind not in (FIXED, VARIABLE) or attribute.size == 0):
            raise DamagedHdf5Error("it holds no text")
        for _ in range(attribute.count):
            if attribute.kind == FIXED:
                raw = attribute.data.take(attribute.size)
            else:
                raw = self._referenced(Reader(attribute.data.take(_REFERENCE)))
            self._left -= len(raw)
            if self._left < 0:
                raise DamagedHdf5Error(f"its texts are longer than {MAX_TEXT_BYTES:,} bytes")
            yield raw.rstrip(b"\0").decode("utf-8", "backslashreplace")

    def _referenced(self, reference: Reader) -> bytes:
        length, address, index = reference.number(4), reference.number(8), reference.number(4)
        if length == 0:
            return b""
        if address not in self._collections:
            self._collections[address] = dict(self._objects(address))
        found = self._collections[address].get(index)
        if found is None or length > len(found):
            raise DamagedHdf5Error("a text is not where it should be")
        return found[:length]

    def _objects(self, address: int) -> Iterator[tuple[int, bytes]]:
        """The objects of the collection at `address` of the heap, by number."""
        head = Reader(self._data, min(address, len(self._data)))
        if head.take(5) != b"GCOL\x01":
            raise DamagedHdf5Error("a part of its heap is missing")
        head.take(3)
        collection = Reader(self._data, head.place + 8, address + head.number(8))
        while collection.left >= _HEADER:
            self._steps -= 1
            if self._steps < 0:
                raise DamagedHdf5Error("parts of its heap lie over each other")
            index = collection.number(2)
            collection.take(6)
            size = collection.number(8)
            if index == 0:
                return
            yield index, collection.take(size)
            collection.take(min(-size % 8, collection.left))


class _Attribute:
    """One attribute message: name, type and shape, and a reader of its values."""

    def __init__(self, body: bytes) -> None:
        reader = Reader(body)
        version, flags = reader.number(1), reader.number(1)
        if version not in (1, 2, 3) or (version > 1 and flags):
            raise DamagedHdf5Error("an attribute of an unknown kind")
        sizes = [reader.number(2) for _ in range(3)]
        reader.take(1 if version == 3 else 0)
        parts = []
        for size in sizes:
            parts.append(reader.take(size))
            reader.take(min(-size % 8, reader.left) if version == 1 else 0)
        self.name = parts[0].rstrip(b"\0").decode("utf-8", "backslashreplace")
        self.data = reader
        self.count = _count(Reader(parts[2]))
        self.kind, self.size = _type(Reader(parts[1]))


def _type(reader: Reader) -> tuple[int, int]:
    """Class and bytes of a type; what is of variable length and no text is no class at all."""
    kind, bits = reader.number(1) & 15, reader.number(3)
    size = reader.number(4)
    if kind == VARIABLE and (bits & 15 != 1 or size != _REFERENCE):
        return -1, size
    return kind, size


def _count(reader: Reader) -> int:
    """Elements of a dataspace."""
    version, rank, flags = reader.number(1), reader.number(1), reader.number(1)
    kind = reader.number(1)
    if version == 1:
        reader.take(4)
    elif version != 2 or flags > 1:
        raise DamagedHdf5Error("a shape of an unknown kind")
    elif kind == 2:
        return 0
    return math.prod(reader.number(8) for _ in range(rank))
