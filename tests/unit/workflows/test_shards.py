"""Shares of a dataset: consecutive, complete, and balanced by steps."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from data_files import file_writer

from lstm_cli.data import open_data
from lstm_cli.workflows.shards import share_of


@pytest.mark.parametrize("of", [1, 2, 3, 7, 40, 60])
@pytest.mark.parametrize(
    "lengths",
    [
        np.random.default_rng(0).integers(0, 100, 50),
        np.array([1000, *[1] * 49]),
        np.array([*[1] * 49, 1000]),
        np.zeros(50, np.int64),
        np.array([5]),
    ],
    ids=["random", "first", "last", "empty", "one"],
)
def test_shares_hold_every_sequence_once_and_about_the_same_steps(
    tmp_path: Path, lengths: np.ndarray, of: int
) -> None:
    path = file_writer(tmp_path)(inputs=np.zeros((lengths.sum(), 1)), lengths=lengths)
    with open_data([path]) as data:
        shares = [share_of(data, number, of) for number in range(1, of + 1)]
    assert [(one.number, one.of) for one in shares] == [(k, of) for k in range(1, of + 1)]
    assert (shares[0].first, shares[-1].stop) == (0, len(lengths))
    assert all(a.stop == b.first for a, b in pairwise(shares))
    steps = [lengths[one.first : one.stop].sum() for one in shares]
    assert max(steps) <= lengths.sum() / of + lengths.max()
    assert min(steps) >= lengths.sum() / of - lengths.max()
    if not lengths.any():
        counts = [one.stop - one.first for one in shares]
        assert max(counts) - min(counts) <= 1
