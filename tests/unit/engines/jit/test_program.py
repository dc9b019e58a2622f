"""Programs of small batches: bits of the layers, fresh results, several callers, new weights."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from networks import (
    CELL_OPTIONS,
    assert_same,
    network,
    random_inputs,
    random_states,
    random_weights,
    recurrent,
)

from lstm_cli.cells import Activation
from lstm_cli.engines.jit.program import JitProgram
from lstm_cli.engines.selection import create_engine
from lstm_cli.engines.types import DenseSpec, DropoutSpec, FlattenSpec, LayerSpec
from lstm_cli.network.network import MAX_PROGRAM_SHAPES, Network
from lstm_cli.network.results import Result

N, T, D, H = 3, 5, 4, 7

HEADS: dict[str, list[LayerSpec]] = {
    "none": [],
    "softmax": [DenseSpec(2, H, 9, None)],
    "identity": [DropoutSpec(1, H, 0.5), DenseSpec(2, H, 3, Activation("identity"))],
    "flatten": [FlattenSpec(2, H, T), DenseSpec(3, T * H, 17, Activation("sigmoid"))],
    "two": [DenseSpec(2, H, 20, Activation("tanh")), DenseSpec(3, 20, 5, None)],
}


@pytest.fixture(scope="module", params=["float32", "float64", "bfloat16"])
def jit(request: pytest.FixtureRequest) -> Any:
    try:
        return create_engine("jit", "cpu", request.param, 2)
    except Exception as reason:
        pytest.skip(str(reason))


def by_layers(net: Network, x: np.ndarray) -> Result:
    """The result of a network that has no program yet."""
    net._programs.clear()
    return net.run(x)


def by_program(net: Network, x: np.ndarray) -> Result:
    """The result of a program, which the second batch of a shape makes."""
    net.run(x + 1)
    result = net.run(x)
    (idle,) = [programs for shape, programs in net._programs.items() if shape == x.shape[:2]]
    assert idle is not None
    assert [type(program) for program in idle] == [JitProgram]
    return result


def check(net: Network, x: np.ndarray) -> None:
    layers, program = by_layers(net, x), by_program(net, x)
    assert_same(program, layers, net.engine)
    np.testing.assert_array_equal(program.outputs, layers.outputs)
    assert (program.logits is None) == (layers.logits is None)
    if layers.logits is not None:
        np.testing.assert_array_equal(program.logits, layers.logits)
    for index, seconds in layers.seconds.items():
        assert set(program.seconds.get(index, {})) == set(seconds)


@pytest.mark.parametrize("name", CELL_OPTIONS)
def test_every_cell_has_the_bits_of_its_layer(jit, name):
    kind, options = CELL_OPTIONS[name]
    for directions in (1, 2):
        spec = recurrent(kind, H, D, directions=directions, **options)
        check(network([spec], jit), random_inputs(N, T, D).astype(net_dtype(jit)))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("sequences", [True, False])
def test_every_head_has_the_bits_of_its_layers(jit, head, sequences):
    if head == "flatten" and not sequences:
        pytest.skip("there are no steps to flatten")
    specs = [recurrent("lstm", H, D, return_sequences=sequences), *HEADS[head]]
    check(network(specs, jit), random_inputs(N, T, D).astype(net_dtype(jit)))


def net_dtype(jit: Any) -> str:
    return "float64" if jit.dtype == "float64" else "float32"


def stack() -> list[LayerSpec]:
    return [
        recurrent("lstm", H, D, directions=2, peepholes=True),
        recurrent("gru", 5, 2 * H, index=1),
        DenseSpec(2, 5, 3, None),
    ]


@pytest.mark.parametrize("steps", [1, 2, T])
def test_initial_states_have_the_bits_of_the_layers(jit, steps):
    net, x = network(stack(), jit), random_inputs(N, steps, D).astype(net_dtype(jit))
    states = random_states(stack(), N)
    given = [tuple(None if p is None else p.astype(net_dtype(jit)) for p in s) for s in states]
    for state in (given, [given[0], None], [None, given[1]]):
        net._programs.clear()
        expected = net.run(x, state=state)
        by_program(net, x)  # which leaves other states behind
        for _ in range(2):
            actual = net.run(x, state=state)
            assert_same(actual, expected, jit)
            np.testing.assert_array_equal(actual.outputs, expected.outputs)
    zeros = net.run(x)
    assert not np.array_equal(zeros.outputs, expected.outputs)
    np.testing.assert_array_equal(by_layers(net, x).outputs, zeros.outputs)


def test_a_later_call_leaves_earlier_results_alone(jit):
    net, x = network(stack(), jit), random_inputs(N, T, D).astype(net_dtype(jit))
    first = by_program(net, x)
    values = [first.outputs, first.logits, *(part for state in first.state for part in state)]
    copies = [None if value is None else value.copy() for value in values]
    net.run(x * 2)
    net._programs[N, T][0]._table.words[:, 3:] = 0
    for value, copy in zip(values, copies, strict=True):
        np.testing.assert_array_equal(value, copy)
    assert sum(first.seconds[0].values()) > 0


def test_calls_at_the_same_time_have_programs_of_their_own(jit):
    net = network(stack(), jit)
    inputs = [random_inputs(N, T, D, seed).astype(net_dtype(jit)) for seed in range(4)]
    expected = [by_layers(net, x).outputs for x in inputs]
    wrong: list[int] = []

    def caller(k: int) -> None:
        runs = (net.run(inputs[k]).outputs for _ in range(200))
        wrong.extend(k for outputs in runs if not np.array_equal(outputs, expected[k]))

    threads = [threading.Thread(target=caller, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_new_weights_and_inputs_of_other_layouts(jit):
    net, x = network(stack(), jit), random_inputs(N, T, D).astype(net_dtype(jit))
    by_program(net, x)
    other = {name: w.astype(net_dtype(jit)) for name, w in random_weights(stack(), 9).items()}
    net.set_weights(other)
    check(net, x)
    transposed = np.ascontiguousarray(x.transpose(2, 1, 0)).transpose(2, 1, 0)
    np.testing.assert_array_equal(net.run(transposed).outputs, net.run(x).outputs)


def test_what_a_program_does_not_serve_runs_by_layers(jit):
    net, x = network(stack(), jit), random_inputs(N, T, D).astype(net_dtype(jit))
    full = by_program(net, x)
    assert set(net.run(x, keep=True).kept) == {0, 1}
    ragged = net.run(x, [T, 1, 2]).outputs
    np.testing.assert_array_equal(ragged[0], full.outputs[0])
    assert not ragged[1, 1:].any()
    for steps in range(1, 3 * MAX_PROGRAM_SHAPES):
        for _ in range(2):
            net.run(x[:, :1].repeat(steps, axis=1))
        assert len(net._programs) <= MAX_PROGRAM_SHAPES
    assert net.run(x[:0]).outputs.shape == (0, T, 3)
    assert net.run(x[:, :0]).outputs.shape == (N, 0, 3)
