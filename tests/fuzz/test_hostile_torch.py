"""Hostile files of PyTorch: nothing is executed, and memory and time stay bounded."""

from __future__ import annotations

import builtins
import io
import os
import pickle
import re
import struct
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_files import Call, refused

from lstm_cli.errors import LstmCliError, WeightsError
from lstm_cli.formats import registry
from lstm_cli.formats.interchange import ReadOptions
from lstm_cli.formats.torch.unpickler import unpickle
from lstm_cli.formats.torch.writer import write_archive

rng = np.random.default_rng(7)
SHAPES = {"l.weight_ih_l0": (8, 3), "l.weight_hh_l0": (8, 2), "l.bias_ih_l0": (8,),
          "l.bias_hh_l0": (8,), "fc.weight": (2, 2), "fc.bias": (2,)}  # fmt: skip
SOUND = write_archive({name: rng.random(shape, np.float32) for name, shape in SHAPES.items()})


def put(path: Path, pickled: bytes, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("w/data.pkl", pickled)
        for name, data in members.items():
            file.writestr(f"w/{name.replace('_', '/')}", data)
    return path


def refused_file(path: Path) -> str:
    return refused(lambda: registry.read(path, ReadOptions("pytorch")))


class Attribute:
    """Pickles as an object with a state."""


CALLS = {
    "system": (Call(os.system, "exit 3"), f"{os.system.__module__}.system"),
    "eval": (Call(eval, "1/0"), "builtins.eval|__builtin__.eval"),
    "exec": (Call(exec, "raise SystemExit"), r"\.exec"),
    "getattr": (Call(getattr, Call(__import__, "os"), "system"), "getattr|__import__"),
    "popen": (Call(subprocess.Popen, ["false"]), "[.]Popen"),
    "nested": ({"a": [(1, Call(open, "/x", "w"))]}, "open"),
    "as a key": ({Call(int, "3"): 1}, "int"),
    "object": (Attribute(), "test_hostile_torch.Attribute"),
    "range": (range(10**9), "range"),
    "bytearray": (Call(bytearray, 1 << 40), "bytearray"),
    "reference": (os.system, "holds the function .*system.* under x"),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("kind", CALLS)
def test_a_call_is_named_and_not_made(
    kind: str, protocol: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value, name = CALLS[kind]
    data = pickle.dumps({"w.weight": 1, "x": value}, protocol)
    path = put(tmp_path / "w.pt", data)
    for module, function in ((os, "system"), (builtins, "eval"), (subprocess, "Popen")):
        monkeypatch.setattr(module, function, None)
    with pytest.raises(WeightsError, match=name):
        registry.read(path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),  # protocol 0
        (b"\x80\x02ctorch\nsave\n)R.", "torch.save"),
        (b"\x80\x02ctorch._utils\n_import_dotted_name\nX\2\0\0\0os\x85R.", "_import_dotted_name"),
        (b"\x80\x02ctorch.nn.modules.rnn\nLSTM\n)\x81}b.", "whole module.*nn.modules.rnn.LSTM"),
        (b"\x80\x02c__main__\nNet\n)\x81.", "__main__.Net"),
        (b"\x80\x02(i__main__\nNet\n.", "__main__.Net"),
        (b"\x80\x02(c__main__\nNet\no.", "__main__.Net"),
        (b"\x80\x04\x8c\2os\x8c\6system\x93)R.", "os.system"),
        (b"\x80\x04X\x0b\0\0\0collectionsX\x13\0\0\0OrderedDict.__init__\x93)R.", "pickle"),
        (b"\x80\x02ccollections\nOrderedDict.__class__\n)R.", "OrderedDict.__class__"),
        (b"\x80\x02\x82\x01.", "extension"),
        (b"\x80\x02ctorch._utils\n_rebuild_qtensor\n)R.", "quantized"),
        (b"\x80\x02ctorch._utils\n_rebuild_sparse_tensor\n)R.", "sparse"),
        (b"\x80\x02ccollections\nOrderedDict\n)RK\x01b.", "no state dict"),
        (b"\x80\x02ccollections\nOrderedDict\nccollections\nOrderedDict\n\x85R.", "lacks"),
        (b"\x80\x02K\x01)R.", "calls something that is not a function"),
        (b"\x80\x02c\x1b[2J\n\x1b\n)R.", r"\\x1b"),
        (b"\x80\x02]}b.", "not a dict"),
        (b"\x80\x02}]]s.", "no state dict"),
        (b"\x80\x02N.", "NoneType"),
        (b"\x80\x02.", "lacks"),
        (b"\x80\x02h\x05.", "lacks"),
        (b"\x80\x02t.", "lacks"),
        (b"\x80\x02U\xff", "ends within"),
        (b"", "ends within"),
    ],
)  # fmt: skip
def test_pickles_by_hand(data: bytes, said: str, tmp_path: Path) -> None:
    assert re.search(said, refused_file(put(tmp_path / "w.pt", data)), re.DOTALL)


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def integer(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def tensor(offset: int, shape: tuple[int, ...], strides: tuple[int, ...], key: str = "0") -> bytes:
    """One tensor of a state dict, w.weight, with a storage that declares 10**9 values."""
    sizes, steps = (b"(" + b"".join(map(integer, n)) + b"t" for n in (shape, strides))
    return (
        text("w.weight") + b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage")
        + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + integer(10**9) + b"tQ"
        + integer(offset) + sizes + steps + b"\x89NtR"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("offset", "shape", "strides", "key", "said"),
    [
        (0, (5, 6), (6, 1), "0", "outside its storage"),
        (1, (4, 6), (6, 1), "0", "outside its storage"),
        (0, (4, 6), (7, 1), "0", "outside its storage"),
        (0, (2**40, 2**20), (0, 0), "0", "repeats the values of its storage"),
        (0, (2, 2**62), (2**62, 1), "0", "outside its storage"),
        (0, (5, 5), (1, 1), "0", "repeats the values of its storage"),
        (-1, (4, 6), (6, 1), "0", "not a natural number"),
        (0, (4, 6), (-6, 1), "0", "not a natural number"),
        (0, (4, 6), (6,), "0", "sizes than strides"),
        (0, (4, 6), (6, 1), "1", "no member w/data/1"),
        (0, (4, 6), (6, 1), "../data.pkl", "no member"),
        (0, (4, 6), (6, 1), "/etc/passwd", "no member"),
        (0, (1,) * 17, (1,) * 17, "0", "not a short tuple"),
    ],
)
def test_views_out_of_bounds(
    offset: int, shape: Any, strides: Any, key: str, said: str, tmp_path: Path
) -> None:
    data = b"\x80\x02}(" + tensor(offset, shape, strides, key) + b"u."
    assert said in refused_file(put(tmp_path / "w.pt", data, data_0=bytes(96)))


def test_views_within_bounds(tmp_path: Path) -> None:
    """Transposed, and one row for all: strides that are no layout of their own."""
    values = np.arange(29, dtype=np.float32)
    for offset, strides, expected in (
        (0, (1, 4), values[:24].reshape(6, 4).T),
        (5, (1, 4), values[5:].reshape(6, 4).T),
        (3, (0, 1), np.tile(values[3:9], (4, 1))),
    ):
        data = b"\x80\x02}(" + tensor(offset, (4, 6), strides) + b"u."
        put(tmp_path / "w.pt", data, data_0=values.tobytes())
        found = registry.read(tmp_path / "w.pt").tensors["layers.0.weight"]
        np.testing.assert_array_equal(found, expected)


def test_many_views_of_one_storage(tmp_path: Path) -> None:
    names = [text(f"{k}.weight") for k in range(1000)]
    whole = tensor(0, (250, 250), (250, 1)).removeprefix(text("w.weight"))
    data = b"\x80\x02}(" + b"".join(name + whole for name in names) + b"u."
    put(tmp_path / "w.pt", data, data_0=bytes(250_000))
    assert "share their storages" in refused_file(tmp_path / "w.pt")


TWO = b"h\x00h\x00\x86"
BOMBS = {
    "a declared text": b"\x80\x02X\xff\xff\xff\x7fabc",
    "a declared long text": b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7fabc",
    "a declared integer": b"\x80\x02\x8b\xff\xff\xff\x7fabc",
    "a large integer": b"\x80\x02\x8b" + struct.pack("<i", 10**6) + bytes(10**6) + b".",
    "a far memo": b"\x80\x02]r\xff\xff\xff\xff.",
    "pairs of pairs": b"\x80\x02)q\x00" + (TWO + b"q\x00") * 10**4 + b".",
    "pairs of pairs as a key": b"\x80\x02})q\x00" + (TWO + b"q\x00") * 64 + b"Ns.",
    "nested tuples": b"\x80\x02)" + b"\x85" * 10**5 + b".",
    "nested lists": b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b".",
    "nested dicts": b"\x80\x02}" + b"K\x01}" * 10**5 + b"s" * 10**5 + b".",
    "a list of itself": b"\x80\x02]q\x00h\x00a.",
    "a dict of itself": b"\x80\x02}q\x00" + text("weight") + b"h\x00s.",
    "a list many times a set": b"\x80\x02]q\x00(" + b"N" * 10**5 + b"e"
    + b"c__builtin__\nset\nh\x00\x85R0" * 10**4 + b".",
    "marks": b"\x80\x02" + b"(" * 10**5 + b".",
    "empty dicts": b"\x80\x02" + b"}" * (2 * 10**5) + b".",
    "a long key over and over": b"\x80\x02}" + (text("k" * 10**6) + b"q\x00")
    + text("k" * 10**6) + b"q\x01Ns" + b"h\x00Nsh\x01Ns" * 10**4 + b".",
    "a name without end": b"\x80\x02c" + b"a" * 10**6,
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_bombs(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lstm_cli.formats.torch.unpickler.MAX_OPCODES", 150_000)
    path = put(tmp_path / "w.pt", BOMBS[kind])
    refused_file(path)


def test_keys_that_no_state_dict_has_are_left_out() -> None:
    """Comparing or hashing them could take forever."""
    keys = [text("k" * 5000), b")", integer(2**60), b"N", text("a"), b"K\x01"]
    data = b"\x80\x02}(" + b"N".join(keys) + b"Nu."
    assert unpickle(data, "x") == {"a": None, 1: None}


def test_a_large_pickle_is_not_read(tmp_path: Path) -> None:
    assert "has 33,554,433 bytes" in refused_file(put(tmp_path / "w.pt", bytes((32 << 20) + 1)))


def test_members_that_overlap(tmp_path: Path) -> None:
    """Many entries of the directory that name the same bytes."""
    path = put(tmp_path / "w.pt", b"\x80\x02}.", data_0=bytes(5000), data_1=bytes(5000))
    data = path.read_bytes()
    at = data.index(b"PK\1\2", data.index(b"PK\1\2", data.index(b"PK\1\2") + 1) + 1)
    for place, size in ((20, 8000), (24, 8000)):
        data = data[: at + place] + struct.pack("<I", size) + data[at + place + 4 :]
    path.write_bytes(data)
    assert "overlap" in refused_file(path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.", "old, non-zip format"),
        (pickle.dumps({"a": 1}, 2), "bare pickle"),
        (pickle.dumps(Call(os.system, "true"), 4), "bare pickle"),
    ],
)
def test_bare_pickles(data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(data)
    assert said in refused_file(tmp_path / "w.pt")


def test_archives_of_others(tmp_path: Path) -> None:
    assert "TorchScript" in refused_file(
        put(tmp_path / "w.pt", b"\x80\x02}.", **{"constants.pkl": b"1"})
    )
    assert "TorchScript" in refused_file(
        put(tmp_path / "w.pt", b"\x80\x02}.", **{"code_x.py": b"1"})
    )
    assert "byte order" in refused_file(put(tmp_path / "w.pt", b"\x80\x02}.", byteorder=b"pdp"))
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as file:
        file.writestr("x", b"1")
    assert "not a file of torch.save" in refused_file(tmp_path / "w.pt")


def printable(error: LstmCliError) -> None:
    assert all(line.isprintable() for line in str(error).split("\n"))


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    content = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        at, to = sorted(int(n) for n in rng.integers(0, len(content) + 1, 2))
        kind = rng.integers(5)
        if kind == 0:
            del content[at : min(to, at + 9)]
        elif kind == 1:
            content[at:at] = content[to : to + 9]
        elif kind == 2 and at:
            del content[at:]
        elif content:
            content[at % len(content)] = int(rng.integers(256))
        content = content or bytearray(1)
    return bytes(content)


def test_a_thousand_corrupt_pickles() -> None:
    """The unpickler alone, without the checks of an archive before it."""
    with zipfile.ZipFile(io.BytesIO(SOUND)) as file:
        sound = file.read("archive/data.pkl")
    for seed in range(1000):
        try:
            unpickle(damaged(sound, np.random.default_rng(seed)), "x")
        except WeightsError as error:
            printable(error)
