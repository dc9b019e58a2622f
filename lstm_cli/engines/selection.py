"""Which engines can be used here, and the choice of one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lstm_cli.engines.threads import checked_threads, default_threads
from lstm_cli.engines.types import SUPPORTED_DTYPES, Engine
from lstm_cli.errors import DeviceError, UsageError, described, nearest, nearest_first

if TYPE_CHECKING:
    from lstm_cli.engines.cuda.runtime.status import GpuStatus

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
    threads
        How many it uses where none are asked for.
    processor, vector_bits
        What its kernels are made for.
    gpus
        All that there are, usable or not.
    versions
        Of the driver and of packages, by name.
    hint
        What makes it usable, where it is not.
    """

    engine: str
    device: str
    usable: bool
    detail: str
    dtypes: tuple[str, ...] = ()
    threads: int | None = None
    processor: str | None = None
    vector_bits: int | None = None
    gpus: tuple[GpuStatus, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    hint: str | None = None


@dataclass(frozen=True)
class Choice:
    """The engine that computes.

    Attributes
    ----------
    passed_over
        Engines that ``auto`` would have preferred here, and why they cannot be used. Of cuda only
        where there is a GPU.
    """

    engine: Engine
    passed_over: Mapping[str, str]

    @property
    def notes(self) -> tuple[str, ...]:
        """A line on every engine passed over."""
        return tuple(
            f"{name} cannot be used here: {reason}; computing with {self.engine.name}"
            for name, reason in self.passed_over.items()
        )


def engine_statuses() -> tuple[EngineStatus, ...]:
    """Every engine of the project, usable or not, in the order `auto` prefers them."""
    return tuple(_status(name) for name in _HOMES)


def create_engine(
    engine: str = "auto",
    device: str = "auto",
    dtype: str = "float32",
    threads: int | None = None,
) -> Engine:
    """The engine asked for; see `choose_engine`."""
    return choose_engine(engine, device, dtype, threads).engine


def choose_engine(
    engine: str = "auto",
    device: str = "auto",
    dtype: str = "float32",
    threads: int | None = None,
) -> Choice:
    """The engine asked for; ``auto`` takes the first that can be used on the device.

    Raises
    ------
    UsageError
        A name that is no engine, device or dtype; threads that are no number from 1 to 1,024.
    DeviceError
        The engine, device or dtype cannot be used here. Only ``auto`` falls back, and the choice
        says so.
    """
    dtype = dtype_name(dtype)
    _check_name("engine", engine, ENGINES)
    _check_name("dtype", dtype, DTYPES)
    guess = nearest(device, ("auto", "cpu", "cuda")) if isinstance(device, str) else None
    if not isinstance(device, str) or not re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,6})?", device):
        raise UsageError(
            "the device cannot be used as given",
            expected="auto, cpu, cuda or cuda:N, a text",
            found=described(device),
            hint=f"did you mean `{guess}`?" if guess else None,
        )
    threads = checked_threads(threads)
    unusable: list[EngineStatus] = []
    for name in _fitting(engine, device):
        status = _status(name)  # of no engine behind the chosen one: to ask takes time
        if status.usable:
            made = _make(name, dtype, threads, device, status)
            passed = {s.engine: s.detail for s in unusable if s.device == status.device or s.gpus}
            return Choice(made, passed)
        unusable.append(status)
    raise _unusable(engine, device, unusable)


def _fitting(engine: str, device: str) -> list[str]:
    """Engines that are meant, in the order `auto` prefers them."""
    kind = device.partition(":")[0]
    named = [name for name in _HOMES if engine in ("auto", name)]
    found = [name for name in named if kind in ("auto", _HOMES[name])]
    if not found:
        raise DeviceError(
            f"the {engine} engine does not run on {device}",
            expected=f"--device {_HOMES[engine]}",
            found=f"--device {device}",
        )
    return found


def _make(name: str, dtype: str, threads: int | None, device: str, status: EngineStatus) -> Engine:
    if name == "cuda":
        return _cuda(dtype, _ordinal(device, status.gpus))
    return _ENGINES[name](dtype, threads or default_threads())


def _ordinal(device: str, gpus: Sequence[GpuStatus]) -> int:
    """The GPU that is meant: by its number, or the first that can be used.

    Raises
    ------
    DeviceError
        There is none of that number, or it cannot be used.
    """
    if ":" not in device:
        return next(k for k, gpu in enumerate(gpus) if gpu.usable)
    ordinal = int(device.partition(":")[2])
    names = ", ".join(gpu.name for gpu in gpus if gpu.usable)
    if ordinal >= len(gpus):
        raise DeviceError(
            f"there is no {device} here", expected=names, found=device, hint=_LIST_HINT
        )
    if not gpus[ordinal].usable:
        raise DeviceError(
            f"device {device} cannot be used here",
            expected=names,
            found=gpus[ordinal].detail,
            hint=_LIST_HINT,
        )
    return ordinal


_NO_MEMORY = "not enough memory"
_LIST_HINT = "lstm-cli devices lists all"


def _unusable(engine: str, device: str, statuses: Sequence[EngineStatus]) -> DeviceError:
    option, asked = ("device", device) if engine == "auto" else ("engine", engine)
    short = [status.detail for status in statuses if status.detail.startswith(_NO_MEMORY)]
    if short:
        raise MemoryError(short[0].removeprefix(f"{_NO_MEMORY}: "))
    hints = [status.hint for status in statuses if status.hint is not None]
    return DeviceError(
        f"{option} {asked} cannot be used here",
        found="; ".join(f"{status.engine}: {status.detail}" for status in statuses),
        hint=hints[0] if hints else f"--{option} auto takes what can be used; {_LIST_HINT}",
    )


def dtype_name(dtype: object) -> str:
    """The name of a type of numbers: a name, or what NumPy, PyTorch or ml_dtypes call one.

    Raises
    ------
    UsageError
        It names no type.
    """
    name = dtype
    if isinstance(dtype, type):
        name = dtype.__name__
    elif not isinstance(dtype, str):
        name = getattr(dtype, "name", None)  # np.dtype("float32")
        if name is None and type(dtype).__module__ == "torch":
            name = str(dtype).rpartition(".")[2]  # torch.float32
    if not isinstance(name, str):
        raise UsageError(
            "the dtype cannot be used as given",
            expected=f"{', '.join(DTYPES)}, or one of NumPy's dtypes",
            found=described(dtype),
        )
    return {"float": "float64"}.get(name, name) if isinstance(dtype, type) else name


def _check_name(what: str, name: object, known: tuple[str, ...]) -> None:
    if not isinstance(name, str):
        raise UsageError(
            f"the {what} cannot be used as given",
            expected=f"{', '.join(known)}, a text",
            found=described(name),
        )
    if name not in known:
        guess = nearest(name, SUPPORTED_DTYPES if what == "dtype" else known)
        raise UsageError(
            f"{name!r} is not {'an' if what[0] in 'aeiou' else 'a'} {what}",
            expected=", ".join(nearest_first(name, known)),
            hint=f"did you mean `{guess}`?" if guess else None,
        )


# Each engine: its device, its status, and how it is made


def _cuda_status() -> EngineStatus:
    """Whether there is a GPU, and all that it needs."""
    from lstm_cli.engines.cuda.runtime.status import DTYPES, cuda_status

    found = cuda_status()
    usable = [gpu for gpu in found.gpus if gpu.usable]
    if found.problem is not None or not usable:
        return EngineStatus(
            "cuda",
            "cuda",
            False,
            found.problem or "no GPU can be used",
            gpus=found.gpus,
            versions=found.versions,
            hint=found.hint,
        )
    first, versions = usable[0], found.versions
    detail = f"{first.title}, CUDA {versions['driver']}, CuPy {versions['cupy']}"
    return EngineStatus("cuda", "cuda", True, detail, DTYPES, gpus=found.gpus, versions=versions)


def _jit_status() -> EngineStatus:
    """Whether kernels can be made for this processor."""
    from lstm_cli.engines.jit.machine import Unusable, host

    try:
        machine = host()
    except Unusable as reason:
        return EngineStatus("jit", "cpu", False, str(reason))
    except MemoryError as reason:
        return EngineStatus("jit", "cpu", False, f"{_NO_MEMORY}: {reason}")
    threads, bits = default_threads(), machine.vector_bits
    detail = f"{machine.cpu}, {bits}-bit vectors, {_by_default(threads)}"
    dtypes = (*SUPPORTED_DTYPES, "bfloat16")
    return EngineStatus("jit", "cpu", True, detail, dtypes, threads, machine.cpu, bits)


def _reference_status() -> EngineStatus:
    import numpy as np

    threads = default_threads()
    detail = f"NumPy {np.__version__}, {_by_default(threads)}"
    return EngineStatus("reference", "cpu", True, detail, SUPPORTED_DTYPES, threads)


def _by_default(threads: int) -> str:
    return f"{threads} thread{'s' if threads != 1 else ''} by default"


def _cuda(dtype: str, ordinal: int) -> Engine:
    from lstm_cli.engines.cuda.engine import CudaEngine
    from lstm_cli.engines.cuda.runtime.gpu import shared_gpu

    return CudaEngine(dtype, shared_gpu(ordinal))


def _jit(dtype: str, threads: int) -> Engine:
    from lstm_cli.engines.jit.engine import JitEngine

    return JitEngine(dtype, threads)


def _reference(dtype: str, threads: int) -> Engine:
    from lstm_cli.engines.reference import ReferenceEngine

    return ReferenceEngine(dtype, threads)


_HOMES = {"cuda": "cuda", "jit": "cpu", "reference": "cpu"}
"""The device of every engine, in the order `auto` prefers them."""

_STATUSES = {"cuda": _cuda_status, "jit": _jit_status, "reference": _reference_status}

_ENGINES: Mapping[str, Callable[[str, int], Engine]] = {"jit": _jit, "reference": _reference}


def _status(name: str) -> EngineStatus:
    return _STATUSES[name]()
