"""Which format a file is, from its first bytes and, where those do not decide, a little more."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

LARGEST_HEADER = 16 << 20
"""Bytes of JSON that are looked into; as objects they are many times as many."""

_HDF5 = b"\x89HDF\r\n\x1a\n"
_OF_CELLS = {"weight", "bias", "weight_ih", "weight_hh", "bias_ih", "bias_hh"}
_NATIVE_NAME = re.compile(r"layers\.\d+\.(reverse\.)?[a-z_]+|inputs\.(mean|scale)")


def sniff(path: Path) -> str | None:
    """Name of the format that a file's content is, or None.

    Raises
    ------
    OSError, ValueError
        The file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"PK"):
        return _of_archive(path)
    if _is_hdf5(path, head):
        return "keras"
    if _is_safetensors(path, head):
        return _of_safetensors(path)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return "tmva"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pytorch"  # a bare pickle: its codec says what to do about it
    if _is_protobuf(head):
        return "onnx"
    return None


def _of_archive(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # struct, zipfile, memory: the codec says what is wrong with it
        return "keras" if path.suffix.lower() == ".keras" else "pytorch"
    if any(name.rsplit("/", 1)[-1] == "data.pkl" for name in names):
        return "pytorch"
    if "config.json" in names or any(name.endswith(".weights.h5") for name in names):
        return "keras"
    return None


def _is_hdf5(path: Path, head: bytes) -> bool:
    """HDF5's signature stands at 0, or at 512, 1024, ... after a block of the user's."""
    if head.startswith(_HDF5):
        return True
    return any(head[at : at + 8] == _HDF5 for at in (512, 1024, 2048))


def _is_safetensors(path: Path, head: bytes) -> bool:
    """A header's length, and a header; a length beyond the file is one that was cut off."""
    size = int.from_bytes(head[:8], "little")
    fits = 2 <= size <= path.stat().st_size or path.suffix.lower() == ".safetensors"
    return head[8:9] == b"{" and fits


def _of_safetensors(path: Path) -> str:
    """Native or with PyTorch's names; what is malformed goes to the native codec's errors."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > LARGEST_HEADER:
            return "native"
        text = file.read(size)
    try:
        header = json.loads(text)
        metadata = header.pop("__metadata__", None) or {}
    except (ValueError, AttributeError, RecursionError):
        return "native"
    if not isinstance(metadata, dict) or metadata.get("format") == "lstm-cli":
        return "native"
    if "config" in metadata or not all(_NATIVE_NAME.fullmatch(name) for name in header):
        return "native" if "config" in metadata else "pytorch"
    # A ModuleList called `layers` has names like ours, and PyTorch signs what it saves.
    return "pytorch" if metadata.get("format") == "pt" and not _only_ours(header) else "native"


def _only_ours(names: Iterable[str]) -> bool:
    """Whether names like ours are none that PyTorch's cells and Linear modules have."""
    known = {name for name in names if name.startswith("layers.")}
    return any(
        last not in _OF_CELLS or (last == "bias" and f"{layer}.weight_ih" in known)
        for layer, last in (re.split(r"(?<=\d)\.", name, maxsplit=1) for name in known)
    )


def _is_protobuf(head: bytes) -> bool:
    """A ModelProto begins with a field that it has: an integer or a length-delimited one."""
    if len(head) < 2:
        return False
    number, kind = head[0] >> 3, head[0] & 7
    return (number in (1, 5) and kind == 0) or (number in (2, 3, 4, 6, 7, 8, 14) and kind == 2)
