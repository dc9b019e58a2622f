"""Results of a benchmark: timings, agreement with peers, roofline shares, ratios."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import exp, log

from lstm_cli.workflows.bench.sizes import GridSize

MODES = ("forward", "train")
"""Kinds of workload."""

WORK: Mapping[str, str] = {"forward": "forward passes", "train": "training steps"}
"""Phrase for the calls of each mode."""


@dataclass(frozen=True)
class Timing:
    """Time of one candidate at one size.

    Attributes
    ----------
    name, title
        ``torch`` and ``PyTorch 2.13.0``; this program is ``lstm-cli``.
    median, p95
        Seconds of one call: median and 95th percentile over the rounds.
    calls
        Number of timed calls.
    gflops
        10⁹ floating-point operations per second at the median; only matrix products count.
    """

    name: str
    title: str
    median: float
    p95: float
    calls: int
    gflops: float


@dataclass(frozen=True)
class PeerAgreement:
    """Agreement of a peer's results with this program's.

    Attributes
    ----------
    difference
        Largest absolute difference of the outputs, over max(1, |output|); of gradients, over
        the largest of their tensor. Infinite if shapes differ, NaN if one side holds a NaN.
    tolerance
        Largest difference of results that agree.
    ok
        Whether the results agree.
    what
        Name of the compared results: ``outputs``. For a training step, the first of ``loss``,
        ``gradient of ...`` and ``... after a step`` that differs. If all agree, the gradient with
        the largest difference.
    """

    difference: float
    tolerance: float
    ok: bool
    what: str = "outputs"


@dataclass(frozen=True)
class RooflineShares:
    """Shares of the machine's roofline that a median reaches.

    The limits are the best ones that were measured before and after the timings.

    Attributes
    ----------
    peak_gflops
        10⁹ multiply-add operations per second on all threads.
    of_peak
        Share of `peak_gflops` that the matrix products reach.
    read_bytes
        Bytes of recurrent weights that one call reads, once per step of each pass.
    read_gbytes
        10⁹ bytes per second at which all threads together can read these weights from the cache
        or memory that holds them; 0 without recurrent weights.
    of_reads
        Share of `read_gbytes` that the calls need if they read nothing else. It is large only
        where few sequences share a read: then reads bound the speed.
    """

    peak_gflops: float
    of_peak: float
    read_bytes: int = 0
    read_gbytes: float = 0.0
    of_reads: float = 0.0

    @property
    def bound(self) -> str:
        """Name of the nearer limit: ``peak`` or ``reads``."""
        return "reads" if self.of_reads > self.of_peak else "peak"

    @property
    def largest(self) -> float:
        """Share of the nearer limit."""
        return max(self.of_peak, self.of_reads)


@dataclass(frozen=True)
class PaddedTiming:
    """Timing of this program with all steps of a ragged batch valid.

    Attributes
    ----------
    timing
        Time on full-length sequences.
    per_step
        Time per step of full-length sequences over time per valid step of the ragged batch: the
        median of the ratios in each round. It is 1 where time is proportional to valid steps,
        and less where raggedness costs time.
    """

    timing: Timing
    per_step: float


@dataclass(frozen=True)
class SizeResult:
    """Results at one size.

    Attributes
    ----------
    size, layers
        The workload; `layers` in a few words, ``lstm 32 → 32``. It adds ``ragged``, and the loss
        of training steps: ``lstm 32 → 32, ragged, mse``.
    timings
        This program first, then every peer that agreed, in the order of `--against`.
    ratios
        Time of each peer over this program's: the median of the ratios in each round. Above 1
        this program is faster.
    agreements
        Agreement of each peer that computed results, by name.
    skipped
        Reason of each peer that computed no results, by name.
    mode
        One of `MODES`.
    shares
        Roofline shares of this program; None where the engine measures no limits.
    steps
        Valid steps of all sequences together; 0 if unknown.
    padded
        Timing on full-length sequences; None unless the batch is ragged.
    """

    size: GridSize
    layers: str
    timings: tuple[Timing, ...]
    ratios: Mapping[str, float] = field(default_factory=dict)
    agreements: Mapping[str, PeerAgreement] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    mode: str = "forward"
    shares: RooflineShares | None = None
    steps: int = 0
    padded: PaddedTiming | None = None

    @property
    def lstm_cli_timing(self) -> Timing:
        """Timing of this program."""
        return self.timings[0]

    @property
    def ahead_of_best(self) -> float | None:
        """Time of the fastest peer over this program's; None without a peer that agrees."""
        return min(self.ratios.values(), default=None)


def geometric_mean(results: Iterable[SizeResult]) -> float | None:
    """Geometric mean of `ahead_of_best` over the sizes that have it; None if no size has."""
    ratios = [r.ahead_of_best for r in results if r.ahead_of_best is not None]
    return exp(sum(map(log, ratios)) / len(ratios)) if ratios else None
