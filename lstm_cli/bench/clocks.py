"""How a contestant's time is taken: by the processor's clock, or by marks on its device.

A device works behind what was started on it, so a clock on the host would see launches only. There
a mark before the calls and one after them bound what the device did, in the contestant's own queue
of work; where it waits for the host in between, the wait is part of it.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter, process_time, sleep
from typing import Any, Protocol

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


class Marks(Protocol):
    """What a device must offer; `lstm_cli.engines.cuda.runtime.device.Device` does."""

    def record_event(self) -> Any:
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

    def __init__(self, device: Marks) -> None:
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
        first = self._device.record_event()
        for _ in range(repeats):
            call()
        return float(self._device.record_event().seconds_since(first))


WALL = WallClock()
