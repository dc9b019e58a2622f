"""Detection of a file's format from its content: first bytes, archive members, tensor names."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

from lstm_cli.formats.native import parse_header

MAX_HEADER_BYTES = 16 << 20
"""Bytes of the largest safetensors header that is parsed; its objects need many times as many."""

_HDF5 = b"\x89HDF\r\n\x1a\n"
_CELL_TENSORS = {"weight", "bias", "weight_ih", "weight_hh", "bias_ih", "bias_hh"}
_NATIVE_NAME = re.compile(r"layers\.\d+\.(reverse\.)?[a-z_]+|inputs\.(mean|scale)")


def detect_format_name(path: Path) -> str | None:
    """Name of the format of a file's content; None if no format matches.

    Raises
    ------
    OSError, ValueError
        The file cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(b"PK"):
        return _archive_format(path)
    if _is_hdf5(path, head):
        return "keras"
    if _is_safetensors(path, head):
        return _safetensors_format(path)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return "tmva"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "pytorch"  # a bare pickle, which its codec explains
    if _is_protobuf(head):
        return "onnx"
    return None


def _archive_format(path: Path) -> str | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # struct, zipfile, memory: the codec reports the damage
        return "keras" if path.suffix.lower() == ".keras" else "pytorch"
    if any(name.rsplit("/", 1)[-1] == "data.pkl" for name in names):
        return "pytorch"
    if "config.json" in names or any(name.endswith(".weights.h5") for name in names):
        return "keras"
    return None


def _is_hdf5(path: Path, head: bytes) -> bool:
    # The signature stands at 0, or at 512, 1024, ... behind a user block.
    if head.startswith(_HDF5):
        return True
    return any(head[at : at + 8] == _HDF5 for at in (512, 1024, 2048))


def _is_safetensors(path: Path, head: bytes) -> bool:
    # A length beyond the end is valid in a file that was cut off.
    size = int.from_bytes(head[:8], "little")
    fits = 2 <= size <= path.stat().st_size or path.suffix.lower() == ".safetensors"
    return head[8:9] == b"{" and fits


def _safetensors_format(path: Path) -> str:
    """Native or PyTorch. A malformed file counts as native: the native reader reports the error."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > MAX_HEADER_BYTES:
            return "native"
        file.seek(0)
        data = file.read(8 + size)
    try:
        header = parse_header(data)
        metadata = header.pop("__metadata__", None) or {}
    except (ValueError, AttributeError, RecursionError):
        return "native"
    if not isinstance(metadata, dict) or metadata.get("format") == "lstm-cli":
        return "native"
    if "config" in metadata or not all(_NATIVE_NAME.fullmatch(name) for name in header):
        return "native" if "config" in metadata else "pytorch"
    # A ModuleList called `layers` has native names, but a file of PyTorch states format: pt.
    return (
        "pytorch"
        if metadata.get("format") == "pt" and not _has_native_only_names(header)
        else "native"
    )


def _has_native_only_names(names: Iterable[str]) -> bool:
    """Whether a tensor has a name that no cell and no Linear module of PyTorch has."""
    known = {name for name in names if name.startswith("layers.")}
    return any(
        last not in _CELL_TENSORS or (last == "bias" and f"{layer}.weight_ih" in known)
        for layer, last in (re.split(r"(?<=\d)\.", name, maxsplit=1) for name in known)
    )


def _is_protobuf(head: bytes) -> bool:
    # A ModelProto starts with one of its own fields, an integer or a length-delimited one.
    if len(head) < 2:
        return False
    field, wire_type = head[0] >> 3, head[0] & 7
    if wire_type == 0:
        return field in (1, 5)
    return wire_type == 2 and field in (2, 3, 4, 6, 7, 8, 14)
