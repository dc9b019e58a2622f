"""A pickle's opcodes, one after the other, each with its argument. Nothing is carried out."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import Any

MOST_OPCODES = 1_000_000
"""An opcode makes one object of a hundred bytes or two at most, so this bounds the memory."""
LARGEST_INTEGER = 256


class Malformed(ValueError):  # noqa: N818 -- as its message continues
    """The bytes are no pickle that torch.save writes."""


class Scanner:
    """Takes bytes in order, never more than there are."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        end = self.at + size
        if end > len(self.data):
            raise Malformed(f"it ends within an opcode that declares {size:,} bytes")
        taken = self.data[self.at : end]
        self.at = end
        return taken

    def unsigned(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + 1000)
        if end < 0:
            raise Malformed("the name of a class has no end")
        line = self.take(end - self.at)
        self.at += 1
        return line.decode()


def _number(size: int) -> Callable[[Scanner], Any]:
    return lambda scanner: scanner.unsigned(size)


def _text(size: int) -> Callable[[Scanner], Any]:
    return lambda scanner: scanner.take(scanner.unsigned(size)).decode()


def _bytes(size: int) -> Callable[[Scanner], Any]:
    return lambda scanner: scanner.take(scanner.unsigned(size))


def _integer(size: int) -> Callable[[Scanner], Any]:
    def read(scanner: Scanner) -> int:
        length = scanner.unsigned(size)
        if length > LARGEST_INTEGER:
            raise Malformed(f"it has an integer of {length:,} bytes")
        return int.from_bytes(scanner.take(length), "little", signed=True)

    return read


def _signed(scanner: Scanner) -> Any:
    return int.from_bytes(scanner.take(4), "little", signed=True)


def _float(scanner: Scanner) -> Any:
    return struct.unpack(">d", scanner.take(8))[0]


def _lines(scanner: Scanner) -> Any:
    return scanner.line(), scanner.line()


_ARGUMENTS: dict[int, Callable[[Scanner], Any]] = {
    0x80: _number(1),  # PROTO
    0x95: _number(8),  # FRAME
    ord("K"): _number(1),  # BININT1
    ord("M"): _number(2),  # BININT2
    ord("J"): _signed,  # BININT
    0x8A: _integer(1),  # LONG1
    0x8B: _integer(4),  # LONG4
    ord("G"): _float,  # BINFLOAT
    ord("X"): _text(4),  # BINUNICODE
    0x8C: _text(1),  # SHORT_BINUNICODE
    0x8D: _text(8),  # BINUNICODE8
    ord("T"): _text(4),  # BINSTRING
    ord("U"): _text(1),  # SHORT_BINSTRING
    ord("B"): _bytes(4),  # BINBYTES
    ord("C"): _bytes(1),  # SHORT_BINBYTES
    0x8E: _bytes(8),  # BINBYTES8
    ord("q"): _number(1),  # BINPUT
    ord("r"): _number(4),  # LONG_BINPUT
    ord("h"): _number(1),  # BINGET
    ord("j"): _number(4),  # LONG_BINGET
    ord("c"): _lines,  # GLOBAL
    ord("i"): _lines,  # INST
    0x82: _number(1),  # EXT1
    0x83: _number(2),  # EXT2
    0x84: _number(4),  # EXT4
}


def opcodes(scanner: Scanner) -> Iterator[tuple[int, Any]]:
    """Opcode and argument (None: it has none), up to and with STOP.

    Raises
    ------
    Malformed
        Truncated, an argument that is no text, or more opcodes than any state dict has.
    """
    for _ in range(MOST_OPCODES):
        code = scanner.unsigned(1)
        read = _ARGUMENTS.get(code)
        try:
            argument = None if read is None else read(scanner)
        except UnicodeDecodeError:
            raise Malformed("a text in it is not UTF-8") from None
        yield code, argument
        if code == ord("."):
            return
    raise Malformed(f"it has more than {MOST_OPCODES:,} opcodes")
