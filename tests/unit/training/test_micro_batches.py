"""Micro-batches: the same mean gradient as an undivided batch, added in one order."""

from __future__ import annotations

import numpy as np
import pytest
from networks import random_weights, recurrent
from ranks import on_ranks

import lstm_cli
from lstm_cli.engines.jit.engine import JitEngine
from lstm_cli.engines.protocols import Engine
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import DenseSpec, TrainingPass
from lstm_cli.network.network import Network
from lstm_cli.training.interfaces import Exchange
from lstm_cli.training.losses import Criterion
from lstm_cli.training.micro_batches import ONE_RANK, micro_batch_rows, rank_rows, tree_sum
from lstm_cli.training.optimizers import make_optimizer
from lstm_cli.training.schedules import make_schedule
from lstm_cli.training.targets import TargetFormat
from lstm_cli.training.train_step import Chunk, Division, TrainStep
from lstm_cli.training.updates import Updates

N, T, D, F = 9, 7, 3, 4
LENGTHS = np.array([7, 7, 6, 5, 5, 3, 2, 1, 0])


def train_step(
    engine: Engine, micro_batches: int, *, loss: str = "mse", per_step: bool = True, **options
) -> TrainStep:
    weights = options.pop("class_weights", None)
    specs = (
        recurrent("lstm", 5, D, return_sequences=per_step, **options.pop("layer", {})),
        DenseSpec(1, 5, F, None),
    )
    if loss == "mse":
        specs = (specs[0], DenseSpec(1, 5, F, specs[0].cells[0].activation))
    network = Network(specs, random_weights(specs), engine)
    updates = Updates(
        make_optimizer({"type": "sgd", "learning_rate": 0.1}),
        make_schedule({"type": "constant"}, epochs=1),
    )
    criterion = Criterion(TargetFormat(loss, per_step, F, "targets"), weights)
    return TrainStep(network, criterion, updates, micro_batches=micro_batches, **options)


def batch(dtype: str, *, loss: str = "mse", per_step: bool = True) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((N, T, D)).astype(dtype)
    shape = (N, T) if per_step else (N,)
    if loss == "cross_entropy":
        return x, rng.integers(0, F, shape)
    return x, rng.standard_normal((*shape, F)).astype(dtype)


def test_rows_go_back_and_forth() -> None:
    assert [rows.tolist() for rows in micro_batch_rows(3, 8)] == [[0, 5, 6], [1, 4, 7], [2, 3]]
    assert [rows.tolist() for rows in micro_batch_rows(5, 2)] == [[0], [1]]
    assert [rows.tolist() for rows in micro_batch_rows(1, 3)] == [[0, 1, 2]]


def test_the_tree() -> None:
    text = tree_sum((0, 5), lambda node: str(node[0]), lambda a, b: f"({a}+{b})")
    assert text == "((0+1)+(2+(3+4)))"


@pytest.mark.parametrize("micro_batches", [2, 3, 20])
@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"per_step": False},
        {"loss": "cross_entropy", "class_weights": [1.0, 2.0, 0.0, 0.5]},
        {"loss": "cross_entropy", "per_step": False},
        {"truncate": 3},
        {"truncate": 3, "per_step": False},
    ],
    ids=str,
)
def test_the_gradient_is_that_of_the_whole_batch(
    engine: Engine, options: dict, lengths: np.ndarray | None, micro_batches: int
) -> None:
    if engine.dtype != "float64":
        pytest.skip("sums in another order differ by rounding")
    shape = {key: options[key] for key in ("loss", "per_step") if key in options}
    x, y = batch("float64", **shape)
    one, divided = train_step(engine, 1, **options), train_step(engine, micro_batches, **options)
    state = [
        (np.random.default_rng(2).standard_normal((N, 1, 5)), np.full((N, 1, 5), 0.3)),
    ]
    loss, gradients = one.gradients(Chunk(x, y, lengths), state)
    other_loss, others = divided.gradients(Chunk(x, y, lengths), state)
    assert other_loss.value == pytest.approx(loss.value, rel=1e-12)
    assert other_loss.weight == pytest.approx(loss.weight, rel=1e-12)
    for name, value in gradients.weights.items():
        np.testing.assert_allclose(others.weights[name], value, rtol=0, atol=1e-12)
    steps = others.inputs.shape[1]
    np.testing.assert_allclose(others.inputs, gradients.inputs[:, :steps], rtol=0, atol=1e-12)
    np.testing.assert_allclose(others.state[0][0], gradients.state[0][0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(others.state[0][1], gradients.state[0][1], rtol=0, atol=1e-12)
    report, other = (step.step(x, y, lengths, state) for step in (one, divided))
    assert other.loss == pytest.approx(report.loss, rel=1e-12)
    assert len(other.updates) == len(report.updates)
    for (h, c), (other_h, other_c) in zip(report.states(), other.states(), strict=True):
        np.testing.assert_allclose(other_h, h, rtol=0, atol=1e-12)
        np.testing.assert_allclose(other_c, c, rtol=0, atol=1e-12)
    for name, value in one.weights.items():
        np.testing.assert_allclose(divided.weights[name], value, rtol=0, atol=1e-12)


def test_gradients_are_added_in_the_order_of_the_tree(engine: Engine) -> None:
    """Bits of the sum are those of NumPy's additions, pair by pair, of each part's gradient."""
    count = 5
    x, y = batch(engine.dtype)
    divided = train_step(engine, count)
    _, gradients = divided.gradients(Chunk(x, y, LENGTHS))
    rows = micro_batch_rows(count, N)
    whole = float(LENGTHS.sum())
    parts = []
    for k in rows:
        one = train_step(engine, 1)
        steps = LENGTHS[k].max()
        chunk = Chunk(x[k, :steps], y[k, :steps], LENGTHS[k])
        parts.append(one._pass(chunk, None, whole)[1].weights)
    for name, value in gradients.weights.items():
        a = [part[name] for part in parts]
        expected = (a[0] + a[1]) + (a[2] + (a[3] + a[4]))
        np.testing.assert_array_equal(value, expected)
        if engine.dtype == "float32" and name.endswith("weight_hh"):
            assert (expected != a[0] + a[1] + a[2] + a[3] + a[4]).any()  # the order matters


def test_each_micro_batch_has_its_own_dropout() -> None:
    spec = recurrent("lstm", 5, D)
    masks = [TrainingPass(3, 2, k).mask(spec, 0, (4, 6), 0.5) for k in range(4)]
    for k in range(4):
        assert (masks[k] == TrainingPass(3, 2, k).mask(spec, 0, (4, 6), 0.5)).all()
        assert all((masks[k] != masks[other]).any() for other in range(k))


def test_a_trainer_takes_micro_batches() -> None:
    layers = [{"type": "gru", "hidden_size": 5, "stateful": True}, {"type": "dense", "units": F}]
    x, y = batch("float64")
    losses = []
    for count in (1, 4):
        config = {"model": {"input_size": D, "layers": layers, "init": {"seed": 2}}}
        net = lstm_cli.build(config, engine="reference", dtype="float64")
        trainer = lstm_cli.Trainer(net, "mse", micro_batches=count)
        losses.append([trainer.step(x, y) for _ in range(3)])  # states are carried by row
        assert trainer.gradients(x, y)[1]["inputs"].shape == x.shape
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-10)


KINDS = {
    "lstm": {},
    "lstm with dropout": {"layer": {"dropout": 0.3, "recurrent_dropout": 0.2}},
    "one vector per sequence": {"per_step": False},
    "truncated": {"truncate": 3},
    "truncated, one vector": {"truncate": 3, "per_step": False},
    "class weights": {"loss": "cross_entropy", "class_weights": [1.0, 2.0, 0.0, 0.5]},
}


ENGINES = {
    "reference": lambda rank: ReferenceEngine("float32", 1),
    "jit": lambda rank: JitEngine("float32", rank + 1),
}


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["full", "ragged"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ENGINES)
def test_any_number_of_ranks_gives_the_same_bits(
    name: str, kind: str, lengths: np.ndarray | None
) -> None:
    """Losses, weights and final states after three batches, one smaller than the ranks."""
    options = KINDS[kind]
    shape = {key: options[key] for key in ("loss", "per_step") if key in options}

    def trained(exchange: Exchange) -> tuple[list[float], dict[str, np.ndarray], list]:
        engine = ENGINES[name](exchange.rank)
        step = train_step(engine, 5, exchange=exchange, seed=3, **options)
        losses = []
        for rows in (N, N, 2):
            x, y = (values[:rows] for values in batch("float32", **shape))
            n = None if lengths is None else lengths[:rows]
            own = rank_rows(5, rows, exchange)
            kept = own if len(own) else np.arange(1)
            report = step.step(
                x[kept],
                y[kept],
                None if n is None else n[kept],
                division=Division(own, rows, T),
            )
            losses.append(report.loss)
        return losses, step.weights, report.states()

    single = trained(ONE_RANK)
    for size in (2, 3, 5):
        for losses, weights, states in on_ranks(size, trained):
            assert losses == single[0]
            for tensor, value in single[1].items():
                np.testing.assert_array_equal(weights[tensor], value)
            for (h, c), (single_h, single_c) in zip(states, single[2], strict=True):
                np.testing.assert_array_equal(h, single_h)
                np.testing.assert_array_equal(c, single_c)
