"""What the cuda engine asks of a device: memory, copies, products, compiled kernels, clocks.

CuPy drives a GPU (`lstm_cli.engines.cuda.runtime.gpu`). The tests drive the same kernel sources on the
host through a shim, so that everything above this protocol is run and checked without a GPU.
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

Array: TypeAlias = NDArray[Any]
DeviceArray: TypeAlias = Any
"""An array in the device's memory. What may be asked of it: `shape`, `dtype`, `strides`, `size`,
`nbytes`, `ndim`, `reshape`, and basic slices, which are views. Nothing else: no arithmetic, no
NumPy function, no assignment."""

Argument: TypeAlias = Any
"""Of a kernel: a `DeviceArray` or None (its address), an int (``long long``), a float
(``double``)."""


@dataclass(frozen=True)
class Launch:
    """How many threads run a kernel.

    Attributes
    ----------
    grid
        Blocks in x, y and z.
    threads
        In a block, a multiple of 32.
    shared
        Bytes of dynamic shared memory a block.
    cluster
        Blocks in x that form a thread-block cluster; 1: none. The source says the same with
        ``__cluster_dims__``, for that is how a cluster is launched.
    together
        All blocks must run at the same time, for they wait for one another.
    """

    grid: tuple[int, int, int]
    threads: int
    shared: int = 0
    cluster: int = 1
    together: bool = False

    @property
    def blocks(self) -> int:
        """All of them."""
        x, y, z = self.grid
        return x * y * z


class Kernel(Protocol):
    """A compiled ``extern "C" __global__`` function."""

    def __call__(self, launch: Launch, *arguments: Argument) -> None:
        """Start it; it runs behind everything that was started before it in its lane.

        Raises
        ------
        DeviceError
            The blocks cannot run together, or the device refuses the launch.
        """

    def resident(self, launch: Launch) -> int:
        """How many blocks can run at the same time on the whole device."""


class Event(Protocol):
    """A moment in the order of what a lane does."""

    def seconds_since(self, earlier: Any) -> float:
        """Between two marks; waits for this one."""

    def wait(self) -> None:
        """Until everything before it is done."""


class Device(Protocol):
    """Memory and kernels of one device.

    What is started runs in the order of a *lane*: the main one, number 0, unless another is chosen.
    Lanes run beside one another, and know of one another only by marks that they wait for.

    Attributes
    ----------
    name
        Such as ``cuda:0``.
    title
        Such as ``NVIDIA H200``.
    architecture
        What kernels are compiled for, such as ``sm_90a``; ``host`` for the shim.
    multiprocessors
        How many there are.
    shared_bytes
        Dynamic shared memory that a block may use at most.
    largest_cluster
        Blocks of a cluster at most; 1 where there are none.
    """

    name: str
    title: str
    architecture: str
    multiprocessors: int
    shared_bytes: int
    largest_cluster: int

    def lane(self, number: int) -> AbstractContextManager[None]:
        """What is started inside goes into another lane.

        Memory belongs to the lane in which it was asked for: once nobody holds it, it may be given
        to what that lane does next. So whoever lets another lane use it holds it until its own
        lane waits for the other.
        """

    def empty(self, shape: Sequence[int], dtype: str) -> DeviceArray:
        """Memory for an array in C order, not filled; dtype in NumPy's words.

        Raises
        ------
        DeviceMemoryError
            Not enough is free.
        """

    def zeros(self, shape: Sequence[int], dtype: str) -> DeviceArray:
        """The same filled with 0."""

    def fill_zero(self, array: DeviceArray) -> None:
        """Set an array without gaps to 0."""

    def copy(self, source: DeviceArray, target: DeviceArray) -> None:
        """All of an array without gaps to another of its size and dtype."""

    def upload(self, array: Array) -> DeviceArray:
        """A copy in the device's memory, C order; `array` may change as soon as this returns."""

    def upload_into(self, array: Array, target: DeviceArray) -> None:
        """The same, into memory that is there."""

    def download(self, array: DeviceArray) -> Array:
        """A copy in NumPy's memory, waiting for all that gives its values."""

    def pinned(self, nbytes: int) -> Array:
        """(nbytes,) uint8 of NumPy's memory that the device reaches by itself, for `send`."""

    def send(self, array: Array, target: DeviceArray) -> tuple[Event, Event]:
        """Copy from pinned memory to an array of its bytes, while the device computes.

        The copy begins after all that was started before, and only who waits for it sees it:
        `after` its second mark. `array` may not change before that mark either.

        Returns
        -------
        begun, done
            Marks around the copy.
        """

    def receive(self, array: DeviceArray, target: Array) -> tuple[Event, Event]:
        """Copy an array to pinned memory of its bytes, while the device computes.

        The copy begins after all that was started before. Until its second mark is waited for,
        `target` may not be read, and `array` not change nor be given back.

        Returns
        -------
        begun, done
            Marks around the copy.
        """

    def after(self, mark: Any) -> None:
        """What is started from now on in this lane waits for a mark, of a `send` or a lane."""

    def adopt(self, array: Any) -> DeviceArray | None:
        """An array of the caller's that is in this device's memory already; None: it is not."""

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
        """out = a b, or out + a b: matrices whose rows have no gaps, but may be apart.

        Parameters
        ----------
        a, b
            (M, K) and (K, N), or turned; of the precision's `element`. `a` may be a stack
            (S, M, K), not turned, all of which b multiplies.
        out
            (M, N) of its `real`, or (S, M, N).
        precision
            A name of `PRECISIONS`.
        """

    def compile(self, source: str, names: Sequence[str]) -> Mapping[str, Kernel]:
        """The kernels `names` of a source, from the kernel cache if they were made before."""

    def mark(self) -> Event:
        """Note the moment after all that was started in this lane."""

    def wait(self) -> None:
        """Until everything that was started is done."""

    def memory(self) -> tuple[int, int]:
        """Bytes free and in all. What this program holds but does not use counts as free."""


@cache
def dtype_name(dtype: np.dtype[Any]) -> str:
    """Its name, such as ``float32``; NumPy makes it anew each time it is asked."""
    return dtype.name


def is_host_array(array: Any) -> bool:
    """Whether an array is in NumPy's memory."""
    return isinstance(array, np.ndarray)


# MERGED launches: """How many threads a kernel over many numbers gets, and the loop that they share them in."""
LOOP_THREADS = 256
"""Of a block of a kernel that goes through numbers one by one."""

LOOP_BLOCKS_PER_SM = 8
"""Of such a kernel for each multiprocessor, at most: then every thread has several numbers."""


_KERNELS: WeakKeyDictionary[Device, dict[Hashable, Mapping[str, Kernel]]] = WeakKeyDictionary()


def cached_kernels(
    device: Device, key: Hashable, names: Sequence[str], source: Callable[[], str]
) -> Mapping[str, Kernel]:
    """A source's kernels `names`, which `source` is asked for only once for a key and device."""
    made = _KERNELS.setdefault(device, {})
    found = made.get(key)
    if found is None:
        found = made[key] = device.compile(source(), names)
    return found


def grid_stride_launch(device: Device, items: int, each: int = LOOP_THREADS) -> Launch:
    """A launch for `items` numbers, at least one, of which a block takes `each` at a time."""
    blocks = min(-(-items // each), LOOP_BLOCKS_PER_SM * device.multiprocessors)
    return Launch((max(1, blocks), 1, 1), LOOP_THREADS)


# MERGED clocks: """Seconds of a layer's parts on the device, read when they are asked for: reading one waits."""
class EventTimer(Mapping[str, float]):
    """Seconds by part. A part that is begun again adds to itself.

    Parameters
    ----------
    device
        Whose clock.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._parts: list[tuple[str, Event]] = []
        self._end: Event | None = None
        self._found: dict[str, float] | None = None

    def begin(self, part: str) -> None:
        """What is started from now on belongs to a part."""
        self._parts.append((part, self._device.mark()))

    def end(self) -> None:
        """No more parts."""
        self._end = self._device.mark()

    def __getitem__(self, part: str) -> float:
        if self._found is None:
            self._found = self._read()
        return self._found[part]

    def __iter__(self) -> Iterator[str]:
        return iter(dict(self._parts))

    def __len__(self) -> int:
        return len(dict(self._parts))

    def _read(self) -> dict[str, float]:
        ends = [mark for _, mark in self._parts[1:]] + [self._end or self._device.mark()]
        found: dict[str, float] = {}
        for (part, begun), end in zip(self._parts, ends, strict=True):
            found[part] = found.get(part, 0.0) + end.seconds_since(begun)
        return found


class EventInterval(Mapping[str, float]):
    """Seconds of one part, between two marks."""

    def __init__(self, part: str, begun: Event, end: Event) -> None:
        self._part, self._begun, self._end = part, begun, end
        self._found: float | None = None

    def __getitem__(self, part: str) -> float:
        if part != self._part:
            raise KeyError(part)
        if self._found is None:
            self._found = self._end.seconds_since(self._begun)
        return self._found

    def __iter__(self) -> Iterator[str]:
        return iter([self._part])

    def __len__(self) -> int:
        return 1
