"""A batch on the device: its valid steps, and the row in which each one is stored.

Values over steps are packed as (Q, F): one row per valid step, with contiguous rows for the steps
of a sequence. A batch of full sequences is the caller's (N, T, F) flattened, without a copy. A
ragged batch stores no padding, so padding costs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lstm_cli.engines.cuda.runtime.device import Array, Device, DeviceArray


@dataclass(frozen=True, eq=False)
class DeviceBatch:
    """Sizes and lengths of a batch, on the device and in host memory.

    Attributes
    ----------
    N, T
        Number of sequences, and of steps in the padded layout.
    Q
        Number of stored steps.
    lengths
        (N,) in host memory; None if all sequences have T steps.
    order
        (N,) int64 on the device: sequence numbers in the kernels' order, longest first.
    starts
        (N,) int64 on the device: first row of each sequence among the Q rows, in that order.
    steps
        (N,) int64 on the device: length of each sequence, in that order.
    counts
        (T,) int64 on the device: number of sequences that have a step t. These come first in
        `order`.
    longest
        Length of the longest sequence.
    sorted_steps
        `steps` in host memory.
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
        """True if some of the N * T steps are padding, which is not stored."""
        return self.lengths is not None


@dataclass(eq=False)
class PackedSequences:
    """Values over the valid steps of a batch, or one row per sequence.

    Attributes
    ----------
    batch
        The batch.
    values
        (Q, F), or (N, F) if `per_step` is False; float32 or float64.
    per_step
        True if there is a row per step.
    operand
        `values` rounded to the operand type, stored when a product first needs them. None before,
        or if the products take `values` themselves.
    """

    batch: DeviceBatch
    values: DeviceArray
    per_step: bool = True
    operand: Any = field(default=None)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in the padded layout: (N, T, F) or (N, F)."""
        batch, F = self.batch, self.values.shape[1]
        return (batch.N, batch.T, F) if self.per_step else (batch.N, F)


def make_batch(device: Device, N: int, T: int, lengths: Array | None) -> DeviceBatch:
    """Create the batch of N sequences of T steps, or of `lengths`."""
    if lengths is not None and bool((lengths == T).all()):
        lengths = None
    n = np.full(N, T, np.int64) if lengths is None else np.asarray(lengths, np.int64)
    order = np.argsort(-n, kind="stable")
    starts = np.cumsum(n) - n
    counts = (n[:, None] > np.arange(T)).sum(axis=0) if lengths is not None else np.full(T, N)
    parts = (order, starts[order], n[order], counts)
    table = device.upload(np.concatenate([part.astype(np.int64) for part in parts]))
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
