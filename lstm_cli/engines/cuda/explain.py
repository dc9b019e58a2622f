"""How the cuda engine runs a layer, and why: in words, and as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from textwrap import wrap
from typing import Protocol, runtime_checkable

from lstm_cli.cells import Cell
from lstm_cli.engines.cuda.planning import plan_search as costs
from lstm_cli.engines.cuda.planning.plan import BLOCK, CLUSTER, DeviceLimits, PersistentPlan
from lstm_cli.engines.cuda.stacks import PipelinedStacks, PipelinePlan, stack_groups
from lstm_cli.engines.explanation import Explanation
from lstm_cli.engines.types import LayerSpec, RecurrentSpec

LINE_WIDTH = 74
"""Of a reason, which is shown indented in a terminal of 80 columns."""


@runtime_checkable
class PlanningKernels(Protocol):
    """A way that makes plans; see `lstm_cli.engines.cuda.kernels.PersistentKernels`."""

    facts: DeviceLimits

    def plan(self, cell: Cell, N: int, directions: int, *, backward: bool) -> PersistentPlan | str:
        """How a pass is run, or why it is not."""


def explain_layer(
    way: object,
    spec: RecurrentSpec,
    N: int,
    *,
    training: bool,
    back: object = None,
) -> Explanation:
    """What a way does with N sequences: forwards, and in training backwards.

    Directions of one kind run side by side, others one after the other.

    Parameters
    ----------
    back
        What runs the layer backwards; None: the same way.
    """
    if not isinstance(way, PlanningKernels):
        return Explanation("general", ("no other way was allowed",))
    alike = len(set(spec.cells)) == 1
    directions = spec.directions if alike else 1
    reasons, floor, ways = [], 0.0, []
    known, numbers = True, dict[str, str | int | float]()
    for backward in (False, True) if training else (False,):
        name = "backward" if backward else "forward"
        own = back if isinstance(back, PlanningKernels) and backward else way
        plan = own.plan(spec.cells[0], N, directions, backward=backward)
        if isinstance(plan, str):
            ways.append("general")
            reasons += wrap(f"{name}: {plan}", LINE_WIDTH)
            known = False
            continue
        modelled = costs.step_seconds(plan, own.facts, N, directions)
        modelled *= spec.directions // directions
        floor += modelled
        ways.append(_kernel_name(plan))
        reasons += [f"{name}: {line}" for line in _reasons(plan, N, modelled)]
        numbers |= {f"{name}_{key}": value for key, value in _plan_numbers(plan, N).items()}
        numbers[f"{name}_modelled_seconds"] = modelled
    way_words = ", then ".join(dict.fromkeys(ways))
    return Explanation(way_words, tuple(reasons), floor if known else None, numbers)


def _kernel_name(plan: PersistentPlan) -> str:
    """The hand-over of a plan."""
    if plan.kind == BLOCK:
        return "persistent, one block"
    if plan.kind == CLUSTER:
        return f"persistent, clusters of {plan.blocks}"
    return f"persistent, {plan.blocks} blocks of the grid"


def _reasons(plan: PersistentPlan, N: int, modelled: float) -> list[str]:
    """Who holds what, in lines that fit a narrow terminal."""
    groups, kilobytes = plan.groups(N), plan.shared_bytes / 1024
    return [
        f"{plan.blocks} × {plan.units} units hold all weights, {plan.sequences} sequences a group",
        f"{groups} group{'s' if groups > 1 else ''}, {plan.threads} threads a block, "
        f"{kilobytes:.0f} KB shared",
        f"of {plan.chunks} chunks of a row a warp holds {plan.held} in registers",
        f"{modelled * 1e6:.2f} µs a step by the model, the least of all plans that fit",
    ]


def _plan_numbers(plan: PersistentPlan, N: int) -> dict[str, str | int | float]:
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


def explain_stack(
    stacks: PipelinedStacks, layers: Sequence[LayerSpec], N: int, T: int, *, training: bool
) -> Mapping[int, Explanation]:
    """What is done with the recurrent layers of a network, by their index.

    Where there are several, each says whether it runs beside others, and why.
    """
    found: dict[int, Explanation] = {}
    several = sum(isinstance(spec, RecurrentSpec) for spec in layers) > 1
    for part in stack_groups(layers, training=training):
        specs = [spec for spec in part if isinstance(spec, RecurrentSpec)]
        chosen = {
            name: _reason_for_no_stack(specs)
            if len(specs) < 2
            else stacks.plan(specs, N, T, backward=name == "backward")
            for name in (("forward", "backward") if training else ("forward",))
        }
        ways = [
            stacks.way if isinstance(one, str) else stacks.beside(one)[0] for one in chosen.values()
        ]
        for spec in specs:
            one = explain_layer(ways[0], spec, N, training=training, back=ways[-1])
            for name, choice in chosen.items() if several else ():
                one = _add_pipeline(one, name, choice, T)
            found[spec.index] = one
    return found


def _reason_for_no_stack(specs: Sequence[RecurrentSpec]) -> str:
    """Why a layer is in no stack."""
    if specs and specs[0].directions > 1:
        return "the reverse direction begins with the last step"
    return "no recurrent layer in one direction reads its steps as they are, or gives it such"


def _add_pipeline(one: Explanation, name: str, chosen: PipelinePlan | str, T: int) -> Explanation:
    """The same with whether the layer runs beside others; if so, all share the modelled time."""
    if isinstance(chosen, str):
        return _add_reasons(one, f"{name}: not pipelined: {chosen}")
    counted = f"{chosen.windows} window" + "s" * (chosen.windows > 1)
    told = (
        f"{name}: pipelined: {chosen.layers} layers in streams of their own, {counted} of "
        f"{chosen.steps} steps; {chosen.seconds * 1e6:.0f} µs by the model, "
        f"{chosen.apart * 1e6:.0f} one after the other",
        f"{name}: a layer has {chosen.share} multiprocessors for blocks that wait for one another",
    )
    floor, own = one.floor, one.numbers.get(f"{name}_modelled_seconds")
    if floor is not None and own is not None:
        floor += chosen.seconds / T / chosen.layers - float(own)
    numbers = dict(one.numbers) | {
        f"{name}_pipeline_layers": chosen.layers,
        f"{name}_pipeline_windows": chosen.windows,
        f"{name}_pipeline_steps": chosen.steps,
        f"{name}_pipeline_share": chosen.share,
        f"{name}_pipeline_modelled_seconds": chosen.seconds,
    }
    way = one.way if one.way.endswith("pipelined") else f"{one.way}, pipelined"
    return replace(_add_reasons(one, *told), way=way, floor=floor, numbers=numbers)


def _add_reasons(one: Explanation, *told: str) -> Explanation:
    lines = tuple(line for reason in told for line in wrap(reason, LINE_WIDTH))
    return replace(one, reasons=one.reasons + lines)
