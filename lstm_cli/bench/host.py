"""What a benchmark ran on."""

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

from lstm_cli.bench.peers import Peer
from lstm_cli.bench.workload import Accelerated
from lstm_cli.engines.limits import Measurable
from lstm_cli.engines.threads import default_threads
from lstm_cli.engines.types import Engine

_CPUINFO = Path("/proc/cpuinfo")
_STAT = Path("/proc/stat")
_NOT_WORK = (3, 4, 7)
"""Columns of /proc/stat that are no program's here: idle, waiting for a disk, stolen."""


@dataclass(frozen=True)
class MachineInfo:
    """Processor and software.

    Attributes
    ----------
    processor
        Its model, ``AMD EPYC 9654``; the architecture where the system does not tell.
    cores
        Logical processors of the machine.
    threads
        Threads each contestant used.
    system
        ``Linux x86_64``.
    versions
        By package: Python, NumPy, lstm-cli, and the peers; of a GPU what drives it, too.
    accelerator
        The GPU, ``NVIDIA H200``; empty where the processor computes.
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
    """This machine; `threads` None: what is used by default; `engine`: what computes."""
    import numpy as np

    from lstm_cli.version import __version__

    versions = {
        "lstm-cli": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
    }
    accelerator = ""
    if engine is not None and isinstance(engine, Accelerated):
        accelerator = engine.hardware.title
        versions |= getattr(engine.hardware, "versions", {})
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
    """The processor's model, from where Linux keeps it, else from the standard library."""
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
    """What other programs did meanwhile.

    Attributes
    ----------
    cores
        Cores' worth of time they took; None until it is known, or where the system does not
        tell. Much above 0.2, threads that wait for each other lose whole time slices, and
        ratios mislead.
    """

    cores: float | None = None


@contextmanager
def watch_other_programs() -> Iterator[OtherPrograms]:
    """Fills in, when it ends, how busy other programs were inside."""
    found = OtherPrograms()
    begun, before = perf_counter(), _others()
    try:
        yield found
    finally:
        after, spent = _others(), perf_counter() - begun
        if before is not None and after is not None and spent > 0:
            found.cores = max(0.0, (after - before) / spent)


def _others() -> float | None:
    """Seconds of processor time that other programs have had, since some moment."""
    try:
        columns = _STAT.read_text().split("\n", 1)[0].split()[1:9]
        ticks = os.sysconf("SC_CLK_TCK")
        busy = sum(int(n) for k, n in enumerate(columns) if k not in _NOT_WORK)
    except (OSError, ValueError, AttributeError):  # not Linux
        return None
    return busy / ticks - sum(os.times()[:4])  # this process's and its children's


@dataclass(frozen=True)
class MemoryUse:
    """What a benchmark took.

    Attributes
    ----------
    peak
        Bytes this process has held at most, peers and all; None where the system does not tell.
    workspace
        Bytes the engine keeps to compute in, of the largest it was asked for, weights apart; None
        where it does not say.
    """

    peak: int | None
    workspace: int | None = None


def memory(engine: Engine) -> MemoryUse:
    """What this process and the engine have taken so far."""
    workspace = engine.workspace_bytes if isinstance(engine, Measurable) else None
    return MemoryUse(peak_memory(), workspace)


def peak_memory() -> int | None:
    """Bytes this process has held at most, peers and all; None where the system does not tell."""
    try:
        import resource
    except ImportError:
        return _peak_on_windows()
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024  # elsewhere in kilobytes


class _Counters(ctypes.Structure):
    """Windows' PROCESS_MEMORY_COUNTERS."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("faults", ctypes.c_uint32),
        ("peak", ctypes.c_size_t),
        *((f"rest_{k}", ctypes.c_size_t) for k in range(7)),
    )


def _peak_on_windows() -> int | None:
    library = getattr(ctypes, "WinDLL", None)  # elsewhere there is none
    if library is None:
        return None
    system, counters = library("kernel32"), _Counters()
    counters.size = ctypes.sizeof(counters)
    own = ctypes.c_void_p(-1)  # what GetCurrentProcess returns, always
    told = system.K32GetProcessMemoryInfo(own, ctypes.byref(counters), counters.size)
    return int(counters.peak) if told else None
