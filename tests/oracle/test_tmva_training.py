"""Our LSTM's derivatives in TMVA's tests of its backward pass, and two toy tasks.

ROOT's tests TestLSTMBackpropagation: derivatives of every W, U and b against finite
differences to 1e-2 (here 1e-6), then two small networks that must learn.
"""

from __future__ import annotations

import numpy as np
import pytest
from networks import Array, random_weights, recurrent

from lstm_cli.cells import Activation
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import DenseSpec, LayerSpec, RecurrentSpec, TrainingPass
from lstm_cli.network import backpropagation
from lstm_cli.network.initializers import initialize
from lstm_cli.network.network import Network
from lstm_cli.training.losses import Criterion
from lstm_cli.training.metric_sums import area_under_curve
from lstm_cli.training.optimizers import SGDOptimizer
from lstm_cli.training.schedules import ConstantSchedule
from lstm_cli.training.targets import TargetFormat
from lstm_cli.training.train_step import TrainStep
from lstm_cli.training.updates import Updates

LINEAR = Activation("identity")


def one(S: int, D: int) -> list[LayerSpec]:
    return [recurrent("lstm", S, D)]


def with_dense(S: int, D: int) -> list[LayerSpec]:
    return [recurrent("lstm", S, D, return_sequences=False), DenseSpec(1, S, D, LINEAR)]


def two_and_dense(S: int, D: int) -> list[LayerSpec]:
    return [
        recurrent("lstm", S, D),
        recurrent("lstm", S, S, index=1, return_sequences=False),
        DenseSpec(2, S, D, LINEAR),
    ]


CASES = [  # steps, batch, state, inputs
    (one, (2, 1, 1, 2)),
    (one, (1, 2, 3, 2)),
    (one, (2, 3, 4, 5)),
    (one, (4, 2, 10, 5)),
    (one, (5, 64, 10, 5)),
    (with_dense, (4, 32, 10, 20)),
    (two_and_dense, (4, 32, 10, 5)),
]


@pytest.mark.parametrize(
    ("stack", "case"), CASES, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_gradients_of_every_matrix_and_bias_of_every_gate(
    stack: object, case: tuple[int, ...]
) -> None:
    T, B, S, D = case
    specs = stack(S, D)  # type: ignore[operator]
    rng = np.random.default_rng(0)
    weights, x = random_weights(specs), rng.standard_normal((B, T, D))
    engine = ReferenceEngine("float64")
    R = rng.standard_normal(Network(specs, weights, engine).run(x).outputs.shape)

    def loss(changed: dict[str, Array]) -> float:
        return float((R * Network(specs, changed, engine).run(x).outputs).sum())

    net = Network(specs, weights, engine)
    tape = backpropagation.forward(net, x, None, None, TrainingPass())
    gradients = backpropagation.backward(net, tape, R, d_logits=False).weights
    for spec in specs:
        blocks = 4 if isinstance(spec, RecurrentSpec) else 1
        for name in spec.parameters():
            rows = len(weights[name]) // blocks
            for gate in range(blocks):
                direction = np.zeros_like(weights[name])
                part = slice(gate * rows, (gate + 1) * rows)
                direction[part] = rng.standard_normal(direction[part].shape)
                h = 1e-5
                up = loss(weights | {name: weights[name] + h * direction})
                down = loss(weights | {name: weights[name] - h * direction})
                exact = float((gradients[name] * direction).sum())
                assert exact == pytest.approx((up - down) / (2 * h), rel=1e-6, abs=1e-8), (
                    name, gate,
                )  # fmt: skip


def learner(specs: list[LayerSpec], loss: str, features: int, seed: int = 1) -> TrainStep:
    weights = initialize(specs, "xavier", seed=seed)
    updates = Updates(SGDOptimizer(learning_rate=0.1), ConstantSchedule())
    criterion = Criterion(TargetFormat(loss, False, features, "targets"))
    return TrainStep(Network(specs, weights, ReferenceEngine()), criterion, updates)


def losses_of_the_identity(seed: int) -> tuple[float, float]:
    """First and last of 50 losses, on two sequences of one step, uniform in [-1, 1]."""
    B, S, D = 2, 3, 2
    specs = [recurrent("lstm", S, D, return_sequences=False), DenseSpec(1, S, D, LINEAR)]
    x = np.random.default_rng(seed).uniform(-1, 1, (B, 1, D)).astype(np.float32)
    model = learner(specs, "mse", D, seed)
    found = [model.step(x, x[:, 0], None).loss for _ in range(50)]
    return found[0], found[-1]


def test_it_learns_the_identity() -> None:
    # What TMVA draws is not written down, and how far 50 steps lead depends on the draw: half
    # of the draws must come to its 0.05, and none may end where it began.
    first, last = np.array([losses_of_the_identity(seed) for seed in range(21)]).T
    assert np.median(first) > 0.3
    assert (last < 0.7 * first).all()
    assert np.median(last) <= 0.055
    assert (last <= 0.05).sum() >= 9


def test_it_tells_two_classes_apart() -> None:
    B, S, D, T = 64, 10, 5, 5
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, B)
    t, feature = np.arange(T)[:, None], np.arange(D)
    mean = np.where(labels[:, None, None] == 0, 4.0 + feature, 2.0 * t + feature)
    x = rng.normal(mean, 1.0).astype(np.float32)
    specs = [
        recurrent("lstm", S, D, return_sequences=False),
        DenseSpec(1, S, 1, Activation("sigmoid")),
    ]
    model = learner(specs, "binary_cross_entropy", 1)
    for _ in range(50):
        model.step(x, labels, None)
    auc = area_under_curve(model.network.run(x).outputs[:, 0], labels == 1)
    assert auc is not None
    assert auc > 0.95
