"""Where an engine's arrays are, and what a peer of it is to compute in."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np

from lstm_cli.bench.clocks import WALL, Clock, DeviceClock
from lstm_cli.bench.peers import Setting
from lstm_cli.engines.cuda.runtime.device import Device
from lstm_cli.engines.threads import default_threads
from lstm_cli.engines.types import Array, Engine


@runtime_checkable
class Accelerated(Protocol):
    """An engine whose arrays are in the memory of a device of its own."""

    @property
    def hardware(self) -> Device:
        """The device."""


def resident(engine: Engine, array: Array) -> Any:
    """The array where the engine computes."""
    return engine.hardware.upload(array) if isinstance(engine, Accelerated) else array


def clock_of(engine: Engine) -> Clock:
    """What takes the time of the engine's work."""
    return DeviceClock(engine.hardware) if isinstance(engine, Accelerated) else WALL


def setting_of(engine: Engine, dtype: str | None = None) -> Setting:
    """The same device, dtype and threads for a peer; the dtype may be another."""
    # Tests run the kernels of a GPU on the processor: there are its peers, too.
    shim = isinstance(engine, Accelerated) and engine.hardware.architecture == "host"
    device = "cpu" if shim else engine.device
    return Setting(engine.threads or default_threads(), device, dtype or engine.dtype)


def numpy_dtype(engine: Engine) -> str:
    """The engine's dtype as NumPy knows it."""
    return "float64" if engine.dtype == "float64" else "float32"


def weight_bytes(engine: Engine) -> int:
    """Of one number of a recurrent layer's matrices."""
    return 2 if engine.dtype in ("bfloat16", "float16") else np.dtype(numpy_dtype(engine)).itemsize
