"""Selection of an engine: status of each engine on this machine, and the choice of one."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lstm_cli.engines.protocols import Engine
from lstm_cli.engines.threads import checked_threads, default_threads
from lstm_cli.engines.types import SUPPORTED_DTYPES
from lstm_cli.errors import DeviceError, UsageError, described, nearest, nearest_first

if TYPE_CHECKING:
    from lstm_cli.engines.cuda.runtime.status import GpuStatus

ENGINES = ("auto", "reference", "jit", "cuda")
DTYPES = ("float32", "float64", "bfloat16", "tf32", "float16")


@dataclass(frozen=True)
class EngineStatus:
    """Status of an engine on this machine.

    Attributes
    ----------
    engine, device
        Name and device: ``reference`` on ``cpu``, and so on.
    usable
        Whether `create_engine` can create it.
    detail
        Hardware and versions it uses, or the reason why it cannot be used.
    dtypes
        Dtypes it computes in.
    threads
        Default number of threads.
    processor, vector_bits
        Processor and vector width of its kernels.
    gpus
        All GPUs, usable or not.
    versions
        Versions of the driver and of packages, by name.
    hint
        Advice that makes an unusable engine usable.
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
class EngineChoice:
    """The chosen engine, and the engines that ``auto`` skipped.

    Attributes
    ----------
    engine
        The chosen engine.
    passed_over
        Engines that ``auto`` prefers, with the reason why they cannot be used. cuda is included
        only if the machine has a GPU.
    """

    engine: Engine
    passed_over: Mapping[str, str]

    @property
    def notes(self) -> tuple[str, ...]:
        """One line for every engine that was passed over."""
        return tuple(
            f"{name} cannot be used here: {reason}; computing with {self.engine.name}"
            for name, reason in self.passed_over.items()
        )


def engine_statuses() -> tuple[EngineStatus, ...]:
    """Status of every engine, in the order in which `auto` prefers them."""
    return tuple(_status(name) for name in _DEVICES)


def create_engine(
    engine: str = "auto",
    device: str = "auto",
    dtype: str = "float32",
    threads: int | None = None,
) -> Engine:
    """The requested engine; see `choose_engine`."""
    return choose_engine(engine, device, dtype, threads).engine


def choose_engine(
    engine: str = "auto",
    device: str = "auto",
    dtype: str = "float32",
    threads: int | None = None,
) -> EngineChoice:
    """The requested engine. ``auto`` takes the first engine that can be used on the device.

    Raises
    ------
    UsageError
        The name of engine, device or dtype is unknown, or threads is not from 1 to 1,024.
    DeviceError
        The engine, device or dtype cannot be used here. Only ``auto`` may skip an engine, and
        `EngineChoice.notes` then names it.
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
    for name in _candidates(engine, device):
        status = _status(name)  # examining an engine takes time, so stop at the first usable one
        if status.usable:
            chosen = _make(name, dtype, threads, device, status)
            passed_over = {
                s.engine: s.detail for s in unusable if s.device == status.device or s.gpus
            }
            return EngineChoice(chosen, passed_over)
        unusable.append(status)
    raise _unusable(engine, device, unusable)


def _candidates(engine: str, device: str) -> list[str]:
    """Engines that fit the request, in the order in which `auto` prefers them."""
    kind = device.partition(":")[0]
    engines = [name for name in _DEVICES if engine in ("auto", name)]
    candidates = [name for name in engines if kind in ("auto", _DEVICES[name])]
    if not candidates:
        raise DeviceError(
            f"the {engine} engine does not run on {device}",
            expected=f"--device {_DEVICES[engine]}",
            found=f"--device {device}",
        )
    return candidates


def _make(name: str, dtype: str, threads: int | None, device: str, status: EngineStatus) -> Engine:
    if name == "cuda":
        return _cuda(dtype, _ordinal(device, status.gpus))
    return _ENGINES[name](dtype, threads or default_threads())


def _ordinal(device: str, gpus: Sequence[GpuStatus]) -> int:
    """Number of the requested GPU, or of the first that can be used.

    Raises
    ------
    DeviceError
        The GPU does not exist, or cannot be used.
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
    option, value = ("device", device) if engine == "auto" else ("engine", engine)
    short = [status.detail for status in statuses if status.detail.startswith(_NO_MEMORY)]
    if short:
        raise MemoryError(short[0].removeprefix(f"{_NO_MEMORY}: "))
    hints = [status.hint for status in statuses if status.hint is not None]
    return DeviceError(
        f"{option} {value} cannot be used here",
        found="; ".join(f"{status.engine}: {status.detail}" for status in statuses),
        hint=hints[0] if hints else f"--{option} auto takes what can be used; {_LIST_HINT}",
    )


def dtype_name(dtype: object) -> str:
    """Name of a dtype, given as a name or as a dtype of NumPy, PyTorch or ml_dtypes.

    Raises
    ------
    UsageError
        The argument is not a dtype.
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


def _check_name(what: str, name: object, names: tuple[str, ...]) -> None:
    if not isinstance(name, str):
        raise UsageError(
            f"the {what} cannot be used as given",
            expected=f"{', '.join(names)}, a text",
            found=described(name),
        )
    if name not in names:
        guess = nearest(name, SUPPORTED_DTYPES if what == "dtype" else names)
        raise UsageError(
            f"{name!r} is not {'an' if what[0] in 'aeiou' else 'a'} {what}",
            expected=", ".join(nearest_first(name, names)),
            hint=f"did you mean `{guess}`?" if guess else None,
        )


# Each engine: its device, its status, and its constructor


def _cuda_status() -> EngineStatus:
    from lstm_cli.engines.cuda.runtime.status import DTYPES, cuda_status

    status = cuda_status()
    usable = [gpu for gpu in status.gpus if gpu.usable]
    if status.problem is not None or not usable:
        return EngineStatus(
            "cuda",
            "cuda",
            False,
            status.problem or "no GPU can be used",
            gpus=status.gpus,
            versions=status.versions,
            hint=status.hint,
        )
    first, versions = usable[0], status.versions
    detail = f"{first.title}, CUDA {versions['driver']}, CuPy {versions['cupy']}"
    return EngineStatus("cuda", "cuda", True, detail, DTYPES, gpus=status.gpus, versions=versions)


def _jit_status() -> EngineStatus:
    from lstm_cli.engines.jit.runtime.machine import UnusableMachine, this_machine

    try:
        machine = this_machine()
    except UnusableMachine as reason:
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
    from lstm_cli.engines.reference.engine import ReferenceEngine

    return ReferenceEngine(dtype, threads)


_DEVICES = {"cuda": "cuda", "jit": "cpu", "reference": "cpu"}
"""Device of every engine, in the order in which `auto` prefers them."""

_STATUSES = {"cuda": _cuda_status, "jit": _jit_status, "reference": _reference_status}

_ENGINES: Mapping[str, Callable[[str, int], Engine]] = {"jit": _jit, "reference": _reference}


def _status(name: str) -> EngineStatus:
    return _STATUSES[name]()
