"""Masks whose valid steps are not first, and the files that their hints make."""

from __future__ import annotations

import os

import h5py
import numpy as np
import pytest
from data_files import run_hint

from lstm_cli.data import DataOptions, describe, open_data
from lstm_cli.errors import DataError

STEPS = (3, 5, 2, 4)
N, T, D = len(STEPS), 5, 3


pytestmark = pytest.mark.usefixtures("in_tmp_path")


@pytest.fixture
def sequences():
    rng = np.random.default_rng(3)
    return [rng.normal(size=(steps, D)) for steps in STEPS]


def in_front(sequences, filler=0.0):
    """Values (N, T, D) and mask (N, T) with the padding in front."""
    x, mask = np.full((N, T, D), filler), np.zeros((N, T), bool)
    for n, sequence in enumerate(sequences):
        x[n, T - len(sequence) :] = sequence
        mask[n, T - len(sequence) :] = True
    return x, mask


def error(path, options=None):
    with pytest.raises(DataError) as caught:
        open_data([path], options)
    (problem,) = caught.value.problems
    return problem


def check(path, sequences, options=None, targets=None):
    with open_data([path], options) as data:
        assert data.lengths().tolist() == [len(sequence) for sequence in sequences]
        batch = next(data.batches(9, np.float64, per_step=True))
        for n, sequence in enumerate(sequences):
            np.testing.assert_array_equal(batch.x[n, : len(sequence)], sequence)
            if targets is not None:
                np.testing.assert_array_equal(batch.targets[n, : len(sequence)], targets[n])


@pytest.mark.parametrize("dtype", ["?", "u1", "i8", "f4"])
@pytest.mark.parametrize("filler", [0.0, -1.0, np.nan])
def test_padding_in_front(write, sequences, dtype, filler):
    x, mask = in_front(sequences, filler)
    path = write("it's $a.h5", inputs=x, mask=mask.astype(dtype))
    problem = error(path)
    assert "padding is in front of the valid steps in 3 of 4 sequences" in problem.what
    assert "2 steps of padding in front of sequence 0" in problem.found
    check(run_hint(problem.hint), sequences)
    assert len(os.listdir()) == 2
    assert "in front" in error(path).what  # the file itself stays as it was


@pytest.mark.parametrize("shape", [(), (2,)])
def test_targets_are_turned_along(write, sequences, shape):
    x, mask = in_front(sequences)
    y = np.random.default_rng(0).normal(size=(N, T, *shape))
    own = [y[n, T - len(sequence) :] for n, sequence in enumerate(sequences)]
    path = write(test__inputs=x, test__mask=mask[..., None], test__y=y)
    copy = run_hint(error(f"{path}:/test").hint)
    check(f"{copy}:/test", sequences, targets=own)


def test_targets_of_a_sequence_stay(write, sequences):
    x, mask = in_front(sequences)
    copy = run_hint(error(write(inputs=x, mask=mask, y=np.arange(N))).hint)
    with open_data([copy]) as data:
        assert next(data.batches(9, np.float64)).targets.tolist() == [0, 1, 2, 3]


def test_padding_on_both_sides(write, sequences):
    x, mask = np.zeros((N, T + 2, D)), np.zeros((N, T + 2))
    for n, sequence in enumerate(sequences):
        x[n, 1 : 1 + len(sequence)], mask[n, 1 : 1 + len(sequence)] = sequence, 1
    problem = error(write(inputs=x, mask=mask))
    assert "in front of the valid steps in 4 of 4 sequences" in problem.what
    check(run_hint(problem.hint), sequences)


def test_axes_reversed(sequences):
    x, mask = in_front(sequences)
    with h5py.File("m.h5", "w") as file:
        file["inputs"], file["mask"] = x.T, mask.T.astype("u1")
    options = DataOptions(transpose=True)
    check(run_hint(error("m.h5", options).hint), sequences, options)


def test_lengths_beside_tell_padding_in_front(write, sequences):
    x, mask = in_front(sequences)
    x[...] = 7  # the inputs tell nothing
    problem = error(write(inputs=x, mask=mask, lengths=STEPS))
    assert "in front" in problem.what
    with open_data([run_hint(problem.hint)]) as data:
        assert data.lengths().tolist() == list(STEPS)


@pytest.mark.parametrize("dtype", ["?", "u1", "f8"])
@pytest.mark.parametrize("told_by", ["inputs", "lengths", "full"])
def test_an_inverted_mask(write, sequences, dtype, told_by):
    x = np.zeros((N, T, D)) if told_by == "inputs" else np.full((N, T, D), 7.0)
    mask = np.ones((N, T), bool)
    for n, sequence in enumerate(sequences):
        mask[n, : len(sequence)] = False
        x[n, : len(sequence)] = sequence
    if told_by == "full":
        x = np.random.default_rng(1).normal(size=x.shape)
    lengths = {"lengths": STEPS} if told_by == "lengths" else {}
    problem = error(write(inputs=x, mask=mask.astype(dtype), **lengths))
    assert "is 1 at padding, as PyTorch's key_padding_mask is" in problem.what
    with open_data([run_hint(problem.hint)]) as data:
        assert data.lengths().tolist() == list(STEPS)


def test_where_nothing_tells_both_are_named(write, sequences):
    x = np.random.default_rng(1).normal(size=(2, T, D))
    mask = np.array([[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]])
    path = write(inputs=x, mask=mask)
    problem = error(path)
    assert "begins with 0 in 2 of 2 sequences" in problem.what
    with open_data([run_hint(problem.hint, 0)]) as data:
        assert data.lengths().tolist() == [2, 4]
    os.unlink("x-turned.h5")
    with open_data([run_hint(problem.hint, 1)]) as data:
        assert data.lengths().tolist() == [3, 1]


def test_a_mask_of_zeros(write):
    path = write(inputs=np.ones((2, T, D)), mask=np.zeros((2, T)))
    problem = error(path)
    assert "is 0 at every step of every sequence" in problem.what
    with open_data([run_hint(problem.hint)]) as data:
        assert data.lengths().tolist() == [T, T]
    with open_data([write(lengths=[0, 0])]) as data:  # lengths say so too
        assert data.total_steps == 0


@pytest.mark.parametrize("low", [-np.inf, -1e9])
def test_a_mask_that_is_added(write, sequences, low):
    mask = np.where(np.arange(T) < np.array(STEPS)[:, None], 0.0, low)
    x = in_front(sequences)[0]
    problem = error(write(inputs=x, mask=mask))
    assert "sequence 0, step 3" in problem.what
    with open_data([run_hint(problem.hint)]) as data:
        assert data.lengths().tolist() == list(STEPS)


@pytest.mark.parametrize("value", [0.5, np.nan, 2.0])
def test_a_float_mask_holds_0_and_1_alone(write, value):
    mask = np.ones((2, T))
    mask[1, 3] = value
    assert "sequence 1, step 3" in error(write(inputs=np.ones((2, T, D)), mask=mask)).what


def test_holes(write, sequences):
    x = np.random.default_rng(2).normal(size=(3, T, D))
    mask = np.array([[1, 1, 1, 0, 0], [0, 1, 0, 1, 1], [1, 0, 0, 1, 0]])
    problem = error(write(inputs=x, mask=mask))
    assert problem.what == "the mask of sequence 1 has a hole at step 2"
    assert "2 of 3 sequences" in problem.found
    assert "front in 1 of 3 sequences" in problem.found
    check(run_hint(problem.hint), [x[n][mask[n] == 1] for n in range(3)])


@pytest.mark.parametrize("filler", [0.0, -999.0])
def test_lengths_beside_padding_in_front(write, sequences, filler):
    path = write(inputs=in_front(sequences, filler)[0], lengths=np.array(STEPS, "u1"))
    (problem,) = [one for one in describe(path).problems if "in front" in one.what]
    assert "in 3 sequences of 4" in problem.what
    copy = run_hint(problem.hint)
    check(copy, sequences)
    assert not describe(copy).problems


def test_an_inverted_mask_beside_padding_in_front(write, sequences):
    x, mask = in_front(sequences)
    (problem,) = [
        one for one in describe(write(inputs=x, mask=~mask)).problems if "blank" in one.what
    ]
    with pytest.raises(DataError, match="in front") as caught:
        open_data([run_hint(problem.hint)])
    os.rename("x-turned.h5", "y.h5")
    check(run_hint(caught.value.hints[0].replace("x-turned.h5", "y.h5")), sequences)


def test_ordinary_padding_is_no_problem(make, truth):
    for layout in ("dense", "mask"):
        assert not [one for one in describe(make(layout)).problems if "blank" in one.what]
