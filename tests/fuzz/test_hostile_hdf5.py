"""Hostile HDF5: links out of the file, huge declarations, damaged heaps and short memory."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from data_files import Write, file_writer, total

import lstm_cli
from lstm_cli.data import DataOptions, describe, open_data
from lstm_cli.errors import DataError, MemoryShortError
from lstm_cli.hdf5.heap_check import CheckedFile

ALLOWED = DataOptions(allow_external=True)

X = np.random.default_rng(3).normal(size=(4, 3, 2))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write datasets into a file; see `data_files.file_writer`."""
    return file_writer(tmp_path)


@pytest.fixture
def secret(write):
    return write("secret.h5", inputs=X, g__inputs=X)


def link(path, **links):
    with h5py.File(path, "a") as file:
        for name, target in links.items():
            file[name.replace("__", "/")] = target
    return path


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

    @pytest.mark.parametrize("shape", [(2**40, 0, 3), (0, 2**40), (10**6, 5, 0)])
    def test_rows_that_hold_nothing(self, write, shape):
        path = write("x.h5")
        with h5py.File(path, "a") as file:
            file.create_dataset("inputs", shape, "f4")
        with pytest.raises(DataError, match="declares too many rows") as caught:
            open_data([path])
        assert "--allow-external" in str(caught.value)
        if shape == (10**6, 5, 0):  # what the hint says leads past this
            with pytest.raises(DataError) as caught:
                open_data([path], DataOptions(allow_external=True))
            assert "without end" not in str(caught.value)

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
        monkeypatch.setattr("lstm_cli.hdf5.limits._filter_available", lambda code: False)
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

    @pytest.mark.parametrize("block", [0, 512])
    def test_texts_longer_than_the_file(self, tmp_path, block):
        """HDF5 allocates the length that a reference declares, and writes to all of it."""
        path = str(tmp_path / "x.h5")
        with h5py.File(path, "w", userblock_size=block) as file:
            file["inputs"] = X
            file.attrs["classes"] = ["a", "bc"]
        with open_data([path]) as data:
            assert data.class_labels == ["a", "bc"]
        content = Path(path).read_bytes()
        address = struct.pack("<Q", content.index(b"GCOL") - block)
        place = content.index(address, content.index(b"classes\0")) - 4
        assert content[place : place + 4] == struct.pack("<I", 1)
        forged = content[:place] + struct.pack("<I", 1 << 28) + content[place + 4 :]
        Path(path).write_bytes(forged)
        with open_data([path]) as data, pytest.raises(DataError, match="declares far more text"):
            _ = data.class_labels

    def test_rows_as_an_attribute_are_not_read(self, write):
        path = write("x.h5", inputs=X)
        with h5py.File(path, "a") as file:
            rows = np.empty(2, object)
            rows[:] = [np.arange(2.0), np.arange(3.0)]
            file.attrs.create("classes", rows, dtype=h5py.vlen_dtype(np.float64))
        with open_data([path]) as data:
            assert data.class_labels is None

    SIZES = [(o, s) for o in (2, 4, 8, 16) for s in (2, 4, 8, 16)]  # noqa: RUF012

    @pytest.mark.parametrize(("offsets", "sizes"), SIZES)
    @pytest.mark.parametrize("text", [False, True])
    def test_numbers_of_every_size(self, tmp_path, offsets, sizes, text):
        """HDF5 reads numbers of 2, 4 and 8 bytes; it writes 16, and cannot read them again."""
        plist = h5py.h5p.create(h5py.h5p.FILE_CREATE)
        plist.set_sizes(offsets, sizes)
        path = str(tmp_path / "x.h5")
        with h5py.File(h5py.h5f.create(path.encode(), fcpl=plist)) as file:
            file["other"] = X
            if text:
                file["inputs"] = X
                file["names"] = ["a", "b", "c", "d"]
            else:
                rows = file.create_dataset("inputs", (4,), h5py.vlen_dtype("f8"))
                for n in range(4):
                    rows[n] = X[n].ravel()
                rows.attrs["features"] = 2

        def use():
            with open_data([path]) as data:
                assert data.names == (["a", "b", "c", "d"] if text else None)
                return sum(batch.x.sum() for batch in data.batches(2, np.float64))

        if 16 in (offsets, sizes):
            with pytest.raises(DataError, match="size that HDF5 does not read"):
                use()
            return
        assert use() == pytest.approx(X.sum())
        with open(path, "r+b") as file:  # the first object: free, and of size 0
            file.seek(file.read().rfind(b"GCOL") + 16)
            file.write(bytes(16))
        with pytest.raises(DataError, match="heap is damaged"):
            use()

    def test_a_collection_in_two_reads(self, write):
        """HDF5 reads the first 4,096 bytes of a larger one, and then the rest."""
        path = write("x.h5", inputs=X[:1], names=["n" * 9000])
        with open(path, "r+b") as file:
            content = file.read()
            start = content.rfind(b"GCOL")
            file.seek(start + 16 + 8)
            file.write((5000).to_bytes(8, "little"))
            file.seek(start + 16 + 16 + 5000)
            file.write(bytes(16))
        with open_data([path]) as data, pytest.raises(DataError, match="heap is damaged"):
            _ = data.names

    @pytest.mark.parametrize("chunks", [None, (50,)])
    @pytest.mark.parametrize("role", ["inputs", "names"])
    def test_values_that_share_their_bytes(self, write, chunks, role):
        """Many references to one value: more to read than the file has."""
        path = write("x.h5", **({} if role == "inputs" else {"inputs": np.ones((3000, 1, 1))}))
        big, count = np.arange(250_000.0), 3000
        with h5py.File(path, "a") as file:
            kind = h5py.string_dtype() if role == "names" else h5py.vlen_dtype("f8")
            rows = file.create_dataset(role, (count,), kind, chunks=chunks)
            rows[:] = ["-"] * count if role == "names" else [big[:1]] * count
            rows[0] = "n" * 2_000_000 if role == "names" else big
            rows.attrs["features"] = 1
            places = (
                [rows.id.get_offset()]
                if chunks is None
                else [rows.id.get_chunk_info(k).byte_offset for k in range(count // 50)]
            )
        with open(path, "r+b") as file:
            file.seek(places[0])
            reference = file.read(16)
            for place in places:
                file.seek(place)
                file.write(reference * (count // len(places)))
        with pytest.raises(DataError, match="declares far more"):  # noqa: SIM117
            with open_data([path]) as data:
                _ = data.names


class TestCutShort:
    """A file that becomes shorter while it is open: HDF5 alone reads zeros, or never ends."""

    @pytest.mark.parametrize("layout", ["rows", "names", "chunks", "plain"])
    @pytest.mark.parametrize("again", [False, True])
    def test_after_it_was_opened(self, write, layout, again):
        path = write("x.h5", attrs={"features": 2})
        values = np.random.default_rng(1).normal(size=(64, 30, 2))
        with h5py.File(path, "a") as file:
            if layout == "rows":
                rows = file.create_dataset("inputs", (64,), h5py.vlen_dtype("f8"))
                for n in range(64):
                    rows[n] = values[n].ravel()
            else:
                chunks = (4, 30, 2) if layout == "chunks" else None
                file.create_dataset("inputs", data=values, chunks=chunks)
            if layout == "names":
                file["names"] = [f"name {n}" * 20 for n in range(64)]
        size = os.path.getsize(path)
        with open_data([path]) as data:
            os.truncate(path, size // 3)
            if again:  # as long as before, but zeros
                os.truncate(path, size)
            if again and layout != "rows":
                return  # what stands there is no other's to judge
            with pytest.raises(DataError):
                _ = [data.names, *data.batches(8, np.float64)]

    def test_another_file_under_its_name(self, write, tmp_path):
        path, other = write("x.h5", inputs=X), write("y.h5", inputs=np.zeros((9, 9, 9)))
        with open_data([path]) as data:
            os.replace(other, path)
            assert sum(b.x.sum() for b in data.batches(2, "f8")) == pytest.approx(X.sum())


class TestVirtual:
    """HDF5 follows virtual datasets without looking: a circle crashes it."""

    @staticmethod
    def virtual(path, *sources, name="inputs", shape=X.shape, growing=False):
        most = (None, *shape[1:]) if growing else shape
        layout = h5py.VirtualLayout(shape, "f8", maxshape=most)
        stop = h5py.h5s.UNLIMITED if growing else shape[0]
        for file, dataset in sources:
            source = h5py.VirtualSource(str(file), dataset, shape, maxshape=most)
            layout[0:stop] = source[0:stop]
        with h5py.File(path, "a", libver="latest") as file:
            file.create_virtual_dataset(name, layout)
        return str(path)

    @pytest.mark.parametrize("growing", [False, True])
    @pytest.mark.parametrize("case", ["itself", "by name", "soft", "external", "two", "three"])
    def test_a_circle(self, tmp_path, case, growing, monkeypatch):
        a, b, c = (tmp_path / f"{name}.h5" for name in "abc")
        for path in (a, b, c):
            h5py.File(path, "w", libver="latest").close()
        link(b, g__link=h5py.ExternalLink("a.h5", "/inputs"))
        link(a, g__link=h5py.SoftLink("/inputs"))
        circles = {
            "itself": [(a, [(".", "inputs")])],
            "by name": [(a, [("a.h5", "inputs")])],
            "soft": [(a, [(".", "g/link")])],
            "external": [(a, [("b.h5", "g/link")])],
            "two": [(a, [(b, "inputs")]), (b, [("a.h5", "/inputs")])],
            "three": [(a, [(b, "inputs")]), (b, [(c, "inputs")]), (c, [("a.h5", "inputs")])],
        }
        for path, sources in circles[case]:
            self.virtual(path, *sources, growing=growing)
        with pytest.raises(DataError, match="among its own sources"):
            open_data([str(a)], ALLOWED)
        with pytest.raises(DataError, match="is a virtual dataset: its values"):
            open_data([str(a)])
        assert describe(str(a)).datasets
        assert describe(str(a), ALLOWED).problems

    def test_doubling(self, tmp_path):
        path = tmp_path / "x.h5"
        self.virtual(path, name="v0")
        for n in range(1, 25):
            below = [(".", f"v{n - 1}"), (".", f"/v{n - 1}")]
            self.virtual(path, *below, name=f"v{n}" if n < 24 else "inputs")
        with pytest.raises(DataError, match="sources and more"):
            open_data([str(path)], ALLOWED)

    def test_a_long_chain(self, tmp_path):
        path = tmp_path / "x.h5"
        for n in range(40):
            self.virtual(path, (".", f"v{n + 1}"), name="inputs" if n == 0 else f"v{n}")
        with pytest.raises(DataError, match="more than 32 levels"):
            open_data([str(path)], ALLOWED)

    def test_what_ends_is_read(self, write, tmp_path):
        source = write("source.h5", inputs=X)
        middle = self.virtual(tmp_path / "middle.h5", (source, "inputs"), growing=True)
        top = self.virtual(tmp_path / "top.h5", ("middle.h5", "inputs"), growing=True)
        for path in (middle, top):
            assert total(path, ALLOWED) == pytest.approx(X.sum())

    def test_a_series_of_files(self, tmp_path, write):
        for n in range(2):
            write(f"part{n}.h5", inputs=X[2 * n : 2 * n + 2])
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        into = h5py.h5s.create_simple((4, 3, 2), (h5py.h5s.UNLIMITED, 3, 2))
        into.select_hyperslab(
            (0, 0, 0), (h5py.h5s.UNLIMITED, 1, 1), stride=(2, 1, 1), block=(2, 3, 2)
        )
        plist.set_virtual(into, b"part%b.h5", b"inputs", h5py.h5s.create_simple((2, 3, 2)))
        path = tmp_path / "all.h5"
        with h5py.File(path, "w", libver="latest") as file:
            h5py.h5d.create(file.id, b"inputs", h5py.h5t.NATIVE_DOUBLE, into, plist)
        assert total(str(path), ALLOWED) == pytest.approx(X.sum())


class TestWork:
    """Time and memory are in proportion to the values in a file."""

    @pytest.mark.parametrize("kind", ["hard", "soft", "group"])
    def test_many_links_to_one_dataset(self, write, kind):
        values = np.zeros((400_000, 3), np.float32)
        path = write("x.h5")
        with h5py.File(path, "a") as file:
            one = file.create_dataset("s0/inputs", data=values, chunks=(4000, 3), compression=1)
            for n in range(1, 40):
                if kind == "hard":
                    file[f"s{n}/inputs"] = one
                elif kind == "soft":
                    file[f"s{n}/inputs"] = h5py.SoftLink("/s0/inputs")
                else:
                    file[f"s{n}"] = file["s0"]
        with pytest.raises(DataError, match="linked 40 times"):
            open_data([path])
        with open_data([path], ALLOWED) as data:
            assert data.count == 40

    def test_a_few_links_are_read(self, write):
        path = write("x.h5", a__inputs=X[0])
        with h5py.File(path, "a") as file:
            for n in range(30):
                file[f"s{n}"] = file["a"]
        assert total(path) == pytest.approx(31 * X[0].sum())

    @pytest.mark.parametrize("chunks", [None, (1000, 10)])
    def test_many_sequences_that_were_never_written(self, write, chunks):
        path = write("x.h5")
        with h5py.File(path, "a") as file:
            for n in range(30):
                file.create_dataset(f"s{n}/inputs", (100_000, 10), "f4", chunks=chunks)
        with pytest.raises(DataError, match="declare far more than the file stores"):
            open_data([path])

    def test_zeros_that_were_written(self, write):
        path = write("x.h5")
        with h5py.File(path, "a") as file:
            for n in range(30):
                zeros = np.zeros((100_000, 10), np.float32)
                file.create_dataset(f"s{n}/inputs", data=zeros, chunks=(50_000, 10), compression=1)
        with open_data([path]) as data:
            assert data.count == 30


def _put(file, name, kind):
    makers = {
        "vlen": lambda: file.create_dataset(name, (4,), h5py.vlen_dtype("i8")),
        "float16": lambda: file.create_dataset(name, data=np.ones(4, "f2")),
        "text": lambda: file.create_dataset(name, data=["a", "b", "c", "d"]),
        "fixed text": lambda: file.create_dataset(name, data=np.array([b"a"] * 4)),
        "compound": lambda: file.create_dataset(name, (4,), [("a", "i4")]),
        "enum": lambda: file.create_dataset(name, (4,), h5py.enum_dtype({"A": 0, "B": 2}, "i1")),
        "bool": lambda: file.create_dataset(name, data=np.ones(4, bool)),
        "opaque": lambda: file.create_dataset(name, data=np.zeros(4, "V3")),
        "reference": lambda: file.create_dataset(name, (4,), h5py.ref_dtype),
        "null": lambda: file.create_dataset(name, data=h5py.Empty("i8")),
        "scalar": lambda: file.create_dataset(name, data=np.int64(3)),
        "complex": lambda: file.create_dataset(name, data=np.ones(4, complex)),
        "time": lambda: h5py.h5d.create(
            file.id, name.encode(), h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((4,))
        ),
    }
    makers[kind]()


KINDS = (
    "vlen", "float16", "text", "fixed text", "compound", "enum", "bool", "opaque", "reference",
    "null", "scalar", "complex", "time",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("role", ["lengths", "offsets", "mask", "targets", "names", "inputs"])
def test_types_that_hold_something_else(write, role, kind):
    rows = X.reshape(-1, 2) if role == "offsets" else X
    path = write("x.h5", **({} if role == "inputs" else {"inputs": rows}))
    with h5py.File(path, "a") as file:
        _put(file, role, kind)
    served = {
        "targets": ("float16", "enum", "bool", "text", "fixed text"),
        "names": ("float16", "text", "fixed text", "enum", "bool", "scalar"),
        "inputs": ("float16", "bool", "enum"),
    }
    if kind in served.get(role, ()):
        with open_data([path], DataOptions()) as data:
            _ = data.names, data.targets
        return
    with pytest.raises(DataError) as error:  # noqa: SIM117
        with open_data([path]) as data:
            _ = data.names
    assert f"{path}:/{role}" in str(error.value)
    assert "damaged" not in str(error.value)


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EIO])
def test_memory_that_runs_out_is_no_damage(write, monkeypatch, number):
    path = write("x.h5", inputs=X)
    with open_data([path]) as data:

        def fail(self, place, view):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(CheckedFile, "_check_collection", fail)
        kind = MemoryShortError if number == errno.ENOMEM else DataError
        with pytest.raises(kind) as error:
            next(data.batches(2, np.float64))
    assert error.value.exit_code == (1 if number == errno.ENOMEM else 3)
    assert ("not enough memory" in str(error.value)) == (number == errno.ENOMEM)


LITTLE_MEMORY = """
import resource, sys
import h5py
import lstm_cli
from lstm_cli.data import open_data
from lstm_cli.errors import MemoryShortError

def limited(use, megabytes):
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    endless = resource.RLIM_INFINITY
    resource.setrlimit(resource.RLIMIT_AS, (used + (megabytes << 20), endless))
    try:
        use()
    except (MemoryShortError, MemoryError):
        return
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (endless, endless))
    raise SystemExit(f"{megabytes} MB were enough")

with open_data([sys.argv[1]]) as data:
    for megabytes in (12, 60, 110, 140):
        limited(lambda: next(data.batches(50, "f4")), megabytes)
lstm_cli.load(sys.argv[2], engine="reference")
for megabytes in (2, 10, 30):
    limited(lambda: lstm_cli.load(sys.argv[2], engine="reference"), megabytes)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="limits of Linux")
def test_little_memory(write, tmp_path):
    path = write("x.h5")
    with h5py.File(path, "a") as file:
        values = np.zeros((1000, 70, 250), np.float32)
        file.create_dataset("inputs", data=values, chunks=values.shape, compression=1)
    weights = tmp_path / "w.safetensors"
    net = {"input_size": 900, "layers": [{"type": "lstm", "hidden_size": 1500}]}
    lstm_cli.build({"model": net}, engine="reference").save(weights)
    command = [sys.executable, "-c", LITTLE_MEMORY, path, str(weights)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.returncode == 0, done.stderr[-2000:]
