"""What is held out: the share asked for, each class in proportion, nothing of it in training."""

from __future__ import annotations

import numpy as np
import pytest

from lstm_cli.data import DataOptions, Window, hold_out, open_data, require_same_form
from lstm_cli.errors import DataError


def split_of(path, share, seed=0, options=None, **more):
    with open_data([path], options) as data:
        return hold_out(data, share, seed, **more)


def check_sides(train, held, count):
    assert train.dtype == held.dtype == np.int64
    np.testing.assert_array_equal(np.sort(np.concatenate([train, held])), np.arange(count))
    for side in (train, held):
        np.testing.assert_array_equal(side, np.sort(side))


@pytest.fixture
def values(write):
    return write(inputs=np.zeros((61, 2, 1)), targets=np.arange(61.0))


def test_a_share_of_the_sequences(values):
    train, held = split_of(values, 0.2)
    check_sides(train, held, 61)
    assert len(held) == 12
    assert np.ptp(held) > 20, "drawn, not cut off"


def test_drawn_by_the_seed(values):
    same = [split_of(values, 0.2, seed=5)[1] for _ in range(2)]
    np.testing.assert_array_equal(*same)
    assert not np.array_equal(same[0], split_of(values, 0.2, seed=6)[1])


def test_every_sequence_is_held_out_as_often(values):
    with open_data([values]) as data:
        counts = sum(
            np.bincount(hold_out(data, 0.25, seed)[1], minlength=61) for seed in range(800)
        )
    assert abs(counts - 200 * 15 / 15.25).max() < 6 * np.sqrt(800 * 0.25 * 0.75)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.3, 0.77])
def test_each_class_in_proportion(write, share):
    counts = {0: 40, 1: 7, 3: 23, 6: 2}
    y = np.random.default_rng(8).permutation(np.repeat(list(counts), list(counts.values())))
    path = write(inputs=np.zeros((72, 2, 1)), targets=y)
    drawn = set()
    for seed in range(5):
        train, held = split_of(path, share, seed)
        check_sides(train, held, 72)
        assert len(held) == round(share * 72)
        for kind, count in counts.items():
            assert abs((y[held] == kind).sum() - share * count) < 1, kind
        drawn.add(tuple(held))
    assert len(drawn) == 5


def test_a_class_of_one_stays_in_training(write):
    y = np.array([0] * 2 + [1] + [0] * 3)
    path = write(inputs=np.zeros((6, 2, 1)), targets=y)
    for seed in range(10):
        train, held = split_of(path, 0.6, seed)
        assert sorted(y[train]) == [0, 1]
        assert len(held) == 4


def test_integers_that_are_no_classes_are_not_stratified(write):
    y = np.repeat(np.arange(10), 10)
    path = write(inputs=np.zeros((100, 2, 1)), targets=y)
    by_class = [np.bincount(y[split_of(path, 0.2, seed)[1]]).std() for seed in range(5)]
    assert by_class == [0] * 5
    plain = [np.bincount(y[split_of(path, 0.2, seed, classes=False)[1]]).std() for seed in range(5)]
    assert max(plain) > 0


def test_classes_a_step_are_drawn_by_sequence(write):
    y = np.random.default_rng(0).integers(0, 3, (20, 4))
    train, held = split_of(write(inputs=np.zeros((20, 4, 1)), targets=y), 0.25)
    check_sides(train, held, 20)
    assert len(held) == 5


@pytest.mark.parametrize(
    "window", [Window(7, 3, 2), Window(5, 1, 1), Window(3, 5, 1), Window(4, 4, 0), Window(2, 6, 9)]
)
@pytest.mark.parametrize("share", [0.15, 0.4])
def test_nothing_of_the_last_windows_is_seen(write, window, share):
    path = write(inputs=np.arange(120.0)[:, None])
    options = DataOptions(layout="series", window=window)
    with open_data([path], options) as data:
        train, held = hold_out(data, share, 0)
        N = len(data.numbers)
        np.testing.assert_array_equal(data.numbers, np.arange(N))
        np.testing.assert_array_equal(held, np.arange(N - round(share * N), N))

        def seen(numbers):
            batch = data.take(numbers, np.float64)
            return set(batch.x.ravel()) | set(batch.targets.ravel())

        first = data.take(held[:1], np.float64).x.min()
        assert max(seen(train)) < first
        assert not seen(train) & seen(held)
        np.testing.assert_array_equal(train, np.arange(len(train)))
        if len(train) < held[0]:
            left_out = np.arange(len(train), len(train) + 1)
            assert max(seen(left_out)) >= first, "no window is left out without need"


def test_the_last_windows_of_several_series(write):
    paths = [write(f"{k}.h5", inputs=np.arange(30.0)[:, None] + 100 * k) for k in range(3)]
    options = DataOptions(layout="series", window=Window(4))
    with open_data(paths, options) as data:
        train, held = hold_out(data, 0.5, 0)
        # Of 27 windows a file, the last has no target.
        assert data.count == 81
        assert held.tolist() == [*range(40, 53), *range(54, 80)]
        assert train.tolist() == [*range(26), *range(27, 36)], "4 share a step with window 40"
        train, held = hold_out(data, 1 / 3, 0)
        assert held.tolist() == list(range(54, 80))
        assert train.tolist() == [*range(26), *range(27, 53)], "files share nothing"


@pytest.mark.parametrize(
    ("count", "share", "hint"),
    [
        (20, 0.01, "train.validation=0.05"),
        (20, 0.99, "train.validation=0.95"),
        (1, 0.5, "FILE.h5:/group"),
    ],
)
def test_a_side_without_a_sequence(write, count, share, hint):
    path = write(inputs=np.zeros((count, 2, 1)))
    with pytest.raises(DataError, match="at least one on either side") as error:
        split_of(path, share)
    assert hint in error.value.hints[0]
    assert path in str(error.value)
    if count > 1:
        split_of(path, float(error.value.hints[0].rpartition("=")[2]))


def test_windows_that_all_overlap(write):
    path = write(inputs=np.zeros((20, 1)))
    with pytest.raises(DataError, match="shares a step"):
        split_of(path, 0.5, options=DataOptions(layout="series", window=Window(12)))


def pair(write, **other):
    own = {"inputs": np.zeros((4, 3, 2)), "targets": np.zeros((4, 5))}
    one, two = write("one.h5", **own), write("two.h5", **(own | other))
    with open_data([one]) as data, open_data([two]) as validation:
        require_same_form(data, validation)


def test_another_dataset_that_fits(write):
    pair(write, inputs=np.zeros((9, 8, 2)), targets=np.zeros((9, 5)))


@pytest.mark.parametrize(
    ("side", "other"),
    [
        ("number of features: 2 in .*one.h5.*, 4 in .*two.h5", {"inputs": np.zeros((4, 3, 4))}),
        (r"targets: \(5,\) each in .*one.h5.*, \(6,\) each", {"targets": np.zeros((4, 6))}),
        ("targets: .* one number each", {"targets": np.zeros(4)}),
        ("one a sequence in .*, one a step in", {"targets": np.zeros((4, 3, 5))}),
    ],
)
def test_another_dataset_that_does_not_fit(write, side, other):
    with pytest.raises(DataError, match=side) as error:
        pair(write, **other)
    assert len(error.value.problems[0].where) == 2


def test_classes_in_another_order(write):
    names = [write(f"{order}.h5", {"classes": list(order)}, inputs=np.zeros((2, 2, 1)),
                   targets=np.array([0, 1])) for order in ("ab", "ba")]  # fmt: skip
    with open_data(names[:1]) as data, open_data(names[1:]) as validation:
        require_same_form(data, data)
        with pytest.raises(DataError, match=r"classes: a, b in .* b, a in"):
            require_same_form(data, validation)
