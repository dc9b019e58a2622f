"""Losses compared with their formulas and with PyTorch, and the criterion on every engine."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lstm_cli.cells import LSTM, Activation
from lstm_cli.engines.protocols import Engine
from lstm_cli.engines.types import DenseSpec, LayerSpec, RecurrentSpec
from lstm_cli.training import losses
from lstm_cli.training.losses import LOSSES, Criterion
from lstm_cli.training.targets import TargetFormat

ROWS, F = 11, 5


@pytest.fixture
def logits() -> Any:
    return 3 * np.random.default_rng(0).standard_normal((ROWS, F))


@pytest.fixture
def classes() -> Any:
    return np.random.default_rng(1).integers(0, F, ROWS)


@pytest.fixture
def shares() -> Any:
    """Rows that sum to 1."""
    drawn = np.random.default_rng(2).random((ROWS, F))
    return drawn / drawn.sum(axis=1, keepdims=True)


def test_cross_entropy(logits: Any, classes: Any, shares: Any) -> None:
    actual, soft = losses.cross_entropy(logits, classes), losses.cross_entropy(logits, shares)
    assert actual.shape == soft.shape == (ROWS,)
    for n in range(ROWS):
        total = sum(math.exp(a) for a in logits[n])
        logs = [math.log(math.exp(a) / total) for a in logits[n]]
        assert actual[n] == pytest.approx(-logs[classes[n]], rel=1e-12)
        expected = -sum(t * log for t, log in zip(shares[n], logs, strict=True))
        assert soft[n] == pytest.approx(expected, rel=1e-12)
    one_hot = np.eye(F)[classes]
    np.testing.assert_allclose(losses.cross_entropy(logits, one_hot), actual, rtol=1e-14)


def test_binary_cross_entropy(logits: Any) -> None:
    targets = np.random.default_rng(3).random((ROWS, F))
    actual = losses.binary_cross_entropy(logits, targets)
    for a, t, value in zip(logits.flat, targets.flat, actual.flat, strict=True):
        p = 1 / (1 + math.exp(-a))
        assert value == pytest.approx(-t * math.log(p) - (1 - t) * math.log(1 - p), rel=1e-11)


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]])
    np.testing.assert_array_equal(losses.cross_entropy(logits, np.array([0, 0])), [0, 2e4])
    np.testing.assert_array_equal(losses.binary_cross_entropy(logits, np.ones((2, 2))),
                                  [[0, 1e4], [1e4, 0]])  # fmt: skip


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_show_in_the_loss_without_a_warning(bad: float) -> None:
    logits = np.array([[0.5, bad, 1.0], [0.5, 2.0, 1.0]])
    for actual in (
        losses.cross_entropy(logits, np.array([0, 1])),
        losses.cross_entropy(logits, np.eye(3)[[0, 1]]),
        losses.binary_cross_entropy(logits, np.zeros((2, 3))).sum(axis=1),
    ):
        np.testing.assert_array_equal(np.isfinite(actual), [False, True])


@pytest.mark.parametrize(
    ("name", "error", "expected"),
    [
        ("mse", -3.0, 9.0),
        ("mse", 0.5, 0.25),
        ("mae", -3.0, 3.0),
        ("mae", 0.5, 0.5),
        ("huber", 0.5, 0.125),
        ("huber", -1.0, 0.5),
        ("huber", 3.0, 2.5),
        ("huber", -3.0, 2.5),
    ],
)
def test_elementwise(name: str, error: float, expected: float) -> None:
    targets = np.array([[0.7, -2.0]])
    actual = losses.ELEMENTWISE[name](targets + error, targets)
    np.testing.assert_allclose(actual, [[expected, expected]], rtol=1e-14)
    np.testing.assert_allclose(losses.ELEMENTWISE[name](targets, targets + error), actual)


def test_all_are_named() -> None:
    assert {*losses.ELEMENTWISE, "cross_entropy", "binary_cross_entropy"} == set(losses.LOSSES)


def test_torch_agrees(logits: Any, classes: Any, shares: Any) -> None:
    torch = pytest.importorskip("torch")
    functional = torch.nn.functional
    a, k, t = (torch.from_numpy(v) for v in (logits, classes, shares))
    pairs = [
        (losses.cross_entropy(logits, classes), functional.cross_entropy(a, k, reduction="none")),
        (losses.cross_entropy(logits, shares), functional.cross_entropy(a, t, reduction="none")),
        (
            losses.binary_cross_entropy(logits, shares),
            functional.binary_cross_entropy_with_logits(a, t, reduction="none"),
        ),
        (losses.mse(logits, shares), functional.mse_loss(a, t, reduction="none")),
        (losses.mae(logits, shares), functional.l1_loss(a, t, reduction="none")),
        (losses.huber(logits, shares), functional.huber_loss(a, t, reduction="none")),
        (losses.log_softmax(logits), functional.log_softmax(a, dim=-1)),
    ]
    for actual, expected in pairs:
        np.testing.assert_allclose(actual, expected.numpy(), rtol=1e-11)


@pytest.mark.parametrize(
    ("last", "loss"),
    [
        (DenseSpec(1, 4, 3, None), "cross_entropy"),
        (DenseSpec(1, 4, 3, Activation("sigmoid")), "binary_cross_entropy"),
        (DenseSpec(1, 4, 3, Activation("tanh")), "mse"),
        (RecurrentSpec(1, 4, (LSTM(hidden_size=3),)), "mse"),
    ],
)
def test_the_last_layer_determines_the_default_loss(last: LayerSpec, loss: str) -> None:
    softmax = DenseSpec(0, 5, 4, None)  # in the middle, where it says nothing
    assert losses.loss_for((softmax, last)) == loss


# The criterion of a batch

N, T = 5, 7
LENGTHS = np.array([7, 3, 0, 1, 5])
CASES = [
    *((loss, F, {}) for loss in LOSSES for F in (2, 40)),
    ("cross_entropy", 3, {"class_weights": [0.5, 0.0, 2.0]}),
    ("cross_entropy", 3, {"label_smoothing": 0.2}),
    ("cross_entropy", 3, {"label_smoothing": 0.2, "class_weights": [0.5, 0.25, 2.0]}),
    ("binary_cross_entropy", 3, {"label_smoothing": 0.2}),
    ("binary_cross_entropy", 1, {"class_weights": [0.5, 3.0]}),
    ("binary_cross_entropy", 1, {"label_smoothing": 0.2, "class_weights": [0.0, 3.0]}),
]


def random_batch(loss: str, F: int, dtype: str = "float64") -> tuple[Any, Any]:
    """Outputs or logits, and targets; errors on either side of huber's 1."""
    rng = np.random.default_rng(0)
    a = (2 * rng.standard_normal((N, T, F))).astype(dtype)
    if loss == "cross_entropy":
        return a, rng.integers(0, F, (N, T))
    return a, (rng.random((N, T, F)) > 0.4).astype(dtype)


def criterion(loss: str, F: int, options: dict[str, Any]) -> Criterion:
    return Criterion(TargetFormat(loss, True, F, "targets"), **options)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all", "some"])
@pytest.mark.parametrize(("loss", "F", "options"), CASES, ids=str)
def test_the_gradient_is_the_derivative(loss: str, F: int, options: Any, lengths: Any) -> None:
    one, (a, targets), step = criterion(loss, F, options), random_batch(loss, F), 1e-6
    actual = one(a, a, targets, lengths)
    direction = np.random.default_rng(1).standard_normal(a.shape)
    slope = (
        one(a + step * direction, a + step * direction, targets, lengths).value
        - one(a - step * direction, a - step * direction, targets, lengths).value
    ) / (2 * step)
    assert (actual.gradient * direction).sum() == pytest.approx(slope, abs=1e-8)
    assert abs(slope) > 1e-4


@pytest.mark.parametrize(("loss", "F", "options"), CASES, ids=str)
def test_only_what_counts_is_counted(loss: str, F: int, options: Any) -> None:
    one, (a, targets) = criterion(loss, F, options), random_batch(loss, F)
    counted = np.arange(T) < LENGTHS[:, None]
    valid = a[counted][:, None]
    alone = one(valid, valid, targets[counted][:, None], None)
    if loss != "cross_entropy":
        targets[~counted] = math.nan
    a[~counted] = math.inf
    actual = one(a, a, targets, LENGTHS)
    assert actual.value == pytest.approx(alone.value, rel=1e-13)
    assert actual.weight == pytest.approx(alone.weight, rel=1e-13)
    np.testing.assert_allclose(actual.gradient[counted], alone.gradient[:, 0], atol=1e-14)
    assert not actual.gradient[~counted].any()


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all", "some"])
@pytest.mark.parametrize(("loss", "F", "options"), CASES, ids=str)
def test_every_engine_finds_the_same(
    engine: Engine, loss: str, F: int, options: Any, lengths: Any
) -> None:
    one, (a, targets) = criterion(loss, F, options), random_batch(loss, F, engine.dtype)
    wide = one(a.astype("f8"), a.astype("f8"), targets.astype("f8"), lengths)
    actual = one(a, a, targets, lengths, engine)
    tolerance = 1e-6 if engine.dtype == "float32" else 1e-13
    assert actual.gradient.dtype == engine.dtype
    assert actual.gradient.shape == a.shape
    assert actual.value == pytest.approx(wide.value, rel=tolerance)
    assert actual.weight == pytest.approx(wide.weight, rel=tolerance)
    np.testing.assert_allclose(actual.gradient, wide.gradient, rtol=0, atol=tolerance)


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_that_counts(engine: Engine, loss: str) -> None:
    a, targets = random_batch(loss, 2, engine.dtype)
    actual = criterion(loss, 2, {})(a, a, targets, np.zeros(N, int), engine)
    assert (actual.value, actual.weight) == (0.0, 0.0)
    assert not actual.gradient.any()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows_in_the_loss(engine: Engine, loss: str, bad: float) -> None:
    a, targets = random_batch(loss, 2, engine.dtype)
    a[2, 3, 1] = bad
    if loss == "binary_cross_entropy":
        targets[2, 3, 1] = 0
    assert not math.isfinite(criterion(loss, 2, {})(a, a, targets, None, engine).value)
