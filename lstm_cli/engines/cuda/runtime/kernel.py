"""A kernel on a GPU: its arguments, how it is launched, how many blocks run at a time."""

from __future__ import annotations

import ctypes
import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lstm_cli.engines import kernel_cache
from lstm_cli.engines.cuda.runtime.device import Argument, Launch
from lstm_cli.engines.cuda.runtime.status import driver_library
from lstm_cli.engines.kernel_cache import Compiled
from lstm_cli.errors import DeviceError

if TYPE_CHECKING:
    from lstm_cli.engines.cuda.runtime.gpu import Gpu


MAX_DYNAMIC_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES."""
NON_PORTABLE_CLUSTERS = 14
"""CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED."""

DEFAULT_SHARED_BYTES, PORTABLE_CLUSTER_BLOCKS = 48 << 10, 8


class Arguments:
    """Arguments of a launch, as the driver takes them: addresses of their values.

    Each takes 8 bytes: an address, a ``long long`` or a ``double``. The driver reads them while it
    is called, so that this object need not live longer.
    """

    def __init__(self, arguments: tuple[Argument, ...]) -> None:
        letters, values = [], []
        for argument in arguments:
            letter, value = _format_and_value(argument)
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


def _format_and_value(argument: Argument) -> tuple[str, int | float]:
    """A letter of `struct`, and a number."""
    if argument is None:
        return "Q", 0
    if type(argument) is int:
        return "q", argument
    if type(argument) is float:
        return "d", argument
    return "Q", argument.data.ptr


class GpuKernel:
    """A `lstm_cli.engines.cuda.runtime.device.Kernel` on a GPU.

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
        self._shared = DEFAULT_SHARED_BYTES
        self._large = False
        self._resident: dict[Launch, int] = {}

    def __call__(self, launch: Launch, *arguments: Argument) -> None:
        """Start it; see `lstm_cli.engines.cuda.runtime.device.Kernel`."""
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
            set_attribute(self._function, MAX_DYNAMIC_SHARED, launch.shared)
            self._shared = launch.shared
        if launch.cluster > PORTABLE_CLUSTER_BLOCKS and not self._large:
            set_attribute(self._function, NON_PORTABLE_CLUSTERS, 1)
            self._large = True


# MERGED compiler: """CUDA C++ to machine code by NVRTC, kept on disk; and what comes of it as kernels."""
def gpu_architecture(capability: tuple[int, int]) -> str:
    """What NVRTC is to compile for; see `lstm_cli.engines.cuda.runtime.kernel.compile_target`.

    Raises
    ------
    DeviceError
        It does not know the device.
    """
    from cupy_backends.cuda.libs import nvrtc

    try:
        return compile_target(capability, nvrtc.getSupportedArchs())
    except ValueError as why:
        raise DeviceError(
            f"kernels cannot be compiled: {why}", hint="a newer CUDA toolkit may know it"
        ) from None


def compile_source(source: str, names: Sequence[str], architecture: str) -> Compiled:
    """Machine code of a source, from disk if it was made before.

    Parameters
    ----------
    source
        Defines every one of `names` as an ``extern "C"`` kernel.
    architecture
        A name that `gpu_architecture` returns.

    Raises
    ------
    DeviceError
        NVRTC refuses the source.
    """
    from cupy_backends.cuda.libs import nvrtc

    key = cache_key(source, architecture, nvrtc.getVersion())
    found = kernel_cache.load(key)
    if found is None:
        found = Compiled(tuple(names), _compile(source, architecture))
        kernel_cache.store(key, found)
    return found


def cache_key(source: str, architecture: str, version: tuple[int, int]) -> str:
    """What machine code is found by: a hash of all that it depends on."""
    parts = ("cuda", version, architecture, NVRTC_OPTIONS, source)
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def _compile(source: str, architecture: str) -> bytes:
    from cupy_backends.cuda.libs import nvrtc

    program = nvrtc.createProgram(source, "lstm_cli.cu", (), ())
    try:
        try:
            nvrtc.compileProgram(program, (f"--gpu-architecture={architecture}", *NVRTC_OPTIONS))
        except nvrtc.NVRTCError as error:
            raise DeviceError(
                f"NVRTC does not compile a kernel for {architecture}",
                found=f"{error}\n{nvrtc.getProgramLog(program)}",
            ) from None
        machine_code = architecture.startswith("sm_")
        return bytes(nvrtc.getCUBIN(program) if machine_code else nvrtc.getPTX(program))
    finally:
        nvrtc.destroyProgram(program)


def load_kernels(gpu: Gpu, compiled: Compiled, names: Sequence[str]) -> Mapping[str, GpuKernel]:
    """Machine code as kernels. The GPU must be the current device."""
    from cupy.cuda.function import Module

    module = Module()
    module.load(compiled.code)
    return {name: GpuKernel(gpu, name, module) for name in names}


# MERGED architectures: """What kernels are compiled for on a GPU, and with which options."""
NVRTC_OPTIONS = ("--std=c++17",)
"""Of NVRTC, beside the architecture. No file is included, so no folder is named."""

MINIMUM_CAPABILITY = (8, 0)
"""The compute capability that the kernels need: bfloat16 and TF32, copies past registers."""

ARCHITECTURE_SPECIFIC = frozenset({90})
"""Architectures compiled with all that only they have, under a name with an ``a``."""


def compile_target(capability: tuple[int, int], supported: Iterable[int]) -> str:
    """What to compile for: machine code ``sm_90a``, or ``compute_90`` for the driver to finish.

    Parameters
    ----------
    capability
        Major and minor number of the device's.
    supported
        What the compiler knows, such as 80, 90, 120.

    Raises
    ------
    ValueError
        It knows none that the device can run.
    """
    own, known = 10 * capability[0] + capability[1], set(supported)
    if own in known:
        return f"sm_{own}a" if own in ARCHITECTURE_SPECIFIC else f"sm_{own}"
    lower = [
        number
        for number in known
        if 10 * MINIMUM_CAPABILITY[0] + MINIMUM_CAPABILITY[1] <= number <= own
    ]
    if not lower:
        raise ValueError(f"the compiler makes nothing for compute capability {own / 10}")
    return f"compute_{max(lower)}"


def max_cluster_blocks(capability: tuple[int, int]) -> int:
    """Blocks that may form a cluster: 16 on data centres' GPUs, 8 on others, 1 before 9.0."""
    major = capability[0]
    if major < 9:
        return 1
    return 16 if major in (9, 10) else 8


# MERGED occupancy: """How many clusters of a kernel a GPU runs at the same time: asked of the driver directly.  CuPy has no name for this one function. It takes the records that ``cuda.h`` calls CUlaunchConfig and CUlaunchAttribute. """
CLUSTER_DIMENSION_ATTRIBUTE = 4
"""CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION."""

INVALID_CLUSTER_SIZE = 912
"""CUDA_ERROR_INVALID_CLUSTER_SIZE: no cluster of this size fits."""


class _LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute: a number, padding to 8 bytes, and 64 bytes of value."""

    _fields_ = (
        ("id", ctypes.c_int),
        ("padding", ctypes.c_char * 4),
        ("cluster", ctypes.c_uint * 3),
        ("rest", ctypes.c_char * 52),
    )


class _LaunchConfig(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_LaunchAttribute)),
        ("count", ctypes.c_uint),
    )


def launch_config(launch: Launch, stream: int) -> _LaunchConfig:
    """A launch as the driver wants it."""
    attribute = _LaunchAttribute(id=CLUSTER_DIMENSION_ATTRIBUTE, cluster=(launch.cluster, 1, 1))
    return _LaunchConfig(
        grid=launch.grid,
        block=(launch.threads, 1, 1),
        shared=launch.shared,
        stream=stream,
        attributes=ctypes.pointer(attribute),
        count=1,
    )


def active_clusters(function: int, launch: Launch, stream: int) -> int:
    """Clusters on the whole device at the same time; 0 where they are too large for it.

    Parameters
    ----------
    function, stream
        Their addresses.

    Raises
    ------
    DeviceError
        The driver refuses to say.
    """
    config, count = launch_config(launch, stream), ctypes.c_int()
    ask = driver_library().cuOccupancyMaxActiveClusters
    status = ask(ctypes.byref(count), ctypes.c_void_p(function), ctypes.byref(config))
    if status == INVALID_CLUSTER_SIZE:
        return 0
    if status != 0:
        raise DeviceError(
            f"the driver does not say how many clusters of {launch.cluster} blocks fit",
            found=f"CUDA error {status}",
        )
    return int(count.value)
