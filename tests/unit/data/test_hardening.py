"""What leads out of a file, declares more than it holds, or is no HDF5, is refused by name."""

from __future__ import annotations

import os

import h5py
import numpy as np
import pytest

from lstm_cli.data import DataOptions, open_data
from lstm_cli.data.files import split_argument
from lstm_cli.data.links import natural_order
from lstm_cli.errors import DataError

ALLOWED = DataOptions(allow_external=True)
X = np.random.default_rng(3).normal(size=(4, 3, 2))


@pytest.fixture
def secret(write):
    return write("secret.h5", inputs=X, g__inputs=X)


def link(path, **links):
    with h5py.File(path, "a") as file:
        for name, target in links.items():
            file[name.replace("__", "/")] = target
    return path


def total(path, options=None):
    with open_data([path], options) as data:
        return sum(batch.x.sum() for batch in data.batches(2, np.float64))


class TestExternalLinks:
    CASES = {  # noqa: RUF012
        "dataset": ("", {"inputs": h5py.ExternalLink("secret.h5", "/inputs")}),
        "group": (":/g", {"g": h5py.ExternalLink("secret.h5", "/g")}),
        "middle": (
            "",
            {
                "out": h5py.ExternalLink("secret.h5", "/"),
                "inputs": h5py.SoftLink("/out/g/inputs"),
            },
        ),
        "in the argument": (":/out/g", {"out": h5py.ExternalLink("secret.h5", "/")}),
        "two soft links": (
            ":/a",
            {
                "out": h5py.ExternalLink("secret.h5", "/g"),
                "b": h5py.SoftLink("out"),
                "a": h5py.SoftLink("./b/"),
            },
        ),
    }

    @pytest.mark.parametrize("case", CASES)
    def test_refused_unless_allowed(self, write, secret, case, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)
        group, links = self.CASES[case]
        path = link(write("x.h5", other=1), **links) + group
        with pytest.raises(DataError, match="leads out of the file") as error:
            open_data([path])
        assert "secret.h5" in str(error.value)
        assert "--allow-external" in str(error.value)
        assert total(path, ALLOWED) == pytest.approx(X.sum())

    def test_one_bad_sibling_does_not_matter(self, write, secret):
        path = link(write("x.h5", inputs=X), bad=h5py.ExternalLink("secret.h5", "/inputs"))
        link(path, targets2=h5py.SoftLink("/nowhere"))
        assert total(path) == pytest.approx(X.sum())

    def test_an_external_sequence_is_refused(self, write, secret):
        path = link(write("x.h5", a__inputs=X[0]), b=h5py.ExternalLink("secret.h5", "/g"))
        with pytest.raises(DataError, match="leads out of the file"):
            open_data([path])


class TestSoftLinks:
    def test_within_the_file(self, write):
        path = write("x.h5", deep__er__stuff=X)
        link(path, s=h5py.SoftLink("deep/er"), g__inputs=h5py.SoftLink("/s/stuff"))
        assert total(path + ":/g") == pytest.approx(X.sum())

    @pytest.mark.parametrize("group", ["/loop", "/loop/inputs", "/self", "/ping/x"])
    def test_circles(self, write, group):
        path = write("x.h5", inputs=X)
        link(path, loop=h5py.SoftLink("/loop"), self=h5py.SoftLink("self/self"))
        link(path, ping=h5py.SoftLink("pong"), pong=h5py.SoftLink("ping"))
        with pytest.raises(DataError, match="leads nowhere"):
            open_data([f"{path}:{group}"])

    def test_hard_circle(self, write):
        path = write("x.h5", g__inputs=X)
        with h5py.File(path, "a") as file:
            file["g/up"] = file["/"]
        assert total(path + ":/g/up/g/up/g") == pytest.approx(X.sum())


class TestStorage:
    def test_virtual(self, write, secret, tmp_path):
        path = write("x.h5", other=1)
        layout = h5py.VirtualLayout(X.shape, X.dtype)
        layout[...] = h5py.VirtualSource(secret, "inputs", X.shape)
        with h5py.File(path, "a") as file:
            file.create_virtual_dataset("inputs", layout)
        with pytest.raises(DataError, match="virtual dataset"):
            open_data([path])
        assert total(path, ALLOWED) == pytest.approx(X.sum())

    def test_external(self, write, tmp_path):
        raw = tmp_path / "raw.bin"
        raw.write_bytes(X.tobytes())
        path = write("x.h5", other=1)
        with h5py.File(path, "a") as file:
            file.create_dataset("inputs", X.shape, "f8", external=[(str(raw), 0, X.nbytes)])
        with pytest.raises(DataError, match=r"external storage.*raw\.bin"):
            open_data([path])
        assert total(path, ALLOWED) == pytest.approx(X.sum())

    @pytest.mark.parametrize("chunks", [None, (64, 64, 8)])
    @pytest.mark.parametrize("name", ["inputs", "lengths", "targets", "mask"])
    def test_shape_bomb(self, write, chunks, name):
        path = write("x.h5", **({} if name == "inputs" else {"inputs": X}))
        with h5py.File(path, "a") as file:
            bomb = file.create_dataset(name, (1 << 20, 1 << 10, 1 << 3), "f8", chunks=chunks)
            if chunks:
                bomb[:64] = 1
        with pytest.raises(DataError, match="declares far more"):
            open_data([path])

    def test_good_compression_is_no_bomb(self, write):
        path = write("x.h5")
        with h5py.File(path, "a") as file:
            shape = (1500, 50, 40)
            file.create_dataset("inputs", shape, "f8", chunks=(500, 50, 40), compression="gzip")
            file["inputs"][...] = 0
        assert os.path.getsize(path) < 1 << 20
        assert total(path) == 0

    @pytest.mark.parametrize(("chunks", "refused"), [(2, False), (1, True)])
    def test_a_quarter_of_the_chunks_must_exist(self, write, chunks, refused):
        path = write("x.h5")
        with h5py.File(path, "a") as file:
            many, few = 8 << 17, 1 << 17
            file.create_dataset("inputs", (many, 3, 3), "f8", chunks=(few, 3, 3), compression=1)
            file["inputs"][: chunks * few] = np.zeros((chunks * few, 3, 3))
        if refused:
            with pytest.raises(DataError, match="1 of 8 chunks"):
                open_data([path])
        else:
            open_data([path]).close()

    def test_small_shapes_may_be_empty(self, write):
        path = write("x.h5")
        with h5py.File(path, "a") as file:
            file.create_dataset("inputs", (10, 5, 2), "f4")
        assert total(path) == 0

    def test_missing_filter(self, write, monkeypatch):
        path = write("x.h5")
        with h5py.File(path, "a") as file:
            file.create_dataset("inputs", data=X, compression="lzf")
        monkeypatch.setattr("lstm_cli.data.storage._filter_available", lambda code: False)
        with pytest.raises(DataError, match="filter 32000, lzf") as error:
            open_data([path])
        assert error.value.hints == ("pip install hdf5plugin",)

    @pytest.mark.parametrize(
        "make",
        [
            lambda f: f.create_dataset("inputs", data=[f.ref], dtype=h5py.ref_dtype),
            lambda f: f.create_dataset("inputs", (3,), h5py.regionref_dtype),
            lambda f: f.create_dataset("inputs", data=h5py.Empty("f8")),
            lambda f: f.create_dataset("inputs", data=3.5),
            lambda f: f.create_dataset("inputs", (3, 2, 2), np.dtype("(2,3)f4")),
            lambda f: f.create_dataset("inputs", (3,), h5py.string_dtype()),
            lambda f: f.create_dataset("inputs", (3, 2), h5py.opaque_dtype(np.dtype("M8[ns]"))),
            lambda f: f.__setitem__("inputs", np.dtype("f8")),
            lambda f: f.create_group("inputs"),
        ],
    )
    def test_odd_types(self, write, make):
        path = write("x.h5", lengths=[1, 2])
        with h5py.File(path, "a") as file:
            make(file)
        with pytest.raises(DataError):
            open_data([path])


class TestHeap:
    """A collection whose chain of objects gets nowhere keeps HDF5 busy for ever."""

    @staticmethod
    def damaged(path, size, index=1):
        """The first object of the file's heap with another size and index."""
        with open(path, "r+b") as file:
            start = file.read().find(b"GCOL") + 16
            file.seek(start)
            file.write(index.to_bytes(2, "little"))
            file.seek(start + 8)
            file.write(size.to_bytes(8, "little"))

    @pytest.mark.parametrize(
        ("size", "index"),
        [(0, 0), (2**64 - 16, 1), (2**64 - 40, 0), (2**64 - 64, 1), (2**64 - 1, 0)],
    )
    def test_rows(self, write, size, index):
        path = write("x.h5", attrs={"features": 2})
        with h5py.File(path, "a") as file:
            rows = file.create_dataset("inputs", (3,), h5py.vlen_dtype(np.float64))
            for n in range(3):
                rows[n] = np.arange(2.0 * n + 2)
        assert total(path) == 1 + 6 + 15
        self.damaged(path, size, index)
        with pytest.raises(DataError, match="the file's heap is damaged"):
            total(path)

    def test_names_and_attributes(self, write):
        names = write("x.h5", inputs=X, names=["a", "b", "c", "d"])
        labels = write("y.h5", inputs=X, attrs={"classes": ["a", "b"]})
        for path in (names, labels):
            self.damaged(path, 0, 0)
            with open_data([path]) as data, pytest.raises(DataError, match="heap is damaged"):
                _ = data.names, data.class_labels

    def test_rows_as_an_attribute_are_not_read(self, write):
        path = write("x.h5", inputs=X)
        with h5py.File(path, "a") as file:
            rows = np.empty(2, object)
            rows[:] = [np.arange(2.0), np.arange(3.0)]
            file.attrs.create("classes", rows, dtype=h5py.vlen_dtype(np.float64))
        with open_data([path]) as data:
            assert data.class_labels is None


class TestFiles:
    def test_missing(self, tmp_path, write):
        with pytest.raises(DataError, match="does not exist"):
            open_data([str(tmp_path / "no.h5")])
        path = write("x.h5", inputs=X)
        with pytest.raises(DataError) as error:
            open_data([f"{path}:train"])
        assert f"{path}:/train" in str(error.value)

    def test_folder(self, tmp_path):
        with pytest.raises(DataError, match="is a folder"):
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
            (b"a,b,c\n1,2,3\n", "is no HDF5 file"),
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
