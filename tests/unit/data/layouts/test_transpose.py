"""Files of MATLAB, Octave, Julia and R, whose axes are reversed, against the rows as written."""

from __future__ import annotations

from itertools import pairwise

import h5py
import numpy as np
import pytest

from lstm_cli.data import DataOptions, Window, describe, open_data
from lstm_cli.errors import DataError

TURNED = DataOptions(transpose=True)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(6, 4, 3))
LENGTHS = np.array([4, 2, 3, 1, 4, 2])
FLAT = np.concatenate([x[:T] for x, T in zip(X, LENGTHS, strict=True)])
BLOCK = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, Created on: Mon Nov 30 2026 HDF5 schema 1.00 ."


def matlab(path, header=BLOCK, marked=True, **variables):
    """A file as ``save -v7.3`` writes it: at least two axes, trailing ones dropped, reversed."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, values in variables.items():
            values = np.asarray(values)
            while values.ndim > 2 and values.shape[-1] == 1:
                values = values[..., 0]
            stored = file.create_dataset(name.replace("__", "/"), data=np.atleast_2d(values).T)
            if marked:
                stored.attrs["MATLAB_class"] = np.bytes_(stored.dtype.name)
    with open(path, "r+b") as file:
        file.write(header)
    return str(path)


def read(path, options=TURNED, per_step=None):
    with open_data([path], options) as data:
        batches = list(data.batches(4, np.float64, per_step=per_step))
        x = [
            row[:T]
            for b in batches
            for row, T in zip(b.x, data.lengths(b.first, b.count), strict=True)
        ]
        y = None
        if batches[0].targets is not None:
            y = [row for b in batches for row in b.targets]
        taken = data.take(np.arange(data.count)[::-1], np.float64, per_step=per_step)
        for row, own in zip(taken.x[::-1], x, strict=True):
            np.testing.assert_array_equal(row[: len(own)], own)
        return data.description, x, y


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def rows(flat):
    edges = np.concatenate([[0], np.cumsum(LENGTHS)])
    return [flat[a:b] for a, b in pairwise(edges)]


@pytest.mark.parametrize("vector", [np.atleast_2d, lambda v: np.atleast_2d(v).T])
def test_dense(tmp_path, vector):
    y = RNG.integers(0, 3, 6)
    path = matlab(tmp_path / "m.mat", inputs=X, lengths=vector(LENGTHS), targets=vector(y))
    said, x, found = read(path)
    assert said == "6 sequences, 1–4 steps, 3 features (dense)"
    same(x, [row[:T] for row, T in zip(X, LENGTHS, strict=True)])
    np.testing.assert_array_equal(found, y)


def test_dense_with_a_mask_and_targets_a_step(tmp_path):
    mask = np.arange(4) < LENGTHS[:, None]
    y = RNG.normal(size=(6, 4, 2))
    path = matlab(tmp_path / "m.mat", inputs=X, mask=mask, targets=y)
    _, x, found = read(path)
    same(x, [row[:T] for row, T in zip(X, LENGTHS, strict=True)])
    assert (LENGTHS.max(), found[0].shape) == (4, (4, 2))
    same([row[:T] for row, T in zip(found, LENGTHS, strict=True)],
         [row[:T] for row, T in zip(y, LENGTHS, strict=True)])  # fmt: skip


def test_dense_of_one_feature(tmp_path):
    """MATLAB drops the last axis of N x T x 1."""
    path = matlab(tmp_path / "m.mat", inputs=X[:, :, :1])
    said, x, _ = read(path, DataOptions(transpose=True, layout="dense"))
    assert said == "6 sequences, 4 steps, 1 feature (dense)"
    same(x, X[:, :, :1])


@pytest.mark.parametrize("vector", [np.atleast_2d, lambda v: np.atleast_2d(v).T])
@pytest.mark.parametrize("divided", ["lengths", "offsets"])
def test_concatenated(tmp_path, vector, divided):
    own = LENGTHS if divided == "lengths" else np.concatenate([[0], np.cumsum(LENGTHS)])
    y = RNG.normal(size=(len(FLAT), 2))
    path = matlab(tmp_path / "m.mat", inputs=FLAT, targets=y, **{divided: vector(own)})
    said, x, found = read(path)
    assert said == "6 sequences, 1–4 steps, 3 features (concatenated)"
    same(x, rows(FLAT))
    same([row[:T] for row, T in zip(found, LENGTHS, strict=True)], rows(y))


def test_structs_and_series(tmp_path):
    parts = {f"s__{name}": part for name, part in zip("abcdef", rows(FLAT), strict=True)}
    path = matlab(tmp_path / "m.mat", **parts)
    message, x, _ = read(path + ":/s")
    assert message == "6 sequences, 1–4 steps, 3 features (groups)"
    same(x, rows(FLAT))
    whole = matlab(tmp_path / "w.mat", inputs=FLAT, targets=FLAT[:, :1])
    message, x, y = read(whole)
    assert message == "1 sequence, 16 steps, 3 features (series)"
    same(x + y, [FLAT, FLAT[:, 0]])


def test_groups_with_targets(tmp_path):
    parts = {f"s{n}__inputs": part for n, part in enumerate(rows(FLAT))}
    parts |= {f"s{n}__targets": part[:, :1] for n, part in enumerate(rows(FLAT))}
    _, x, y = read(matlab(tmp_path / "m.mat", **parts))
    same(x, rows(FLAT))
    same([row[:T] for row, T in zip(y, LENGTHS, strict=True)], [p[:, 0] for p in rows(FLAT)])


def test_rows_that_are_a_sequence_or_a_step(tmp_path):
    """One row is a vector, but for a single sequence, or a sequence of a single step."""
    y = RNG.normal(size=(len(FLAT), 2))
    pairs = list(zip(rows(FLAT), rows(y), strict=True))
    parts = {f"s{n}__inputs": x for n, (x, _) in enumerate(pairs)}
    path = matlab(tmp_path / "m.mat", **parts, **{f"s{n}__targets": v for n, (_, v) in
                                                  enumerate(pairs)})  # fmt: skip
    _, _, result = read(path)
    same([row[:T] for row, T in zip(result, LENGTHS, strict=True)], rows(y))
    labels = {f"s{n}__targets": v[:1] for n, (_, v) in enumerate(pairs)}
    _, _, result = read(matlab(tmp_path / "l.mat", **parts, **labels))
    same(result, [v[0] for _, v in pairs])
    for values, per_step in ((y[:1], False), (y[:4, 0][None], True), (y[:1, :1], False)):
        one = matlab(tmp_path / "one.mat", inputs=X[:1], targets=values)
        _, _, result = read(one, per_step=per_step)
        np.testing.assert_array_equal(result, values if values.size > 1 else values[0])


@pytest.mark.parametrize("layout", ["dense", "groups", "series"])
def test_windows(tmp_path, layout):
    parts = {"inputs": X} if layout == "dense" else {"inputs": FLAT}
    if layout == "groups":
        parts = {f"s{n}__inputs": x for n, x in enumerate(X)}
    options = DataOptions(transpose=True, window=Window(2, 1, 1))
    _, x, y = read(matlab(tmp_path / "m.mat", **parts), options)
    sequences = [FLAT] if layout == "series" else X
    same(x, [s[k : k + 2] for s in sequences for k in range(len(s) - 1)])
    same(
        y, [s[k + 2] if k + 2 < len(s) else 0 * s[0] for s in sequences for k in range(len(s) - 1)]
    )


@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize(
    ("writer", "header", "marks"),
    [
        ("MATLAB", BLOCK, {}),
        ("MATLAB", b"", {"MATLAB_class": b"double"}),
        ("Julia", b"HDF5-based Julia Data Format, version 0.1.1", {}),
        ("Julia", b"Julia data file (HDF5), version 0.2.0", {}),
        (r"R \(rhdf5\)", b"", {"rhdf5-NA.OK": 1}),
    ],
)
def test_files_that_say_so_are_refused_until_the_config_does(
    tmp_path, writer, header, marks, square
):
    x = X[:, :, [0, 1, 2, 0, 1, 2]] if square else X
    path = matlab(tmp_path / "m.h5", header, marked=False, inputs=x)
    with h5py.File(path, "a") as file:
        file["inputs"].attrs.update(marks)
    with pytest.raises(DataError, match=f"was written by {writer}, which") as error:
        open_data([path])
    assert error.value.hints == ("--set data.transpose=true",)
    assert f"{x.shape} reversed" in str(error.value)
    same(read(path)[1], x)
    same(read(path, DataOptions(transpose=False))[1], x.T)


def test_octave_keeps_a_variable_in_a_group(tmp_path):
    path = str(tmp_path / "o.h5")
    y = RNG.integers(0, 3, 6)
    with h5py.File(path, "w") as file:
        for name, values in {"inputs": X, "targets": y[:, None]}.items():
            group = file.create_group(name)
            group.attrs["OCTAVE_NEW_FORMAT"] = np.uint8(1)
            group["type"] = b"matrix"
            group["value"] = values.T
    with pytest.raises(DataError, match="was written by Octave"):
        open_data([path])
    _, x, found = read(path)
    same(x, X)
    np.testing.assert_array_equal(found, y)
    assert [stored.role for stored in describe(path).datasets] == ["inputs", "targets"]


def test_an_external_link_in_an_octave_group_is_not_followed(tmp_path):
    other = str(tmp_path / "other.h5")
    with h5py.File(other, "w") as file:
        file["x"] = X
    with h5py.File(tmp_path / "o.h5", "w") as file:
        group = file.create_group("inputs")
        group.attrs["OCTAVE_NEW_FORMAT"] = np.uint8(1)
        group["value"] = h5py.ExternalLink(other, "/x")
    with pytest.raises(DataError, match="leads out of the file"):
        open_data([str(tmp_path / "o.h5")], TURNED)


@pytest.mark.parametrize(
    ("kind", "dtype", "says"),
    [("char", "u2", "text"), ("cell", h5py.ref_dtype, "cell array"), (None, "u8", "uint64")],
)
def test_what_matlab_writes_as_numbers_but_are_none(tmp_path, kind, dtype, says):
    with h5py.File(tmp_path / "m.mat", "w") as file:
        stored = file.create_dataset("inputs", (2, 3), dtype)
        if kind is None:
            stored.attrs["MATLAB_empty"] = 1
        else:
            stored.attrs["MATLAB_class"] = np.bytes_(kind)
    with pytest.raises(DataError, match=says) as error:
        open_data([str(tmp_path / "m.mat")], TURNED)
    assert ("a struct with one matrix" in error.value.hints[0]) is (kind == "cell")


def test_data_proposes_to_turn_the_axes(tmp_path):
    report = describe(matlab(tmp_path / "m.mat", inputs=X))
    (group,) = report.groups
    assert (group.count, group.steps[2], group.features) == (6, 4, 3)
    assert "\n  transpose: true\n" in report.suggestion
    (problem,) = report.problems
    assert problem.found == "(3, 4, 6) as stored, (6, 4, 3) reversed"
    assert "transpose" not in describe(matlab(tmp_path / "n.mat", b"", False, inputs=X)).suggestion
