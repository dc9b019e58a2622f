"""Windows of steps: a batch, and a layer's pass over it, cut into stretches of time.

A window of a batch is a batch itself: its sequences begin further on among the same rows, and have
as many steps as the window leaves them, so longest first they still are. Of a window, a run has
all arrays of the whole; its states are those that the window before has left.
"""

from __future__ import annotations

from dataclasses import replace
from weakref import WeakKeyDictionary

import numpy as np

from lstm_cli.engines.cuda.batch import Batch
from lstm_cli.engines.cuda.device import Device, DeviceArray
from lstm_cli.engines.cuda.recurrence import BackwardRun, ForwardRun

_CUT: WeakKeyDictionary[Batch, dict[int, tuple[Batch, ...]]] = WeakKeyDictionary()


def windows(device: Device, batch: Batch, steps: int) -> tuple[Batch, ...]:
    """A batch without lengths in windows of so many steps, the last with what is left; made once.

    Call it in the main lane: the tables that it makes are kept for passes to come.
    """
    made = _CUT.setdefault(batch, {})
    if steps not in made:
        made[steps] = _cut(device, batch, steps)
    return made[steps]


def _cut(device: Device, batch: Batch, steps: int) -> tuple[Batch, ...]:
    N, first = batch.N, np.arange(batch.N, dtype=np.int64) * batch.T
    sizes = [min(steps, batch.T - at) for at in range(0, batch.T, steps)]
    starts = [first + at for at in range(0, batch.T, steps)]
    lengths = [np.full(N, size, np.int64) for size in sizes]
    table = device.upload(np.concatenate([*starts, *lengths]))
    found = []
    for k, size in enumerate(sizes):
        behind = (len(sizes) + k) * N
        found.append(
            replace(
                batch,
                T=size,
                starts=table[k * N : (k + 1) * N],
                steps=table[behind : behind + N],
                counts=batch.counts[k * steps : k * steps + size],
                longest=size,
                sorted_steps=lengths[k],
            )
        )
    return tuple(found)


def rows_of(values: DeviceArray, batch: Batch, first: int, steps: int) -> DeviceArray:
    """The rows of a window as a stack (N, steps, F), or (steps, F) of one sequence: a view."""
    if batch.N == 1:
        return values[first : first + steps]
    return values.reshape(batch.N, batch.T, values.shape[1])[:, first : first + steps]


def over(run: ForwardRun, window: Batch) -> ForwardRun:
    """A forward run over a window."""
    return replace(run, batch=window)


def back_over(run: BackwardRun, window: Batch, first: int) -> BackwardRun:
    """A backward run over the window whose first step is `first`.

    The states that it begins from are those of the step before, or the run's own.
    """
    forward, h, c = over(run.forward, window), run.h_first, run.c_first
    if first:
        batch, column = run.forward.batch, run.forward.column
        P = run.forward.tensors.cell.output_size
        h = _step(run.y, batch, first - 1)[:, column : column + P]
        c = None if c is None else _step(run.forward.c_steps, batch, first - 1)
    return replace(run, forward=forward, h_first=h, c_first=c)


def _step(values: DeviceArray, batch: Batch, step: int) -> DeviceArray:
    """Every sequence's row of one step: a view."""
    return values.reshape(batch.N, batch.T, values.shape[1])[:, step]
