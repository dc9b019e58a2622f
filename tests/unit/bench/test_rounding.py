"""Where operands are rounded: how far we may be from float64, and what of that is the peer's."""

from __future__ import annotations

from time import perf_counter
from types import SimpleNamespace

import numpy as np
import pytest

from lstm_cli.bench import GridSize, Unsupported, measure, one_lstm, peer
from lstm_cli.bench.agreement import (
    ROUNDING_TOLERANCES,
    FirstStep,
    rounded_agreement,
    rounded_gradients,
)
from lstm_cli.bench.peers import ComputeSetting
from lstm_cli.bench.peers.torch_device import TorchDevice, tf32
from lstm_cli.bench.sizes import random_inputs, random_weights
from lstm_cli.engines.reference import ReferenceEngine
from lstm_cli.network.network import Network

SIZE = GridSize(hidden=24, batch=5, steps=6, features=9)
EXACT = np.linspace(-1, 1, 50).reshape(5, 10)


@pytest.mark.parametrize(
    ("ours", "theirs", "ok"),
    [
        (0.0, 0.0, True),
        (2.9e-3, 0.0, True),  # as rounding explains
        (3.1e-3, 1e-3, False),
        (5.9e-3, 3e-3, True),  # not twice as far as the peer
        (6.1e-3, 3e-3, False),
        (0.0, 0.03, False),  # the peer computes something else
        (float("nan"), 0.0, False),
        (0.0, float("nan"), False),
    ],
)
def test_we_are_held_against_float64_and_so_is_the_peer(ours, theirs, ok):
    found = rounded_agreement(EXACT + ours, EXACT + theirs, EXACT, "tf32")
    assert found.ok is ok
    assert ok or "beside float64" in found.what
    assert ("the peer's own" in found.what) is (not theirs <= 0.02)


def test_gradients_are_held_beside_the_largest_of_their_tensor():
    def step(error, loss=0.5):
        return FirstStep(loss, {"a": EXACT * 1e-3 + error, "b": EXACT}, {})

    exact = step(0.0)
    assert all(a.ok for a in rounded_gradients(step(4e-6), step(0), exact, "tf32"))
    loss, worst = rounded_gradients(step(6e-6), step(0), exact, "tf32")
    assert loss.ok
    assert (worst.ok, worst.what) == (False, "gradient of a beside float64")
    assert not rounded_gradients(step(0, 0.51), step(0), exact, "tf32")[0].ok
    assert not rounded_gradients(FirstStep(0.5, {"a": EXACT}, {}), step(0), exact, "tf32")[1].ok


@pytest.mark.parametrize("dtype", ROUNDING_TOLERANCES)
def test_pytorch_in_every_dtype_is_near_float64(dtype):
    pytest.importorskip("torch")
    layers = one_lstm(SIZE)
    weights, x = (make(3, "float32") for make in (
        lambda seed, dtype: random_weights(layers, seed, dtype),
        lambda seed, dtype: random_inputs(layers, SIZE, seed, dtype),
    ))  # fmt: skip
    exact = Network(layers, weights, ReferenceEngine("float64")).run(x).outputs
    with peer("torch").prepare(layers, weights, SIZE, ComputeSetting(1, dtype=dtype)) as run:
        found = run(x)
    assert found.dtype == np.float32
    assert rounded_agreement(found, found, exact, dtype).ok
    assert np.abs(found - exact).max() > (0 if dtype == "tf32" else 1e-5), "nothing is rounded"


class Shim:
    """A device on the processor."""

    architecture = "host"

    def upload(self, array):
        return array

    def mark(self):
        moment = SimpleNamespace(at=perf_counter())
        moment.seconds_since = lambda earlier: moment.at - earlier.at
        return moment

    def wait(self):
        pass


class Rounded(ReferenceEngine):
    """Says it computes in another dtype on a device, and is off by so much."""

    device, hardware = "host", Shim()

    def __init__(self, dtype, off=0.0):
        super().__init__("float32")
        self.dtype, self.off = dtype, off

    def prepare(self, spec, weights):
        told, self.dtype = self.dtype, "float32"
        try:
            return super().prepare(spec, weights)
        finally:
            self.dtype = told

    def to_host(self, array):
        return array + np.float32(self.off)


@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize("dtype", ["tf32", "bfloat16"])
def test_an_engine_of_rounded_operands_is_compared_and_timed(dtype, mode, needs_pytorch_in):
    if mode == "train":
        needs_pytorch_in(dtype)
    pytest.importorskip("torch")
    how = {"rounds": 1, "seconds": 0.001, "mode": mode}
    contestant = peer("torch")
    (good,) = measure([SIZE], one_lstm, Rounded(dtype), [contestant], **how)
    assert good.skipped == {}
    assert good.agreements["torch"].ok, good.agreements
    assert good.ratios["torch"] > 0
    (bad,) = measure([SIZE], one_lstm, Rounded(dtype, 0.2), [contestant], **how)
    assert not bad.agreements["torch"].ok
    assert bad.ratios == {}


def test_tf32_is_put_back_after_a_failure_too():
    torch = pytest.importorskip("torch")
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32

    def fails():
        with tf32(torch, allowed=not before[0]):
            assert (cudnn.allow_tf32, matmul.allow_tf32) == (not before[0],) * 2
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fails()
    assert (cudnn.allow_tf32, matmul.allow_tf32) == before


def test_weights_that_are_trained_in_16_bits_are_kept_in_32():
    torch = pytest.importorskip("torch")
    place = TorchDevice.of(torch, ComputeSetting(dtype="float16"), training=True)
    assert (place.mixed, place.plain) == (True, False)
    assert place.weight(EXACT).dtype == torch.float32
    assert (
        TorchDevice.of(torch, ComputeSetting(dtype="float16")).weight(EXACT).dtype == torch.float16
    )
    assert TorchDevice.of(torch, ComputeSetting(dtype="tf32")).plain
    if not torch.cuda.is_available():
        with pytest.raises(Unsupported, match="cuda:0"):
            TorchDevice.of(torch, ComputeSetting(device="cuda:0"))
