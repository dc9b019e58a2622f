"""The timing protocol: warm up, then interleaved rounds whose order rotates.

Contestants share a machine that is never quite still. In every round each has its turn, so a
slow second hits them alike, and a ratio is taken within a round; nobody is always first.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from time import perf_counter, process_time, sleep
from typing import Any

import numpy as np
from numpy.typing import NDArray

Call = Callable[[], Any]

SAMPLE_SECONDS = 1e-3
"""A sample is at least about this long: shorter calls are repeated within it."""

SETTLE_SECONDS, SETTLED, LONGEST_SETTLING = 12e-3, 0.2, 0.2
"""Before a turn, threads of the contestant before it may spin on, some for 50 milliseconds. So the
turn begins after a pause in which this process used less than so much of a core (of a thread that
runs, the system knows every 4 milliseconds); or after the longest one."""

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


def interleave(calls: Sequence[Call], rounds: int | None, seconds: float) -> Samples:
    """Time `calls` against each other.

    Parameters
    ----------
    rounds
        How many; None: as many as fit in `seconds`, within `ROUNDS`.
    seconds
        About how long each contestant may take, warm-up apart.
    """
    with _garbage_kept():
        steady = [_warm_up(call, seconds) for call in calls]
        repeats = tuple(max(1, ceil(SAMPLE_SECONDS / max(s, 1e-7))) for s in steady)
        count = rounds or _affordable(steady, repeats, seconds)
        taken = np.empty((count, len(calls)))
        for number in range(count):
            for k in _order(number, len(calls)):
                taken[number, k] = _sample(calls[k], repeats[k])
    return Samples(taken, repeats)


def _order(number: int, contestants: int) -> list[int]:
    """Who comes when in a round: 0 1 2, then 1 2 0, then 2 0 1."""
    return [(number + k) % contestants for k in range(contestants)]


def _sample(call: Call, repeats: int) -> float:
    """Seconds a call, after one that is not timed: caches and threads are others' by now."""
    _settle()
    call()
    begun = perf_counter()
    for _ in range(repeats):
        call()
    return (perf_counter() - begun) / repeats


def _settle() -> None:
    """Pause until no thread of this process works."""
    begun = now = perf_counter()
    while now - begun < LONGEST_SETTLING:
        used, before = process_time(), now
        sleep(SETTLE_SECONDS)
        now = perf_counter()
        if process_time() - used < SETTLED * (now - before):
            return


def _warm_up(call: Call, seconds: float) -> float:
    """Call until two calls in succession take about as long; how long that is."""
    spent, before = 0.0, _timed(call)
    for _ in range(WARM_UP_CALLS):
        now = _timed(call)
        spent += now
        if abs(now - before) <= STEADY * before or spent > seconds:
            return min(now, before)
        before = now
    return before


def _timed(call: Call) -> float:
    begun = perf_counter()
    call()
    return perf_counter() - begun


def _affordable(steady: Sequence[float], repeats: Sequence[int], seconds: float) -> int:
    """Rounds that let the slowest contestant stay within `seconds`."""
    turn = max(
        SETTLE_SECONDS + s * (n + 1)  # one call more than is timed
        for s, n in zip(steady, repeats, strict=True)
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
