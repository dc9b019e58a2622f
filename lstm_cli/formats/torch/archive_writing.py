"""torch.save's archive, written so that the same tensors give the same bytes."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping

from lstm_cli.engines.types import Array
from lstm_cli.formats.torch.pickle_writing import pickled

FOLDER = "archive"
ALIGNMENT = 64
"""Each member's bytes begin at a multiple of this, so that PyTorch can map them."""
_HEADER = 30
_PADDING = 0x4246


def archived(tensors: Mapping[str, Array]) -> bytes:
    """The file: a pickle, the byte order, the values of each tensor, the format's version."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, buffer, "data.pkl", pickled(tensors))
        _add(archive, buffer, "byteorder", b"little")
        for k, value in enumerate(tensors.values()):
            values = value.astype(value.dtype.newbyteorder("<"), copy=False)
            _add(archive, buffer, f"data/{k}", values.tobytes())
        _add(archive, buffer, "version", b"3\n")
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, buffer: io.BytesIO, name: str, data: bytes) -> None:
    """A member whose date, mode and system say nothing about where it was written."""
    member = zipfile.ZipInfo(f"{FOLDER}/{name}")
    member.create_system = 3
    member.external_attr = 0o644 << 16
    start = buffer.tell() + _HEADER + len(member.filename) + 4
    padding = -start % ALIGNMENT
    member.extra = struct.pack("<HH", _PADDING, padding) + bytes(padding)
    archive.writestr(member, data)
