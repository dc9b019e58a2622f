"""A GPU, driven by CuPy: memory, copies, products, kernels, clocks.

Everything runs in order on one stream, which waits for the legacy default stream and is waited for
by it, so that what a caller's CuPy or PyTorch does there needs no synchronisation. Copies that may
overlap run on a stream for either way, ordered by events.
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

from lstm_cli.engines.cuda.runtime import memory as adoption
from lstm_cli.engines.cuda.runtime.cublas import Blas, gemm_arguments
from lstm_cli.engines.cuda.runtime.device import Array, DeviceArray
from lstm_cli.engines.cuda.runtime.kernel import (
    GpuKernel,
    compile_source,
    gpu_architecture,
    load_kernels,
    max_cluster_blocks,
)
from lstm_cli.engines.cuda.runtime.memory import PinnedMemory, copy_rows_to_host
from lstm_cli.errors import DeviceError, DeviceMemoryError


class GpuEvent:
    """A moment in the order of a stream."""

    def __init__(self, gpu: Gpu, stream: Any) -> None:
        self._gpu = gpu
        with gpu.failures("the GPU's clock"):
            gpu.make_current()
            self.event = gpu.cupy.cuda.Event()
            self.event.record(stream)

    def seconds_since(self, earlier: Any) -> float:
        """Between two marks, of the same lane or of two; waits for both."""
        with self._gpu.failures("the GPU's clock"):
            earlier.event.synchronize()
            self.event.synchronize()
            milliseconds = self._gpu.cupy.cuda.get_elapsed_time(earlier.event, self.event)
        return float(milliseconds) / 1e3

    def wait(self) -> None:
        """Until everything before it is done."""
        with self._gpu.failures("the GPU failed in what it computed"):
            self.event.synchronize()


class Streams:
    """The streams that work runs on, made when they are first used; each thread chooses its own.

    The main one waits for the legacy default stream and is waited for by it. The others do not:
    they are beside it by marks alone. CuPy's pool of memory keeps what a stream gives back for
    that stream.

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
        """The main lane's stream."""
        return self._streams[0]

    @property
    def stream(self) -> Any:
        """The stream of the lane that is chosen."""
        return self._streams[self._number]

    @property
    def blas(self) -> Blas:
        """Products of the lane that is chosen."""
        if self._number not in self._handles:
            self._handles[self._number] = Blas()
        return self._handles[self._number]

    @contextmanager
    def chosen(self, number: int) -> Iterator[None]:
        """Choose a lane; its stream is made on the current device."""
        if number not in self._streams:
            self._streams[number] = self._cupy.cuda.Stream(non_blocking=True)
        before, self._choice.number = self._number, number
        try:
            yield
        finally:
            self._choice.number = before

    def synchronize(self) -> None:
        """Wait for all of them."""
        for stream in self._streams.values():
            stream.synchronize()


STAGED_BYTES = 32 << 20
"""Copies up to so large go through memory of ours that the device reaches by itself."""

MULTIPROCESSOR_COUNT, MAX_SHARED_OPTIN = 16, 97  # of cudaDeviceAttr
HOST_TO_DEVICE, DEVICE_TO_DEVICE = 1, 3  # of cudaMemcpyKind


class Gpu:
    """A `lstm_cli.engines.cuda.runtime.device.Device` that is a GPU.

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
            self._lanes = Streams(cupy)
            self.copy_stream: Any = cupy.cuda.Stream(non_blocking=True)
            self.return_stream: Any = cupy.cuda.Stream(non_blocking=True)
        self.title = properties["name"].decode(errors="replace")
        self.capability = int(properties["major"]), int(properties["minor"])
        self.architecture = gpu_architecture(self.capability)
        self.largest_cluster = max_cluster_blocks(self.capability)
        self._pinned = PinnedMemory(self)
        self._staged: deque[tuple[Any, Any]] = deque()

    def _attribute(self, number: int) -> int:
        return int(self.runtime.deviceGetAttribute(number, self.ordinal))

    @property
    def main_stream(self) -> Any:
        """The main lane's stream."""
        return self._lanes.main

    @property
    def stream(self) -> int:
        """Address of the stream that work goes to."""
        return int(self._lanes.stream.ptr)

    @contextmanager
    def lane(self, number: int) -> Iterator[None]:
        """Let work go to another lane; see `lstm_cli.engines.cuda.runtime.device.Device`."""
        self.make_current()
        with self._lanes.chosen(number):
            yield

    @cached_property
    def versions(self) -> Mapping[str, str]:
        """Of what computes here, by name."""
        from cupy_backends.cuda.libs import nvrtc

        runtime = self.runtime
        return {
            "cuda driver": format_cuda_version(runtime.driverGetVersion()),
            "cuda runtime": format_cuda_version(runtime.runtimeGetVersion()),
            "cupy": str(self.cupy.__version__),
            "nvrtc": ".".join(map(str, nvrtc.getVersion())),
        }

    def make_current(self) -> None:
        """Let this thread's CUDA calls be about this GPU."""
        if self.runtime.getDevice() != self.ordinal:
            self.runtime.setDevice(self.ordinal)

    @contextmanager
    def failures(self, what: str) -> Iterator[None]:
        """Say of CUDA's errors what they are errors of."""
        try:
            yield
        except self.errors as error:
            raise DeviceError(what, found=str(error)) from error

    # Memory

    def empty(self, shape: Sequence[int], dtype: str) -> DeviceArray:
        """Memory for an array; see `lstm_cli.engines.cuda.runtime.device.Device`."""
        out_of_memory = self.cupy.cuda.memory.OutOfMemoryError
        try:
            return self._allocated(shape, dtype)
        except out_of_memory:
            pass
        with self._device:  # whose pool it is
            self.cupy.get_default_memory_pool().free_all_blocks()
        try:
            return self._allocated(shape, dtype)
        except out_of_memory:
            needed = math.prod(shape) * np.dtype(dtype).itemsize
        raise DeviceMemoryError(needed, *self.memory())

    def _allocated(self, shape: Sequence[int], dtype: str) -> DeviceArray:
        with self._device, self._lanes.stream:
            return self.cupy.ndarray(tuple(shape), np.dtype(dtype))

    def zeros(self, shape: Sequence[int], dtype: str) -> DeviceArray:
        """The same filled with 0."""
        made = self.empty(shape, dtype)
        self.fill_zero(made)
        return made

    def fill_zero(self, array: DeviceArray) -> None:
        """Set an array without gaps to 0."""
        if array.nbytes:
            with self.failures("memory cannot be cleared"):
                self.make_current()
                self.runtime.memsetAsync(array.data.ptr, 0, array.nbytes, self.stream)

    def memory(self) -> tuple[int, int]:
        """Bytes free and in all; what CuPy's pool holds but does not use is free."""
        with self.failures("the GPU's memory"), self._device:
            free, total = self.runtime.memGetInfo()
            return int(free) + int(self.cupy.get_default_memory_pool().free_bytes()), int(total)

    def pinned(self, nbytes: int) -> Array:
        """(nbytes,) uint8 of the host's memory that the device reaches by itself."""
        return self._pinned.array(nbytes)

    # Copies

    def _copy(self, target: int, source: int, nbytes: int, kind: int, stream: int) -> None:
        if nbytes:
            with self.failures("a copy failed"):
                self.make_current()
                self.runtime.memcpyAsync(target, source, nbytes, kind, stream)

    def copy(self, source: DeviceArray, target: DeviceArray) -> None:
        """All of an array without gaps to another."""
        places = target.data.ptr, source.data.ptr
        self._copy(*places, source.nbytes, DEVICE_TO_DEVICE, self.stream)

    def upload(self, array: Array) -> DeviceArray:
        """A copy in the device's memory."""
        made = self.empty(array.shape, array.dtype.name)
        self.upload_into(array, made)
        return made

    def upload_into(self, array: Array, target: DeviceArray) -> None:
        """The same, into memory that is there."""
        given = np.ascontiguousarray(array)
        if given.nbytes > STAGED_BYTES:  # the driver takes it in pieces, before it returns
            place = given.ctypes.data
            self._copy(target.data.ptr, place, given.nbytes, HOST_TO_DEVICE, self.stream)
        elif given.nbytes:
            while self._staged and self._staged[0][0].event.done:
                self._staged.popleft()
            held = self.pinned(given.nbytes)
            held[:] = given.reshape(-1).view(np.uint8)
            place = held.ctypes.data
            self._copy(target.data.ptr, place, given.nbytes, HOST_TO_DEVICE, self.stream)
            self._staged.append((self.mark(), held))

    def send(self, array: Array, target: DeviceArray) -> tuple[GpuEvent, GpuEvent]:
        """Copy from pinned memory beside what computes; see `Device.send`."""
        with self.failures("a copy failed"):
            self.make_current()
            self.copy_stream.wait_event(self.mark().event)
            begun = GpuEvent(self, self.copy_stream)
            places = target.data.ptr, array.ctypes.data
            self._copy(*places, array.nbytes, HOST_TO_DEVICE, self.copy_stream.ptr)
            return begun, GpuEvent(self, self.copy_stream)

    def receive(self, array: DeviceArray, target: Array) -> tuple[GpuEvent, GpuEvent]:
        """Copy to pinned memory beside what computes; see `Device.receive`."""
        with self.failures("a copy from the GPU failed"):
            self.make_current()
            self.return_stream.wait_event(self.mark().event)
            begun = GpuEvent(self, self.return_stream)
            if array.nbytes:
                copy_rows_to_host(self, array, target.ctypes.data, int(self.return_stream.ptr))
            return begun, GpuEvent(self, self.return_stream)

    def after(self, mark: Any) -> None:
        """Let what this lane is given from now on wait for a mark; see `Device.after`."""
        with self.failures("the GPU's order"):
            self.make_current()
            self._lanes.stream.wait_event(mark.event)

    def download(self, array: DeviceArray) -> Array:
        """A copy in NumPy's memory."""
        made = np.empty(array.shape, array.dtype)
        if made.nbytes == 0:
            return made
        staged = made.nbytes <= STAGED_BYTES
        held = self.pinned(made.nbytes) if staged else made.reshape(-1).view(np.uint8)
        with self.failures("a copy from the GPU failed, or what was computed before it"):
            self.make_current()
            copy_rows_to_host(self, array, held.ctypes.data, self.stream)
            self._lanes.stream.synchronize()
        if staged:
            made.reshape(-1).view(np.uint8)[:] = held
        return made

    def adopt(self, array: Any) -> DeviceArray | None:
        """A caller's array that is in this device's memory already."""
        return adoption.from_device_array(self, array)

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
        """out = a b, or out + a b; see `lstm_cli.engines.cuda.runtime.device.Device`."""
        given = gemm_arguments(a, b, out, transpose_a=transpose_a, transpose_b=transpose_b)
        if given.m == 0 or given.n == 0 or given.count == 0:
            return
        if given.k == 0:
            if not add:
                self._clear_rows(out)
            return
        with self.failures("a product failed"), self._device, self._lanes.stream:
            self._lanes.blas.multiply(given, precision, add=add)

    def _clear_rows(self, out: DeviceArray) -> None:
        if out.flags.c_contiguous:
            self.fill_zero(out)
            return
        for part in out:
            self._clear_rows(part)

    def compile(self, source: str, names: Sequence[str]) -> Mapping[str, GpuKernel]:
        """The kernels `names` of a source."""
        compiled = compile_source(source, names, self.architecture)
        with self.failures("a kernel cannot be loaded"), self._device:
            return load_kernels(self, compiled, names)

    def mark(self) -> GpuEvent:
        """Note the moment after all that was started."""
        return GpuEvent(self, self._lanes.stream)

    def wait(self) -> None:
        """Until everything that was started is done."""
        with self.failures("the GPU failed in what it computed"):
            self.make_current()
            self._lanes.synchronize()
            self.copy_stream.synchronize()
            self.return_stream.synchronize()


@cache
def shared_gpu(ordinal: int) -> Gpu:
    """The GPU, made once: what was compiled for one network is there for the next."""
    return Gpu(ordinal)


def format_cuda_version(version: int) -> str:
    """CUDA's number of a version as people write it."""
    return f"{version // 1000}.{version % 1000 // 10}"
