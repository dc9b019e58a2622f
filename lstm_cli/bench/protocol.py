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
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Call = Callable[[], Any]

SETTLE_SECONDS, SETTLED, LONGEST_SETTLING = 12e-3, 0.2, 0.2
"""Before a turn, threads of the contestant before it may spin on, some for 50 milliseconds. So the
turn begins after a pause in which this process used less than so much of a core (of a thread that
runs, the system knows every 4 milliseconds); or after the longest one."""


SAMPLE_SECONDS, DEVICE_SAMPLE_SECONDS = 1e-3, 4e-3
"""A sample is at least about this long: shorter calls are repeated within it."""


class Clock(Protocol):
    """Takes the time of one contestant."""

    @property
    def pause(self) -> float:
        """Seconds that `settle` takes, about."""

    @property
    def sample(self) -> float:
        """Seconds that a sample should at least take."""

    def settle(self) -> None:
        """Until nothing that was started before is at work any more."""

    def seconds(self, call: Call, repeats: int) -> float:
        """Of all `repeats` calls together, until what they compute is there."""


class WallClock:
    """The processor's: what a call starts is done when it returns."""

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
        begun = now = perf_counter()
        while now - begun < LONGEST_SETTLING:
            used, before = process_time(), now
            sleep(SETTLE_SECONDS)
            now = perf_counter()
            if process_time() - used < SETTLED * (now - before):
                return

    def seconds(self, call: Call, repeats: int) -> float:
        """By the clock on the wall."""
        begun = perf_counter()
        for _ in range(repeats):
            call()
        return perf_counter() - begun


class EventSource(Protocol):
    """What a device must offer; `lstm_cli.engines.cuda.device.Device` does."""

    def mark(self) -> Any:
        """Note the moment after all that was started."""

    def wait(self) -> None:
        """Until everything that was started is done."""


class DeviceClock:
    """A device's: marks in the queue of its work.

    The first mark stands right behind a call that is not timed, so that what is measured is the
    device at work, not how it is woken; where the host cannot start work as fast as the device does
    it, that is in the time.
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
        """Between a mark before the first call and one after the last."""
        first = self._device.mark()
        for _ in range(repeats):
            call()
        return float(self._device.mark().seconds_since(first))


WALL = WallClock()

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
