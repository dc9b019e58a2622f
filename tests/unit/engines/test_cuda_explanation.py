"""What the cuda engine says it chose is the plan that runs."""

from __future__ import annotations

import pytest
from cuda_host.device import HostDevice

from lstm_cli.cells import GRU, LSTM
from lstm_cli.engines.cuda.engine import CudaEngine
from lstm_cli.engines.cuda.explain import explain_layer
from lstm_cli.engines.cuda.kernels import GeneralKernels, PersistentKernels
from lstm_cli.engines.cuda.planning import plan_search as costs
from lstm_cli.engines.cuda.planning.plan import DeviceLimits, recurrence_shape
from lstm_cli.engines.cuda.precision import PRECISIONS
from lstm_cli.engines.cuda.stacks import PipelineOptions
from lstm_cli.engines.explanation import Explaining, ExplainingStacks
from lstm_cli.engines.types import DenseSpec, RecurrentSpec

DEVICE = HostDevice(multiprocessors=132)


def told(dtype, cell, *, N=16, directions=1, training=False, general=False):
    spec = RecurrentSpec(0, 8, (cell,) * directions)
    make = GeneralKernels if general else PersistentKernels
    return explain_layer(make(DEVICE, PRECISIONS[dtype]), spec, N, training=training)


@pytest.mark.parametrize("dtype", ["tf32", "bfloat16"])
@pytest.mark.parametrize(("H", "kind"), [(16, "block"), (256, "cluster"), (1024, "grid")])
def test_it_is_the_plan_with_the_fastest_step(dtype, H, kind):
    cell = LSTM(hidden_size=H)
    found = told(dtype, cell)
    plan = costs.best_plan(
        recurrence_shape(cell, PRECISIONS[dtype], False), DeviceLimits.of(DEVICE), 16, 1
    )
    assert found.numbers["forward_kind"] == plan.kind
    assert found.numbers["forward_blocks"] == plan.blocks
    assert found.floor == pytest.approx(costs.step_seconds(plan, DeviceLimits.of(DEVICE), 16, 1))
    assert {"block": "one block", "cluster": "clusters of", "grid": "blocks of the grid"}[
        plan.kind
    ] in found.way
    assert len(found.reasons) == 4
    assert all(line.startswith("forward: ") for line in found.reasons)
    assert max(map(len, found.reasons)) <= 76
    assert kind in ("block", plan.kind)  # small layers may be spread, too


def test_training_has_both_passes_and_their_sum():
    found = told("bfloat16", GRU(hidden_size=128), directions=2, training=True)
    parts = [found.numbers[f"{name}_modelled_seconds"] for name in ("forward", "backward")]
    assert found.floor == pytest.approx(sum(parts))
    assert max(map(len, found.reasons)) <= 76


def test_why_there_is_no_plan_is_said():
    exact = told("float32", LSTM(hidden_size=64))
    assert (exact.way, exact.floor) == ("general", None)
    assert exact.reasons == ("forward: float32 is exact: tensor cores round what they multiply",)
    large = told("tf32", LSTM(hidden_size=4096))
    assert "do not fit" in " ".join(large.reasons)
    assert max(map(len, large.reasons)) <= 76
    assert told("tf32", LSTM(hidden_size=64), general=True).way == "general"


def test_the_engine_tells_it():
    engine = CudaEngine("tf32", DEVICE, "general")
    assert isinstance(engine, Explaining)
    spec = RecurrentSpec(0, 8, (LSTM(hidden_size=8),))
    assert engine.explain(spec, 3, 5).way == "general"


def stack(hidden, *, depth=2):
    cell = LSTM(hidden_size=hidden)
    return [RecurrentSpec(k, hidden, (cell,)) for k in range(depth)]


def pipelined(layers, N, T, dtype="bfloat16", how=None, **options):
    engine = CudaEngine(dtype, DEVICE, "auto", how)
    assert isinstance(engine, ExplainingStacks)
    return engine, engine.explain_layers(layers, N, T, **options)


def test_long_and_narrow_stacks_are_pipelined_and_told_so():
    layers = [*stack(256, depth=3), DenseSpec(3, 256, 4, None)]
    engine, found = pipelined(layers, 8, 2000)
    chosen = engine.stacks.plan(layers[:3], 8, 2000)
    assert set(found) == {0, 1, 2}
    assert sum(one.floor for one in found.values()) == pytest.approx(chosen.seconds / 2000)
    assert chosen.seconds < chosen.apart / 1.5
    share = engine.way.beside(44).plan(LSTM(hidden_size=256), 8, 1, backward=False)
    for one in found.values():
        assert one.way == f"persistent, clusters of {share.blocks}, pipelined"
        assert one.numbers["forward_blocks"] == share.blocks
        assert one.numbers["forward_pipeline_share"] == 44
        assert (
            one.numbers["forward_pipeline_windows"] * one.numbers["forward_pipeline_steps"] >= 2000
        )
        told = " ".join(one.reasons)
        assert f"forward: pipelined: 3 layers in streams of their own, {chosen.windows} wi" in told
        assert max(map(len, one.reasons)) <= 76


def test_both_ways_of_training_are_told():
    layers = stack(256)
    engine, found = pipelined(layers, 8, 2000, training=True)
    both = [engine.stacks.plan(layers, 8, 2000, backward=back) for back in (False, True)]
    assert both[0].seconds < both[1].seconds
    total = sum(chosen.seconds for chosen in both) / 2000
    assert sum(one.floor for one in found.values()) == pytest.approx(total)
    told = " ".join(found[1].reasons)
    assert "forward: pipelined" in told
    assert "backward: pipelined" in told


@pytest.mark.parametrize(
    ("layers", "options", "why"),
    [
        (stack(64), {"how": PipelineOptions("never")}, "no pipeline was allowed"),
        ([*stack(64)[:1], RecurrentSpec(1, 64, (LSTM(hidden_size=9),) * 2)], {}, "last step"),
        ([*stack(64)[:1], DenseSpec(1, 64, 64, None), stack(64, depth=3)[2]], {}, "as they are"),
    ],
    ids=["never", "reverse", "dense between"],
)
def test_why_layers_are_not_pipelined_is_told(layers, options, why):
    _, found = pipelined(layers, 4, 3000, **options)
    last = found[layers[-1].index]
    assert "pipelined" not in last.way
    assert why in " ".join(last.reasons)
    assert max(map(len, last.reasons)) <= 76


def test_few_steps_and_full_devices_are_not_pipelined():
    assert "by the model" in " ".join(pipelined(stack(64), 8, 50)[1][1].reasons)
    assert "by the model" in " ".join(pipelined(stack(1024), 128, 2000)[1][1].reasons)
    assert "fewer multi" in pipelined(stack(8), 1, 9, how=PipelineOptions("always"))[0].stacks.plan(
        stack(8, depth=200), 1, 9
    )


def test_without_plans_the_general_way_is_pipelined_by_its_own_model():
    engine, found = pipelined(stack(128), 1, 2000, dtype="float32")
    assert found[1].floor is None
    assert found[1].way == "general, pipelined"
    short, tall = (engine.way.modelled(LSTM(hidden_size=H), 1)[0] for H in (64, 2048))
    assert short < tall
