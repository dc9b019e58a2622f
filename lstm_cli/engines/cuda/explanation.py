"""How the cuda engine runs a layer, and why: in words, and as numbers."""

from __future__ import annotations

from textwrap import wrap
from typing import Protocol, runtime_checkable

from lstm_cli.cells import Cell
from lstm_cli.engines.cuda import costs
from lstm_cli.engines.cuda.device import Device
from lstm_cli.engines.cuda.plan import BLOCK, CLUSTER, Facts, Plan
from lstm_cli.engines.explanation import Explanation
from lstm_cli.engines.types import RecurrentSpec

WIDTH = 74
"""Of a reason, which is shown indented in a terminal of 80 columns."""


@runtime_checkable
class Planning(Protocol):
    """A way that makes plans; see `lstm_cli.engines.cuda.persistent_way.PersistentWay`."""

    def plan(self, cell: Cell, N: int, directions: int, *, backward: bool) -> Plan | str:
        """How a pass is run, or why it is not."""


def explain(
    way: object, device: Device, spec: RecurrentSpec, N: int, *, training: bool
) -> Explanation:
    """What a way does with N sequences: forwards, and in training backwards.

    Directions of one kind run side by side, others one after the other.
    """
    if not isinstance(way, Planning):
        return Explanation("general", ("no other way was allowed",))
    alike = len(set(spec.cells)) == 1
    directions = spec.directions if alike else 1
    parts, floor, ways = [], 0.0, []
    known, numbers = True, dict[str, str | int | float]()
    for backward in (False, True) if training else (False,):
        name = "backward" if backward else "forward"
        plan = way.plan(spec.cells[0], N, directions, backward=backward)
        if isinstance(plan, str):
            ways.append("general")
            parts += wrap(f"{name}: {plan}", WIDTH)
            known = False
            continue
        facts = Facts.of(device)
        modelled = costs.seconds(plan, facts, N, directions) * (spec.directions // directions)
        floor += modelled
        ways.append(_words(plan))
        parts += [f"{name}: {line}" for line in _reasons(plan, N, modelled)]
        numbers |= {f"{name}_{key}": value for key, value in _numbers(plan, N).items()}
        numbers[f"{name}_modelled_seconds"] = modelled
    way_words = ", then ".join(dict.fromkeys(ways))
    return Explanation(way_words, tuple(parts), floor if known else None, numbers)


def _words(plan: Plan) -> str:
    """The hand-over of a plan."""
    if plan.kind == BLOCK:
        return "persistent, one block"
    if plan.kind == CLUSTER:
        return f"persistent, clusters of {plan.blocks}"
    return f"persistent, {plan.blocks} blocks of the grid"


def _reasons(plan: Plan, N: int, modelled: float) -> list[str]:
    """Who holds what, in lines that fit a narrow terminal."""
    groups, kilobytes = plan.groups(N), plan.shared_bytes / 1024
    return [
        f"{plan.blocks} × {plan.units} units hold all weights, {plan.sequences} sequences a group",
        f"{groups} group{'s' if groups > 1 else ''}, {plan.threads} threads a block, "
        f"{kilobytes:.0f} KB shared",
        f"of {plan.chunks} chunks of a row a warp holds {plan.held} in registers",
        f"{modelled * 1e6:.2f} µs a step by the model, the least of all plans that fit",
    ]


def _numbers(plan: Plan, N: int) -> dict[str, str | int | float]:
    """The plan itself."""
    return {
        "kind": plan.kind,
        "blocks": plan.blocks,
        "units": plan.units,
        "groups": plan.groups(N),
        "sequences": plan.sequences,
        "columns": plan.columns,
        "row_warps": plan.row_warps,
        "sum_warps": plan.sum_warps,
        "held": plan.held,
        "chunks": plan.chunks,
        "threads": plan.threads,
        "shared_bytes": plan.shared_bytes,
        "registers": plan.registers,
    }
