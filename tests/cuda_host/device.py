"""The cuda engine's device on the host: CUDA sources built with g++, arrays that are opaque."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cuda_host import build
from cuda_host.arrays import POISON, HostArray, Memory, make_array
from cuda_host.build import HostError
from lstm_cli.engines.cuda.device import Launch
from lstm_cli.engines.cuda.precision import PRECISIONS
from lstm_cli.errors import DeviceError

RUNNING = threading.Lock()  # the scheduler has one state


class HostLaunch(ctypes.Structure):
    """As in shim.h."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        *((name, ctypes.c_uint) for name in ("threads", "shared", "cluster", "together")),
        ("resident", ctypes.c_uint),
        ("seed", ctypes.c_uint),
    )


@dataclass(frozen=True)
class HostMark:
    """A moment."""

    at: float

    def seconds_since(self, earlier: HostMark) -> float:
        """Between two marks."""
        return self.at - earlier.at

    def wait(self) -> None:
        """It is over."""


class HostKernel:
    """A kernel that runs on fibers."""

    def __init__(self, device: HostDevice, source: str, name: str, library: ctypes.CDLL):
        self.device, self.name = device, name
        self.bounds, self.cluster = build.attributes(source, name)
        self.start = getattr(library, f"start_{name}")
        letters = getattr(library, f"letters_{name}")
        letters.restype = ctypes.c_char_p
        self.letters = letters().decode()

    def resident(self, launch: Launch) -> int:
        """As many as threads, shared memory and 128 registers a thread allow."""
        device = self.device
        each = min(
            2048 // launch.threads,
            65536 // (128 * launch.threads),
            (device.shared_bytes + 1024) // (launch.shared + 1024),
            32,
        )
        return device.multiprocessors // launch.cluster * launch.cluster * max(1, each)

    def __call__(self, launch: Launch, *arguments: Any) -> None:
        """Run it to its end."""
        self._check(launch)
        held = self._hold(arguments)
        addresses = (ctypes.c_void_p * max(1, len(held)))(*map(ctypes.addressof, held))
        # Without a need to run together, blocks that wait for one another may do so for ever.
        resident = self.resident(launch)
        given = HostLaunch(
            launch.grid, launch.threads, launch.shared, launch.cluster, launch.together,
            resident, self.device.seed,
        )  # fmt: skip
        message = ctypes.create_string_buffer(500)
        self.device.launches.append((self.name, launch))
        with RUNNING:
            failed = self.start(ctypes.byref(given), addresses, message, len(message))
        if failed:
            raise HostError(f"{self.name}: {message.value.decode()}")
        for k, a in enumerate(arguments):
            if isinstance(a, HostArray) and not a.allocation.intact():
                raise HostError(f"{self.name}: a write beside the array of argument {k}")

    def _check(self, launch: Launch) -> None:
        device = self.device
        sizes = (*launch.grid, launch.threads)
        wrong = {
            "an empty grid": min(sizes) < 1,
            "too large a grid": launch.grid[0] >= 2**31 or max(launch.grid[1:]) > 65535,
            "threads that are no whole warps": launch.threads % 32 != 0,
            "too many threads": launch.threads > min(1024, self.bounds or 1024),
            "too much shared memory": launch.shared > device.shared_bytes,
            "another cluster than the source": launch.cluster != self.cluster,
            "too large a cluster": launch.cluster > device.largest_cluster,
            "a grid that clusters do not divide": launch.grid[0] % launch.cluster != 0,
        }
        for what, is_so in wrong.items():
            if is_so:
                raise HostError(f"{self.name} is launched with {what}: {launch}")
        if launch.together and launch.blocks > self.resident(launch):
            raise DeviceError(f"{launch.blocks} blocks of {self.name} cannot run together")

    def _hold(self, arguments: Sequence[Any]) -> list[Any]:
        """The arguments as C values."""
        if len(arguments) != len(self.letters):
            expected = len(self.letters)
            raise HostError(f"{self.name} takes {expected} arguments, not {len(arguments)}")
        held: list[Any] = []
        for k, (letter, a) in enumerate(zip(self.letters, arguments, strict=True)):
            if letter == "p" and (a is None or isinstance(a, HostArray)):
                held.append(ctypes.c_void_p(None if a is None else a.values.ctypes.data))
            elif letter == "q" and type(a) is int:
                held.append(ctypes.c_longlong(a))
            elif letter == "d" and type(a) is float:
                held.append(ctypes.c_double(a))
            else:
                raise HostError(f"{self.name} takes a {letter} as argument {k}, not {a!r}")
        return held


class HostDevice:
    """A `lstm_cli.engines.cuda.device.Device` without a GPU.

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
        self.sent = 0

    def empty(self, shape: Sequence[int], dtype: str) -> HostArray:
        """Filled with NaN, and -1 where there is none."""
        return make_array(self.store, shape, dtype)

    def zeros(self, shape: Sequence[int], dtype: str) -> HostArray:
        """Filled with 0."""
        made = self.empty(shape, dtype)
        made.values[...] = 0
        return made

    def fill_zero(self, array: HostArray) -> None:
        """Set to 0."""
        _need(array.contiguous, "fill_zero of an array with gaps")
        array.values[...] = 0

    def copy(self, source: HostArray, target: HostArray) -> None:
        """One array to another."""
        _need(source.contiguous and target.contiguous, "a copy of an array with gaps")
        _need(source.size == target.size, f"a copy of {source} to {target}")
        _need(source.dtype == target.dtype, f"a copy of {source} to {target}")
        target.values.reshape(-1)[:] = source.values.reshape(-1)

    def upload(self, array: np.ndarray) -> HostArray:
        """A copy."""
        made = self.empty(np.shape(array), np.asarray(array).dtype.name)
        made.values[...] = array
        return made

    def upload_into(self, array: np.ndarray, target: HostArray) -> None:
        """A copy to what is there."""
        _need(target.contiguous, "an upload into an array with gaps")
        _need(array.shape == target.shape, f"an upload of {array.shape} into {target}")
        _need(array.dtype == target.dtype, f"an upload of {array.dtype} into {target}")
        target.values[...] = array

    def download(self, array: HostArray) -> np.ndarray:
        """A copy."""
        _need(isinstance(array, HostArray), f"a download of {type(array)}")
        return array.values.copy(order="C")

    def pinned(self, nbytes: int) -> np.ndarray:
        """Bytes of the host's memory."""
        return np.full(nbytes, POISON, np.uint8)

    def send(self, array: np.ndarray, target: HostArray) -> tuple[HostMark, HostMark]:
        """A copy, at once."""
        _need(target.contiguous, "a copy into an array with gaps")
        _need(array.nbytes == target.nbytes, f"a copy of {array.nbytes} bytes to {target}")
        begun = self.mark()
        target.values.reshape(-1).view(np.uint8)[:] = array.reshape(-1).view(np.uint8)
        self.sent += 1
        return begun, self.mark()

    def after(self, mark: HostMark) -> None:
        """It is over."""
        _need(isinstance(mark, HostMark), f"a wait for {mark}")

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
            _need(array.ndim == 2, f"multiply of {array}")
            dense = array.shape[1] <= 1 or array.strides[1] == array.dtype.itemsize
            _need(dense, f"multiply of {array} whose rows have gaps")
        for operand in (a, b):
            _need(not np.shares_memory(operand.values, out.values), "multiply onto an operand")
        left, right = (widened(operand.values, precision) for operand in (a, b))
        product = (left.T if transpose_a else left) @ (right.T if transpose_b else right)
        _need(product.shape == out.shape, f"multiply of {a} and {b} to {out}")
        out.values[...] = product + out.values if add else product

    def compile(self, source: str, names: Sequence[str]) -> Mapping[str, HostKernel]:
        """Built with g++."""
        library = build.library(source, tuple(names))
        return {name: HostKernel(self, source, name, library) for name in names}

    def mark(self) -> HostMark:
        """Now."""
        return HostMark(time.perf_counter())

    def wait(self) -> None:
        """Nothing runs behind another's back."""

    def memory(self) -> tuple[int, int]:
        """Free, and all."""
        return self.store.total - self.store.used, self.store.total


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
