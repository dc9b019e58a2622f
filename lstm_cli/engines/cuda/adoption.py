"""Arrays of a caller's that are on the GPU already: CuPy's, PyTorch's, anyone's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lstm_cli.engines.cuda.device import DeviceArray, host_array

if TYPE_CHECKING:
    from lstm_cli.engines.cuda.gpu import Gpu

CUDA_DEVICE = 2
"""kDLCUDA, of DLPack."""

LEGACY_STREAMS = (0, 1)
"""Addresses of the default stream, with which ours keeps in step."""


def from_device_array(gpu: Gpu, array: Any) -> DeviceArray | None:
    """An array in C order on the GPU, without a copy where that can be; None: it is not there."""
    if host_array(array):
        return None
    found = array if isinstance(array, gpu.cupy.ndarray) else _viewed(gpu, array)
    if found is None or found.device.id != gpu.ordinal:
        return None
    _wait_for_caller(gpu)
    if found.flags.c_contiguous:
        return found
    gpu.make_current()
    with gpu.main_stream:
        return gpu.cupy.ascontiguousarray(found)


def _viewed(gpu: Gpu, array: Any) -> DeviceArray | None:
    """Another package's array as one of CuPy's, if it is on this GPU."""
    detach = getattr(array, "detach", None)  # PyTorch exports nothing that has a gradient
    given = array if detach is None else detach()
    if _exported_by(gpu, given):
        gpu.make_current()
        return gpu.cupy.from_dlpack(given)
    if not hasattr(given, "__dlpack_device__") and hasattr(given, "__cuda_array_interface__"):
        gpu.make_current()
        return gpu.cupy.asarray(given)
    return None


def _exported_by(gpu: Gpu, array: Any) -> bool:
    tell = getattr(array, "__dlpack_device__", None)
    return tell is not None and tuple(map(int, tell())) == (CUDA_DEVICE, gpu.ordinal)


def _wait_for_caller(gpu: Gpu) -> None:
    """Behind what the caller's stream still computes, where that is one of its own."""
    current = gpu.cupy.cuda.get_current_stream()
    if current.ptr not in (*LEGACY_STREAMS, gpu.stream):
        gpu.main_stream.wait_event(current.record())
