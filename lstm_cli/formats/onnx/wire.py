"""Protobuf's wire format: fields out of bytes and into bytes, in bounded memory.

Every field is a key (its number and how it is stored) and a value: a varint, four or eight
bytes, or a length and so many bytes. Nothing here allocates from a declared length.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

from lstm_cli.engines.types import Array

Raw: TypeAlias = "int | memoryview"
"""A field's value as it is stored: a varint's number, or the bytes of anything else."""

VARINT, EIGHT, LENGTH, FOUR = 0, 1, 2, 5
"""How a value is stored."""

_LONGEST = 10  # bytes of a varint of 64 bits
_PIECE = 1 << 16  # bytes of packed numbers that are read together: each takes 40 bytes meanwhile
_MASK = (1 << 64) - 1


class WireError(ValueError):
    """Bytes that are no protobuf message."""


def fields(data: memoryview) -> Iterator[tuple[int, int, Raw]]:
    """Number, storage and value of every field of a message.

    Raises
    ------
    WireError
        Cut short, or stored in a way that is not known.
    """
    at, end = 0, len(data)
    while at < end:
        key, at = varint(data, at)
        number, storage = key >> 3, key & 7
        if number == 0:
            raise WireError("a field has the number 0")
        value: Raw
        if storage == VARINT:
            value, at = varint(data, at)
        else:
            size, at = _size(data, at, storage)
            if size > end - at:
                raise WireError(f"field {number} has {size:,} bytes, but only {end - at:,} follow")
            value, at = data[at : at + size], at + size
        yield number, storage, value


def _size(data: memoryview, at: int, storage: int) -> tuple[int, int]:
    """Bytes that a value takes, and where it begins."""
    if storage == LENGTH:
        return varint(data, at)
    if storage in (FOUR, EIGHT):
        return (4 if storage == FOUR else 8), at
    raise WireError(f"a field is stored in way {storage}, which protobuf does not have")


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """A number of up to 64 bits, unsigned, and where the next value begins."""
    if at < len(data) and data[at] < 0x80:
        return data[at], at + 1
    value = 0
    for k, byte in enumerate(data[at : at + _LONGEST]):
        value |= (byte & 0x7F) << (7 * k)
        if byte < 0x80:
            return value & _MASK, at + k + 1
    raise WireError("a number is cut short or longer than 64 bits")


def signed(value: int) -> int:
    """The number of 64 bits as protobuf's int32 and int64 mean it."""
    return value - (1 << 64) if value >> 63 else value


def varints(data: memoryview) -> Array:
    """Numbers that stand packed one behind the other, as int64.

    Raises
    ------
    WireError
        Cut short, or a number longer than 64 bits.
    """
    octets = np.frombuffer(data, np.uint8)
    if octets.size and octets[-1] >= 0x80:
        raise WireError("packed numbers are cut short")
    parts, at = [np.zeros(0, np.int64)], 0
    while at < octets.size:
        stop = min(at + _PIECE, octets.size)
        if octets[stop - 1] >= 0x80:  # a number goes on
            ahead = octets[stop : stop + _LONGEST] < 0x80
            if not ahead.any():
                raise WireError("a packed number is longer than 64 bits")
            stop += int(np.argmax(ahead)) + 1
        parts.append(_whole_varints(octets[at:stop]))
        at = stop
    return np.concatenate(parts)


def _whole_varints(octets: Array) -> Array:
    """Numbers of bytes that end with the last of them."""
    ends = np.flatnonzero(octets < 0x80)
    if ends.size == octets.size:
        return octets.astype(np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _LONGEST:
        raise WireError("a packed number is longer than 64 bits")
    values = np.zeros(ends.size, np.uint64)
    for k in range(int(lengths.max())):
        has = lengths > k
        septet = (octets[starts[has] + k] & 0x7F).astype(np.uint64)
        values[has] |= septet << np.uint64(7 * k)
    return values.view(np.int64)


def numbers(data: memoryview, dtype: str) -> Array:
    """Packed numbers of fixed width, such as ``<f4``; a view, not a copy.

    Raises
    ------
    WireError
        The bytes are no whole number of them.
    """
    width = np.dtype(dtype).itemsize
    if len(data) % width:
        raise WireError(f"{len(data):,} bytes are no numbers of {width} bytes")
    return np.frombuffer(data, dtype)


def encoded_varint(value: int) -> bytes:
    """A number of up to 64 bits; a negative one as int64."""
    value &= _MASK
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def encoded(number: int, storage: int, value: Any) -> bytes:
    """One field: an int, a float (four bytes), or bytes with their length before them."""
    key = encoded_varint(number << 3 | storage)
    if storage == VARINT:
        return key + encoded_varint(int(value))
    if storage == FOUR:
        return key + struct.pack("<f", value)
    return key + encoded_varint(len(value)) + bytes(value)
