"""Agreement of outputs, gradients and updates, exact and with rounded operands."""

from __future__ import annotations

from time import perf_counter
from types import SimpleNamespace

import numpy as np
import pytest

from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.network.network import Network
from lstm_cli.training.optimizers import AdamOptimizer
from lstm_cli.workflows.bench import GridSize, Unsupported, measure, one_lstm, peer
from lstm_cli.workflows.bench.agreement import (
    NOISE,
    ROUNDING_TOLERANCES,
    FirstStep,
    gradient_agreement,
    rounded_agreement,
    rounded_gradients,
    update_agreement,
    worst,
)
from lstm_cli.workflows.bench.peers import ComputeSetting
from lstm_cli.workflows.bench.peers.torch_device import TorchDevice, tf32
from lstm_cli.workflows.bench.results import PeerAgreement
from lstm_cli.workflows.bench.sizes import random_inputs, random_weights

ADAM = AdamOptimizer(learning_rate=0.01)


@pytest.fixture
def gradients(rng):
    return {"w": rng.standard_normal((5, 3)) * 1e-5, "b": rng.standard_normal(4) * 3e-5}


def adam_by_hand(w, g, rate=0.01, epsilon=1e-8):
    """The first step: both corrected means are those of the one gradient."""
    return w - rate * g / (np.sqrt(g * g) + epsilon)


def test_gradients_are_held_against_the_largest_of_their_tensor(gradients):
    found = {name: g.copy() for name, g in gradients.items()}
    found["b"][2] += 0.01 * np.abs(gradients["b"]).max()
    one = gradient_agreement(gradients, found, 2e-4)
    largest = max(np.abs(found["b"]).max(), np.abs(gradients["b"]).max())
    expected = 0.01 * np.abs(gradients["b"]).max() / largest
    assert (one.what, one.ok) == ("gradient of b", False)
    assert one.difference == pytest.approx(expected)


@pytest.mark.parametrize(
    "spoil",
    [np.zeros_like, np.negative, lambda g: g[::-1].copy(), lambda g: g * 1.01],
    ids=["zero", "other sign", "reversed", "scaled"],
)
def test_gradients_far_below_the_tolerance_do_not_hide_a_mistake(gradients, spoil):
    found = gradients | {"w": spoil(gradients["w"])}
    assert np.abs(found["w"] - gradients["w"]).max() < 2e-4
    one = gradient_agreement(gradients, found, 2e-4)
    assert not one.ok
    assert one.what == "gradient of w"


def test_rounding_of_what_cancels_is_held_against_the_largest_of_all(rng):
    gradients = {"w": rng.standard_normal((5, 3)), "b": np.array([1e-9, -2e-9])}
    found = gradients | {"b": np.array([-1e-9, 1e-9])}
    one = gradient_agreement(gradients, found, 2e-4)
    assert one.ok
    assert one.difference == pytest.approx(3e-9 / (NOISE * np.abs(gradients["w"]).max()))


def test_gradients_that_are_all_zero_are_equal_and_nothing_else_is():
    zero = {"w": np.zeros(3)}
    assert gradient_agreement(zero, zero, 1e-10) == PeerAgreement(0.0, 1e-10, True, "gradient of w")
    assert gradient_agreement(zero, {"w": np.full(3, 1e-30)}, 1e-10).difference == 1.0


def without(gradients, name):
    return {k: v for k, v in gradients.items() if k != name}


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda g: without(g, "b"), "b"),
        (lambda g: g | {"extra": g["b"]}, "extra"),
        (lambda g: g | {"w": g["w"].T}, "w"),
    ],
    ids=["missing", "one more", "transposed"],
)
def test_gradients_of_other_names_or_shapes_do_not_agree(gradients, change, name):
    one = gradient_agreement(gradients, change(gradients), 2e-4)
    assert one == PeerAgreement(float("inf"), 2e-4, False, f"gradient of {name}")


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_not_finite_does_not_agree(gradients, which, value):
    spoilt = gradients | {"w": np.where(gradients["w"] > 0, value, gradients["w"])}
    pair = (spoilt, gradients)
    assert not gradient_agreement(pair[which], pair[1 - which], 2e-4).ok
    assert not gradient_agreement(spoilt, spoilt, 2e-4).ok


def step(before, gradients, change=lambda name, w: w):
    after = {name: change(name, adam_by_hand(w, gradients[name])) for name, w in before.items()}
    return FirstStep(0.5, gradients, after)


@pytest.fixture
def before(gradients, rng):
    return {name: rng.standard_normal(g.shape) for name, g in gradients.items()}


def test_an_update_that_follows_the_equation_agrees(before, gradients):
    one = update_agreement(before, step(before, gradients), ADAM, 1e-12)
    assert one.ok
    assert one.difference < 1e-15


@pytest.mark.parametrize(
    "change",
    [
        lambda before, name, w: before[name],
        lambda before, name, w: 2 * before[name] - w,
        lambda before, name, w: before[name] + 1.1 * (w - before[name]),
        lambda before, name, w: w - 0.01 * 0.01 * before[name],
        lambda before, name, w: np.where(w == w.max(), np.nan, w),
    ],
    ids=["none", "uphill", "another rate", "weight decay", "NaN"],
)
def test_another_update_is_found(before, gradients, change):
    after = step(before, gradients, lambda name, w: change(before, name, w) if name == "b" else w)
    one = update_agreement(before, after, ADAM, 1e-6)
    assert not one.ok
    assert one.what == "b after a step"


def test_a_weight_that_is_not_given_is_named(before, gradients):
    found = step(before, gradients)
    bare = FirstStep(found.loss, gradients, without(found.weights, "w"))
    assert update_agreement(before, bare, ADAM, 1e-6).what == "w after a step"


def test_signs_of_gradients_that_are_rounding_do_not_matter(before, gradients):
    # Two frameworks: one gradient is 3e-9 here and -3e-9 there, next to 1 elsewhere.
    here = gradients | {"w": np.ones((5, 3)), "b": np.array([3e-9, 1.0, 0.5, 0.25])}
    there = here | {"b": np.array([-3e-9, 1.0, 0.5, 0.25])}
    ours, theirs = step(before, here), step(before, there)
    assert np.abs(ours.weights["b"] - theirs.weights["b"]).max() > 0.4 * ADAM.learning_rate
    assert gradient_agreement(here, there, 2e-4).ok
    assert update_agreement(before, ours, ADAM, 1e-12).ok
    assert update_agreement(before, theirs, ADAM, 1e-12).ok


def test_the_worst_is_what_is_wrong_else_what_differs_most():
    fine, further = PeerAgreement(1e-9, 1e-6, True, "a"), PeerAgreement(1e-8, 1e-6, True, "b")
    wrong = PeerAgreement(float("nan"), 1e-6, False, "c")
    assert worst([fine, further]) is further
    assert worst([further, wrong, fine]) is wrong


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
    assert ok or "against float64" in found.what
    assert ("the peer's " in found.what) is (not theirs <= 0.02)


def test_gradients_are_compared_relative_to_the_largest_of_their_tensor():
    def step(error, loss=0.5):
        return FirstStep(loss, {"a": EXACT * 1e-3 + error, "b": EXACT}, {})

    exact = step(0.0)
    assert all(a.ok for a in rounded_gradients(step(4e-6), step(0), exact, "tf32"))
    loss, worst = rounded_gradients(step(6e-6), step(0), exact, "tf32")
    assert loss.ok
    assert (worst.ok, worst.what) == (False, "gradient of a against float64")
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

    def record_event(self):
        moment = SimpleNamespace(at=perf_counter())
        moment.seconds_since = lambda earlier: moment.at - earlier.at
        return moment

    def wait(self):
        pass


class Rounded(ReferenceEngine):
    """Says it computes in another dtype on a device, and is off by so much."""

    device, accelerator = "host", Shim()

    def __init__(self, dtype, off=0.0):
        super().__init__("float32")
        self.dtype, self.off = dtype, off

    def layer(self, spec, weights):
        settings, self.dtype = self.dtype, "float32"
        try:
            return super().layer(spec, weights)
        finally:
            self.dtype = settings

    def to_host(self, array):
        return array + np.float32(self.off)


@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize("dtype", ["tf32", "bfloat16"])
def test_an_engine_of_rounded_operands_is_compared_and_timed(dtype, mode, needs_pytorch_in):
    if mode == "train":
        needs_pytorch_in(dtype)
    pytest.importorskip("torch")
    how = {"rounds": 1, "seconds": 0.001, "mode": mode}
    candidate = peer("torch")
    (good,) = measure([SIZE], one_lstm, Rounded(dtype), [candidate], **how)
    assert good.skipped == {}
    assert good.agreements["torch"].ok, good.agreements
    assert good.ratios["torch"] > 0
    (bad,) = measure([SIZE], one_lstm, Rounded(dtype, 0.2), [candidate], **how)
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
    assert (place.mixed, place.uses_numpy_memory) == (True, False)
    assert place.weight(EXACT).dtype == torch.float32
    assert (
        TorchDevice.of(torch, ComputeSetting(dtype="float16")).weight(EXACT).dtype == torch.float16
    )
    assert TorchDevice.of(torch, ComputeSetting(dtype="tf32")).uses_numpy_memory
    if not torch.cuda.is_available():
        with pytest.raises(Unsupported, match="cuda:0"):
            TorchDevice.of(torch, ComputeSetting(device="cuda:0"))
