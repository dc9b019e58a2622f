"""Sequences for training: what is held out, and the order of an epoch."""

from __future__ import annotations

import numpy as np
import pytest

from lstm_cli.data import (
    DataOptions,
    Sampler,
    Window,
    batches,
    hold_out,
    open_data,
    require_same_form,
)
from lstm_cli.data.sampling import BLOCK_BATCHES
from lstm_cli.errors import DataError, UsageError


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
    draw = set()
    for seed in range(5):
        train, validation = split_of(path, share, seed)
        check_sides(train, validation, 72)
        assert len(validation) == round(share * 72)
        for kind, count in counts.items():
            assert abs((y[validation] == kind).sum() - share * count) < 1, kind
        draw.add(tuple(validation))
    assert len(draw) == 5


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
        train, validation = hold_out(data, share, 0)
        N = len(data.numbers)
        np.testing.assert_array_equal(data.numbers, np.arange(N))
        np.testing.assert_array_equal(validation, np.arange(N - round(share * N), N))

        def steps_used(numbers):
            batch = data.take(numbers, np.float64)
            return set(batch.x.ravel()) | set(batch.targets.ravel())

        first = data.take(validation[:1], np.float64).x.min()
        assert max(steps_used(train)) < first
        assert not steps_used(train) & steps_used(validation)
        np.testing.assert_array_equal(train, np.arange(len(train)))
        if len(train) < validation[0]:
            left_out = np.arange(len(train), len(train) + 1)
            assert max(steps_used(left_out)) >= first, "no window is left out without need"


def test_the_last_windows_of_several_series(write):
    paths = [write(f"{k}.h5", inputs=np.arange(30.0)[:, None] + 100 * k) for k in range(3)]
    options = DataOptions(layout="series", window=Window(4))
    with open_data(paths, options) as data:
        train, validation = hold_out(data, 0.5, 0)
        # Of 27 windows a file, the last has no target.
        assert data.count == 81
        assert validation.tolist() == [*range(40, 53), *range(54, 80)]
        assert train.tolist() == [*range(26), *range(27, 36)], "4 share a step with window 40"
        train, validation = hold_out(data, 1 / 3, 0)
        assert validation.tolist() == list(range(54, 80))
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
    with pytest.raises(DataError, match="at least one for training and one") as error:
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
        ("one per sequence in .*, one per step in", {"targets": np.zeros((4, 3, 5))}),
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


COUNT = 743


@pytest.fixture
def lengths():
    return np.random.default_rng(4).integers(0, 23, COUNT)


@pytest.fixture
def data(write, lengths):
    rows = np.arange(int(lengths.sum()), dtype=float)[:, None]
    with open_data([write(inputs=rows, lengths=lengths)]) as data:
        yield data


def flat(order):
    return np.concatenate(order)


@pytest.mark.parametrize("size", [1, 3, 32, 800])
def test_every_sequence_once_an_epoch(data, source, size):
    sampler = Sampler(data, size, seed=3)
    for epoch in range(3):
        order = sampler.order(epoch)
        np.testing.assert_array_equal(np.sort(flat(order)), np.arange(COUNT))
        assert all(batch.dtype == np.int64 for batch in order)
        sizes = sorted((len(batch) for batch in order), reverse=True)
        assert sizes[:-1] == [size] * (len(order) - 1)
        assert len(order) == sampler.batches == -(-COUNT // size)


def test_order_is_a_function_of_seed_and_epoch(data, source):
    def order(seed, epoch):
        return Sampler(data, 3, seed=seed).order(epoch)

    used = Sampler(data, 3, seed=1)
    for epoch in (0, 5, 2):
        for one, other in zip(used.order(epoch), order(1, epoch), strict=True):
            np.testing.assert_array_equal(one, other)
    assert (flat(order(1, 0)) != flat(order(1, 1))).mean() > 0.9
    assert (flat(order(1, 0)) != flat(order(2, 0))).mean() > 0.9
    assert Sampler(data, 3, seed=2**63 - 1).order(2**40)


def test_batches_hold_sequences_of_like_length(data, lengths):
    spread = [np.ptp(lengths[batch]) for batch in Sampler(data, 8, seed=1).order(0)]
    assert np.mean(spread) < 3, "sorted within blocks of 256"
    means = [lengths[batch].mean() for batch in Sampler(data, 8, seed=1).order(0)]
    first = means[:BLOCK_BATCHES]
    assert first not in (sorted(first), sorted(first, reverse=True)), "batches are shuffled"


def test_who_shares_a_batch_changes(write):
    path = write(inputs=np.zeros((400, 2, 1)), targets=np.zeros(400))
    with open_data([path]) as data:
        mates = [set(batch) for e in range(2) for batch in Sampler(data, 4).order(e) if 7 in batch]
    assert len(mates) == 2
    assert len(mates[0] & mates[1]) < 4


def test_blocks_of_neighbors_where_data_are_streamed(data, monkeypatch):
    def widest(batches):
        return max(int(np.ptp(batch)) for batch in batches)

    block = 3 * BLOCK_BATCHES
    assert widest(Sampler(data, 3).order(0)) >= block
    monkeypatch.setattr(batches, "MEMORY_BYTES", 0)
    with open_data(data.paths) as streamed:
        order = Sampler(streamed, 3).order(0)
    assert widest(order) < block
    starts = [int(batch.min()) // block for batch in order]
    assert starts != sorted(starts), "blocks are shuffled"


def test_windows_in_one_batch_are_not_all_neighbors(write, monkeypatch):
    monkeypatch.setattr(batches, "MEMORY_BYTES", 0)
    path = write(inputs=np.arange(500.0)[:, None])
    with open_data([path], DataOptions(window=Window(4), layout="series")) as data:
        order = Sampler(data, 8).order(0)
    assert np.median([np.ptp(batch) for batch in order]) > 60


def test_a_part_of_the_sequences(data, source):
    part = np.random.default_rng(0).permutation(COUNT)[:100]
    order = Sampler(data, 7, indices=part).order(4)
    np.testing.assert_array_equal(np.sort(flat(order)), np.sort(part))
    assert len(order) == 15


def test_stateful_keeps_the_order_of_the_files(write):
    rng = np.random.default_rng(6)
    paths = [write(f"{k}.h5", inputs=rng.normal(size=(n, 4, 2))) for k, n in enumerate((5, 7, 2))]
    with open_data(paths) as data:
        sampler = Sampler(data, 3, seed=9, stateful=True)
        batches = list(data.batches(3, np.float32, keep_rows=True))
        for epoch in (0, 1):
            order = sampler.order(epoch)
            assert len(order) == sampler.batches == len(batches)
            for numbers, batch in zip(order, batches, strict=True):
                taken = data.take(numbers, np.float32)
                np.testing.assert_array_equal(taken.x, batch.x)
                assert (taken.file, taken.first) == (batch.file, batch.first)
        some = Sampler(data, 3, indices=np.array([11, 1, 0, 4, 3, 6]), stateful=True)
        assert [batch.tolist() for batch in some.order(0)] == [[0, 1, 3], [4], [6, 11]]


def test_a_batch_of_nothing(data):
    with pytest.raises(UsageError, match="at least one"):
        Sampler(data, 0)
