"""Recurrent layers by the persistent kernels, run on the host, against the reference engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from cuda_host.build import COMPILER
from engines.test_cuda_general import Case
from strategies_cuda import CELLS

from lstm_cli.cells import GRU, LSTM, RNN, Activation
from lstm_cli.engines.cuda.kernels import NO_PERSISTENT_KERNEL, GeneralKernels, PersistentKernels
from lstm_cli.engines.cuda.planning.plan import BLOCK, CLUSTER, GRID, DeviceLimits, PersistentPlan
from lstm_cli.errors import DeviceError

pytestmark = pytest.mark.skipif(COMPILER is None, reason="g++ is not installed")

RAGGED = np.array([2, 0, 4, 1, 4])
MANY = np.array([3, 1, 0, 2, 3, 3, 1, 2, 3, 1, 2, 3, 0, 1, 2, 3, 3, 2, 1])


def forced(kind, units, *, sequences=8, columns=8, row_warps=1, sum_warps=2, held=None):
    """A plan of these sizes, whatever the work."""

    def choose(work, facts: DeviceLimits, N, directions):
        blocks = -(-work.H // units)
        plan = PersistentPlan(
            work, kind, blocks, units, sequences, columns, row_warps, sum_warps, held=0
        )
        return replace(plan, held=plan.chunks if held is None else min(held, plan.chunks))

    return choose


KINDS = {
    "block": forced(BLOCK, 24, row_warps=2),
    "cluster": forced(CLUSTER, 8),
    "grid": forced(GRID, 8),
}


def make(cells, precision, choose, lengths=RAGGED, **how):
    """A layer whose way is persistent, and has no other."""
    case = Case(cells, precision, lengths, **how)
    case.device.multiprocessors = 16
    case.layer.way = PersistentKernels(case.device, case.precision, None, choose)
    return case


@pytest.mark.parametrize("precision", ["tf32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "cell", [LSTM(hidden_size=20, peepholes=True), GRU(hidden_size=17)], ids=["lstm", "gru"]
)
def test_hand_overs(cell, kind, precision):
    case = make([cell], precision, KINDS[kind], recurrent_dropout=0.4)
    case.check_forward()
    case.check_training()
    names = {name for name, _ in case.device.launches}
    assert {"persistent_forward", "persistent_backward"} <= names
    assert not {"forward", "backward"} & names


VARIANTS = [name for name in CELLS if "projection" not in name and name != "gru-before"]


@pytest.mark.parametrize("name", VARIANTS)
def test_cells(name):
    case = make([CELLS[name]], "tf32", forced(BLOCK, 8))
    case.check_forward()
    wanted, found = case.check_forward(keep=True)
    for gate, values in wanted.kept["forward"].items():
        case.check(found.kept["forward"][gate], values, gate)
    case.check_training()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [None, RAGGED])
def test_both_directions(kind, lengths):
    cells = [LSTM(hidden_size=20)] * 2
    case = make(cells, "bfloat16", KINDS[kind], lengths)
    case.check_training()
    case.check_forward()
    own = [launch for name, launch in case.device.launches if name.startswith("persistent")]
    assert {launch.grid[1] for launch in own} == {2}


def test_directions_with_different_equations_run_one_by_one():
    cells = [LSTM(hidden_size=8), LSTM(hidden_size=8, activation=Activation("softsign"))]
    make(cells, "tf32", forced(BLOCK, 8)).check_training()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "choose",
    [
        forced(BLOCK, 64, sequences=16, columns=8, row_warps=2, sum_warps=2, held=1),
        forced(CLUSTER, 24, sequences=16, columns=8, row_warps=1, sum_warps=2, held=0),
        forced(CLUSTER, 32, sequences=16, columns=16, row_warps=2, sum_warps=1),
        forced(GRID, 16, sequences=8, row_warps=1, sum_warps=4),
        forced(GRID, 40, sequences=24, columns=8, row_warps=4, sum_warps=1, held=1),
    ],
    ids=["block", "cluster", "cluster-16", "grid", "grid-24"],
)
def test_groups_parts_and_warps_do_not_matter(choose, seed):
    case = make([LSTM(hidden_size=64)], "bfloat16", choose, MANY, size=(19, 3), seed=seed)
    case.check_training()
    case.check_training(update=4)  # counters go on from one launch to the next


def test_groups_that_are_not_resident_together_run_one_after_the_other():
    case = make([RNN(hidden_size=33)], "tf32", forced(GRID, 8), MANY, size=(19, 3))
    case.layer.way.facts = DeviceLimits(5, 232448, 16)
    case.check_training()
    launched = [name for name, _ in case.device.launches]
    assert launched.count("persistent_forward") == 3


@pytest.mark.parametrize("cell", [LSTM(hidden_size=33), GRU(hidden_size=33)], ids=["lstm", "gru"])
def test_same_as_the_general_way(cell):
    """Operands are rounded alike, so only the order of sums differs."""
    case = make([cell], "tf32", forced(CLUSTER, 8))
    _, found = case.forward()
    case.layer.way = GeneralKernels(case.device, case.precision)
    _, general = case.forward()
    one, other = (case.device.download(result.output.real) for result in (found, general))
    assert np.median(np.abs(one - other)) <= 1e-6
    np.testing.assert_allclose(one, other, atol=2e-3)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 6)])
def test_few(size):
    make([GRU(hidden_size=8)], "tf32", forced(BLOCK, 8), None, size=size).check_training()


def test_own_choice():
    case = Case([LSTM(hidden_size=20)], "bfloat16", RAGGED)
    case.layer.way = PersistentKernels(case.device, case.precision)
    case.check_training()
    assert "persistent_forward" in {name for name, _ in case.device.launches}


@pytest.mark.parametrize(
    ("name", "precision", "why"),
    [("lstm", "float32", "exact"), ("projection", "tf32", "more than one product")],
)
def test_what_no_plan_is_made_for(name, precision, why):
    case = Case([CELLS[name]], precision, RAGGED)
    case.layer.way = PersistentKernels(case.device, case.precision)
    with pytest.raises(DeviceError, match=f"{NO_PERSISTENT_KERNEL}: .*{why}"):
        case.forward()
    case.layer.way = PersistentKernels(
        case.device, case.precision, GeneralKernels(case.device, case.precision)
    )
    case.check_training()
