"""Hostile files of every format, read as a detected or a forced format: refused within bounds."""

from __future__ import annotations

import json
import os
import pickle
import stat
import struct
import sys
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hostile_files import Call, refused

from lstm_cli.errors import WeightsError
from lstm_cli.formats import registry
from lstm_cli.formats.interchange import ReadOptions
from lstm_cli.formats.limits import open_archive
from lstm_cli.formats.native import read as read_native
from lstm_cli.formats.registry import FORMATS

SUFFIXES = [suffix for format in FORMATS.values() for suffix in format.suffixes]


def refused_as_any(path: Path) -> list[str]:
    """Errors of a file read as the detected format, and as each format."""
    options = [ReadOptions(format=name) for name in (None, *FORMATS)]
    return [refused(partial(registry.read, path, option)) for option in options]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_no_file(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"w{suffix}"
    assert "no such file" in refused_as_any(path)[0]
    path.mkdir()
    assert all("is a directory" in text for text in refused_as_any(path))
    path.rmdir()
    path.write_bytes(b"")
    refused_as_any(path)
    assert "cannot be read" in refused(lambda: registry.read(f"a\0b{suffix}"))


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes and links by name")
def test_pipes_devices_and_links_in_a_circle(tmp_path: Path) -> None:
    pipe, link = tmp_path / "w.onnx", tmp_path / "w.pt"
    os.mkfifo(pipe)
    link.symlink_to(link)
    (tmp_path / "zero.safetensors").symlink_to("/dev/zero")
    for path in (pipe, tmp_path / "zero.safetensors"):
        assert all("a pipe or a device" in text for text in refused_as_any(path))
        assert "a pipe or a device" in refused(lambda path=path: read_native(path))
    refused_as_any(link)
    link.unlink()
    link.symlink_to(tmp_path / "w.xml")
    (tmp_path / "w.xml").write_text("<Weights/>")
    assert "has no layers" in refused(lambda: registry.read(link))


def safetensors(header: Any, body: bytes = b"", size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + body


def entry(start: int, stop: int, shape: list[int] | None = None, dtype: str = "F32") -> Any:
    shape = [(stop - start) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


A, B = "layers.0.bias", "layers.1.bias"
TWICE = f'{{"{A}": {json.dumps(entry(0, 8))}, "{A}": {json.dumps(entry(0, 8))}}}'.encode()
TENSORS = {
    "overlapping": safetensors({A: entry(0, 8), B: entry(4, 12)}, bytes(12)),
    "the same bytes twice": safetensors({A: entry(0, 8), B: entry(0, 8)}, bytes(8)),
    "beyond the end": safetensors({A: entry(0, 80)}, bytes(8)),
    "far beyond the end": safetensors({A: entry(0, 2**62)}, bytes(8)),
    "backwards": safetensors({A: entry(8, 0, [2])}, bytes(8)),
    "bytes of nobody": safetensors({A: entry(0, 8)}, bytes(80)),
    "a hole": safetensors({A: entry(0, 8), B: entry(12, 20)}, bytes(20)),
    "a shape that overflows": safetensors({A: entry(0, 8, [2**62, 4])}, bytes(8)),
    "a shape of nothing and all": safetensors({A: entry(0, 0, [0, 2**62])}),
    "a negative shape": safetensors({A: entry(0, 8, [-2])}, bytes(8)),
    "many axes": safetensors({A: entry(0, 4, [1] * 100_000)}, bytes(4)),
    "a header of 100 MB": safetensors(b"{}", size=100 << 20),
    "a header of all there is": safetensors(b"{}", size=2**63),
    "a header that ends nowhere": safetensors(b'{"a":', size=64),
    "a name twice": safetensors(TWICE, bytes(8)),
    "deep lists": safetensors(b'{"a":' + b"[" * 100_000),
    "deep mappings": safetensors(b'{"a":' * 100_000),
    "many digits": safetensors(b'{"a":{"dtype":"F32","shape":[' + b"9" * 100_000 + b"]}}"),
    "texts that are none": safetensors({"__metadata__": {"config": 3}, A: entry(0, 8)}, bytes(8)),
    "metadata that is none": safetensors({"__metadata__": [], A: entry(0, 8)}, bytes(8)),
    "half a surrogate": safetensors(rb'{"\ud800": 1}'),
    "no dtype": safetensors({A: {"shape": [2], "data_offsets": [0, 8]}}, bytes(8)),
    "no number": safetensors({A: entry(0, 8, [8], "BOOL")}, bytes(8)),
    "nothing": b"",
    "half a length": b"\x10\0\0",
    "a length": struct.pack("<Q", 10),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_safetensors_headers(kind: str, tmp_path: Path) -> None:
    for name in ("w.safetensors", "w.bin"):
        path = tmp_path / name
        path.write_bytes(TENSORS[kind])
        refused(lambda path=path: registry.read(path))
        refused(lambda path=path: read_native(path))


def archive(path: Path, members: list[tuple[str, bytes]], link: str | None = None) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            if name == link:
                info.create_system = 3
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
            file.writestr(info, data)
    return path


TORCH, KERAS = ("model/data.pkl", b"\x80\x02}."), ("config.json", b"{}")
BOMB = bytes(64 << 20)
ARCHIVES = {
    "a bomb": ([("model/data/0", BOMB)], "unpacks"),
    "a path that leads up": ([("../../etc/x", b"1")], "leads outside"),
    "a path from the root": ([("/etc/x", b"1")], "leads outside"),
    "a path of Windows": ([(r"..\..\x", b"1")], "leads outside"),
    "a symbolic link": ([("model/data/0", b"/etc/passwd")], "symbolic link"),
    "a member twice": ([("model/data/0", b"1"), ("model/data/0", b"2")], "the same name"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@pytest.mark.parametrize("kind", ARCHIVES)
@pytest.mark.parametrize("first", [TORCH, KERAS], ids=["torch", "keras"])
def test_archives(first: tuple[str, bytes], kind: str, tmp_path: Path) -> None:
    members, message = ARCHIVES[kind]
    link = "model/data/0" if kind == "a symbolic link" else None
    path = archive(tmp_path / "w.zip", [first, *members], link)
    with pytest.raises(WeightsError, match=message):
        open_archive(path)
    assert message in refused(lambda: registry.read(path))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["w.zip"]


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("bare", [False, True], ids=["archive", "bare"])
def test_pickles_that_call(bare: bool, protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "made"
    for call in (
        Call(os.mkdir, str(marker)),
        Call(eval, f"__import__('os').mkdir({str(marker)!r})"),
        {"weight": Call(exec, f"open({str(marker)!r}, 'w')")},
        Call(bytearray, 1 << 40),
    ):
        data = pickle.dumps(call, protocol)
        path = tmp_path / "w.pt"
        if bare:
            path.write_bytes(data)
        else:
            archive(path, [("w/data.pkl", data), ("w/version", b"3")])
        refused(partial(registry.read, path))
        refused(partial(registry.read, path, ReadOptions(format="pytorch")))
        assert not marker.exists()


def test_an_archive_that_says_what_is_not_so(tmp_path: Path) -> None:
    """Sizes and places in the directory of an archive, each set to all ones."""
    whole = archive(tmp_path / "w.zip", [TORCH, KERAS]).read_bytes()
    start = whole.index(b"PK\1\2")
    for at in range(start, len(whole) - 3):
        (tmp_path / "w.zip").write_bytes(whole[:at] + b"\xff\xff\xff\xff" + whole[at + 4 :])
        refused(lambda: registry.read(tmp_path / "w.zip"))


def put(place: str) -> dict[str, Callable[[h5py.File], None]]:
    """Replacements of a kernel by objects that lead out of the dataset."""

    def far(file: h5py.File) -> None:
        file[place] = h5py.ExternalLink("other.h5", "/kernel")

    def soft(file: h5py.File) -> None:
        file[place] = h5py.SoftLink("/nowhere")

    def circle(file: h5py.File) -> None:
        file[place] = h5py.SoftLink(f"/{place}")

    def external(file: h5py.File) -> None:
        file.create_dataset(place, (2, 12), "f4", external=[("other.bin", 0, 96)])

    def virtual(file: h5py.File) -> None:
        layout = h5py.VirtualLayout((2, 12), "f4")
        layout[:] = h5py.VirtualSource("other.h5", "kernel", (2, 12))
        file.create_virtual_dataset(place, layout)

    def declared(file: h5py.File) -> None:
        file.create_dataset(place, (2**30, 12), "f4", chunks=(2**10, 12))

    def squeezed(file: h5py.File) -> None:
        zeros = np.zeros((2**20, 12), np.float32)
        file.create_dataset(place, data=zeros, compression="gzip")

    return {f.__name__: f for f in (far, soft, circle, external, virtual, declared, squeezed)}


PLACE = "layers/lstm/cell/vars/0"


@pytest.mark.parametrize("kind", put(PLACE))
def test_hdf5_that_leads_elsewhere(kind: str, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["kernel"] = np.ones((2, 12), np.float32)
    (tmp_path / "other.bin").write_bytes(bytes(96))
    path = tmp_path / "w.weights.h5"
    with h5py.File(path, "w") as file:
        put(PLACE)[kind](file)
        file["layers/lstm/cell/vars/1"] = np.ones((3, 12), np.float32)
        file["layers/lstm/cell/vars/2"] = np.ones(12, np.float32)
    refused(lambda: registry.read(path))
