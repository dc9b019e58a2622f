"""The timing protocol: clocks, warm-up, and interleaved rounds whose order rotates.

The machine's speed drifts. Every round times each candidate, so a slow second affects all
candidates alike. A ratio is taken within a round. The first candidate of a round rotates.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil
from time import perf_counter, process_time, sleep
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Call = Callable[[], Any]

SETTLE_SECONDS, SETTLE_SHARE, LONGEST_SETTLE_SECONDS = 12e-3, 0.2, 0.2
"""Seconds of one pause, share of a core that still counts as idle, and seconds of all pauses.

After a candidate's turn its threads may spin on, some for 50 milliseconds. The next turn begins
once this process used less than that share of a core during a pause. The system updates the
time of a running thread every 4 milliseconds."""

SAMPLE_SECONDS, DEVICE_SAMPLE_SECONDS = 1e-3, 4e-3
"""Shortest seconds of a sample on a CPU and on a device; shorter calls are repeated within it."""


class Clock(Protocol):
    """Times the calls of one candidate."""

    @property
    def pause(self) -> float:
        """Approximate seconds that `settle` takes."""

    @property
    def sample(self) -> float:
        """Shortest seconds of a sample."""

    def settle(self) -> None:
        """Wait until earlier work no longer runs."""

    def seconds(self, call: Call, repeats: int) -> float:
        """Seconds of all `repeats` calls together, until their results are computed."""


class WallClock:
    """The wall clock, for calls whose work is done when they return."""

    @property
    def pause(self) -> float:
        """See `SETTLE_SECONDS`."""
        return SETTLE_SECONDS

    @property
    def sample(self) -> float:
        """See `SAMPLE_SECONDS`."""
        return SAMPLE_SECONDS

    def settle(self) -> None:
        """Pause until no thread of this process works."""
        start = now = perf_counter()
        while now - start < LONGEST_SETTLE_SECONDS:
            used, before = process_time(), now
            sleep(SETTLE_SECONDS)
            now = perf_counter()
            if process_time() - used < SETTLE_SHARE * (now - before):
                return

    def seconds(self, call: Call, repeats: int) -> float:
        """Seconds of all `repeats` calls together."""
        start = perf_counter()
        for _ in range(repeats):
            call()
        return perf_counter() - start


class EventSource(Protocol):
    """The events that `DeviceClock` needs, as the GPU engine's `Device` has them."""

    def record_event(self) -> Any:
        """Record an event behind all work that was started."""

    def wait(self) -> None:
        """Wait until all work that was started is done."""


class DeviceClock:
    """A clock of events in a device's stream.

    A device works behind the host, so a clock on the host would time launches only. An event
    before the first call and one after the last bound the device's work, including its waits for
    the host. The first event follows an untimed call: the device's start-up is not timed, but slow
    launches are.
    """

    pause = 0.0

    def __init__(self, device: EventSource) -> None:
        self._device = device

    @property
    def sample(self) -> float:
        """See `SAMPLE_SECONDS`."""
        return DEVICE_SAMPLE_SECONDS

    def settle(self) -> None:
        """Wait for the device."""
        self._device.wait()

    def seconds(self, call: Call, repeats: int) -> float:
        """Seconds between an event before the first call and one after the last."""
        first = self._device.record_event()
        for _ in range(repeats):
            call()
        return float(self._device.record_event().seconds_since(first))


WALL = WallClock()

STEADY = 0.2
"""Warm-up ends when two successive calls differ by less than this share."""

WARM_UP_CALLS = 50
ROUNDS = (5, 50)
"""Fewest and most rounds, unless the user sets their number."""


@dataclass(frozen=True)
class Samples:
    """Times of all rounds.

    Attributes
    ----------
    seconds
        Seconds per call, (rounds, candidates).
    repeats
        Calls per sample, by candidate.
    """

    seconds: NDArray[np.float64]
    repeats: tuple[int, ...]


def interleave(
    calls: Sequence[Call],
    rounds: int | None,
    seconds: float,
    clocks: Sequence[Clock] | None = None,
) -> Samples:
    """Time `calls` in turn, round by round.

    Parameters
    ----------
    rounds
        Number of rounds; None: as many as fit in `seconds`, within `ROUNDS`.
    seconds
        Approximate seconds per candidate, without warm-up.
    clocks
        A clock for each call; None: the wall clock for all.
    """
    clocks = [WALL] * len(calls) if clocks is None else clocks
    pairs = list(zip(calls, clocks, strict=True))
    with _without_garbage_collection():
        steady = [_warm_up(call, clock, seconds) for call, clock in pairs]
        repeats = tuple(
            max(1, ceil(clock.sample / max(s, 1e-7)))
            for s, clock in zip(steady, clocks, strict=True)
        )
        count = rounds or _affordable_rounds(steady, repeats, clocks, seconds)
        samples = np.empty((count, len(calls)))
        for number in range(count):
            for k in _order(number, len(calls)):
                samples[number, k] = _sample(*pairs[k], repeats[k])
    return Samples(samples, repeats)


def _order(number: int, candidates: int) -> list[int]:
    """The order of candidates in a round: 0 1 2, then 1 2 0, then 2 0 1."""
    return [(number + k) % candidates for k in range(candidates)]


def _sample(call: Call, clock: Clock, repeats: int) -> float:
    # The untimed call fills caches and wakes threads, which other candidates used before.
    clock.settle()
    call()
    return clock.seconds(call, repeats) / repeats


def _warm_up(call: Call, clock: Clock, seconds: float) -> float:
    """Repeat a call until its time is steady, and return the seconds of one."""
    spent, before = 0.0, clock.seconds(call, 1)
    for _ in range(WARM_UP_CALLS):
        now = clock.seconds(call, 1)
        spent += now
        if abs(now - before) <= STEADY * before or spent > seconds:
            return min(now, before)
        before = now
    return before


def _affordable_rounds(
    steady: Sequence[float], repeats: Sequence[int], clocks: Sequence[Clock], seconds: float
) -> int:
    """Number of rounds in which the slowest candidate stays within `seconds`."""
    turn = max(
        clock.pause + s * (n + 1)  # one untimed call
        for s, n, clock in zip(steady, repeats, clocks, strict=True)
    )
    fewest, most = ROUNDS
    return max(fewest, min(most, int(seconds / turn)))


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    # A collection would be timed with the candidate that happens to run.
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
