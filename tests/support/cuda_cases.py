"""Recurrent layers on the host device, checked against the reference engine; and plans to force."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from cuda_host.device import HostDevice
from networks import TOLERANCES, random_states, random_weights
from rounded_reference import rounding

from lstm_cli.engines.cuda.arrays import DeviceArrays
from lstm_cli.engines.cuda.batch import PackedSequences, make_batch
from lstm_cli.engines.cuda.kernels import GeneralKernels
from lstm_cli.engines.cuda.planning.plan import BLOCK, CLUSTER, GRID, PersistentPlan
from lstm_cli.engines.cuda.precision import PRECISIONS
from lstm_cli.engines.cuda.recurrent import Recurrent
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import RecurrentSpec, TrainingPass

N, T, D = 5, 4, 3
RAGGED = np.array([2, 0, 4, 1, 4])
ROUNDING_UNITS = {"float16": 2.0**-11, "tf32": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative change of an operand by rounding."""


def assert_near(actual, expected, precision, what=""):
    """Check equality within the rounding of sums and of single operands.

    Two orders of summation may put an operand on two sides of a rounding boundary. It then differs
    by a whole unit, and so do the values that depend on it. Most values depend on no such operand.
    """
    assert actual.shape == expected.shape, what
    assert actual.dtype == expected.dtype, what
    error = np.abs(actual - expected)
    assert np.isfinite(actual).all(), what
    scale = max(1.0, float(np.abs(expected).max(initial=0)))
    if precision in TOLERANCES:
        assert error.max(initial=0) <= TOLERANCES[precision] * scale, what
        return
    assert error.max(initial=0) <= 8 * ROUNDING_UNITS[precision] * scale, what
    assert error.size == 0 or np.median(error) <= 1e-6 * scale, what


class LayerCase:
    """A recurrent layer with weights, inputs and states, on the device and for the reference."""

    def __init__(self, cells, precision, lengths=None, *, seed=0, tuning=None, size=(N, T), **spec):
        self.spec = RecurrentSpec(0, D, tuple(cells), **spec)
        self.precision, self.lengths = PRECISIONS[precision], lengths
        self.N, self.T = size
        real = self.precision.accumulator
        self.device = HostDevice(multiprocessors=4, seed=seed)
        rng = np.random.default_rng(7)
        self.weights = {k: w.astype(real) for k, w in random_weights([self.spec]).items()}
        self.x = rng.standard_normal((self.N, self.T, D)).astype(real)
        (state,) = random_states([self.spec], self.N)
        self.state = tuple(None if part is None else part.astype(real) for part in state)
        shape = (self.N, self.T, self.spec.output_size)
        self.d = rng.standard_normal(shape if self.spec.return_sequences else (self.N, shape[2]))
        self.d = self.d.astype(real)
        self.reference = ReferenceEngine(real).layer(self.spec, self.weights)
        self.batch = make_batch(self.device, self.N, self.T, lengths)
        weights = {name: self.device.upload(w) for name, w in self.weights.items()}
        kernels = GeneralKernels(self.device, self.precision, tuning)
        arrays = DeviceArrays(self.device, self.precision)
        self.layer = Recurrent(self.spec, weights, arrays, kernels)

    @property
    def valid(self):
        """(N, T) bool: the valid steps."""
        if self.lengths is None:
            return np.ones((self.N, self.T), bool)
        return np.arange(self.T) < self.lengths[:, None]

    def forward(self, **options):
        """Results of the reference engine and of the layer."""
        with rounding(self.precision.name):
            expected = self.reference.forward(self.x, self.lengths, self.state, **options)
        state = tuple(None if part is None else self.device.upload(part) for part in self.state)
        x = PackedSequences(self.batch, self.device.upload(self.x[self.valid]))
        actual = self.layer.forward(x, self.lengths, state, **options)
        for before, after in zip(self.state, state, strict=True):  # the caller's states
            if before is not None:
                np.testing.assert_array_equal(self.device.download(after), before)
        return expected, actual

    def backward(self, expected, actual):
        """Gradients of the reference engine and of the layer, from their forward results."""
        with rounding(self.precision.name):
            expected_gradients = self.reference.backward(expected.tape, self.d)
        d = self.d[self.valid] if self.spec.return_sequences else self.d
        d_output = PackedSequences(self.batch, self.device.upload(d), self.spec.return_sequences)
        return expected_gradients, self.layer.backward(actual.tape, d_output)

    def check(self, sequences, expected, what=""):
        """Check values over steps, or one row per sequence."""
        expected = expected[self.valid] if sequences.per_step else expected
        actual = self.device.download(sequences.values)
        assert_near(actual, np.asarray(expected), self.precision.name, what)

    def check_states(self, actual, expected):
        """Check h and c."""
        assert (actual[1] is None) == (expected[1] is None)
        for name, one, other in zip("hc", actual, expected, strict=True):
            if one is not None:
                assert_near(self.device.download(one), other, self.precision.name, name)

    def check_forward(self, **options):
        """Run and check a forward pass."""
        expected, actual = self.forward(**options)
        self.check(actual.output, expected.output, "output")
        self.check_states(actual.state, expected.state)
        assert set(actual.seconds) == {"input projection", "recurrence"}
        return expected, actual

    def check_training(self, update=3):
        """Run and check a forward and a backward pass of training."""
        results = self.check_forward(training=TrainingPass(seed=5, update=update))
        expected, gradients = self.backward(*results)
        self.check(gradients.x, expected.x, "dx")
        self.check_states(gradients.state, expected.state)
        assert set(gradients.weights) == set(expected.weights)
        for name, value in expected.weights.items():
            actual = self.device.download(gradients.weights[name])
            assert_near(actual, value.astype(actual.dtype), self.precision.name, name)


def forced_plan(
    kind, units, *, sequences=8, columns=8, row_warps=1, sum_warps=2, register_chunks=None
):
    """A plan search that returns a plan of these sizes for every recurrence."""

    def search(shape, limits, N, directions):
        blocks = -(-shape.H // units)
        plan = PersistentPlan(
            shape, kind, blocks, units, sequences, columns, row_warps, sum_warps, 0
        )
        chunks = plan.chunks if register_chunks is None else min(register_chunks, plan.chunks)
        return replace(plan, register_chunks=chunks)

    return search


FORCED_PLANS = {
    "block": forced_plan(BLOCK, 24, row_warps=2),
    "cluster": forced_plan(CLUSTER, 8),
    "grid": forced_plan(GRID, 8),
}
"""Plan searches by kind of exchange."""
