"""Backpropagation compared with finite differences, for weights, inputs and states together.

The derivative along one random direction, from the gradients, must equal a difference quotient of
fourth order. So a missing or wrong derivative shows anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from cuda_host.engine import make, statuses
from networks import (
    Array,
    network,
    parametrized,
    random_inputs,
    random_lengths,
    random_states,
    random_weights,
    recurrent,
)

from lstm_cli.cells import FORMULAS, Activation
from lstm_cli.engines.protocols import Engine
from lstm_cli.engines.types import DenseSpec, DropoutSpec, FlattenSpec, LayerSpec
from lstm_cli.engines.types import TrainingPass as Pass
from lstm_cli.network import backpropagation
from lstm_cli.network.network import Network

N, T, D, H = 4, 6, 3, 5
STEP = 2e-5
PASS = Pass(seed=3, update=7)

CELLS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm": ("lstm", {}),
    "peepholes": ("lstm", {"peepholes": True}),
    "projection": ("lstm", {"projection_size": 2}),
    "projection and peepholes": ("lstm", {"projection_size": 4, "peepholes": True}),
    "coupled": ("lstm", {"coupled_input_forget": True, "peepholes": True}),
    "no forget gate": ("lstm", {"use_forget_gate": False}),
    "no biases": ("lstm", {"bias": False, "peepholes": True, "projection_size": 2}),
    "clip": ("lstm", {"clip": 0.8, "peepholes": True}),
    "gru": ("gru", {}),
    "gru without biases": ("gru", {"bias": False, "reset_after": False}),
    "gru before": ("gru", {"reset_after": False}),
    "gru clip": ("gru", {"clip": 0.7, "reset_after": False}),
    "rnn": ("rnn", {}),
}


class Case:
    """A network on a batch, and a smooth loss with random weights of the valid outputs."""

    def __init__(self, specs: Sequence[LayerSpec], engine: Engine, lengths: Any) -> None:
        self.specs, self.engine, self.lengths = list(specs), engine, lengths
        self.weights = random_weights(specs, seed=1)
        self.x = random_inputs(N, T, specs[0].input_size, seed=2)
        self.states = random_states(specs, N, seed=3)
        net = self.network(self.weights)
        outputs = backpropagation.forward(net, self.x, lengths, self.states, PASS).outputs
        rng = np.random.default_rng(4)
        self.linear, self.square = (rng.standard_normal(outputs.shape) for _ in range(2))
        steps = np.full(N, T) if lengths is None else np.asarray(lengths)
        valid = np.arange(T) < steps[:, None] if outputs.ndim == 3 else steps > 0
        self.linear[~valid] = self.square[~valid] = 0

    def network(self, weights: dict[str, Array]) -> Network:
        return Network(self.specs, weights, self.engine)

    def loss(self, weights: dict[str, Array], x: Array, states: list[Any]) -> float:
        net = self.network(weights)
        y = backpropagation.forward(net, x, self.lengths, states, PASS).outputs
        return float((self.linear * y + self.square * y**2).sum())

    def gradients(self) -> backpropagation.Gradients:
        net = self.network(self.weights)
        tape = backpropagation.forward(net, self.x, self.lengths, self.states, PASS)
        d = self.linear + 2 * self.square * tape.outputs
        return backpropagation.backward(net, tape, d, d_logits=False)

    def check(self, tolerance: float = 1e-7) -> None:
        rng = np.random.default_rng(5)

        def like(value: Array) -> Array:
            return np.asarray(rng.standard_normal(value.shape))

        dw = {name: like(value) for name, value in self.weights.items()}
        dx = like(self.x)
        ds = [tuple(None if v is None else like(v) for v in pair) for pair in self.states]

        def at(e: float) -> float:
            states = [
                tuple(None if v is None else v + e * d for v, d in zip(pair, one, strict=True))
                for pair, one in zip(self.states, ds, strict=True)
            ]
            moved = {name: value + e * dw[name] for name, value in self.weights.items()}
            return self.loss(moved, self.x + e * dx, states)

        h = STEP
        numeric = (8 * (at(h) - at(-h)) - (at(2 * h) - at(-2 * h))) / (12 * h)
        actual = self.gradients()
        exact = sum((actual.weights[name] * dw[name]).sum() for name in dw)
        exact += (actual.inputs * dx).sum()
        for state, one in zip((actual.state[k] for k in sorted(actual.state)), ds, strict=True):
            pairs = zip(state, one, strict=True)
            exact += sum((g * d).sum() for g, d in pairs if g is not None and d is not None)
        assert exact == pytest.approx(numeric, rel=tolerance)


EXACT = [s for s in statuses() if "float64" in s.dtypes]
"""Engines that compute in float64, which difference quotients need."""


@pytest.fixture(params=EXACT, ids=lambda status: status.engine)
def exact(request: pytest.FixtureRequest) -> Engine:
    """Each engine that computes in float64."""
    return make(request.param, "float64")


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("sequences", [True, False], ids=["sequences", "last step"])
def test_cells(name: str, directions: int, sequences: bool, exact: Engine) -> None:
    kind, options = CELLS[name]
    first = recurrent(kind, H, D, directions=directions, **options)
    second = recurrent(kind, 4, first.output_size, index=1, return_sequences=sequences, **options)
    dense = DenseSpec(2, second.output_size, 3, Activation("tanh"))
    Case([first, second, dense], exact, random_lengths(N, T, seed=6)).check()


SMOOTH = sorted(FORMULAS)


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("place", ["recurrent_activation", "activation", "cell_activation"])
def test_activations(name: str, place: str, exact: Engine) -> None:
    # Kinks are points; a random direction of this length crosses none of them with this seed.
    layer = recurrent("lstm", H, D, **{place: parametrized(name)})
    case = Case([layer], exact, random_lengths(N, T, seed=8))
    for key in case.weights:
        case.weights[key] *= 0.7
    case.check()


@pytest.mark.parametrize("name", SMOOTH)
def test_dense_activations(name: str, exact: Engine) -> None:
    specs = [DenseSpec(0, D, 6, parametrized(name)), DenseSpec(1, 6, 4, None)]
    Case(specs, exact, None).check()


def test_softmax_inside_a_network(exact: Engine) -> None:
    specs = [
        recurrent("gru", H, D),
        DenseSpec(1, H, 4, None),
        recurrent("rnn", 3, 4, index=2),
    ]
    Case(specs, exact, random_lengths(N, T)).check()


def test_flatten(exact: Engine) -> None:
    specs = [recurrent("lstm", H, D), FlattenSpec(1, H, T + 2), DenseSpec(2, H * (T + 2), 3, None)]
    Case(specs, exact, random_lengths(N, T)).check()


def test_a_dense_layer_before_flatten_learns_nothing_from_padding(exact: Engine) -> None:
    first, last = DenseSpec(0, D, 6, Activation("tanh")), DenseSpec(2, 6 * T, 3, None)
    specs = [first, FlattenSpec(1, 6, T), last]
    Case(specs, exact, random_lengths(N, T, seed=7)).check()


def test_dropout_of_every_kind(exact: Engine) -> None:
    specs = [
        recurrent("lstm", H, D, directions=2, dropout=0.3, recurrent_dropout=0.4),
        DropoutSpec(1, 2 * H, 0.5),
        recurrent("gru", H, 2 * H, index=2, reset_after=False, recurrent_dropout=0.3),
    ]
    Case(specs, exact, random_lengths(N, T)).check()


@pytest.mark.parametrize("name", CELLS)
def test_padding_does_not_matter(name: str, engine: Engine) -> None:
    kind, options = CELLS[name]
    specs = [recurrent(kind, H, D, directions=2, **options)]
    net, lengths = network(specs, engine), random_lengths(N, T)
    clean = random_inputs(N, T, D)
    dirty = clean.copy()
    for row, length in zip(dirty, lengths, strict=True):
        row[length:] = np.nan
    actual = []
    for x in (clean, dirty):
        tape = backpropagation.forward(net, x, lengths, None, PASS)
        d = np.where(tape.outputs != 0, 1.5, 0).astype(engine.dtype)
        actual.append(backpropagation.backward(net, tape, d, d_logits=False))
    for key, value in actual[0].weights.items():
        assert np.abs(value).max() > 0 or "peephole" in key
        np.testing.assert_array_equal(actual[1].weights[key], value)
    assert (actual[1].inputs[np.arange(T) >= lengths[:, None]] == 0).all()


def test_a_sequence_of_length_0_has_no_derivatives(engine: Engine) -> None:
    net = network([recurrent("lstm", H, D, return_sequences=False)], engine)
    lengths = np.array([0, 3, 0, 2])
    tape = backpropagation.forward(net, random_inputs(N, T, D), lengths, None, PASS)
    actual = backpropagation.backward(net, tape, np.ones_like(tape.outputs), d_logits=False)
    h, c = actual.state[0]
    assert c is not None
    assert (actual.inputs[[0, 2]] == 0).all()
    assert (h[[0, 2]] == 0).all()
    assert (np.abs(h[[1, 3]]).max(axis=(1, 2)) > 0).all()


def test_masks_repeat_by_seed_and_update_and_keep_the_mean() -> None:
    spec = DropoutSpec(1, 3, 0.3)
    mask = Pass(1, 5).mask(spec, 0, (200, 300), 0.3)
    np.testing.assert_array_equal(mask, Pass(1, 5).mask(spec, 0, (200, 300), 0.3))
    for other in (
        Pass(2, 5).mask(spec, 0, (200, 300), 0.3),
        Pass(1, 6).mask(spec, 0, (200, 300), 0.3),
    ):
        assert (mask != other).mean() > 0.2
    assert (Pass(1, 5).mask(spec, 1, (200, 300), 0.3) != mask).any()
    assert set(np.unique(mask)) == {np.float32(0), np.float32(1 / 0.7)}
    assert mask.mean() == pytest.approx(1, abs=0.01)
