"""Attributes that are texts, read from the bytes of an HDF5 file; see `headers`."""

from __future__ import annotations

import math
from collections.abc import Iterator

from lstm_cli.errors import WeightsError
from lstm_cli.formats.keras.headers import ATTRIBUTE, SHARED, DamagedError, Reader, messages
from lstm_cli.formats.safety import LARGEST_TEXT

FIXED, VARIABLE = 3, 9
_REFERENCE = 16
"""Bytes of a reference to a text in the heap: its length, the collection, its number there."""
_HEADER = 16
"""Bytes of the header of a collection in the heap, and of each object's in it."""


class Attributes:
    """The attributes of one file's objects.

    Parameters
    ----------
    data
        The file from its superblock on, so that addresses are places in it.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._collections: dict[int, dict[int, bytes]] = {}
        self._left, self._steps = LARGEST_TEXT, len(data) // _HEADER + 1

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
        except DamagedError as error:
            raise WeightsError(
                f"the attribute {name} of {where} cannot be read",
                expected="intact HDF5",
                found=str(error),
                hint="the file may be damaged: copy or save it again",
            ) from None
        return None

    def _decoded(self, attribute: _Attribute) -> Iterator[str]:
        if attribute.count and (attribute.kind not in (FIXED, VARIABLE) or attribute.size == 0):
            raise DamagedError("it holds no text")
        for _ in range(attribute.count):
            if attribute.kind == FIXED:
                raw = attribute.data.take(attribute.size)
            else:
                raw = self._referenced(Reader(attribute.data.take(_REFERENCE)))
            self._left -= len(raw)
            if self._left < 0:
                raise DamagedError(f"its texts are longer than {LARGEST_TEXT:,} bytes")
            yield raw.rstrip(b"\0").decode("utf-8", "backslashreplace")

    def _referenced(self, reference: Reader) -> bytes:
        length, address, index = reference.number(4), reference.number(8), reference.number(4)
        if length == 0:
            return b""
        if address not in self._collections:
            self._collections[address] = dict(self._objects(address))
        found = self._collections[address].get(index)
        if found is None or length > len(found):
            raise DamagedError("a text is not where it should be")
        return found[:length]

    def _objects(self, address: int) -> Iterator[tuple[int, bytes]]:
        """The objects of the collection at `address` of the heap, by number."""
        head = Reader(self._data, min(address, len(self._data)))
        if head.take(5) != b"GCOL\x01":
            raise DamagedError("a part of its heap is missing")
        head.take(3)
        collection = Reader(self._data, head.place + 8, address + head.number(8))
        while collection.left >= _HEADER:
            self._steps -= 1
            if self._steps < 0:
                raise DamagedError("parts of its heap lie over each other")
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
            raise DamagedError("an attribute of an unknown kind")
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
        raise DamagedError("a shape of an unknown kind")
    elif kind == 2:
        return 0
    return math.prod(reader.number(8) for _ in range(rank))
