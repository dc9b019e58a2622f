"""`describe` says what a file holds and finds every planted fault."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from lstm_cli.data import DataOptions, describe, open_data
from lstm_cli.errors import DataError

from .conftest import LAYOUTS


def whats(report):
    return [problem.what for problem in report.problems]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout(make, layout):
    path = make(layout)
    report = describe(path)
    (group,) = report.groups
    assert group.layout == {"mask": "dense", "offsets": "concatenated"}.get(layout, layout)
    assert (group.count, group.features, group.total_steps) == (11, 5, 46)
    assert group.steps == (0, 4.0, 8)
    assert whats(report) == ["1 sequence has no step"]
    assert report.size > 0
    assert all(stored.role for stored in report.datasets)
    assert "input_size: 5" in report.suggestion


def test_parts_roles_classes_and_suggestion(write, truth):
    path = write(
        train__frames=truth.flat,
        train__lengths=truth.lengths,
        train__targets=np.arange(11) % 3,
        train__names=[f"n{k}" for k in range(11)],
        test__frames=truth.flat,
        test__lengths=truth.lengths,
        test__targets=np.arange(11) % 3,
        attrs={"classes": ["a", "b", "c"]},
    )
    report = describe(path, DataOptions(inputs="frames"))
    assert [group.name for group in report.groups] == [f"{path}:/test", f"{path}:/train"]
    roles = {stored.path: stored.role for stored in report.datasets}
    assert roles["/train/frames"] == "inputs"
    assert roles["/test/targets"] == "targets"
    train = report.groups[1]
    assert train.class_counts == {0: 4, 1: 4, 2: 3}
    assert train.class_labels == ("a", "b", "c")
    assert train.names == ("n0", "n1", "n2", "n3", "n4")
    assert "units: 3, activation: softmax" in report.suggestion
    assert "inputs: frames" in report.suggestion
    assert "loss: cross_entropy" in report.suggestion


def test_no_numbers_and_constants(write, truth):
    flat = truth.flat.copy()
    flat[:, 3] = 2.5
    flat[4, 1] = np.nan  # sequence 1, step 1
    flat[20, 1] = np.inf
    flat[45, 4] = -np.inf  # sequence 10, step 7
    report = describe(write(inputs=flat, lengths=truth.lengths))
    assert whats(report) == [
        "feature 1 has 2 NaN or infinite values",
        "feature 4 has 1 NaN or infinite value",
        "1 feature never changes: 3 (2.5)",
        "1 sequence has no step",
    ]
    assert report.problems[0].found == "the first in sequence 1, step 1"
    assert report.problems[1].found == "the first in sequence 10, step 7"


def test_nan_in_padding_is_no_problem(make):
    assert not any("NaN" in what for what in whats(describe(make("dense"))))


@pytest.mark.parametrize(
    ("classes", "labels", "says"),
    [
        ([1, 2, 3, 1], None, "class indices are out of order: 1 to 3, without 0"),
        ([0, 1, 4, 1], None, "class indices are out of order: 0 to 4, without 2, 3"),
        ([0, 1, -1, 1], None, "a class index is negative"),
        ([0, 1, 2, 1], ["a", "b"], "class index 2 has no label"),
        ([0.0, 1, np.nan, 1], None, "1 target is NaN or infinite"),
    ],
)
def test_targets(write, classes, labels, says):
    x = np.random.default_rng(0).normal(size=(4, 3, 2))
    attrs = {} if labels is None else {"classes": labels}
    report = describe(write(inputs=x, targets=classes, attrs=attrs))
    assert says in whats(report)


def test_a_broken_part_does_not_hide_the_others(write, truth):
    path = write(
        good__inputs=truth.flat,
        good__lengths=truth.lengths,
        bad__inputs=truth.flat,
        bad__lengths=truth.lengths + 1,
    )
    with h5py.File(path, "a") as file:
        file["bad/out"] = h5py.ExternalLink("other.h5", "/x")
        file["good/up"] = file["/"]
    report = describe(path)
    assert [group.name for group in report.groups] == [f"{path}:/good"]
    assert any("the lengths add up to 57 steps" in what for what in whats(report))
    assert any("leads out of the file" in what for what in whats(report))
    refused = [stored.path for stored in report.datasets if stored.role == "refused"]
    assert refused == ["/bad/out"]
    with pytest.raises(DataError):
        open_data([f"{path}:/bad"])


def test_nothing_to_take(write):
    report = describe(write(a=np.zeros((2, 3)), b=np.zeros((4, 5))))
    assert report.groups == ()
    assert report.suggestion == ""
    assert {stored.path: stored.shape for stored in report.datasets} == {
        "/a": (2, 3),
        "/b": (4, 5),
    }


def test_storage(write):
    path = write()
    with h5py.File(path, "a") as file:
        file.create_dataset("inputs", data=np.zeros((40, 3, 2)), chunks=(10, 3, 2), compression=4)
        file.attrs["_NCProperties"] = "version=2"
    report = describe(path)
    (stored,) = report.datasets
    assert stored.chunks == (10, 3, 2)
    assert stored.compression == "deflate"
    assert 0 < stored.nbytes < 40 * 6 * 8
    assert report.format.startswith("NetCDF-4")


def test_describe_needs_a_file(tmp_path):
    with pytest.raises(DataError):
        describe(str(tmp_path / "no.h5"))
