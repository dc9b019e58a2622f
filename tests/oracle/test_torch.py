"""Random stacks against PyTorch, whose packed sequences never see the padding."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import numpy as np
import pytest
from networks import Array, assert_close, random_inputs, random_lengths, recurrent

from lstm_cli.engines.protocols import Engine
from lstm_cli.engines.types import RecurrentSpec
from lstm_cli.network.network import Network

torch = pytest.importorskip("torch")

N, T, D, H = 6, 7, 4, 5
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
Weights = dict[str, Array]


class Stack:
    """A PyTorch stack in float64, and the same stack as specifications and native weights."""

    def __init__(self, kind: str, layers: int, directions: int, projection: int = 0) -> None:
        torch.manual_seed(layers)
        options = {"proj_size": projection} if projection else {}
        make = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[kind]
        self.module = make(
            D, H, layers, bidirectional=directions == 2, batch_first=True, dtype=torch.float64,
            **options,
        )  # fmt: skip
        self.kind, self.directions = kind, directions
        self.size = projection or H
        own = {"projection_size": projection} if projection else {}
        self.specs = [
            recurrent(
                kind, H, D if k == 0 else directions * self.size, index=k, directions=directions,
                **own,
            )
            for k in range(layers)
        ]  # fmt: skip

    def weights(self) -> Weights:
        """Native names; the two biases stay two."""
        actual = {}
        for name, value in self.module.named_parameters():
            reverse = name.endswith("_reverse")
            stem, _, layer = name.removesuffix("_reverse").rpartition("_l")
            prefix = f"layers.{layer}." + ("reverse." if reverse else "")
            actual[prefix + stem] = value.detach().numpy()
        return actual

    def states(self) -> list[Any]:
        """Initial states in native shapes, by layer."""
        rng = np.random.default_rng(5)
        shape = (N, self.directions)
        return [
            (
                rng.standard_normal((*shape, self.size)),
                rng.standard_normal((*shape, H)) if self.kind == "lstm" else None,
            )
            for _ in self.specs
        ]

    def run(self, x: Array, lengths: Array | None, states: list[Any]) -> tuple[Array, Any]:
        """PyTorch's outputs (N, T, F) and final states, by layer."""
        given = [
            torch.cat([torch.from_numpy(pair[s]).transpose(0, 1) for pair in states])
            for s in range(2 if self.kind == "lstm" else 1)
        ]
        start = tuple(given) if self.kind == "lstm" else given[0]
        inputs = torch.from_numpy(x)
        with torch.no_grad():
            if lengths is None:
                y, final = self.module(inputs, start)
            else:
                packed = torch.nn.utils.rnn.pack_padded_sequence(
                    inputs, torch.from_numpy(lengths), batch_first=True, enforce_sorted=False
                )
                y, final = self.module(packed, start)
                y, _ = torch.nn.utils.rnn.pad_packed_sequence(y, batch_first=True, total_length=T)
        parts = final if self.kind == "lstm" else (final,)
        shape = (len(self.specs), self.directions, N, -1)
        return y.numpy(), [part.reshape(shape).transpose(1, 2).numpy() for part in parts]


def check(stack: Stack, engine: Engine, *, ragged: bool, filling: float = 0.0) -> None:
    """The stack against PyTorch from non-zero states."""
    x, states = random_inputs(N, T, D), stack.states()
    lengths = np.maximum(random_lengths(N, T), 1) if ragged else None
    y, finals = stack.run(x, lengths, states)
    if lengths is not None:
        for n, length in enumerate(lengths):
            x[n, length:] = filling
    actual = Network(stack.specs, stack.weights(), engine).run(x, lengths, states)
    assert_close(actual.outputs, y, engine.dtype)
    for k, pair in enumerate(actual.state):
        for part, final in zip(pair, finals, strict=False):
            assert_close(part, final[k], engine.dtype)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("ragged", [True, False], ids=["ragged", "full"])
def test_stack(ragged: bool, kind: str, layers: int, directions: int, engine: Engine) -> None:
    check(Stack(kind, layers, directions), engine, ragged=ragged)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("projection", [1, 3, 4])
def test_projection(projection: int, layers: int, directions: int, engine: Engine) -> None:
    check(Stack("lstm", layers, directions, projection), engine, ragged=True)


@pytest.mark.parametrize("filling", [np.nan, np.inf, -1e30])
@pytest.mark.parametrize("kind", GATES)
def test_padding(kind: str, filling: float, engine: Engine) -> None:
    check(Stack(kind, 2, 2), engine, ragged=True, filling=filling)


def _permuted(spec: RecurrentSpec, weights: Weights, order: tuple[int, ...]) -> Weights:
    blocks = GATES[spec.kind]
    return {
        name: np.concatenate([np.split(value, blocks)[k] for k in order])
        for name, value in weights.items()
    }


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_every_other_order_of_gates_is_caught(kind: str, engine: Engine) -> None:
    stack = Stack(kind, 1, 1)
    x, states = random_inputs(N, T, D), stack.states()
    y, _ = stack.run(x, None, states)
    right = tuple(range(GATES[kind]))
    for order in permutations(right):
        weights = _permuted(stack.specs[0], stack.weights(), order)
        actual = Network(stack.specs, weights, engine).run(x, None, states).outputs
        assert (np.abs(actual - y).max() < 1e-3) == (order == right), order


@pytest.mark.parametrize("name", ["bias_ih", "bias_hh"])
@pytest.mark.parametrize("kind", GATES)
def test_a_bias_left_out_is_caught(kind: str, name: str, engine: Engine) -> None:
    stack = Stack(kind, 1, 1)
    x, states = random_inputs(N, T, D), stack.states()
    y, _ = stack.run(x, None, states)
    weights = stack.weights()
    weights[f"layers.0.{name}"] = 0 * weights[f"layers.0.{name}"]
    actual = Network(stack.specs, weights, engine).run(x, None, states).outputs
    assert np.abs(actual - y).max() > 1e-3
