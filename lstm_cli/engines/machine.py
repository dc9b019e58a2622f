"""The machine that engines run on: number of threads, and measured peak rates.

The default number of threads is the cgroup's CPU quota, or else the number of physical cores.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from lstm_cli.errors import UsageError, described

MOST_THREADS = 1024
"""Largest number of threads accepted. A larger number is treated as a mistake."""

_CGROUP = Path("/sys/fs/cgroup")
_TOPOLOGY = Path("/sys/devices/system/cpu")


def default_threads() -> int:
    """Default number of threads, at least 1."""
    allowed = _allowed()
    quota = _cgroup_quota()
    if quota is not None:
        return max(1, min(len(allowed), quota))
    return max(1, _physical_cores(allowed))


def allowed_threads() -> int:
    """Number of processors that this process may use at once. Every hardware thread counts."""
    allowed, quota = len(_allowed()), _cgroup_quota()
    return max(1, allowed if quota is None else min(allowed, quota))


def checked_threads(threads: Any) -> int | None:
    """A requested number of threads. None means that none was requested.

    Raises
    ------
    UsageError
        It is not a whole number from 1 to `MOST_THREADS`.
    """
    if threads is None:
        return None
    whole = isinstance(threads, Integral) and not isinstance(threads, bool)
    if whole and 1 <= threads <= MOST_THREADS:
        return int(threads)
    raise UsageError(
        "threads cannot be used as given",
        expected=f"a whole number from 1 to {MOST_THREADS:,}, or None",
        found=described(threads),
    )


def _allowed() -> set[int]:
    """Numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return set(os.sched_getaffinity(0))
    return set(range(os.cpu_count() or 1))


def _cgroup_quota() -> int | None:
    """CPU quota of the cgroup in processors, rounded up. None if the cgroup sets no limit."""
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()[:2]
    except (OSError, ValueError):
        try:
            quota = (_CGROUP / "cpu/cpu.cfs_quota_us").read_text().strip()
            period = (_CGROUP / "cpu/cpu.cfs_period_us").read_text().strip()
        except OSError:
            return None
    try:
        return ceil(int(quota) / int(period)) if int(quota) > 0 else None
    except (ValueError, ZeroDivisionError):
        return None  # cgroup v2 writes "max" for no limit


def _physical_cores(allowed: set[int]) -> int:
    """Number of physical cores among the processors `allowed`."""
    cores = set()
    for processor in allowed:
        try:
            siblings = _TOPOLOGY / f"cpu{processor}/topology/thread_siblings_list"
            cores.add(siblings.read_text().strip())
        except OSError:
            return len(allowed)
    return len(cores)


# Peak rates


@dataclass(frozen=True)
class ReadBandwidth:
    """Read bandwidth of memory of one size that is read repeatedly.

    Attributes
    ----------
    bytes
        Bytes that all threads together read. Each thread reads its own share.
    gbytes
        Bandwidth of all threads together, in 10⁹ bytes per second.
    """

    bytes: int
    gbytes: float


@dataclass(frozen=True)
class MachinePeaks:
    """Measured peak rates of a machine with all of an engine's threads.

    Attributes
    ----------
    gflops
        10⁹ floating-point operations per second in multiply-adds, which are two operations each.
    reads
        Read bandwidth for each requested size.
    """

    gflops: float
    reads: tuple[ReadBandwidth, ...] = ()

    @classmethod
    def best(cls, measured: Iterable[MachinePeaks]) -> MachinePeaks:
        """The highest measured value of each rate, since interference only lowers a rate."""
        peak, reads = 0.0, dict[int, float]()
        for peaks in measured:
            peak = max(peak, peaks.gflops)
            for read in peaks.reads:
                reads[read.bytes] = max(reads.get(read.bytes, 0.0), read.gbytes)
        return cls(peak, tuple(ReadBandwidth(size, speed) for size, speed in reads.items()))


@runtime_checkable
class MeasurableEngine(Protocol):
    """An engine that can measure its machine's peak rates and count its own memory."""

    @property
    def workspace_bytes(self) -> int:
        """Bytes of working memory that the engine holds between calls, without weights."""

    def measure_peaks(self, sizes: Sequence[int] = ()) -> MachinePeaks:
        """Measured rates of multiply-adds and of reads; some 10 ms per size.

        Parameters
        ----------
        sizes
            Sizes in bytes of the memory that all threads together read repeatedly. By default
            two, per thread: half of a core's second-level cache, and four such caches.
        """
