"""Targets of every form reach the batch they belong to."""

from __future__ import annotations

from itertools import pairwise

import h5py
import numpy as np
import pytest
from data_files import write_vlen

from lstm_cli.data import DataOptions, open_data
from lstm_cli.errors import DataError


def batches_of(path, size=4, options=None, **more):
    with open_data([path], options) as data:
        return data.targets, list(data.batches(size, np.float64, **more))


def check_per_sequence(batches, expected):
    np.testing.assert_array_equal(np.concatenate([b.targets for b in batches]), expected)


def check_per_step(batches, steps):
    for batch in batches:
        assert batch.targets.shape[:2] == batch.x.shape[:2]
        for row, got in enumerate(batch.targets):
            true = steps[batch.first + row]
            np.testing.assert_array_equal(got[: len(true)], true)
            assert not got[len(true) :].any(), "padded targets are 0"


@pytest.mark.parametrize("layout", ["dense", "concatenated", "vlen"])
def test_classes_and_values(make, truth, layout):
    path = make(layout)
    with h5py.File(path, "a") as file:
        file["targets"] = truth.classes
        file["y"] = truth.values
    info, batches = batches_of(path)
    assert (info.kind, info.shape, info.per_step) == ("class", (), False)
    assert batches[0].targets.dtype == np.int64
    check_per_sequence(batches, truth.classes)
    info, batches = batches_of(path, options=DataOptions(targets="y"))
    assert (info.kind, info.shape, info.per_step) == ("values", (3,), False)
    check_per_sequence(batches, truth.values)


@pytest.mark.parametrize("layout", ["dense", "concatenated", "vlen", "groups"])
@pytest.mark.parametrize("width", [None, 2])
@pytest.mark.parametrize("dtype", ["float64", "int32"])
def test_one_a_step(make, truth, layout, width, dtype):
    path = make(layout)
    steps = [np.round(9 * s).astype(dtype) for s in truth.steps]
    steps = steps if width else [s[:, 0] for s in steps]
    with h5py.File(path, "a") as file:
        if layout == "dense":
            padded = np.full((11, 9, *steps[0].shape[1:]), 77, dtype)
            for row, step in zip(padded, steps, strict=True):
                row[: len(step)] = step
            file["targets"] = padded
        elif layout == "concatenated":
            file["targets"] = np.concatenate(steps)
        elif layout == "groups":
            for n, step in enumerate(steps):
                file[f"seq{n}/targets"] = step
    if layout == "vlen":
        write_vlen(path, "targets", steps, np.dtype(dtype).type)
    info, batches = batches_of(path, per_step=True)
    assert info.per_step is (None if (layout, width) == ("dense", None) else True)
    info = info.resolve(True)
    assert info.kind == ("class" if dtype == "int32" and width is None else "values")
    check_per_step(batches, steps)


def test_groups_with_one_a_sequence(make, truth):
    path = make("groups")
    with h5py.File(path, "a") as file:
        for n in range(11):
            file[f"seq{n}/targets"] = truth.classes[n]
    info, batches = batches_of(path)
    assert (info.kind, info.per_step) == ("class", False)
    check_per_sequence(batches, truth.classes)


def test_groups_with_values(make, truth):
    path = make("groups")
    with h5py.File(path, "a") as file:
        for n in range(11):
            file[f"seq{n}/targets"] = truth.values[n]
    info, batches = batches_of(path)
    assert (info.kind, info.shape, info.per_step) == ("values", (3,), False)
    check_per_sequence(batches, truth.values)


def test_groups_whose_targets_differ_in_type(make, truth):
    path = make("groups")
    with h5py.File(path, "a") as file:
        for n in range(11):
            file[f"seq{n}/targets"] = (1e9 + truth.values[n]).astype("f4" if n == 0 else "f8")
    with open_data([path]) as data:
        assert data.dtype_for_targets(np.float32) == "float64"
        targets = np.concatenate([b.targets for b in data.batches(4, np.float32)])
    np.testing.assert_array_equal(targets[1:], 1e9 + truth.values[1:])
    with h5py.File(path, "a") as file:
        for n in range(11):
            del file[f"seq{n}/targets"]
            file[f"seq{n}/targets"] = np.array(truth.classes[n], "i2" if n == 0 else "i4")
    info, batches = batches_of(path)
    assert (info.kind, info.dtype) == ("class", "int32")
    check_per_sequence(batches, truth.classes)


def test_groups_of_which_one_has_none(make):
    path = make("groups")
    with h5py.File(path, "a") as file:
        for n in range(10):
            file[f"seq{n}/targets"] = n
    with pytest.raises(DataError, match="1 of 11 sequences have no targets"):
        open_data([path])


@pytest.mark.parametrize("dtype", ["f8", "i4", "u1", "?"])
@pytest.mark.parametrize(
    ("layout", "varying"),
    [
        *((layout, False) for layout in ("dense", "concatenated", "vlen")),
        *((layout, True) for layout in ("dense", "concatenated", "vlen")),
        # Four targets are one per step in sequences of four steps only.
        *((layout, False) for layout in ("vlen rows", "groups", "returnn")),
    ],
)
def test_what_may_be_one_a_step_or_several_a_sequence(write, layout, varying, dtype):
    """(N, 4) beside sequences of up to 4 steps: the network's output decides."""
    rng = np.random.default_rng(0)
    y = (3 * rng.normal(size=(3, 4))).astype(dtype)
    lengths = np.array([2, 4, 1] if varying else [4, 4, 4])
    x = rng.normal(size=(3, 4, 2))
    flat = np.concatenate([row[:T] for row, T in zip(x, lengths, strict=True)])
    if layout == "dense":
        path = write(inputs=x, targets=y, **({"lengths": lengths} if varying else {}))
    elif layout == "concatenated":
        path = write(inputs=flat, targets=y, lengths=lengths)
    elif layout == "groups":
        path = write(**{f"s{n}__{k}": v[n] for n in range(3) for k, v in
                        {"inputs": x, "targets": y}.items()})  # fmt: skip
    elif layout == "returnn":
        table = np.stack([lengths, lengths], axis=1)
        path = write(inputs=flat, seqLengths=table, targets__data__classes=y.ravel())
    else:
        path = write(attrs={"features": 2})
        write_vlen(path, "inputs", [row[:T] for row, T in zip(x, lengths, strict=True)])
        if layout == "vlen":
            write(targets=y)
        else:
            write_vlen(path, "targets", list(y), np.dtype(dtype).type)
    info, whole = batches_of(path)
    assert info.per_step is None
    assert (info.resolve(False).kind, info.resolve(False).shape) == ("values", (4,))
    np.testing.assert_array_equal(whole[0].targets, y)
    assert whole[0].targets.dtype == np.float64
    _, stepped = batches_of(path, per_step=True)
    kind = "values" if dtype == "f8" else "class"
    assert (info.resolve(True).kind, info.resolve(True).shape) == (kind, ())
    assert stepped[0].targets.dtype == (np.float64 if dtype == "f8" else np.int64)
    np.testing.assert_array_equal(
        stepped[0].targets, np.where(np.arange(4) < lengths[:, None], y, 0)
    )


def test_as_many_in_every_sequence(write):
    y = np.arange(9).reshape(3, 3)
    path = write(attrs={"features": 1})
    write_vlen(path, "inputs", [np.zeros(T) for T in (2, 4, 1)])
    write_vlen(path, "targets", list(y), np.int64)
    info, batches = batches_of(path, size=2)
    assert (info.kind, info.shape, info.per_step) == ("values", (3,), False)
    check_per_sequence(batches, y)


@pytest.mark.parametrize("own", [[2, 2, 1], [4, 4, 4], [5, 3, 3]])
def test_lengths_of_their_own_are_told_by_the_sequence(write, own):
    table = np.stack([[5, 3, 4], own], axis=1)
    path = write(
        inputs=np.ones((12, 3)), seqLengths=table, targets__data__classes=np.zeros(sum(own))
    )
    n = int(np.argmax(table[:, 0] != table[:, 1]))
    with pytest.raises(
        DataError, match=f"sequence {n} has {table[n, 0]} steps and {own[n]} targets"
    ):
        open_data([path])


@pytest.mark.parametrize("dtype", ["f8", "i4"])
def test_targets_of_files_with_other_steps(write, dtype):
    """(N, T) with another T in each file can only be one per step."""
    rng = np.random.default_rng(0)
    y = [(9 * rng.normal(size=shape)).astype(dtype) for shape in ((3, 4), (2, 6))]
    paths = [
        write(f"{k}.h5", inputs=np.ones((*values.shape, 2)), targets=values)
        for k, values in enumerate(y)
    ]
    with open_data(paths) as data:
        assert (data.targets.per_step, data.targets.shape) == (True, ())
        for batch, values in zip(data.batches(8, np.float64), y, strict=True):
            np.testing.assert_array_equal(batch.targets, values)
    third = write("c.h5", inputs=np.ones((2, 3, 2)), targets=y[0][:2])
    with pytest.raises(DataError, match="differ in targets"):
        open_data([*paths, third])


def test_one_step_sequences_are_ambiguous(write):
    path = write(inputs=np.ones((3, 2)), lengths=[1, 1, 1], targets=[4, 5, 6])
    info, whole = batches_of(path)
    assert info.per_step is None
    np.testing.assert_array_equal(whole[0].targets, [4, 5, 6])
    _, stepped = batches_of(path, per_step=True)
    np.testing.assert_array_equal(stepped[0].targets, [[4], [5], [6]])


@pytest.mark.parametrize("shape", [(4,), (12, 2), (3, 5, 2), (3, 4, 2, 1)])
def test_misfit(write, shape):
    path = write(inputs=np.ones((3, 4, 2)), targets=np.ones(shape))
    with pytest.raises(DataError, match="does not fit the inputs"):
        open_data([path])


def test_targets_can_be_left_out(make, truth):
    path = make("dense")
    with h5py.File(path, "a") as file:
        file["targets"] = truth.classes
    _, batches = batches_of(path, targets=False)
    assert all(batch.targets is None for batch in batches)


class TestReturnn:
    @pytest.fixture
    def path(self, write, truth):
        table = np.stack([truth.lengths, np.ones(11, int), truth.lengths], axis=1)
        path = write(
            inputs=truth.flat,
            seqLengths=table,
            targets__data__aligned=np.concatenate(truth.steps),
            targets__data__classes=truth.classes,
            targets__labels__classes=[b"a", b"b", b"c", b"d"],
            seqTags=[f"s/{n}".encode() for n in range(11)],
        )
        with h5py.File(path, "a") as file:
            # Columns follow the sorted keys: aligned, classes.
            file["seqLengths"][...] = table[:, [0, 2, 1]]
        return path

    def test_classes(self, path, truth):
        info, batches = batches_of(path)
        assert info.name.endswith("/targets/data/classes")
        assert info.per_step is False
        check_per_sequence(batches, truth.classes)

    def test_by_step(self, path, truth):
        info, batches = batches_of(path, options=DataOptions(targets="targets/data/aligned"))
        assert info.per_step is True
        check_per_step(batches, truth.steps)

    def test_names_and_labels(self, path):
        with open_data([path]) as data:
            assert data.names[:2] == ["s/0", "s/1"]
            assert data.class_labels == ["a", "b", "c", "d"]

    def test_lengths_of_their_own(self, path, truth):
        with h5py.File(path, "a") as file:
            del file["seqLengths"], file["targets/data/classes"]
            own = truth.lengths[::-1].copy()
            file["seqLengths"] = np.stack([truth.lengths, own], axis=1)
        with pytest.raises(DataError, match="lengths of their own: sequence 0 has 3 .* 8 targets"):
            open_data([path])

    def test_several_keys(self, path):
        with h5py.File(path, "a") as file:
            file.move("targets/data/classes", "targets/data/words")
        with pytest.raises(DataError, match="several targets") as error:
            open_data([path])
        assert "aligned, words" in str(error.value)


def test_currennt(write, truth):
    tags = np.zeros((11, 6), "S1")
    for n in range(11):
        tags[n, :2] = [b"q", str(n % 10).encode()]
    labels = np.array([list("no\0"), list("yes")]).astype("S1")
    path = write(
        inputs=truth.flat.astype(">f4"),
        seqLengths=truth.lengths.astype(">i4"),
        targetClasses=np.arange(46) % 2,
        seqTags=tags,
        labels=labels,
    )
    info, batches = batches_of(path)
    assert (info.kind, info.per_step) == ("class", True)
    starts = np.concatenate([[0], np.cumsum(truth.lengths)])
    check_per_step(batches, [np.arange(a, b) % 2 for a, b in pairwise(starts)])
    with open_data([path]) as data:
        assert data.names[3] == "q3"
        assert data.class_labels == ["no", "yes"]


class TestLabels:
    @pytest.mark.parametrize("kind", ["attribute", "dataset", "root"])
    def test_classes(self, write, kind):
        path = write(g__inputs=np.ones((3, 2, 1)))
        with h5py.File(path, "a") as file:
            place = file if kind == "root" else file["g"]
            if kind == "dataset":
                place["class_names"] = ["x", "ö"]
            else:
                place.attrs["classes"] = ["x", "ö"]
        with open_data([path + ":/g"]) as data:
            assert data.class_labels == ["x", "ö"]

    def test_names(self, write):
        path = write(inputs=np.ones((3, 2, 1)), names=["a", "b", "c"])
        with open_data([path, path]) as data:
            assert data.names == ["a", "b", "c", "a", "b", "c"]

    def test_files_that_differ(self, write):
        a = write("a.h5", inputs=np.ones((3, 2, 1)), attrs={"classes": ["x", "y"]})
        b = write("b.h5", inputs=np.ones((3, 2, 1)), attrs={"classes": ["y", "x"]})
        with open_data([a, b]) as data, pytest.raises(DataError, match="other class labels"):
            _ = data.class_labels
