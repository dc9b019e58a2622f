"""Search for the fastest persistent plan by a cost model, whose constants are unmeasured.

The constants are rounded figures for an H100 or H200 that NVIDIA and others publish. They need only
rank plans, by the cost of an exchange relative to products, vectors and equations.
"""

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
"""Divisor of the number of units per block: 16 bytes of the narrowest type."""

GROUP_SEQUENCES = (8, 16, 24, 32, 48, 64, 96, 128)
"""Candidate numbers of sequences per group."""

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
"""Candidate numbers of warps that divide the rows, and of warps that divide each sum."""

MAX_PARTS = 4
"""Largest number of products per step, which run one after the other."""

REGISTERS_PER_SM = 65536
"""Registers per multiprocessor."""

MAX_ACCUMULATOR_REGISTERS = 64
"""Largest number of registers with sums per thread."""

CYCLES_PER_SECOND = 1.7e9
"""Modeled clock frequency in cycles per second."""
EXCHANGE_CYCLES = {"block": 60, "cluster": 450, "grid": 1300}
"""Modeled cycles from the last write of a step until all blocks can read it, by kind."""
MMA_CYCLES = 8
"""Modeled cycles per mma instruction on a quarter of a multiprocessor."""
MMA_LATENCY = 33
"""Modeled cycles until the next mma can add to the same sums."""
SHARED_BYTES_PER_CYCLE = 128
"""Modeled bandwidth of shared memory, in bytes per cycle."""
GLOBAL_BYTES_PER_CYCLE = 40
"""Modeled bandwidth of the L2 cache per multiprocessor, in bytes per cycle."""
INSTRUCTIONS_PER_UNIT = 150
"""Modeled instructions per unit and sequence."""
EQUATION_LATENCY = 350
"""Modeled cycles of the longest dependency chain of the equations, and of the barrier before."""

CHUNK_SECONDS = 15e-6
"""Modeled seconds from a chunk's input to its first step.

The seconds cover an event, a product, a launch, and loading the weights to the chip."""
HOST_CHUNK_SECONDS = 60e-6
"""Modeled seconds of host time per chunk and layer."""


def candidate_plans(
    shape: RecurrenceShape, limits: DeviceLimits, N: int, kind: str | None = None
) -> Iterator[PersistentPlan]:
    """Generate all plans that a device can run, or those of one kind of exchange."""
    block_counts = set()
    last = ceil(shape.H / UNIT_MULTIPLE) * UNIT_MULTIPLE
    for units in range(UNIT_MULTIPLE, last + 1, UNIT_MULTIPLE):
        blocks = ceil(shape.H / units)
        if blocks in block_counts or blocks > limits.multiprocessors:
            continue  # a plan with as many blocks and fewer units came before
        block_counts.add(blocks)
        possible = _exchange_kinds(blocks, limits)
        chosen = kind or possible[0]
        if chosen not in possible:
            continue
        for sequences in GROUP_SEQUENCES:
            if sequences - 8 < N or sequences == GROUP_SEQUENCES[0]:
                yield from _plans_of_shape(shape, limits, chosen, blocks, units, sequences)


def _exchange_kinds(blocks: int, limits: DeviceLimits) -> tuple[str, ...]:
    """Possible kinds of exchange, the fastest first."""
    if blocks == 1:
        return (BLOCK,)
    return (CLUSTER, GRID) if blocks <= limits.largest_cluster else (GRID,)


def _plans_of_shape(
    shape: RecurrenceShape,
    limits: DeviceLimits,
    kind: str,
    blocks: int,
    units: int,
    sequences: int,
) -> Iterator[PersistentPlan]:
    for row_warps, sum_warps in WARP_SHAPES:
        for columns in (8, 16, 32):
            if sequences % columns or sequences // columns > MAX_PARTS:
                continue
            plan = PersistentPlan(
                shape, kind, blocks, units, sequences, columns, row_warps, sum_warps, 0
            )
            if fitting := fit_plan(plan, limits):
                yield fitting


def fit_plan(plan: PersistentPlan, limits: DeviceLimits) -> PersistentPlan | None:
    """The plan with as many weights in registers as fit. None: it does not fit the device."""
    if plan.tiles * plan.row_warps > 2 * ceil(plan.rows / 16) or plan.sum_warps > max(
        1, ceil(plan.width / plan.shape.chunk)
    ):
        return None  # warps without work
    if plan.tiles * plan.columns // 8 * 4 * plan.accumulator_sets > MAX_ACCUMULATOR_REGISTERS:
        return None
    limit = min(255, REGISTERS_PER_SM // plan.threads // 8 * 8)
    free_chunks = (limit - plan.registers) // (plan.tiles * 8)
    if free_chunks < 0:
        return None
    plan = replace(plan, register_chunks=min(plan.chunks, free_chunks))
    return plan if plan.shared_bytes <= limits.shared_bytes else None


def step_cycles(plan: PersistentPlan, N: int) -> float:
    """Modeled cycles per step of one group, in a batch of N sequences."""
    active = min(N, plan.sequences)
    warps, tiles = plan.row_warps * plan.sum_warps, plan.tiles
    columns = plan.columns // 8
    products = plan.chunks * 2 * tiles * columns
    dependent = plan.chunks * 2 * MMA_LATENCY / plan.accumulator_sets
    multiply = max(products * ceil(warps / 4) * MMA_CYCLES, dependent)
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
    if plan.kind != CLUSTER:
        return 0.0
    values = plan.units * (plan.shape.gates if plan.shape.backward else 1)
    vectors = values * active * plan.shape.operand_bytes / 16 * (plan.blocks - 1)
    return 40 + ceil(vectors / plan.threads) * plan.threads / 32 * 8


def waves(plan: PersistentPlan, limits: DeviceLimits, N: int, directions: int) -> int:
    """Number of rounds in which the multiprocessors run all groups."""
    resident_groups = limits.multiprocessors // plan.blocks
    return ceil(plan.groups(N) * directions / max(1, resident_groups))


def step_seconds(plan: PersistentPlan, limits: DeviceLimits, N: int, directions: int) -> float:
    """Modeled seconds per step of all sequences and directions."""
    return waves(plan, limits, N, directions) * step_cycles(plan, N) / CYCLES_PER_SECOND


@lru_cache(maxsize=4096)
def best_plan(
    shape: RecurrenceShape,
    limits: DeviceLimits,
    N: int,
    directions: int,
    kind: str | None = None,
) -> PersistentPlan | None:
    """The plan with the fastest modeled step. None: no plan fits the device.

    Parameters
    ----------
    kind
        Kind of exchange; None: any.
    """
    plans = candidate_plans(shape, limits, N, kind)
    most_blocks = limits.multiprocessors // directions
    return min(
        (plan for plan in plans if plan.kind != GRID or plan.blocks <= most_blocks),
        key=lambda plan: (step_seconds(plan, limits, N, directions), plan.blocks, plan.threads),
        default=None,
    )


def general_step_seconds(cell: Cell, precision: Precision, tiles: int, blocks: int) -> float:
    """Modeled seconds per step of general kernels, whose blocks read their tiles' weights."""
    barrier = EXCHANGE_CYCLES[GRID if blocks > 1 else BLOCK]
    cycles = 0.0
    for stage in stages(cell):
        K = cell.output_size if stage.matrix == "weight_hh" else cell.hidden_size
        weights = K * max(1, len(stage.gates)) * 32 * precision.operand_bytes
        reading = ceil(tiles / max(1, blocks)) * weights / GLOBAL_BYTES_PER_CYCLE
        cycles += barrier + EQUATION_LATENCY + reading
    return cycles / CYCLES_PER_SECOND


def pipeline_seconds(slowest: float, layers: int, T: int, chunk_steps: int) -> float:
    """Modeled seconds of T steps of a pipeline of layers, in chunks of `chunk_steps` steps.

    Parameters
    ----------
    slowest
        Modeled seconds per step of the slowest layer.
    """
    per_chunk = max(chunk_steps * slowest + CHUNK_SECONDS, layers * HOST_CHUNK_SECONDS)
    return (ceil(T / chunk_steps) + layers - 1) * per_chunk
