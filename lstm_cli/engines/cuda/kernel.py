"""A kernel on a GPU: its arguments, how it is launched, how many blocks run at a time."""

from __future__ import annotations

import ctypes
import struct
from typing import TYPE_CHECKING, Any

from lstm_cli.engines.cuda.device import Argument, Launch
from lstm_cli.engines.cuda.occupancy import active_clusters
from lstm_cli.errors import DeviceError

if TYPE_CHECKING:
    from lstm_cli.engines.cuda.gpu import Gpu

MOST_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES."""
LARGE_CLUSTERS = 14
"""CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED."""

SHARED_BY_DEFAULT, PORTABLE_CLUSTER = 48 << 10, 8


class Arguments:
    """Arguments of a launch, as the driver takes them: addresses of their values.

    Each takes 8 bytes: an address, a ``long long`` or a ``double``. The driver reads them while it
    is called, so that this object need not live longer.
    """

    def __init__(self, arguments: tuple[Argument, ...]) -> None:
        letters, values = [], []
        for argument in arguments:
            letter, value = _packed(argument)
            letters.append(letter)
            values.append(value)
        count = len(values)
        self._values = ctypes.create_string_buffer(8 * max(1, count))
        struct.pack_into("=" + "".join(letters), self._values, 0, *values)
        first = ctypes.addressof(self._values)
        places = range(first, first + 8 * count, 8)
        self._addresses = (ctypes.c_void_p * max(1, count))(*places)

    @property
    def address(self) -> int:
        """Of the addresses."""
        return ctypes.addressof(self._addresses)


def _packed(argument: Argument) -> tuple[str, int | float]:
    """A letter of `struct`, and a number."""
    if argument is None:
        return "Q", 0
    if type(argument) is int:
        return "q", argument
    if type(argument) is float:
        return "d", argument
    return "Q", argument.data.ptr


class GpuKernel:
    """A `lstm_cli.engines.cuda.device.Kernel` on a GPU.

    Parameters
    ----------
    gpu
        Where it runs; the current device while this is made.
    name
        In the source.
    module
        Of CuPy, which holds the code; it lives as long as this.
    """

    def __init__(self, gpu: Gpu, name: str, module: Any) -> None:
        self._gpu, self.name, self._module = gpu, name, module
        self._function: int = module.get_function(name).ptr
        self._shared = SHARED_BY_DEFAULT
        self._large = False
        self._resident: dict[Launch, int] = {}

    def __call__(self, launch: Launch, *arguments: Argument) -> None:
        """Start it; see `lstm_cli.engines.cuda.device.Kernel`."""
        if launch.together and launch.blocks > self.resident(launch):
            raise DeviceError(
                f"the {launch.blocks} blocks of {self.name} cannot run together on this GPU",
                expected=f"at most {self.resident(launch)} blocks",
                found=f"{launch.blocks} of {launch.threads} threads",
            )
        gpu, given = self._gpu, Arguments(arguments)
        sizes = (*launch.grid, launch.threads, 1, 1, launch.shared, gpu.stream)
        try:
            gpu.make_current()
            self._allow(launch)
            if launch.together:
                gpu.cuda.launchCooperativeKernel(self._function, *sizes, given.address)
            else:
                gpu.cuda.launchKernel(self._function, *sizes, given.address, 0)
        except gpu.errors as error:
            raise DeviceError(f"{self.name} cannot be launched", found=str(error)) from error

    def resident(self, launch: Launch) -> int:
        """How many blocks can run at the same time on the whole device."""
        found = self._resident.get(launch)
        if found is None:
            found = self._resident[launch] = self._ask(launch)
        return found

    def _ask(self, launch: Launch) -> int:
        gpu = self._gpu
        if launch.shared > gpu.shared_bytes or launch.cluster > gpu.largest_cluster:
            return 0
        with gpu.failures(f"{self.name} cannot be examined"):
            gpu.make_current()
            self._allow(launch)
            if launch.cluster > 1:
                return launch.cluster * active_clusters(self._function, launch, gpu.stream)
            each = gpu.cuda.occupancyMaxActiveBlocksPerMultiprocessor(
                self._function, launch.threads, launch.shared
            )
            return int(each) * gpu.multiprocessors

    def _allow(self, launch: Launch) -> None:
        """Lift the limits that hold for a kernel unless they are lifted."""
        set_attribute = self._gpu.cuda.funcSetAttribute
        if launch.shared > self._shared:
            set_attribute(self._function, MOST_SHARED, launch.shared)
            self._shared = launch.shared
        if launch.cluster > PORTABLE_CLUSTER and not self._large:
            set_attribute(self._function, LARGE_CLUSTERS, 1)
            self._large = True
