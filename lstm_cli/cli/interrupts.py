"""Signals: an interrupted command leaves no incomplete files, and exits with 130.

The first signal raises KeyboardInterrupt; within `interrupts`, the current unit of work is finished
first. A second signal ends the process at once.
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
"""Exit code of an interrupted command."""

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
    stop_requested
        Whether a signal has asked to stop.
    """

    def __init__(self) -> None:
        self.stop_requested = False
        self._earlier: dict[int, Any] = {}
        self._hook = sys.unraisablehook
        if threading.current_thread() is not threading.main_thread():
            return  # only the main thread gets signals
        sys.unraisablehook = self._on_unraisable
        for number in _numbers(_STOPS):
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                self._earlier[number] = signal.signal(number, self._stop)
        for number in _numbers(_ENDS):
            if signal.getsignal(number) is signal.SIG_DFL:
                self._earlier[number] = signal.signal(number, _end_by)

    def restore(self) -> None:
        """Restore the earlier handlers."""
        sys.unraisablehook = self._hook
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def end_with(self, code: int) -> None:
        """Let signals end the process with this code, since the command is finished.

        Signals are ignored once the threads have ended: Python removes its handlers before it
        exits. After a request to stop, the process ends here. Python remembers a
        KeyboardInterrupt during an import, and would exit by SIGINT.
        """
        if self.stop_requested:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError):
                    stream.flush()
            _end(code)
        for number in self._earlier:
            signal.signal(number, lambda *_: _end(code))
            atexit.register(signal.signal, number, signal.SIG_IGN)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self.stop_requested:
            _end(INTERRUPTED)
        self.stop_requested = True
        raise KeyboardInterrupt

    def _on_unraisable(self, unraisable: Any) -> None:
        # Python drops a KeyboardInterrupt in a finalizer.
        if self.stop_requested and unraisable.exc_type is KeyboardInterrupt:
            _end(INTERRUPTED)
        self._hook(unraisable)


@contextmanager
def interrupts(
    doing: str = "finishing the step", *, quiet: bool, more: tuple[str, ...] = ()
) -> Iterator[Callable[[], bool]]:
    """A function that returns True after a request to stop (Ctrl-C, SIGTERM or SIGHUP).

    Python may drop a signal's exception, such as in the callback of a weak reference. So the
    caller calls the function between two units of work instead.

    Parameters
    ----------
    doing
        Phrase for the message on stderr: ``finishing the step``.
    quiet
        Print no message.
    more
        Further signals that ask to stop.
    """
    message = f"\n{doing}; Ctrl-C again stops at once\n".encode()
    stop = threading.Event()
    earlier: dict[int, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            outer = earlier.get(number)
            if callable(outer):
                outer(number, frame)
            raise KeyboardInterrupt
        stop.set()
        if not quiet:
            # A signal may interrupt a print, and Python's streams are not reentrant.
            with suppress(OSError, ValueError):
                os.write(sys.stderr.fileno(), message)

    if threading.current_thread() is not threading.main_thread():
        yield stop.is_set  # only the main thread gets signals
        return
    try:
        for number in _numbers((*_STOPS, *more)):
            if number != getattr(signal, "SIGHUP", None) or not _is_ignored(number):
                earlier[number] = signal.signal(number, handle)
        yield stop.is_set
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)


@contextmanager
def interruptible(doing: str, *, quiet: bool) -> Iterator[Callable[[], None]]:
    """A function that raises KeyboardInterrupt after a request to stop; call it between batches."""
    with interrupts(doing, quiet=quiet) as stop_requested:

        def check() -> None:
            if stop_requested():
                raise KeyboardInterrupt

        yield check


def _numbers(names: tuple[str, ...]) -> list[int]:
    return [getattr(signal, name) for name in names if hasattr(signal, name)]  # of this system


def _is_ignored(number: int) -> bool:
    # nohup ignores SIGHUP.
    return signal.getsignal(number) is signal.SIG_IGN


def _end(code: int) -> NoReturn:
    discard_unfinished()
    os._exit(code)


def _end_by(number: int, frame: FrameType | None) -> None:
    discard_unfinished()
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
