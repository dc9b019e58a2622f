"""All plans of persistent kernels that a device can run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import ceil

from lstm_cli.engines.cuda.plan import BLOCK, CLUSTER, GRID, Facts, Plan, Work

UNIT_STEP = 8
"""Units of a block are a multiple: 16 bytes of the narrowest type."""
SEQUENCES = (8, 16, 24, 32, 48, 64, 96, 128)
WARPS = (
    (1, 1),
    (1, 2),
    (2, 1),
    (1, 4),
    (2, 2),
    (4, 1),
    (1, 8),
    (2, 4),
    (4, 2),
    (8, 1),
    (1, 16),
    (2, 8),
    (4, 4),
    (8, 2),
)
"""Warps of a block that share out rows, and that share out sums."""
MOST_PARTS = 4
REGISTERS = 65536
"""Of a multiprocessor."""
ACCUMULATORS = 64
"""Registers of sums in a thread, at most."""


def candidates(work: Work, facts: Facts, N: int, only: str | None = None) -> Iterator[Plan]:
    """All plans that a device can run; `only` of one kind."""
    seen = set()
    for units in range(UNIT_STEP, ceil(work.H / UNIT_STEP) * UNIT_STEP + 1, UNIT_STEP):
        blocks = ceil(work.H / units)
        if blocks in seen or blocks > facts.multiprocessors:
            continue  # the smallest number of units for so many blocks came first
        seen.add(blocks)
        possible = _kinds(blocks, facts)
        kind = only or possible[0]
        if kind not in possible:
            continue
        for sequences in SEQUENCES:
            if sequences - 8 < N or sequences == SEQUENCES[0]:
                yield from _shapes(work, facts, kind, blocks, units, sequences)


def _kinds(blocks: int, facts: Facts) -> tuple[str, ...]:
    """How so many blocks can hand over, the fastest first."""
    if blocks == 1:
        return (BLOCK,)
    return (CLUSTER, GRID) if blocks <= facts.largest_cluster else (GRID,)


def _shapes(
    work: Work, facts: Facts, kind: str, blocks: int, units: int, sequences: int
) -> Iterator[Plan]:
    for row_warps, sum_warps in WARPS:
        for columns in (8, 16, 32):
            if sequences % columns or sequences // columns > MOST_PARTS:
                continue
            plan = Plan(work, kind, blocks, units, sequences, columns, row_warps, sum_warps, held=0)
            if found := fitted(plan, facts):
                yield found


def fitted(plan: Plan, facts: Facts) -> Plan | None:
    """The plan with as many weights in registers as there is room for; None: it does not fit."""
    if plan.tiles * plan.row_warps > 2 * ceil(plan.rows / 16) or plan.sum_warps > max(
        1, ceil(plan.width / plan.work.chunk)
    ):
        return None  # warps without work
    if plan.tiles * plan.columns // 8 * 4 * plan.sets > ACCUMULATORS:
        return None
    limit = min(255, REGISTERS // plan.threads // 8 * 8)
    room = (limit - plan.registers) // (plan.tiles * 8)
    if room < 0:
        return None
    plan = replace(plan, held=min(plan.chunks, room))
    return plan if plan.shared_bytes <= facts.shared_bytes else None
