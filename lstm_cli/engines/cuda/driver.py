"""What the NVIDIA driver itself tells, without any package: versions, GPUs, why there are none."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

SUCCESS, NO_DEVICE = 0, 100
MAJOR, MINOR = 75, 76  # of CUdevice_attribute


@dataclass(frozen=True)
class Listed:
    """A GPU as the driver lists it.

    Attributes
    ----------
    ordinal
        The N of ``cuda:N``.
    title
        Such as ``NVIDIA H200``.
    capability
        Major and minor number.
    memory
        Bytes in all.
    """

    ordinal: int
    title: str
    capability: tuple[int, int]
    memory: int


@dataclass(frozen=True)
class Driver:
    """The driver.

    Attributes
    ----------
    version
        The CUDA version it can run, major and minor.
    gpus
        What it lists.
    """

    version: tuple[int, int]
    gpus: tuple[Listed, ...]


class NoDriver(Exception):  # noqa: N818 - no failure, a state
    """Why there is no driver that answers."""


@lru_cache(maxsize=1)
def library() -> Any:
    """The driver's library.

    Raises
    ------
    NoDriver
        There is none that can be loaded.
    """
    if sys.platform == "darwin":
        raise NoDriver("there is no NVIDIA driver for macOS")
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        return ctypes.CDLL(name)
    except OSError:
        raise NoDriver(f"no NVIDIA driver is installed ({name} is not found)") from None


@lru_cache(maxsize=1)
def driver() -> Driver:
    """The driver and its GPUs.

    Raises
    ------
    NoDriver
        It cannot be loaded, or does not start.
    """
    cuda = library()
    status = cuda.cuInit(0)
    if status not in (SUCCESS, NO_DEVICE):
        raise NoDriver(f"the NVIDIA driver does not start: {_error(cuda, status)}")
    version = ctypes.c_int()
    _check(cuda, cuda.cuDriverGetVersion(ctypes.byref(version)))
    count = ctypes.c_int()
    if status == SUCCESS:
        _check(cuda, cuda.cuDeviceGetCount(ctypes.byref(count)))
    numbers = version.value // 1000, version.value % 1000 // 10
    return Driver(numbers, tuple(_listed(cuda, k) for k in range(count.value)))


def _listed(cuda: Any, ordinal: int) -> Listed:
    device, memory = ctypes.c_int(), ctypes.c_size_t()
    title = ctypes.create_string_buffer(256)
    _check(cuda, cuda.cuDeviceGet(ctypes.byref(device), ordinal))
    _check(cuda, cuda.cuDeviceGetName(title, len(title), device))
    _check(cuda, cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device))
    numbers = []
    for attribute in (MAJOR, MINOR):
        value = ctypes.c_int()
        _check(cuda, cuda.cuDeviceGetAttribute(ctypes.byref(value), attribute, device))
        numbers.append(value.value)
    name = title.value.decode(errors="replace")
    return Listed(ordinal, name, (numbers[0], numbers[1]), int(memory.value))


def _check(cuda: Any, status: int) -> None:
    if status != SUCCESS:
        raise NoDriver(f"the NVIDIA driver fails: {_error(cuda, status)}")


def _error(cuda: Any, status: int) -> str:
    text = ctypes.c_char_p()
    if cuda.cuGetErrorString(status, ctypes.byref(text)) == SUCCESS and text.value:
        return f"{text.value.decode()} (CUDA error {status})"
    return f"CUDA error {status}"
