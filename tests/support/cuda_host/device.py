"""The cuda engine's device on the host: CUDA sources built with g++, arrays that are opaque."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from cuda_host import build
from cuda_host.arrays import POISON, HostArray, Memory, make_array
from cuda_host.build import HostError
from cuda_host.kernel import HostKernel
from lstm_cli.engines.cuda.precision import PRECISIONS
from lstm_cli.engines.cuda.runtime.device import Launch


@dataclass(frozen=True)
class HostMark:
    """A moment."""

    at: float

    def seconds_since(self, earlier: HostMark) -> float:
        """Between two marks."""
        return self.at - earlier.at

    def wait(self) -> None:
        """It is over."""


class HostDevice:
    """A `lstm_cli.engines.cuda.runtime.device.Device` without a GPU.

    Parameters
    ----------
    seed
        0: threads run in their order; else the order is drawn, always the same for one seed.
    memory
        Bytes that it has.

    Attributes
    ----------
    launches
        The name and launch of every kernel that was started.
    log
        What was started, in order: the lane, what it is, and for marks and waits the mark.
    """

    name, title, architecture = "host", "host", "host"

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
        self.current = 0
        self.sent = 0

    @contextmanager
    def lane(self, number: int) -> Iterator[None]:
        """What is started inside goes into another lane."""
        before, self.current = self.current, number
        try:
            yield
        finally:
            self.current = before

    def do(self, what: str, work: Callable[[], None], *arrays: HostArray) -> None:
        """Run what was started, at once; `work` holds none of the arrays themselves."""
        self.log.append((self.current, what, None))
        work()

    def empty(self, shape: Sequence[int], dtype: str) -> HostArray:
        """Filled with NaN, and -1 where there is none."""
        return make_array(self.store, shape, dtype)

    def zeros(self, shape: Sequence[int], dtype: str) -> HostArray:
        """Filled with 0."""
        made = self.empty(shape, dtype)
        self.fill_zero(made)
        return made

    def fill_zero(self, array: HostArray) -> None:
        """Set to 0."""
        _need(array.contiguous, "fill_zero of an array with gaps")
        self.do("zero", partial(_fill, array.values, 0), array)

    def copy(self, source: HostArray, target: HostArray) -> None:
        """One array to another."""
        _need(source.contiguous and target.contiguous, "a copy of an array with gaps")
        _need(source.size == target.size, f"a copy of {source} to {target}")
        _need(source.dtype == target.dtype, f"a copy of {source} to {target}")
        flat = target.values.reshape(-1), source.values.reshape(-1)
        self.do("copy", partial(_fill, *flat), source, target)

    def upload(self, array: np.ndarray) -> HostArray:
        """A copy."""
        made = self.empty(np.shape(array), np.asarray(array).dtype.name)
        self.do("upload", partial(_fill, made.values, np.array(array)), made)
        return made

    def upload_into(self, array: np.ndarray, target: HostArray) -> None:
        """A copy to what is there."""
        _need(target.contiguous, "an upload into an array with gaps")
        _need(array.shape == target.shape, f"an upload of {array.shape} into {target}")
        _need(array.dtype == target.dtype, f"an upload of {array.dtype} into {target}")
        self.do("upload", partial(_fill, target.values, np.array(array)), target)

    def download(self, array: HostArray) -> np.ndarray:
        """A copy."""
        _need(isinstance(array, HostArray), f"a download of {type(array)}")
        self.wait()
        return array.values.copy(order="C")

    def pinned(self, nbytes: int) -> np.ndarray:
        """Bytes of the host's memory."""
        return np.full(nbytes, POISON, np.uint8)

    def send(self, array: np.ndarray, target: HostArray) -> tuple[HostMark, HostMark]:
        """A copy, at once."""
        _need(target.contiguous, "a copy into an array with gaps")
        _need(array.nbytes == target.nbytes, f"a copy of {array.nbytes} bytes to {target}")
        begun = self.mark()
        flat = target.values.reshape(-1).view(np.uint8), array.reshape(-1).view(np.uint8)
        self.do("send", partial(_fill, *flat), target)
        self.sent += 1
        return begun, self.mark()

    def receive(self, array: HostArray, target: np.ndarray) -> tuple[HostMark, HostMark]:
        """A copy to the host, at once."""
        _need(array.nbytes == target.nbytes, f"a copy of {array} to {target.nbytes} bytes")
        begun = self.mark()
        flat = target.view(array.dtype).reshape(array.shape), array.values
        self.do("receive", partial(_fill, *flat), array)
        return begun, self.mark()

    def after(self, mark: HostMark) -> None:
        """It is over."""
        _need(isinstance(mark, HostMark), f"a wait for {mark}")
        self.log.append((self.current, "after", mark))

    def adopt(self, array: Any) -> HostArray | None:
        """Its own arrays."""
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
        """By NumPy, on operands that are rounded as a GPU's are."""
        for array, kind in ((a, "element"), (b, "element"), (out, "real")):
            wanted = getattr(PRECISIONS[precision], kind)
            _need(array.dtype == wanted, f"multiply in {precision} of {array}, not {wanted}")
            stacked = array is not b and a.ndim == 3
            _need(array.ndim == 2 + stacked, f"multiply of {array}")
            dense = array.shape[-1] <= 1 or array.strides[-1] == array.dtype.itemsize
            _need(dense, f"multiply of {array} whose rows have gaps")
        _need(a.ndim == 2 or not transpose_a, "multiply of a stack that is turned")
        for operand in (a, b):
            _need(not np.shares_memory(operand.values, out.values), "multiply onto an operand")
        shapes = a.shape[::-1] if transpose_a else a.shape, b.shape[:: -1 if transpose_b else 1]
        fits = shapes[0][-1] == shapes[1][0] and out.shape == (*shapes[0][:-1], shapes[1][1])
        _need(fits, f"multiply of {a} and {b} to {out}")
        given = a.values, b.values, out.values

        def work() -> None:
            left, right = (widened(operand, precision) for operand in given[:2])
            product = self.matmul(
                left.T if transpose_a else left, right.T if transpose_b else right
            )
            given[2][...] = product + given[2] if add else product

        self.do("multiply", work, a, b, out)

    def matmul(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """A product, in whatever order NumPy adds up."""
        return left @ right

    def compile(self, source: str, names: Sequence[str]) -> Mapping[str, HostKernel]:
        """Built with g++."""
        library = build.library(source, tuple(names))
        return {name: HostKernel(self, source, name, library) for name in names}

    def mark(self) -> HostMark:
        """Now."""
        made = HostMark(time.perf_counter())
        self.log.append((self.current, "mark", made))
        return made

    def wait(self) -> None:
        """Nothing runs behind another's back."""

    def memory(self) -> tuple[int, int]:
        """Free, and all."""
        return self.store.total - self.store.used, self.store.total


def _fill(target: np.ndarray, values: Any) -> None:
    target[...] = values


def _need(is_so: bool, what: str) -> None:
    if not is_so:
        raise HostError(what)


def widened(values: np.ndarray, precision: str) -> np.ndarray:
    """Operands of products as the numbers that are multiplied."""
    if precision == "float16":
        return values.view(np.float16).astype(np.float32)
    if precision == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    if precision == "tf32":
        return rounded_tf32(values)
    return values


def rounded_tf32(values: np.ndarray) -> np.ndarray:
    """float32 with 10 bits of fraction, halves away from zero."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isnan(values), np.float32(np.nan), rounded)
