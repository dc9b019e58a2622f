"""`describe` says what a file holds and finds every planted fault."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from data_files import LAYOUTS, write_vlen
from repository import ROOT

from lstm_cli.data import DataOptions, describe, open_data
from lstm_cli.errors import DataError


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


@pytest.mark.parametrize("size", [1, 3, 1024])
def test_no_numbers_and_constants(write, truth, monkeypatch, size):
    monkeypatch.setattr("lstm_cli.data.statistics.SCAN_SEQUENCES", size)
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
        ([1, 2, 3, 1], None, "class indices have gaps: 1 to 3, without 0"),
        ([0, 1, 4, 1], None, "class indices have gaps: 0 to 4, without 2, 3"),
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


class TestRowsOfUnknownFeatures:
    """vlen rows where neither an attribute nor lengths say how many features a step has."""

    def test_sizes_and_candidates(self, write):
        path = write(targets=[0, 1, 2, 1])
        write_vlen(path, "inputs", [np.arange(float(n)) for n in (12, 30, 18, 24)])
        report = describe(path)
        (group,) = report.groups
        assert (group.layout, group.count, group.values) == ("vlen", 4, (12, 21.0, 30))
        assert (group.features, group.steps, group.total_steps) == (None, None, None)
        assert group.candidates == (1, 2, 3, 6)
        assert group.class_counts == {0: 1, 1: 2, 2: 1}
        assert {stored.path: stored.role for stored in report.datasets}["/inputs"] == "inputs"
        assert "input_size: 6" in report.suggestion
        (problem,) = report.problems
        assert "nothing says how many features" in problem.what
        assert "--set" not in problem.hint
        assert "model.input_size" in problem.hint

    def test_no_row(self, write):
        path = write()
        write_vlen(path, "inputs", [])
        report = describe(path)
        assert report.groups == ()
        assert any("holds no sequences" in what for what in whats(report))

    def test_told_after_all(self, write):
        path = write()
        write_vlen(path, "inputs", [np.arange(12.0), np.arange(30.0)])
        with h5py.File(path, "a") as file:
            file["inputs"].attrs["features"] = 3
        (group,) = describe(path).groups
        assert (group.features, group.steps, group.candidates) == (3, (4, 7.0, 10), ())


def test_groups_of_different_features_are_no_series(write):
    sizes = {"a": 5, "b": 4, "c": 5}
    path = write(**{f"{name}__inputs": np.ones((3, D)) for name, D in sizes.items()})
    report = describe(path)
    assert report.groups == ()
    assert report.suggestion == ""
    (what,) = whats(report)
    assert what.startswith("sequences differ in features")


@pytest.mark.parametrize("layout", ["groups", "concatenated"])
def test_an_empty_sequence_is_named(write, layout):
    rng = np.random.default_rng(4)
    rows = [rng.normal(size=(T, 2)) for T in (4, 3, 5, 0, 2)]
    if layout == "groups":
        path = write(**{f"seq{n}__inputs": row for n, row in enumerate(rows)})
        place, name = f"{path}:/seq3/inputs", "seq3"
    else:
        names = [f"n{n}" for n in range(5)]
        path = write(inputs=np.concatenate(rows), lengths=[4, 3, 5, 0, 2], names=names)
        place, name = f"{path}:/inputs", "n3"
    (problem,) = describe(path).problems
    assert problem.what == "1 sequence has no step"
    assert problem.found == f"sequence 3 ({name})"
    assert problem.where == (place,)


def test_a_bad_value_is_placed_in_its_group(write):
    rows = [np.random.default_rng(n).normal(size=(4, 2)) for n in range(3)]
    rows[2][1, 0] = np.nan
    path = write(**{f"seq{n}__inputs": row for n, row in enumerate(rows)})
    (problem,) = describe(path).problems
    assert problem.found == "the first in sequence 2 (seq2), step 1"
    assert problem.where == (f"{path}:/seq2/inputs",)


class TestNotes:
    """Datasets that may be targets, but are not read, are noted."""

    X = np.random.default_rng(1).normal(size=(3, 4, 2))

    def notes(self, path):
        with open_data([path]) as data:
            told = [problem.what for problem in describe(path).problems]
            assert [note for note in data.notes if note not in told] == []
            return data.notes

    def test_text(self, write):
        path = write(inputs=self.X, targets=["cat", "dog", "cat"])
        assert self.notes(path) == (
            f"{path}:/targets holds text, not numbers: not read as targets",
        )

    def test_complex(self, write):
        with pytest.raises(DataError, match="complex"):
            self.notes(write(inputs=self.X, y=np.ones(3, complex)))

    @pytest.mark.parametrize("name", ["targets", "labels"])
    def test_in_groups(self, write, name):
        data = {f"s{n}__inputs": self.X[n] for n in range(3)}
        path = write(**data, **{f"s{n}__{name}": "cat" for n in range(3)})
        (note,) = self.notes(path)
        assert note.startswith(f"{path}:/s0/{name} holds text")

    def test_a_link_to_nothing(self, write):
        path = write(inputs=self.X, targets=h5py.SoftLink("/nowhere"))
        (note,) = self.notes(path)
        assert "is a link to /nowhere" in note

    def test_labels_of_classes_are_none(self, write):
        labeled = {"inputs": self.X, "labels": ["cat", "dog"]}
        assert self.notes(write("a.h5", **labeled)) == ()
        assert self.notes(write("b.h5", **labeled, y=[0, 1, 1])) == ()
        assert len(self.notes(write("c.h5", inputs=self.X, labels=["cat", "dog", "cat"]))) == 1

    def test_what_is_like_the_inputs(self, write):
        parts = {"x": self.X[0], "x1": self.X[1], "x2": np.ones((9, 2)), "z": np.ones((4, 3))}
        (note,) = self.notes(write("a.h5", **parts, time=np.arange(5.0)))
        assert "/x1, " in note
        assert "/x2: shaped like" in note
        assert "/z" not in note
        (note,) = self.notes(write("b.h5", inputs=self.X, more=np.ones((7, 4, 2))))
        assert "/more: shaped like" in note
        (note,) = self.notes(write("c.h5", x=np.arange(9.0), x1=np.arange(9.0), n=np.arange(9)))
        assert "/x1: shaped like" in note
        assert "/n" not in note

    def test_what_may_be_targets(self, write):
        for n, label in enumerate((np.zeros(3), np.zeros((3, 4)), np.zeros((3, 2), int))):
            (note,) = self.notes(write(f"{n}.h5", inputs=self.X, label=label))
            assert "data.targets: label reads them" in note
        assert self.notes(write(inputs=self.X, age=np.zeros(3))) == ()
        path = write("t.h5", inputs=self.X, label=np.zeros(3), targets=np.zeros(3))
        assert self.notes(path) == ()
        (note,) = self.notes(write("u.h5", inputs=self.X, label=np.zeros(3), y=np.zeros(3)))
        assert "/label: may be targets too, but" in note
        (note,) = self.notes(write("c.h5", inputs=self.X, classes=np.arange(3)))
        assert "data.targets: classes reads them" in note
        with open_data([path := write("v.h5", inputs=self.X, label=[b"a", b"b", b"a"])]) as data:
            assert data.targets is None
        assert self.notes(path) == (f"{path}:/label holds text, not numbers: not read as targets",)

    def test_text_under_a_usual_name_beside_several_arrays(self, write):
        path = write(features=[b"a", b"b"], one=self.X, two=self.X)
        with pytest.raises(DataError, match="data.inputs: one; or data.inputs: two") as caught:
            open_data([path])
        assert "/features does not hold numbers" in str(caught.value)
        assert open_data([path], DataOptions(inputs="two")).count == 3

    def test_several_targets(self, write):
        (note,) = self.notes(write(inputs=self.X, targets=np.zeros(3), y=np.zeros(3)))
        assert "/y: may be targets too, but targets is read; data.targets: y reads it" in note

    def test_what_stands_beside_groups(self, write):
        parts = {f"s{n}__inputs": self.X[n] for n in range(3)}
        (note,) = self.notes(write("a.h5", **parts, targets=np.zeros(3), about="words"))
        assert "/targets: next to the sequences" in note
        parts = {f"s{n}": self.X[n] for n in range(3)}
        (note,) = self.notes(write("b.h5", **parts, targets=np.zeros(3), label=np.zeros(3)))
        assert "/label, " in note
        with pytest.raises(DataError, match="each dataset of .* is a sequence"):
            open_data([write("b.h5")], DataOptions(targets="label"))

    def test_groups_beside_inputs(self, write):
        (note,) = self.notes(write(inputs=self.X, more__inputs=self.X))
        assert "/more: more sequences, which are not read" in note

    def test_a_refused_link_beside_targets_is_not_followed(self, write):
        path = write(inputs=self.X, targets=np.zeros(3), y=h5py.ExternalLink("other.h5", "/y"))
        with open_data([path]) as data:
            assert data.notes == ()

    @pytest.mark.parametrize(
        "path",
        [
            "japanese-vowels.h5:/train",
            "japanese-vowels.h5:/test",
            "sunspots.h5",
            "tmva-time.h5:/test",
        ],
    )
    def test_shipped_data_leave_nothing_out(self, path):
        with open_data([str(ROOT / "data" / path)]) as data:
            assert data.notes == ()

    def test_returnn_and_netcdf_have_datasets_of_their_own(self, write):
        rows, table = np.zeros((5, 2)), np.array([[2, 2], [3, 3]])
        path = write(
            "a.h5",
            inputs=rows,
            seqLengths=table,
            seqTags=[b"a", b"b"],
            targets__data__data=rows,
            targets__labels__data=[b"x"],
        )
        assert self.notes(path) == ()
        path = write("b.h5", inputs=rows, seqLengths=[2, 3], targetClasses=np.zeros(5, int))
        with h5py.File(path, "a") as file:
            file["inputMeans"], file["numTimesteps"] = np.zeros(2), np.zeros(5)
            file["numTimesteps"].make_scale("numTimesteps")
        assert self.notes(path) == ()


def test_a_link_to_nothing_is_told(write):
    (problem,) = describe(write(inputs=h5py.SoftLink("/nowhere"), words="x")).problems
    assert "holds no inputs" in problem.what
    assert problem.found == "inputs (a link to /nowhere, which is missing), words ()"
    assert problem.hint is None  # no dataset there could be inputs


def test_what_is_refused_shows_what_it_declares(write):
    path = write(inputs=np.ones((3, 4, 2)), out=h5py.ExternalLink("other.h5", "/x"))
    with h5py.File(path, "a") as file:
        file.create_dataset("bomb", (1 << 30, 3), "f8", chunks=(1024, 3))
        file.create_dataset("raw", (5,), "f4", external=[("raw.bin", 0, 20)])
        layout = h5py.VirtualLayout((4,), "i2")
        layout[:] = h5py.VirtualSource("other.h5", "/x", shape=(4,))
        file.create_virtual_dataset("virtual", layout)
        file["words"] = ["a", "b"]
    result = {
        stored.path: (stored.shape, stored.dtype, stored.storage, stored.chunks, stored.role)
        for stored in describe(path).datasets
    }
    assert result == {
        "/bomb": ((1 << 30, 3), "float64", "chunked", (1024, 3), "refused"),
        "/inputs": ((3, 4, 2), "float64", "contiguous", None, "inputs"),
        "/out": (None, "?", "external link", None, "refused"),
        "/raw": ((5,), "float32", "external storage", None, "refused"),
        "/virtual": ((4,), "int16", "virtual", None, "refused"),
        "/words": ((2,), "text", "contiguous", None, ""),
    }
    heap = {stored.path for stored in describe(path).datasets if stored.in_heap}
    assert heap == {"/words"}


def test_hints_can_be_pasted(write):
    path = write("two parts.h5", train__inputs=np.ones((3, 4, 2)), test__inputs=np.ones((3, 4, 2)))
    with pytest.raises(DataError) as error:
        open_data([path])
    assert f"'{path}:/test'" in error.value.hints[0]
    with pytest.raises(DataError) as error:
        open_data([f"{path}:/none"])
    assert error.value.hints == (f"lstm-cli data '{path}'",)
