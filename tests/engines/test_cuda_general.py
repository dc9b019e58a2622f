"""Recurrent layers by the general GPU kernels, run on the host, against the reference engine."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_host.build import COMPILER
from cuda_host.device import HostDevice
from networks import TOLERANCES, random_states, random_weights
from rounded_reference import rounding
from strategies_cuda import CELLS

from lstm_cli.cells import GRU, LSTM, Activation
from lstm_cli.engines.cuda.batch import PackedSequences, make_batch
from lstm_cli.engines.cuda.kernels import GeneralKernels, GeneralTuning
from lstm_cli.engines.cuda.layers import PreparedRecurrent
from lstm_cli.engines.cuda.precision import PRECISIONS
from lstm_cli.engines.reference import ReferenceEngine
from lstm_cli.engines.types import RecurrentSpec, TrainingPass

pytestmark = pytest.mark.skipif(COMPILER is None, reason="g++ is not installed")

N, T, D = 5, 4, 3
RAGGED = np.array([2, 0, 4, 1, 4])
UNITS = {"float16": 2.0**-11, "tf32": 2.0**-11, "bfloat16": 2.0**-8}
"""What rounding an operand changes at most, of its size."""


def assert_near(found, wanted, precision, what=""):
    """Equal within rounding: of sums, and of the odd operand that falls to the other side.

    An operand that two orders of summation put on two sides of a rounding's border differs by a
    whole unit, and so does what follows from it. Most numbers follow from none.
    """
    assert found.shape == wanted.shape, what
    assert found.dtype == wanted.dtype, what
    error = np.abs(found - wanted)
    assert np.isfinite(found).all(), what
    if precision in TOLERANCES:
        scale = max(1.0, float(np.abs(wanted).max(initial=0)))
        assert error.max(initial=0) <= TOLERANCES[precision] * scale, what
        return
    scale = max(1.0, float(np.abs(wanted).max(initial=0)))
    assert error.max(initial=0) <= 8 * UNITS[precision] * scale, what
    assert error.size == 0 or np.median(error) <= 1e-6 * scale, what


class Case:
    """A layer with weights, inputs and states, on the device and for the reference engine."""

    def __init__(self, cells, precision, lengths=None, *, seed=0, tuning=None, size=(N, T), **spec):
        self.spec = RecurrentSpec(0, D, tuple(cells), **spec)
        self.precision, self.lengths = PRECISIONS[precision], lengths
        self.N, self.T = size
        real = self.precision.real
        self.device = HostDevice(multiprocessors=4, seed=seed)
        rng = np.random.default_rng(7)
        self.weights = {k: w.astype(real) for k, w in random_weights([self.spec]).items()}
        self.x = rng.standard_normal((self.N, self.T, D)).astype(real)
        (state,) = random_states([self.spec], self.N)
        self.state = tuple(None if part is None else part.astype(real) for part in state)
        shape = (self.N, self.T, self.spec.output_size)
        self.d = rng.standard_normal(shape if self.spec.return_sequences else (self.N, shape[2]))
        self.d = self.d.astype(real)
        self.engine = ReferenceEngine(real)
        self.prepared = self.engine.prepare(self.spec, self.weights)
        self.batch = make_batch(self.device, self.N, self.T, lengths)
        up = self.device.upload
        held = {name: up(w) for name, w in self.weights.items()}
        way = GeneralKernels(self.device, self.precision, tuning)
        self.layer = PreparedRecurrent(self.spec, held, self.device, self.precision, way)

    @property
    def valid(self):
        """(N, T) which steps there are."""
        if self.lengths is None:
            return np.ones((self.N, self.T), bool)
        return np.arange(self.T) < self.lengths[:, None]

    def forward(self, **how):
        """The reference's result, and the layer's."""
        up = self.device.upload
        with rounding(self.precision.name):
            given = (self.spec, self.prepared, self.x, self.lengths, self.state)
            wanted = self.engine.forward(*given, **how)
        state = tuple(None if part is None else up(part) for part in self.state)
        found = self.layer.forward(
            PackedSequences(self.batch, up(self.x[self.valid])), state, **how
        )
        for given, kept in zip(self.state, state, strict=True):  # the caller's own
            if given is not None:
                np.testing.assert_array_equal(self.device.download(kept), given)
        return wanted, found

    def backward(self, wanted, found):
        """The same of derivatives."""
        with rounding(self.precision.name):
            expected = self.engine.backward(self.spec, self.prepared, wanted.tape, self.d)
        d = self.d[self.valid] if self.spec.return_sequences else self.d
        given = PackedSequences(self.batch, self.device.upload(d), self.spec.return_sequences)
        return expected, self.layer.backward(found.tape, given)

    def check(self, sequences, wanted, what=""):
        """Values over steps, or one row a sequence."""
        wanted = wanted[self.valid] if sequences.per_step else wanted
        found = self.device.download(sequences.real)
        assert_near(found, np.asarray(wanted), self.precision.name, what)

    def check_states(self, found, wanted):
        """h and c."""
        assert (found[1] is None) == (wanted[1] is None)
        for name, one, other in zip("hc", found, wanted, strict=True):
            if one is not None:
                assert_near(self.device.download(one), other, self.precision.name, name)

    def check_forward(self, **how):
        """All that a forward pass gives."""
        wanted, found = self.forward(**how)
        self.check(found.output, wanted.output, "output")
        self.check_states(found.state, wanted.state)
        assert set(found.seconds) == {"input projection", "recurrence"}
        return wanted, found

    def check_training(self, update=3):
        """All that a pass for training gives, and its way back."""
        wanted, found = self.check_forward(training=TrainingPass(seed=5, update=update))
        expected, gradients = self.backward(wanted, found)
        self.check(gradients.x, expected.x, "dx")
        self.check_states(gradients.state, expected.state)
        assert set(gradients.weights) == set(expected.weights)
        for name, value in expected.weights.items():
            own = self.device.download(gradients.weights[name])
            assert_near(own, value.astype(own.dtype), self.precision.name, name)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CELLS)
def test_inference_and_what_is_kept(name, precision):
    case = Case([CELLS[name]], precision, RAGGED)
    case.check_forward()
    wanted, found = case.check_forward(keep=True)
    kept = found.kept["forward"]
    assert set(kept) == set(wanted.kept["forward"])
    for gate, values in wanted.kept["forward"].items():
        case.check(kept[gate], values, gate)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", CELLS)
def test_training(name, precision):
    case = Case([CELLS[name]], precision, RAGGED, recurrent_dropout=0.4, dropout=0.3)
    case.check_training()


@pytest.mark.parametrize("sequences", [True, False])
@pytest.mark.parametrize("lengths", [None, RAGGED])
@pytest.mark.parametrize("name", ["peephole-projection", "gru", "gru-before"])
def test_both_directions(name, lengths, sequences):
    cells = [CELLS[name]] * 2
    case = Case(cells, "float32", lengths, return_sequences=sequences)
    case.check_forward()
    case.check_forward(keep=True)
    case.check_training()
    together = {launch.grid[1] for what, launch in case.device.launches if what == "forward"}
    assert together == {2}


def test_counters_of_meetings_go_on_from_layer_to_layer():
    tuning = GeneralTuning(rows=1, warps=1, blocks=3)
    cell = GRU(hidden_size=5)
    first = Case([cell], "float32", tuning=tuning)
    both = Case([cell] * 2, "float32", tuning=tuning)
    first.device = both.device
    first.layer.device = first.layer.way.device = both.device
    both.layer.way = first.layer.way
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
    case = Case(cells, "float32", lengths, seed=seed, tuning=tuning, size=(4, 6))
    case.check_training()
    assert {launch.grid for name, launch in case.device.launches if name == "forward"} == {
        (4, 2, 1)
    }


def test_directions_with_different_equations_run_one_by_one():
    cells = [LSTM(hidden_size=5), LSTM(hidden_size=5, activation=Activation("softsign"))]
    case = Case(cells, "float32", RAGGED)
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
    case = Case([cell], "float32", lengths, seed=seed, tuning=tuning, size=(11, 3))
    case.check_training()
    case.check_training(update=4)  # meetings are counted on from one launch to the next


def test_float64_with_many_rows():
    case = Case([LSTM(hidden_size=35, peepholes=True)], "float64", size=(19, 2))
    case.check_training()


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 6)])
def test_few(size):
    Case([GRU(hidden_size=3)], "float32", size=size).check_training()


@pytest.mark.parametrize("sequences", [True, False])
@pytest.mark.parametrize(
    ("size", "lengths"), [((3, 2), [0, 0, 0]), ((3, 0), None), ((0, 2), None)], ids=str
)
def test_nothing_to_compute(size, lengths, sequences):
    lengths = None if lengths is None else np.array(lengths)
    cell = LSTM(hidden_size=4, projection_size=2, peepholes=True)
    case = Case([cell] * 2, "bfloat16", lengths, size=size, return_sequences=sequences)
    case.check_forward()
    case.check_forward(keep=True)
    found = case.layer.forward(
        PackedSequences(case.batch, case.device.upload(case.x[case.valid])),
        None,
        training=TrainingPass(),
    )
    d = case.d[case.valid] if sequences else case.d
    given = PackedSequences(case.batch, case.device.upload(d), sequences)
    gradients = case.layer.backward(found.tape, given)
    for name, parameter in case.spec.parameters().items():
        zeros = np.zeros(parameter.shape, "float32")
        np.testing.assert_array_equal(case.device.download(gradients.weights[name]), zeros)
    case.check(gradients.x, np.zeros_like(case.x), "dx")
