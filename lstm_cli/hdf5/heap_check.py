"""The file object that HDF5 reads through: it checks the global heap and the end of the file.

Values of variable length are stored in the file's *global heap*. The heap consists of
collections of objects, and each object says where the next one begins. HDF5 follows that chain
without checking that it ends: a damaged collection keeps HDF5 busy forever, and an interrupt
does not stop it. Where a file ends early, HDF5 reads zeros. So HDF5 reads through a Python
object, `CheckedFile`. It checks each collection at the moment of the read, so the file cannot
change between check and read.
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
    from lstm_cli.hdf5.dataset import ChunkSlabs, Dataset
    from lstm_cli.hdf5.group import Group

Array: TypeAlias = NDArray[Any]

SIGNATURE = b"GCOL\x01"
HEADER_BYTES = 16
"""Header bytes of a collection, and of each object in a collection.

A collection's header holds signature, version, 3 reserved bytes and the size. An object's header
holds index, references, 4 reserved bytes and the size. Index 0 marks free space; its size
includes the header. The header has the same length if sizes take 2, 4 or 8 bytes.
"""
SIZES = {2: struct.Struct("<H"), 4: struct.Struct("<I"), 8: struct.Struct("<Q")}
"""Formats of sizes and offsets by their bytes."""
MAX_CHECKED = 100_000
"""Largest number of collections whose check is remembered."""
HEAP_SLACK = 64 << 20
"""Heap bytes that one read may load beyond twice the size of the file."""


class HeapError(OSError):
    """The global heap is damaged."""


class CutShortError(OSError):
    """The file ends before the bytes to read."""


class CheckedFile:
    """A file open for reading, as h5py's file object.

    Attributes
    ----------
    path
        Path of the file.
    size
        Size of the file in bytes when it was opened.
    number_bytes
        Bytes of each size field in the file. Set once HDF5 has opened the file.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 it is closed by `close`
        self._lock(path)
        self.size = os.fstat(self._file.fileno()).st_size
        self.number_bytes = 8
        self._position = 0
        self._partial: tuple[int, bytes] | None = None
        self._checked: dict[int, int] = {}
        self._distinct_bytes = 0
        self._loaded_bytes = 0

    def start_read(self) -> None:
        """Reset the count of heap bytes: another read begins."""
        self._loaded_bytes = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position in the file. The end stays where it was when the file was opened."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """Position in the file, in bytes."""
        return self._position

    def read(self, size: int) -> bytes:
        """Read `size` bytes. h5py accepts an object with this method as a file."""
        buffer = bytearray(size)
        self.readinto(memoryview(buffer))
        return bytes(buffer)

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer from the current position.

        Raises
        ------
        CutShortError
            The file ends before the buffer is full.
        HeapError
            The bytes hold a damaged heap collection.
        """
        place, view = self._position, memoryview(buffer).cast("B")
        self._file.seek(place)
        filled = 0
        while filled < len(view):
            more = self._file.readinto(view[filled:])
            if not more:
                raise CutShortError(
                    f"the file ends at byte {place + filled:,}: it was truncated during the read"
                )
            filled += more
        self._check_collection(place, view)
        return filled

    def bytes_at(self, place: int, size: int) -> bytes:
        """Bytes of the file without a check; fewer than `size` where the file ends."""
        self._file.seek(place)
        return self._file.read(size)

    def write(self, data: memoryview) -> int:
        """Raise OSError: the file is open for reading only."""
        raise OSError("the file is open for reading")

    def truncate(self, size: int) -> int:
        """Leave the file unchanged."""
        return size

    def flush(self) -> None:
        """Do nothing: the file has no buffer."""

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __del__(self) -> None:
        if hasattr(self, "_file"):  # HDF5 has closed it by then
            self._file.close()

    def heap_value_lengths(self, place: int, count: int, offset_bytes: int) -> Array:
        """(count,) lengths of values in the heap, from the references stored at `place`.

        Raises
        ------
        CutShortError
            The file ends before the last reference.
        """
        width = 8 + offset_bytes  # length, address of the collection, index in it
        self.seek(place)
        raw = np.frombuffer(self.read(count * width), np.uint8).reshape(count, width)
        lengths: Array = np.ascontiguousarray(raw[:, :4]).view("<u4").reshape(count)
        return lengths.astype(np.int64)

    def _check_collection(self, place: int, view: memoryview) -> None:
        """Check a heap collection, which HDF5 reads in one or two parts."""
        partial, self._partial = self._partial, None
        if bytes(view[:5]) == SIGNATURE and len(view) >= HEADER_BYTES:
            data, start = bytes(view), place
        elif partial is not None and partial[0] + len(partial[1]) == place:
            data, start = partial[1] + bytes(view), partial[0]
        else:
            return
        (size,) = SIZES[self.number_bytes].unpack_from(data, 8)
        if size > len(data):
            self._partial = start, data
            return
        self._count_loaded(size, start)
        digest = hash(data)
        if self._checked.get(start) == digest:
            return
        if start not in self._checked:
            self._distinct_bytes += size
        if self._distinct_bytes > self.size:
            raise HeapError(f"overlapping collections at byte {start:,}")
        if not _chain_ends(data[:size], SIZES[self.number_bytes]):
            raise HeapError(f"a loop in the global heap at byte {start:,}")
        if len(self._checked) < MAX_CHECKED:
            self._checked[start] = digest

    def _count_loaded(self, size: int, start: int) -> None:
        self._loaded_bytes += size
        if self._loaded_bytes > 2 * self.size + HEAP_SLACK:
            raise HeapError(f"a collection that is read again and again, at byte {start:,}")

    def _lock(self, path: str) -> None:
        """Raise BlockingIOError for a file that another program writes, as HDF5 itself does."""
        locking = os.environ.get("HDF5_USE_FILE_LOCKING", "").upper()
        if os.name == "nt" or locking in ("FALSE", "0"):
            return
        import fcntl

        try:
            fcntl.flock(self._file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise
        except OSError:
            return  # a file system without locks


def _chain_ends(data: bytes, number: struct.Struct) -> bool:
    """Check that the chain of objects in a collection always moves forward."""
    end, place = len(data), HEADER_BYTES
    wrap = 1 << 64
    while place + HEADER_BYTES <= end:
        (length,) = number.unpack_from(data, place + 8)
        if data[place] or data[place + 1]:
            # HDF5 counts in 64 bits. A forged length wraps around, to 0 or to a step backwards.
            length = (HEADER_BYTES + (length + 7) % wrap // 8 * 8) % wrap
        if length == 0 or length >= wrap >> 1:
            return False
        place += length
    return True


class FileAccess:
    """Access to one open file: its source, the permissions of the user, and caches.

    Attributes
    ----------
    source
        The file object that HDF5 reads through.
    allow_external
        Follow links and storage outside the file, and accept any shape.
    transpose
        Read datasets with their axes reversed.
    reversing_program
        Program that wrote the file, if the header names one that reverses axes.
    offset_bytes
        Bytes of an address in the file.
    superblock
        Place of the superblock, from which addresses count; None in a file whose addresses or
        sizes do not take 8 bytes.
    open_other
        Opens the file that an external link names and returns its root group. The file stays
        open.
    open_native
        Opens this file without the checks, for virtual storage. The file stays open.
    slabs
        Slab caches of the datasets that are read.
    recent_datasets
        Datasets that were read in part, by path, the most recent one last.
    """

    open_other: Callable[[str], Group]
    open_native: Callable[[], Any]

    def __init__(
        self,
        source: CheckedFile,
        *,
        allow_external: bool = False,
        offset_bytes: int = 8,
        superblock: int | None = None,
        has_option: bool = True,
        transpose: bool = False,
        reversing_program: str | None = None,
    ) -> None:
        self.source = source
        self.allow_external = allow_external
        self._has_option = has_option
        self.transpose, self.reversing_program = transpose, reversing_program
        self.offset_bytes, self.superblock = offset_bytes, superblock
        self.slabs: weakref.WeakSet[ChunkSlabs] = weakref.WeakSet()
        self.recent_datasets: OrderedDict[str, Dataset] = OrderedDict()

    def external_hint(self, effect: str) -> str | None:
        """Hint with the option that permits the read, if the command has that option."""
        return f"--allow-external {effect}, if you trust the file" if self._has_option else None
