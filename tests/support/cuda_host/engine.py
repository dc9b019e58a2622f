"""The cuda engine without a GPU, among the engines that tests run on."""

from __future__ import annotations

from cuda_host import build
from cuda_host.device import HostDevice
from lstm_cli.engines.cuda.engine import CudaEngine
from lstm_cli.engines.selection import EngineStatus, create_engine, engine_statuses
from lstm_cli.engines.types import SUPPORTED_DTYPES, Engine

HOST = EngineStatus("cuda-host", "host", True, "GPU kernels built with g++", SUPPORTED_DTYPES)
"""The kernels' sources on the host."""


def statuses() -> list[EngineStatus]:
    """Every engine that can be used here, the host's where it can be built."""
    found = [HOST] if build.COMPILER else []
    return found + [status for status in engine_statuses() if status.usable]


def make(status: EngineStatus, dtype: str) -> Engine:
    """One of `statuses`."""
    if status is HOST:
        return CudaEngine(dtype, HostDevice(multiprocessors=2))
    return create_engine(status.engine, status.device, dtype)
