"""How many clusters of a kernel a GPU runs at the same time: asked of the driver directly.

CuPy has no name for this one function. It takes the records that ``cuda.h`` calls CUlaunchConfig
and CUlaunchAttribute.
"""

from __future__ import annotations

import ctypes

from lstm_cli.engines.cuda.device import Launch
from lstm_cli.engines.cuda.driver import library
from lstm_cli.errors import DeviceError

CLUSTER_DIMENSION = 4
"""CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION."""

NO_SUCH_CLUSTER = 912
"""CUDA_ERROR_INVALID_CLUSTER_SIZE: no cluster of this size fits."""


class _Attribute(ctypes.Structure):
    """CUlaunchAttribute: a number, padding to 8 bytes, and 64 bytes of value."""

    _fields_ = (
        ("id", ctypes.c_int),
        ("padding", ctypes.c_char * 4),
        ("cluster", ctypes.c_uint * 3),
        ("rest", ctypes.c_char * 52),
    )


class _Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_void_p),
        ("attributes", ctypes.POINTER(_Attribute)),
        ("count", ctypes.c_uint),
    )


def config_of(launch: Launch, stream: int) -> _Config:
    """A launch as the driver wants it."""
    attribute = _Attribute(id=CLUSTER_DIMENSION, cluster=(launch.cluster, 1, 1))
    return _Config(
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
    config, count = config_of(launch, stream), ctypes.c_int()
    ask = library().cuOccupancyMaxActiveClusters
    status = ask(ctypes.byref(count), ctypes.c_void_p(function), ctypes.byref(config))
    if status == NO_SUCH_CLUSTER:
        return 0
    if status != 0:
        raise DeviceError(
            f"the driver does not say how many clusters of {launch.cluster} blocks fit",
            found=f"CUDA error {status}",
        )
    return int(count.value)
