"""A host device whose lanes do nothing until somebody waits, and then in an order that hurts."""

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


class LazyMark:
    """A moment of a lane, which may not have come yet."""

    def __init__(self, device: LazyDevice, lane: int):
        self.device, self.lane, self.done = device, lane, False

    def seconds_since(self, earlier: LazyMark) -> float:
        """There is no time."""
        self.wait()
        earlier.wait()
        return 1e-6

    def wait(self) -> None:
        """Until everything is done."""
        self.device.wait()


ORDERS: dict[Any, Callable[[list[int]], int]] = {
    "upper": max,
    "lower": lambda ready: min(ready, key=lambda lane: (lane == 0, lane)),
    "main, upper": lambda ready: 0 if 0 in ready else max(ready),
    "main, lower": min,
}
"""Of lanes that need not wait, the one that goes first: the highest, or the lowest; the main one
behind all others, or before."""


class LazyDevice(HostDevice):
    """Runs what is started only when a value is asked for, or a mark waited for.

    Who asks for a value waits for the main lane alone, and for what that one waits for: so a wait
    that is missing shows. Memory that another lane uses, and that is given back before its own lane
    waits for that one, is an error when it is waited for.

    Parameters
    ----------
    order
        A name of `ORDERS`, or the seed of a drawn order.
    """

    def __init__(self, order: str | int = "upper", **options: Any):
        self.queues: dict[int, deque[Callable[[], None] | LazyMark | tuple[LazyMark]]] = {}
        draw = random.Random(order).choice
        self.choose = ORDERS.get(order, draw)
        self.held: dict[int, list[weakref.ref[Allocation]]] = {}
        super().__init__(**options)

    def empty(self, shape: Sequence[int], dtype: str) -> HostArray:
        """It belongs to the lane."""
        made = super().empty(shape, dtype)
        made.allocation.lane = self.current
        return made

    def do(self, what: str, work: Callable[[], None], *arrays: HostArray) -> None:
        """Put it into the lane's queue."""
        self.log.append((self.current, what, None))
        self._queue(self.current).append(work)
        others = [a.allocation for a in arrays if a.allocation.lane != self.current]
        self.held.setdefault(self.current, []).extend(map(weakref.ref, others))

    def mark(self) -> LazyMark:
        """When the lane has come there."""
        made = LazyMark(self, self.current)
        self.log.append((self.current, "mark", made))
        self._queue(self.current).append(made)
        return made

    def after(self, mark: Any) -> None:
        """The lane waits."""
        self.log.append((self.current, "after", mark))
        self._queue(self.current).append((mark,))
        if self.current == 0:
            for use in self.held.pop(mark.lane, ()):
                if use() is None:
                    raise HostError(f"memory that lane {mark.lane} uses was given back too soon")

    def download(self, array: HostArray) -> np.ndarray:
        """A copy, once the lane is done with what it was given."""
        self._run({self.current})
        return array.values.copy(order="C")

    def wait(self) -> None:
        """Do everything."""
        self._run(set(self.queues))

    def _run(self, wanted: set[int]) -> None:
        """Until some lanes have nothing left."""
        while any(self._queue(lane) for lane in wanted):
            ready = [lane for lane, queue in self.queues.items() if queue and not self._waits(lane)]
            if not ready:
                raise HostError("all lanes wait for each other")
            work = self.queues[self.choose(ready)].popleft()
            if isinstance(work, LazyMark):
                work.done = True
            elif not isinstance(work, tuple):
                work()

    def _queue(self, lane: int) -> deque[Any]:
        return self.queues.setdefault(lane, deque())

    def _waits(self, lane: int) -> bool:
        head = self.queues[lane][0]
        return isinstance(head, tuple) and not head[0].done

    def matmul(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Every row by itself, so that a row's bits do not depend on how many there are."""
        rows = [row @ right for row in left.reshape(-1, left.shape[-1])]
        return np.array(rows, left.dtype).reshape(*left.shape[:-1], right.shape[1])
