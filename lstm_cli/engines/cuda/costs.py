"""How long a step of a persistent kernel takes, by a model of the machine; nothing is measured.

The numbers are of an H100 or H200, as its makers and others publish them, rounded. They only have
to rank plans: what hand-over costs against what products, vectors and equations cost.
"""

from __future__ import annotations

from functools import lru_cache
from math import ceil

from lstm_cli.cells import Cell
from lstm_cli.engines.cuda.candidates import candidates
from lstm_cli.engines.cuda.plan import BLOCK, CLUSTER, GRID, Facts, Plan, Work
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.schedule import stages

CYCLES = 1.7e9
"""Modelled: cycles a second."""
HAND_OVER = {"block": 60, "cluster": 450, "grid": 1300}
"""Modelled: cycles between the last block's last value and its being read everywhere."""
PRODUCT = 8
"""Modelled: cycles of a quarter of a multiprocessor for one mma instruction."""
LATENCY = 33
"""Modelled: cycles until the sums of one product can be added to."""
SHARED = 128
"""Modelled: bytes a cycle from shared memory."""
GLOBAL = 40
"""Modelled: bytes a cycle of one multiprocessor from the L2 cache."""
EQUATIONS = 150
"""Modelled: instructions for one unit of one sequence."""
FIRST = 350
"""Modelled: cycles of the equations' longest chain, and of the meeting before it."""

WINDOW = 15e-6
"""Modelled: seconds between a window's input and its first step: an event, a product, a launch,
and weights on their way to where they stay."""
HOST = 60e-6
"""Modelled: seconds of the host for one window of one layer."""


def cycles(plan: Plan, N: int) -> float:
    """Of one step of one group, in a batch of N."""
    active = min(N, plan.sequences)
    warps, tiles = plan.row_warps * plan.sum_warps, plan.tiles
    columns = plan.columns // 8
    products = plan.chunks * 2 * tiles * columns
    chained = plan.chunks * 2 * LATENCY / plan.sets
    multiply = max(products * ceil(warps / 4) * PRODUCT, chained)
    vectors = warps * plan.chunks * columns * 512
    weights = plan.weight_bytes
    sums = plan.sum_warps * plan.rows * plan.columns * 4 * 2
    if plan.kind == GRID:
        move = vectors / GLOBAL + (weights + sums) / SHARED
    else:
        move = (vectors + weights + sums) / SHARED
    items = plan.units * min(active, plan.columns)
    equations = FIRST + ceil(items / 128) * EQUATIONS
    part = max(multiply, move) + 0.3 * min(multiply, move) + equations
    return HAND_OVER[plan.kind] + _spread(plan, active) + plan.parts * part


def _spread(plan: Plan, active: int) -> float:
    """Of copying a block's values to the other blocks of its cluster."""
    if plan.kind != CLUSTER:
        return 0.0
    values = plan.units * (plan.work.gates if plan.work.backward else 1)
    vectors = values * active * plan.work.item_bytes / 16 * (plan.blocks - 1)
    return 40 + ceil(vectors / plan.threads) * plan.threads / 32 * 8


def waves(plan: Plan, facts: Facts, N: int, directions: int) -> int:
    """How often all multiprocessors are filled before every group has run."""
    room = facts.multiprocessors // plan.blocks
    return ceil(plan.groups(N) * directions / max(1, room))


def seconds(plan: Plan, facts: Facts, N: int, directions: int) -> float:
    """Of one step of all sequences and directions."""
    return waves(plan, facts, N, directions) * cycles(plan, N) / CYCLES


@lru_cache(maxsize=4096)
def best(work: Work, facts: Facts, N: int, directions: int, only: str | None = None) -> Plan | None:
    """The plan with the fastest step; None: the weights fit no number of blocks.

    Parameters
    ----------
    only
        A kind of hand-over, where it is not free.
    """
    found = candidates(work, facts, N, only)
    limit = facts.multiprocessors // directions
    return min(
        (plan for plan in found if plan.kind != GRID or plan.blocks <= limit),
        key=lambda plan: (seconds(plan, facts, N, directions), plan.blocks, plan.threads),
        default=None,
    )


def general(cell: Cell, precision: Precision, tiles: int, blocks: int) -> float:
    """Seconds of one step of the general way: each block reads the weights of its tiles."""
    item = 2 if precision.narrow else 8 if precision.real == "float64" else 4
    meeting = HAND_OVER[GRID if blocks > 1 else BLOCK]
    spent = 0.0
    for stage in stages(cell):
        K = cell.output_size if stage.matrix == "weight_hh" else cell.hidden_size
        weights = K * max(1, len(stage.gates)) * 32 * item
        spent += meeting + FIRST + ceil(tiles / max(1, blocks)) * weights / GLOBAL
    return spent / CYCLES


def pipelined(slowest: float, layers: int, T: int, steps: int) -> float:
    """Seconds of layers side by side, in windows of so many steps.

    Parameters
    ----------
    slowest
        Seconds of a step of the slowest layer.
    """
    turn = max(steps * slowest + WINDOW, layers * HOST)
    return (ceil(T / steps) + layers - 1) * turn
