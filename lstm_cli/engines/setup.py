"""Seconds that an engine spends before kernels run: compiling, packing, fresh memory.

Each thread has its own count, by name; what happens inside another part counts only once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

COMPILING, PACKING, TOUCHING = "compile or load", "pack weights", "fresh memory"
"""Rows of the table of timings: of kernels, of weights, and of what kernels work in."""


class _Count(threading.local):
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.inside = 0.0


_count = _Count()


@contextmanager
def setting_up(name: str) -> Iterator[None]:
    """Count what is done inside, but for parts of it that are counted under another name."""
    before, _count.inside = _count.inside, 0.0
    begun = perf_counter()
    try:
        yield
    finally:
        spent = perf_counter() - begun
        _count.seconds[name] = _count.seconds.get(name, 0.0) + spent - _count.inside
        _count.inside = before + spent


def setup_seconds() -> dict[str, float]:
    """What this thread has spent so far, by name."""
    return dict(_count.seconds)


def setup_total() -> float:
    """The sum of `setup_seconds`."""
    return sum(_count.seconds.values())
