"""A tensor of a state dict with its values on demand, and names in messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lstm_cli.engines.types import Array

FLOATS = {"float16": "f2", "bfloat16": "u2", "float32": "f4", "float64": "f8"}
"""NumPy's code for each dtype of a weight; bfloat16 is read as its bits."""
MAX_NAME_CHARACTERS = 120


@dataclass(frozen=True)
class StateTensor:
    """Tensor of a state dict.

    Attributes
    ----------
    name
        Key in the state dict.
    shape, dtype
        Shape and dtype in the file; the dtype has PyTorch's name, such as ``bfloat16``.
    read
        Function that reads the values, float16 and bfloat16 widened to float32. It raises
        WeightsError if the file lacks them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Array]


def widen(values: Array, dtype: str) -> Array:
    """Values in native byte order; float16, and bfloat16 given as bits, become float32."""
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(values, np.float64 if dtype == "float64" else np.float32)


def printable(name: object) -> str:
    """Name from a file for a message: quoted if it is not plain, shortened if it is long."""
    text = str(name) if isinstance(name, str) else type(name).__name__
    text = text if len(text) <= MAX_NAME_CHARACTERS else text[:MAX_NAME_CHARACTERS] + "..."
    return text if text.isprintable() and text.strip() == text and text else repr(text)


def list_names(names: list[str], most: int = 8) -> str:
    """List names for a message: the first `most` of them, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(printable(name) for name in names[:most]) + more
