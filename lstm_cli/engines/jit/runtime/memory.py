"""Memory for the kernels: what they work in, kept from call to call, and what they fill."""

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
from lstm_cli.engines.setup import TOUCHING, setting_up
from lstm_cli.engines.types import Array

Made = TypeVar("Made")

_PLANS = 32
"""Batch shapes that a workspace remembers how to serve."""

ALIGNMENT = 64
"""Bytes: a cache line, and the widest vector."""

_WORTH = 1 << 16
"""Bytes from which memory is worth keeping: the system's allocator keeps less than that itself."""


class Workspace:
    """Named buffers that grow when more is asked for, and what was built upon them."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], Array] = {}
        self._plans: dict[Hashable, Any] = {}

    def get(self, name: str, size: int, dtype: str) -> Array:
        """A buffer of at least `size` numbers: 0 at first, then whatever was left in it."""
        key = (name, dtype)
        found = self._buffers.get(key)
        if found is None or found.size < size:
            with setting_up(TOUCHING):
                found = self._buffers[key] = aligned(max(size, 16), dtype)
                found[:] = 0
            self._plans.clear()  # they hold addresses
        return found

    def shaped(self, name: str, shape: tuple[int, ...], dtype: str) -> Array:
        """The beginning of a buffer as an array of that shape."""
        size = int(np.prod(shape))
        return self.get(name, size, dtype)[:size].reshape(shape)

    def plan(self, key: Hashable) -> Any:
        """What was kept under `key`; None if nothing was, or buffers have moved since."""
        return self._plans.get(key)

    def keep(self, key: Hashable, plan: Made) -> Made:
        """Remember what was built upon the buffers."""
        if len(self._plans) >= _PLANS:
            self._plans.clear()
        self._plans[key] = plan
        return plan

    @property
    def bytes(self) -> int:
        """Of all buffers together."""
        return sum(buffer.nbytes for buffer in self._buffers.values())


class Workspaces:
    """Workspaces for calls that may run at the same time, each taken by one of them."""

    def __init__(self) -> None:
        self._free: defaultdict[Hashable, list[Workspace]] = defaultdict(list)

    @property
    def bytes(self) -> int:
        """Of all that nobody uses just now."""
        return sum(space.bytes for spaces in list(self._free.values()) for space in list(spaces))

    def take(self, purpose: Hashable) -> Workspace:
        """One that nobody uses, if possible one that last served the same purpose."""
        try:
            return self._free[purpose].pop()  # pop and append need no lock
        except IndexError:
            return Workspace()

    def give(self, purpose: Hashable, space: Workspace) -> None:
        """Hand one back."""
        self._free[purpose].append(space)


class Stock:
    """Memory for arrays that are made again and again: lent out, and back as they die.

    Fresh memory costs a fault a page, which takes longer than to fill it. What is lent is never
    lent again while an array, or a view of one, is left that could show it.
    """

    def __init__(self) -> None:
        self._free: defaultdict[int, list[Array]] = defaultdict(list)

    @property
    def bytes(self) -> int:
        """Of all that is not lent."""
        return sum(size * len(free) for size, free in list(self._free.items()))

    def array(self, size: int, dtype: np.dtype[Any]) -> Array:
        """`size` numbers that begin on a cache line; not filled."""
        bytes_ = size * dtype.itemsize
        if bytes_ < _WORTH:
            return aligned(size, dtype)
        try:
            raw = self._free[bytes_].pop()  # pop and append need no lock
        except IndexError:
            self._free.clear()  # sizes that were wanted once
            raw = aligned(bytes_, np.uint8)
        # Views of an array name what it was made from, if that is an array too, and let go of
        # the array itself. Made from a buffer it is what they name.
        found = np.frombuffer(raw.data, dtype)
        weakref.finalize(found, self._back, bytes_, raw).atexit = False
        return found

    def _back(self, bytes_: int, raw: Array) -> None:
        self._free[bytes_].append(raw)

    def shaped(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array of that shape, which may begin anywhere; not filled."""
        size = math.prod(shape)
        if size * dtype.itemsize < _WORTH:
            return np.empty(shape, dtype)
        return self.array(size, dtype).reshape(shape)

    def like(self, array: Array) -> Array:
        """An array of the same shape and dtype; not filled."""
        return self.shaped(array.shape, array.dtype)


def aligned(size: int, dtype: Any) -> Array:
    """An array of `size` numbers that begins on a cache line; not filled."""
    dtype = np.dtype(dtype)
    raw = np.empty(size * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -address(raw) % ALIGNMENT
    return raw[start : start + size * dtype.itemsize].view(dtype)


def address(array: Array | None) -> int:
    """Where an array begins; 0 for none."""
    return 0 if array is None else _at(id(array) + _HEADER).value or 0


_at = ctypes.c_void_p.from_address
_HEADER = object.__basicsize__
"""Bytes in front of the first field of an array object, which is this address: NumPy's C interface
has it so for good, since extensions are compiled with it (``PyArray_DATA``). To ask for
``array.ctypes.data`` takes ten times as long, as long as a small kernel."""


class Arguments:
    """A layout of entries, 8 bytes each.

    Parameters
    ----------
    numbers, addresses, reals
        Their names: whole numbers, addresses, and numbers in double precision.
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
        made = cls(())
        made._starts = {}
        for part in parts:
            made._starts[part] = 8 * len(made.names)
            made.names += part.names
            made._types += part._types
        return made

    @cached_property
    def _places(self) -> dict[str, int]:
        """Which entry a name is."""
        return {name: k for k, name in enumerate(self.names)}

    def read(self, f: Function, block: Value) -> dict[str, Value]:
        """Every entry, as a kernel loads it from the block's address."""
        pairs = enumerate(zip(self.names, self._types, strict=True))
        return {n: f.load(t, f.at(block, k, "i64"), 8) for k, (n, t) in pairs}

    def place(self, f: Function, block: Value, name: str) -> Value:
        """The address of an entry, for a kernel that writes one."""
        return f.at(block, self.names.index(name), "i64")

    def empty(self) -> Array:
        """A block to be filled part by part."""
        return np.zeros(len(self.names), np.int64)

    def pack(self, values: Mapping[str, float]) -> bytes:
        """The entries as they stand in memory."""
        return self._format.pack(*[values[name] for name in self.names])

    def fill(self, block: Array, part: Arguments, packed: bytes) -> None:
        """Put what a joined part packed in its place."""
        start = self._starts[part]
        block.view(np.uint8)[start : start + len(packed)] = np.frombuffer(packed, np.uint8)

    def put(self, block: Array, values: Mapping[str, int]) -> None:
        """Write some of the whole numbers and addresses into a block that stays as it is else."""
        for name, value in values.items():
            block[self._places[name]] = value

    def block(self, values: Mapping[str, float]) -> Array:
        """A block filled at once."""
        return np.frombuffer(bytearray(self.pack(values)), np.int64)
