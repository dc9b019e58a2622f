"""Arguments and properties of a network, and its errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from networks import network, random_inputs, random_states, random_weights, recurrent

from lstm_cli.cells import Activation
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import DenseSpec, DropoutSpec, FlattenSpec
from lstm_cli.errors import DataError, LstmCliError
from lstm_cli.network.network import Network
from lstm_cli.network.results import layer_flops

N, T, D = 4, 6, 3
LSTM = recurrent("lstm", 5, D, directions=2, projection_size=2)
GRU = recurrent("gru", 7, 4, index=1, return_sequences=False)
STACK = [LSTM, GRU, DenseSpec(2, 7, 2, Activation("tanh"))]


@pytest.fixture
def net() -> Network:
    return network(STACK, ReferenceEngine())


def refused(net: Network, *arguments: Any) -> str:
    with pytest.raises(DataError) as error:
        net.run(*arguments)
    assert error.value.exit_code == 3
    return str(error.value)


def test_what_it_says_of_itself(net: Network) -> None:
    assert (net.input_size, net.output_size) == (D, 2)
    assert net.recurrent == (LSTM, GRU)
    assert not net.returns_sequences
    assert network([LSTM, DropoutSpec(1, 4, 0.5)], ReferenceEngine()).returns_sequences
    assert not network([LSTM, FlattenSpec(1, 4, T)], ReferenceEngine()).returns_sequences
    lstm = 2 * (20 * D + 20 * 2 + 20 + 2 * 5)
    assert net.parameter_count == lstm + (21 * 4 + 21 * 7 + 21 + 21) + (2 * 7 + 2)


def test_plain_inputs_are_not_copied() -> None:
    net = network(STACK, ReferenceEngine("float32"))
    x = random_inputs(N, T, D).astype(np.float32)
    assert net.check(x, None)[0] is x
    assert net.check(x, [T] * N)[0] is x


def test_weights_are_read_only_and_its_own(net: Network) -> None:
    given = {name: value.astype("float32") for name, value in random_weights(STACK).items()}
    own = Network(STACK, given, ReferenceEngine())
    before = own.run(random_inputs(N, T, D)).outputs
    for value in given.values():
        value[...] = 0
    np.testing.assert_array_equal(own.run(random_inputs(N, T, D)).outputs, before)
    with pytest.raises(ValueError, match="read-only"):
        own.weights["layers.0.bias"][0] = 1
    with pytest.raises(TypeError):
        own.weights["layers.0.bias"] = 1  # type: ignore[index]


def test_arrays_that_nothing_can_change_are_used_without_a_copy() -> None:
    given = {name: value.astype("float32") for name, value in random_weights(STACK).items()}
    fixed = {
        name: np.frombuffer(v.tobytes(), v.dtype).reshape(v.shape) for name, v in given.items()
    }
    for name, value in Network(STACK, fixed, ReferenceEngine()).weights.items():
        assert np.shares_memory(value, fixed[name])
    views = {name: value.view() for name, value in given.items()}
    for value in views.values():
        value.setflags(write=False)  # `given` is still writable
    for name, value in Network(STACK, views, ReferenceEngine()).weights.items():
        assert not np.shares_memory(value, given[name])


@pytest.mark.parametrize(
    ("x", "parts"),
    [
        (np.zeros((T, D)), ["real numbers of shape (N, T, 3)", "(6, 3)", "x[None]"]),
        (np.zeros((N, T, D, 1)), ["(4, 6, 3, 1)"]),
        (np.zeros((N, T, D), complex), ["complex128"]),
        (np.full((N, T, D), "a"), ["<U1"]),
        (np.zeros((N, T, 8)), ["8 features, but layer 0 reads 3", "(N, T, 3)", "(4, 6, 8)"]),
        ([[[0, 1, 2]], [[0, 1, 2], [3, 4, 5]]], ["(N, T, 3)"]),
    ],
    ids=["rank 2", "rank 4", "complex", "text", "features", "ragged list"],
)
def test_inputs_that_do_not_fit(net: Network, x: Any, parts: list[str]) -> None:
    text = refused(net, x)
    assert all(part in text for part in parts)


@pytest.mark.parametrize(
    ("lengths", "parts"),
    [
        ([1, 2, 3], ["integers of shape (4,)", "(3,)"]),
        ([1.0, 2, 3, 4], ["float64"]),
        ([[1], [2], [3], [4]], ["(4, 1)"]),
        (5, ["()"]),
        ([1, 2, 3, 7], ["length of sequence 3", "0 to 6", "7"]),
        ([1, -1, 3, 7], ["length of sequence 1", "-1"]),
        (np.array([1, 2, 3, 2**63], np.uint64), ["length of sequence 3"]),
        ([True, True, False, True], ["bool"]),
        ([[1], [1, 2], [1], [1]], ["integers of shape (4,)"]),
    ],
    ids=str,
)
def test_lengths_that_do_not_fit(net: Network, lengths: Any, parts: list[str]) -> None:
    text = refused(net, random_inputs(N, T, D), lengths)
    assert all(part in text for part in parts)


def test_states_that_do_not_fit(net: Network) -> None:
    x, (lstm, gru) = random_inputs(N, T, D), random_states(STACK, N)
    assert "2 entries, one for each recurrent layer" in refused(net, x, None, [lstm])
    text = refused(net, x, None, [(lstm[0][:, :1], lstm[1]), gru])
    assert "initial state h of layer 0 (lstm)" in text
    assert "(4, 2, 2)" in text
    assert "(4, 1, 2)" in text
    assert "state c of layer 0" in refused(net, x, None, [(lstm[0], lstm[0]), gru])
    assert "layer 1 (gru) has no state c" in refused(net, x, None, [lstm, (gru[0], gru[0])])
    assert "state h of layer 1" in refused(net, x, None, [lstm, gru[0][:3]])


def test_states_that_are_no_sequence_of_layers(net: Network) -> None:
    assert "2 entries" in refused(net, random_inputs(N, T, D), None, 5)


@pytest.mark.parametrize("dtype", ["U1", "complex128", "object"])
def test_states_that_are_no_real_numbers(net: Network, dtype: str) -> None:
    lstm, _ = random_states(STACK, N)
    bad = np.zeros((N, 1, 7)).astype(dtype)
    assert "state h of layer 1" in refused(net, random_inputs(N, T, D), None, [lstm, bad])


def test_a_state_may_stand_alone(net: Network) -> None:
    x, (lstm, gru) = random_inputs(N, T, D), random_states(STACK, N)
    with_pair = net.run(x, None, [lstm, gru]).outputs
    np.testing.assert_array_equal(net.run(x, None, [lstm, gru[0]]).outputs, with_pair)
    assert (net.run(x, None, [(lstm[0], None), gru]).outputs != with_pair).any()


def test_inputs_beyond_the_dtype_are_no_warning(net: Network) -> None:
    x = np.full((N, T, D), 1e300)
    try:
        outputs = net.run(x).outputs
    except LstmCliError:
        return
    assert outputs.shape == (N, 2)


def test_weights_beyond_the_dtype_are_refused() -> None:
    weights = random_weights(STACK)
    weights["layers.0.weight_ih"][3, 1] = 1e300
    with pytest.raises(LstmCliError, match=r"layers\.0\.weight_ih"):
        Network(STACK, weights, ReferenceEngine("float32"))


def test_a_sequence_longer_than_flatten_takes() -> None:
    net = network([LSTM, FlattenSpec(1, 4, 5)], ReferenceEngine())
    text = refused(net, random_inputs(N, T, D))
    assert "a sequence of 6 steps is longer than layer 1 (flatten)" in text
    assert "hint: --set model.steps=6" in text
    assert net.run(random_inputs(N, T, D), [5, 0, 2, 5]).outputs.shape == (N, 20)


def test_flops() -> None:
    # A multiply-add is two: 2 x directions x positions x the matrices' sizes.
    assert layer_flops(LSTM, 10) == {
        "input projection": 2 * 2 * 10 * (20 * D),
        "recurrence": 2 * 2 * 10 * (20 * 2 + 2 * 5),
    }
    assert layer_flops(GRU, 10) == {
        "input projection": 2 * 10 * 21 * 4,
        "recurrence": 2 * 10 * 21 * 7,
    }
    assert layer_flops(STACK[2], 4) == {"product": 2 * 4 * 2 * 7}
    assert layer_flops(DropoutSpec(0, 3, 0.5), 4) == {}


def test_flops_of_a_projection_as_wide_as_its_layer() -> None:
    spec = recurrent("lstm", 5, D, projection_size=5)
    assert layer_flops(spec, 10)["recurrence"] == 2 * 10 * (20 * 5 + 5 * 5)
