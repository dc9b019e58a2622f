"""The timing protocol: warm up, then interleaved rounds whose order rotates.

Contestants share a machine that is never quite still. In every round each has its turn, so a
slow second hits them alike, and a ratio is taken within a round; nobody is always first.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from lstm_cli.bench.clocks import WALL, Call, Clock

STEADY = 0.2
"""Warm-up ends when two calls in succession differ by less than this share."""

WARM_UP_CALLS = 50
ROUNDS = (5, 50)
"""Fewest and most rounds, where their number is not asked for."""


@dataclass(frozen=True)
class Samples:
    """What the rounds gave.

    Attributes
    ----------
    seconds
        Seconds a call, (rounds, contestants).
    repeats
        Calls in a sample, by contestant.
    """

    seconds: NDArray[np.float64]
    repeats: tuple[int, ...]


def interleave(
    calls: Sequence[Call],
    rounds: int | None,
    seconds: float,
    clocks: Sequence[Clock] | None = None,
) -> Samples:
    """Time `calls` against each other.

    Parameters
    ----------
    rounds
        How many; None: as many as fit in `seconds`, within `ROUNDS`.
    seconds
        About how long each contestant may take, warm-up apart.
    clocks
        One for each; None: the processor's for all.
    """
    clocks = [WALL] * len(calls) if clocks is None else clocks
    pairs = list(zip(calls, clocks, strict=True))
    with _garbage_kept():
        steady = [_warm_up(call, clock, seconds) for call, clock in pairs]
        repeats = tuple(
            max(1, ceil(clock.sample / max(s, 1e-7)))
            for s, clock in zip(steady, clocks, strict=True)
        )
        count = rounds or _affordable(steady, repeats, clocks, seconds)
        taken = np.empty((count, len(calls)))
        for number in range(count):
            for k in _order(number, len(calls)):
                taken[number, k] = _sample(*pairs[k], repeats[k])
    return Samples(taken, repeats)


def _order(number: int, contestants: int) -> list[int]:
    """Who comes when in a round: 0 1 2, then 1 2 0, then 2 0 1."""
    return [(number + k) % contestants for k in range(contestants)]


def _sample(call: Call, clock: Clock, repeats: int) -> float:
    """Seconds a call, after one that is not timed: caches and threads are others' by now."""
    clock.settle()
    call()
    return clock.seconds(call, repeats) / repeats


def _warm_up(call: Call, clock: Clock, seconds: float) -> float:
    """Call until two calls in succession take about as long; how long that is."""
    spent, before = 0.0, clock.seconds(call, 1)
    for _ in range(WARM_UP_CALLS):
        now = clock.seconds(call, 1)
        spent += now
        if abs(now - before) <= STEADY * before or spent > seconds:
            return min(now, before)
        before = now
    return before


def _affordable(
    steady: Sequence[float], repeats: Sequence[int], clocks: Sequence[Clock], seconds: float
) -> int:
    """Rounds that let the slowest contestant stay within `seconds`."""
    turn = max(
        clock.pause + s * (n + 1)  # one call more than is timed
        for s, n, clock in zip(steady, repeats, clocks, strict=True)
    )
    fewest, most = ROUNDS
    return max(fewest, min(most, int(seconds / turn)))


@contextmanager
def _garbage_kept() -> Iterator[None]:
    """No garbage collection inside: it would fall on whoever happens to run."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
