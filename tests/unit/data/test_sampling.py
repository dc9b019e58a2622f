"""The order of batches: everything once an epoch, the same again for the same seed and epoch."""

from __future__ import annotations

import numpy as np
import pytest

from lstm_cli.data import DataOptions, Sampler, Window, batches, open_data
from lstm_cli.data.sampling import BLOCK_BATCHES
from lstm_cli.errors import UsageError

COUNT = 743


@pytest.fixture
def lengths():
    return np.random.default_rng(4).integers(0, 23, COUNT)


@pytest.fixture
def data(write, lengths):
    rows = np.arange(int(lengths.sum()), dtype=float)[:, None]
    with open_data([write(inputs=rows, lengths=lengths)]) as data:
        yield data


@pytest.fixture(params=["kept", "streamed"])
def source(request, monkeypatch):
    if request.param == "streamed":
        monkeypatch.setattr(batches, "MEMORY_BYTES", 0)
    return request.param


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


def test_blocks_of_neighbours_where_data_are_streamed(data, monkeypatch):
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


def test_windows_in_one_batch_are_not_all_neighbours(write, monkeypatch):
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
