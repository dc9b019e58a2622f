"""Messages of an HDF5 object header, read from the bytes themselves.

The library is not asked for texts: it believes the length that a reference to one declares and
fills as much memory, and it follows a damaged heap for ever, beyond the reach of an interrupt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

ATTRIBUTE, CONTINUATION = 0x0C, 0x10
SHARED = 2
MOST_BLOCKS = 1000


class DamagedError(Exception):
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
            raise DamagedError("it ends too soon")
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
    for k in range(MOST_BLOCKS):
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
    raise DamagedError("its header has no end")


def _old_head(head: Reader) -> tuple[int, int]:
    if head.number(1) != 1:
        raise DamagedError("it has no header")
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
