"""What a machine can do at most, as an engine measures it with its own instructions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True)
class Reads:
    """How fast memory of one size can be read over and over.

    Attributes
    ----------
    bytes
        Of all threads together, each of which reads a share of its own.
    gbytes
        10⁹ bytes a second, all threads together.
    """

    bytes: int
    gbytes: float


@dataclass(frozen=True)
class Limits:
    """Measured limits of a machine, all of an engine's threads at work.

    Attributes
    ----------
    gflops
        10⁹ floating-point operations a second in multiply-adds, which are two each.
    reads
        One for each size that was asked for.
    """

    gflops: float
    reads: tuple[Reads, ...] = ()

    @classmethod
    def best(cls, measured: Iterable[Limits]) -> Limits:
        """The highest that was ever seen of each limit: what slows a try down is no limit."""
        peak, reads = 0.0, dict[int, float]()
        for limits in measured:
            peak = max(peak, limits.gflops)
            for one in limits.reads:
                reads[one.bytes] = max(reads.get(one.bytes, 0.0), one.gbytes)
        return cls(peak, tuple(Reads(size, speed) for size, speed in reads.items()))


@runtime_checkable
class Measurable(Protocol):
    """An engine that knows what its machine can do, and what it keeps."""

    @property
    def workspace_bytes(self) -> int:
        """Memory it holds to compute in, from call to call, beside the weights."""

    def limits(self, sizes: Sequence[int] = ()) -> Limits:
        """Measure, in some 10 ms a size: multiply-adds, and reads of so many bytes.

        Parameters
        ----------
        sizes
            Bytes that all threads together read over and over; none: what fits half a core's
            own cache for each thread, and four times a core's own cache.
        """
