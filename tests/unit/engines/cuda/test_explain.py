"""Explanations of the cuda engine, against the plan that runs."""

from __future__ import annotations

import pytest
from cuda_host.device import HostDevice

from lstm_cli.cells import GRU, LSTM
from lstm_cli.engines.cuda.engine import CudaEngine
from lstm_cli.engines.cuda.explanation import explain_layer
from lstm_cli.engines.cuda.kernels import GeneralKernels, PersistentKernels
from lstm_cli.engines.cuda.planning import plan_search
from lstm_cli.engines.cuda.planning.plan import DeviceLimits, recurrence_shape
from lstm_cli.engines.cuda.precision import PRECISIONS
from lstm_cli.engines.cuda.stacks import PipelineOptions
from lstm_cli.engines.types import DenseSpec, RecurrentSpec

DEVICE = HostDevice(multiprocessors=132)


def explained(dtype, cell, *, N=16, directions=1, training=False, general=False):
    spec = RecurrentSpec(0, 8, (cell,) * directions)
    make = GeneralKernels if general else PersistentKernels
    return explain_layer(make(DEVICE, PRECISIONS[dtype]), spec, N, training=training)


@pytest.mark.parametrize("dtype", ["tf32", "bfloat16"])
@pytest.mark.parametrize(("H", "kind"), [(16, "block"), (256, "cluster"), (1024, "grid")])
def test_the_explained_plan_has_the_fastest_step(dtype, H, kind):
    cell = LSTM(hidden_size=H)
    explanation = explained(dtype, cell)
    plan = plan_search.best_plan(
        recurrence_shape(cell, PRECISIONS[dtype], False), DeviceLimits.of(DEVICE), 16, 1
    )
    assert explanation.numbers["forward_kind"] == plan.kind
    assert explanation.numbers["forward_blocks"] == plan.blocks
    assert explanation.floor == pytest.approx(
        plan_search.step_seconds(plan, DeviceLimits.of(DEVICE), 16, 1)
    )
    assert {"block": "one block", "cluster": "clusters of", "grid": "blocks of the grid"}[
        plan.kind
    ] in explanation.way
    assert len(explanation.reasons) == 4
    assert all(line.startswith("forward: ") for line in explanation.reasons)
    assert max(map(len, explanation.reasons)) <= 76
    assert kind in ("block", plan.kind)  # small layers may be spread too


def test_training_has_both_passes_and_their_sum():
    explanation = explained("bfloat16", GRU(hidden_size=128), directions=2, training=True)
    parts = [explanation.numbers[f"{name}_modelled_seconds"] for name in ("forward", "backward")]
    assert explanation.floor == pytest.approx(sum(parts))
    assert max(map(len, explanation.reasons)) <= 76


def test_the_reason_for_no_plan_is_explained():
    exact = explained("float32", LSTM(hidden_size=64))
    assert (exact.way, exact.floor) == ("general", None)
    assert exact.reasons == ("forward: float32 is exact: tensor cores round what they multiply",)
    large = explained("tf32", LSTM(hidden_size=4096))
    assert "do not fit" in " ".join(large.reasons)
    assert max(map(len, large.reasons)) <= 76
    assert explained("tf32", LSTM(hidden_size=64), general=True).way == "general"


def test_the_engine_explains_its_layers():
    engine = CudaEngine("tf32", DEVICE, "general")
    spec = RecurrentSpec(0, 8, (LSTM(hidden_size=8),))
    assert engine.explain([spec], 3, 5)[spec.index].way == "general"


def stack(hidden, *, depth=2):
    cell = LSTM(hidden_size=hidden)
    return [RecurrentSpec(k, hidden, (cell,)) for k in range(depth)]


def pipelined(layers, N, T, dtype="bfloat16", pipelining=None, **options):
    engine = CudaEngine(dtype, DEVICE, "auto", pipelining)
    return engine, engine.explain(layers, N, T, **options)


def test_long_and_narrow_stacks_are_pipelined_and_explained():
    layers = [*stack(256, depth=3), DenseSpec(3, 256, 4, None)]
    engine, explanations = pipelined(layers, 8, 2000)
    plan = engine.stacks.plan(layers[:3], 8, 2000)
    assert set(explanations) == {0, 1, 2}
    assert sum(one.floor for one in explanations.values()) == pytest.approx(plan.seconds / 2000)
    assert plan.seconds < plan.sequential_seconds / 1.5
    limited = engine.kernels.with_sm_limit(44).plan(LSTM(hidden_size=256), 8, 1, backward=False)
    for one in explanations.values():
        assert one.way == f"persistent, clusters of {limited.blocks}, pipelined"
        assert one.numbers["forward_blocks"] == limited.blocks
        assert one.numbers["forward_pipeline_share"] == 44
        assert (
            one.numbers["forward_pipeline_windows"] * one.numbers["forward_pipeline_steps"] >= 2000
        )
        reasons = " ".join(one.reasons)
        assert f"forward: pipelined: 3 layers in streams of their own, {plan.chunks} ch" in reasons
        assert max(map(len, one.reasons)) <= 76


def test_both_passes_of_training_are_explained():
    layers = stack(256)
    engine, explanations = pipelined(layers, 8, 2000, training=True)
    both = [engine.stacks.plan(layers, 8, 2000, backward=back) for back in (False, True)]
    assert both[0].seconds < both[1].seconds
    total = sum(plan.seconds for plan in both) / 2000
    assert sum(one.floor for one in explanations.values()) == pytest.approx(total)
    reasons = " ".join(explanations[1].reasons)
    assert "forward: pipelined" in reasons
    assert "backward: pipelined" in reasons


@pytest.mark.parametrize(
    ("layers", "options", "why"),
    [
        (stack(64), {"pipelining": PipelineOptions("never")}, "no pipeline was allowed"),
        ([*stack(64)[:1], RecurrentSpec(1, 64, (LSTM(hidden_size=9),) * 2)], {}, "last step"),
        ([*stack(64)[:1], DenseSpec(1, 64, 64, None), stack(64, depth=3)[2]], {}, "unchanged"),
    ],
    ids=["never", "reverse", "dense between"],
)
def test_the_reason_for_no_pipeline_is_explained(layers, options, why):
    _, explanations = pipelined(layers, 4, 3000, **options)
    last = explanations[layers[-1].index]
    assert "pipelined" not in last.way
    assert why in " ".join(last.reasons)
    assert max(map(len, last.reasons)) <= 76


def test_few_steps_and_full_devices_are_not_pipelined():
    assert "by the model" in " ".join(pipelined(stack(64), 8, 50)[1][1].reasons)
    assert "by the model" in " ".join(pipelined(stack(1024), 128, 2000)[1][1].reasons)
    assert "fewer multi" in pipelined(stack(8), 1, 9, pipelining=PipelineOptions("always"))[
        0
    ].stacks.plan(stack(8, depth=200), 1, 9)


def test_without_plans_general_kernels_are_pipelined_by_their_own_model():
    engine, explanations = pipelined(stack(128), 1, 2000, dtype="float32")
    assert explanations[1].floor is None
    assert explanations[1].way == "general, pipelined"
    short, tall = (engine.kernels.modeled_step(LSTM(hidden_size=H), 1)[0] for H in (64, 2048))
    assert short < tall
