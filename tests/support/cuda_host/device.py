"""The cuda engine's device on the host: CUDA sources compiled with g++, opaque arrays."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np

from cuda_host import build
from cuda_host.arrays import POISON, HostArray, Memory, make_array
from cuda_host.build import HostError
from cuda_host.kernel import HostKernel
from lstm_cli.engines.cuda.precision import PRECISIONS
from lstm_cli.engines.cuda.runtime.device import Launch


@dataclass(frozen=True)
class HostEvent:
    """A point in time: work is done as soon as it starts."""

    at: float

    def seconds_since(self, earlier: HostEvent) -> float:
        """Seconds between two events."""
        return self.at - earlier.at

    def wait(self) -> None:
        """Return at once."""


class HostDevice:
    """A `lstm_cli.engines.cuda.runtime.device.Device` without a GPU.

    Parameters
    ----------
    seed
        0: threads run in their order; else in a random order, always the same for one seed.
    memory
        Bytes of memory in total.

    Attributes
    ----------
    launches
        Name and launch of every kernel that was started.
    log
        Work in the order of its start: stream, name, and for events and waits the event.
    uploads
        Number of asynchronous copies to the device.
    """

    name, title, architecture = "host", "host", "host"
    versions: ClassVar[dict[str, str]] = {}

    def __init__(
        self,
        *,
        multiprocessors: int = 16,
        largest_cluster: int = 16,
        shared_bytes: int = 232448,
        memory: int = 1 << 33,
        seed: int = 0,
    ):
        self.multiprocessors, self.largest_cluster = multiprocessors, largest_cluster
        self.shared_bytes, self.seed = shared_bytes, seed
        self.store = Memory(memory)
        self.launches: list[tuple[str, Launch]] = []
        self.log: list[tuple[int, str, Any]] = []
        self.stream = 0
        self.uploads = 0

    @contextmanager
    def use_stream(self, number: int) -> Iterator[None]:
        """Send work started inside the context to another stream."""
        before, self.stream = self.stream, number
        try:
            yield
        finally:
            self.stream = before

    def do(self, what: str, work: Callable[[], None], *arrays: HostArray) -> None:
        """Run work at once; `work` keeps none of the arrays themselves alive."""
        self.log.append((self.stream, what, None))
        work()

    def empty(self, shape: Sequence[int], dtype: str) -> HostArray:
        """An array of NaN; integers are -1."""
        return make_array(self.store, shape, dtype)

    def zeros(self, shape: Sequence[int], dtype: str) -> HostArray:
        """An array of zeros."""
        array = self.empty(shape, dtype)
        self.fill_zero(array)
        return array

    def fill_zero(self, array: HostArray) -> None:
        """Set an array to 0."""
        _need(array.contiguous, "fill_zero of an array with gaps")
        self.do("zero", partial(_fill, array.values, 0), array)

    def copy(self, source: HostArray, target: HostArray) -> None:
        """Copy one array to another."""
        _need(source.contiguous and target.contiguous, "a copy of an array with gaps")
        _need(source.size == target.size, f"a copy of {source} to {target}")
        _need(source.dtype == target.dtype, f"a copy of {source} to {target}")
        flat = target.values.reshape(-1), source.values.reshape(-1)
        self.do("copy", partial(_fill, *flat), source, target)

    def upload(self, array: np.ndarray) -> HostArray:
        """Copy to the device."""
        target = self.empty(np.shape(array), np.asarray(array).dtype.name)
        self.do("upload", partial(_fill, target.values, np.array(array)), target)
        return target

    def upload_into(self, array: np.ndarray, target: HostArray) -> None:
        """Copy to an array of the device."""
        _need(target.contiguous, "an upload into an array with gaps")
        _need(array.shape == target.shape, f"an upload of {array.shape} into {target}")
        _need(array.dtype == target.dtype, f"an upload of {array.dtype} into {target}")
        self.do("upload", partial(_fill, target.values, np.array(array)), target)

    def download(self, array: HostArray) -> np.ndarray:
        """Copy to NumPy's memory."""
        _need(isinstance(array, HostArray), f"a download of {type(array)}")
        self.wait()
        return array.values.copy(order="C")

    def allocate_pinned(self, nbytes: int) -> np.ndarray:
        """Poisoned bytes of host memory."""
        return np.full(nbytes, POISON, np.uint8)

    def copy_to_device_async(
        self, array: np.ndarray, target: HostArray
    ) -> tuple[HostEvent, HostEvent]:
        """Copy to the device, at once."""
        _need(target.contiguous, "a copy into an array with gaps")
        _need(array.nbytes == target.nbytes, f"a copy of {array.nbytes} bytes to {target}")
        start = self.record_event()
        flat = target.values.reshape(-1).view(np.uint8), array.reshape(-1).view(np.uint8)
        self.do("copy to device", partial(_fill, *flat), target)
        self.uploads += 1
        return start, self.record_event()

    def copy_to_host_async(
        self, array: HostArray, target: np.ndarray
    ) -> tuple[HostEvent, HostEvent]:
        """Copy to the host, at once."""
        _need(array.nbytes == target.nbytes, f"a copy of {array} to {target.nbytes} bytes")
        start = self.record_event()
        flat = target.view(array.dtype).reshape(array.shape), array.values
        self.do("copy to host", partial(_fill, *flat), array)
        return start, self.record_event()

    def wait_event(self, event: HostEvent) -> None:
        """Log the wait."""
        _need(isinstance(event, HostEvent), f"a wait for {event}")
        self.log.append((self.stream, "wait_event", event))

    def from_device_array(self, array: Any) -> HostArray | None:
        """An array of this device; None for any other."""
        return array if isinstance(array, HostArray) else None

    def multiply(
        self,
        a: HostArray,
        b: HostArray,
        out: HostArray,
        precision: str,
        *,
        transpose_a: bool = False,
        transpose_b: bool = False,
        add: bool = False,
    ) -> None:
        """Compute a product with NumPy, on operands rounded as on a GPU."""
        for array, kind in ((a, "operand"), (b, "operand"), (out, "accumulator")):
            wanted = getattr(PRECISIONS[precision], kind)
            _need(array.dtype == wanted, f"multiply in {precision} of {array}, not {wanted}")
            stacked = array is not b and a.ndim == 3
            _need(array.ndim == 2 + stacked, f"multiply of {array}")
            dense = array.shape[-1] <= 1 or array.strides[-1] == array.dtype.itemsize
            _need(dense, f"multiply of {array} whose rows have gaps")
        _need(a.ndim == 2 or not transpose_a, "multiply of a transposed stack")
        for operand in (a, b):
            _need(not np.shares_memory(operand.values, out.values), "multiply onto an operand")
        shapes = a.shape[::-1] if transpose_a else a.shape, b.shape[:: -1 if transpose_b else 1]
        fits = shapes[0][-1] == shapes[1][0] and out.shape == (*shapes[0][:-1], shapes[1][1])
        _need(fits, f"multiply of {a} and {b} to {out}")
        left_values, right_values, out_values = a.values, b.values, out.values

        def work() -> None:
            left = widened(left_values, precision)
            right = widened(right_values, precision)
            product = self.matmul(
                left.T if transpose_a else left, right.T if transpose_b else right
            )
            out_values[...] = product + out_values if add else product

        self.do("multiply", work, a, b, out)

    def matmul(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """A matrix product, in NumPy's order of summation."""
        return left @ right

    def compile(self, source: str, names: Sequence[str]) -> Mapping[str, HostKernel]:
        """Compile kernels with g++."""
        library = build.library(source, tuple(names))
        return {name: HostKernel(self, source, name, library) for name in names}

    def record_event(self) -> HostEvent:
        """An event at this point in time."""
        event = HostEvent(time.perf_counter())
        self.log.append((self.stream, "record_event", event))
        return event

    def wait(self) -> None:
        """Return at once, since no work is pending."""

    def memory(self) -> tuple[int, int]:
        """Bytes free and bytes in total."""
        return self.store.total - self.store.used, self.store.total


def _fill(target: np.ndarray, values: Any) -> None:
    target[...] = values


def _need(is_so: bool, what: str) -> None:
    if not is_so:
        raise HostError(what)


def widened(values: np.ndarray, precision: str) -> np.ndarray:
    """Stored operands as the numbers that are multiplied."""
    if precision == "float16":
        return values.view(np.float16).astype(np.float32)
    if precision == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    if precision == "tf32":
        return rounded_tf32(values)
    return values


def rounded_tf32(values: np.ndarray) -> np.ndarray:
    """Round float32 to 10 bits of fraction, ties away from zero."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isnan(values), np.float32(np.nan), rounded)
