"""The machine of a benchmark: hardware, software, memory, and load by other programs."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter

from lstm_cli.engines.protocols import Engine
from lstm_cli.engines.threads import default_threads
from lstm_cli.workflows.bench.peers import Peer

_CPUINFO = Path("/proc/cpuinfo")
_STAT = Path("/proc/stat")
_NOT_WORK = (3, 4, 7)
"""Columns of /proc/stat in which no program works: idle, iowait, steal."""


@dataclass(frozen=True)
class MachineInfo:
    """Hardware and software.

    Attributes
    ----------
    processor
        Model, ``AMD EPYC 9654``; the architecture where the system does not report a model.
    cores
        Number of logical processors.
    threads
        Threads per candidate.
    system
        ``Linux x86_64``.
    versions
        Version of each package: Python, NumPy, lstm-cli, the peers, and a GPU's driver.
    accelerator
        Name of the GPU, ``NVIDIA H200``; empty if the CPU computes.
    """

    processor: str
    cores: int
    threads: int
    system: str
    versions: Mapping[str, str] = field(default_factory=dict)
    accelerator: str = ""


def machine(
    threads: int | None = None, peers: Sequence[Peer] = (), engine: Engine | None = None
) -> MachineInfo:
    """Describe this machine; `threads` None means the default, `engine` may add its GPU."""
    import numpy as np

    from lstm_cli.version import __version__

    versions = {
        "lstm-cli": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    accelerator = ""
    if engine is not None and engine.accelerator is not None:
        accelerator = engine.accelerator.title
        versions |= engine.accelerator.versions
    for peer in peers:
        versions |= peer.versions
    return MachineInfo(
        _processor(),
        os.cpu_count() or 1,
        threads or default_threads(),
        f"{platform.system()} {platform.machine()}",
        versions,
        accelerator,
    )


def _processor() -> str:
    """The processor's model from /proc/cpuinfo, else from the standard library."""
    try:
        lines = _CPUINFO.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


@dataclass
class OtherPrograms:
    """Load by other programs.

    Attributes
    ----------
    cores
        Average number of cores that other programs used; None if unknown. Above 0.2,
        threads that wait for each other lose whole time slices, and ratios are unreliable.
    """

    cores: float | None = None


@contextmanager
def watch_other_programs() -> Iterator[OtherPrograms]:
    """Measure the load by other programs within this context; the result is set at its end."""
    others = OtherPrograms()
    start, before = perf_counter(), _other_seconds()
    try:
        yield others
    finally:
        after, spent = _other_seconds(), perf_counter() - start
        if before is not None and after is not None and spent > 0:
            others.cores = max(0.0, (after - before) / spent)


def _other_seconds() -> float | None:
    """Processor seconds of other programs since the machine started; None if unknown."""
    try:
        columns = _STAT.read_text().split("\n", 1)[0].split()[1:9]
        ticks = os.sysconf("SC_CLK_TCK")
        busy = sum(int(n) for k, n in enumerate(columns) if k not in _NOT_WORK)
    except (OSError, ValueError, AttributeError):  # not Linux
        return None
    return busy / ticks - sum(os.times()[:4])  # without this process and its children


@dataclass(frozen=True)
class MemoryUse:
    """Memory that a benchmark uses.

    Attributes
    ----------
    peak
        Peak bytes of this process, peers included; None where the system does not report it.
    workspace
        Bytes of the engine's workspace for the largest size, without weights; None where the
        engine does not report it.
    """

    peak: int | None
    workspace: int | None = None


def memory(engine: Engine) -> MemoryUse:
    """Memory that this process and the engine have used so far."""
    return MemoryUse(peak_memory(), engine.workspace_bytes)


def peak_memory() -> int | None:
    """Peak bytes of this process, peers included; None where the system does not report it."""
    try:
        import resource
    except ImportError:
        return _peak_on_windows()
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024  # kilobytes but on macOS


class _Counters(ctypes.Structure):
    """Windows' PROCESS_MEMORY_COUNTERS."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("faults", ctypes.c_uint32),
        ("peak", ctypes.c_size_t),
        *((f"rest_{k}", ctypes.c_size_t) for k in range(7)),
    )


def _peak_on_windows() -> int | None:
    library = getattr(ctypes, "WinDLL", None)  # on Windows only
    if library is None:
        return None
    system, counters = library("kernel32"), _Counters()
    counters.size = ctypes.sizeof(counters)
    this_process = ctypes.c_void_p(-1)  # GetCurrentProcess always returns -1
    success = system.K32GetProcessMemoryInfo(this_process, ctypes.byref(counters), counters.size)
    return int(counters.peak) if success else None
