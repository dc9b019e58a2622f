"""The loss of a batch and its derivative: on every engine, for all rows and for some."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lstm_cli.engines.types import Engine
from lstm_cli.training.losses import LOSSES, Criterion, LossValue
from lstm_cli.training.metrics import Metrics
from lstm_cli.training.targets import TargetFormat

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


def drawn(loss: str, F: int, dtype: str = "float64") -> tuple[Any, Any]:
    """Outputs or logits, and targets; errors on either side of huber's 1."""
    rng = np.random.default_rng(0)
    a = (2 * rng.standard_normal((N, T, F))).astype(dtype)
    if loss == "cross_entropy":
        return a, rng.integers(0, F, (N, T))
    return a, (rng.random((N, T, F)) > 0.4).astype(dtype)


def criterion(loss: str, F: int, options: dict[str, Any]) -> Criterion:
    return Criterion(TargetFormat(loss, True, F, "targets"), **options)


def called(one: Criterion, a: Any, *given: Any) -> LossValue:
    return one(a, a, *given)


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all", "some"])
@pytest.mark.parametrize(("loss", "F", "options"), CASES, ids=str)
def test_the_gradient_is_the_derivative(loss: str, F: int, options: Any, lengths: Any) -> None:
    one, (a, targets), step = criterion(loss, F, options), drawn(loss, F), 1e-6
    found = called(one, a, targets, lengths)
    direction = np.random.default_rng(1).standard_normal(a.shape)
    slope = (
        called(one, a + step * direction, targets, lengths).value
        - called(one, a - step * direction, targets, lengths).value
    ) / (2 * step)
    assert (found.gradient * direction).sum() == pytest.approx(slope, abs=1e-8)
    assert abs(slope) > 1e-4


@pytest.mark.parametrize(("loss", "F", "options"), CASES, ids=str)
def test_only_what_counts_is_counted(loss: str, F: int, options: Any) -> None:
    one, (a, targets) = criterion(loss, F, options), drawn(loss, F)
    counted = np.arange(T) < LENGTHS[:, None]
    alone = called(one, a[counted][:, None], targets[counted][:, None], None)
    if loss != "cross_entropy":
        targets[~counted] = math.nan
    a[~counted] = math.inf
    found = called(one, a, targets, LENGTHS)
    assert found.value == pytest.approx(alone.value, rel=1e-13)
    assert found.weight == pytest.approx(alone.weight, rel=1e-13)
    np.testing.assert_allclose(found.gradient[counted], alone.gradient[:, 0], atol=1e-14)
    assert not found.gradient[~counted].any()


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["all", "some"])
@pytest.mark.parametrize(("loss", "F", "options"), CASES, ids=str)
def test_every_engine_finds_the_same(
    engine: Engine, loss: str, F: int, options: Any, lengths: Any
) -> None:
    one, (a, targets) = criterion(loss, F, options), drawn(loss, F, engine.dtype)
    wide = called(one, a.astype("f8"), targets.astype("f8"), lengths)
    found = called(one, a, targets, lengths, engine)
    tolerance = 1e-6 if engine.dtype == "float32" else 1e-13
    assert found.gradient.dtype == engine.dtype
    assert found.gradient.shape == a.shape
    assert found.value == pytest.approx(wide.value, rel=tolerance)
    assert found.weight == pytest.approx(wide.weight, rel=tolerance)
    np.testing.assert_allclose(found.gradient, wide.gradient, rtol=0, atol=tolerance)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_engine_measures_the_same(engine: Engine, loss: str) -> None:
    a, targets = drawn(loss, 2, engine.dtype)
    results = []
    for arguments in ((engine,), ()):
        metrics = Metrics(loss, per_step=True, features=2, name="targets")
        metrics.update(a, a, targets, LENGTHS, *arguments)
        metrics.update(a, a, targets, None, *arguments)
        results.append(metrics.result())
    assert results[0] == pytest.approx(results[1], rel=1e-12)


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_that_counts(engine: Engine, loss: str) -> None:
    a, targets = drawn(loss, 2, engine.dtype)
    found = called(criterion(loss, 2, {}), a, targets, np.zeros(N, int), engine)
    assert (found.value, found.weight) == (0.0, 0.0)
    assert not found.gradient.any()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_shows_in_the_loss(engine: Engine, loss: str, bad: float) -> None:
    a, targets = drawn(loss, 2, engine.dtype)
    a[2, 3, 1] = bad
    if loss == "binary_cross_entropy":
        targets[2, 3, 1] = 0
    assert not math.isfinite(called(criterion(loss, 2, {}), a, targets, None, engine).value)
