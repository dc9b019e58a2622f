"""A GPU driven by CuPy: memory, streams, copies, products, kernels, events.

The main stream is synchronized with the legacy default stream in both directions. So a caller's
CuPy or PyTorch work on the default stream needs no synchronization. Copies that overlap with
kernels have a stream of their own per direction, ordered by events.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, cached_property
from typing import Any

import numpy as np

from lstm_cli.engines.cuda.runtime import memory
from lstm_cli.engines.cuda.runtime.cublas import Blas, gemm_arguments
from lstm_cli.engines.cuda.runtime.device import Array, DeviceArray
from lstm_cli.engines.cuda.runtime.kernel import (
    GpuKernel,
    compile_source,
    gpu_architecture,
    load_kernels,
    max_cluster_blocks,
)
from lstm_cli.errors import DeviceError, DeviceMemoryError

STAGED_BYTES = 32 << 20
"""Largest copy, in bytes, that goes through pinned memory of this engine."""

MULTIPROCESSOR_COUNT, MAX_SHARED_OPTIN = 16, 97  # of cudaDeviceAttr
HOST_TO_DEVICE, DEVICE_TO_DEVICE = 1, 3  # of cudaMemcpyKind


class GpuEvent:
    """An `lstm_cli.engines.cuda.runtime.device.Event` of a GPU."""

    def __init__(self, gpu: Gpu, stream: Any) -> None:
        self._gpu = gpu
        with gpu.failures("an event of the GPU cannot be recorded"):
            gpu.make_current()
            self.event = gpu.cupy.cuda.Event()
            self.event.record(stream)

    def seconds_since(self, earlier: Any) -> float:
        """Seconds between two events of one stream or two; waits for both."""
        with self._gpu.failures("the GPU's time cannot be read"):
            earlier.event.synchronize()
            self.event.synchronize()
            milliseconds = self._gpu.cupy.cuda.get_elapsed_time(earlier.event, self.event)
        return float(milliseconds) / 1e3

    def wait(self) -> None:
        """Wait until all work before the event is done."""
        with self._gpu.failures("the GPU failed in a computation"):
            self.event.synchronize()


class Streams:
    """CUDA streams by number, created on first use, each with a cuBLAS handle.

    Each host thread chooses its own current stream. Only the main stream is synchronized with the
    legacy default stream; the others are ordered by events alone. CuPy's memory pool keeps freed
    memory for the stream that freed it.

    Parameters
    ----------
    cupy
        The package; its current device is the GPU.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._streams: dict[int, Any] = {0: cupy.cuda.Stream(non_blocking=False)}
        self._handles: dict[int, Blas] = {}
        self._choice = threading.local()

    @property
    def _number(self) -> int:
        number: int = getattr(self._choice, "number", 0)
        return number

    @property
    def main(self) -> Any:
        """The main stream."""
        return self._streams[0]

    @property
    def current(self) -> Any:
        """The stream that this thread has chosen."""
        return self._streams[self._number]

    @property
    def blas(self) -> Blas:
        """The cuBLAS handle of the current stream."""
        if self._number not in self._handles:
            self._handles[self._number] = Blas()
        return self._handles[self._number]

    @contextmanager
    def use(self, number: int) -> Iterator[None]:
        """Choose a stream; a new one is created on the current device."""
        if number not in self._streams:
            self._streams[number] = self._cupy.cuda.Stream(non_blocking=True)
        before, self._choice.number = self._number, number
        try:
            yield
        finally:
            self._choice.number = before

    def synchronize(self) -> None:
        """Wait for all streams."""
        for stream in self._streams.values():
            stream.synchronize()


class Gpu:
    """An `lstm_cli.engines.cuda.runtime.device.Device` that is a GPU.

    Parameters
    ----------
    ordinal
        The N of ``cuda:N``.

    Raises
    ------
    DeviceError
        CuPy, the driver or the GPU cannot be used.
    """

    def __init__(self, ordinal: int = 0) -> None:
        import cupy
        from cupy_backends.cuda.api import driver, runtime

        self.cupy: Any = cupy
        self.cuda: Any = driver
        self.runtime: Any = runtime
        self.ordinal, self.name = ordinal, f"cuda:{ordinal}"
        self.errors = (runtime.CUDARuntimeError, driver.CUDADriverError)
        self._device = cupy.cuda.Device(ordinal)
        with self.failures(f"{self.name} does not start"), self._device:
            properties = runtime.getDeviceProperties(ordinal)
            self.multiprocessors = self._attribute(MULTIPROCESSOR_COUNT)
            self.shared_bytes = self._attribute(MAX_SHARED_OPTIN)
            self._streams = Streams(cupy)
            self._upload_stream: Any = cupy.cuda.Stream(non_blocking=True)
            self._download_stream: Any = cupy.cuda.Stream(non_blocking=True)
        self.title = properties["name"].decode(errors="replace")
        self.capability = int(properties["major"]), int(properties["minor"])
        self.architecture = gpu_architecture(self.capability)
        self.largest_cluster = max_cluster_blocks(self.capability)
        self._staged: deque[tuple[Any, Any]] = deque()

    def _attribute(self, number: int) -> int:
        return int(self.runtime.deviceGetAttribute(number, self.ordinal))

    @property
    def main_stream(self) -> Any:
        """The main stream."""
        return self._streams.main

    @property
    def stream_address(self) -> int:
        """Address of the current stream."""
        return int(self._streams.current.ptr)

    @contextmanager
    def use_stream(self, number: int) -> Iterator[None]:
        """Send work to another stream; see `Device.use_stream`."""
        self.make_current()
        with self._streams.use(number):
            yield

    @cached_property
    def versions(self) -> Mapping[str, str]:
        """Versions of driver, runtime, CuPy and NVRTC, by name."""
        from cupy_backends.cuda.libs import nvrtc

        runtime = self.runtime
        return {
            "cuda driver": format_cuda_version(runtime.driverGetVersion()),
            "cuda runtime": format_cuda_version(runtime.runtimeGetVersion()),
            "cupy": str(self.cupy.__version__),
            "nvrtc": ".".join(map(str, nvrtc.getVersion())),
        }

    def make_current(self) -> None:
        """Make this GPU the current device of the calling thread."""
        if self.runtime.getDevice() != self.ordinal:
            self.runtime.setDevice(self.ordinal)

    @contextmanager
    def failures(self, message: str) -> Iterator[None]:
        """Turn CUDA errors into a `DeviceError` with this message."""
        try:
            yield
        except self.errors as error:
            raise DeviceError(message, found=str(error)) from error

    # Memory

    def empty(self, shape: Sequence[int], dtype: str) -> DeviceArray:
        """Allocate an uninitialized array; see `Device.empty`."""
        out_of_memory = self.cupy.cuda.memory.OutOfMemoryError
        try:
            return self._allocate(shape, dtype)
        except out_of_memory:
            pass
        with self._device:  # the pool of this device
            self.cupy.get_default_memory_pool().free_all_blocks()
        try:
            return self._allocate(shape, dtype)
        except out_of_memory:
            needed = math.prod(shape) * np.dtype(dtype).itemsize
        free, total = self.memory()
        raise DeviceMemoryError(needed, free, total)

    def _allocate(self, shape: Sequence[int], dtype: str) -> DeviceArray:
        with self._device, self._streams.current:
            return self.cupy.ndarray(tuple(shape), np.dtype(dtype))

    def zeros(self, shape: Sequence[int], dtype: str) -> DeviceArray:
        """Allocate an array of zeros."""
        array = self.empty(shape, dtype)
        self.fill_zero(array)
        return array

    def fill_zero(self, array: DeviceArray) -> None:
        """Set a contiguous array to 0."""
        if array.nbytes:
            with self.failures("memory cannot be cleared"):
                self.make_current()
                self.runtime.memsetAsync(array.data.ptr, 0, array.nbytes, self.stream_address)

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the GPU. Unused memory of CuPy's pool is free."""
        with self.failures("the GPU's memory cannot be read"), self._device:
            free, total = self.runtime.memGetInfo()
            return int(free) + int(self.cupy.get_default_memory_pool().free_bytes()), int(total)

    def allocate_pinned(self, nbytes: int) -> Array:
        """Allocate (nbytes,) uint8 of page-locked host memory."""
        return memory.allocate_pinned(self, nbytes)

    # Copies

    def _copy(self, target: int, source: int, nbytes: int, kind: int, stream: int) -> None:
        if nbytes:
            with self.failures("a copy failed"):
                self.make_current()
                self.runtime.memcpyAsync(target, source, nbytes, kind, stream)

    def copy(self, source: DeviceArray, target: DeviceArray) -> None:
        """Copy a contiguous array to another."""
        self._copy(
            target.data.ptr, source.data.ptr, source.nbytes, DEVICE_TO_DEVICE, self.stream_address
        )

    def upload(self, array: Array) -> DeviceArray:
        """Copy to the device."""
        target = self.empty(array.shape, array.dtype.name)
        self.upload_into(array, target)
        return target

    def upload_into(self, array: Array, target: DeviceArray) -> None:
        """Copy to an array of the device."""
        source = np.ascontiguousarray(array)
        nbytes, address, stream = source.nbytes, source.ctypes.data, self.stream_address
        if nbytes > STAGED_BYTES:  # the driver copies it in parts before it returns
            self._copy(target.data.ptr, address, nbytes, HOST_TO_DEVICE, stream)
        elif nbytes:
            while self._staged and self._staged[0][0].event.done:
                self._staged.popleft()
            pinned = self.allocate_pinned(nbytes)
            pinned[:] = source.reshape(-1).view(np.uint8)
            self._copy(target.data.ptr, pinned.ctypes.data, nbytes, HOST_TO_DEVICE, stream)
            self._staged.append((self.record_event(), pinned))

    def copy_to_device_async(self, array: Array, target: DeviceArray) -> tuple[GpuEvent, GpuEvent]:
        """Copy from pinned memory while kernels run; see `Device.copy_to_device_async`."""
        stream = self._upload_stream
        with self.failures("a copy failed"):
            self.make_current()
            stream.wait_event(self.record_event().event)
            start = GpuEvent(self, stream)
            self._copy(target.data.ptr, array.ctypes.data, array.nbytes, HOST_TO_DEVICE, stream.ptr)
            return start, GpuEvent(self, stream)

    def copy_to_host_async(self, array: DeviceArray, target: Array) -> tuple[GpuEvent, GpuEvent]:
        """Copy to pinned memory while kernels run; see `Device.copy_to_host_async`."""
        stream = self._download_stream
        with self.failures("a copy from the GPU failed"):
            self.make_current()
            stream.wait_event(self.record_event().event)
            start = GpuEvent(self, stream)
            if array.nbytes:
                memory.copy_rows_to_host(self, array, target.ctypes.data, int(stream.ptr))
            return start, GpuEvent(self, stream)

    def wait_event(self, event: Any) -> None:
        """Let later work of the current stream wait for an event."""
        with self.failures("the GPU cannot wait for an event"):
            self.make_current()
            self._streams.current.wait_event(event.event)

    def download(self, array: DeviceArray) -> Array:
        """Copy to NumPy's memory; waits for the values."""
        target = np.empty(array.shape, array.dtype)
        if target.nbytes == 0:
            return target
        flat = target.reshape(-1).view(np.uint8)
        staged = target.nbytes <= STAGED_BYTES
        buffer = self.allocate_pinned(target.nbytes) if staged else flat
        with self.failures("a copy from the GPU failed, or a computation before it"):
            self.make_current()
            memory.copy_rows_to_host(self, array, buffer.ctypes.data, self.stream_address)
            self._streams.current.synchronize()
        if staged:
            flat[:] = buffer
        return target

    def from_device_array(self, array: Any) -> DeviceArray | None:
        """View a caller's array that is in this GPU's memory; None if it is elsewhere."""
        return memory.from_device_array(self, array)

    # Computing

    def multiply(
        self,
        a: DeviceArray,
        b: DeviceArray,
        out: DeviceArray,
        precision: str,
        *,
        transpose_a: bool = False,
        transpose_b: bool = False,
        add: bool = False,
    ) -> None:
        """Compute out = a b, or out += a b; see `Device.multiply`."""
        gemm = gemm_arguments(a, b, out, transpose_a=transpose_a, transpose_b=transpose_b)
        if gemm.m == 0 or gemm.n == 0 or gemm.count == 0:
            return
        if gemm.k == 0:
            if not add:
                self._clear_rows(out)
            return
        with self.failures("a product failed"), self._device, self._streams.current:
            self._streams.blas.multiply(gemm, precision, add=add)

    def _clear_rows(self, out: DeviceArray) -> None:
        if out.flags.c_contiguous:
            self.fill_zero(out)
            return
        for part in out:
            self._clear_rows(part)

    def compile(self, source: str, names: Sequence[str]) -> Mapping[str, GpuKernel]:
        """Compile the kernels `names` of a source."""
        compiled = compile_source(source, names, self.architecture)
        with self.failures("a kernel cannot be loaded"), self._device:
            return load_kernels(self, compiled, names)

    def record_event(self) -> GpuEvent:
        """Record an event after all earlier work of the current stream."""
        return GpuEvent(self, self._streams.current)

    def wait(self) -> None:
        """Wait until all work of all streams is done."""
        with self.failures("the GPU failed in a computation"):
            self.make_current()
            self._streams.synchronize()
            self._upload_stream.synchronize()
            self._download_stream.synchronize()


@cache
def shared_gpu(ordinal: int) -> Gpu:
    """The GPU ``cuda:<ordinal>``, created once, so that networks share compiled kernels."""
    return Gpu(ordinal)


def format_cuda_version(version: int) -> str:
    """Format CUDA's version number: 12040 is ``12.4``."""
    return f"{version // 1000}.{version % 1000 // 10}"
