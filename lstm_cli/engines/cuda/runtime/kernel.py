"""GPU kernels: compilation by NVRTC with a cache on disk, loading, launches, and occupancy.

`Device.compile` begins at `compile_source`; a launch begins at `GpuKernel`.
"""

from __future__ import annotations

import ctypes
import hashlib
import struct
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lstm_cli.engines import kernel_cache
from lstm_cli.engines.cuda.runtime.device import Argument, Launch
from lstm_cli.engines.cuda.runtime.status import MINIMUM_CAPABILITY, driver_library
from lstm_cli.engines.kernel_cache import CompiledKernels
from lstm_cli.errors import DeviceError

if TYPE_CHECKING:
    from lstm_cli.engines.cuda.runtime.gpu import Gpu

NVRTC_OPTIONS = ("--std=c++17",)
"""Options of NVRTC besides the architecture. Sources include no file, so no folder is named."""

ARCHITECTURE_SPECIFIC = frozenset({90})
"""Architectures compiled with their specific features, under a name that ends in ``a``."""

MAX_DYNAMIC_SHARED = 8
"""CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES."""
NON_PORTABLE_CLUSTERS = 14
"""CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED."""

DEFAULT_SHARED_BYTES, PORTABLE_CLUSTER_BLOCKS = 48 << 10, 8

CLUSTER_DIMENSION_ATTRIBUTE = 4
"""CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION."""

INVALID_CLUSTER_SIZE = 912
"""CUDA_ERROR_INVALID_CLUSTER_SIZE: no cluster of this size fits."""


def compile_target(capability: tuple[int, int], supported: Iterable[int]) -> str:
    """Choose machine code such as ``sm_90a``, or PTX such as ``compute_90`` for the driver.

    Parameters
    ----------
    capability
        Major and minor compute capability of the device.
    supported
        Capabilities that the compiler supports, such as 80, 90, 120.

    Raises
    ------
    ValueError
        The compiler supports no capability that the device can run.
    """
    target, targets = 10 * capability[0] + capability[1], set(supported)
    if target in targets:
        return f"sm_{target}a" if target in ARCHITECTURE_SPECIFIC else f"sm_{target}"
    least = 10 * MINIMUM_CAPABILITY[0] + MINIMUM_CAPABILITY[1]
    lower = [number for number in targets if least <= number <= target]
    if not lower:
        raise ValueError(f"the compiler does not support compute capability {target / 10}")
    return f"compute_{max(lower)}"


def max_cluster_blocks(capability: tuple[int, int]) -> int:
    """Largest number of blocks per cluster: 16 on data center GPUs, 8 on others, 1 before 9.0."""
    major = capability[0]
    if major < 9:
        return 1
    return 16 if major in (9, 10) else 8


def gpu_architecture(capability: tuple[int, int]) -> str:
    """Compilation target of a device with the installed NVRTC; see `compile_target`.

    Raises
    ------
    DeviceError
        NVRTC does not support the device.
    """
    from cupy_backends.cuda.libs import nvrtc

    try:
        return compile_target(capability, nvrtc.getSupportedArchs())
    except ValueError as why:
        raise DeviceError(
            f"kernels cannot be compiled: {why}", hint="a newer CUDA toolkit may support it"
        ) from None


def compile_source(source: str, names: Sequence[str], architecture: str) -> CompiledKernels:
    """Compile a source to machine code, or load the code from disk.

    Parameters
    ----------
    source
        CUDA C++ that defines each of `names` as an ``extern "C"`` kernel.
    architecture
        Target that `gpu_architecture` returns.

    Raises
    ------
    DeviceError
        NVRTC refuses the source.
    """
    from cupy_backends.cuda.libs import nvrtc

    key = cache_key(source, architecture, nvrtc.getVersion())
    compiled = kernel_cache.load(key)
    if compiled is None:
        compiled = CompiledKernels(tuple(names), _compile(source, architecture))
        kernel_cache.store(key, compiled)
    return compiled


def cache_key(source: str, architecture: str, version: tuple[int, int]) -> str:
    """Key of machine code on disk: a hash of all that the code depends on."""
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


def load_kernels(
    gpu: Gpu, compiled: CompiledKernels, names: Sequence[str]
) -> Mapping[str, GpuKernel]:
    """Load machine code as kernels. The GPU must be the current device."""
    from cupy.cuda.function import Module

    module = Module()
    module.load(compiled.code)
    return {name: GpuKernel(gpu, name, module) for name in names}


class Arguments:
    """Arguments of a launch as the driver reads them: addresses of 8-byte values.

    Each value is an address, a ``long long`` or a ``double``. The driver reads the values during
    the call, so this object need not live longer.
    """

    def __init__(self, arguments: tuple[Argument, ...]) -> None:
        formats, values = [], []
        for argument in arguments:
            letter, value = _format_and_value(argument)
            formats.append(letter)
            values.append(value)
        count = len(values)
        self._values = ctypes.create_string_buffer(8 * max(1, count))
        struct.pack_into("=" + "".join(formats), self._values, 0, *values)
        first = ctypes.addressof(self._values)
        addresses = range(first, first + 8 * count, 8)
        self._addresses = (ctypes.c_void_p * max(1, count))(*addresses)

    @property
    def address(self) -> int:
        """Address of the array of addresses."""
        return ctypes.addressof(self._addresses)


def _format_and_value(argument: Argument) -> tuple[str, int | float]:
    """Format letter of `struct`, and the number."""
    if argument is None:
        return "Q", 0
    if type(argument) is int:
        return "q", argument
    if type(argument) is float:
        return "d", argument
    return "Q", argument.data.ptr


class GpuKernel:
    """An `lstm_cli.engines.cuda.runtime.device.Kernel` on a GPU.

    Parameters
    ----------
    gpu
        GPU of the kernel; the current device at construction.
    name
        Name in the source.
    module
        CuPy's module with the code; the kernel keeps it alive.
    """

    def __init__(self, gpu: Gpu, name: str, module: Any) -> None:
        self._gpu, self.name, self._module = gpu, name, module
        self._function: int = module.get_function(name).ptr
        self._shared_limit = DEFAULT_SHARED_BYTES
        self._allows_large_clusters = False
        self._resident: dict[Launch, int] = {}

    def __call__(self, launch: Launch, *arguments: Argument) -> None:
        """Start the kernel; see `lstm_cli.engines.cuda.runtime.device.Kernel`."""
        if launch.cooperative and launch.blocks > self.resident(launch):
            raise DeviceError(
                f"{launch.blocks} blocks of {self.name} cannot run at the same time on this GPU",
                expected=f"at most {self.resident(launch)} blocks",
                found=f"{launch.blocks} of {launch.threads} threads",
            )
        gpu, packed = self._gpu, Arguments(arguments)
        sizes = (*launch.grid, launch.threads, 1, 1, launch.shared, gpu.stream_address)
        try:
            gpu.make_current()
            self._raise_limits(launch)
            if launch.cooperative:
                gpu.cuda.launchCooperativeKernel(self._function, *sizes, packed.address)
            else:
                gpu.cuda.launchKernel(self._function, *sizes, packed.address, 0)
        except gpu.errors as error:
            raise DeviceError(f"{self.name} cannot be launched", found=str(error)) from error

    def resident(self, launch: Launch) -> int:
        """Count the blocks that can run at the same time on the whole device."""
        count = self._resident.get(launch)
        if count is None:
            count = self._resident[launch] = self._count_resident(launch)
        return count

    def _count_resident(self, launch: Launch) -> int:
        gpu = self._gpu
        if launch.shared > gpu.shared_bytes or launch.cluster > gpu.largest_cluster:
            return 0
        with gpu.failures(f"{self.name} cannot be examined"):
            gpu.make_current()
            self._raise_limits(launch)
            if launch.cluster > 1:
                return launch.cluster * active_clusters(self._function, launch, gpu.stream_address)
            per_multiprocessor = gpu.cuda.occupancyMaxActiveBlocksPerMultiprocessor(
                self._function, launch.threads, launch.shared
            )
            return int(per_multiprocessor) * gpu.multiprocessors

    def _raise_limits(self, launch: Launch) -> None:
        """Raise the kernel's default limits of shared memory and cluster size where needed."""
        set_attribute = self._gpu.cuda.funcSetAttribute
        if launch.shared > self._shared_limit:
            set_attribute(self._function, MAX_DYNAMIC_SHARED, launch.shared)
            self._shared_limit = launch.shared
        if launch.cluster > PORTABLE_CLUSTER_BLOCKS and not self._allows_large_clusters:
            set_attribute(self._function, NON_PORTABLE_CLUSTERS, 1)
            self._allows_large_clusters = True


class _LaunchAttribute(ctypes.Structure):
    """CUlaunchAttribute of ``cuda.h``: a number, padding to 8 bytes, and 64 bytes of value."""

    _fields_ = (
        ("id", ctypes.c_int),
        ("padding", ctypes.c_char * 4),
        ("cluster", ctypes.c_uint * 3),
        ("rest", ctypes.c_char * 52),
    )


class _LaunchConfig(ctypes.Structure):
    """CUlaunchConfig of ``cuda.h``."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_LaunchAttribute)),
        ("count", ctypes.c_uint),
    )


def launch_config(launch: Launch, stream: int) -> _LaunchConfig:
    """The driver's record of a launch on a stream."""
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
    """Number of clusters that can run at the same time on the device; 0 if they are too large.

    This calls the driver directly, since CuPy does not offer the function.

    Parameters
    ----------
    function, stream
        Addresses of the kernel and of the stream.

    Raises
    ------
    DeviceError
        The driver refuses to answer.
    """
    config, count = launch_config(launch, stream), ctypes.c_int()
    query = driver_library().cuOccupancyMaxActiveClusters
    status = query(ctypes.byref(count), ctypes.c_void_p(function), ctypes.byref(config))
    if status == INVALID_CLUSTER_SIZE:
        return 0
    if status != 0:
        raise DeviceError(
            f"the driver does not say how many clusters of {launch.cluster} blocks fit",
            found=f"CUDA error {status}",
        )
    return int(count.value)
