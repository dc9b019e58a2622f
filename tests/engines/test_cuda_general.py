"""Recurrent layers by the general GPU kernels, run on the host, against the reference engine."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_cases import RAGGED, LayerCase
from cuda_cells import CELLS
from cuda_host.build import COMPILER

from lstm_cli.cells import GRU, LSTM, Activation
from lstm_cli.engines.cuda.batch import PackedSequences
from lstm_cli.engines.cuda.kernels import GeneralTuning
from lstm_cli.engines.cuda.precision import PRECISIONS
from lstm_cli.engines.types import TrainingPass

pytestmark = pytest.mark.skipif(COMPILER is None, reason="g++ is not installed")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CELLS)
def test_inference_and_kept_gates(name, precision):
    case = LayerCase([CELLS[name]], precision, RAGGED)
    case.check_forward()
    expected, actual = case.check_forward(return_gates=True)
    gates = actual.gates["forward"]
    assert set(gates) == set(expected.gates["forward"])
    for gate, values in expected.gates["forward"].items():
        case.check(gates[gate], values, gate)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CELLS)
def test_training(name, precision):
    case = LayerCase([CELLS[name]], precision, RAGGED, recurrent_dropout=0.4, dropout=0.3)
    case.check_training()


@pytest.mark.parametrize("sequences", [True, False])
@pytest.mark.parametrize("lengths", [None, RAGGED])
@pytest.mark.parametrize("name", ["peephole-projection", "gru", "gru-before"])
def test_both_directions(name, lengths, sequences):
    cells = [CELLS[name]] * 2
    case = LayerCase(cells, "float32", lengths, return_sequences=sequences)
    case.check_forward()
    case.check_forward(return_gates=True)
    case.check_training()
    directions = {launch.grid[1] for what, launch in case.device.launches if what == "forward"}
    assert directions == {2}


def test_barrier_counters_continue_from_layer_to_layer():
    tuning = GeneralTuning(rows=1, warps=1, blocks=3)
    cell = GRU(hidden_size=5)
    first = LayerCase([cell], "float32", tuning=tuning)
    both = LayerCase([cell] * 2, "float32", tuning=tuning)
    first.device = both.device
    first.layer.device = first.layer.kernels.device = both.device
    both.layer.kernels = first.layer.kernels
    for case in (first, both, first, both):
        case.check_training()
    assert {launch.grid[:2] for name, launch in both.device.launches if name == "forward"} == {
        (3, 1),
        (3, 2),
    }


@pytest.mark.parametrize("seed", range(4))
def test_blocks_of_two_directions_do_not_wait_for_each_other(seed):
    tuning = GeneralTuning(rows=1, warps=1, blocks=4)
    cells = [LSTM(hidden_size=70, projection_size=40)] * 2
    lengths = np.array([3, 6, 1, 0])
    case = LayerCase(cells, "float32", lengths, seed=seed, tuning=tuning, size=(4, 6))
    case.check_training()
    assert {launch.grid for name, launch in case.device.launches if name == "forward"} == {
        (4, 2, 1)
    }


def test_directions_with_different_equations_run_one_by_one():
    cells = [LSTM(hidden_size=5), LSTM(hidden_size=5, activation=Activation("softsign"))]
    case = LayerCase(cells, "float32", RAGGED)
    case.check_training()
    assert {launch.grid[1] for _, launch in case.device.launches} == {1}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(
    "tuning",
    [
        GeneralTuning(rows=1, warps=3, blocks=3),
        GeneralTuning(rows=4, warps=2, blocks=5),
        GeneralTuning(rows=8, warps=8),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "cell",
    [
        LSTM(hidden_size=37, projection_size=70, peepholes=True),
        GRU(hidden_size=67, reset_after=False),
    ],
    ids=["lstm", "gru"],
)
def test_blocks_rows_and_warps_do_not_matter(cell, tuning, seed):
    lengths = np.array([3, 1, 0, 2, 3, 3, 1, 2, 3, 1, 2])
    case = LayerCase([cell], "float32", lengths, seed=seed, tuning=tuning, size=(11, 3))
    case.check_training()
    case.check_training(update=4)  # barrier counters continue from one launch to the next


def test_float64_with_many_rows():
    case = LayerCase([LSTM(hidden_size=35, peepholes=True)], "float64", size=(19, 2))
    case.check_training()


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 6)])
def test_few_sequences_and_steps(size):
    LayerCase([GRU(hidden_size=3)], "float32", size=size).check_training()


@pytest.mark.parametrize("sequences", [True, False])
@pytest.mark.parametrize(
    ("size", "lengths"), [((3, 2), [0, 0, 0]), ((3, 0), None), ((0, 2), None)], ids=str
)
def test_nothing_to_compute(size, lengths, sequences):
    lengths = None if lengths is None else np.array(lengths)
    cell = LSTM(hidden_size=4, projection_size=2, peepholes=True)
    case = LayerCase([cell] * 2, "bfloat16", lengths, size=size, return_sequences=sequences)
    case.check_forward()
    case.check_forward(return_gates=True)
    result = case.layer.forward(
        PackedSequences(case.batch, case.device.upload(case.x[case.valid])),
        None,
        training=TrainingPass(),
    )
    d = case.d[case.valid] if sequences else case.d
    d_output = PackedSequences(case.batch, case.device.upload(d), sequences)
    gradients = case.layer.backward(result.tape, d_output)
    for name, parameter in case.spec.parameters().items():
        zeros = np.zeros(parameter.shape, "float32")
        np.testing.assert_array_equal(case.device.download(gradients.weights[name]), zeros)
    case.check(gradients.x, np.zeros_like(case.x), "dx")
