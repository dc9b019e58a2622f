"""A host device that delays all work, and runs its streams in an unfavorable order."""

from __future__ import annotations

import random
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from cuda_host.arrays import Allocation, HostArray
from cuda_host.build import HostError
from cuda_host.device import HostDevice


class LazyEvent:
    """An event that its stream may not have reached yet."""

    def __init__(self, device: LazyDevice, stream: int):
        self.device, self.stream, self.done = device, stream, False

    def seconds_since(self, earlier: LazyEvent) -> float:
        """A constant, after a wait for both events."""
        self.wait()
        earlier.wait()
        return 1e-6

    def wait(self) -> None:
        """Run all work of the device."""
        self.device.wait()


ORDERS: dict[Any, Callable[[list[int]], int]] = {
    "upper": max,
    "lower": lambda ready: min(ready, key=lambda stream: (stream == 0, stream)),
    "main, upper": lambda ready: 0 if 0 in ready else max(ready),
    "main, lower": min,
}
"""Choice of the next stream among those that need not wait.

The highest or the lowest number comes first; the main stream comes last or, if named, first."""


class LazyDevice(HostDevice):
    """Runs work only when a value is read or an event is waited for.

    Reading a value runs the main stream, and other streams only as far as it waits for them. So a
    missing wait shows. Memory that another stream uses must live until its own stream waits for
    that one; otherwise the wait raises an error.

    Parameters
    ----------
    order
        A name of `ORDERS`, or the seed of a random order.
    """

    def __init__(self, order: str | int = "upper", **options: Any):
        self.queues: dict[int, deque[Callable[[], None] | LazyEvent | tuple[LazyEvent]]] = {}
        draw = random.Random(order).choice
        self.choose = ORDERS.get(order, draw)
        self.foreign_uses: dict[int, list[weakref.ref[Allocation]]] = {}
        super().__init__(**options)

    def empty(self, shape: Sequence[int], dtype: str) -> HostArray:
        """Allocate an array that belongs to the current stream."""
        array = super().empty(shape, dtype)
        array.allocation.stream = self.stream
        return array

    def do(self, what: str, work: Callable[[], None], *arrays: HostArray) -> None:
        """Queue work on the current stream."""
        self.log.append((self.stream, what, None))
        self._queue(self.stream).append(work)
        foreign = [a.allocation for a in arrays if a.allocation.stream != self.stream]
        self.foreign_uses.setdefault(self.stream, []).extend(map(weakref.ref, foreign))

    def record_event(self) -> LazyEvent:
        """An event that the current stream reaches after its earlier work."""
        event = LazyEvent(self, self.stream)
        self.log.append((self.stream, "record_event", event))
        self._queue(self.stream).append(event)
        return event

    def wait_event(self, event: Any) -> None:
        """Queue a wait on the current stream."""
        self.log.append((self.stream, "wait_event", event))
        self._queue(self.stream).append((event,))
        if self.stream == 0:
            for use in self.foreign_uses.pop(event.stream, ()):
                if use() is None:
                    raise HostError(f"memory that stream {event.stream} uses was freed too soon")

    def download(self, array: HostArray) -> np.ndarray:
        """Copy to NumPy's memory after running the current stream."""
        self._run({self.stream})
        return array.values.copy(order="C")

    def wait(self) -> None:
        """Run all work of all streams."""
        self._run(set(self.queues))

    def _run(self, streams: set[int]) -> None:
        """Run work, in the chosen order, until these streams are empty."""
        while any(self._queue(stream) for stream in streams):
            ready = [
                stream
                for stream, queue in self.queues.items()
                if queue and not self._is_waiting(stream)
            ]
            if not ready:
                raise HostError("all streams wait for each other")
            work = self.queues[self.choose(ready)].popleft()
            if isinstance(work, LazyEvent):
                work.done = True
            elif not isinstance(work, tuple):
                work()

    def _queue(self, stream: int) -> deque[Any]:
        return self.queues.setdefault(stream, deque())

    def _is_waiting(self, stream: int) -> bool:
        head = self.queues[stream][0]
        return isinstance(head, tuple) and not head[0].done

    def matmul(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """A matrix product row by row, so that a row's bits do not depend on the other rows."""
        rows = [row @ right for row in left.reshape(-1, left.shape[-1])]
        return np.array(rows, left.dtype).reshape(*left.shape[:-1], right.shape[1])
