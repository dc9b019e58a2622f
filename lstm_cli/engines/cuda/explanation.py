"""Explanation of the kernels that run each layer; the seconds are modeled, never measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from textwrap import wrap
from typing import Protocol, runtime_checkable

from lstm_cli.cells import Cell
from lstm_cli.engines.cuda.planning.plan import BLOCK, CLUSTER, DeviceLimits, PersistentPlan
from lstm_cli.engines.cuda.planning.plan_search import step_seconds
from lstm_cli.engines.cuda.stacks import PipelinedStacks, PipelinePlan, stack_groups
from lstm_cli.engines.explanation import Explanation
from lstm_cli.engines.types import LayerSpec, RecurrentSpec

LINE_WIDTH = 74
"""Characters per line of a reason, which a terminal of 80 columns shows indented."""


@runtime_checkable
class PlanningKernels(Protocol):
    """Kernels with plans, such as `lstm_cli.engines.cuda.kernels.PersistentKernels`."""

    limits: DeviceLimits

    def plan(self, cell: Cell, N: int, directions: int, *, backward: bool) -> PersistentPlan | str:
        """Plan of a pass, or the reason why there is none."""


def explain_layer(
    kernels: object,
    spec: RecurrentSpec,
    N: int,
    *,
    training: bool,
    backward_kernels: object = None,
) -> Explanation:
    """Explain a layer's kernels for N sequences: forward, and in training backward.

    Directions with the same cell share a launch; different ones run one after the other.

    Parameters
    ----------
    backward_kernels
        Kernels of the backward pass; None: the same as forward.
    """
    if not isinstance(kernels, PlanningKernels):
        return Explanation("general", ("only general kernels were allowed",))
    same_cells = len(set(spec.cells)) == 1
    directions = spec.directions if same_cells else 1
    reasons, floor, names = list[str](), 0.0, list[str]()
    has_floor, numbers = True, dict[str, str | int | float]()
    for backward in (False, True) if training else (False,):
        label = "backward" if backward else "forward"
        backward_only = backward_kernels if backward else None
        pass_kernels = backward_only if isinstance(backward_only, PlanningKernels) else kernels
        plan = pass_kernels.plan(spec.cells[0], N, directions, backward=backward)
        if isinstance(plan, str):
            names.append("general")
            reasons += wrap(f"{label}: {plan}", LINE_WIDTH)
            has_floor = False
            continue
        modeled_seconds = step_seconds(plan, pass_kernels.limits, N, directions)
        modeled_seconds *= spec.directions // directions
        floor += modeled_seconds
        names.append(_kernel_name(plan))
        reasons += [f"{label}: {line}" for line in _reasons(plan, N, modeled_seconds)]
        numbers |= {f"{label}_{key}": value for key, value in _plan_numbers(plan, N).items()}
        numbers[f"{label}_modelled_seconds"] = modeled_seconds
    name = ", then ".join(dict.fromkeys(names))
    return Explanation(name, tuple(reasons), floor if has_floor else None, numbers)


def _kernel_name(plan: PersistentPlan) -> str:
    if plan.kind == BLOCK:
        return "persistent, one block"
    if plan.kind == CLUSTER:
        return f"persistent, clusters of {plan.blocks}"
    return f"persistent, {plan.blocks} blocks of the grid"


def _reasons(plan: PersistentPlan, N: int, modeled_seconds: float) -> list[str]:
    """Sizes of a plan, in lines that fit a narrow terminal."""
    groups, kilobytes = plan.groups(N), plan.shared_bytes / 1024
    return [
        f"{plan.blocks} × {plan.units} units hold all weights, "
        f"{plan.sequences} sequences per group",
        f"{groups} group{'s' if groups > 1 else ''}, {plan.threads} threads per block, "
        f"{kilobytes:.0f} KB shared",
        f"a warp holds {plan.register_chunks} of {plan.chunks} chunks of a row in registers",
        f"{modeled_seconds * 1e6:.2f} µs per step by the model, the least of all plans that fit",
    ]


def _plan_numbers(plan: PersistentPlan, N: int) -> dict[str, str | int | float]:
    return {
        "kind": plan.kind,
        "blocks": plan.blocks,
        "units": plan.units,
        "groups": plan.groups(N),
        "sequences": plan.sequences,
        "columns": plan.columns,
        "row_warps": plan.row_warps,
        "sum_warps": plan.sum_warps,
        "held": plan.register_chunks,
        "chunks": plan.chunks,
        "threads": plan.threads,
        "shared_bytes": plan.shared_bytes,
        "registers": plan.registers,
    }


def explain_stack(
    stacks: PipelinedStacks, layers: Sequence[LayerSpec], N: int, T: int, *, training: bool
) -> Mapping[int, Explanation]:
    """Explain the kernels of a network's recurrent layers, by layer index.

    If there are several such layers, each explanation says whether the layer is pipelined, and why.
    """
    explanations: dict[int, Explanation] = {}
    several = sum(isinstance(spec, RecurrentSpec) for spec in layers) > 1
    for group in stack_groups(layers, training=training):
        specs = [spec for spec in group if isinstance(spec, RecurrentSpec)]
        plans = {
            label: _reason_for_no_stack(specs)
            if len(specs) < 2
            else stacks.plan(specs, N, T, backward=label == "backward")
            for label in (("forward", "backward") if training else ("forward",))
        }
        kernels = [
            stacks.kernels if isinstance(plan, str) else stacks.stream_kernels(plan)[0]
            for plan in plans.values()
        ]
        for spec in specs:
            explanation = explain_layer(
                kernels[0], spec, N, training=training, backward_kernels=kernels[-1]
            )
            for label, plan in plans.items() if several else ():
                explanation = _add_pipeline(explanation, label, plan, T)
            explanations[spec.index] = explanation
    return explanations


def _reason_for_no_stack(specs: Sequence[RecurrentSpec]) -> str:
    if specs and specs[0].directions > 1:
        return "the reverse direction begins with the last step"
    return "it has no adjacent recurrent layer in one direction with unchanged steps between them"


def _add_pipeline(
    explanation: Explanation, label: str, plan: PipelinePlan | str, T: int
) -> Explanation:
    """Add the pipeline, or the reason against it; layers of a pipeline share the modeled time."""
    if isinstance(plan, str):
        return _add_reasons(explanation, [f"{label}: not pipelined: {plan}"])
    chunks = f"{plan.chunks} chunk" + "s" * (plan.chunks > 1)
    reasons = [
        f"{label}: pipelined: {plan.layers} layers in streams of their own, {chunks} of "
        f"{plan.chunk_steps} steps; {plan.seconds * 1e6:.0f} µs by the model, "
        f"{plan.sequential_seconds * 1e6:.0f} one after the other",
        f"{label}: a layer has {plan.sm_limit} multiprocessors for cooperative blocks",
    ]
    floor = explanation.floor
    layer_seconds = explanation.numbers.get(f"{label}_modelled_seconds")
    if floor is not None and layer_seconds is not None:
        floor += plan.seconds / T / plan.layers - float(layer_seconds)
    numbers = dict(explanation.numbers) | {
        f"{label}_pipeline_layers": plan.layers,
        f"{label}_pipeline_windows": plan.chunks,
        f"{label}_pipeline_steps": plan.chunk_steps,
        f"{label}_pipeline_share": plan.sm_limit,
        f"{label}_pipeline_modelled_seconds": plan.seconds,
    }
    name = explanation.way
    way = name if name.endswith("pipelined") else f"{name}, pipelined"
    return replace(_add_reasons(explanation, reasons), way=way, floor=floor, numbers=numbers)


def _add_reasons(explanation: Explanation, reasons: Sequence[str]) -> Explanation:
    lines = tuple(line for reason in reasons for line in wrap(reason, LINE_WIDTH))
    return replace(explanation, reasons=explanation.reasons + lines)
