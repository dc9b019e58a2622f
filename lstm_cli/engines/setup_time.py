"""Setup time of an engine: seconds for compiling, packing weights and allocating memory.

Each thread has its own counts by name. Time inside a nested part counts once, for that part.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter

COMPILING, PACKING, FRESH_MEMORY = "compile or load", "pack weights", "fresh memory"
"""Rows of the timing table: kernels, weights, and first use of the kernels' working memory."""


class _Counts(threading.local):
    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.nested = 0.0


_counts = _Counts()


@contextmanager
def setup_timer(name: str) -> Iterator[None]:
    """Context whose time counts under `name`, without the parts that count under another name."""
    before, _counts.nested = _counts.nested, 0.0
    start = perf_counter()
    try:
        yield
    finally:
        spent = perf_counter() - start
        _counts.seconds[name] = _counts.seconds.get(name, 0.0) + spent - _counts.nested
        _counts.nested = before + spent


def setup_seconds() -> dict[str, float]:
    """Seconds of setup in this thread so far, by name."""
    return dict(_counts.seconds)


def total_setup_seconds() -> float:
    """Sum of `setup_seconds`."""
    return sum(_counts.seconds.values())
