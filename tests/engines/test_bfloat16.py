"""bfloat16 on the jit engine: operands of products are rounded, and bits depend on no batch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from networks import Array, random_inputs, random_lengths, random_states, random_weights, recurrent

from lstm_cli.cells import LSTM
from lstm_cli.engines.types import RecurrentSpec, TrainingPass
from lstm_cli.errors import DeviceError
from lstm_cli.network import backpropagation
from lstm_cli.network.network import Network

machines = pytest.importorskip("lstm_cli.engines.jit.runtime.machine")
try:
    HOST = machines.this_machine()
except machines.UnusableMachine as reason:
    pytest.skip(str(reason), allow_module_level=True)

from lstm_cli.engines.jit.codegen.packing import (  # noqa: E402
    bfloat16_pairs,
    from_bfloat16,
    to_bfloat16,
)
from lstm_cli.engines.jit.engine import JitEngine  # noqa: E402

CELLS: list[tuple[str, dict[str, Any]]] = [
    ("lstm", {}),
    ("lstm", {"peepholes": True, "projection_size": 9}),
    ("gru", {}),
    ("gru", {"reset_after": False}),
    ("rnn", {}),
]
IDS = ["lstm", "projected", "gru", "gru before", "rnn"]


def bf16(values: Array) -> Array:
    """Values rounded to bfloat16, in float64."""
    return from_bfloat16(to_bfloat16(np.asarray(values, np.float32))).astype(np.float64)


def lstm_loop(weights: dict[str, Array], x: Array, h: Array, c: Array) -> Array:
    """Outputs (N, T, H) of one LSTM layer, with operands of products rounded."""
    W, U = bf16(weights["layers.0.weight_ih"]), bf16(weights["layers.0.weight_hh"])
    b, steps = weights["layers.0.bias"], []
    for t in range(x.shape[1]):
        a = bf16(x[:, t]) @ W.T + bf16(h) @ U.T + b
        i, f, g, o = np.split(a, 4, axis=1)
        c = c / (1 + np.exp(-f)) + np.tanh(g) / (1 + np.exp(-i))
        h = np.tanh(c) / (1 + np.exp(-o))
        steps.append(h)
    return np.stack(steps, axis=1)


@pytest.mark.parametrize(("N", "H", "D"), [(1, 33, 7), (9, 40, 21), (30, 18, 64)])
def test_only_operands_of_products_are_rounded(N: int, H: int, D: int) -> None:
    spec = RecurrentSpec(0, D, (LSTM(hidden_size=H),))
    weights, x = random_weights([spec]), random_inputs(N, 5, D)
    state = random_states([spec], N)
    actual = Network([spec], weights, JitEngine("bfloat16", 2)).run(x, None, state)
    h, c = state[0]
    expected = lstm_loop(weights, x, h[:, 0], c[:, 0])
    # A sum that is rounded otherwise can round h to a neighbor, 2^-8 away, here and there.
    assert np.abs(actual.outputs - expected).mean() < 2e-4
    assert np.abs(actual.outputs - expected).max() < 4e-3
    plain = Network([spec], weights, JitEngine("float32", 2)).run(x, None, state)
    assert np.abs(plain.outputs - expected).mean() > 3 * np.abs(actual.outputs - expected).mean()
    assert actual.outputs.dtype == actual.state[0][0].dtype == np.float32


@pytest.mark.parametrize(("kind", "options"), CELLS, ids=IDS)
def test_every_cell_with_and_without_the_dot_product(kind: str, options: dict[str, Any]) -> None:
    spec = recurrent(kind, 37, 23, directions=2, **options)
    weights, x, lengths = random_weights([spec]), random_inputs(7, 9, 23), random_lengths(7, 9)
    state = random_states([spec], 7)
    exact = Network([spec], weights, JitEngine("float64", 1)).run(x, lengths, state).outputs
    # Without the feature in its name, too: LLVM would use the instruction all the same.
    features = HOST.features.replace("+avx512bf16", "-avx512bf16")
    actual = [
        Network([spec], weights, JitEngine("bfloat16", 1, machine)).run(x, lengths, state).outputs
        for machine in (HOST, replace(HOST, features=features, dot_bfloat16=False))
    ]
    for outputs in actual:
        assert 1e-5 < np.abs(outputs - exact).max() < 3e-2
    np.testing.assert_allclose(actual[0], actual[1], rtol=0, atol=4e-3)


@pytest.mark.parametrize(("kind", "options"), CELLS, ids=IDS)
def test_the_same_bits_in_any_batch(kind: str, options: dict[str, Any]) -> None:
    spec = recurrent(kind, 50, 19, **options)
    net = Network([spec], random_weights([spec]), JitEngine("bfloat16", 2))
    x, lengths, state = random_inputs(31, 8, 19), random_lengths(31, 8), random_states([spec], 31)
    whole = net.run(x, lengths, state).outputs
    for n in (0, 13, 30):
        h, c = state[0]
        state_of_row = [(h[n : n + 1], None if c is None else c[n : n + 1])]
        alone = net.run(x[n : n + 1], lengths[n : n + 1], state_of_row).outputs
        np.testing.assert_array_equal(alone[0], whole[n])
    with_gates = net.run(x, lengths, state, keep=True)
    np.testing.assert_array_equal(with_gates.outputs, whole)


def test_there_is_no_training_in_bfloat16() -> None:
    spec = recurrent("lstm", 4, 3)
    net = Network([spec], random_weights([spec]), JitEngine("bfloat16", 1))
    with pytest.raises(DeviceError, match="does not train in bfloat16, which is for inf"):
        backpropagation.forward(net, random_inputs(2, 3, 3), None, None, TrainingPass())


def test_rounding() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -3.14159274, 1e-40, 3.4e38, np.inf, np.nan])
    actual = from_bfloat16(to_bfloat16(values.astype(np.float32)))
    expected = [1.0, 1.0, 1.015625, -3.140625, 9.18355e-41, np.inf, np.inf]  # ties go to even
    np.testing.assert_allclose(actual[:-1], expected, rtol=1e-2)
    assert actual[1] == 1.0
    assert actual[2] == 1.015625
    assert np.isnan(actual[-1])
    halves = bfloat16_pairs(np.array([[1.0, -2.0, 0.5]], np.float32))
    assert halves.tolist() == [[0xC0003F80, 0x3F00]]
