"""Checks of the arguments of `build`, `load`, `Model` and `Trainer`, before they are used."""

from __future__ import annotations

import os
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.errors import UsageError, described, nearest
from lstm_cli.formats.interchange import Imported
from lstm_cli.network.state import as_array

CONFIG = "a path, or the config as a mapping"
"""Expected value of an argument `config`, for messages."""


def checked_path(value: Any, name: str, expected: str = "a path") -> str | os.PathLike[str]:
    """Return a path unchanged.

    Raises
    ------
    UsageError
        The value is no path, or no file can have that name.
    """
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str) or not text or "\0" in text:
        raise _wrong(name, expected, value)
    return value  # type: ignore[no-any-return]


def checked_config(value: Any, name: str = "config", *, optional: bool = False) -> Any:
    """Return a config as `build` and `load` take it: a path, a mapping, or imported weights."""
    if (optional and value is None) or isinstance(value, Mapping | Imported):
        return value
    return checked_path(value, name, CONFIG + (", or None" if optional else ""))


def checked_weights(value: Any) -> Any:
    """Return weights: a path, tensors by name, imported weights, or None."""
    if value is None or isinstance(value, Imported):
        return value
    if not isinstance(value, Mapping):
        return checked_path(value, "weights", "a path, a mapping of names to arrays, or None")
    return {_tensor_name(key): _tensor(key, tensor) for key, tensor in value.items()}


def _tensor_name(key: Any) -> str:
    if not isinstance(key, str):
        raise _wrong("a name in weights", "a text such as layers.0.weight_ih", key)
    return key


def _tensor(key: str, tensor: Any) -> Array:
    array = as_array(tensor, key, "real numbers")
    if array.dtype.kind not in "fiub" and array.dtype.name != "bfloat16":
        raise _wrong(f"weights[{key!r}]", "an array of real numbers", tensor)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def checked_text(value: Any, name: str, choices: tuple[str, ...] = ()) -> str | None:
    """Return a text or None; the text is one of `choices` if there are any.

    Raises
    ------
    UsageError
        The value is no text, or none of the choices.
    """
    if value is None or (isinstance(value, str) and (not choices or value in choices)):
        return value
    guess = nearest(value, choices) if isinstance(value, str) else None
    expected = ", ".join(choices) if choices else "a text"
    hint = f"did you mean `{guess}`?" if guess else None
    raise UsageError(
        f"{name} cannot be used as given",
        expected=f"{expected}, or None",
        found=described(value),
        hint=hint,
    )


def checked_seed(value: Any) -> int | None:
    """Return a seed, a whole number of at least 0, or None.

    Raises
    ------
    UsageError
        The value is neither.
    """
    if value is None:
        return None
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if whole and value >= 0:
        return int(value)
    raise _wrong("seed", "a whole number, at least 0, or None", value)


def checked_flag(value: Any, name: str) -> bool:
    """Return True or False.

    Raises
    ------
    UsageError
        The value is neither.
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    raise _wrong(name, "True or False", value)


def checked_kind(value: Any, kind: type, name: str, expected: str) -> None:
    """Raise UsageError unless a value is an instance of a class."""
    if not isinstance(value, kind):
        raise _wrong(name, expected, value)


def _wrong(name: str, expected: str, value: Any) -> UsageError:
    return UsageError(f"{name} cannot be used as given", expected=expected, found=described(value))
