"""Arrays of the host device: no more can be done with them than with a GPU's."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from typing import Any

import numpy as np

from lstm_cli.errors import DeviceMemoryError

GUARD = 256
"""Bytes before and behind an array that nobody may write, and its alignment."""
FENCE = 0xA5
POISON = 0xFF
"""NaN in every type of floats."""


class Memory:
    """What is allocated, and what may be."""

    def __init__(self, total: int):
        self.total, self.used, self.peak = total, 0, 0

    def allocate(self, nbytes: int) -> Allocation:
        """Poisoned bytes between two guards.

        Raises
        ------
        DeviceMemoryError
            Less is free.
        """
        free = self.total - self.used
        if nbytes > free:
            raise DeviceMemoryError(needed=nbytes, free=free)
        made = Allocation(nbytes)
        self.used += nbytes
        self.peak = max(self.peak, self.used)
        weakref.finalize(made, self._give_back, nbytes)
        return made

    def _give_back(self, nbytes: int) -> None:
        self.used -= nbytes


class Allocation:
    """Bytes of the device."""

    def __init__(self, nbytes: int):
        raw = np.full(nbytes + 3 * GUARD, FENCE, np.uint8)
        start = GUARD - raw.ctypes.data % GUARD
        self.guards = raw[start : start + GUARD], raw[start + GUARD + nbytes :][:GUARD]
        self.data = raw[start + GUARD : start + GUARD + nbytes]
        self.data[:] = POISON
        self.lane = 0


def intact(guards: Iterable[np.ndarray]) -> bool:
    """Whether nothing was written beside an allocation."""
    return all(bool((guard == FENCE).all()) for guard in guards)


class HostArray:
    """An array that NumPy's functions, arithmetic and assignment do not take."""

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
        raise TypeError("an array of the device is no array of NumPy's; download it")

    def __bool__(self) -> bool:
        raise TypeError("the truth of an array of the device")

    def __eq__(self, other: object) -> bool:
        raise TypeError("a comparison of an array of the device")

    def reshape(self, *shape: Any) -> HostArray:
        """A view; what would have to be copied is refused."""
        wanted = shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
        made = self.values.view()
        made.shape = tuple(wanted)
        return HostArray(self.allocation, made)

    def __getitem__(self, key: Any) -> HostArray:
        parts = key if isinstance(key, tuple) else (key,)
        if any(
            type(p) is not int and not isinstance(p, slice) and p is not Ellipsis for p in parts
        ):
            raise TypeError(f"only slices, not {key!r}")
        return HostArray(self.allocation, self.values[(*parts, ...)])

    @property
    def contiguous(self) -> bool:
        """Whether it has no gaps and is in C order."""
        return self.values.flags.c_contiguous


def make_array(memory: Memory, shape: Any, dtype: str) -> HostArray:
    """A poisoned array."""
    kind = np.dtype(dtype)
    size = math.prod(shape)
    allocation = memory.allocate(size * kind.itemsize)
    return HostArray(allocation, allocation.data.view(kind).reshape(tuple(shape)))
