"""Files that hold something else than sequences: named for what they are, with hints that work."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import tarfile
import zipfile

import h5py
import numpy as np
import pytest
from data_files import run_hint

from lstm_cli.data import DataOptions, describe, holds_data, holds_network, open_data
from lstm_cli.errors import DataError

RNG = np.random.default_rng(8)
A, B = RNG.normal(size=(20, 2)), RNG.integers(0, 9, (20, 1))


pytestmark = pytest.mark.usefixtures("in_tmp_path")


def problem(path, options=None):
    with pytest.raises(DataError) as caught:
        open_data([path], options)
    (one,) = caught.value.problems
    assert one in describe_problems(path)
    return one


def describe_problems(path):
    try:
        return describe(path).problems
    except DataError as error:
        return error.problems


def rows(path, options=None):
    with open_data([path], options) as data:
        return next(data.batches(9, np.float64)).x[0]


def named(hint):
    return DataOptions(inputs=re.search(r"data\.inputs: (\S+)", hint)[1])


def pandas_fixed(path, blocks, key="df", kind="frame", **types):
    with h5py.File(path, "a") as file:
        file.attrs["PYTABLES_FORMAT_VERSION"] = np.bytes_("2.1")
        frame = file.create_group(key)
        frame.attrs["pandas_type"] = np.bytes_(kind)
        frame["axis0"] = np.array([b"a", b"b", b"n"])
        frame["axis1"] = np.arange(20)
        for k, (columns, values) in enumerate(blocks.items()):
            frame[f"block{k}_items"] = np.array([name.encode() for name in columns.split()])
            frame[f"block{k}_values"] = values
            if columns in types:
                frame[f"block{k}_values"].attrs["value_type"] = np.bytes_(types[columns])


def table_of(**columns):
    kinds = [(name, v.dtype, v.shape[1:]) for name, v in columns.items()]
    table = np.zeros(20, kinds)
    for name, values in columns.items():
        table[name] = values
    return table


class TestPandas:
    @pytest.mark.parametrize("where", ["", ":/df"])
    def test_fixed_of_one_type(self, where):
        pandas_fixed("p.h5", {"a b": A})
        one = problem(f"p.h5{where}")
        assert one.what == "p.h5:/df is a table of pandas (frame)"
        assert "block0_values (20, 2) holds a, b" in one.found
        np.testing.assert_array_equal(rows(f"p.h5{where}", named(one.hint)), A)

    def test_fixed_of_several_types(self):
        pandas_fixed("p.h5", {"a b": A, "n": B, "t": B}, t="datetime64[ns]")
        one = problem("p.h5:/df")  # two blocks of one column are no two sequences
        assert one.found.endswith("no numbers: t")
        np.testing.assert_array_equal(rows(run_hint(one.hint)), np.hstack([A, B]))

    def test_several_frames(self):
        for key in ("train", "test"):
            pandas_fixed("p.h5", {"a b": A}, key=key)
        one = problem("p.h5")
        assert "p.h5:/test is a table" in one.what
        assert "other tables are p.h5:/train" in one.found
        assert rows("p.h5", named(one.hint)).shape == (20, 2)

    def test_series(self, write):
        path = write("s.h5", s__index=np.arange(20), s__values=A[:, 0])
        with h5py.File(path, "a") as file:
            file["s"].attrs["pandas_type"] = "series"
        one = problem(path)
        assert "a series of pandas" in one.what
        np.testing.assert_array_equal(rows(path, named(one.hint)), A[:, :1])

    def test_table(self):
        with h5py.File("t.h5", "w") as file:
            frame = file.create_group("deep/df")
            frame.attrs["pandas_type"] = np.bytes_("frame_table")
            frame["table"] = table_of(
                index=np.arange(20), values_block_0=A, when=B[:, 0], n=B, s=np.full(20, b"x")
            )
            frame["table"].attrs["CLASS"] = np.bytes_("TABLE")
            frame["table"].attrs["when_dtype"] = np.bytes_("datetime64[ns]")
            frame.create_group("_i_table").attrs["CLASS"] = np.bytes_("TINDEX")
            frame["_i_table/sorted"] = np.zeros((0, 128))
        one = problem("t.h5")
        assert one.what == "t.h5:/deep/df is a table of pandas (frame_table)"
        np.testing.assert_array_equal(rows(run_hint(one.hint)), np.hstack([A, B]))
        assert [stored.path for stored in describe("t.h5").datasets] == ["/deep/df/table"]

    def test_a_config_that_names_datasets_is_told_too(self):
        pandas_fixed("p.h5", {"a b": A})
        with pytest.raises(DataError, match="of pandas"):
            open_data(["p.h5"], DataOptions(inputs="inputs", lengths="lengths"))


def test_rows_of_named_columns(write):
    table = table_of(a=A[:, 0], n=np.full(20, b"x"), b=A)
    for name in ("inputs", "readings"):
        one = problem(write(f"{name}.h5", **{name: table}))
        assert "does not hold numbers, but rows of named columns" in one.what
        assert one.found == "20 rows of a, b, n (no number)"
        np.testing.assert_array_equal(rows(run_hint(one.hint)), np.hstack([A[:, :1], A]))


@pytest.mark.parametrize("kind", ["csr_matrix", "csc_matrix"])
def test_a_sparse_matrix(kind):
    dense = np.where(RNG.random((7, 4)) < 0.5, RNG.normal(size=(7, 4)), 0)
    by_row = dense if kind == "csr_matrix" else dense.T
    with h5py.File("a.h5ad", "w") as file:
        matrix = file.create_group("X")
        matrix.attrs.update({"encoding-type": kind, "shape": dense.shape})
        matrix["data"] = by_row[by_row != 0]
        matrix["indices"] = np.nonzero(by_row)[1]
        matrix["indptr"] = np.concatenate([[0], np.cumsum((by_row != 0).sum(axis=1))])
    one = problem("a.h5ad")
    assert "X is a sparse matrix" in one.what
    np.testing.assert_array_equal(rows(run_hint(one.hint)), dense)


@pytest.mark.parametrize("shape", [3, 1.5, "x", [1.5, 2.5], ["a", "b"], [[7, 4]], [7], None])
@pytest.mark.parametrize("kind", ["csr_matrix", b"csr_matrix"])
def test_a_sparse_matrix_whose_shape_is_none(kind, shape):
    with h5py.File("a.h5ad", "w") as file:
        matrix = file.create_group("X")
        matrix.attrs["encoding-type"] = kind
        matrix.attrs["shape"] = h5py.Empty("i4") if shape is None else shape
        for name in ("data", "indices", "indptr"):
            matrix[name] = [0, 1]
    assert "X is a sparse matrix (csr_matrix)" in problem("a.h5ad").what


def test_attributes_of_several_words(write):
    words = {"CLASS": ["DIMENSION_SCALE", "b"], "MATLAB_class": [b"cell", b"char"]}
    path = write("w.h5", inputs=np.ones((6, 5, 3)), other=np.ones(6), objects=["a"] * 6)
    with h5py.File(path, "a") as file:
        file.create_group("table").attrs.update(words)
        for name in ("inputs", "other", "objects"):
            file[name].attrs.update(words)
    options = DataOptions(transpose=False)
    report = describe(str(path), options)
    assert report.groups, report.problems
    assert rows(path, options).shape == (5, 3)


class TestNetcdf:
    def write(self, **variables):
        with h5py.File("n.nc", "w") as file:
            file.attrs["_NCProperties"] = "version=2"
            file["time"] = np.arange(20)
            file["time"].make_scale("time")
            for name, values in variables.items():
                file[name] = values
        return "n.nc"

    def test_variables_are_no_sequences(self):
        path = self.write(rain=A, temperature=A + 1)
        one = problem(path)
        assert "several NetCDF variables" in one.what
        np.testing.assert_array_equal(rows(path, named(one.hint.replace(";", " "))), A)
        np.testing.assert_array_equal(rows(run_hint(one.hint)), np.hstack([A, A + 1]))
        with open_data([path], DataOptions(layout="groups")) as data:
            assert data.names == ["rain", "temperature"]

    def test_packed_numbers_and_the_axis_of_time_are_noted(self):
        path = self.write(t2m=np.zeros((20, 3, 4), "i2"))
        with h5py.File(path, "a") as file:
            file["t2m"].attrs["scale_factor"] = 0.1
        with open_data([path]) as data:
            packed, axis = data.notes
        assert "without scale_factor" in packed
        assert "is /time, but is read as sequences" in axis


class TestKeras:
    @pytest.mark.parametrize("mark", ["model_config", "layer_names", "keras_version"])
    def test_named(self, write, mark):
        path = write("m.h5", attrs={mark: "{}"}, dense__kernel=A)
        assert "holds a Keras network" in problem(path).what
        assert holds_network(path)
        assert holds_data(path) is None

    def test_weights_of_keras_3(self, write):
        path = write("m.weights.h5", layers__dense__vars__0=A)
        assert "holds a Keras network" in problem(path).what


@pytest.mark.parametrize("depth", ["a", "a/b", "a/b/c"])
def test_a_group_further_down_is_named(depth):
    with h5py.File("d.h5", "w") as file:
        file[f"{depth}/train/inputs"] = np.zeros((3, 4, 2))
        file[f"{depth}/test/inputs"] = np.zeros((3, 4, 2))
    hint = problem("d.h5").hint
    for part in ("train", "test"):
        assert f"d.h5:/{depth}/{part}" in hint
        assert rows(f"d.h5:/{depth}/{part}").shape == (4, 2)


def test_arrays_under_other_names_are_proposed(write):
    path = write(g__values=A, g__more=np.zeros((5, 4, 3)))
    one = problem(path)
    assert "data.inputs: g/more" in one.hint
    assert rows(path, DataOptions(inputs="g/values")).shape == (20, 2)


class TestOtherFiles:
    def test_npz(self):
        np.savez("a.npz", inputs=A, lengths=[12, 8])
        one = problem("a.npz")
        assert "a NumPy archive (.npz)" in one.what
        assert one.found == "arrays inputs, lengths"
        with open_data([run_hint(one.hint)]) as data:
            assert data.lengths().tolist() == [12, 8]

    def test_npy(self):
        np.save("a.npy", A)
        np.testing.assert_array_equal(rows(run_hint(problem("a.npy").hint)), A)

    @pytest.mark.parametrize("delimiter", [",", ";", "\t", " "])
    @pytest.mark.parametrize("header", ["", "first{}second"])
    def test_columns(self, delimiter, header):
        name = "it's.csv"
        np.savetxt(name, A, delimiter=delimiter, header=header.format(delimiter), comments="")
        if not header:
            np.savetxt(name, A, delimiter=delimiter)
        np.testing.assert_array_equal(rows(run_hint(problem(name).hint)), A)

    @pytest.mark.parametrize(
        ("name", "content", "says"),
        [
            ("c.yaml", b"model:\n  input_size: 2\n", "is a config"),
            ("c", b"# mine\nmodel:\n  input_size: 2\n", "is a config"),
            ("metrics.jsonl", b'{"epoch": 1, "loss": 2.0}\n', "metrics of a training run"),
            ("d.json", b'{"a": 1}', "is JSON"),
            ("d.parquet", b"PAR1....", "a Parquet file"),
            ("d.h5.gz", b"\x1f\x8b\x08\0", "is compressed (gzip)"),
            ("d.pkl", b"\x80\x04K\x01.", "a Python pickle"),
            ("d.mat", b"MATLAB 5.0 MAT-file, ...", "MATLAB's older format"),
            ("d.zip", b"PK\3\4 damaged", "a damaged zip archive"),
            ("m.onnx", b"\x08\x08\x12", "a network's weights"),
            ("d.h5", b"\x80\x81\x82", "not an HDF5 file"),
            ("d.txt", b"", "is empty"),
        ],
    )
    def test_named(self, name, content, says):
        with open(name, "wb") as file:
            file.write(content)
        assert says in problem(name).what

    def test_tar(self):
        with tarfile.open("d.tar", "w") as tar:
            tar.addfile(tarfile.TarInfo("a"), io.BytesIO())
        assert "compressed (tar)" in problem("d.tar").what

    @pytest.mark.parametrize(
        ("member", "says"),
        [
            ("archive/data.pkl", "a PyTorch file"),
            ("config.json", "a Keras model"),
            ("[Content_Types].xml", "an Excel workbook"),
            ("x.h5", "a zip archive"),
        ],
    )
    def test_archives(self, member, says):
        with zipfile.ZipFile("d.bin", "w") as archive:
            archive.writestr(member, b"")
        assert says in problem("d.bin").what

    @pytest.mark.parametrize(
        ("texts", "says"),
        [
            ({}, "weights (safetensors)"),
            ({"format": "lstm-cli"}, "lstm-cli's weights of a network that normalizes its inputs"),
            ({"format": "lstm-cli", "training": "{}"}, "the checkpoint of a training run"),
        ],
    )
    def test_safetensors(self, texts, says):
        tensor = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
        header = json.dumps({"__metadata__": texts, "inputs.mean": tensor}).encode()
        with open("w.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(header)) + header + bytes(8))
        one = problem("w.safetensors")
        assert says in one.what
        assert "inputs.mean (2,)" in one.found

    @pytest.mark.parametrize("header", [b"{", b"[1]", b'{"__metadata__": 1}', b'{"a": 1}'])
    def test_a_header_that_is_none(self, header):
        with open("w.safetensors", "wb") as file:
            file.write(struct.pack("<Q", len(header)) + header)
        assert problem("w.safetensors").hint is None or "CONFIG" in problem("w.safetensors").hint

    def test_folders(self):
        os.makedirs("run")
        assert describe_problems("run")[0].what == "run is a folder"
        np.savez("run/x.npz", A)
        with h5py.File("run/a.h5", "w") as file:
            file["inputs"] = A
        assert describe_problems("run")[0].hint == "name its files: run/a.h5"
        for name in ("model.safetensors", "config.yaml"):
            open(f"run/{name}", "w").close()
        assert problem("run").what == "run is the folder of a training run"
        assert "lstm-cli run run/model.safetensors DATA" in problem("run").hint
