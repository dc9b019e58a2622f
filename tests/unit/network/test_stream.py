"""A network step by step: what `Network.run` gives for all steps so far."""

from __future__ import annotations

import numpy as np
import pytest
from networks import CELL_OPTIONS, network, random_inputs, recurrent

from lstm_cli.engines.selection import create_engine
from lstm_cli.engines.types import DenseSpec, DropoutSpec, FlattenSpec, LayerSpec
from lstm_cli.errors import ConfigError, DataError
from lstm_cli.network.normalization import Normalization
from lstm_cli.network.stream import Stream

N, T, D, H = 3, 6, 4, 7


@pytest.fixture(params=["reference", "jit"])
def cpu(request: pytest.FixtureRequest):
    return create_engine(request.param, "cpu", "float32", 1)


def stack() -> list[LayerSpec]:
    return [
        recurrent("lstm", H, D, peepholes=True, projection_size=5),
        DropoutSpec(1, 5, 0.5),
        recurrent("gru", H, 5, index=2),
        DenseSpec(3, H, 3, None),
    ]


def assert_equal(cpu, actual, expected):
    if cpu.name == "jit":
        np.testing.assert_array_equal(actual, expected)
    else:
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CELL_OPTIONS)
def test_every_cell_gives_the_outputs_of_the_whole_sequence(cpu, name):
    kind, options = CELL_OPTIONS[name]
    net = network([recurrent(kind, H, D, **options)], cpu)
    x = random_inputs(N, T, D).astype(np.float32)
    stream = Stream(net, N)
    for t in range(T):
        so_far = net.run(x[:, : t + 1])
        assert_equal(cpu, stream.step(x[:, t]), so_far.outputs[:, t])
        for actual, expected in zip(stream.state, so_far.state, strict=True):
            for one, other in zip(actual, expected, strict=True):
                assert (one is None) == (other is None)
                if one is not None:
                    assert_equal(cpu, one, other)


def test_layers_one_after_another_and_the_last_step_alone(cpu):
    x = random_inputs(N, T, D).astype(np.float32)
    last = [recurrent("lstm", H, D), recurrent("rnn", 5, H, index=1, return_sequences=False)]
    for specs in (stack(), [*last, DenseSpec(2, 5, 2, None)]):
        net = network(specs, cpu)
        stream = Stream(net, N)
        for t in range(T):
            outputs = net.run(x[:, : t + 1]).outputs
            expected = outputs[:, t] if outputs.ndim == 3 else outputs
            assert_equal(cpu, stream.step(x[:, t]), expected)


def test_reset_state_and_out(cpu):
    net, x = network(stack(), cpu), random_inputs(N, T, D).astype(np.float32)
    stream = Stream(net, N)
    first = [stream.step(x[:, t]) for t in range(3)]
    state, fourth = stream.state, stream.step(x[:, 3])
    stream.reset()
    assert all(not part.any() for one in stream.state for part in one if part is not None)
    out = np.empty((N, 3), np.float32)
    for t in range(3):
        assert stream.step(x[:, t], out=out) is out
        np.testing.assert_array_equal(out, first[t])
    stream.step(x[:, 5])
    stream.state = state
    np.testing.assert_array_equal(stream.step(x[:, 3]), fourth)
    stream.state = net.run(x[:, :3]).state
    assert_equal(cpu, stream.step(x[:, 3]), fourth)
    stream.state = None
    np.testing.assert_array_equal(stream.step(x[:, 0]), first[0])


def test_one_sequence_and_numbers_of_other_types(cpu):
    net = network(stack(), cpu)
    stream, x = Stream(net), random_inputs(1, T, D).astype(np.float32)
    assert stream.step(x[0, 0]).shape == (3,)
    expected = net.run(x).outputs
    assert_equal(cpu, stream.step(x[0, 1].tolist()), expected[0, 1])
    assert_equal(cpu, stream.step(x[:, 2].astype(float)), expected[:, 2])


def test_inputs_are_normalized(cpu):
    net = network(stack(), cpu)
    net.normalization = Normalization(np.array([3.0, -1, 0, 50]), np.array([2.0, 0.5, 1, 10]))
    x = random_inputs(N, T, D).astype(np.float32)
    stream = Stream(net, N)
    outputs = np.stack([stream.step(x[:, t]) for t in range(T)], axis=1)
    assert_equal(cpu, outputs, net.run(x).outputs)


def test_layers_that_need_later_steps_are_refused(cpu):
    both = recurrent("lstm", H, D, directions=2)
    with pytest.raises(ConfigError, match="reads every sequence from its end"):
        Stream(network([both], cpu))
    with pytest.raises(ConfigError, match="joins all steps"):
        Stream(network([recurrent("lstm", H, D), FlattenSpec(1, H, T)], cpu))


@pytest.mark.parametrize("shape", [(D + 1,), (1, D + 1), (2, D), (1, 1, D), ()])
def test_other_shapes_are_errors(cpu, shape):
    with pytest.raises(DataError, match="one step of the stream"):
        Stream(network(stack(), cpu)).step(np.zeros(shape, np.float32))


def test_other_arguments_are_errors(cpu):
    net = network(stack(), cpu)
    for batch in (0, -1, 1.0, True, None):
        with pytest.raises(DataError, match="at least one sequence"):
            Stream(net, batch)
    for out in (np.empty((2, 3), np.float32), np.empty((1, 3))):
        with pytest.raises(DataError, match="`out` does not fit"):
            Stream(net).step(np.zeros((1, D), np.float32), out=out)
    with pytest.raises(DataError):
        Stream(net).step(["a"] * D)
    with pytest.raises(DataError, match="initial states"):
        Stream(net).state = [None]
