"""The first value that is not finite is named: data, weight, gate or gradient."""

from __future__ import annotations

import re

import networks
import numpy as np
import pytest

from lstm_cli.cells.activations import Activation
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.selection import create_engine
from lstm_cli.engines.types import DenseSpec, TrainingPass
from lstm_cli.errors import DataError, TrainingError
from lstm_cli.network.network import Network
from lstm_cli.training.interfaces import TrainingBatch
from lstm_cli.training.losses import Criterion
from lstm_cli.training.metrics import Metrics, evaluate
from lstm_cli.training.nonfinite import first_nonfinite, nonfinite_error
from lstm_cli.training.optimizers import make_optimizer
from lstm_cli.training.schedules import make_schedule
from lstm_cli.training.targets import TargetFormat
from lstm_cli.training.train_step import TrainStep
from lstm_cli.training.updates import Updates

N, T, D, F = 4, 7, 3, 2
NUMBERS = np.array([40, 10, 30, 20])
LENGTHS = np.array([7, 3, 5, 7])


DIVISION = [1]
"""Number of micro-batches of every batch."""


@pytest.fixture(autouse=True, params=[1, 3])
def divided_batches(request):
    """Every test, with whole batches and with batches of three parts."""
    DIVISION[0] = request.param
    yield
    DIVISION[0] = 1


class Places:
    def input(self, number, step, feature):
        return f"f.h5:/inputs, sequence {number}, step {step}, feature {feature}"

    def target(self, number, step, feature):
        return f"f.h5:/targets, sequence {number}, step {step}, value {feature}"

    def sequence(self, number):
        return f"sequence {number} of f.h5:/inputs"


def train_step(
    *,
    per_step=True,
    truncate=None,
    rate=0.1,
    directions=1,
    clip=None,
    activation=None,
    dtype="float32",
):
    options = {"return_sequences": per_step, "directions": directions}
    if activation is not None:
        options["activation"] = Activation(activation)
    specs = (
        networks.recurrent("lstm", 5, D, **options),
        DenseSpec(1, 5 * directions, F, Activation("identity")),
    )
    network = Network(specs, networks.random_weights(specs), ReferenceEngine(dtype, 1))
    updates = Updates(
        make_optimizer({"type": "sgd", "learning_rate": rate}),
        make_schedule({"type": "constant"}, epochs=1),
        clip_norm=clip,
    )
    criterion = Criterion(TargetFormat("mse", per_step, F, "targets"))
    return TrainStep(network, criterion, updates, truncate=truncate, micro_batches=DIVISION[0])


def batch(per_step=True):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((N, T, D)).astype(np.float32)
    y = rng.standard_normal((N, T, F) if per_step else (N, F)).astype(np.float32)
    return x, y


def open_up(one, row, direction=""):
    """Weights with which a pre-activation is inf - inf at steps, but the first, that hold 100.

    All gates are wide open, so that h comes near to 1, which the recurrent weights of `row`
    make -inf of; a small input gives a finite number to that, a large one +inf.
    """
    prefix = f"layers.0.{direction}"
    one.weights[prefix + "bias"][...] = 50
    one.weights[prefix + "weight_hh"][row] = -3e38
    one.weights[prefix + "weight_ih"][row] = [3e38, 0, 0]


def error_of(one, x, y):
    """The error that the loop would raise for this batch."""
    errors = []

    def watch(trace):
        update = trace.update
        finite = update is not None and update.finite and one.weights_finite
        if not finite and not errors:
            errors.append(nonfinite_error(one, trace, NUMBERS, Places(), "epoch 3, batch 2 of 9"))

    one.network.set_weights(one.weights)
    one.step(x, y, LENGTHS, watch=watch)
    return errors[0]


def test_a_sound_batch_needs_no_explanation():
    one = train_step()
    one.step(*batch(), LENGTHS, watch=lambda trace: None)
    assert first_nonfinite(one.network, batch()[0], LENGTHS, None) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("truncate", [None, 2])
def test_an_input(value, truncate):
    x, y = batch()
    x[2, 4, 1] = value
    x[1, 5, 0] = np.nan  # padding, which does not matter
    error = error_of(train_step(truncate=truncate), x, y)
    assert isinstance(error, DataError)
    assert f"{value} at f.h5:/inputs, sequence 30, step 4, feature 1" in str(error)
    assert "epoch 3, batch 2 of 9" in str(error)
    assert "hint: lstm-cli data f.h5" in str(error)


def test_an_input_of_the_last_steps():
    x, y = batch(per_step=False)
    x[0, 6, 2] = np.nan
    error = error_of(train_step(per_step=False, truncate=2), x, y)
    assert "sequence 40, step 6, feature 2" in str(error)


@pytest.mark.parametrize("truncate", [None, 3])
def test_a_target(truncate):
    x, y = batch()
    y[3, 5, 1] = np.inf
    y[1, 6, 0] = np.nan  # padding
    error = error_of(train_step(truncate=truncate), x, y)
    assert isinstance(error, DataError)
    assert "inf at f.h5:/targets, sequence 20, step 5, value 1" in str(error)


def test_a_target_of_a_sequence():
    x, y = batch(per_step=False)
    y[1, 0] = np.nan
    error = error_of(train_step(per_step=False), x, y)
    assert "nan at f.h5:/targets, sequence 10, step None, value 0" in str(error)


def test_a_weight_that_an_update_made():
    x, y = batch()
    error = error_of(train_step(rate=3e38), x, 1000 * y)
    assert type(error) is TrainingError
    assert "made by an update of rate 3e+38 from a gradient of norm" in str(error)
    assert re.search(r"layers.0.weight_ih\[\d+, \d\], gate . of layer 0 \(lstm\): ", str(error))
    assert "--set train.clip_norm=1.0" in str(error)


def test_clipping_is_not_advised_twice():
    x, y = batch()
    error = error_of(train_step(rate=3e38, clip=50.0), x, 1000 * y)
    assert "clip_norm" not in str(error)
    assert "--set train.optimizer.learning_rate=0.01" in str(error)


@pytest.mark.parametrize(
    ("name", "rows", "gate"), [("i", 0, "input"), ("f", 5, "forget"), ("o", 15, "output")]
)
def test_a_gate_of_the_forward_pass(name, rows, gate):
    one = train_step()
    x, y = batch()
    open_up(one, rows + 2)
    x[:, :, 0] = 0.1
    x[3, 4:, 0] = 100
    error = error_of(one, x, y)
    assert type(error) is TrainingError
    assert f"nan in gate {name} ({gate}) of layer 0 (lstm), unit 2" in str(error)
    assert "step 4 of sequence 20 of f.h5:/inputs" in str(error)


def test_the_reverse_direction_is_followed_backwards():
    one = train_step(directions=2)
    x, y = batch()
    open_up(one, 2, "reverse.")
    x[:, :, 0] = 0.1
    x[2, [1, 3], 0] = 100  # its fifth step is its last: 3 comes before 1
    error = error_of(one, x, y)
    assert "gate i (input) of layer 0 (lstm), reverse direction, unit 2" in str(error)
    assert "step 3 of sequence 30" in str(error)


def test_a_state():
    one = train_step(activation="relu")
    x, y = batch()
    x[...] = 1
    one.weights["layers.0.weight_ih"][10:15] = 1e38  # the candidate's values add up in c
    one.weights["layers.0.bias"][:10] = 50  # with i and f wide open
    error = error_of(one, x, y)
    assert "inf in state c of layer 0 (lstm)" in str(error)
    assert "step 1 of sequence 40" in str(error)


def test_a_dense_layer():
    one = train_step(per_step=False)
    x, y = batch(per_step=False)
    one.weights["layers.1.weight"][1] = 3e38
    one.weights["layers.0.bias"][...] = 50  # every output is tanh(c) with c large
    error = error_of(one, x, y)
    assert "inf in unit 1 of layer 1 (dense), before its activation" in str(error)


def test_a_gradient():
    one = train_step()
    x, y = batch()
    one.weights["layers.1.weight"][0] = 1e25
    error = error_of(one, x, y)
    assert type(error) is TrainingError
    assert "the gradient of layers.0." in str(error) or "a gradient whose square" in str(error)
    assert "layer 0 (lstm)" in str(error)


def test_validation_names_layer_and_sequence():
    one = train_step()
    x, y = batch()
    open_up(one, 2)
    x[:, :, 0] = 0.1
    x[3, 4:, 0] = 100
    one.network.set_weights(one.weights)
    metrics = Metrics("mse", per_step=True, features=F, name="targets")
    batches = [TrainingBatch(x, y, LENGTHS, NUMBERS, 0)]
    with pytest.raises(TrainingError, match="a value in validation") as caught:
        evaluate(one.network, enumerate(batches), metrics, Places())
    assert "gate i (input) of layer 0 (lstm), unit 2" in str(caught.value)
    assert "step 4 of sequence 20" in str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("training", [None, TrainingPass(3, 0)], ids=["run", "train"])
def test_every_engine_names_the_same_place(kind, dtype, training):
    both = {"directions": 2, "activation": Activation("relu")}
    specs = (
        networks.recurrent(kind, 4, D, index=0, **both),
        networks.recurrent(kind, 5, 8, index=1, dropout=0.2, **both),
        DenseSpec(2, 10, F, Activation("identity")),
    )
    weights = networks.random_weights(specs)
    rng, actual = np.random.default_rng(4), set()
    for layer in (0, 1):
        beyond = 1e37 if dtype == "float32" else 1e307
        large = dict(weights)
        for name in weights:
            if f"layers.{layer}." in name and (kind != "lstm" or "bias" in name):
                large[name] = beyond * (
                    np.full_like(weights[name], 5) if kind == "lstm" else weights[name]
                )
        x, lengths = (30, 1)[layer] * (2 + rng.standard_normal((N, 9, D))), np.array([9, 0, 4, 7])
        places = [
            first_nonfinite(
                Network(specs, large, create_engine(name, "cpu", dtype, 2)),
                x,
                lengths,
                None,
                training,
            )
            for name in ("reference", "jit")
        ]
        assert places[0] is not None
        assert places[0] == places[1]
        actual.add(places[0].what)
    assert len(actual) == 2


def test_where_the_reference_engine_finds_nothing_the_own_one_is_named():
    specs = (networks.recurrent("lstm", 5, D), DenseSpec(1, 5, F, Activation("identity")))
    network = Network(specs, networks.random_weights(specs), create_engine("jit", "cpu"))
    layer = network.engine_layers[0]
    forward = layer.forward

    def broken(*args, **options):
        result = forward(*args, **options)
        result.gates["forward"]["c"][2, 1, 3] = np.inf
        return result

    layer.forward = broken
    actual = first_nonfinite(network, batch()[0], LENGTHS, None)
    assert (actual.row, actual.step, actual.layer) == (2, 1, 0)
    assert "inf in state c of layer 0 (lstm), unit 3; on jit, float32 alone" in actual.what


def test_before_the_first_update_nothing_is_said_of_learning_slower():
    one = train_step(activation="relu")
    x, y = batch()
    one.weights["layers.0.weight_ih"][10:15] = 1e38
    one.weights["layers.0.bias"][:10] = 50
    error = str(error_of(one, np.abs(x), y))
    assert "learning_rate" not in error
    assert "clip_norm" not in error
    assert "no update was made yet" in error


def test_a_loss_beyond_the_numbers():
    one = train_step(dtype="float64")
    one.weights["layers.1.bias"][...] = 1e200
    assert "the loss is inf, although all outputs are finite" in str(error_of(one, *batch()))
