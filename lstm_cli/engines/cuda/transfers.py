"""Memory that both sides reach, and copies of arrays whose rows are apart."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from lstm_cli.engines.cuda.device import Array, DeviceArray

if TYPE_CHECKING:
    from lstm_cli.engines.cuda.gpu import Gpu

DEVICE_TO_HOST = 2  # of cudaMemcpyKind


class Pinned:
    """Page-locked memory, from CuPy's pool, which keeps what is given back."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def array(self, nbytes: int) -> Array:
        """(nbytes,) uint8; the memory goes back to the pool with the last array over it."""
        with self._gpu.failures(f"{nbytes:,} bytes cannot be page-locked"):
            self._gpu.make_current()
            memory: Any = self._gpu.cupy.cuda.alloc_pinned_memory(nbytes)
        return np.frombuffer(memory, np.uint8, nbytes)


def rows_of(array: DeviceArray) -> tuple[int, int, int]:
    """An array as rows without gaps: how many, bytes of each, and from one to the next.

    Raises
    ------
    ValueError
        It is no such array: a mistake in the caller.
    """
    width, axes = array.dtype.itemsize, list(zip(array.shape, array.strides, strict=True))
    axes = [(size, stride) for size, stride in axes if size != 1]
    while axes and axes[-1][1] == width:
        width *= axes.pop()[0]
    if not axes:
        return 1, width, width
    pitch = axes[-1][1]
    for (_, outer), (size, inner) in pairwise(axes):
        if outer != size * inner:
            raise ValueError(f"shape {array.shape} with strides {array.strides} is no rows")
    if pitch < width:
        raise ValueError(f"rows that overlap: strides {array.strides}")
    return math.prod(size for size, _ in axes), width, pitch


def copied_rows(gpu: Gpu, array: DeviceArray, target: int, stream: int) -> None:
    """Start the copy of an array to the host's memory, where it has no gaps, on a stream."""
    count, width, pitch = rows_of(array)
    source = array.data.ptr
    if count == 1:
        gpu.runtime.memcpyAsync(target, source, width, DEVICE_TO_HOST, stream)
    else:
        gpu.runtime.memcpy2DAsync(
            target, width, source, pitch, width, count, DEVICE_TO_HOST, stream
        )
