"""Recurrent layers by the persistent kernels, run on the host, against the reference engine."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_cases import FORCED_PLANS, RAGGED, LayerCase, forced_plan
from cuda_cells import CELLS
from cuda_host.build import COMPILER

from lstm_cli.cells import GRU, LSTM, RNN, Activation
from lstm_cli.engines.cuda.kernels import NO_PERSISTENT_KERNEL, GeneralKernels, PersistentKernels
from lstm_cli.engines.cuda.planning.plan import BLOCK, CLUSTER, GRID, DeviceLimits
from lstm_cli.errors import DeviceError

pytestmark = pytest.mark.skipif(COMPILER is None, reason="g++ is not installed")

MANY = np.array([3, 1, 0, 2, 3, 3, 1, 2, 3, 1, 2, 3, 0, 1, 2, 3, 3, 2, 1])


def make(cells, precision, search, lengths=RAGGED, **options):
    """A layer with persistent kernels and no fallback."""
    case = LayerCase(cells, precision, lengths, **options)
    case.device.multiprocessors = 16
    case.layer.kernels = PersistentKernels(case.device, case.precision, None, search)
    return case


@pytest.mark.parametrize("precision", ["tf32", "float16", "bfloat16"])
@pytest.mark.parametrize("kind", FORCED_PLANS)
@pytest.mark.parametrize(
    "cell", [LSTM(hidden_size=20, peepholes=True), GRU(hidden_size=17)], ids=["lstm", "gru"]
)
def test_exchanges(cell, kind, precision):
    case = make([cell], precision, FORCED_PLANS[kind], recurrent_dropout=0.4)
    case.check_forward()
    case.check_training()
    names = {name for name, _ in case.device.launches}
    assert {"persistent_forward", "persistent_backward"} <= names
    assert not {"forward", "backward"} & names


VARIANTS = [name for name in CELLS if "projection" not in name and name != "gru-before"]


@pytest.mark.parametrize("name", VARIANTS)
def test_cells(name):
    case = make([CELLS[name]], "tf32", forced_plan(BLOCK, 8))
    case.check_forward()
    expected, actual = case.check_forward(return_gates=True)
    for gate, values in expected.gates["forward"].items():
        case.check(actual.gates["forward"][gate], values, gate)
    case.check_training()


@pytest.mark.parametrize("kind", FORCED_PLANS)
@pytest.mark.parametrize("lengths", [None, RAGGED])
def test_both_directions(kind, lengths):
    cells = [LSTM(hidden_size=20)] * 2
    case = make(cells, "bfloat16", FORCED_PLANS[kind], lengths)
    case.check_training()
    case.check_forward()
    launches = [one for name, one in case.device.launches if name.startswith("persistent")]
    assert {launch.grid[1] for launch in launches} == {2}


def test_directions_with_different_equations_run_one_by_one():
    cells = [LSTM(hidden_size=8), LSTM(hidden_size=8, activation=Activation("softsign"))]
    make(cells, "tf32", forced_plan(BLOCK, 8)).check_training()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "search",
    [
        forced_plan(
            BLOCK, 64, sequences=16, columns=8, row_warps=2, sum_warps=2, register_chunks=1
        ),
        forced_plan(
            CLUSTER, 24, sequences=16, columns=8, row_warps=1, sum_warps=2, register_chunks=0
        ),
        forced_plan(CLUSTER, 32, sequences=16, columns=16, row_warps=2, sum_warps=1),
        forced_plan(GRID, 16, sequences=8, row_warps=1, sum_warps=4),
        forced_plan(GRID, 40, sequences=24, columns=8, row_warps=4, sum_warps=1, register_chunks=1),
    ],
    ids=["block", "cluster", "cluster-16", "grid", "grid-24"],
)
def test_groups_parts_and_warps_do_not_matter(search, seed):
    case = make([LSTM(hidden_size=64)], "bfloat16", search, MANY, size=(19, 3), seed=seed)
    case.check_training()
    case.check_training(update=4)  # counters continue from one launch to the next


def test_groups_that_are_not_resident_at_the_same_time_run_one_after_the_other():
    case = make([RNN(hidden_size=33)], "tf32", forced_plan(GRID, 8), MANY, size=(19, 3))
    case.layer.kernels.limits = DeviceLimits(5, 232448, 16)
    case.check_training()
    launched = [name for name, _ in case.device.launches]
    assert launched.count("persistent_forward") == 3


@pytest.mark.parametrize("cell", [LSTM(hidden_size=33), GRU(hidden_size=33)], ids=["lstm", "gru"])
def test_equal_to_general_kernels(cell):
    """Both round operands in the same way, so only the order of sums differs."""
    case = make([cell], "tf32", forced_plan(CLUSTER, 8))
    _, persistent = case.forward()
    case.layer.kernels = GeneralKernels(case.device, case.precision)
    _, general = case.forward()
    one, other = (case.device.download(r.output.values) for r in (persistent, general))
    assert np.median(np.abs(one - other)) <= 1e-6
    np.testing.assert_allclose(one, other, atol=2e-3)


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 6)])
def test_few_sequences_and_steps(size):
    make([GRU(hidden_size=8)], "tf32", forced_plan(BLOCK, 8), None, size=size).check_training()


def test_searched_plan():
    case = LayerCase([LSTM(hidden_size=20)], "bfloat16", RAGGED)
    case.layer.kernels = PersistentKernels(case.device, case.precision)
    case.check_training()
    assert "persistent_forward" in {name for name, _ in case.device.launches}


@pytest.mark.parametrize(
    ("name", "precision", "why"),
    [("lstm", "float32", "exact"), ("projection", "tf32", "more than one product")],
)
def test_passes_without_a_plan(name, precision, why):
    case = LayerCase([CELLS[name]], precision, RAGGED)
    case.layer.kernels = PersistentKernels(case.device, case.precision)
    with pytest.raises(DeviceError, match=f"{NO_PERSISTENT_KERNEL}: .*{why}"):
        case.forward()
    case.layer.kernels = PersistentKernels(
        case.device, case.precision, GeneralKernels(case.device, case.precision)
    )
    case.check_training()
