"""The global heap of an HDF5 file, looked through before the library reads a text from it.

Texts of variable length stand in *collections* of objects, each of which says where the next one
begins. The library follows them without a look at whether they get anywhere: a damaged collection
keeps it busy for ever, beyond the reach of an interrupt.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator

from lstm_cli.errors import WeightsError

_COLLECTION = re.compile(rb"GCOL\x01")
_HEADER = 16
"""Bytes of a collection's header, and of each object's in it."""
_OBJECT = struct.Struct("<HHIQ")
"""Index, references, reserved, size. Index 0 is what is free; its size counts its header."""


def largest_object(data: bytes) -> int:
    """Bytes of the largest object in any collection.

    Raises
    ------
    WeightsError
        A collection whose objects lead in a circle, or collections that lie over each other.
    """
    largest, steps = 0, len(data) // _HEADER + 1
    for found in _COLLECTION.finditer(data):
        for size in _sizes(data, found.start()):
            steps -= 1
            if steps < 0:
                raise _damaged("its collections lie over each other")
            largest = max(largest, size)
    return largest


def _sizes(data: bytes, start: int) -> Iterator[int]:
    """Sizes of the objects of the collection at `start`."""
    if start + _HEADER > len(data):
        return
    (size,) = struct.unpack_from("<Q", data, start + 8)
    end = min(start + size, len(data))
    place = start + _HEADER
    while place + _HEADER <= end:
        index, _, _, length = _OBJECT.unpack_from(data, place)
        # The library counts in 64 bits: forged sizes wrap round, to nothing or backwards.
        padded = (length + 7) % 2**64 // 8 * 8
        need = length if index == 0 else (_HEADER + padded) % 2**64
        if need == 0 or need >= 2**63:
            raise _damaged(f"a circle at byte {start}")
        yield min(length, len(data)) if index else 0
        place += need


def _damaged(found: str) -> WeightsError:
    return WeightsError(
        "the heap of the HDF5 file is damaged", found=found, hint="save the weights anew"
    )
