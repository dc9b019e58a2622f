"""Signals: a command that is asked to stop leaves nothing half-written, and exits with 130.

Once: it stops in an orderly manner, within `interrupts` after the piece of work at hand. Once more
while it does: at once.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from lstm_cli.output_files import discard_unfinished

INTERRUPTED = 130
"""Exit code of a command that was asked to stop."""

_STOPS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK")
"""Signals that ask to stop."""
_ENDS = (
    "SIGQUIT", "SIGABRT", "SIGXCPU", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF",
    "SIGPOLL", "SIGPWR", "SIGSTKFLT",
)  # fmt: skip
"""Further signals that would end the process at once."""


class Signals:
    """Handlers of signals while a command runs in the main thread.

    Attributes
    ----------
    asked
        Whether one has asked to stop.
    """

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}
        self._hook = sys.unraisablehook
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread gets signals
        sys.unraisablehook = self._lost
        for number in _numbers(_STOPS):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                self._before[number] = signal.signal(number, self._stop)
        for number in _numbers(_ENDS):
            if signal.getsignal(number) is signal.SIG_DFL:
                self._before[number] = signal.signal(number, _end_by)

    def restore(self) -> None:
        """Let signals do what they did before."""
        sys.unraisablehook = self._hook
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def end_with(self, code: int) -> None:
        """Let signals end the process with this code: the command is done.

        Once the threads have ended they are ignored: Python takes its handlers away before it
        ends. Where one asked to stop, the process ends here: of an exception that came in an
        import, Python remembers that it came, and would end by SIGINT.
        """
        if self.asked:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            _end(code)
        for number in self._before:
            signal.signal(number, lambda *_: _end(code))
            atexit.register(signal.signal, number, signal.SIG_IGN)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            _end(INTERRUPTED)
        self.asked = True
        raise KeyboardInterrupt

    def _lost(self, lost: Any) -> None:
        """Stop at once where the exception came in a finalizer, which passes it on to no one."""
        if self.asked and lost.exc_type is KeyboardInterrupt:
            _end(INTERRUPTED)
        self._hook(lost)


@contextmanager
def interrupts(doing: str = "finishing the step", *, quiet: bool) -> Iterator[Callable[[], bool]]:
    """Whether the user, or the system, has asked to stop; SIGTERM and SIGHUP count as Ctrl-C.

    A signal's exception may come where Python cannot pass it on, in a weak reference's callback
    say, and would be lost; a question asked between two pieces of work is not.
    """
    message = f"\n{doing}; Ctrl-C again stops at once\n".encode()
    asked = threading.Event()
    before: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            outer = before.get(number)
            if callable(outer):
                outer(number, frame)
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
    try:
        for number in _numbers(_STOPS):
            if number != getattr(signal, "SIGHUP", None) or not _is_ignored(number):
                before[number] = signal.signal(number, handle)
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


def _numbers(names: tuple[str, ...]) -> list[int]:
    """Numbers of the signals that this system has."""
    return [getattr(signal, name) for name in names if hasattr(signal, name)]


def _is_ignored(number: int) -> bool:
    """Whether the caller has had a signal ignored, as nohup does."""
    return signal.getsignal(number) is signal.SIG_IGN


def _end(code: int) -> NoReturn:
    """End the process at once."""
    discard_unfinished()
    os._exit(code)


def _end_by(number: int, frame: FrameType | None) -> None:
    """End the process by a signal, as if it had not been caught."""
    discard_unfinished()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
