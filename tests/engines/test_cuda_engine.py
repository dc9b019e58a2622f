"""The cuda engine on the host: data stay on the device, training equals the reference's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_host import build
from cuda_host.device import HostArray, HostDevice
from networks import network, random_inputs, random_lengths, recurrent

from lstm_cli.cells import Activation
from lstm_cli.engines.cuda.engine import CudaEngine
from lstm_cli.engines.protocols import Engine
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import DenseSpec, DropoutSpec, FlattenSpec
from lstm_cli.errors import DeviceError
from lstm_cli.network.network import Network
from lstm_cli.training.losses import Criterion
from lstm_cli.training.optimizers import OPTIMIZERS, make_optimizer
from lstm_cli.training.schedules import make_schedule
from lstm_cli.training.targets import TargetFormat
from lstm_cli.training.train_step import TrainStep
from lstm_cli.training.updates import Updates

pytestmark = pytest.mark.skipif(not build.COMPILER, reason="g++ is not installed")

N, T, D = 6, 5, 4
LENGTHS = random_lengths(N, T)
ROUNDING = {"tf32": 2.0**-11, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Largest relative error of a rounded operand."""


def stack(sequences: bool = True) -> list[Any]:
    return [
        recurrent("lstm", 7, D, directions=2, dropout=0.2),
        DropoutSpec(1, 14, 0.3),
        recurrent("gru", 5, 14, index=2, return_sequences=sequences, recurrent_dropout=0.2),
        DenseSpec(3, 5, 3, None),
    ]


def cuda(dtype: str = "float32") -> CudaEngine:
    return CudaEngine(dtype, HostDevice(multiprocessors=2))


def learner(
    net: Network, loss: str = "mse", kind: str = "adam", sequences: bool = True, **options: Any
) -> TrainStep:
    limits = {key: options.pop(key) for key in ("clip_norm", "clip_value") if key in options}
    optimizer = make_optimizer({"type": kind, "learning_rate": 0.05})
    updates = Updates(optimizer, make_schedule({"type": "constant"}, epochs=1), **limits)
    return TrainStep(
        net, Criterion(TargetFormat(loss, sequences, 3, "y"), **options), updates, seed=3
    )


class CountingDevice(HostDevice):
    """Records the size of every download."""

    def __init__(self) -> None:
        super().__init__(multiprocessors=2)
        self.downloads: list[int] = []

    def download(self, array: HostArray) -> np.ndarray:
        self.downloads.append(array.size)
        return super().download(array)


def test_inputs_on_the_device_stay_there_and_so_do_results() -> None:
    device = CountingDevice()
    engine = CudaEngine("float32", device)
    net, x = network(stack(), engine), random_inputs(N, T, D).astype(np.float32)
    expected = net.run(x, LENGTHS)
    device.downloads.clear()
    result = net.run(device.upload(x), LENGTHS, device_states(device, expected))
    assert not device.downloads
    again = net.run(x, LENGTHS, expected.state)
    np.testing.assert_array_equal(engine.to_host(result.outputs), again.outputs)
    for one, other in zip(result.state, again.state, strict=True):
        for a, b in zip(one, other, strict=True):
            if b is not None:
                np.testing.assert_array_equal(engine.to_host(a), b)


def device_states(device: HostDevice, result: Any) -> list[Any]:
    return [
        tuple(None if part is None else device.upload(part) for part in state)
        for state in result.state
    ]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_inputs_with_gaps_and_of_another_precision(dtype: str) -> None:
    engine = cuda("float32")
    net, x = network(stack(), engine), random_inputs(N, 2 * T, D).astype(dtype)
    strided = engine.hardware.upload(x)[:, ::2]
    expected = net.run(x[:, ::2], LENGTHS).outputs
    np.testing.assert_array_equal(engine.to_host(net.run(strided, LENGTHS).outputs), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("input_dtype", ["float32", "float64"])
def test_inputs_on_the_device_are_normalized_there(dtype: str, input_dtype: str) -> None:
    device = CountingDevice()
    engine = CudaEngine(dtype, device)
    mean, scale = np.array([1.6e9, -3.0, 1e5, 0.0]), np.array([5.0, 0.25, 50.0, 1.0])
    plain = network(stack(), engine)
    statistics = {"inputs.mean": mean, "inputs.scale": scale}
    net = Network(stack(), {**plain.weights, **statistics}, engine)
    x = (mean + scale * random_inputs(N, 2 * T, D)).astype(input_dtype)
    strided = device.upload(x)[:, ::2]
    expected = plain.run(((x - mean) / scale)[:, ::2], LENGTHS)
    device.downloads.clear()
    result = net.run(strided, LENGTHS)
    assert not device.downloads
    np.testing.assert_array_equal(engine.to_host(result.outputs), expected.outputs)
    np.testing.assert_array_equal(net.run(x[:, ::2], LENGTHS).outputs, expected.outputs)


def test_a_step_waits_once_for_two_numbers() -> None:
    device = CountingDevice()
    one = learner(network(stack(), CudaEngine("float32", device)), clip_norm=0.1)
    rng = np.random.default_rng(0)
    x, y = random_inputs(N, T, D).astype(np.float32), rng.random((N, T, 3)).astype(np.float32)
    x_there, y_there = device.upload(x), device.upload(y)
    one.step(x_there, y_there, LENGTHS)
    device.downloads.clear()
    one.step(x_there, y_there, LENGTHS)
    assert len(device.downloads) == 1


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_learns_as_on_the_reference(kind: str) -> None:
    rng, losses, weights = np.random.default_rng(0), [], []
    x, y = random_inputs(N, T, D), rng.random((N, T, 3))
    for engine in (ReferenceEngine("float64"), cuda("float64")):
        one = learner(network(stack(), engine), kind=kind, clip_norm=0.5, clip_value=0.1)
        losses.append([one.step(x, y, LENGTHS).loss for _ in range(20)])
        weights.append(np.concatenate([w.ravel() for w in one.weights.values()]))
    assert losses[0][0] != losses[0][-1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-8)
    np.testing.assert_allclose(weights[1], weights[0], rtol=0, atol=1e-7)


@pytest.mark.parametrize("sequences", [True, False], ids=["steps", "last"])
@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("cross_entropy", {}),
        ("cross_entropy", {"class_weights": [0.5, 2.0, 0.0], "label_smoothing": 0.1}),
        ("binary_cross_entropy", {}),
        ("huber", {}),
        ("mae", {}),
    ],
    ids=str,
)
def test_every_loss_falls_as_on_the_reference(loss: str, options: Any, sequences: bool) -> None:
    rng, losses = np.random.default_rng(1), []
    shape = (N, T) if sequences else (N,)
    y = rng.integers(0, 3, shape) if loss == "cross_entropy" else rng.random((*shape, 3))
    for engine in (ReferenceEngine("float64"), cuda("float64")):
        one = learner(network(stack(sequences), engine), loss, sequences=sequences, **options)
        losses.append([one.step(random_inputs(N, T, D), y, LENGTHS).loss for _ in range(5)])
    assert losses[0][0] != losses[0][-1]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-9)


def test_shares_of_classes_are_targets_too() -> None:
    shares = np.random.default_rng(2).dirichlet(np.ones(3), (N, T))
    losses = [
        learner(network(stack(), engine), "cross_entropy", class_weights=[1.0, 0.3, 2.0])
        .step(random_inputs(N, T, D), shares, LENGTHS)
        .loss
        for engine in (ReferenceEngine("float64"), cuda("float64"))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)


@pytest.mark.parametrize("dtype", ROUNDING)
def test_errors_of_rounded_operands_are_explained_by_their_rounding(dtype: str) -> None:
    # Outputs are probabilities, and every product before them adds up a few numbers of about 1. So
    # far fewer than 20 roundings follow one another.
    x, y = random_inputs(N, T, D), np.random.default_rng(0).integers(0, 3, (N, T))
    engines: list[Engine] = [ReferenceEngine("float32"), cuda(dtype)]
    exact, rounded = (network(stack(), engine).run(x, LENGTHS).outputs for engine in engines)
    error = np.abs(rounded - exact).max()
    assert 0 < error < 20 * ROUNDING[dtype]
    curves = []
    for engine in engines:
        one = learner(network(stack(), engine), "cross_entropy")
        curves.append([one.step(x, y, LENGTHS).loss for _ in range(20)])
    assert curves[0][-1] < 0.9 * curves[0][0]
    np.testing.assert_allclose(curves[1], curves[0], rtol=20 * ROUNDING[dtype])


def test_a_checkpoint_continues_with_the_same_bits() -> None:
    x, y = random_inputs(N, T, D), np.random.default_rng(0).random((N, T, 3))
    whole, first, second = (learner(network(stack(), cuda())) for _ in range(3))
    for one, steps in ((whole, 4), (first, 2)):
        for _ in range(steps):
            one.step(x, y, LENGTHS)
    second.load_weights(first.weights)
    second.updates.load_state(first.updates.state_arrays(first.network.engine))
    for _ in range(2):
        second.step(x, y, LENGTHS)
    for name, value in whole.weights.items():
        np.testing.assert_array_equal(second.weights[name], value)
        np.testing.assert_array_equal(second.network.weights[name], value)


def test_flatten_learns_as_on_the_reference() -> None:
    specs = [
        DenseSpec(0, D, 6, Activation("tanh")),
        FlattenSpec(1, 6, T + 2),
        DenseSpec(2, 6 * (T + 2), 3, Activation("identity")),
    ]
    y = np.random.default_rng(0).random((N, 3))
    losses = []
    for engine in (ReferenceEngine("float64"), cuda("float64")):
        one = learner(network(specs, engine), sequences=False)
        losses.append([one.step(random_inputs(N, T, D), y, LENGTHS).loss for _ in range(5)])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-10)


def test_a_weight_that_is_not_finite_is_detected() -> None:
    engine = cuda()
    for bad in (np.nan, np.inf, -np.inf):
        values = np.ones((3, 50), np.float32)
        assert engine.all_finite([engine.copy(values)])
        values[2, 17] = bad
        assert not engine.all_finite([engine.copy(np.ones(4)), engine.copy(values)])


def test_seconds_of_layers_are_those_of_the_device() -> None:
    seconds = network(stack(), cuda()).run(random_inputs(N, T, D)).seconds
    assert set(seconds[0]) == {"input projection", "recurrence"}
    assert set(seconds[3]) == {"product"}
    assert all(part > 0 for layer in (0, 2, 3) for part in seconds[layer].values())


def test_unknown_dtypes_and_kernels() -> None:
    with pytest.raises(DeviceError, match="does not compute in int8"):
        cuda("int8")
    with pytest.raises(DeviceError, match="there are no sideways kernels"):
        CudaEngine("float32", HostDevice(), kernels="sideways")
