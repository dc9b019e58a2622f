"""Status of the GPUs for the cuda engine, and the part that is missing if none can be used."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from lstm_cli.engines.cuda.precision import PRECISIONS

MINIMUM_CAPABILITY = (8, 0)
"""Compute capability that the kernels need: bfloat16, TF32, asynchronous copies."""

SUCCESS, NO_DEVICE = 0, 100
CAPABILITY_MAJOR, CAPABILITY_MINOR = 75, 76  # of CUdevice_attribute


@dataclass(frozen=True)
class DriverGpu:
    """A GPU as the driver lists it.

    Attributes
    ----------
    ordinal
        The N of ``cuda:N``.
    title
        Product name, such as ``NVIDIA H200``.
    capability
        Major and minor compute capability.
    memory
        Bytes in total.
    """

    ordinal: int
    title: str
    capability: tuple[int, int]
    memory: int


@dataclass(frozen=True)
class DriverInfo:
    """The NVIDIA driver and its GPUs.

    Attributes
    ----------
    version
        Major and minor CUDA version that the driver can run.
    gpus
        GPUs that the driver lists.
    """

    version: tuple[int, int]
    gpus: tuple[DriverGpu, ...]


class DriverUnavailable(Exception):  # noqa: N818 - no failure, a state
    """The driver is missing or does not start; the message says why."""


@lru_cache(maxsize=1)
def driver_library() -> Any:
    """Load the driver's library.

    Raises
    ------
    DriverUnavailable
        The library cannot be loaded.
    """
    if sys.platform == "darwin":
        raise DriverUnavailable("there is no NVIDIA driver for macOS")
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError:
        raise DriverUnavailable(f"no NVIDIA driver is installed ({name} is not found)") from None


@lru_cache(maxsize=1)
def read_driver() -> DriverInfo:
    """Read the driver's version and its GPUs, without any package.

    Raises
    ------
    DriverUnavailable
        The driver cannot be loaded, or does not start.
    """
    cuda = driver_library()
    status = cuda.cuInit(0)
    if status not in (SUCCESS, NO_DEVICE):
        raise DriverUnavailable(f"the NVIDIA driver does not start: {_error_text(cuda, status)}")
    version = ctypes.c_int()
    _raise_on_error(cuda, cuda.cuDriverGetVersion(ctypes.byref(version)))
    count = ctypes.c_int()
    if status == SUCCESS:
        _raise_on_error(cuda, cuda.cuDeviceGetCount(ctypes.byref(count)))
    numbers = version.value // 1000, version.value % 1000 // 10
    return DriverInfo(numbers, tuple(_read_gpu(cuda, k) for k in range(count.value)))


def _read_gpu(cuda: Any, ordinal: int) -> DriverGpu:
    device, memory = ctypes.c_int(), ctypes.c_size_t()
    title = ctypes.create_string_buffer(256)
    _raise_on_error(cuda, cuda.cuDeviceGet(ctypes.byref(device), ordinal))
    _raise_on_error(cuda, cuda.cuDeviceGetName(title, len(title), device))
    _raise_on_error(cuda, cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device))
    numbers = []
    for attribute in (CAPABILITY_MAJOR, CAPABILITY_MINOR):
        value = ctypes.c_int()
        _raise_on_error(cuda, cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device))
        numbers.append(value.value)
    name = title.value.decode(errors="replace")
    return DriverGpu(ordinal, name, (numbers[0], numbers[1]), int(memory.value))


def _raise_on_error(cuda: Any, status: int) -> None:
    if status != SUCCESS:
        raise DriverUnavailable(f"the NVIDIA driver fails: {_error_text(cuda, status)}")


def _error_text(cuda: Any, status: int) -> str:
    text = ctypes.c_char_p()
    if cuda.cuGetErrorString(status, ctypes.byref(text)) == SUCCESS and text.value:
        return f"{text.value.decode()} (CUDA error {status})"
    return f"CUDA error {status}"


DTYPES = tuple(PRECISIONS)

OLDEST_DRIVER = (12, 0)
"""Oldest CUDA version that CuPy still supports."""
OLDEST_CUPY = (13, 4)

DRIVER_HINT = "https://www.nvidia.com/drivers has drivers; --device cpu needs none"


@dataclass(frozen=True)
class GpuStatus:
    """Status of one GPU.

    Attributes
    ----------
    name, title
        Device name such as ``cuda:0``, and product name such as ``NVIDIA H200``.
    compute_capability
        Compute capability, such as ``9.0``.
    memory_total, memory_free
        Total and free bytes. The free bytes are None if CuPy cannot report them.
    usable, detail
        True if the cuda engine can use the GPU. If not, the detail is the reason.
    """

    name: str
    title: str
    compute_capability: str
    memory_total: int
    memory_free: int | None
    usable: bool
    detail: str = ""


@dataclass(frozen=True)
class CudaStatus:
    """Status of the cuda engine on this machine.

    Attributes
    ----------
    problem, hint
        Reason why no GPU can be used, and its cure; None if one can be used.
    gpus
        All GPUs that the driver lists.
    versions
        Versions of driver and packages, by name.
    """

    problem: str | None
    hint: str | None = None
    gpus: tuple[GpuStatus, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


class _MissingPart(Exception):  # noqa: N818 - no failure, a state
    """A part that the engine needs is missing; `hint` says how to install it."""

    def __init__(self, problem: str, hint: str) -> None:
        super().__init__(problem)
        self.problem, self.hint = problem, hint


def cuda_status() -> CudaStatus:
    """Examine driver, CuPy and GPUs. CuPy is imported only if the driver lists a GPU."""
    try:
        driver = read_driver()
    except DriverUnavailable as why:
        return CudaStatus(str(why), DRIVER_HINT)
    versions = {"driver": _format_version(driver.version)}
    try:
        _check_driver(driver)
        versions |= _cupy_versions(driver)
    except _MissingPart as missing:
        gpus = tuple(_gpu_status(gpu, None, missing.problem) for gpu in driver.gpus)
        return CudaStatus(missing.problem, missing.hint, gpus, versions)
    gpus = tuple(_query_gpu(gpu) for gpu in driver.gpus)
    if any(gpu.usable for gpu in gpus):
        return CudaStatus(None, None, gpus, versions)
    return CudaStatus(gpus[0].detail, "--device cpu", gpus, versions)


def _check_driver(driver: DriverInfo) -> None:
    if not driver.gpus:
        raise _MissingPart("the NVIDIA driver finds no GPU", "nvidia-smi lists what it finds")
    if driver.version < OLDEST_DRIVER:
        raise _MissingPart(
            f"the NVIDIA driver runs CUDA {_format_version(driver.version)} only, "
            f"{_format_version(OLDEST_DRIVER)} or later is needed",
            DRIVER_HINT,
        )


def _cupy_versions(driver: DriverInfo) -> dict[str, str]:
    """Versions of CuPy and of the libraries that it loads."""
    install = f"pip install 'lstm-cli[{_pip_extra(driver)}]'"
    if find_spec("cupy") is None:
        raise _MissingPart("CuPy is not installed", install)
    try:
        import cupy
        from cupy_backends.cuda.api import driver as cuda_api
    except Exception as error:
        raise _MissingPart(f"CuPy does not load: {_first_line(error)}", install) from error
    _check_cupy(str(cupy.__version__), int(cuda_api.get_build_version()), driver)
    return {"cupy": str(cupy.__version__), **_library_versions(install)}


def _check_cupy(version: str, build: int, driver: DriverInfo) -> None:
    """Raise unless this CuPy supports this driver."""
    if _version_numbers(version) < OLDEST_CUPY:
        raise _MissingPart(
            f"CuPy {version} is too old, {_format_version(OLDEST_CUPY)} or later is needed",
            f"pip install --upgrade 'lstm-cli[{_pip_extra(driver)}]'",
        )
    if build // 1000 > driver.version[0]:
        raise _MissingPart(
            f"the installed CuPy is made for CUDA {build // 1000}, "
            f"the NVIDIA driver runs CUDA {_format_version(driver.version)} only",
            f"pip uninstall cupy-cuda{build // 1000}x, "
            f"then pip install 'lstm-cli[{_pip_extra(driver)}]'",
        )


def _library_versions(install: str) -> dict[str, str]:
    """Versions of libraries that CuPy loads lazily; its wheels contain none of them."""
    versions = {}
    for name, read in {"cuda runtime": _runtime, "nvrtc": _nvrtc, "cublas": _cublas}.items():
        try:
            versions[name] = read()
        except Exception as error:
            raise _MissingPart(f"CuPy cannot load {name}: {_first_line(error)}", install) from error
    return versions


def _runtime() -> str:
    from cupy_backends.cuda.api import runtime

    return _format_version(divmod(int(runtime.runtimeGetVersion()) // 10, 100))


def _nvrtc() -> str:
    from cupy_backends.cuda.libs import nvrtc

    return _format_version(nvrtc.getVersion())


def _cublas() -> str:
    from cupy_backends.cuda.libs import cublas

    return "loaded" if cublas.gemmEx else ""


def _query_gpu(gpu: DriverGpu) -> GpuStatus:
    """Status of a GPU, with the free memory that CuPy reports."""
    if gpu.capability < MINIMUM_CAPABILITY:
        needed = _format_version(MINIMUM_CAPABILITY)
        actual = _format_version(gpu.capability)
        problem = f"compute capability {actual} is below {needed} ({gpu.title})"
        return _gpu_status(gpu, None, problem)
    try:
        import cupy

        with cupy.cuda.Device(gpu.ordinal):
            free = int(cupy.cuda.runtime.memGetInfo()[0])
    except Exception as error:
        return _gpu_status(gpu, None, f"{gpu.title} does not start: {_first_line(error)}")
    return _gpu_status(gpu, free, "")


def _gpu_status(gpu: DriverGpu, free: int | None, problem: str) -> GpuStatus:
    capability = _format_version(gpu.capability)
    name = f"cuda:{gpu.ordinal}"
    return GpuStatus(name, gpu.title, capability, gpu.memory, free, not problem, problem)


def _pip_extra(driver: DriverInfo) -> str:
    """Extra of this package with a CuPy that the driver can run."""
    return "cuda13" if driver.version[0] >= 13 else "cuda12"


def _version_numbers(version: str) -> tuple[int, ...]:
    """Major and minor version: ``14.2.0rc1`` is (14, 2)."""
    parts = version.split(".")[:2]
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts)


def _format_version(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _first_line(error: Exception) -> str:
    """First line of an error that is not empty."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
