"""Memory that both sides reach, and copies of arrays whose rows are apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from lstm_cli.engines.cuda.runtime.device import Array, Device, DeviceArray, Event, is_host_array
from lstm_cli.errors import DeviceError

if TYPE_CHECKING:
    from lstm_cli.engines.cuda.runtime.gpu import Gpu


DEVICE_TO_HOST = 2  # of cudaMemcpyKind


class PinnedMemory:
    """Page-locked memory, from CuPy's pool, which keeps what is given back."""

    def __init__(self, gpu: Gpu) -> None:
        self._gpu = gpu

    def array(self, nbytes: int) -> Array:
        """(nbytes,) uint8; the memory goes back to the pool with the last array over it."""
        with self._gpu.failures(f"{nbytes:,} bytes cannot be page-locked"):
            self._gpu.make_current()
            memory: Any = self._gpu.cupy.cuda.alloc_pinned_memory(nbytes)
        return np.frombuffer(memory, np.uint8, nbytes)


def row_layout(array: DeviceArray) -> tuple[int, int, int]:
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


def copy_rows_to_host(gpu: Gpu, array: DeviceArray, target: int, stream: int) -> None:
    """Start the copy of an array to the host's memory, where it has no gaps, on a stream."""
    count, width, pitch = row_layout(array)
    source = array.data.ptr
    if count == 1:
        gpu.runtime.memcpyAsync(target, source, width, DEVICE_TO_HOST, stream)
    else:
        gpu.runtime.memcpy2DAsync(
            target, width, source, pitch, width, count, DEVICE_TO_HOST, stream
        )


# MERGED staging: """Batches on their way to the device, and results on their way back, beside what it computes.  Copies run beside kernels only from and to page-locked memory. """
PINNED_BUFFERS = 2


@dataclass(frozen=True, eq=False)
class Upload:
    """An array whose copy to the device was started.

    Attributes
    ----------
    array
        On the device; `Uploader.arrived` before it is used.
    begun, done
        Marks around the copy.
    source
        What is copied, which must live until then.
    """

    array: DeviceArray
    begun: Event
    done: Event
    source: Array

    def settle(self) -> None:
        """Wait for the copy, where nobody will use the array: its memory is then given back."""
        with suppress(DeviceError):
            self.done.wait()

    @property
    def seconds(self) -> float:
        """What the copy took; waits for it."""
        return self.done.seconds_since(self.begun)


class Uploader:
    """Copies arrays to a device.

    Parameters
    ----------
    device
        Where they go.
    dtype
        What arrays become that are not of its `room`.
    """

    def __init__(self, device: Device, dtype: str) -> None:
        self._device, self._dtype = device, np.dtype(dtype)
        self._buffers: list[Array | None] = [None] * PINNED_BUFFERS
        self._used: list[Event | None] = [None] * PINNED_BUFFERS
        self._turn = 0

    def room(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """Page-locked memory for an array, for `send_room`."""
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        held = self._device.pinned(max(nbytes, 1))[:nbytes]
        return np.ndarray(shape, dtype, held)

    def send_room(self, array: Array) -> Upload:
        """Start the copy of an array of `room`, or of some rows of it.

        Raises
        ------
        DeviceMemoryError
            The device has no room for it.
        """
        target = self._device.empty(array.shape, array.dtype.name)
        return Upload(target, *self._device.send(array, target), array)

    def send(self, array: Any) -> Upload:
        """Start the copy of any array of NumPy's, which may change as soon as this returns.

        It goes through one of two buffers, in turns.

        Raises
        ------
        DeviceMemoryError
            The device has no room for it.
        """
        turn, shape = self._turn, array.shape
        target = self._device.empty(shape, self._dtype.name)
        last = self._used[turn]
        if last is not None:
            last.wait()
        nbytes = math.prod(shape) * self._dtype.itemsize
        held = self._buffer(turn, nbytes)
        held.view(self._dtype).reshape(shape)[...] = array
        begun, done = self._device.send(held, target)
        self._used[turn], self._turn = done, (turn + 1) % PINNED_BUFFERS
        return Upload(target, begun, done, held)

    def arrived(self, sent: Upload) -> DeviceArray:
        """The array, for what is started from now on."""
        self._device.after(sent.done)
        return sent.array

    def _buffer(self, turn: int, nbytes: int) -> Array:
        """The buffer whose turn it is, at least so large."""
        held = self._buffers[turn]
        if held is None or held.nbytes < nbytes:
            held = self._buffers[turn] = self._device.pinned(max(nbytes, 1))
        return held[:nbytes]


class Download:
    """Arrays of the device on their way to the host's memory.

    Parameters
    ----------
    device
        Whose they are.
    arrays
        Held until their copies are done.
    """

    def __init__(self, device: Device, arrays: Sequence[DeviceArray]) -> None:
        self._arrays = list(arrays)
        self._marks: list[tuple[Event, Event]] = []
        self._targets: list[Array] = []
        # All of them before the first copy: a failure may not leave one behind that runs.
        held = [device.pinned(max(array.nbytes, 1))[: array.nbytes] for array in arrays]
        for array, target in zip(arrays, held, strict=True):
            self._marks.append(device.receive(array, target))
        self._targets = [
            target.view(array.dtype).reshape(array.shape)
            for array, target in zip(arrays, held, strict=True)
        ]

    def __del__(self) -> None:
        """No memory goes back to where others take it while a copy still writes there."""
        with suppress(DeviceError):
            self.wait()

    def wait(self) -> list[Array]:
        """The arrays in the host's memory, once they are all there."""
        if self._marks and self._arrays:
            self._marks[-1][1].wait()
        self._arrays.clear()
        return self._targets

    @property
    def seconds(self) -> float:
        """What the copies took, by the device's clock; waits for them."""
        if not self._marks:
            return 0.0
        return float(self._marks[-1][1].seconds_since(self._marks[0][0]))


# MERGED adoption: """Arrays of a caller's that are on the GPU already: CuPy's, PyTorch's, anyone's."""
DLPACK_CUDA_DEVICE = 2
"""kDLCUDA, of DLPack."""

DEFAULT_STREAM_ADDRESSES = (0, 1)
"""Addresses of the default stream, with which ours keeps in step."""


def from_device_array(gpu: Gpu, array: Any) -> DeviceArray | None:
    """An array in C order on the GPU, without a copy where that can be; None: it is not there."""
    if is_host_array(array):
        return None
    found = array if isinstance(array, gpu.cupy.ndarray) else _view_of_other_package(gpu, array)
    if found is None or found.device.id != gpu.ordinal:
        return None
    _wait_for_caller(gpu)
    if found.flags.c_contiguous:
        return found
    gpu.make_current()
    with gpu.main_stream:
        return gpu.cupy.ascontiguousarray(found)


def _view_of_other_package(gpu: Gpu, array: Any) -> DeviceArray | None:
    """Another package's array as one of CuPy's, if it is on this GPU."""
    detach = getattr(array, "detach", None)  # PyTorch exports nothing that has a gradient
    given = array if detach is None else detach()
    if _exported_by(gpu, given):
        gpu.make_current()
        return gpu.cupy.from_dlpack(given)
    if not hasattr(given, "__dlpack_device__") and hasattr(given, "__cuda_array_interface__"):
        gpu.make_current()
        return gpu.cupy.asarray(given)
    return None


def _exported_by(gpu: Gpu, array: Any) -> bool:
    tell = getattr(array, "__dlpack_device__", None)
    return tell is not None and tuple(map(int, tell())) == (DLPACK_CUDA_DEVICE, gpu.ordinal)


def _wait_for_caller(gpu: Gpu) -> None:
    """Behind what the caller's stream still computes, where that is one of its own."""
    current = gpu.cupy.cuda.get_current_stream()
    if current.ptr not in (*DEFAULT_STREAM_ADDRESSES, gpu.stream):
        gpu.main_stream.wait_event(current.record())
