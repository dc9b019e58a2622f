"""The file as HDF5 sees it, with two checks that HDF5 leaves out; and what is allowed of it.

Values of variable length stand in the file's *global heap*, collections of objects each of
which says where the next begins. HDF5 follows them without a look at whether they get anywhere:
a damaged collection keeps it busy for ever, beyond the reach of an interrupt. And where a file
ends early HDF5 reads zeros. So HDF5 reads through an object of Python's, which looks at each
collection at the moment it is read: no change of the file comes in between.
"""

from __future__ import annotations

import os
import struct
import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from lstm_cli.hdf5.dataset import Bands, Stored
    from lstm_cli.hdf5.group import Folder

Array: TypeAlias = NDArray[Any]

SIGNATURE = b"GCOL\x01"
HEADER_BYTES = 16
"""Of a collection (signature, version, 3 reserved, size), and of each object in it (index,
references, 4 reserved, size), whether sizes take 2, 4 or 8 bytes. Index 0 is what is free; its
size counts its header."""
SIZES = {2: struct.Struct("<H"), 4: struct.Struct("<I"), 8: struct.Struct("<Q")}
"""Numbers of so many bytes, of which HDF5 reads sizes and offsets."""
MOST_KNOWN = 100_000
"""Collections whose check is remembered."""
HEAP_SLACK = 64 << 20
"""Bytes of the heap that one read may load beyond twice the file's own."""


class HeapError(OSError):
    """The global heap is damaged."""


class CutShortError(OSError):
    """The file ends before what it is to hold."""


class CheckedFile:
    """A file open for reading that HDF5 reads through.

    Attributes
    ----------
    path
        Of the file.
    size
        Bytes of the file when it was opened.
    number_bytes
        Bytes of a size in the file; known once HDF5 has opened it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 it is closed by `close`
        self._lock(path)
        self.size = os.fstat(self._file.fileno()).st_size
        self.number_bytes = 8
        self._place = 0
        self._begun: tuple[int, bytes] | None = None
        self._known: dict[int, int] = {}
        self._distinct = 0
        self._loaded = 0

    def begin(self) -> None:
        """Count anew what is loaded of the heap: another read begins."""
        self._loaded = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place in the file, which keeps the size it had."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.size}[whence]
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        """The place in the file."""
        return self._place

    def read(self, size: int) -> bytes:
        """Read so many bytes; h5py takes what has this for a file."""
        buffer = bytearray(size)
        self.readinto(memoryview(buffer))
        return bytes(buffer)

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer; `CutShortError` if the file ends before, `HeapError` as it says."""
        place, view = self._place, memoryview(buffer).cast("B")
        self._file.seek(place)
        got = 0
        while got < len(view):
            more = self._file.readinto(view[got:])
            if not more:
                raise CutShortError(
                    f"the file ends at byte {place + got:,}: it was cut short while it was read"
                )
            got += more
        self._look(place, view)
        return got

    def write(self, data: memoryview) -> int:
        """Refuse: the file is open for reading."""
        raise OSError("the file is open for reading")

    def truncate(self, size: int) -> int:
        """Leave the file as it is."""
        return size

    def flush(self) -> None:
        """Nothing: the file has no buffer."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):  # HDF5 has closed it by then
            self._file.close()

    def references(self, place: int, count: int, offset_bytes: int) -> Array:
        """(count,) lengths of values in the heap, from the references to them at a place.

        Raises
        ------
        CutShortError
            The file ends before.
        """
        width = 8 + offset_bytes  # length, address of the collection, index in it
        self.seek(place)
        raw = np.frombuffer(self.read(count * width), np.uint8).reshape(count, width)
        lengths: Array = np.ascontiguousarray(raw[:, :4]).view("<u4").reshape(count)
        return lengths.astype(np.int64)

    def _look(self, place: int, view: memoryview) -> None:
        """Check a collection of the heap, which HDF5 reads at once or in two parts."""
        begun, self._begun = self._begun, None
        if bytes(view[:5]) == SIGNATURE and len(view) >= HEADER_BYTES:
            data, start = bytes(view), place
        elif begun is not None and begun[0] + len(begun[1]) == place:
            data, start = begun[1] + bytes(view), begun[0]
        else:
            return
        (size,) = SIZES[self.number_bytes].unpack_from(data, 8)
        if size > len(data):
            self._begun = start, data
            return
        self._count(size, start)
        digest = hash(data)
        if self._known.get(start) == digest:
            return
        if start not in self._known:
            self._distinct += size
        if self._distinct > self.size:
            raise HeapError(f"collections that lie over each other, at byte {start:,}")
        if not _ends(data[:size], SIZES[self.number_bytes]):
            raise HeapError(f"a circle in the global heap at byte {start:,}")
        if len(self._known) < MOST_KNOWN:
            self._known[start] = digest

    def _count(self, size: int, start: int) -> None:
        self._loaded += size
        if self._loaded > 2 * self.size + HEAP_SLACK:
            raise HeapError(f"a collection that is read over and over, at byte {start:,}")

    def _lock(self, path: str) -> None:
        """Refuse a file that another program writes, as HDF5 itself does."""
        wanted = os.environ.get("HDF5_USE_FILE_LOCKING", "").upper()
        if os.name == "nt" or wanted in ("FALSE", "0"):
            return
        import fcntl

        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise
        except OSError:
            return  # a file system without locks


def _ends(data: bytes, number: struct.Struct) -> bool:
    """Whether the chain of objects in a collection always moves on."""
    end, place = len(data), HEADER_BYTES
    wrap = 1 << 64
    while place + HEADER_BYTES <= end:
        (length,) = number.unpack_from(data, place + 8)
        if data[place] or data[place + 1]:
            # HDF5 counts in 64 bits: forged lengths wrap round, to nothing or backwards.
            length = (HEADER_BYTES + (length + 7) % wrap // 8 * 8) % wrap
        if length == 0 or length >= wrap >> 1:
            return False
        place += length
    return True


class Guard:
    """What is allowed of one open file, and how it is read.

    Attributes
    ----------
    source
        What HDF5 reads it through.
    allow_external
        Follow what leads out of the file, and believe any shape.
    transpose
        Read datasets with their axes reversed.
    writer
        Program that wrote the file, if its header says so and it reverses axes.
    offset_bytes
        Bytes of an address in the file.
    other
        Opens the root group of another file that a link names, for good.
    native
        Opens this file as HDF5 does by itself, for good: to follow virtual storage.
    """

    other: Callable[[str], Folder]
    native: Callable[[], Any]

    def __init__(
        self,
        source: CheckedFile,
        *,
        allow_external: bool = False,
        offset_bytes: int = 8,
        optional: bool = True,
        transpose: bool = False,
        writer: str | None = None,
    ) -> None:
        self.source = source
        self.allow_external = allow_external
        self._optional = optional
        self.transpose, self.writer = transpose, writer
        self.offset_bytes = offset_bytes
        self.bands: weakref.WeakSet[Bands] = weakref.WeakSet()
        """What is kept of large chunks, for as long as the file is open."""
        self.recent: OrderedDict[str, Stored] = OrderedDict()
        """Datasets of which parts were read, by path; the last one last."""

    def hint(self, does: str) -> str | None:
        """The option that makes what is refused be read, where the command has it."""
        return f"--allow-external {does}, if you trust the file" if self._optional else None
