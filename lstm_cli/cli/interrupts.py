"""Ctrl-C once: finish the step and save. Twice: stop at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType


@contextmanager
def interrupts(doing: str = "finishing the step", *, quiet: bool) -> Iterator[Callable[[], bool]]:
    """Whether the user, or the system, has asked to stop; SIGTERM counts as Ctrl-C.

    A signal's exception may come where Python cannot pass it on, in a weak reference's callback
    say, and would be lost; a question asked between two pieces of work is not.
    """
    message = f"\n{doing}; Ctrl-C again stops at once\n".encode()
    asked = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()
        if not quiet:
            # A signal may come in the middle of a print, where Python's own streams must not
            # be entered again.
            with suppress(OSError, ValueError):
                os.write(sys.stderr.fileno(), message)

    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set  # only the main thread gets signals
        return
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interruptible(doing: str, *, quiet: bool) -> Iterator[Callable[[], None]]:
    """A function to call between two pieces of work: it raises KeyboardInterrupt if asked to."""
    with interrupts(doing, quiet=quiet) as asked:

        def check() -> None:
            if asked():
                raise KeyboardInterrupt

        yield check
