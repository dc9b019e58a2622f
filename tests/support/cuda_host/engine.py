"""Engines that tests run on, with the cuda engine on the host among them."""

from __future__ import annotations

from cuda_host import build
from cuda_host.device import HostDevice
from lstm_cli.engines.cuda.engine import CudaEngine
from lstm_cli.engines.protocols import Engine
from lstm_cli.engines.selection import EngineStatus, create_engine, engine_statuses
from lstm_cli.engines.types import SUPPORTED_DTYPES

HOST = EngineStatus("cuda-host", "host", True, "GPU kernels built with g++", SUPPORTED_DTYPES)
"""Status of the cuda engine on the host."""


def statuses() -> list[EngineStatus]:
    """Every usable engine; the cuda engine on the host needs a C++ compiler."""
    host = [HOST] if build.COMPILER else []
    return host + [status for status in engine_statuses() if status.usable]


def make(status: EngineStatus, dtype: str) -> Engine:
    """Create the engine of a status."""
    if status is HOST:
        return CudaEngine(dtype, HostDevice(multiprocessors=2))
    return create_engine(status.engine, status.device, dtype)
