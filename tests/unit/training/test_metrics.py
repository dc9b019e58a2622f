"""Metrics: means over the valid rows alone, independent of the batches."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from lstm_cli.errors import DataError
from lstm_cli.training import losses
from lstm_cli.training.metric_sums import area_under_curve
from lstm_cli.training.metrics import Metrics

N, T, F = 5, 4, 3
LENGTHS = np.array([2, 0, 4, 1, 3])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def metrics(loss: str, *, per_step: bool = False, features: int = F) -> Metrics:
    return Metrics(loss, per_step=per_step, features=features, name="targets in x.h5")


def measure(metric: Metrics, *batch: Any) -> dict[str, float]:
    metric.update(*batch)
    return metric.result()


def test_area_under_curve_counts_ties_half() -> None:
    for seed in range(20):
        scores = rng(seed).integers(0, 6, 30).astype(float)
        positive = rng(seed + 99).random(30) < 0.4
        pairs = [
            1.0 if a > b else 0.5 if a == b else 0.0
            for a, b in product(scores[positive], scores[~positive])
        ]
        assert area_under_curve(scores, positive) == pytest.approx(np.mean(pairs), abs=1e-12)


@pytest.mark.parametrize(
    ("scores", "positive", "expected"),
    [
        ([1.0, 2, 3, 4], [False, False, True, True], 1.0),
        ([1.0, 2, 3, 4], [True, True, False, False], 0.0),
        ([7.0, 7, 7], [True, False, True], 0.5),
        ([1.0, 2], [True, True], None),
        ([1.0, 2], [False, False], None),
        ([], [], None),
    ],
)
def test_area_under_curve(
    scores: list[float], positive: list[bool], expected: float | None
) -> None:
    assert area_under_curve(np.array(scores), np.array(positive, bool)) == expected


def test_classes_of_a_sequence() -> None:
    logits, classes = rng().standard_normal((N, F)), rng(1).integers(0, F, N)
    actual = measure(metrics("cross_entropy"), logits, logits, classes, None)
    assert actual["loss"] == pytest.approx(losses.cross_entropy(logits, classes).mean())
    assert actual["accuracy"] == pytest.approx((logits.argmax(axis=1) == classes).mean())
    assert set(actual) == {"loss", "accuracy"}


def test_empty_sequences_are_not_counted() -> None:
    logits, classes = rng().standard_normal((N, F)), rng(1).integers(0, F, N)
    actual = measure(metrics("cross_entropy"), logits, logits, classes, LENGTHS)
    kept = LENGTHS > 0
    expected = losses.cross_entropy(logits[kept], classes[kept]).mean()
    assert actual["loss"] == pytest.approx(expected)


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_values_of_every_step(loss: str) -> None:
    outputs, targets = rng().standard_normal((N, T, F)), 2 * rng(1).standard_normal((N, T, F))
    for n, length in enumerate(LENGTHS):
        targets[n, length:] = np.nan
    actual = measure(metrics(loss, per_step=True), outputs, None, targets, LENGTHS)
    valid = np.arange(T) < LENGTHS[:, None]
    errors = (outputs - targets)[valid]
    size = np.abs(errors)
    expected = {
        "mse": errors**2,
        "mae": size,
        "huber": np.where(size <= 1, errors**2 / 2, size - 0.5),
    }
    assert set(actual) == {"loss", "mse", "mae"}
    assert actual["loss"] == pytest.approx(expected[loss].mean())
    assert actual["mse"] == pytest.approx(expected["mse"].mean())
    assert actual["mae"] == pytest.approx(expected["mae"].mean())


def test_classes_of_every_step_count_to_the_length() -> None:
    logits, classes = rng().standard_normal((N, T, F)), rng(1).integers(0, F, (N, T))
    actual = measure(metrics("cross_entropy", per_step=True), logits, logits, classes, LENGTHS)
    rows = [(n, t) for n in range(N) for t in range(LENGTHS[n])]
    single = [losses.cross_entropy(logits[n, t][None], classes[n, t][None])[0] for n, t in rows]
    assert actual["loss"] == pytest.approx(np.mean(single))
    hits = [logits[n, t].argmax() == classes[n, t] for n, t in rows]
    assert actual["accuracy"] == pytest.approx(np.mean(hits))


@pytest.mark.parametrize("padding", [-1, 99])
def test_what_stands_in_the_padding_of_classes_does_not_matter(padding: int) -> None:
    logits, classes = rng().standard_normal((N, T, F)), rng(1).integers(0, F, (N, T))
    clean = measure(metrics("cross_entropy", per_step=True), logits, logits, classes, LENGTHS)
    for n, length in enumerate(LENGTHS):
        classes[n, length:] = padding
    dirty = measure(metrics("cross_entropy", per_step=True), logits, logits, classes, LENGTHS)
    assert dirty == clean


def test_the_class_of_an_empty_sequence_does_not_matter() -> None:
    logits, classes = rng().standard_normal((N, F)), rng(1).integers(0, F, N)
    clean = measure(metrics("cross_entropy"), logits, logits, classes, LENGTHS)
    classes[1] = -1
    assert measure(metrics("cross_entropy"), logits, logits, classes, LENGTHS) == clean


@pytest.mark.parametrize("features", [1, 2, 3, 9, 40])
@pytest.mark.parametrize("loss", losses.LOSSES)
def test_batches_of_any_size_give_the_same_bits(loss: str, features: int) -> None:
    count, dtype = 61, np.float32
    lengths = rng(2).integers(0, T + 1, count)
    outputs = (3 * rng().standard_normal((count, T, features))).astype(dtype)
    targets = rng(1).random((count, T, features)).astype(dtype)
    if loss == "cross_entropy":
        targets = rng(1).integers(0, features, (count, T))
    results = []
    for size in (1, 2, 7, count):
        metric = metrics(loss, per_step=True, features=features)
        for first in range(0, count, size):
            part = slice(first, first + size)
            metric.update(outputs[part], outputs[part], targets[part], lengths[part])
        results.append(metric.result())
    assert "loss" in results[0]
    assert results == [results[0]] * len(results)


@pytest.mark.parametrize("features", [2, 9, 40, 300])
@pytest.mark.parametrize("loss", losses.LOSSES)
def test_the_value_of_a_row_depends_on_no_other_row(loss: str, features: int) -> None:
    a = (3 * rng().standard_normal((200, features))).astype(np.float32)
    targets: Any = rng(1).random((200, features)).astype(np.float32)
    if loss == "cross_entropy":
        targets = rng(1).integers(0, features, 200)
    measured = [metrics(loss, features=features) for _ in range(200)]
    for n, one in enumerate(measured):
        one.update(a[n : n + 1], a[n : n + 1], targets[n : n + 1], None)
    both = metrics(loss, features=features)
    both.update(a, a, targets, None)
    for one in measured:
        both.sums["loss"].add(-one.sums["loss"].parts())
    assert both.sums["loss"].value == 0.0


def test_shares_and_one_hot() -> None:
    logits, classes = rng().standard_normal((N, F)), rng(1).integers(0, F, N)
    plain = measure(metrics("cross_entropy"), logits, logits, classes, None)
    hot = measure(metrics("cross_entropy"), logits, logits, np.eye(F)[classes], None)
    assert hot == pytest.approx(plain, rel=1e-14)
    column = measure(metrics("cross_entropy"), logits, logits, classes[:, None], None)
    assert column == plain
    floats = measure(metrics("cross_entropy"), logits, logits, classes.astype(float), None)
    assert floats == plain


def test_auc_of_two_classes_over_batches() -> None:
    logits, classes = rng().standard_normal((20, 2)), rng(1).integers(0, 2, 20)
    metric = metrics("cross_entropy", features=2)
    metric.update(logits[:7], logits[:7], classes[:7], None)
    metric.update(logits[7:], logits[7:], classes[7:], None)
    scores = logits[:, 1] - logits[:, 0]
    expected = area_under_curve(scores, classes == 1)
    assert metric.result()["auc"] == pytest.approx(expected)
    assert 0 < metric.result()["auc"] < 1


def test_binary() -> None:
    logits = 2 * rng().standard_normal((20, 1))
    targets = rng(1).integers(0, 2, 20)
    outputs = 1 / (1 + np.exp(-logits))
    actual = measure(metrics("binary_cross_entropy", features=1), outputs, logits, targets, None)
    p, t = outputs[:, 0], targets
    assert actual["loss"] == pytest.approx(-(t * np.log(p) + (1 - t) * np.log(1 - p)).mean())
    assert actual["accuracy"] == pytest.approx(((p > 0.5) == (t == 1)).mean())
    assert actual["auc"] == pytest.approx(area_under_curve(p, t == 1))


def test_binary_of_several_features() -> None:
    logits, targets = rng().standard_normal((N, F)), rng(1).integers(0, 2, (N, F)).astype(float)
    actual = measure(metrics("binary_cross_entropy"), logits, logits, targets, None)
    assert actual["loss"] == pytest.approx(losses.binary_cross_entropy(logits, targets).mean())
    assert actual["accuracy"] == pytest.approx(((logits > 0) == (targets == 1)).mean())
    assert "auc" not in actual


def test_values_without_an_axis_of_features() -> None:
    outputs, targets = rng().standard_normal((N, 1)), rng(1).standard_normal(N)
    actual = measure(metrics("mse", features=1), outputs, None, targets, None)
    assert actual["mse"] == pytest.approx(((outputs[:, 0] - targets) ** 2).mean())
    steps, wanted = rng().standard_normal((N, T, 1)), rng(1).standard_normal((N, T))
    actual = measure(metrics("mse", per_step=True, features=1), steps, None, wanted, None)
    assert actual["mse"] == pytest.approx(((steps[..., 0] - wanted) ** 2).mean())


def test_nothing_counted() -> None:
    assert metrics("mse").result() == {}
    outputs = np.zeros((N, F))
    assert measure(metrics("mse"), outputs, None, outputs, np.zeros(N, int)) == {}


def refused(metric: Metrics, *batch: Any) -> str:
    with pytest.raises(DataError) as error:
        metric.update(*batch)
    assert error.value.exit_code == 3
    assert metric.count == 0
    return str(error.value)


@pytest.mark.parametrize("wrong", [-1, F, 1.5, np.nan])
def test_a_class_that_is_not_there(wrong: float) -> None:
    classes = np.array([0, 1, wrong, 2, 0])
    text = refused(metrics("cross_entropy"), np.zeros((N, F)), np.zeros((N, F)), classes, None)
    assert "targets in x.h5 holds a class that the network does not have" in text
    assert "whole numbers 0 to 2" in text
    assert f"found {classes.dtype.type(wrong)}" in text


@pytest.mark.parametrize("wrong", [-0.1, 1.1, 7.0])
def test_no_probability(wrong: float) -> None:
    targets = np.full((N, 1), 0.5)
    targets[2] = wrong
    metric = metrics("binary_cross_entropy", features=1)
    with pytest.raises(DataError, match="0 to 1"):
        metric.update(np.zeros((N, 1)), np.zeros((N, 1)), targets, None)


@pytest.mark.parametrize(
    ("loss", "per_step", "shape", "targets", "hint"),
    [
        ("mse", True, (N, T, F), (N, F), "`return_sequences: false`"),
        ("cross_entropy", True, (N, T, F), (N,), "`return_sequences: false`"),
        ("mse", False, (N, F), (N, T, F), "`return_sequences: true`"),
        ("mse", False, (N, F), (N, F + 1), None),
        ("mse", False, (N, F), (N + 1, F), None),
    ],
)
def test_targets_of_another_shape(
    loss: str, per_step: bool, shape: Any, targets: Any, hint: str | None
) -> None:
    outputs = np.zeros(shape)
    text = refused(metrics(loss, per_step=per_step), outputs, outputs, np.zeros(targets), None)
    assert "targets in x.h5 do not fit" in text
    assert str(shape) in text
    assert str(targets) in text
    assert (hint or "hint:") in text or hint is None


def test_class_targets_under_another_loss() -> None:
    text = refused(metrics("mse"), np.zeros((N, F)), None, np.zeros(N, int), None)
    assert "`train.loss: cross_entropy`" in text


def test_cross_entropy_without_logits() -> None:
    text = refused(metrics("cross_entropy"), np.zeros((N, F)), None, np.zeros(N, int), None)
    assert "needs a dense layer at the end" in text
