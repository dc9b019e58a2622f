"""Hostile files of Keras: each is refused in bounded time and memory."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras_files as kf
import numpy as np
import pytest
from hostile_files import refused
from networks import random_weights, recurrent

from lstm_cli.cells import Activation
from lstm_cli.engines.types import DenseSpec
from lstm_cli.formats.interchange import Export, ReadOptions
from lstm_cli.formats.keras.reader import read
from lstm_cli.formats.keras.writer import write

KERNEL = "layers/gru/cell/vars/0"


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    specs = (
        recurrent("gru", 3, 4, activation=Activation("elu", alpha=0.5), directions=1),
        DenseSpec(1, 3, 2, None),
    )
    write(tmp_path / "m.keras", Export("n", 4, None, specs, random_weights(specs), ""))
    return tmp_path / "m.keras"


def refused_file(path: Path, message: str) -> None:
    refused(lambda: read(path, ReadOptions()), message, memory=48 << 20)


def with_file(path: Path, change: Callable[[h5py.File], None]) -> Path:
    """Model with a change in its HDF5 file."""
    parts = kf.members(path)
    buffer = io.BytesIO(parts["model.weights.h5"])
    with h5py.File(buffer, "r+") as file:
        change(file)
    return kf.packed(path, parts | {"model.weights.h5": buffer.getvalue()})


def replaced(make: Callable[[h5py.File], Any]) -> Callable[[h5py.File], None]:
    """Change that replaces a kernel."""

    def change(file: h5py.File) -> None:
        del file[KERNEL]
        make(file)

    return change


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((4, 9), "f4")
    layout[:] = h5py.VirtualSource("/etc/other.h5", "x", (4, 9))
    file.create_virtual_dataset(KERNEL, layout)


def deep(file: h5py.File) -> None:
    file.create_group("a/" * 100)


def bomb(file: h5py.File) -> None:
    file.create_dataset(
        KERNEL, (2000, 5000), "f4", chunks=(2000, 5000), compression="gzip",
        fillvalue=0, data=np.zeros((2000, 5000), "f4"),
    )  # fmt: skip


def at(name: str, value: Any) -> Callable[[h5py.File], None]:
    def put(file: h5py.File) -> None:
        file[name] = value

    return put


HOSTILE: dict[str, tuple[Callable[[h5py.File], Any], str]] = {
    "external link": (at(KERNEL, h5py.ExternalLink("/etc/x.h5", "/x")), "an external link"),
    "soft link": (at(KERNEL, h5py.SoftLink("/layers")), "a soft link"),
    "a link elsewhere": (at("optimizer", h5py.ExternalLink("x.h5", "/")), "an external link"),
    "circle": (lambda f: at("layers/gru/loop", f["layers"])(f), "second link to one object"),
    "twice": (lambda f: at(KERNEL, f["layers/dense/vars/0"])(f), "second link to one object"),
    "external storage": (
        lambda f: f.create_dataset(KERNEL, (4, 9), "f4", external=[("/etc/passwd", 0, 144)]),
        "stored outside",
    ),
    "virtual": (virtual, "stored outside"),
    "nothing stored": (
        lambda f: f.create_dataset(KERNEL, (2**20, 2**20), "f4"),
        "declares a shape",
    ),
    "no chunks": (
        lambda f: f.create_dataset(KERNEL, (2**20, 2**20), "f4", chunks=(64, 64)),
        "declares a shape",
    ),
    "fewer chunks": (
        lambda f: f.create_dataset(KERNEL, (4, 9), "f4", chunks=(2, 9)),
        "chunks are missing",
    ),
    "bomb": (bomb, "declares a shape"),
    "filter": (
        lambda f: f.create_dataset(KERNEL, data=np.ones((4, 9), "f4"), compression="lzf"),
        "a filter that lstm-cli does not read",
    ),
    "objects": (
        lambda f: f.create_dataset(KERNEL, data=[f.ref] * 4, dtype=h5py.ref_dtype),
        "no floating-point",
    ),
    "texts": (at(KERNEL, ["a", "b"]), "no floating-point"),
    "counts": (at(KERNEL, np.ones((4, 9), int)), "no floating-point"),
    "a group": (lambda f: f.create_group(KERNEL), "no kernel"),
    "deep": (lambda f: (at(KERNEL, np.ones((4, 9)))(f), deep(f)), "deeper"),
    "empty": (at(KERNEL, np.ones((0, 9), "f4")), "does not fit"),
    "number": (at(KERNEL, np.float32(1)), "does not fit"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hdf5(kind: str, sound: Path) -> None:
    change, message = HOSTILE[kind]
    refused_file(with_file(sound, replaced(change)), message)


def test_links_of_the_root(sound: Path) -> None:
    def change(file: h5py.File) -> None:
        file["again"] = file["/"]

    refused_file(with_file(sound, change), "second link")


DESCRIPTIONS = {
    "lists": b"[" * 200_000,
    "mappings": b'{"class_name":' * 100_000,
    "models": b'{"class_name":"Sequential","config":{"layers":[' * 500 + b"]}}" * 500,
    "digits": b'{"class_name":"Sequential","config":{"layers":' + b"9" * 10_000 + b"}}",
    "nothing": b"",
    "null": b"null",
    "no layers": b'{"class_name":"Sequential","config":{"layers":{}}}',
    "few": b'{"class_name":"Sequential","config":{"layers":[]}}',
    "bytes": b"\xff\xfe{}",
    "surrogates": rb'{"class_name":"\ud800","config":{"name":"\udfff"}}',
}


@pytest.mark.parametrize("kind", DESCRIPTIONS)
def test_descriptions(kind: str, sound: Path) -> None:
    parts = kf.members(sound)
    refused_file(kf.packed(sound, parts | {"config.json": DESCRIPTIONS[kind]}), "model|config|JSON")


def test_activations_take_no_memory(sound: Path) -> None:
    """Each would be an identity matrix of 1 GB, and there are thousands."""
    parts = kf.members(sound)
    model = json.loads(parts["config.json"])
    relu = {"class_name": "ReLU", "config": {"name": "r"}}
    model["config"]["layers"][0]["config"]["batch_shape"] = [None, None, 16_000]
    model["config"]["layers"][1:1] = [relu] * 5000
    parts["config.json"] = json.dumps(model).encode()
    refused_file(kf.packed(sound, parts), "r .ReLU. follows no layer")


def legacy(path: Path) -> Path:
    weights = kf.drawn("LSTM", 4, 3, np.random.default_rng(0))
    layer = kf.entry("LSTM", "l", units=3)
    model = {"class_name": "Sequential", "config": {"name": "m", "layers": [layer]}}
    return kf.legacy(path, {"l": kf.cell_names("l", weights)}, model)


def test_texts_that_are_not_there(tmp_path: Path) -> None:
    """Forged lengths and offsets of texts in the heap, which no library gets to see."""
    data = legacy(tmp_path / "w.h5").read_bytes()
    heap = data.index(b"GCOL")
    place = data.index(struct.pack("<Q", heap), data.index(b"model_config\0"))
    (size,) = struct.unpack_from("<I", data, place - 4)
    forgeries = {
        place - 4: (struct.pack("<I", 2**32 - 1), struct.pack("<I", size + 1)),
        place: (struct.pack("<Q", 2**63), struct.pack("<Q", len(data) - 4), bytes(8)),
        place + 8: (struct.pack("<I", 77),),
        heap + 24: (struct.pack("<Q", 2**64 - 16), struct.pack("<Q", size - 1)),
        heap + 8: (bytes(8),),
    }
    for where, values in forgeries.items():
        for value in values:
            forged = data[:where] + value + data[where + len(value) :]
            (tmp_path / "w.h5").write_bytes(forged)
            refused_file(tmp_path / "w.h5", "attribute model_config")


def test_parts_of_the_heap_that_overlap(tmp_path: Path) -> None:
    """Each text is in a part of its own, and all parts hold the same 4 MB."""
    count, size = 200, 4 << 20
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.attrs["layer_names"] = ["x"] * count
    data, parts = (tmp_path / "w.h5").read_bytes(), b""
    heap, end = data.index(b"GCOL"), len(data) + 32 * count + size
    for k in range(count):
        place = len(data) + 32 * k
        parts += b"GCOL\1\0\0\0" + struct.pack("<QHHIQ", end - place, 1, 1, 0, size)
        reference = struct.pack("<IQI", 1, heap, k + 1)
        assert reference in data
        data = data.replace(reference, struct.pack("<IQI", 1, place, 1), 1)
    (tmp_path / "w.h5").write_bytes(data + parts + bytes(size))
    refused_file(tmp_path / "w.h5", "no layer")
