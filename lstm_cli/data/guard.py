"""What is allowed of a file, and one check that HDF5 itself leaves out.

Values of variable length stand in the file's *global heap*, collections of objects each of
which says where the next begins. HDF5 follows them without a look at whether they get anywhere:
a damaged collection keeps it busy for ever, beyond the reach of an interrupt.
"""

from __future__ import annotations

import mmap
import re
import struct

from lstm_cli.errors import DataError

COLLECTION = re.compile(rb"GCOL\x01")
HEADER_BYTES = 16
"""Of a collection (signature, version, 3 reserved, 8 size), and of each object in it."""
OBJECT = struct.Struct("<HHIQ")
"""Index, references, reserved, size. Index 0 is what is free; its size counts its header."""

TEXT_BYTES = 256 << 20
"""A larger file is looked through for its sequences' sake, but not for a few names."""


class Guard:
    """Checks that belong to one open file.

    Attributes
    ----------
    allow_external
        Follow what leads out of the file, and believe any shape.
    transpose
        Read datasets with their axes reversed.
    writer
        Program that wrote the file, if its header says so and it reverses axes.
    """

    def __init__(
        self,
        path: str,
        *,
        allow_external: bool = False,
        size_bytes: int = 8,
        transpose: bool = False,
        writer: str | None = None,
    ) -> None:
        self.allow_external = allow_external
        self.transpose, self.writer = transpose, writer
        self._path = path
        self._size_bytes = size_bytes
        self._checked = False

    def check_heap(self, where: str, *, rows: bool) -> None:
        """Raise DataError if reading values of variable length would never end.

        Looks through the file once; for text (not `rows`) only if the file is small.
        """
        if self._checked or self._size_bytes != 8:
            return
        with (
            open(self._path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            if not rows and len(content) > TEXT_BYTES:
                return
            for found in COLLECTION.finditer(content):
                if not _ends(content, found.start()):
                    raise DataError(
                        f"{where} cannot be read: the file's heap is damaged",
                        expected="intact HDF5",
                        found=f"a circle in the global heap at byte {found.start()}",
                        where=where,
                        hint="the file may be damaged: copy or make it again",
                    )
        self._checked = True


def _ends(content: mmap.mmap, start: int) -> bool:
    """Whether the chain of objects in the collection at `start` always moves on."""
    if start + HEADER_BYTES > len(content):
        return True
    (size,) = struct.unpack_from("<Q", content, start + 8)
    end = min(start + size, len(content))
    place = start + HEADER_BYTES
    while place + HEADER_BYTES <= end:
        index, _, _, length = OBJECT.unpack_from(content, place)
        # HDF5 counts in 64 bits: forged lengths wrap round, to nothing or backwards.
        padded = (length + 7) % 2**64 // 8 * 8
        need = length if index == 0 else (HEADER_BYTES + padded) % 2**64
        if need == 0 or need >= 2**63:
            return False
        place += need
    return True
