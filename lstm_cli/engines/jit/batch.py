"""The rows of a batch as the kernels take them: longest first, dealt out among threads."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lstm_cli.engines.explanation import Explanation
from lstm_cli.engines.jit.codegen.tile import row_limit
from lstm_cli.engines.jit.weights import Plan
from lstm_cli.engines.types import Array, RecurrentSpec


@dataclass(frozen=True, eq=False)
class Rows:
    """Sequences in groups, in each group longest first.

    Attributes
    ----------
    order
        (N,) which sequence a row is; None: each its own.
    lengths
        (N,) by row; None: all T.
    starts
        (groups + 1,) first row of each group.
    active
        (groups, T) how many of a group's rows have that step.
    alone
        Whether threads take a group each; else there is one group, and they share its columns.
    """

    T: int
    order: Array | None
    lengths: Array | None
    starts: Array
    active: Array
    alone: bool

    @property
    def count(self) -> int:
        return int(self.starts[-1])

    @property
    def groups(self) -> int:
        return len(self.active)

    @property
    def largest(self) -> int:
        """Rows of the largest group."""
        return int(np.diff(self.starts).max(initial=0))

    def offsets(self, row: int, step: int, base: int, *, reverse: bool) -> Array:
        """(N,) where each row's first step is; `row` and `step` are strides of the whole array."""
        at = np.arange(self.count) if self.order is None else self.order
        found = at * row + base
        if reverse:
            found += ((self.T if self.lengths is None else self.lengths) - 1) * step
        return found.astype(np.int64, copy=False)

    @property
    def apart(self) -> int:
        """Numbers from one step to the next; 0: a group's steps are numbered before the next's.

        Of whole sequences, steps of all groups are numbered together, in the order of their sums.
        """
        return self.count if self.order is None else 0

    def firsts(self) -> Array:
        """(groups,) which number in the order of all steps a group's first step has."""
        if self.order is None:
            return self.starts[:-1]
        totals = self.active.sum(axis=1)
        return np.concatenate([[0], np.cumsum(totals)[:-1]]).astype(np.int64)

    def sorted_steps(self, sequence: Array, passed: Array) -> Array | None:
        """The order that steps have where all rows are one group; None where they are.

        Sums over steps are made in this order, so that they do not depend on the groups.
        """
        if self.groups == 1 or self.order is None or self.lengths is None:
            return None
        lengths, rank = np.empty_like(self.lengths), np.empty(self.count, np.int64)
        lengths[self.order] = self.lengths
        rank[np.argsort(-lengths, kind="stable")] = np.arange(self.count)
        return np.lexsort((rank[sequence], passed)).astype(np.int64, copy=False)

    def steps(self, *, reverse: bool) -> tuple[Array, Array, Array]:
        """Row, sequence and time of every valid step, in the order of their numbers."""
        if self.order is None:
            t, row = (part.ravel() for part in np.indices((self.T, self.count)))
            return row, row, self.T - 1 - t if reverse else t
        rows, passed = [], []
        for group, active in enumerate(self.active):
            t = np.repeat(np.arange(self.T), active)
            begun = np.cumsum(active) - active
            rows.append(self.starts[group] + np.arange(len(t)) - np.repeat(begun, active))
            passed.append(t)
        row = np.concatenate(rows).astype(np.int64)
        t = np.concatenate(passed)
        if reverse:
            last = self.T - 1 if self.lengths is None else self.lengths[row] - 1
            t = last - t
        return row, self.order[row], t


@lru_cache(maxsize=64)
def full(N: int, T: int, groups: int) -> Rows:
    """N sequences of T steps, in about equal groups; 0 groups: one whose columns are shared."""
    starts = np.array([N * k // max(1, groups) for k in range(max(1, groups) + 1)], np.int64)
    active = np.repeat(np.diff(starts)[:, None], T, axis=1)
    return Rows(T, None, None, starts, np.ascontiguousarray(active), groups > 0)


def ragged(lengths: Array, T: int, groups: int) -> Rows:
    """As `full`, of sequences of unequal length: groups have about equal work."""
    N, count = len(lengths), max(1, groups)
    longest = np.argsort(-lengths, kind="stable")
    turn = np.arange(N) % (2 * count)
    group = np.minimum(
        turn, 2 * count - 1 - turn
    )  # there and back, so that none gets all long ones
    order = longest[np.argsort(group, kind="stable")]
    sizes = np.bincount(group, minlength=count)
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    by_row = lengths[order]
    active = np.empty((count, T), np.int64)
    for k in range(count):
        own = by_row[starts[k] : starts[k + 1]]
        active[k] = len(own) - np.searchsorted(own[::-1], np.arange(T), side="right")
    return Rows(T, order, by_row, starts, active, groups > 0)


def batch(N: int, T: int, lengths: Array | None, groups: int) -> Rows:
    """The rows of a batch."""
    if lengths is None or (N and (lengths == T).all()):
        return full(N, T, groups)
    return ragged(lengths, T, groups)


SMALL = 1 << 15
"""Multiply-adds of a step below which a second thread costs more than it brings."""


SHORT = 1 << 21
"""The same of a whole batch: to wake a thread takes some ten microseconds."""


TALL = 24
"""Rows that a thread wants of its own where all weights together are too large for its cache."""


def work_of(spec: RecurrentSpec, item: int) -> tuple[int, int]:
    """Multiply-adds of a sequence's step, and bytes of a direction's recurrent weights.

    `item` is the bytes of a number.
    """
    cell = spec.cells[0]
    rows = len(cell.gates) * cell.hidden_size
    return rows * (cell.output_size + spec.input_size), item * rows * cell.output_size


def shared(N: int, T: int, work: int, threads: int, *, fits: bool) -> tuple[int, int]:
    """How many threads compute N sequences of T steps, and in how many groups of sequences.

    No groups: threads share the units. No result depends on either.

    Parameters
    ----------
    work
        Multiply-adds of a sequence's step.
    fits
        Whether recurrent weights fit half a core's own cache.
    """
    worth = min(threads, 2 * N * work // max(1, SMALL))  # a thread for each half of `SMALL`
    used = worth if N * work >= SMALL and N * work * T >= SHORT else 1
    least = 2 if fits else TALL
    return used, used if used == 1 or used * least <= N else 0


def explain(plan: Plan, spec: RecurrentSpec, N: int, T: int) -> Explanation:
    """How the kernels of a layer cut its columns and its batch.

    Parameters
    ----------
    plan
        Of the first direction's weights; the other's differs in nothing that is told here.
    """
    machine, lanes = plan.machine, plan.lanes
    work, recurrent = work_of(spec, lanes.bits // 8)
    fits = recurrent <= machine.cache // 2
    threads, groups = shared(N, T, work, plan.threads, fits=fits)
    part = plan.products[0].columns.split.main
    rows = row_limit(machine, part.vectors)
    numbers: dict[str, str | int | float] = {
        "vector_bits": machine.vector_bits,
        "lanes": lanes.count,
        "registers": machine.registers,
        "tile_rows": rows,
        "tile_gates": part.gates,
        "tile_units": part.columns,
        "threads": threads,
        "groups": groups,
        "multiply_adds": N * work,
        "recurrent_bytes": recurrent,
    }
    reasons: tuple[str, ...] = (
        f"{machine.vector_bits}-bit vectors, {machine.registers} registers: tiles of {rows} "
        f"sequence{'s' if rows != 1 else ''} × {part.gates} gates × {part.columns} units",
        _threads(N, T, work, plan.threads, threads),
    )
    if threads > 1:
        reasons = (*reasons, *_groups(N, recurrent, machine.cache, fits=fits))
    return Explanation(_way(threads, groups), reasons, None, numbers)


def _way(threads: int, groups: int) -> str:
    if threads == 1:
        return "1 thread"
    if groups:
        return f"{threads} threads, each with sequences of its own"
    return f"{threads} threads that share the units"


def _threads(N: int, T: int, work: int, allowed: int, used: int) -> str:
    """Why so many."""
    if allowed == 1:
        return "one thread was allowed"
    if N * work < SMALL:
        return f"a step is {N * work:,} multiply-adds: below {SMALL:,} one thread is faster"
    if used == 1:
        return f"the batch is {N * work * T:,} multiply-adds: below {SHORT:,} one is faster"
    return f"a step is {N * work:,} multiply-adds, enough for {used} threads"


def _groups(N: int, recurrent: int, cache: int, *, fits: bool) -> tuple[str, str]:
    """Why threads share units or sequences."""
    least = 2 if fits else TALL
    size, half = f"{recurrent / 1e6:.3g} MB", f"half of a {cache / 1e6:.3g} MB cache"
    return (
        f"{size} of recurrent weights {'fit' if fits else 'do not fit'} {half}",
        f"so {least} sequences a thread are enough to part them; there are {N}",
    )
