"""All plans of persistent kernels that a device can run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from math import ceil

from lstm_cli.cells import Cell
from lstm_cli.engines.cuda.planning.plan import (
    BLOCK,
    CLUSTER,
    GRID,
    DeviceLimits,
    PersistentPlan,
    RecurrenceShape,
)
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.schedule import stages

UNIT_MULTIPLE = 8
"""Units of a block are a multiple: 16 bytes of the narrowest type."""
GROUP_SEQUENCES = (8, 16, 24, 32, 48, 64, 96, 128)
WARP_SHAPES = (
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
MAX_PARTS = 4
REGISTERS_PER_SM = 65536
"""Of a multiprocessor."""
MAX_ACCUMULATOR_REGISTERS = 64
"""Registers of sums in a thread, at most."""


def candidate_plans(
    work: RecurrenceShape, facts: DeviceLimits, N: int, only: str | None = None
) -> Iterator[PersistentPlan]:
    """All plans that a device can run; `only` of one kind."""
    seen = set()
    for units in range(
        UNIT_MULTIPLE, ceil(work.H / UNIT_MULTIPLE) * UNIT_MULTIPLE + 1, UNIT_MULTIPLE
    ):
        blocks = ceil(work.H / units)
        if blocks in seen or blocks > facts.multiprocessors:
            continue  # the smallest number of units for so many blocks came first
        seen.add(blocks)
        possible = _exchange_kinds(blocks, facts)
        kind = only or possible[0]
        if kind not in possible:
            continue
        for sequences in GROUP_SEQUENCES:
            if sequences - 8 < N or sequences == GROUP_SEQUENCES[0]:
                yield from _plans_of_shape(work, facts, kind, blocks, units, sequences)


def _exchange_kinds(blocks: int, facts: DeviceLimits) -> tuple[str, ...]:
    """How so many blocks can hand over, the fastest first."""
    if blocks == 1:
        return (BLOCK,)
    return (CLUSTER, GRID) if blocks <= facts.largest_cluster else (GRID,)


def _plans_of_shape(
    work: RecurrenceShape, facts: DeviceLimits, kind: str, blocks: int, units: int, sequences: int
) -> Iterator[PersistentPlan]:
    for row_warps, sum_warps in WARP_SHAPES:
        for columns in (8, 16, 32):
            if sequences % columns or sequences // columns > MAX_PARTS:
                continue
            plan = PersistentPlan(
                work, kind, blocks, units, sequences, columns, row_warps, sum_warps, held=0
            )
            if found := fit_plan(plan, facts):
                yield found


def fit_plan(plan: PersistentPlan, facts: DeviceLimits) -> PersistentPlan | None:
    """The plan with as many weights in registers as there is room for; None: it does not fit."""
    if plan.tiles * plan.row_warps > 2 * ceil(plan.rows / 16) or plan.sum_warps > max(
        1, ceil(plan.width / plan.work.chunk)
    ):
        return None  # warps without work
    if plan.tiles * plan.columns // 8 * 4 * plan.sets > MAX_ACCUMULATOR_REGISTERS:
        return None
    limit = min(255, REGISTERS_PER_SM // plan.threads // 8 * 8)
    room = (limit - plan.registers) // (plan.tiles * 8)
    if room < 0:
        return None
    plan = replace(plan, held=min(plan.chunks, room))
    return plan if plan.shared_bytes <= facts.shared_bytes else None


# MERGED costs: """How long a step of a persistent kernel takes, by a model of the machine; nothing is measured.  The numbers are of an H100 or H200, as its makers and others publish them, rounded. They only have to rank plans: what hand-over costs against what products, vectors and equations cost. """
CYCLES_PER_SECOND = 1.7e9
"""Modelled: cycles a second."""
EXCHANGE_CYCLES = {"block": 60, "cluster": 450, "grid": 1300}
"""Modelled: cycles between the last block's last value and its being read everywhere."""
MMA_CYCLES = 8
"""Modelled: cycles of a quarter of a multiprocessor for one mma instruction."""
MMA_LATENCY = 33
"""Modelled: cycles until the sums of one product can be added to."""
SHARED_BYTES_PER_CYCLE = 128
"""Modelled: bytes a cycle from shared memory."""
GLOBAL_BYTES_PER_CYCLE = 40
"""Modelled: bytes a cycle of one multiprocessor from the L2 cache."""
INSTRUCTIONS_PER_UNIT = 150
"""Modelled: instructions for one unit of one sequence."""
EQUATION_LATENCY = 350
"""Modelled: cycles of the equations' longest chain, and of the meeting before it."""

CHUNK_SECONDS = 15e-6
"""Modelled: seconds between a window's input and its first step: an event, a product, a launch,
and weights on their way to where they stay."""
HOST_CHUNK_SECONDS = 60e-6
"""Modelled: seconds of the host for one window of one layer."""


def step_cycles(plan: PersistentPlan, N: int) -> float:
    """Of one step of one group, in a batch of N."""
    active = min(N, plan.sequences)
    warps, tiles = plan.row_warps * plan.sum_warps, plan.tiles
    columns = plan.columns // 8
    products = plan.chunks * 2 * tiles * columns
    chained = plan.chunks * 2 * MMA_LATENCY / plan.sets
    multiply = max(products * ceil(warps / 4) * MMA_CYCLES, chained)
    vectors = warps * plan.chunks * columns * 512
    weights = plan.weight_bytes
    sums = plan.sum_warps * plan.rows * plan.columns * 4 * 2
    if plan.kind == GRID:
        move = vectors / GLOBAL_BYTES_PER_CYCLE + (weights + sums) / SHARED_BYTES_PER_CYCLE
    else:
        move = (vectors + weights + sums) / SHARED_BYTES_PER_CYCLE
    items = plan.units * min(active, plan.columns)
    equations = EQUATION_LATENCY + ceil(items / 128) * INSTRUCTIONS_PER_UNIT
    part = max(multiply, move) + 0.3 * min(multiply, move) + equations
    return EXCHANGE_CYCLES[plan.kind] + _cluster_copy_cycles(plan, active) + plan.parts * part


def _cluster_copy_cycles(plan: PersistentPlan, active: int) -> float:
    """Of copying a block's values to the other blocks of its cluster."""
    if plan.kind != CLUSTER:
        return 0.0
    values = plan.units * (plan.work.gates if plan.work.backward else 1)
    vectors = values * active * plan.work.item_bytes / 16 * (plan.blocks - 1)
    return 40 + ceil(vectors / plan.threads) * plan.threads / 32 * 8


def waves(plan: PersistentPlan, facts: DeviceLimits, N: int, directions: int) -> int:
    """How often all multiprocessors are filled before every group has run."""
    room = facts.multiprocessors // plan.blocks
    return ceil(plan.groups(N) * directions / max(1, room))


def step_seconds(plan: PersistentPlan, facts: DeviceLimits, N: int, directions: int) -> float:
    """Of one step of all sequences and directions."""
    return waves(plan, facts, N, directions) * step_cycles(plan, N) / CYCLES_PER_SECOND


@lru_cache(maxsize=4096)
def best_plan(
    work: RecurrenceShape, facts: DeviceLimits, N: int, directions: int, only: str | None = None
) -> PersistentPlan | None:
    """The plan with the fastest step; None: the weights fit no number of blocks.

    Parameters
    ----------
    only
        A kind of hand-over, where it is not free.
    """
    found = candidate_plans(work, facts, N, only)
    limit = facts.multiprocessors // directions
    return min(
        (plan for plan in found if plan.kind != GRID or plan.blocks <= limit),
        key=lambda plan: (step_seconds(plan, facts, N, directions), plan.blocks, plan.threads),
        default=None,
    )


def general_step_seconds(cell: Cell, precision: Precision, tiles: int, blocks: int) -> float:
    """Seconds of one step of the general way: each block reads the weights of its tiles."""
    item = 2 if precision.narrow else 8 if precision.real == "float64" else 4
    meeting = EXCHANGE_CYCLES[GRID if blocks > 1 else BLOCK]
    spent = 0.0
    for stage in stages(cell):
        K = cell.output_size if stage.matrix == "weight_hh" else cell.hidden_size
        weights = K * max(1, len(stage.gates)) * 32 * item
        spent += (
            meeting
            + EQUATION_LATENCY
            + ceil(tiles / max(1, blocks)) * weights / GLOBAL_BYTES_PER_CYCLE
        )
    return spent / CYCLES_PER_SECOND


def pipeline_seconds(slowest: float, layers: int, T: int, steps: int) -> float:
    """Seconds of layers side by side, in windows of so many steps.

    Parameters
    ----------
    slowest
        Seconds of a step of the slowest layer.
    """
    turn = max(steps * slowest + CHUNK_SECONDS, layers * HOST_CHUNK_SECONDS)
    return (ceil(T / steps) + layers - 1) * turn
