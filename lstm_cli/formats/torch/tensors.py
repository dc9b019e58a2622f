"""A tensor of a state dict: what the file says about it, and its values on demand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lstm_cli.engines.types import Array

FLOATS = {"float16": "f2", "bfloat16": "u2", "float32": "f4", "float64": "f8"}
"""dtypes that a weight may have, to NumPy's code; bfloat16 is read as its bits."""
MAX_NAME_CHARACTERS = 120


@dataclass(frozen=True)
class StateTensor:
    """One tensor of a state dict.

    Attributes
    ----------
    name
        Its key in the state dict.
    shape, dtype
        As stored; dtype in PyTorch's word, such as ``bfloat16``.
    read
        Gives the values, a half widened to float32; WeightsError where the file lacks them.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Array]


def widen(values: Array, dtype: str) -> Array:
    """Values in this machine's byte order, (u)int16 bits of bfloat16 and halves as float32."""
    if dtype == "bfloat16":
        return (values.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(values, np.float64 if dtype == "float64" else np.float32)


def printable(name: object) -> str:
    """A name from a file, safe and short enough to print."""
    text = str(name) if isinstance(name, str) else type(name).__name__
    text = text if len(text) <= MAX_NAME_CHARACTERS else text[:MAX_NAME_CHARACTERS] + "..."
    return text if text.isprintable() and text.strip() == text and text else repr(text)


def list_names(names: list[str], most: int = 8) -> str:
    """Names in one line, the first few of many."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(printable(name) for name in names[:most]) + more
