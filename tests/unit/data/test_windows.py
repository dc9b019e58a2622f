"""Windows of every layout against slices made by hand: none sees two sequences."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from data_files import LAYOUTS, window_starts, write_vlen

from lstm_cli.data import (
    DataOptions,
    ResultWriter,
    Window,
    batches,
    hold_out,
    open_data,
    require_same_form,
    windows,
)
from lstm_cli.errors import DataError

WINDOWS = [Window(3), Window(2, 3, 0), Window(1, 4, 2), Window(4, 2, 0, 2), Window(3, 1, 1, 3)]


@pytest.fixture(params=["kept", "apart", "together"])
def source(request, monkeypatch):
    """Data that stay in memory; data that are read for every batch, a sequence or all at a time."""
    if request.param != "kept":
        monkeypatch.setattr(batches, "MEMORY_BYTES", 0)
        monkeypatch.setattr(
            windows, "MIN_BLOCK_SEQUENCES", 1 if request.param == "together" else 1 << 30
        )
        monkeypatch.setattr(windows, "MAX_PADDING_RATIO", 1 << 30)


def with_steps(path, layout, steps):
    """Targets that are one per step, in the layout of the inputs."""
    if layout == "vlen":
        write_vlen(path, "targets", steps, steps[0].dtype.type)
        return
    with h5py.File(path, "a") as file:
        if layout in ("dense", "mask"):
            padded = np.full((len(steps), 9, *steps[0].shape[1:]), 77, steps[0].dtype)
            for row, step in zip(padded, steps, strict=True):
                row[: len(step)] = step
            file["targets"] = padded
        elif layout == "groups":
            for n, step in enumerate(steps):
                file[f"seq{n}/targets"] = step
        else:
            file["targets"] = np.concatenate(steps)


def by_hand(sequences, targets, window):
    """Inputs, targets (0 where they do not exist), and whether they exist, of every window."""
    x, y, has_target = [], [], []
    for sequence, values in zip(sequences, targets, strict=True):
        for start in window_starts(len(sequence), window.length, window.stride):
            x.append(sequence[start : start + window.length])
            at = start + window.length - 1 + window.horizon
            has_target.append(at + window.predict <= len(sequence))
            if window.predict > 1:
                found = values[at : at + window.predict].ravel()
            else:
                found = values[at] if has_target[-1] else None
            y.append(found if has_target[-1] else 0)
    shape = np.shape(next(one for one, there in zip(y, has_target, strict=True) if there))
    return np.array(x), np.array([np.broadcast_to(one, shape) for one in y]), np.array(has_target)


def check(data, x, y, has_target, size=4):
    assert data.count == len(x)
    np.testing.assert_array_equal(data.numbers, np.flatnonzero(has_target))
    batches = list(data.batches(size, np.float64))
    assert all(batch.lengths is None for batch in batches)
    np.testing.assert_array_equal(np.concatenate([b.x for b in batches]), x)
    np.testing.assert_array_equal(np.concatenate([b.targets for b in batches]), y)
    result = [np.ones(b.count, bool) if b.has_target is None else b.has_target for b in batches]
    np.testing.assert_array_equal(np.concatenate(result), has_target)
    numbers = np.random.default_rng(3).permutation(len(x))
    taken = data.take(numbers, np.float64)
    np.testing.assert_array_equal(taken.x, x[numbers])
    np.testing.assert_array_equal(taken.targets, y[numbers])
    result = np.ones(len(x), bool) if taken.has_target is None else taken.has_target
    np.testing.assert_array_equal(result, has_target[numbers])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("width", [None, 2])
def test_targets_a_step(make, truth, layout, width, source):
    steps = truth.steps if width else [s[:, 0] for s in truth.steps]
    path = make(layout)
    with_steps(path, layout, steps)
    for window in WINDOWS:
        with open_data([path], DataOptions(window=window)) as data:
            check(data, *by_hand(truth.sequences, steps, window))
            assert data.targets.kind == "values"
            assert data.targets.per_step is False


@pytest.mark.parametrize("layout", LAYOUTS)
def test_classes_a_step(make, truth, layout):
    steps = [np.round(9 * s[:, 0]).astype("i2") for s in truth.steps]
    path = make(layout)
    with_steps(path, layout, steps)
    with open_data([path], DataOptions(window=Window(2, 1, 0))) as data:
        check(data, *by_hand(truth.sequences, steps, Window(2, 1, 0)))
        assert data.targets.kind == "class"
        assert data.take(np.array([0]), np.float32).targets.dtype == np.int64


@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_are_the_targets_by_default(make, truth, layout):
    path = make(layout)
    for window in WINDOWS:
        with open_data([path], DataOptions(window=window)) as data:
            check(data, *by_hand(truth.sequences, truth.sequences, window))
            assert any("predicts the inputs themselves" in note for note in data.notes)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("forecast", [False, True])
def test_targets_keep_their_digits(make, truth, layout, forecast, source):
    """Inputs may be read in a smaller type than the targets are stored in."""
    steps = truth.sequences if forecast else truth.steps
    path = make(layout)
    if not forecast:
        with_steps(path, layout, steps)
    for window in WINDOWS:
        _, y, _ = by_hand(truth.sequences, steps, window)
        with open_data([path], DataOptions(window=window)) as data:
            batches = list(data.batches(4, np.float32))
            np.testing.assert_array_equal(np.concatenate([b.targets for b in batches]), y)
            np.testing.assert_array_equal(data.take(np.arange(len(y)), np.float32).targets, y)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_target_a_sequence_is_that_of_each_window(make, truth, layout, source):
    path = make(layout)
    with h5py.File(path, "a") as file:
        for n, values in enumerate(truth.values) if layout == "groups" else ():
            file[f"seq{n}/targets"] = values
        if layout != "groups":
            file["targets"] = truth.values
    window = Window(2, 2, 5)
    counts = [len(window_starts(len(s), 2, 2)) for s in truth.sequences]
    x, _, known = by_hand(truth.sequences, truth.sequences, Window(2, 2, 0))
    with open_data([path], DataOptions(window=window)) as data:
        check(data, x, np.repeat(truth.values, counts, axis=0), np.ones(len(known), bool))
        assert any("each window has the target of its sequence" in note for note in data.notes)
    with pytest.raises(DataError, match="predict is 2, but the targets are one per seq") as error:
        open_data([path], DataOptions(window=Window(2, 2, 5, 2)))
    assert error.value.hints == ("--set data.window.predict=1",)


def test_sequences_that_are_too_short_are_said(make, truth):
    with open_data([make("groups")], DataOptions(window=Window(6))) as data:
        assert data.count == 2 + 1 + 2 + 3
        (note, _) = data.notes
    assert "7 of 11 sequences" in note
    assert "the first is sequence 0 (seq0), of 3 steps" in note


def test_a_file_without_a_window_beside_one_with(write):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 2))
    paths = [write("short.h5", inputs=x[:3]), write("long.h5", inputs=x)]
    with open_data(paths, DataOptions(window=Window(4))) as data:
        check(data, *by_hand([x], [x], Window(4)))
        assert data.place(0) == f"{paths[1]}:/inputs"
    with open_data(paths[::-1], DataOptions(window=Window(4))) as data:
        check(data, *by_hand([x], [x], Window(4)))


@pytest.mark.parametrize("layout", ["dense", "concatenated", "vlen", "groups"])
def test_no_sequence_of_training_is_held_out(make, truth, layout):
    """All windows of a sequence are on one side; windows without targets are on none."""
    with open_data([make(layout)], DataOptions(window=Window(2))) as data:
        choices = set()
        for seed in range(20):
            train, validation = hold_out(data, 0.4, seed)
            of = data.files.sequences(np.arange(data.count))
            assert not set(of[train]) & set(of[validation])
            np.testing.assert_array_equal(np.sort([*train, *validation]), data.numbers)
            # Sequences of 3 steps and more have a window with a target: 8 of 11.
            assert len(set(of[validation])) == round(0.4 * 8)
            choices |= {tuple(set(of[validation]))}
        assert len(choices) > 5


def test_classes_of_sequences_are_held_out_in_proportion(write):
    y = np.array([0] * 8 + [1] * 4)
    path = write(inputs=np.zeros((12, 5, 1)), targets=y)
    with open_data([path], DataOptions(window=Window(3))) as data:
        for seed in range(5):
            _, held = hold_out(data, 0.25, seed)
            of = np.unique(data.files.sequences(held))
            assert np.bincount(y[of]).tolist() == [2, 1]


def test_one_sequence_is_split_in_time(write):
    path = write(inputs=np.arange(30.0).reshape(1, 30, 1))
    with open_data([path], DataOptions(window=Window(4, 1, 2))) as data:
        train, held = hold_out(data, 0.2, 0)
        assert held.tolist() == list(range(20, 25))
        assert train.max() + 3 + 2 == 19, "the last target stands before the first window held out"


@pytest.mark.parametrize("layout", ["vlen", "groups", "concatenated"])
def test_results_say_where_windows_were_cut(make, truth, layout, tmp_path):
    out = tmp_path / "o.h5"
    window, path = Window(3, 2), make(layout)
    with open_data([path, path], DataOptions(window=window)) as data:
        more = {"features": 2, "per_step": True, "dtype": "f4", "attributes": {}}
        with ResultWriter(str(out), data, **more) as writer:
            for batch in data.batches(4, np.float32):
                writer.write(batch, batch.x[:, :, :2])
    starts = [
        (n, s) for n, q in enumerate(truth.sequences) for s in window_starts(len(q), 3, 2)
    ] * 2
    x = [truth.sequences[n][s : s + 3, :2] for n, s in starts]
    with h5py.File(out) as file:
        np.testing.assert_array_equal(file["outputs"], np.array(x, np.float32))
        np.testing.assert_array_equal(file["source/sequence"], [n for n, _ in starts])
        np.testing.assert_array_equal(file["source/step"], [s for _, s in starts])
        assert file["source/file"].asstr()[:].tolist() == [path] * len(starts)
        assert ("source/name" in file) is (layout == "groups")
        if layout == "groups":
            assert file["source/name"].asstr()[0] == "seq0"


def test_places_are_those_of_the_file(make, truth):
    path = make("groups")
    with_steps(path, "groups", truth.steps)
    with open_data([path], DataOptions(window=Window(3, 2, 1, 2))) as data:
        # Windows of seq0, seq1 (0, 2, 4), ...: window 2 begins at step 2 of seq1.
        assert data.sequence(2) == "window 2 of sequence 1 (seq1)"
        assert data.input_location(2, 1, 4) == (
            f"{path}:/seq1/inputs, window 2 of sequence 1 (seq1), step 3, feature 4"
        )
        assert data.target_location(2, None, 3) == (
            f"{path}:/seq1/targets, window 2 of sequence 1 (seq1), step 6, value 1"
        )


@pytest.mark.parametrize("other", ["none", "sequence"])
def test_targets_of_another_kind_are_not_mixed(write, other):
    """Targets of one shape: the inputs themselves, one per step, one per sequence."""
    x, y = np.zeros((9, 1)), np.ones((9, 1))
    paths = [write("a.h5", g__inputs=x, g__targets=y)]
    more = {} if other == "none" else {"g__targets": y[0]}
    paths.append(write("b.h5", g__inputs=x, **more))
    options = DataOptions(window=Window(3))
    says = "the inputs themselves" if other == "none" else "one per sequence"
    for order in (paths, paths[::-1]):
        with pytest.raises(DataError, match=f"differ in targets.*{says}"):
            open_data(order, options)
        with open_data(order[:1], options) as data, open_data(order[1:], options) as validation:
            require_same_form(data, data, False)
            with pytest.raises(DataError, match=f"differ in targets.*{says}"):
                require_same_form(data, validation, False)
