"""Numbered tasks on other processes, through executors of ``concurrent.futures``.

A task whose process died is given to another one. A task that ends several processes ends the run.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from types import FrameType
from typing import Any, NoReturn, Protocol, TypeVar

from lstm_cli.errors import LstmCliError
from lstm_cli.output_files import discard_unfinished

Result = TypeVar("Result")

MOST_DEATHS = 3
"""Number of processes that one task may end."""

POLL_SECONDS = 0.2
"""Seconds between two looks for a request to stop."""


class WorkerPool(Protocol):
    """Processes that compute tasks.

    Attributes
    ----------
    size
        Number of tasks that are computed at once.
    most_submitted
        Number of tasks that may be submitted at once. All of them count as lost when a process of
        the pool dies, unless the pool submits them again by itself.
    """

    size: int
    most_submitted: int

    def start(self) -> Executor:
        """An executor with new processes, at the start and after a process died."""

    def stop(self, executor: Executor, *, is_done: bool) -> None:
        """End the processes; at once, unless all tasks are done."""

    def is_lost(self, error: BaseException) -> bool:
        """Whether an error of a task says that its processes died, and it was given up."""


def run_tasks(
    pool: WorkerPool,
    compute: Callable[[int], Result],
    numbers: Sequence[int],
    finished: Callable[[int, Result], None],
    check: Callable[[], None],
) -> None:
    """Compute every task, on any process of a pool.

    Parameters
    ----------
    compute
        Function of a task's number; other processes import it.
    finished
        Function that gets the number and the result of each task.
    check
        Function that raises KeyboardInterrupt after a request to stop.

    Raises
    ------
    LstmCliError
        A task has ended `MOST_DEATHS` processes.
    """
    waiting, deaths = deque(numbers), Counter[int]()
    running: dict[Future[Result], int] = {}
    executor, is_done = pool.start(), False
    try:
        while waiting or running:
            lost = _submit(executor, compute, waiting, running, pool.most_submitted)
            done, _ = wait(running, POLL_SECONDS, FIRST_COMPLETED)
            check()
            for future in done:
                number = running.pop(future)
                try:
                    result = future.result()
                except BrokenExecutor:
                    lost.append(number)
                except Exception as error:
                    if pool.is_lost(error):
                        raise lost_workers_error(number) from None
                    raise
                else:
                    finished(number, result)
            if lost:
                lost += running.values()
                running.clear()
                _count_deaths(deaths, lost)
                waiting.extendleft(sorted(lost, reverse=True))
                pool.stop(executor, is_done=False)
                executor = pool.start()
        is_done = True
    finally:
        pool.stop(executor, is_done=is_done)


def _submit(
    executor: Executor,
    compute: Callable[[int], Result],
    waiting: deque[int],
    running: dict[Future[Result], int],
    most: int,
) -> list[int]:
    """Submit tasks that wait; return one that a broken executor does not take."""
    while waiting and len(running) < most:
        try:
            running[executor.submit(compute, waiting[0])] = waiting[0]
        except BrokenExecutor:
            return [waiting.popleft()]
        waiting.popleft()
    return []


def _count_deaths(deaths: Counter[int], lost: Sequence[int]) -> None:
    deaths.update(lost)
    number, count = deaths.most_common(1)[0]
    if count >= MOST_DEATHS:
        raise lost_workers_error(number)


def lost_workers_error(number: int) -> LstmCliError:
    """The error for a share whose processes die again and again."""
    return LstmCliError(
        f"share {number} was lost {MOST_DEATHS} times, since the process that computed it died",
        expected="processes that live until their share is done",
        hint="if memory is short, fewer workers or a smaller --batch-size need less; "
        "finished shards are kept",
    )


class ProcessPool:
    """Processes on this machine.

    Parameters
    ----------
    size
        Number of processes.
    """

    def __init__(self, size: int) -> None:
        self.size = self.most_submitted = size
        self._others = set(multiprocessing.active_children())

    def start(self) -> Executor:
        """See `WorkerPool`."""
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.size, mp_context=context, initializer=_prepare_worker)

    def stop(self, executor: Executor, *, is_done: bool) -> None:
        """See `WorkerPool`."""
        if not is_done:
            for process in set(multiprocessing.active_children()) - self._others:
                process.terminate()
        executor.shutdown(wait=True, cancel_futures=True)

    def is_lost(self, error: BaseException) -> bool:
        """See `WorkerPool`."""
        return False


def _prepare_worker() -> None:
    """Let a worker process end with its parent, and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_worker)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_worker(number: int = 0, frame: FrameType | None = None) -> NoReturn:
    discard_unfinished()
    os._exit(1)


def _end_with_parent() -> None:
    parent: Any = multiprocessing.parent_process()
    parent.join()
    _end_worker()
