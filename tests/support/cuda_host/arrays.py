"""Arrays of the host device, which allow no more than the arrays of a GPU."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np

from lstm_cli.errors import DeviceMemoryError

GUARD = 256
"""Bytes of each guard before and after an array, and the array's alignment."""
FENCE = 0xA5
POISON = 0xFF
"""Byte whose repetition is NaN in every float type."""


class Memory:
    """Total, used and largest used bytes of a device."""

    def __init__(self, total: int):
        self.total, self.used, self.peak = total, 0, 0

    def allocate(self, nbytes: int) -> Allocation:
        """Allocate poisoned bytes between two guards.

        Raises
        ------
        DeviceMemoryError
            Too few bytes are free.
        """
        free = self.total - self.used
        if nbytes > free:
            raise DeviceMemoryError(needed=nbytes, free=free)
        allocation = Allocation(nbytes)
        self.used += nbytes
        self.peak = max(self.peak, self.used)
        weakref.finalize(allocation, self._free, nbytes)
        return allocation

    def _free(self, nbytes: int) -> None:
        self.used -= nbytes


class Allocation:
    """Bytes of the device, with guards, and the stream that allocated them."""

    def __init__(self, nbytes: int):
        raw = np.full(nbytes + 3 * GUARD, FENCE, np.uint8)
        start = GUARD - raw.ctypes.data % GUARD
        self.guards = raw[start : start + GUARD], raw[start + GUARD + nbytes :][:GUARD]
        self.data = raw[start + GUARD : start + GUARD + nbytes]
        self.data[:] = POISON
        self.stream = 0


def intact(guards: Iterable[np.ndarray]) -> bool:
    """True if no guard of an allocation was overwritten."""
    return all(bool((guard == FENCE).all()) for guard in guards)


class HostArray:
    """An array that rejects NumPy functions, arithmetic and assignment."""

    __array_ufunc__ = None
    __iter__ = None
    __hash__ = object.__hash__

    def __init__(self, allocation: Allocation, values: np.ndarray):
        self.allocation = allocation
        self.values = values  # for the device, and for tests

    shape = property(lambda self: self.values.shape)
    dtype = property(lambda self: self.values.dtype)
    strides = property(lambda self: self.values.strides)
    size = property(lambda self: self.values.size)
    nbytes = property(lambda self: self.values.nbytes)
    ndim = property(lambda self: self.values.ndim)

    def __repr__(self) -> str:
        return f"HostArray({self.shape}, {self.dtype})"

    def __array__(self, *_: Any, **__: Any) -> np.ndarray:
        raise TypeError("an array of the device is no NumPy array; download it")

    def __bool__(self) -> bool:
        raise TypeError("the truth of an array of the device")

    def __eq__(self, other: object) -> bool:
        raise TypeError("a comparison of an array of the device")

    def reshape(self, *shape: Any) -> HostArray:
        """A view of another shape; a reshape that needs a copy is an error."""
        new_shape = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        view = self.values.view()
        view.shape = tuple(new_shape)
        return HostArray(self.allocation, view)

    def __getitem__(self, key: Any) -> HostArray:
        parts = key if isinstance(key, tuple) else (key,)
        if any(
            type(p) is not int and not isinstance(p, slice) and p is not Ellipsis for p in parts
        ):
            raise TypeError(f"only slices, not {key!r}")
        return HostArray(self.allocation, self.values[(*parts, ...)])

    @property
    def contiguous(self) -> bool:
        """True if the array is contiguous in C order."""
        return self.values.flags.c_contiguous


def make_array(memory: Memory, shape: Any, dtype: str) -> HostArray:
    """Allocate a poisoned array."""
    kind = np.dtype(dtype)
    size = math.prod(shape)
    allocation = memory.allocate(size * kind.itemsize)
    return HostArray(allocation, allocation.data.view(kind).reshape(tuple(shape)))
