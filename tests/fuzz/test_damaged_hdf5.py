"""Damaged HDF5 files: each is read or raises LstmCliError."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import h5py
import numpy as np
import pytest

from lstm_cli.data import DataOptions, Window, describe, open_data
from lstm_cli.errors import LstmCliError

CASES = 60
LENGTHS = np.array([3, 5, 0, 4, 2, 6])


def sequences() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.normal(size=(T, 3)).astype(np.float32) for T in LENGTHS]


def make_dense(file: h5py.File) -> None:
    x = np.random.default_rng(0).normal(size=(6, 6, 3))
    file.create_dataset("inputs", data=x, chunks=(2, 6, 3), compression="gzip", shuffle=True)
    file["mask"] = np.arange(6) < LENGTHS[:, None]
    file["targets"] = np.arange(6) % 2
    file["names"] = ["a", "b", "c", "d", "e", "f"]
    file.attrs["classes"] = ["x", "y"]


def make_concatenated(file: h5py.File) -> None:
    file["inputs"] = np.concatenate(sequences())
    file["seqLengths"] = np.stack([LENGTHS, LENGTHS], axis=1)
    file["targets/data/classes"] = np.arange(20) % 4
    file["targets/labels/classes"] = [b"a", b"b", b"c", b"d"]
    file["seqTags"] = np.full((6, 4), b"q")


def make_vlen(file: h5py.File) -> None:
    rows = file.create_dataset("inputs", (6,), h5py.vlen_dtype(np.float32))
    for n, row in enumerate(sequences()):
        rows[n] = row.ravel()
    rows.attrs["features"] = 3


def make_groups(file: h5py.File) -> None:
    for n, row in enumerate(sequences()):
        file[f"s{n}/inputs"] = row
        file[f"s{n}/targets"] = n
    file["link"] = h5py.SoftLink("/s1")


def make_series(file: h5py.File) -> None:
    file.create_dataset("x", data=np.arange(90.0).reshape(30, 3), chunks=(4, 3), maxshape=(None, 3))


def make_links(file: h5py.File) -> None:
    make_groups(file)
    for n in range(5):
        file[f"h{n}"] = file["s3"]
    file["s1/again"] = file["s0/inputs"]


def make_large_chunk(file: h5py.File) -> None:
    x = np.random.default_rng(2).normal(size=(6, 6, 3))
    file.create_dataset("inputs", data=x, chunks=(6, 6, 3), compression="lzf", fletcher32=True)
    file["lengths"] = LENGTHS


def make_virtual(file: h5py.File) -> None:
    file["part"] = np.concatenate(sequences())
    layout = h5py.VirtualLayout((20, 3), "f4")
    layout[...] = h5py.VirtualSource(".", "part", (20, 3))
    file.create_virtual_dataset("inputs", layout)
    file["lengths"] = LENGTHS


MAKERS = {
    "dense": make_dense,
    "concatenated": make_concatenated,
    "vlen": make_vlen,
    "groups": make_groups,
    "series": make_series,
    "links": make_links,
    "large chunk": make_large_chunk,
    "virtual": make_virtual,
}


def damage(content: bytes, rng: np.random.Generator) -> bytes:
    """A few bytes flipped or overwritten, a stretch cleared, or the end cut off."""
    data = bytearray(content)
    kind = rng.integers(5)
    if kind == 0:
        return bytes(data[: rng.integers(1, len(data))])
    if kind == 1:
        start = int(rng.integers(len(data)))
        stop = min(len(data), start + int(rng.integers(1, 64)))
        data[start:stop] = bytes([int(rng.choice([0, 255]))]) * (stop - start)
        return bytes(data)
    for _ in range(int(rng.integers(1, 12))):
        at = int(rng.integers(len(data)))
        data[at] = int(rng.integers(256)) if kind == 2 else data[at] ^ (1 << int(rng.integers(8)))
    return bytes(data)


def read_everything(path: str, options: DataOptions) -> None:
    with open_data([path], options) as data:
        _ = data.names, data.class_labels, data.description, data.targets
        for batch in data.batches(4096, np.float32):
            assert batch.x.shape[2] == data.features


def odd(file: h5py.File, name: str, rng: np.random.Generator) -> None:
    """A dataset of a type that is seldom meant for its name."""
    kinds = ("i1", "u8", "f2", "f4", "?", "c8", "S3", "V2", "(2,)f4", [("a", "i4"), ("b", "f4")])
    special = (
        h5py.vlen_dtype("f4"), h5py.vlen_dtype("i8"), h5py.string_dtype(), h5py.ref_dtype,
        h5py.enum_dtype({"A": 0, "B": 1}, "i1"),
    )  # fmt: skip
    shape = ((), (0,), (6,), (6, 6), (6, 1), (7,), (6, 6, 3), (20, 3))[rng.integers(8)]
    number = int(rng.integers(len(kinds) + len(special) + 1))
    if number == 0:
        file[name] = h5py.Empty("f8")
    elif number <= len(kinds):
        file.create_dataset(name, shape, kinds[number - 1])
    else:
        file.create_dataset(name, shape, special[number - 1 - len(kinds)])


@pytest.mark.parametrize("seed", range(4))
def test_odd_types_and_shapes(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    roles = ("inputs", "lengths", "offsets", "mask", "targets", "names", "classes")
    for case in range(CASES):
        path = tmp_path / f"{case}.h5"
        with h5py.File(path, "w") as file:
            make_dense(file) if case % 2 else make_concatenated(file)
            for name in rng.choice(roles, rng.integers(1, 3), replace=False):
                if name in file:
                    del file[name]
                odd(file, name, rng)
        for use in (read_everything, describe):
            with suppress(LstmCliError):
                use(str(path), DataOptions())


@pytest.mark.parametrize("sizes", [(2, 2), (2, 8), (4, 4), (8, 4), (8, 2)])
def test_heaps_of_other_sizes(tmp_path: Path, sizes: tuple[int, int]) -> None:
    plist = h5py.h5p.create(h5py.h5p.FILE_CREATE)
    plist.set_sizes(*sizes)
    whole = tmp_path / "whole.h5"
    with h5py.File(h5py.h5f.create(str(whole).encode(), fcpl=plist)) as file:
        make_vlen(file)
        file["names"] = ["a", "b", "c", "d", "e", "f"]
    content, rng = whole.read_bytes(), np.random.default_rng(sizes)
    start = content.rfind(b"GCOL")
    for _ in range(CASES):
        data = bytearray(content)
        for _ in range(int(rng.integers(1, 4))):
            at = start + 8 * int(rng.integers(1, 24))
            data[at : at + 8] = rng.choice([0, 1, 2, 255], 8).astype(np.uint8).tobytes()
        whole.write_bytes(data)
        with suppress(LstmCliError):
            read_everything(str(whole), DataOptions())


@pytest.mark.parametrize("layout", ["dense", "vlen", "groups", "large chunk"])
def test_cut_short_while_it_is_read(tmp_path: Path, layout: str) -> None:
    path, rng = tmp_path / "x.h5", np.random.default_rng(len(layout))
    with h5py.File(path, "w") as file:
        MAKERS[layout](file)
    content = path.read_bytes()
    for _ in range(CASES // 2):
        path.write_bytes(content)
        with suppress(LstmCliError), open_data([str(path)]) as data:
            os.truncate(path, int(rng.integers(1, len(content))))
            if rng.integers(2):
                os.truncate(path, len(content))
            _ = data.names, data.class_labels, list(data.batches(2, np.float32))


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("layout", MAKERS)
def test_only_our_errors_escape(tmp_path: Path, layout: str, libver: str) -> None:
    whole = tmp_path / "whole.h5"
    with h5py.File(whole, "w", libver=libver) as file:
        MAKERS[layout](file)
    window = Window(5) if layout == "series" else None
    options = DataOptions(window=window, allow_external=layout == "virtual")
    read_everything(str(whole), options)
    content = whole.read_bytes()
    rng = np.random.default_rng([len(layout), len(libver)])
    failed = 0
    for case in range(CASES):
        path = tmp_path / f"{case}.h5"
        path.write_bytes(damage(content, rng))
        messages: list[str] = []
        for use in (read_everything, describe):
            try:
                use(str(path), options)
            except LstmCliError as error:
                failed += 1
                messages.append(str(error))
        assert all(str(path) in message for message in messages)
    assert failed >= CASES // 4, "the damage must reach what is read"
