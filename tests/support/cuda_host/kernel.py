"""Kernels of the host device: checks of a launch, and its run on fibers."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cuda_host import build
from cuda_host.arrays import HostArray, intact
from cuda_host.build import HostError
from lstm_cli.engines.cuda.runtime.device import Launch
from lstm_cli.errors import DeviceError

if TYPE_CHECKING:
    from cuda_host.device import HostDevice

RUNNING = threading.Lock()  # the scheduler has one state


class HostLaunch(ctypes.Structure):
    """Launch record of shim.h."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        *((name, ctypes.c_uint) for name in ("threads", "shared", "cluster", "cooperative")),
        ("resident", ctypes.c_uint),
        ("seed", ctypes.c_uint),
    )


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
        """Blocks that threads, shared memory and 128 registers per thread allow."""
        device = self.device
        per_multiprocessor = min(
            2048 // launch.threads,
            65536 // (128 * launch.threads),
            (device.shared_bytes + 1024) // (launch.shared + 1024),
            32,
        )
        return (
            device.multiprocessors // launch.cluster * launch.cluster * max(1, per_multiprocessor)
        )

    def __call__(self, launch: Launch, *arguments: Any) -> None:
        """Run the kernel to its end."""
        self._check(launch)
        values = self._c_values(arguments)
        addresses = (ctypes.c_void_p * max(1, len(values)))(*map(ctypes.addressof, values))
        # Blocks of a launch that is not cooperative might wait for one another forever.
        resident = self.resident(launch)
        host_launch = HostLaunch(
            launch.grid, launch.threads, launch.shared, launch.cluster, launch.cooperative,
            resident, self.device.seed,
        )  # fmt: skip
        used = {k: a for k, a in enumerate(arguments) if isinstance(a, HostArray)}
        fences = {k: a.allocation.guards for k, a in used.items()}
        alive = values, addresses

        def work() -> None:
            message = ctypes.create_string_buffer(500)
            with RUNNING:
                failed = self.start(ctypes.byref(host_launch), alive[1], message, len(message))
            if failed:
                raise HostError(f"{self.name}: {message.value.decode()}")
            for k, guards in fences.items():
                if not intact(guards):
                    raise HostError(f"{self.name}: a write outside the array of argument {k}")

        self.device.launches.append((self.name, launch))
        self.device.do(self.name, work, *used.values())

    def _check(self, launch: Launch) -> None:
        device = self.device
        sizes = (*launch.grid, launch.threads)
        wrong = {
            "an empty grid": min(sizes) < 1,
            "too large a grid": launch.grid[0] >= 2**31 or max(launch.grid[1:]) > 65535,
            "a number of threads that is no multiple of 32": launch.threads % 32 != 0,
            "too many threads": launch.threads > min(1024, self.bounds or 1024),
            "too much shared memory": launch.shared > device.shared_bytes,
            "another cluster than the source": launch.cluster != self.cluster,
            "too large a cluster": launch.cluster > device.largest_cluster,
            "a grid that clusters do not divide": launch.grid[0] % launch.cluster != 0,
        }
        for what, is_so in wrong.items():
            if is_so:
                raise HostError(f"{self.name} is launched with {what}: {launch}")
        if launch.cooperative and launch.blocks > self.resident(launch):
            raise DeviceError(f"{launch.blocks} blocks of {self.name} cannot run at the same time")

    def _c_values(self, arguments: Sequence[Any]) -> list[Any]:
        if len(arguments) != len(self.letters):
            expected = len(self.letters)
            raise HostError(f"{self.name} takes {expected} arguments, not {len(arguments)}")
        values: list[Any] = []
        for k, (letter, a) in enumerate(zip(self.letters, arguments, strict=True)):
            if letter == "p" and (a is None or isinstance(a, HostArray)):
                values.append(ctypes.c_void_p(None if a is None else a.values.ctypes.data))
            elif letter == "q" and type(a) is int:
                values.append(ctypes.c_longlong(a))
            elif letter == "d" and type(a) is float:
                values.append(ctypes.c_double(a))
            else:
                raise HostError(f"{self.name} takes a {letter} as argument {k}, not {a!r}")
        return values
