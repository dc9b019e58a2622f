"""`lstm_cli.Trainer`: updates, derivatives and states from Python."""

from __future__ import annotations

import networks
import numpy as np
import pytest

import lstm_cli
from lstm_cli.errors import ConfigError, DataError

N, T, D, F = 5, 6, 3, 2
LENGTHS = [6, 4, 0, 1, 5]


def model(*, dtype="float64", last=None, **options):
    layers = [
        {"type": "lstm", "hidden_size": 4, **options},
        {"type": "gru", "hidden_size": 3},
        last or {"type": "dense", "units": F},
    ]
    config = {"model": {"input_size": D, "layers": layers}}
    return lstm_cli.build(config, dtype=dtype, seed=3)


def batch():
    rng = np.random.default_rng(8)
    return rng.standard_normal((N, T, D)), rng.standard_normal((N, T, F))


def mean_loss(net, x, y, lengths, state=None):
    """Mean squared error over valid steps and features, written out."""
    out = net.run(x, lengths, state).outputs
    valid = np.arange(T) < np.asarray(lengths)[:, None]
    return float(((out - y)[valid] ** 2).mean())


def test_a_step_returns_the_loss_before_it_and_changes_the_weights():
    net = model()
    x, y = batch()
    trainer = lstm_cli.Trainer(net, loss="mse", optimizer={"type": "adam", "learning_rate": 0.01})
    before = {name: value.copy() for name, value in net.weights.items()}
    expected = mean_loss(net, x, y, LENGTHS)
    assert trainer.step(x, y, LENGTHS) == pytest.approx(expected, rel=1e-12)
    for name, value in net.weights.items():
        assert not np.array_equal(value, before[name]), name
    losses = [trainer.step(x, y, LENGTHS) for _ in range(30)]
    assert losses[-1] < 0.8 * losses[0]
    assert mean_loss(net, x, y, LENGTHS) < losses[-1]


def test_a_plain_step_goes_down_the_gradient():
    net = model()
    x, y = batch()
    trainer = lstm_cli.Trainer(net, optimizer={"type": "sgd", "learning_rate": 0.5})
    before = {name: value.copy() for name, value in net.weights.items()}
    _, gradients = trainer.gradients(x, y, LENGTHS)
    for name, value in net.weights.items():  # gradients alone change nothing
        np.testing.assert_array_equal(value, before[name])
    trainer.step(x, y, LENGTHS)
    for name, value in net.weights.items():
        expected = before[name] - 0.5 * gradients[name]
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-15)


def test_gradients_of_weights_inputs_and_states():
    net = model()
    x, y = batch()
    state = networks.random_states(net.network.layers, N)
    trainer = lstm_cli.Trainer(net)
    loss, found = trainer.gradients(x, y, LENGTHS, state)
    assert loss == pytest.approx(mean_loss(net, x, y, LENGTHS, state), rel=1e-12)
    names = {*net.weights, "inputs", "state.0.h", "state.0.c", "state.1.h"}
    assert set(found) == names
    assert found["inputs"].shape == x.shape
    assert (found["inputs"][1, 4:] == 0).all()
    rng, step = np.random.default_rng(0), 1e-6
    h0, c0 = state[0]
    places = {"inputs": x, "state.0.h": h0, "state.0.c": c0, "state.1.h": state[1][0]}
    for name, place in places.items():
        direction = rng.standard_normal(place.shape)
        sides = []
        for sign in (1, -1):
            place += sign * step * direction
            sides.append(mean_loss(net, x, y, LENGTHS, state))
            place -= sign * step * direction
        slope = (sides[0] - sides[1]) / (2 * step)
        assert slope == pytest.approx(float((found[name] * direction).sum()), rel=1e-6), name


def test_stateful_layers_are_carried_between_steps():
    net = model(stateful=True)
    x, y = batch()
    trainer = lstm_cli.Trainer(net, optimizer={"type": "sgd", "learning_rate": 1e-9})
    first = trainer.step(x, y)
    carried = trainer.step(x, y)
    trainer.reset_state()
    again = trainer.step(x, y)
    assert again == pytest.approx(first, rel=1e-6)
    assert carried != pytest.approx(first, rel=1e-6)
    start = net.network.run(x).state
    expected = mean_loss(net, x, y, [T] * N, [start[0], None])
    assert carried == pytest.approx(expected, rel=1e-6)


def test_clipping_bounds_the_step():
    x, y = batch()
    net = model()
    trainer = lstm_cli.Trainer(net, optimizer={"type": "sgd", "learning_rate": 1.0}, clip_norm=0.01)
    before = {name: value.copy() for name, value in net.weights.items()}
    trainer.step(x, 100 * y)
    moved = sum(float(((v - before[name]) ** 2).sum()) for name, v in net.weights.items())
    assert np.sqrt(moved) == pytest.approx(0.01)


def test_class_weights_and_smoothing():
    last = {"type": "dense", "units": 3, "activation": "softmax"}
    x = batch()[0]
    y = np.random.default_rng(0).integers(0, 3, (N, T))
    losses = [
        lstm_cli.Trainer(model(last=last), loss="cross_entropy", **options).step(x, y)
        for options in (
            {},
            {"class_weights": [1.0, 5.0, 1.0]},
            {"class_weights": {1: 5.0}},
            {"label_smoothing": 0.3},
        )
    ]
    assert len(set(losses)) == 3
    assert losses[1] == losses[2]


def test_binary_class_weights_count_each_row_by_its_class():
    last = {"type": "dense", "units": 1, "activation": "sigmoid"}
    x = batch()[0]
    y = np.random.default_rng(0).integers(0, 2, (N, T))
    net = model(last=last)
    p = net.run(x).outputs[..., 0]
    each = -np.where(y, np.log(p), np.log(1 - p))
    weights = np.where(y, 4.0, 0.5)
    trainer = lstm_cli.Trainer(net, loss="binary_cross_entropy", class_weights=[0.5, 4.0])
    found, gradients = trainer.gradients(x, y)
    assert found == pytest.approx(float((weights * each).sum() / weights.sum()), rel=1e-10)
    # d loss / d bias is the mean of w (p - y).
    expected = float((weights * (p - y)).sum() / weights.sum())
    assert gradients["layers.2.bias"][0] == pytest.approx(expected, rel=1e-10)


def test_binary_label_smoothing():
    last = {"type": "dense", "units": 1, "activation": "sigmoid"}
    x = batch()[0]
    y = np.random.default_rng(0).integers(0, 2, (N, T))
    net = model(last=last)
    p, t = net.run(x).outputs[..., 0], 0.8 * y + 0.1
    each = -(t * np.log(p) + (1 - t) * np.log(1 - p))
    for weights in (None, [1.0, 1.0]):
        trainer = lstm_cli.Trainer(
            net, loss="binary_cross_entropy", label_smoothing=0.2, class_weights=weights
        )
        found, gradients = trainer.gradients(x, y)
        assert found == pytest.approx(float(each.mean()), rel=1e-10)
        assert gradients["layers.2.bias"][0] == pytest.approx(float((p - t).mean()), rel=1e-10)


@pytest.mark.parametrize(("loss", "value"), [("mse", np.nan), ("mae", np.inf)])
def test_a_loss_that_is_not_finite_changes_no_weights(loss, value):
    net = model()
    x, y = batch()
    trainer = lstm_cli.Trainer(net, loss=loss)
    before = {name: value.copy() for name, value in net.weights.items()}
    y[0, 0, 0] = value  # mae's derivative is finite all the same
    assert not np.isfinite(trainer.step(x, y))
    for name, value in net.weights.items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"loss": "cross_entropy"}, "needs a softmax at the end"),
        ({"loss": "msee"}, "mse"),
        ({"optimizer": "adm"}, "adam"),
        ({"optimizer": {"type": "sgd", "beta1": 0.9}}, "beta1"),
        ({"clip_nrm": 1.0}, "did you mean `clip_norm`"),
        ({"normalize": True}, "no option of Trainer"),
        ({"clip_norm": -1.0}, "clip_norm"),
        ({"class_weights": [1.0, 2.0]}, "needs classes"),
    ],
)
def test_options_that_do_not_fit(options, text):
    with pytest.raises(ConfigError, match=text):
        lstm_cli.Trainer(model(), **options)


def test_balance_needs_all_the_data():
    last = {"type": "dense", "units": 3, "activation": "softmax"}
    with pytest.raises(ConfigError, match="needs all the data"):
        lstm_cli.Trainer(model(last=last), loss="cross_entropy", class_weights="balanced")


@pytest.mark.parametrize(
    "targets", [np.zeros((N, F)), np.zeros((N - 1, T, F)), 3.0, np.array(["a"] * N), [[1], [2, 3]]]
)
def test_targets_that_do_not_fit(targets):
    with pytest.raises(DataError):
        lstm_cli.Trainer(model()).step(batch()[0], targets)
