"""Pinned memory, asynchronous copies whose benefit is unmeasured, and arrays of other packages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from lstm_cli.engines.cuda.runtime.device import Array, Device, DeviceArray, is_host_array
from lstm_cli.engines.feed import Feed, Upload
from lstm_cli.engines.protocols import Event
from lstm_cli.errors import DeviceError

if TYPE_CHECKING:
    from lstm_cli.engines.cuda.runtime.gpu import Gpu

DEVICE_TO_HOST = 2  # of cudaMemcpyKind

PINNED_BUFFERS = 2
"""Number of pinned buffers that `DeviceFeed.upload` uses in turn."""

DLPACK_CUDA_DEVICE = 2
"""kDLCUDA, of DLPack."""

DEFAULT_STREAM_ADDRESSES = (0, 1)
"""Addresses of the default stream, which is synchronized with the main stream."""


def allocate_pinned(gpu: Gpu, nbytes: int) -> Array:
    """Page-locked memory (nbytes,) uint8 from CuPy's pool.

    The memory returns to the pool when the last array that views it is freed.
    """
    with gpu.failures(f"{nbytes:,} bytes cannot be page-locked"):
        gpu.make_current()
        memory: Any = gpu.cupy.cuda.alloc_pinned_memory(nbytes)
    return np.frombuffer(memory, np.uint8, nbytes)


def row_layout(array: DeviceArray) -> tuple[int, int, int]:
    """Layout of an array as contiguous rows.

    Returns
    -------
    count, width, pitch
        Number of rows, bytes per row, and bytes from one row to the next.

    Raises
    ------
    ValueError
        The array has no such layout: a mistake in the caller.
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


def copy_rows_to_host(gpu: Gpu, array: DeviceArray, target: int, stream: int) -> None:
    """Start the copy of an array to contiguous host memory at `target`, on a stream."""
    count, width, pitch = row_layout(array)
    source = array.data.ptr
    if count == 1:
        gpu.runtime.memcpyAsync(target, source, width, DEVICE_TO_HOST, stream)
    else:
        gpu.runtime.memcpy2DAsync(
            target, width, source, pitch, width, count, DEVICE_TO_HOST, stream
        )


@dataclass(frozen=True, eq=False)
class DeviceUpload(Upload[DeviceArray]):
    """An array whose copy to the device has started; the benefit of the overlap is unmeasured.

    Attributes
    ----------
    array
        Array on the device. Other work reads the result of `ready`.
    start, end
        Events around the copy.
    source
        Pinned memory that is copied. This reference keeps it until the copy ends.
    device
        The device.
    """

    array: DeviceArray
    start: Event
    end: Event
    source: Array
    device: Device

    def ready(self) -> DeviceArray:
        """Let later work wait for the copy; returns the array on the device."""
        self.device.wait_event(self.end)
        return self.array

    def discard(self) -> None:
        """Wait for the copy of an array that no work will read, so that its memory can be freed."""
        with suppress(DeviceError):
            self.end.wait()

    @property
    def seconds(self) -> float:
        """Device seconds of the copy; waits for it."""
        return self.end.seconds_since(self.start)


class DeviceFeed(Feed[DeviceArray]):
    """Copies to a device and back while it computes.

    Parameters
    ----------
    device
        Target of the copies.
    """

    reads_ahead = True

    def __init__(self, device: Device) -> None:
        self._device = device
        self._buffers: list[Array | None] = [None] * PINNED_BUFFERS
        self._copied: list[Event | None] = [None] * PINNED_BUFFERS
        self._index = 0

    def place(self, array: Array) -> DeviceArray:
        """A copy on the device."""
        return self._device.upload(array)

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
        """Allocate a page-locked array for `upload_allocated`."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        pinned = self._device.allocate_pinned(max(nbytes, 1))[:nbytes]
        return np.ndarray(shape, dtype, pinned)

    def upload_allocated(self, array: Array) -> DeviceUpload:
        """Start the copy of an array of `allocate`, or of some of its rows.

        Raises
        ------
        DeviceMemoryError
            The device has too little free memory.
        """
        target = self._device.empty(array.shape, array.dtype.name)
        start, end = self._device.copy_to_device_async(array, target)
        return DeviceUpload(target, start, end, array, self._device)

    def upload(self, array: Array) -> DeviceUpload:
        """Start the copy of a NumPy array, which may change as soon as this returns.

        The array is first copied to one of two pinned buffers, in turn.

        Raises
        ------
        DeviceMemoryError
            The device has too little free memory.
        """
        index, shape = self._index, array.shape
        target = self._device.empty(shape, array.dtype.name)
        last = self._copied[index]
        if last is not None:
            last.wait()
        buffer = self._buffer(index, array.nbytes)
        buffer.view(array.dtype).reshape(shape)[...] = array
        start, end = self._device.copy_to_device_async(buffer, target)
        self._copied[index], self._index = end, (index + 1) % PINNED_BUFFERS
        return DeviceUpload(target, start, end, buffer, self._device)

    def download(self, arrays: Sequence[DeviceArray]) -> DeviceDownload:
        """Start the copies of device arrays."""
        return DeviceDownload(self._device, arrays)

    def _buffer(self, index: int, nbytes: int) -> Array:
        buffer = self._buffers[index]
        if buffer is None or buffer.nbytes < nbytes:
            buffer = self._buffers[index] = self._device.allocate_pinned(max(nbytes, 1))
        return buffer[:nbytes]


class DeviceDownload:
    """Copies of device arrays to host memory, started while the device computes.

    Parameters
    ----------
    device
        Device of the arrays.
    arrays
        Arrays to copy. They are kept until their copies end.
    """

    def __init__(self, device: Device, arrays: Sequence[DeviceArray]) -> None:
        self._arrays = list(arrays)
        self._events: list[tuple[Event, Event]] = []
        self._targets: list[Array] = []
        # Allocate all buffers before the first copy: a failure must not leave a copy running.
        pinned = [device.allocate_pinned(max(array.nbytes, 1))[: array.nbytes] for array in arrays]
        for array, target in zip(arrays, pinned, strict=True):
            self._events.append(device.copy_to_host_async(array, target))
        self._targets = [
            target.view(array.dtype).reshape(array.shape)
            for array, target in zip(arrays, pinned, strict=True)
        ]

    def __del__(self) -> None:
        """Wait for the copies: freed memory must not be reused while a copy still writes to it."""
        with suppress(DeviceError):
            self.wait()

    def wait(self) -> list[Array]:
        """Wait for all copies; returns the arrays in host memory."""
        if self._events and self._arrays:
            self._events[-1][1].wait()
        self._arrays.clear()
        return self._targets

    @property
    def seconds(self) -> float:
        """Device seconds of all copies; waits for them."""
        if not self._events:
            return 0.0
        return float(self._events[-1][1].seconds_since(self._events[0][0]))


def from_device_array(gpu: Gpu, array: Any) -> DeviceArray | None:
    """View a GPU array of CuPy, PyTorch or another package as a contiguous CuPy array.

    An array that is not contiguous is copied. None if the array is not on this GPU.
    """
    if is_host_array(array):
        return None
    view = array if isinstance(array, gpu.cupy.ndarray) else _view_of_other_package(gpu, array)
    if view is None or view.device.id != gpu.ordinal:
        return None
    _wait_for_caller(gpu)
    if view.flags.c_contiguous:
        return view
    gpu.make_current()
    with gpu.main_stream:
        return gpu.cupy.ascontiguousarray(view)


def _view_of_other_package(gpu: Gpu, array: Any) -> DeviceArray | None:
    detach = getattr(array, "detach", None)  # PyTorch does not export an array with a gradient
    source = array if detach is None else detach()
    if _exports_from(gpu, source):
        gpu.make_current()
        return gpu.cupy.from_dlpack(source)
    if not hasattr(source, "__dlpack_device__") and hasattr(source, "__cuda_array_interface__"):
        gpu.make_current()
        return gpu.cupy.asarray(source)
    return None


def _exports_from(gpu: Gpu, array: Any) -> bool:
    dlpack_device = getattr(array, "__dlpack_device__", None)
    if dlpack_device is None:
        return False
    return tuple(map(int, dlpack_device())) == (DLPACK_CUDA_DEVICE, gpu.ordinal)


def _wait_for_caller(gpu: Gpu) -> None:
    """Let the main stream wait for the caller's stream, which may still compute the array."""
    current = gpu.cupy.cuda.get_current_stream()
    if current.ptr not in (*DEFAULT_STREAM_ADDRESSES, gpu.stream_address):
        gpu.main_stream.wait_event(current.record())
