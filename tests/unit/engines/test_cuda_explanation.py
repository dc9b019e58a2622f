"""What the cuda engine says it chose is the plan that runs."""

from __future__ import annotations

import pytest
from cuda_host.device import HostDevice

from lstm_cli.cells import GRU, LSTM
from lstm_cli.engines.cuda import costs
from lstm_cli.engines.cuda.engine import CudaEngine
from lstm_cli.engines.cuda.explanation import explain
from lstm_cli.engines.cuda.general import GeneralWay
from lstm_cli.engines.cuda.persistent_way import PersistentWay
from lstm_cli.engines.cuda.plan import Facts, work_of
from lstm_cli.engines.cuda.precision import PRECISIONS
from lstm_cli.engines.explanation import Explaining
from lstm_cli.engines.types import RecurrentSpec

DEVICE = HostDevice(multiprocessors=132)


def told(dtype, cell, *, N=16, directions=1, training=False, general=False):
    spec = RecurrentSpec(0, 8, (cell,) * directions)
    make = GeneralWay if general else PersistentWay
    return explain(make(DEVICE, PRECISIONS[dtype]), DEVICE, spec, N, training=training)


@pytest.mark.parametrize("dtype", ["tf32", "bfloat16"])
@pytest.mark.parametrize(("H", "kind"), [(16, "block"), (256, "cluster"), (1024, "grid")])
def test_it_is_the_plan_with_the_fastest_step(dtype, H, kind):
    cell = LSTM(hidden_size=H)
    found = told(dtype, cell)
    plan = costs.best(work_of(cell, PRECISIONS[dtype], False), Facts.of(DEVICE), 16, 1)
    assert found.numbers["forward_kind"] == plan.kind
    assert found.numbers["forward_blocks"] == plan.blocks
    assert found.floor == pytest.approx(costs.seconds(plan, Facts.of(DEVICE), 16, 1))
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
