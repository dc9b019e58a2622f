"""A safetensors file with PyTorch's names."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.errors import WeightsError
from lstm_cli.formats.native import deserialized
from lstm_cli.formats.safety import read_whole
from lstm_cli.formats.torch.tensors import FLOATS, StoredTensor, shown, widened

_WORDS = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def read_tensors(path: Path) -> dict[str, StoredTensor]:
    """All tensors by name, names that differ by a number in the order of the numbers.

    Raises
    ------
    WeightsError
        Missing, unreadable, or not safetensors.
    """
    entries, _ = deserialized(path, read_whole(path))
    tensors = {}
    for name, entry in sorted(entries, key=lambda pair: natural(pair[0])):
        dtype = _WORDS.get(entry["dtype"], str(entry["dtype"]).lower())
        shape = tuple(entry["shape"])
        read = partial(_values, path, name, dtype, shape, entry["data"])
        tensors[name] = StoredTensor(name, shape, dtype, read)
    return tensors


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts ``fc2`` before ``fc10``."""
    parts = re.split(r"([0-9]+)", name)
    for k in range(1, len(parts), 2):
        parts[k] = parts[k].lstrip("0")
    return [(len(part) if k % 2 else 0, part) for k, part in enumerate(parts)]


def _values(path: Path, name: str, dtype: str, shape: tuple[int, ...], data: bytearray) -> Array:
    if dtype not in FLOATS:
        raise WeightsError(
            f"{shown(name)} is stored as {dtype}",
            expected="one of " + ", ".join(FLOATS),
            where=str(path),
        )
    try:
        values = np.frombuffer(data, f"<{FLOATS[dtype]}").reshape(shape)
    except ValueError as error:
        raise WeightsError(
            f"{shown(name)} has a shape that no array can have",
            found=f"{shape}: {error}",
            where=str(path),
        ) from None
    return widened(values, dtype)
