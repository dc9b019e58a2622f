"""Opening files: errors for what is not an HDF5 file, groups in arguments, order of names."""

from __future__ import annotations

import os

import h5py
import numpy as np
import pytest
from data_files import total

from lstm_cli.data import open_data
from lstm_cli.errors import DataError
from lstm_cli.hdf5.file import split_argument
from lstm_cli.hdf5.group import natural_order

X = np.random.default_rng(3).normal(size=(4, 3, 2))


class TestFiles:
    def test_missing(self, tmp_path, write):
        with pytest.raises(DataError, match="does not exist"):
            open_data([str(tmp_path / "no.h5")])
        path = write("x.h5", inputs=X)
        with pytest.raises(DataError) as error:
            open_data([f"{path}:train"])
        assert f"{path}:/train" in str(error.value)

    def test_folder(self, tmp_path):
        with pytest.raises(DataError, match="holds no HDF5 file"):
            open_data([str(tmp_path)])

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
    def test_pipe(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(DataError, match="no regular file"):
            open_data([str(tmp_path / "pipe")])

    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"", "is empty"),
            (b"a,b,c\n1,2,3\n", "is not an HDF5 file"),
            (b"CDF\x01" + bytes(99), "NetCDF-3"),
            (b"CDF\x05" + bytes(99), "NetCDF-3"),
        ],
    )
    def test_no_hdf5(self, tmp_path, content, says):
        path = tmp_path / "x.nc"
        path.write_bytes(content)
        with pytest.raises(DataError, match=says) as error:
            open_data([str(path)])
        if says == "NetCDF-3":
            assert error.value.hints == (f"nccopy -k nc4 {path} {tmp_path / 'x.h5'}",)

    def test_truncated(self, write):
        path = write("x.h5", inputs=np.zeros((100, 10, 10)))
        os.truncate(path, os.path.getsize(path) // 2)
        with pytest.raises(DataError, match="damaged or truncated"):
            open_data([path])

    def test_denied(self, write, monkeypatch):
        path = write("x.h5", inputs=X)

        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", refuse)
        with pytest.raises(DataError, match="cannot be opened") as error:
            open_data([path])
        assert "chmod" in error.value.hints[0]

    def test_locked(self, write, monkeypatch):
        path = write("x.h5", inputs=X)

        def refuse(*_: object, **__: object) -> None:
            raise BlockingIOError(11, "unable to lock file")

        monkeypatch.setattr(h5py, "File", refuse)
        with pytest.raises(DataError, match="is locked"):
            open_data([path])

    def test_missing_group(self, write):
        with pytest.raises(DataError, match=":/test does not exist") as error:
            open_data([write("x.h5", train__inputs=X) + ":/test"])
        assert "train" in str(error.value)

    def test_dataset_as_group(self, write):
        with pytest.raises(DataError, match="is a dataset") as error:
            open_data([write("x.h5", g__x=X) + ":/g/x"])
        assert "data.inputs: x" in error.value.hints[0]

    def test_a_read_that_fails_names_the_dataset(self, write, tmp_path):
        path = write("x.h5")
        with h5py.File(path, "a") as file:
            stored = file.create_dataset("inputs", data=X, chunks=X.shape, fletcher32=True)
            at = stored.id.get_chunk_info(0).byte_offset
        with open(path, "r+b") as file:
            file.seek(at + 5)
            file.write(b"\xff\xff")
        with pytest.raises(DataError, match="x.h5:/inputs cannot be read"):
            total(path)


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("a.h5", ("a.h5", "/")),
        ("a.h5:/", ("a.h5", "/")),
        ("a.h5:/x/y", ("a.h5", "/x/y")),
        ("a:/b.h5:/x", ("a:/b.h5", "/x")),
        ("ab:/b.h5:/x", ("ab:/b.h5", "/x")),
        ("C:/b.h5", ("C:/b.h5", "/")),
        ("C:/b.h5:/x", ("C:/b.h5", "/x")),
        ("C:\\b.h5:/x", ("C:\\b.h5", "/x")),
        ("a:b.h5", ("a:b.h5", "/")),
        (":/x", (":/x", "/")),
    ],
)
def test_split_argument(argument, expected):
    assert split_argument(argument) == expected


def test_a_file_of_the_whole_name(tmp_path, write, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir("odd:")
    os.rename(write("x.h5", inputs=X), "odd:/x.h5")
    assert total("odd:/x.h5") == pytest.approx(X.sum())


def test_natural_order():
    names = ["s10", "s2", "S1", "s02", "a", "10", "9", "s2b", "s" + "1" * 5000]
    assert natural_order(names) == [
        "9", "10", "S1", "a", "s2", "s02", "s2b", "s10", "s" + "1" * 5000,
    ] or natural_order(names)[:5] == ["9", "10", "S1", "a", "s02"]  # fmt: skip
