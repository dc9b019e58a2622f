"""Ranks of a training run as threads of one process, which exchange values without MPI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Barrier, Thread
from typing import Any

import numpy as np


class ThreadRanks:
    """An exchange between threads; see `lstm_cli.training.interfaces.Exchange`."""

    def __init__(self, rank: int, size: int, barrier: Barrier, board: list[Any]) -> None:
        self.rank, self.size = rank, size
        self._barrier, self._board = barrier, board

    def gather(self, value: Any) -> list[Any]:
        self._board[self.rank] = value
        self._barrier.wait()
        values = list(self._board)
        self._barrier.wait()
        return values

    def scatter_slices(self, slices: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [np.array(sent[self.rank]) for sent in self.gather(slices)]

    def join_slices(self, mine: np.ndarray, out: np.ndarray) -> None:
        out[...] = np.concatenate(self.gather(mine))


def on_ranks(size: int, work: Callable[[ThreadRanks], Any], timeout: float = 10) -> list[Any]:
    """Results of `work` on every rank; an error of one rank ends all, and is raised."""
    barrier, board = Barrier(size, timeout=timeout), [None] * size
    results, errors = [None] * size, []

    def run(rank: int) -> None:
        try:
            results[rank] = work(ThreadRanks(rank, size, barrier, board))
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
    if errors:
        raise errors[0]
    return results
