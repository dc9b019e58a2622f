"""What a benchmark gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import exp, log

from lstm_cli.bench.sizes import Size

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
class Agreement:
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
class SizeResult:
    """One size.

    Attributes
    ----------
    size, layers
        What was measured; `layers` in a few words, ``lstm 32 → 32``, of training steps with the
        loss, ``lstm 32 → 32, mse``.
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
    """

    size: Size
    layers: str
    timings: tuple[Timing, ...]
    ratios: Mapping[str, float] = field(default_factory=dict)
    agreements: Mapping[str, Agreement] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    mode: str = "forward"

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
