"""A mapping from Python code as plain values, like those that YAML gives."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from pathlib import PurePath
from typing import Any

from lstm_cli.config.yaml12 import MAX_DEPTH, MAX_VALUES
from lstm_cli.errors import ConfigError


def plain(value: Any) -> Any:
    """The value with mappings as dict, tuples and arrays as list, paths as text.

    Raises
    ------
    ConfigError
        Nested too deeply, as what contains itself is, or too many values.
    """
    return _plain(value, 0, count())


def _plain(value: Any, depth: int, values: count[int]) -> Any:
    if next(values) > MAX_VALUES:
        raise ConfigError(
            "config holds too many values",
            expected=f"at most {MAX_VALUES:,}",
            hint="look for a dict that stands in many places",
        )
    if depth > MAX_DEPTH:
        raise ConfigError(
            "config is nested too deeply",
            expected=f"at most {MAX_DEPTH} levels",
            hint="look for a dict that contains itself",
        )
    if isinstance(value, Mapping):
        return {_key(key): _plain(item, depth + 1, values) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, depth + 1, values) for item in value]
    if isinstance(value, PurePath):
        return str(value)
    # NumPy's numbers and arrays know how to become Python's.
    listed = None if isinstance(value, type) else getattr(value, "tolist", None)
    return _plain(listed(), depth + 1, values) if callable(listed) else value


def _key(key: Any) -> str | int:
    """A key as YAML would give it: a whole number, else text."""
    number = key.item() if hasattr(key, "item") and not isinstance(key, type) else key
    if isinstance(number, int) and not isinstance(number, bool):
        return number
    return str(key)
