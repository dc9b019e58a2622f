"""The device protocol of the cuda engine: memory, streams, copies, products and kernels.

CuPy drives a GPU (`lstm_cli.engines.cuda.runtime.gpu`). The tests run the same kernel sources on
the host through a shim. So all code above this protocol runs and is checked without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from lstm_cli.engines.protocols import Event

Array: TypeAlias = NDArray[Any]
DeviceArray: TypeAlias = Any
"""Array in the device's memory. It offers `shape`, `dtype`, `strides`, `size`, `nbytes`, `ndim`,
`reshape`, and basic slices, which are views. It offers no arithmetic, no NumPy function and no
assignment."""

Argument: TypeAlias = Any
"""Argument of a kernel: a `DeviceArray` or None (its address), an int (``long long``), or a float
(``double``)."""

LOOP_THREADS = 256
"""Threads per block of a kernel that loops over elements."""

LOOP_BLOCKS_PER_SM = 8
"""Largest number of blocks per multiprocessor of a kernel that loops over elements."""


@dataclass(frozen=True)
class Launch:
    """Sizes of a kernel launch.

    Attributes
    ----------
    grid
        Blocks in x, y and z.
    threads
        Threads per block, a multiple of 32.
    shared
        Bytes of dynamic shared memory per block.
    cluster
        Blocks in x per thread-block cluster; 1 without clusters. The source repeats the number in
        ``__cluster_dims__``.
    cooperative
        Launch cooperatively: all blocks run at the same time, since they wait for one another.
    """

    grid: tuple[int, int, int]
    threads: int
    shared: int = 0
    cluster: int = 1
    cooperative: bool = False

    @property
    def blocks(self) -> int:
        """Number of blocks of the whole grid."""
        x, y, z = self.grid
        return x * y * z


class Kernel(Protocol):
    """A compiled ``extern "C" __global__`` function."""

    def __call__(self, launch: Launch, *arguments: Argument) -> None:
        """Start the kernel behind all earlier work of the current stream.

        Raises
        ------
        DeviceError
            The blocks cannot run at the same time, or the device refuses the launch.
        """

    def resident(self, launch: Launch) -> int:
        """Count the blocks that can run at the same time on the whole device."""


class Device(Protocol):
    """Memory and kernels of one device.

    A *stream* runs its work in order. Work goes to the main stream, number 0, unless another one is
    chosen. Streams run concurrently; one waits for another only through events.

    Attributes
    ----------
    name
        Device name, such as ``cuda:0``.
    title
        Product name, such as ``NVIDIA H200``.
    architecture
        Compilation target, such as ``sm_90a``; ``host`` for the shim.
    multiprocessors
        Number of multiprocessors.
    shared_bytes
        Largest number of bytes of dynamic shared memory per block.
    largest_cluster
        Largest number of blocks per cluster; 1 without clusters.
    """

    name: str
    title: str
    architecture: str
    multiprocessors: int
    shared_bytes: int
    largest_cluster: int

    def use_stream(self, number: int) -> AbstractContextManager[None]:
        """Send work started inside the context to another stream.

        Memory belongs to the stream that allocated it. Once freed, it may serve that stream's next
        work. So keep an array that another stream uses until its own stream has waited for the
        other one.
        """

    def empty(self, shape: Sequence[int], dtype: str) -> DeviceArray:
        """Allocate an uninitialized array in C order; `dtype` is NumPy's name.

        Raises
        ------
        DeviceMemoryError
            Too little memory is free.
        """

    def zeros(self, shape: Sequence[int], dtype: str) -> DeviceArray:
        """Allocate an array of zeros in C order."""

    def fill_zero(self, array: DeviceArray) -> None:
        """Set a contiguous array to 0."""

    def copy(self, source: DeviceArray, target: DeviceArray) -> None:
        """Copy a contiguous array to another of its size and dtype."""

    def upload(self, array: Array) -> DeviceArray:
        """Copy to the device, in C order. `array` may change as soon as the call returns."""

    def upload_into(self, array: Array, target: DeviceArray) -> None:
        """Copy to an array of the device. `array` may change as soon as the call returns."""

    def download(self, array: DeviceArray) -> Array:
        """Copy to NumPy's memory; waits for the values."""

    def allocate_pinned(self, nbytes: int) -> Array:
        """Allocate (nbytes,) uint8 of page-locked host memory for asynchronous copies."""

    def copy_to_device_async(self, array: Array, target: DeviceArray) -> tuple[Event, Event]:
        """Copy from pinned memory to an array of the same size while the device computes.

        The copy starts after all earlier work. Only work that waits for the second event (see
        `wait_event`) may read `target`. `array` may not change before that event.

        Returns
        -------
        start, end
            Events around the copy.
        """

    def copy_to_host_async(self, array: DeviceArray, target: Array) -> tuple[Event, Event]:
        """Copy an array to pinned memory of the same size while the device computes.

        The copy starts after all earlier work. Before the second event, `target` may not be read,
        and `array` may neither change nor be freed.

        Returns
        -------
        start, end
            Events around the copy.
        """

    def wait_event(self, event: Any) -> None:
        """Let later work of the current stream wait for an event of a copy or a stream."""

    def from_device_array(self, array: Any) -> DeviceArray | None:
        """View a caller's array that is in this device's memory; None if it is elsewhere."""

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
        """Compute out = a b, or out += a b. Each row is contiguous; rows may be strided.

        Parameters
        ----------
        a, b
            (M, K) and (K, N), or transposed; of the precision's operand type. `a` may be a stack
            (S, M, K), not transposed; b multiplies each of its matrices.
        out
            (M, N) of the accumulator type, or (S, M, N).
        precision
            A name of `PRECISIONS`.
        """

    def compile(self, source: str, names: Sequence[str]) -> Mapping[str, Kernel]:
        """Compile the kernels `names` of a source, or load them from the kernel cache."""

    @property
    def versions(self) -> Mapping[str, str]:
        """Versions of driver and libraries, by name."""

    def record_event(self) -> Event:
        """Record an event after all earlier work of the current stream."""

    def wait(self) -> None:
        """Wait until all work of all streams is done."""

    def memory(self) -> tuple[int, int]:
        """Free and total bytes of the device. Unused memory of this program's pool is free."""


@cache
def dtype_name(dtype: np.dtype[Any]) -> str:
    """Name of a dtype, such as ``float32``. Cached, since NumPy builds the name on every call."""
    return dtype.name


def is_host_array(array: Any) -> bool:
    """True if an array is in NumPy's memory."""
    return isinstance(array, np.ndarray)


_KERNELS: WeakKeyDictionary[Device, dict[Hashable, Mapping[str, Kernel]]] = WeakKeyDictionary()


def cached_kernels(
    device: Device, key: Hashable, names: Sequence[str], source: Callable[[], str]
) -> Mapping[str, Kernel]:
    """Compile the kernels `names` of a source once per key and device.

    `source` is called only if the kernels are not compiled yet.
    """
    kernels = _KERNELS.setdefault(device, {})
    compiled = kernels.get(key)
    if compiled is None:
        compiled = kernels[key] = device.compile(source(), names)
    return compiled


def grid_stride_launch(device: Device, items: int, per_block: int = LOOP_THREADS) -> Launch:
    """Launch for a grid-stride loop over `items` elements, `per_block` at a time per block."""
    blocks = min(-(-items // per_block), LOOP_BLOCKS_PER_SM * device.multiprocessors)
    return Launch((max(1, blocks), 1, 1), LOOP_THREADS)


class EventTimer(Mapping[str, float]):
    """Device seconds by part of a layer's work; reading a value waits for the device.

    A part that starts again adds to its own seconds.

    Parameters
    ----------
    device
        Device whose events are timed.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._parts: list[tuple[str, Event]] = []
        self._end: Event | None = None
        self._seconds: dict[str, float] | None = None

    def start(self, part: str) -> None:
        """Start a part: the device time of work started from now on counts for it."""
        self._parts.append((part, self._device.record_event()))

    def stop(self) -> None:
        """End the last part."""
        self._end = self._device.record_event()

    def __getitem__(self, part: str) -> float:
        if self._seconds is None:
            self._seconds = self._read()
        return self._seconds[part]

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self._parts))

    def __len__(self) -> int:
        return len(dict(self._parts))

    def _read(self) -> dict[str, float]:
        ends = [event for _, event in self._parts[1:]] + [self._end or self._device.record_event()]
        seconds: dict[str, float] = {}
        for (part, start), end in zip(self._parts, ends, strict=True):
            seconds[part] = seconds.get(part, 0.0) + end.seconds_since(start)
        return seconds


class EventInterval(Mapping[str, float]):
    """Device seconds of one part, between two events; reading the value waits for the device."""

    def __init__(self, part: str, start: Event, end: Event) -> None:
        self._part, self._start, self._end = part, start, end
        self._seconds: float | None = None

    def __getitem__(self, part: str) -> float:
        if part != self._part:
            raise KeyError(part)
        if self._seconds is None:
            self._seconds = self._end.seconds_since(self._start)
        return self._seconds

    def __iter__(self) -> Iterator[str]:
        return iter([self._part])

    def __len__(self) -> int:
        return 1
