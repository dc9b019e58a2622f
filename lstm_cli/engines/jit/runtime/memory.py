"""Memory of the kernels: workspaces, reused arrays, and blocks of arguments."""

from __future__ import annotations

import ctypes
import math
import struct
import weakref
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from lstm_cli.engines.jit.codegen.ir import Function, Value
from lstm_cli.engines.setup_time import FRESH_MEMORY, setup_timer
from lstm_cli.engines.types import Array

T = TypeVar("T")

_MAX_CACHED = 32
"""Largest number of objects that a workspace caches, one per shape of batch."""

ALIGNMENT = 64
"""Bytes of a cache line, and of the widest vector."""

_MIN_POOLED_BYTES = 1 << 16
"""Smallest array in bytes whose memory the pool reuses; the system's allocator reuses the rest."""


class Workspace:
    """Named buffers that grow on demand, and a cache of objects that hold their addresses."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], Array] = {}
        self._cache: dict[Hashable, Any] = {}

    def get(self, name: str, size: int, dtype: str) -> Array:
        """A buffer of at least `size` numbers: zeros at first, later the values last written."""
        key = (name, dtype)
        buffer = self._buffers.get(key)
        if buffer is None or buffer.size < size:
            with setup_timer(FRESH_MEMORY):
                buffer = self._buffers[key] = aligned(max(size, 16), dtype)
                buffer[:] = 0
            self._cache.clear()  # its objects hold addresses
        return buffer

    def shaped(self, name: str, shape: tuple[int, ...], dtype: str) -> Array:
        """The beginning of a buffer, as an array of shape `shape`."""
        size = int(np.prod(shape))
        return self.get(name, size, dtype)[:size].reshape(shape)

    def cached(self, key: Hashable) -> Any:
        """The object cached under `key`. None: no object, or a buffer has been replaced since."""
        return self._cache.get(key)

    def remember(self, key: Hashable, value: T) -> T:
        """Cache an object that contains addresses of the buffers, and return it."""
        if len(self._cache) >= _MAX_CACHED:
            self._cache.clear()
        self._cache[key] = value
        return value

    @property
    def bytes(self) -> int:
        """Bytes of all buffers."""
        return sum(buffer.nbytes for buffer in self._buffers.values())


class Workspaces:
    """Idle workspaces; each call acquires one of its own, so calls may run at the same time."""

    def __init__(self) -> None:
        self._free: defaultdict[Hashable, list[Workspace]] = defaultdict(list)

    @property
    def bytes(self) -> int:
        """Bytes of idle workspaces."""
        return sum(space.bytes for spaces in list(self._free.values()) for space in list(spaces))

    def acquire(self, purpose: Hashable) -> Workspace:
        """An idle workspace that last served the same purpose, or a new one."""
        try:
            return self._free[purpose].pop()  # pop and append need no lock
        except IndexError:
            return Workspace()

    def release(self, purpose: Hashable, workspace: Workspace) -> None:
        """Make a workspace idle again."""
        self._free[purpose].append(workspace)


class ArrayPool:
    """Reused memory for large arrays, which returns to the pool when the array is freed.

    A page fault per fresh page takes longer than filling the page. The pool does not reuse memory
    while an array, or a view of one, still refers to it.
    """

    def __init__(self) -> None:
        self._free: defaultdict[int, list[Array]] = defaultdict(list)

    @property
    def bytes(self) -> int:
        """Bytes of idle memory."""
        return sum(size * len(free) for size, free in list(self._free.items()))

    def array(self, size: int, dtype: np.dtype[Any]) -> Array:
        """An uninitialized array of `size` numbers that starts on a cache line."""
        bytes_ = size * dtype.itemsize
        if bytes_ < _MIN_POOLED_BYTES:
            return aligned(size, dtype)
        try:
            raw = self._free[bytes_].pop()  # pop and append need no lock
        except IndexError:
            self._free.clear()  # other sizes are no longer in use
            raw = aligned(bytes_, np.uint8)
        # A view of an array refers to the array's base, and drops the array itself. An array
        # made from a buffer has no array as its base, so views refer to it.
        array = np.frombuffer(raw.data, dtype)
        weakref.finalize(array, self._back, bytes_, raw).atexit = False
        return array

    def _back(self, bytes_: int, raw: Array) -> None:
        self._free[bytes_].append(raw)

    def shaped(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An uninitialized array of shape `shape`, which may start anywhere in a cache line."""
        size = math.prod(shape)
        if size * dtype.itemsize < _MIN_POOLED_BYTES:
            return np.empty(shape, dtype)
        return self.array(size, dtype).reshape(shape)

    def like(self, array: Array) -> Array:
        """An uninitialized array with the shape and dtype of `array`."""
        return self.shaped(array.shape, array.dtype)


def aligned(size: int, dtype: Any) -> Array:
    """An uninitialized array of `size` numbers that starts on a cache line."""
    dtype = np.dtype(dtype)
    raw = np.empty(size * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -address(raw) % ALIGNMENT
    return raw[start : start + size * dtype.itemsize].view(dtype)


def address(array: Array | None) -> int:
    """Address of an array's first number; 0 if `array` is None."""
    return 0 if array is None else _pointer(id(array) + _HEADER).value or 0


_pointer = ctypes.c_void_p.from_address
_HEADER = object.__basicsize__
"""Bytes before the first field of an array object, which is the address of its data. NumPy's C
interface fixes this place (``PyArray_DATA``), since extensions are compiled with it. Reading
``array.ctypes.data`` takes ten times as long, as long as a small kernel."""


class Arguments:
    """Layout of a kernel's argument block: named entries of 8 bytes each.

    Host code fills a block by these names; an emitter reads the entries by the same names.

    Parameters
    ----------
    numbers, addresses, reals
        Names of whole numbers, of addresses, and of numbers in double precision.
    """

    def __init__(
        self, numbers: Sequence[str], addresses: Sequence[str] = (), reals: Sequence[str] = ()
    ) -> None:
        self.names = (*numbers, *addresses, *reals)
        self._types = ["i64"] * len(numbers) + ["ptr"] * len(addresses) + ["double"] * len(reals)
        self._format = struct.Struct("q" * (len(numbers) + len(addresses)) + "d" * len(reals))
        self._starts: dict[Arguments, int] = {self: 0}

    @classmethod
    def joined(cls, *parts: Arguments) -> Arguments:
        """Layouts one after another, each of which can be filled by itself."""
        joined = cls(())
        joined._starts = {}
        for part in parts:
            joined._starts[part] = 8 * len(joined.names)
            joined.names += part.names
            joined._types += part._types
        return joined

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: k for k, name in enumerate(self.names)}

    def read(self, f: Function, block: Value) -> dict[str, Value]:
        """Emit loads of all entries of the block at address `block`. Returns the values by name."""
        pairs = enumerate(zip(self.names, self._types, strict=True))
        return {n: f.load(t, f.at(block, k, "i64"), 8) for k, (n, t) in pairs}

    def place(self, f: Function, block: Value, name: str) -> Value:
        """Emit the address of an entry, for a kernel that writes it."""
        return f.at(block, self.names.index(name), "i64")

    def empty(self) -> Array:
        """A block of zeros, (entries,) int64."""
        return np.zeros(len(self.names), np.int64)

    def pack(self, values: Mapping[str, float]) -> bytes:
        """All entries as bytes of a block."""
        return self._format.pack(*[values[name] for name in self.names])

    def fill(self, block: Array, part: Arguments, packed: bytes) -> None:
        """Write the packed entries of one joined layout into a block."""
        start = self._starts[part]
        block.view(np.uint8)[start : start + len(packed)] = np.frombuffer(packed, np.uint8)

    def put(self, block: Array, values: Mapping[str, int]) -> None:
        """Write some of the whole numbers and addresses into a block."""
        for name, value in values.items():
            block[self._places[name]] = value

    def block(self, values: Mapping[str, float]) -> Array:
        """A block with all entries, (entries,) int64."""
        return np.frombuffer(bytearray(self.pack(values)), np.int64)
