"""What a benchmark gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import exp, log

from lstm_cli.bench.sizes import GridSize

MODES = ("forward", "train")
"""What can be measured."""

WORK: Mapping[str, str] = {"forward": "forward passes", "train": "training steps"}
"""By mode, what a call is, in words."""


@dataclass(frozen=True)
class Timing:
    """How long one contestant took at one size.

    Attributes
    ----------
    name, title
        ``torch`` and ``PyTorch 2.13.0``; this program is ``lstm-cli``.
    median, p95
        Seconds of one call: median and 95th percentile over the rounds.
    calls
        Calls that were timed.
    gflops
        10⁹ floating-point operations a second at the median; only matrix products count.
    """

    name: str
    title: str
    median: float
    p95: float
    calls: int
    gflops: float


@dataclass(frozen=True)
class PeerAgreement:
    """Whether a peer computes the same.

    Attributes
    ----------
    difference
        Largest absolute difference of the outputs, over max(1, |output|); of gradients, over
        the largest of their tensor. Infinite if shapes differ, NaN if one side holds a NaN.
    tolerance
        Largest difference that counts as the same.
    ok
        Whether it does.
    what
        What was compared. Of a training step: the first of ``loss``, ``gradient of ...`` and
        ``... after a step`` that differs; the gradient with the largest difference if all agree.
    """

    difference: float
    tolerance: float
    ok: bool
    what: str = "outputs"


@dataclass(frozen=True)
class RooflineShares:
    """A median beside the machine's limits, as they were at their best around all the timings.

    Attributes
    ----------
    peak_gflops
        10⁹ operations a second in multiply-adds on all threads.
    of_peak
        The share of it that the matrix products get.
    read_bytes
        Recurrent weights of one call, read once a step (in training forwards and backwards).
    read_gbytes
        10⁹ bytes a second at which all threads together can read as many, over and over, from
        the cache or memory that holds them; 0 where there are none.
    of_reads
        The share of it that the calls would need if they read nothing else. It can be large only
        where few sequences share what is read: then it is what bounds the speed.
    """

    peak_gflops: float
    of_peak: float
    read_bytes: int = 0
    read_gbytes: float = 0.0
    of_reads: float = 0.0

    @property
    def bound(self) -> str:
        """The nearer limit: ``peak`` or ``reads``."""
        return "reads" if self.of_reads > self.of_peak else "peak"

    @property
    def largest(self) -> float:
        """The share of the nearer limit."""
        return max(self.of_peak, self.of_reads)


@dataclass(frozen=True)
class PaddedTiming:
    """The same network on the same inputs, as if every sequence had all steps.

    Attributes
    ----------
    timing
        Of this program.
    per_step
        Its time a step over our time a valid step, the median of the rounds' own ratios: 1 where
        time is proportional to valid steps, less where raggedness costs something.
    """

    timing: Timing
    per_step: float


@dataclass(frozen=True)
class SizeResult:
    """One size.

    Attributes
    ----------
    size, layers
        What was measured; `layers` in a few words, ``lstm 32 → 32``, with ``ragged`` if it was,
        of training steps with the loss: ``lstm 32 → 32, ragged, mse``.
    timings
        This program first, then every peer that agreed, in the order asked for.
    ratios
        By peer: its time over ours, the median of the rounds' own ratios. Above 1 we are faster.
    agreements
        By peer that gave something to compare.
    skipped
        By peer that gave none: why.
    mode
        One of `MODES`.
    shares
        Our timing beside the machine's limits; None where the engine does not know these.
    steps
        Valid steps of all sequences together; 0 if nobody counted.
    padded
        Of a ragged batch.
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
    def ours(self) -> Timing:
        """This program's timing."""
        return self.timings[0]

    @property
    def ahead_of_best(self) -> float | None:
        """The fastest peer's time over ours; None without a peer to compare with."""
        return min(self.ratios.values(), default=None)


def geometric_mean(results: Iterable[SizeResult]) -> float | None:
    """Geometric mean of `ahead_of_best` over the sizes that have it; None if none has."""
    ratios = [r.ahead_of_best for r in results if r.ahead_of_best is not None]
    return exp(sum(map(log, ratios)) / len(ratios)) if ratios else None
