"""Losses against their formulas written out, and against PyTorch where it is installed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lstm_cli.cells import LSTM, Activation
from lstm_cli.engines.types import DenseSpec, LayerSpec, RecurrentSpec
from lstm_cli.training import losses

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
    found, soft = losses.cross_entropy(logits, classes), losses.cross_entropy(logits, shares)
    assert found.shape == soft.shape == (ROWS,)
    for n in range(ROWS):
        total = sum(math.exp(a) for a in logits[n])
        logs = [math.log(math.exp(a) / total) for a in logits[n]]
        assert found[n] == pytest.approx(-logs[classes[n]], rel=1e-12)
        expected = -sum(t * log for t, log in zip(shares[n], logs, strict=True))
        assert soft[n] == pytest.approx(expected, rel=1e-12)
    one_hot = np.eye(F)[classes]
    np.testing.assert_allclose(losses.cross_entropy(logits, one_hot), found, rtol=1e-14)


def test_binary_cross_entropy(logits: Any) -> None:
    targets = np.random.default_rng(3).random((ROWS, F))
    found = losses.binary_cross_entropy(logits, targets)
    for a, t, value in zip(logits.flat, targets.flat, found.flat, strict=True):
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
    for found in (
        losses.cross_entropy(logits, np.array([0, 1])),
        losses.cross_entropy(logits, np.eye(3)[[0, 1]]),
        losses.binary_cross_entropy(logits, np.zeros((2, 3))).sum(axis=1),
    ):
        np.testing.assert_array_equal(np.isfinite(found), [False, True])


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
    found = losses.ELEMENTWISE[name](targets + error, targets)
    np.testing.assert_allclose(found, [[expected, expected]], rtol=1e-14)
    np.testing.assert_allclose(losses.ELEMENTWISE[name](targets, targets + error), found)


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
    for found, expected in pairs:
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-11)


@pytest.mark.parametrize(
    ("last", "loss"),
    [
        (DenseSpec(1, 4, 3, None), "cross_entropy"),
        (DenseSpec(1, 4, 3, Activation("sigmoid")), "binary_cross_entropy"),
        (DenseSpec(1, 4, 3, Activation("tanh")), "mse"),
        (RecurrentSpec(1, 4, (LSTM(hidden_size=3),)), "mse"),
    ],
)
def test_the_last_layer_tells_the_loss(last: LayerSpec, loss: str) -> None:
    softmax = DenseSpec(0, 5, 4, None)  # in the middle, where it says nothing
    assert losses.loss_for((softmax, last)) == loss
