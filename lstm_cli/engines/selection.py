"""Which engines can be used here, and the choice of one."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lstm_cli.engines.reference import ReferenceEngine
from lstm_cli.engines.threads import default_threads
from lstm_cli.engines.types import SUPPORTED_DTYPES, Engine
from lstm_cli.errors import DeviceError, UsageError, nearest

ENGINES = ("auto", "reference", "jit", "cuda")
DTYPES = ("float32", "float64", "bfloat16", "tf32", "float16")


@dataclass(frozen=True)
class EngineStatus:
    """Whether an engine can be used here.

    Attributes
    ----------
    engine, device
        ``reference`` on ``cpu``, and so on.
    usable
        Whether `create_engine` will make it.
    detail
        What it computes with, or why it cannot be used.
    dtypes
        What it computes in.
    """

    engine: str
    device: str
    usable: bool
    detail: str
    dtypes: tuple[str, ...] = ()


def engine_statuses() -> tuple[EngineStatus, ...]:
    """Every engine of the project, usable or not, in the order `auto` prefers them."""
    import numpy as np

    return (
        EngineStatus("cuda", "cuda", False, "this version has no GPU engine"),
        EngineStatus("jit", "cpu", False, "this version has no compiled CPU engine"),
        EngineStatus(
            "reference",
            "cpu",
            True,
            f"NumPy {np.__version__}, {default_threads()} threads by default",
            SUPPORTED_DTYPES,
        ),
    )


def create_engine(
    engine: str = "auto",
    device: str = "auto",
    dtype: str = "float32",
    threads: int | None = None,
) -> Engine:
    """The engine asked for; ``auto`` takes the first that can be used on the device.

    Raises
    ------
    UsageError
        A name that is no engine, device or dtype; fewer threads than one.
    DeviceError
        The engine, device or dtype cannot be used here. There is no silent fallback.
    """
    _check_name("engine", engine, ENGINES)
    _check_name("dtype", dtype, DTYPES)
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
        raise UsageError(
            f"{device!r} is not a device", expected="auto, cpu, cuda or cuda:N", found=device
        )
    if threads is not None and threads < 1:
        raise UsageError("threads must be at least 1", found=str(threads))
    kind = device.partition(":")[0]
    fitting = [
        status
        for status in engine_statuses()
        if engine in ("auto", status.engine) and kind in ("auto", status.device)
    ]
    if not any(status.usable for status in fitting):
        raise _unusable(engine, device, fitting)
    return ReferenceEngine(dtype, threads or default_threads())


def _check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        guess = nearest(name, SUPPORTED_DTYPES if what == "dtype" else known)
        raise UsageError(
            f"{name!r} is not {'an' if what[0] in 'aeiou' else 'a'} {what}",
            expected=", ".join(known),
            hint=f"did you mean `{guess}`?" if guess else None,
        )


def _unusable(engine: str, device: str, fitting: list[EngineStatus]) -> DeviceError:
    if not fitting:
        home = next(s.device for s in engine_statuses() if s.engine == engine)
        return DeviceError(
            f"the {engine} engine does not run on {device}",
            expected=f"--device {home}",
            found=f"--device {device}",
        )
    asked = f"device {device}" if device != "auto" else f"engine {engine}"
    return DeviceError(
        f"{asked} cannot be used here",
        found="; ".join(f"{status.engine}: {status.detail}" for status in fitting),
        hint="--device cpu computes with the reference engine; lstm-cli devices lists all",
    )
