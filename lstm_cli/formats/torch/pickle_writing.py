"""The pickle of a state dict, opcode by opcode as torch.save lays it out (protocol 2)."""

from __future__ import annotations

import struct
from collections.abc import Mapping

from lstm_cli.engines.types import Array

_STORAGES = {"float32": "FloatStorage", "float64": "DoubleStorage"}


def pickled(tensors: Mapping[str, Array]) -> bytes:
    """An OrderedDict of tensors, contiguous ones whose values are in storages 0, 1, 2, ..."""
    memo: dict[str, int] = {}
    parts = [b"\x80\x02", _named(memo, "collections", "OrderedDict"), b")R("]
    for k, (name, value) in enumerate(tensors.items()):
        parts += [_text(name), _tensor(memo, str(k), value)]
    return b"".join([*parts, b"u."])


def _tensor(memo: dict[str, int], key: str, value: Array) -> bytes:
    """``_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())``."""
    strides = tuple(step // value.itemsize for step in value.strides)
    storage = _named(memo, "torch", _STORAGES[str(value.dtype)])
    parts = [
        _named(memo, "torch._utils", "_rebuild_tensor_v2"),
        b"((", _text("storage"), storage, _text(key), _text("cpu"), _integer(value.size), b"tQ",
        _integer(0), _sizes(value.shape), _sizes(strides), b"\x89",
        _named(memo, "collections", "OrderedDict"), b")R", b"tR",
    ]  # fmt: skip
    return b"".join(parts)


def _named(memo: dict[str, int], module: str, name: str) -> bytes:
    """A class or function: by name the first time (GLOBAL, BINPUT), by memo then (BINGET)."""
    if name in memo:
        return b"h" + bytes([memo[name]])
    memo[name] = len(memo)
    return f"c{module}\n{name}\n".encode() + b"q" + bytes([memo[name]])


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _sizes(sizes: tuple[int, ...]) -> bytes:
    """A tuple of at most two integers."""
    ends = {1: b"\x85", 2: b"\x86"}
    return b"".join(map(_integer, sizes)) + ends[len(sizes)]
