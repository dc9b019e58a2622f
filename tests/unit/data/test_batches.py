"""Sequences by number: the bits that batches give, from the file and from memory alike."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from data_files import LAYOUTS, window_starts, write_vlen

from lstm_cli.data import DataOptions, Window, open_data
from lstm_cli.errors import UsageError

ORDERS = {
    "shuffled": [8, 2, 5, 10, 0, 3],
    "neighbors": [3, 4, 5, 6],
    "one": [7],
    "empty sequence alone": [2],
    "falling": [10, 9, 8],
    "twice": [4, 1, 4, 9, 1],
    "gaps": [0, 1, 4, 5, 9],
}


def all_rows(data, dtype, per_step=None):
    """Every sequence as its own padded batch, by the way that `run` reads."""
    result = []
    for batch in data.batches(1, dtype, per_step=per_step):
        T = batch.x.shape[1] if batch.lengths is None else int(batch.lengths[0])
        y = batch.targets
        result.append((batch.x[0, :T], None if y is None else y[0]))
    return result


def check(batch, rows, numbers, per_step=False):
    lengths = [len(rows[n][0]) for n in numbers]
    T = max(1, *lengths)
    assert batch.x.shape[:2] == (len(numbers), T)
    if batch.lengths is None:
        assert lengths == [T] * len(numbers)
    else:
        assert batch.lengths.tolist() == lengths
    for row, (n, length) in enumerate(zip(numbers, lengths, strict=True)):
        assert batch.x[row, :length].tobytes() == rows[n][0].tobytes()
        assert not batch.x[row, length:].any(), "padding is 0"
        if batch.targets is not None and per_step:
            assert batch.targets[row, :length].tobytes() == rows[n][1][:length].tobytes()
            assert not batch.targets[row, length:].any(), "padding is 0"
        elif batch.targets is not None:
            assert batch.targets[row].tobytes() == rows[n][1].tobytes()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("order", ORDERS)
def test_rows_stand_in_the_order_asked_for(make, truth, layout, order, source):
    path, numbers = make(layout), ORDERS[order]
    with open_data([path]) as data:
        assert data.fits_in_memory == (source == "kept")
        batch = data.take(np.array(numbers), np.float32)
        assert batch.x.dtype == np.float32
        assert batch.first == numbers[0]
        check(batch, all_rows(data, np.float32), numbers)
    for row, n in enumerate(numbers):
        sequence = truth.sequences[n]
        np.testing.assert_array_equal(batch.x[row, : len(sequence)], sequence.astype(np.float32))


@pytest.mark.parametrize("layout", ["dense", "concatenated", "vlen", "groups"])
@pytest.mark.parametrize("kind", ["classes", "values", "steps", "class steps"])
def test_targets_follow_their_sequences(make, truth, layout, kind, source):
    path, numbers = make(layout), ORDERS["twice"]
    steps = [np.round(9 * s[:, 0]).astype(int) for s in truth.steps]
    targets = {"classes": truth.classes, "values": truth.values, "steps": truth.steps}
    targets = list(targets.get(kind, steps))
    by_step = "step" in kind
    with h5py.File(path, "a") as file:
        if layout == "groups":
            for n, value in enumerate(targets):
                file[f"seq{n}/targets"] = value
        elif not by_step:
            file["targets"] = np.array(targets)
        elif layout == "concatenated":
            file["targets"] = np.concatenate(targets)
        elif layout == "dense":
            padded = np.full((11, 9, *targets[0].shape[1:]), 7, targets[0].dtype)
            for row, value in zip(padded, targets, strict=True):
                row[: len(value)] = value
            file["targets"] = padded
    if by_step and layout == "vlen":
        write_vlen(path, "targets", targets, targets[0].dtype.type)
    with open_data([path]) as data:
        for order in (numbers, ORDERS["neighbors"]):
            batch = data.take(np.array(order), np.float32, per_step=by_step)
            rows = all_rows(data, np.float32, by_step)
            assert batch.targets.dtype == (np.int64 if "class" in kind else np.float64), "as stored"
            check(batch, rows, order, by_step)
            for row, n in enumerate(order):
                own = batch.targets[row, : len(targets[n])] if by_step else batch.targets[row]
                np.testing.assert_array_equal(own, np.asarray(targets[n], own.dtype))


def test_a_shape_that_allows_both_follows_per_step(write, source):
    rng = np.random.default_rng(1)
    y = rng.normal(size=(5, 4))
    path = write(inputs=rng.normal(size=(5, 4, 3)), targets=y, lengths=np.array([4, 1, 0, 3, 4]))
    with open_data([path]) as data:
        numbers = np.array([3, 1, 4])
        np.testing.assert_array_equal(data.take(numbers, np.float64).targets, y[[3, 1, 4]])
        by_step = data.take(numbers, np.float64, per_step=True).targets
        expected = y[[3, 1, 4]] * (np.arange(4) < np.array([3, 1, 4])[:, None])
        np.testing.assert_array_equal(by_step, expected)
        short = data.take(np.array([1]), np.float64, per_step=True)
        assert short.targets.shape == (1, 1)


@pytest.mark.parametrize("window", [Window(7, 3, 2), Window(3, 5, 1), Window(4, 4, 0)])
@pytest.mark.parametrize("own_targets", [True, False])
def test_windows_of_several_series(write, window, own_targets, source):
    rng = np.random.default_rng(2)
    paths, windows, values, has_target = [], [], [], []
    for k, T in enumerate((29, 41)):
        series, y = rng.normal(size=(T, 2)), rng.normal(size=T)
        more = {"targets": y} if own_targets else {}
        paths.append(write(f"{k}.h5", inputs=series, **more))
        for start in window_starts(T, window.length, window.stride):
            windows.append(series[start : start + window.length])
            last = start + window.length - 1 + window.horizon
            own = y if own_targets else series
            has_target.append(last < T)
            values.append(own[last] if last < T else 0 * own[0])
    with open_data(paths, DataOptions(layout="series", window=window)) as data:
        assert data.count == len(windows)
        numbers = rng.permutation(data.count)
        batch = data.take(numbers, np.float64)
    assert batch.lengths is None
    np.testing.assert_array_equal(batch.x, np.array(windows)[numbers])
    np.testing.assert_array_equal(batch.targets, np.array(values)[numbers])
    found = np.ones(len(has_target), bool) if batch.has_target is None else batch.has_target
    np.testing.assert_array_equal(found, np.array(has_target)[numbers])


def test_files_whose_steps_tell_what_their_targets_are(write, source):
    rng = np.random.default_rng(5)
    paths = [
        write(f"{T}.h5", inputs=rng.normal(size=(3, T, 2)), targets=rng.normal(size=(3, T)))
        for T in (4, 6)
    ]
    with open_data(paths) as data:
        numbers = np.array([4, 1, 2])
        check(data.take(numbers, np.float64), all_rows(data, np.float64), numbers.tolist(), True)


@pytest.mark.parametrize("longest", [(6, 4), (4, 6)])
def test_files_padded_to_different_steps(write, source, longest):
    rng = np.random.default_rng(3)
    stored = [rng.normal(size=(3, T, 2)) for T in longest]
    paths = [write(f"{k}.h5", inputs=x, targets=x[:, 0]) for k, x in enumerate(stored)]
    with open_data(paths) as data:
        numbers = np.array([5, 0, 4, 2])
        batch = data.take(numbers, np.float64)
        assert batch.file == 1
        check(batch, all_rows(data, np.float64), numbers.tolist())
        assert batch.lengths.tolist() == [longest[1], longest[0], longest[1], longest[0]]


def test_the_same_bytes_are_read_once_only(make, monkeypatch):
    with open_data([make("concatenated")]) as data:
        first = data.take(np.array([1, 0]), np.float32)
        data.close()
        again = data.take(np.array([1, 0]), np.float32)
        assert again.x.tobytes() == first.x.tobytes()
        assert again.nbytes == 0


def test_another_dtype_is_read_anew(make, truth):
    with open_data([make("concatenated")]) as data:
        data.take(np.array([1]), np.float32)
        batch = data.take(np.array([1]), np.float64)
        np.testing.assert_array_equal(batch.x[0], truth.sequences[1])


def test_a_batch_may_be_changed(make, source):
    with open_data([make("dense")]) as data:
        for numbers in ([1], [0, 1], [1, 0]):
            before = data.take(np.array(numbers), np.float32).x
            copy = before.copy()
            before[...] = 77
            np.testing.assert_array_equal(data.take(np.array(numbers), np.float32).x, copy)


@pytest.mark.parametrize("numbers", [[11], [-1], [], [[1, 2]]])
def test_sequences_that_are_not_there(make, numbers):
    with open_data([make("dense")]) as data, pytest.raises(UsageError, match="0 to 10"):
        data.take(np.array(numbers, np.int64), np.float32)
