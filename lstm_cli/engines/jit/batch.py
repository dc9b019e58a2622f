"""Sharing of a batch among threads: their number, groups of sequences, and order of rows.

`thread_sharing` decides, and `group_rows` makes the order that kernels read.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lstm_cli.engines.types import Array, RecurrentSpec

MIN_STEP_WORK = 1 << 15
"""Number of multiply-adds of one step below which a second thread costs more time than it saves."""

MIN_BATCH_WORK = 1 << 21
"""Number of multiply-adds of a batch below which one thread is faster: a wake-up takes 10 us."""

MIN_UNCACHED_ROWS = 24
"""Least number of sequences per thread if the weights exceed half of the second-level cache."""


def step_work(spec: RecurrentSpec, number_bytes: int) -> tuple[int, int]:
    """Multiply-adds of one sequence's step, and bytes of one direction's recurrent weights.

    `number_bytes` is the size of one weight in bytes.
    """
    cell = spec.cells[0]
    rows = len(cell.gates) * cell.hidden_size
    return rows * (cell.output_size + spec.input_size), number_bytes * rows * cell.output_size


def thread_sharing(N: int, T: int, work: int, threads: int, *, fits: bool) -> tuple[int, int]:
    """Number of threads for N sequences of T steps, and number of groups of sequences.

    0 groups: threads share the columns of every step. Results have the same bits for all numbers
    of threads and groups.

    Parameters
    ----------
    work
        Multiply-adds of one sequence's step.
    fits
        True: the recurrent weights fit half of a core's second-level cache.
    """
    useful = min(threads, 2 * N * work // max(1, MIN_STEP_WORK))  # a thread per MIN_STEP_WORK / 2
    used = useful if N * work >= MIN_STEP_WORK and N * work * T >= MIN_BATCH_WORK else 1
    rows_per_thread = 2 if fits else MIN_UNCACHED_ROWS
    return used, used if used == 1 or used * rows_per_thread <= N else 0


@dataclass(frozen=True, eq=False)
class RowGroups:
    """Sequences of a batch in groups; each group has its longest sequence first.

    The row of a sequence is its number in this order.

    Attributes
    ----------
    T
        Number of steps of the padded batch.
    order
        (N,) sequence number of each row. None: it equals the row number.
    lengths
        (N,) number of steps by row. None: all rows have T steps.
    starts
        (groups + 1,) first row of each group.
    active
        (groups, T) number of a group's rows that have a step t.
    thread_owns_groups
        True: each thread computes whole groups. False: all threads share one group's columns.
    """

    T: int
    order: Array | None
    lengths: Array | None
    starts: Array
    active: Array
    thread_owns_groups: bool

    @property
    def count(self) -> int:
        return int(self.starts[-1])

    @property
    def groups(self) -> int:
        return len(self.active)

    @property
    def largest(self) -> int:
        """Number of rows of the largest group."""
        return int(np.diff(self.starts).max(initial=0))

    def offsets(self, row: int, step: int, base: int, *, reverse: bool) -> Array:
        """Offset of each row's first step in an array, in numbers, (N,) int64.

        Parameters
        ----------
        row, step
            Strides of the array from sequence to sequence and from step to step, in numbers.
        base
            Number added to every offset.
        reverse
            True: the first step of the pass is the last one in time.
        """
        at = np.arange(self.count) if self.order is None else self.order
        places = at * row + base
        if reverse:
            places += ((self.T if self.lengths is None else self.lengths) - 1) * step
        return places.astype(np.int64, copy=False)

    @property
    def step_stride(self) -> int:
        """Number of step records from one step to the next; 0: a group's records are contiguous.

        Full sequences have one numbering for the records of all groups: the order of sums over
        steps.
        """
        return self.count if self.order is None else 0

    def first_records(self) -> Array:
        """Number of each group's first step record, (groups,) int64."""
        if self.order is None:
            return self.starts[:-1]
        totals = self.active.sum(axis=1)
        return np.concatenate([[0], np.cumsum(totals)[:-1]]).astype(np.int64)

    def sum_order(self, sequence: Array, earlier_steps: Array) -> Array | None:
        """Step record numbers in the order of sums over all steps. None: 0, 1, 2, ...

        The order is that of a batch in one group. So sums do not depend on the groups.
        """
        if self.groups == 1 or self.order is None or self.lengths is None:
            return None
        lengths, rank = np.empty_like(self.lengths), np.empty(self.count, np.int64)
        lengths[self.order] = self.lengths
        rank[np.argsort(-lengths, kind="stable")] = np.arange(self.count)
        return np.lexsort((rank[sequence], earlier_steps)).astype(np.int64, copy=False)

    def steps(self, *, reverse: bool) -> tuple[Array, Array, Array]:
        """Row, sequence and time of every valid step, in the order of step records."""
        if self.order is None:
            t, row = (part.ravel() for part in np.indices((self.T, self.count)))
            return row, row, self.T - 1 - t if reverse else t
        rows, times = [], []
        for group, active in enumerate(self.active):
            t = np.repeat(np.arange(self.T), active)
            before = np.cumsum(active) - active
            rows.append(self.starts[group] + np.arange(len(t)) - np.repeat(before, active))
            times.append(t)
        row = np.concatenate(rows).astype(np.int64)
        t = np.concatenate(times)
        if reverse:
            last = self.T - 1 if self.lengths is None else self.lengths[row] - 1
            t = last - t
        return row, self.order[row], t


@lru_cache(maxsize=64)
def full_batch(N: int, T: int, groups: int) -> RowGroups:
    """N sequences of T steps in groups of about equal size; 0: one group, with shared columns."""
    starts = np.array([N * k // max(1, groups) for k in range(max(1, groups) + 1)], np.int64)
    active = np.repeat(np.diff(starts)[:, None], T, axis=1)
    return RowGroups(T, None, None, starts, np.ascontiguousarray(active), groups > 0)


def ragged_batch(lengths: Array, T: int, groups: int) -> RowGroups:
    """Sequences of unequal length in groups of about equal work; `groups` as in `full_batch`."""
    N, count = len(lengths), max(1, groups)
    longest = np.argsort(-lengths, kind="stable")
    position = np.arange(N) % (2 * count)
    # Sequences go to groups 0, 1, ..., 1, 0, 0, 1, ..., so that no group has all the long ones.
    group = np.minimum(position, 2 * count - 1 - position)
    order = longest[np.argsort(group, kind="stable")]
    sizes = np.bincount(group, minlength=count)
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    by_row = lengths[order]
    active = np.empty((count, T), np.int64)
    for k in range(count):
        members = by_row[starts[k] : starts[k + 1]]
        active[k] = len(members) - np.searchsorted(members[::-1], np.arange(T), side="right")
    return RowGroups(T, order, by_row, starts, active, groups > 0)


def group_rows(N: int, T: int, lengths: Array | None, groups: int) -> RowGroups:
    """The rows of a batch, in the number of groups that `thread_sharing` returns."""
    if lengths is None or (N and (lengths == T).all()):
        return full_batch(N, T, groups)
    return ragged_batch(lengths, T, groups)
