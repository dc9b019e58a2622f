"""Statistics of the training part, against NumPy on the sequences themselves."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from data_files import LAYOUTS

from lstm_cli.data import (
    DataOptions,
    Window,
    class_counts,
    feature_statistics,
    open_data,
    statistics,
    target_statistics,
)
from lstm_cli.errors import DataError


@pytest.fixture(params=[3, 1024])
def piece(request, monkeypatch):
    """Data that are read in many pieces, and in one."""
    monkeypatch.setattr(statistics, "PIECE_SEQUENCES", request.param)


def check(result, rows, rtol=1e-12):
    assert result.count == len(rows)
    np.testing.assert_allclose(result.mean, rows.mean(0), rtol=rtol)
    np.testing.assert_allclose(result.std, rows.std(0), rtol=rtol)
    np.testing.assert_array_equal(result.minimum, rows.min(0))
    np.testing.assert_array_equal(result.maximum, rows.max(0))


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_of_every_layout(make, truth, layout):
    with open_data([make(layout)]) as data:
        check(feature_statistics(data), truth.flat)
        part = np.array([9, 0, 2, 4])
        rows = np.concatenate([truth.sequences[n] for n in part])
        check(feature_statistics(data, part), rows)


@pytest.mark.usefixtures("piece")
def test_a_large_offset_leaves_the_deviation(write):
    rng = np.random.default_rng(3)
    lengths = rng.integers(0, 9, 200)
    small = rng.normal(size=(lengths.sum(), 3)) * [1e-3, 1.0, 1e3]
    rows = small + 1e6
    exact = (rows.astype(np.longdouble) - np.longdouble(1e6)).std(0)
    with open_data([write(inputs=rows, lengths=lengths)]) as data:
        found = feature_statistics(data)
    np.testing.assert_allclose(found.std, exact.astype(float), rtol=1e-11)
    np.testing.assert_allclose(found.mean - 1e6, small.mean(0), rtol=0, atol=1e-9)


@pytest.mark.usefixtures("piece")
def test_a_constant_has_no_deviation(write):
    x = np.random.default_rng(0).normal(size=(50, 7, 2))
    x[..., 0] = 0.1
    with open_data([write(inputs=x)]) as data:
        found = feature_statistics(data)
    assert (found.mean[0], found.std[0]) == (0.1, 0)
    assert found.std[1] > 0.9


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize("by_step", [False, True])
def test_targets(make, truth, by_step):
    path = make("concatenated")
    with h5py.File(path, "a") as file:
        file["targets"] = np.concatenate(truth.steps) if by_step else truth.values
    part = np.array([1, 2, 8, 5])
    counted = [n for n in part if len(truth.sequences[n])]
    rows = np.concatenate([truth.steps[n] for n in part]) if by_step else truth.values[counted]
    with open_data([path]) as data:
        check(target_statistics(data, part), rows)


def test_targets_whose_shape_allows_both(write):
    y = np.random.default_rng(1).normal(size=(5, 4))
    with open_data([write(inputs=np.zeros((5, 4, 3)), targets=y)]) as data:
        check(target_statistics(data, per_step=False), y)
        check(target_statistics(data, per_step=True), y.reshape(-1, 1))


def test_no_targets(make):
    with open_data([make("dense")]) as data:
        assert target_statistics(data) is None
        with pytest.raises(DataError, match="no classes"):
            class_counts(data, classes=3)


@pytest.mark.usefixtures("piece")
def test_classes_are_counted(make, truth):
    path = make("concatenated")
    steps = np.random.default_rng(2).integers(0, 5, truth.lengths.sum())
    with h5py.File(path, "a") as file:
        file["targets"], file["steps"] = truth.classes, steps
    counted = truth.lengths > 0
    with open_data([path]) as data:
        expected = np.bincount(truth.classes[counted], minlength=6)
        np.testing.assert_array_equal(class_counts(data, classes=6), expected)
        part = np.array([10, 2, 3])
        expected = np.bincount(truth.classes[[3, 10]], minlength=6)
        np.testing.assert_array_equal(class_counts(data, part, classes=6), expected)
        with pytest.raises(DataError, match=r"a class from 0 to 1\n.*sequence \d+, value 0"):
            class_counts(data, classes=2)
    with open_data([path], DataOptions(targets="steps")) as data:
        found = class_counts(data, classes=5)
    np.testing.assert_array_equal(found, np.bincount(steps, minlength=5))


@pytest.mark.usefixtures("piece")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_found(write, bad):
    rng = np.random.default_rng(0)
    paths = []
    for k in range(2):
        x, y = rng.normal(size=(6, 5, 4)), rng.normal(size=(6, 5, 2))
        x[4, 3:], y[4, 3:] = np.nan, np.nan  # padding
        if k:
            x[4, 2, 1], y[5, 3, 1] = bad, bad
        lengths = np.array([5, 5, 0, 1, 3, 4])
        paths.append(write(f"{k}.h5", inputs=x, targets=y, lengths=lengths))
    with open_data(paths) as data:
        with pytest.raises(DataError) as error:
            feature_statistics(data)
        assert error.value.problems[0].where == (f"{paths[1]}:/inputs",)
        assert f"{bad:g} in sequence 4, step 2, feature 1" in str(error.value)
        with pytest.raises(DataError) as error:
            target_statistics(data)
        assert error.value.problems[0].where == (f"{paths[1]}:/targets",)
        assert f"{bad:g} in sequence 5, step 3, value 1" in str(error.value)
        others = np.delete(np.arange(12), [10, 11])
        assert feature_statistics(data, others).count == 18 + 18 - 7
        assert target_statistics(data, others).count == 29


def test_the_name_of_a_sequence_is_told(make):
    path = make("groups")
    with h5py.File(path, "a") as file:
        file["seq7/inputs"][4, 3] = np.nan
    with open_data([path]) as data, pytest.raises(DataError, match=r"7 \(seq7\), step 4, feature"):
        feature_statistics(data)


def test_no_step_at_all(make):
    with open_data([make("concatenated")]) as data, pytest.raises(DataError, match="no step"):
        feature_statistics(data, np.array([2]))


def test_windows(write):
    series = np.random.default_rng(0).normal(size=(40, 3))
    options = DataOptions(layout="series", window=Window(6, 2))
    with open_data([write(inputs=series)], options) as data:
        found = feature_statistics(data, np.arange(5))
        rows = np.concatenate([series[2 * n : 2 * n + 6] for n in range(5)])
        check(found, rows)
        check(target_statistics(data, np.arange(5)), series[6:16:2])
