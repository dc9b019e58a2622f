"""A folded network on raw data equals the trained network on scaled data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from networks import random_inputs, random_lengths, random_states, random_weights, recurrent

from lstm_cli.cells import Activation
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import DenseSpec, DropoutSpec, FlattenSpec
from lstm_cli.errors import ConfigError, WeightsError
from lstm_cli.network.network import Network
from lstm_cli.network.normalization import Normalization, fold, fold_obstacle, scales_targets

N, T, D, H = 6, 7, 3, 5
IDENTITY = Activation("identity")
INPUTS = Normalization(np.array([3.0, -0.7, 11.0]), np.array([0.3, 2.5, 7.0]))
TARGETS = Normalization(np.array([20.0, -5.0]), np.array([4.0, 0.03]))


@dataclass(frozen=True)
class Facts:
    """Statistics of (rows, D)."""

    rows: np.ndarray

    def __getattr__(self, name):
        short = {"minimum": "min", "maximum": "max"}.get(name, name)
        return getattr(self.rows, short)(axis=0)


def head(features, *, index=1, activation=IDENTITY):
    return DenseSpec(index, features, 2, activation)


STACKS = {
    "lstm": [recurrent("lstm", H, D)],
    "gru": [recurrent("gru", H, D)],
    "gru, reset before": [recurrent("gru", H, D, reset_after=False, directions=2)],
    "rnn": [recurrent("rnn", H, D)],
    "both ways": [recurrent("lstm", H, D, directions=2), head(2 * H)],
    "gru both ways": [recurrent("gru", H, D, directions=2, return_sequences=False), head(2 * H)],
    "rnn both ways": [recurrent("rnn", H, D, directions=2), head(2 * H)],
    "peepholes": [recurrent("lstm", H, D, peepholes=True, projection_size=4, clip=0.8), head(4)],
    "coupled": [recurrent("lstm", H, D, coupled_input_forget=True, directions=2)],
    "dense first": [
        DenseSpec(0, D, 4, Activation("tanh")),
        recurrent("gru", H, 4, index=1),
        head(H, index=2),
    ],
    "dense alone": [head(D, index=0)],
    "dense, then flatten": [
        DenseSpec(0, D, 4, Activation("tanh")),
        FlattenSpec(1, 4, T),
        head(4 * T, index=2),
    ],
    "dropout around": [
        DropoutSpec(0, D, 0.5),
        recurrent("lstm", H, D, index=1),
        head(H, index=2),
        DropoutSpec(3, 2, 0.2),
    ],
}


def run(specs, weights, x, lengths):
    states = random_states(specs, N)
    return Network(specs, weights, ReferenceEngine("float64")).run(x, lengths, states)


@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize("stack", STACKS)
def test_folded_on_raw_is_unfolded_on_scaled(stack, ragged):
    specs, weights = STACKS[stack], random_weights(STACKS[stack], 4)
    x = 3 * random_inputs(N, T, D) + 2
    lengths = random_lengths(N, T) if ragged else None
    trained = run(specs, weights, INPUTS.apply(x, lengths), lengths)
    folded = run(specs, fold(specs, weights, INPUTS, None), x, lengths)
    np.testing.assert_allclose(folded.outputs, trained.outputs, rtol=0, atol=1e-10)
    for own, other in zip(folded.state, trained.state, strict=True):
        np.testing.assert_allclose(own[0], other[0], rtol=0, atol=1e-10)
    plain = run(specs, weights, x, lengths)
    assert np.abs(plain.outputs - trained.outputs).max() > 1e-2, "scaling makes a difference"


@pytest.mark.parametrize("ragged", [True, False])
@pytest.mark.parametrize("stack", [name for name, specs in STACKS.items() if len(specs) > 1])
def test_folded_outputs_are_in_the_targets_units(stack, ragged):
    specs, weights = STACKS[stack], random_weights(STACKS[stack], 5)
    x = random_inputs(N, T, D)
    lengths = random_lengths(N, T) if ragged else None
    assert scales_targets(specs, "mse")
    trained = run(specs, weights, INPUTS.apply(x, lengths), lengths).outputs
    folded = run(specs, fold(specs, weights, INPUTS, TARGETS), x, lengths).outputs
    expected = TARGETS.undo(trained, lengths if trained.ndim == 3 else None)
    if ragged and trained.ndim == 2:
        expected[lengths == 0] = 0  # a network's output for a sequence without steps
    np.testing.assert_allclose(folded, expected, rtol=0, atol=1e-10)
    assert np.abs(expected - trained).max() > 1


def test_one_layer_takes_both():
    specs = STACKS["dense alone"]
    weights = random_weights(specs)
    x = random_inputs(N, T, D)
    folded = run(specs, fold(specs, weights, INPUTS, TARGETS), x, None).outputs
    by_hand = (x - INPUTS.mean) / INPUTS.scale @ weights["layers.0.weight"].T
    by_hand = (by_hand + weights["layers.0.bias"]) * TARGETS.scale + TARGETS.mean
    np.testing.assert_allclose(folded, by_hand, rtol=0, atol=1e-10)


def test_weights_given_are_left_alone_and_keep_their_dtype():
    specs = STACKS["both ways"]
    weights = {k: v.astype(np.float32) for k, v in random_weights(specs).items()}
    before = {k: v.copy() for k, v in weights.items()}
    folded = fold(specs, weights, INPUTS, TARGETS)
    assert list(folded) == list(weights)
    changed = set()
    for name, value in folded.items():
        assert value.dtype == np.float32
        np.testing.assert_array_equal(weights[name], before[name])
        if not np.array_equal(value, weights[name]):
            changed.add(name)
    ends = ("weight_ih", "bias")
    first = {f"layers.0.{way}{end}" for way in ("", "reverse.") for end in ends}
    assert changed == first | {"layers.1.weight", "layers.1.bias"}
    same = fold(specs, weights, None, None)
    assert all(np.array_equal(same[name], weights[name]) for name in weights)


def test_float32_folds_in_float64():
    specs = [DenseSpec(0, 1, 1, IDENTITY)]
    weights = {"layers.0.weight": np.float32([[1]]), "layers.0.bias": np.float32([1 + 2**-23])}
    inputs = Normalization(np.array([1.0]), np.array([1.0]))
    assert fold(specs, weights, inputs, None)["layers.0.bias"][0] == np.float32(2**-23)


@pytest.mark.parametrize(
    "specs",
    [
        [FlattenSpec(0, D, T), head(D * T)],
        [DropoutSpec(0, D, 0.1), FlattenSpec(1, D, T), head(D * T, index=2)],
        [DropoutSpec(0, D, 0.1)],
    ],
)
def test_a_network_that_begins_with_flatten_cannot_be_folded(specs):
    assert fold_obstacle(specs)
    with pytest.raises(ConfigError, match="cannot be folded") as error:
        fold(specs, random_weights(specs), INPUTS, None)
    assert error.value.exit_code == 4


def test_layers_that_can_be_folded():
    for specs in STACKS.values():
        assert fold_obstacle(specs) is None


@pytest.mark.parametrize(
    ("last", "loss", "expected"),
    [
        (head(H), "mse", True),
        (head(H), "mae", True),
        (head(H), "huber", True),
        (head(H), "cross_entropy", False),
        (head(H), "binary_cross_entropy", False),
        (head(H, activation=Activation("tanh")), "mse", False),
        (head(H, activation=None), "mse", False),
        (recurrent("lstm", 2, H, index=1), "mse", False),
    ],
)
def test_whether_targets_are_scaled(last, loss, expected):
    specs = [recurrent("lstm", H, D), last]
    assert scales_targets(specs, loss) is expected
    if loss == "mse" and not expected:
        with pytest.raises(ConfigError, match="identity"):
            fold(specs, random_weights(specs), None, TARGETS)


def test_a_scaling_that_does_not_fit_the_dtype():
    specs = STACKS["dense alone"]
    weights = {k: v.astype(np.float32) for k, v in random_weights(specs).items()}
    tiny = Normalization(np.zeros(D), np.full(D, 1e-60))
    with pytest.raises(WeightsError, match=r"layers\.0\.weight.* beyond float32"):
        fold(specs, weights, tiny, None)


def test_standard_and_minmax():
    rows = np.random.default_rng(1).normal(size=(40, D)) * [1e-3, 1, 50] + [1e6, 0, -3]
    standard = Normalization.from_statistics("standard", Facts(rows)).apply(rows)
    np.testing.assert_allclose(standard.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(standard.std(0), 1, rtol=1e-9)
    minmax = Normalization.from_statistics("minmax", Facts(rows)).apply(rows)
    np.testing.assert_allclose(minmax.min(0), 0, atol=1e-12)
    np.testing.assert_allclose(minmax.max(0), 1, rtol=1e-12)


@pytest.mark.parametrize("method", ["standard", "minmax"])
def test_a_constant_is_divided_by_one(method):
    rows = np.random.default_rng(1).normal(size=(40, D))
    rows[:, 1] = 0.1
    scaling = Normalization.from_statistics(method, Facts(rows))
    assert scaling.scale[1] == 1
    assert np.abs(scaling.apply(rows)[:, 1]).max() < 1e-15
    assert np.isfinite(
        Normalization.from_statistics(method, Facts(rows * 1e-320)).apply(rows * 1e-320)
    ).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_padding_stays_zero(dtype):
    x = random_inputs(N, T, D).astype(dtype)
    lengths = random_lengths(N, T)
    before = x.copy()
    scaled = INPUTS.apply(x, lengths, dtype)
    np.testing.assert_array_equal(x, before)
    assert scaled.dtype == dtype
    for row, own, length in zip(scaled, x, lengths, strict=True):
        expected = (own[:length].astype(float) - INPUTS.mean) / INPUTS.scale
        np.testing.assert_array_equal(row[:length], expected.astype(dtype))
        assert not row[length:].any()
    back = INPUTS.undo(scaled, lengths)
    padding = np.arange(T) >= lengths[:, None]
    np.testing.assert_allclose(back, np.where(padding[..., None], 0, x), atol=1e-5)


def test_targets_of_one_number_each():
    scaling = Normalization(np.array([2.0]), np.array([4.0]))
    np.testing.assert_array_equal(scaling.apply(np.array([2.0, 6.0])), [0, 1])
    steps = scaling.apply(np.array([[2.0, 6.0], [10.0, 7.0]]), np.array([2, 1]))
    np.testing.assert_array_equal(steps, [[0, 1], [2, 0]])
    np.testing.assert_array_equal(scaling.apply(np.array([[6]])), [[1.0]])
