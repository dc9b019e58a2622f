"""Targets that a loss takes."""

import numpy as np
import pytest

from lstm_cli.bench import GridSize
from lstm_cli.bench.sizes import random_targets
from lstm_cli.cells import LSTM, Activation
from lstm_cli.engines.types import DenseSpec, FlattenSpec, RecurrentSpec

SIZE = GridSize(hidden=5, batch=30, steps=4, features=2)
STEPS = (RecurrentSpec(0, 2, (LSTM(hidden_size=5),) * 2),)
LAST = (
    RecurrentSpec(0, 2, (LSTM(hidden_size=5),), return_sequences=False),
    DenseSpec(1, 5, 3, Activation("tanh")),
)
FLAT = (RecurrentSpec(0, 2, (LSTM(hidden_size=5),)), FlattenSpec(1, 5, 6))


@pytest.mark.parametrize(
    ("layers", "shape"),
    [(STEPS, (30, 4, 10)), (LAST, (30, 3)), (FLAT, (30, 30))],
    ids=["steps", "last", "flat"],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_values_have_the_outputs_shape_and_dtype(layers, shape, dtype):
    for loss in ("mse", "mae", "huber", "binary_cross_entropy"):
        targets = random_targets(layers, SIZE, loss, 3, dtype)
        assert targets.shape == shape
        assert targets.dtype == dtype


def test_classes_are_all_there_one_a_row():
    classes = random_targets(STEPS, SIZE, "cross_entropy", 3, "float32")
    assert classes.shape == (30, 4)
    assert classes.dtype == np.int64
    assert set(classes.flat) == set(range(10))
    assert set(random_targets(LAST, SIZE, "cross_entropy", 3, "float32")) == {0, 1, 2}


def test_both_labels_are_there():
    assert set(random_targets(LAST, SIZE, "binary_cross_entropy", 3, "float32").flat) == {0, 1}


def test_values_are_distinct_and_repeat_with_the_seed():
    first, again, other = (random_targets(LAST, SIZE, "mse", seed, "float64") for seed in (5, 5, 6))
    np.testing.assert_array_equal(first, again)
    assert len(np.unique(first)) == first.size
    assert not (first == other).any()
