"""The grid of sizes, and the work of a size against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lstm_cli.cells import GRU, LSTM, Activation
from lstm_cli.engines.types import DenseSpec, FlattenSpec, RecurrentSpec
from lstm_cli.errors import UsageError
from lstm_cli.workflows.bench import DEFAULT_SIZES, GridSize, grid, one_lstm
from lstm_cli.workflows.bench.sizes import describe, flops, random_targets, training_flops


def test_the_grid_is_every_combination_and_the_features_follow_the_units():
    assert grid([5, 3], [1, 7], [11]) == (
        GridSize(5, 1, 11, 5),
        GridSize(5, 7, 11, 5),
        GridSize(3, 1, 11, 3),
        GridSize(3, 7, 11, 3),
    )


def test_features_are_a_list_of_their_own_and_repetitions_fall_away():
    assert grid([5, 5], [2], [3], [4, 6]) == (GridSize(5, 2, 3, 4), GridSize(5, 2, 3, 6))


@pytest.mark.parametrize(
    ("lists", "name"), [(([0], [1], [1]), "hidden"), (([1], [], [1]), "batch")]
)
def test_a_grid_of_nothing_is_refused_by_name(lists, name):
    with pytest.raises(UsageError, match=f"--{name}"):
        grid(*lists)


def test_the_default_grid_has_a_size_that_no_vector_divides():
    assert any(size.hidden % 16 for size in DEFAULT_SIZES)
    assert len(set(DEFAULT_SIZES)) == len(DEFAULT_SIZES)


def test_a_size_names_its_features_only_where_they_differ():
    assert str(GridSize(32, 1, 100, 32)) == "32 × 1 × 100"
    assert str(GridSize(32, 1, 100, 12)) == "32 × 1 × 100, D 12"


def test_flops_of_one_lstm_by_hand():
    # 4 gates of H = 3 units, each unit reads D = 2 and H = 3; 5 x 7 steps; multiply and add.
    size = GridSize(3, 5, 7, 2)
    assert flops(one_lstm(size), size) == 4 * 3 * (2 + 3) * 2 * 35


def test_a_training_step_is_three_times_the_products():
    size = GridSize(3, 5, 7, 2)
    products = 4 * 3 * (2 + 3) * 2 * 35
    assert training_flops(one_lstm(size), size) == 3 * products


def test_after_the_last_step_only_sequences_count():
    size = GridSize(3, 5, 7, 2)
    layers = (
        RecurrentSpec(0, 2, (GRU(hidden_size=3),) * 2, return_sequences=False),
        DenseSpec(1, 6, 4, Activation("relu")),
    )
    recurrent = 2 * 3 * 3 * (2 + 3) * 2 * 35
    assert flops(layers, size) == recurrent + 4 * 6 * 2 * 5


def test_flops_of_a_projection_and_of_a_dense_layer_after_flatten():
    size = GridSize(3, 5, 7, 2)
    layers = (
        RecurrentSpec(0, 2, (LSTM(hidden_size=3, projection_size=2),)),
        FlattenSpec(1, 2, 7),
        DenseSpec(2, 14, 4, None),
    )
    step = 4 * 3 * (2 + 2) + 2 * 3
    assert flops(layers, size) == step * 2 * 35 + 14 * 4 * 2 * 5


def test_layers_in_words():
    layers = (RecurrentSpec(0, 2, (GRU(hidden_size=3),) * 2), DenseSpec(1, 6, 4, None))
    assert describe(layers) == "gru 2 → 6, dense 6 → 4"


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
