"""A batch on the device: which steps there are, and where each stands.

Values over steps are (Q, F): one row for every step that is stored, a sequence's steps side by
side. Without lengths, or where all are full, that is the caller's own (N, T, F) flattened, and no
value moves. A ragged batch holds its valid steps only, so that padding costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lstm_cli.engines.cuda.runtime.device import Array, Device, DeviceArray


@dataclass(frozen=True, eq=False)
class DeviceBatch:
    """PackedSequences of one batch.

    Attributes
    ----------
    N, T
        PackedSequences, and steps of the padded layout.
    Q
        Steps that are stored.
    lengths
        (N,) in the host's memory; None: all T.
    order
        (N,) int64 on the device: the sequences as kernels take them, longest first.
    starts
        (N,) int64 on the device: the row among the Q where a sequence begins, by that order.
    steps
        (N,) int64 on the device: lengths, by that order.
    counts
        (T,) int64 on the device: how many sequences have a step t; the first of the order.
    longest
        The length of the longest one.
    sorted_steps
        `steps` in the host's memory.
    """

    N: int
    T: int
    Q: int
    lengths: Array | None
    order: DeviceArray
    starts: DeviceArray
    steps: DeviceArray
    counts: DeviceArray
    longest: int
    sorted_steps: Array

    @property
    def ragged(self) -> bool:
        """Whether only some of the N * T steps are stored."""
        return self.lengths is not None


@dataclass(eq=False)
class PackedSequences:
    """Values over the steps of a batch, or one row a sequence once steps are gone.

    Attributes
    ----------
    batch
        The batch.
    real
        (Q, F), or (N, F) with `per_step` False; float32 or float64.
    per_step
        Whether there is a row a step.
    element
        The same values rounded to the operands' type, where somebody made them; None: not yet, or
        operands are `real` itself.
    """

    batch: DeviceBatch
    real: DeviceArray
    per_step: bool = True
    element: Any = field(default=None)

    @property
    def shape(self) -> tuple[int, ...]:
        """In the caller's layout: (N, T, F) or (N, F)."""
        batch, F = self.batch, self.real.shape[1]
        return (batch.N, batch.T, F) if self.per_step else (batch.N, F)


def make_batch(device: Device, N: int, T: int, lengths: Array | None) -> DeviceBatch:
    """The batch of N sequences of T steps, or of `lengths`."""
    if lengths is not None and bool((lengths == T).all()):
        lengths = None
    n = np.full(N, T, np.int64) if lengths is None else np.asarray(lengths, np.int64)
    order = np.argsort(-n, kind="stable")
    starts = np.cumsum(n) - n
    counts = (n[:, None] > np.arange(T)).sum(axis=0) if lengths is not None else np.full(T, N)
    sizes = (order, starts[order], n[order], counts)
    table = device.upload(np.concatenate([part.astype(np.int64) for part in sizes]))
    return DeviceBatch(
        N,
        T,
        int(n.sum()),
        lengths,
        order=table[:N],
        starts=table[N : 2 * N],
        steps=table[2 * N : 3 * N],
        counts=table[3 * N :],
        longest=int(n.max(initial=0)),
        sorted_steps=n[order],
    )
