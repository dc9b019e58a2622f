"""Damaged files: whatever their bytes are, nothing but LstmCliError escapes."""

from __future__ import annotations

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


MAKERS = {
    "dense": make_dense,
    "concatenated": make_concatenated,
    "vlen": make_vlen,
    "groups": make_groups,
    "series": make_series,
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


@pytest.mark.parametrize("libver", ["earliest", "latest"])
@pytest.mark.parametrize("layout", MAKERS)
def test_only_our_errors_escape(tmp_path: Path, layout: str, libver: str) -> None:
    whole = tmp_path / "whole.h5"
    with h5py.File(whole, "w", libver=libver) as file:
        MAKERS[layout](file)
    options = DataOptions(window=Window(5) if layout == "series" else None)
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
