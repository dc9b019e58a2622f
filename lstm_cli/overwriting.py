"""Which files may be overwritten: those that lstm-cli wrote itself, told by marks that they carry.

A mark is looked for in a file's first bytes, without a library that would read all of it. So a
file that is damaged, hostile or very large takes no longer, and does no harm.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import BinaryIO

from lstm_cli.errors import LstmCliError, UsageError, quote
from lstm_cli.version import __version__

PRODUCER = "lstm-cli"
"""The name in every mark."""
SIGNATURE = f"{PRODUCER} {__version__}"
"""The mark in JSON, under the key ``producer``, and in other texts."""
HDF5_ATTRIBUTE = "lstm_cli_version"
"""The mark in HDF5: an attribute of the root group."""
RUN_FILES = ("model.safetensors", "checkpoint.safetensors", "config.yaml", "metrics.jsonl")
"""Files of a training folder that no other command replaces."""

_HEAD = 4096
_LARGEST_HEADER = 16 << 20
_MOST_PARTS = 64
_STREAM = re.compile(r"/dev/(stdout|stderr|fd/\d+)|/proc/self/fd/\d+")
_JSON = re.compile(
    rb'\{\s*("\$schema": "[^"]*",\s*)?"(producer|\$comment)": "lstm-cli [^"]*"'
    rb'|\{\s*"schema": 1,\s*("mode": "[a-z]+",\s*)?"machine": \{\s*"processor":'  # older baselines
)
_XML = re.compile(rb'<Info\s+name="Creator"\s+value="lstm-cli [^"]*"')


def check_target(
    path: str | Path, *, option: str, force: bool, suffix: str = "", streams: bool = False
) -> None:
    """Raise unless a file may be made, or replaced, at a path.

    Parameters
    ----------
    option
        What names another path, for hints: ``--output``, ``DST``.
    force
        Replace what another program wrote.
    suffix
        Of files of this kind, for hints.
    streams
        A device or a pipe can be written to.

    Raises
    ------
    LstmCliError
        Its folder does not exist, or something that is no file has that name.
    UsageError
        It belongs to a training run, or another program wrote it and `force` is not set.
    """
    folder = os.path.dirname(os.path.realpath(path))
    if streams and is_stream(path):
        return
    if not os.path.isdir(folder):
        raise LstmCliError(
            f"{path} cannot be written: its folder does not exist",
            expected=f"a folder {folder}",
            where=str(path),
            hint=f"mkdir -p {quote(folder)}",
        )
    if os.path.exists(path) and not os.path.isfile(path):
        inside = os.path.join(path, f"out{suffix}")
        raise LstmCliError(
            f"{path} cannot be written: it is no regular file",
            expected="a new name, or a file to be replaced",
            found="a folder" if os.path.isdir(path) else "a device or pipe",
            where=str(path),
            hint=f"{option} {quote(inside)}" if os.path.isdir(path) else None,
        )
    if os.path.basename(os.path.realpath(path)) in RUN_FILES and _holds_run(folder):
        raise UsageError(
            f"{path} belongs to the training run in {folder}",
            expected="a file that is not part of a run",
            where=str(path),
            hint=f"{option} OTHER{suffix}",
        )
    if not force:
        need_own(path)


def need_own(path: str | Path) -> None:
    """Raise UsageError if a file is there that another program wrote."""
    if os.path.exists(path) and not is_own(path):
        raise UsageError(
            f"{path} exists, and does not say that lstm-cli wrote it",
            expected="a new name, or a file that lstm-cli wrote",
            where=str(path),
            hint="--force replaces it",
        )


def is_stream(path: str | Path) -> bool:
    """Whether a path leads to a device, a pipe or an open file, which is written to as it is."""
    if _STREAM.fullmatch(str(path)):
        return True
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def is_own(path: str | Path) -> bool:
    """Whether a file says that lstm-cli wrote it. CSV and PyTorch's archives cannot say it."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
            return (
                _JSON.match(head.lstrip()) is not None
                or (head.startswith(b"<?xml") and _XML.search(head) is not None)
                or _is_own_archive(head)
                or _is_own_hdf5(file, head)
                or _is_own_safetensors(file, head)
                or _is_own_onnx(file)
            )
    except (OSError, ValueError, IndexError, RecursionError):
        return False


def _holds_run(folder: str) -> bool:
    return os.path.exists(os.path.join(folder, "checkpoint.safetensors"))


def _is_own_archive(head: bytes) -> bool:
    """A ``.keras`` file: its first member, which is not compressed, has the mark."""
    name = b"metadata.json"
    key = f'"producer": "{PRODUCER} '.encode()
    return head.startswith(b"PK\3\4") and head[30 : 30 + len(name)] == name and key in head[:512]


def _is_own_safetensors(file: BinaryIO, head: bytes) -> bool:
    """The header's texts: ``format`` in native files, ``producer`` in those for PyTorch."""
    size = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or size > _LARGEST_HEADER:
        return False
    file.seek(8)
    header = json.loads(file.read(size))
    texts = header.get("__metadata__")
    if not isinstance(texts, dict):
        return False
    return texts.get("format") == PRODUCER or str(texts.get("producer")).startswith(f"{PRODUCER} ")


def _is_own_onnx(file: BinaryIO) -> bool:
    """A model's field 2, ``producer_name``; those in front of it are passed over."""
    file.seek(0)
    for _ in range(_MOST_PARTS):
        tag = _varint(file)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            _varint(file)
        elif kind == 2:
            size = _varint(file)
            if number == 2:
                return size == len(PRODUCER) and file.read(size) == PRODUCER.encode()
            file.seek(size, os.SEEK_CUR)
        else:
            return False
    return False


def _varint(file: BinaryIO) -> int:
    """A number of variable length; ValueError where there is none."""
    value = 0
    for k in range(10):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 127) << 7 * k
        if byte[0] < 128:
            return value
    raise ValueError("no varint")


def _is_own_hdf5(file: BinaryIO, head: bytes) -> bool:
    """The messages of the root group's object header, as h5py writes it by default.

    Superblock version 0 with addresses of 8 bytes, and an object header of version 1.
    """
    if not head.startswith(b"\x89HDF\r\n\x1a\n\0") or head[13:15] != b"\x08\x08":
        return False
    address = int.from_bytes(head[64:72], "little")
    file.seek(address)
    prefix = file.read(16)
    if prefix[:1] != b"\1":
        return False
    parts = [(address + 16, int.from_bytes(prefix[8:12], "little"))]
    for start, size in parts:  # grows with each continuation that is met
        file.seek(start)
        block, at = file.read(min(size, 1 << 20)), 0
        while at + 8 <= len(block):
            kind = int.from_bytes(block[at : at + 2], "little")
            length = int.from_bytes(block[at + 2 : at + 4], "little")
            body = block[at + 8 : at + 8 + length]
            if kind == 0x0C and _attribute_name(body) == HDF5_ATTRIBUTE.encode():
                return True
            if kind == 0x10 and len(parts) < _MOST_PARTS:
                numbers = int.from_bytes(body[:8], "little"), int.from_bytes(body[8:16], "little")
                parts.append(numbers)
            at += 8 + length
    return False


def _attribute_name(body: bytes) -> bytes:
    """The name in an attribute's message; version 3 has a byte for its encoding in front."""
    start = 9 if body[:1] == b"\3" else 8
    size = int.from_bytes(body[2:4], "little")
    return body[start : start + size].rstrip(b"\0")
