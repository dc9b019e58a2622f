"""A section of the config, as a plain mapping, made into the object it describes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np

from lstm_cli.errors import ConfigError, nearest

Made = TypeVar("Made")


def make(section: str, kinds: Mapping[str, type[Made]], options: Mapping[str, Any]) -> Made:
    """The dataclass that ``options["type"]`` names, with the other options as its fields.

    Parameters
    ----------
    section
        Name of the section, for errors: ``optimizer``.
    kinds
        Dataclasses by type.

    Raises
    ------
    ConfigError
        No type or an unknown one, or an option that the type does not have.
    """
    if "type" not in options:
        raise ConfigError(f"{section} has no type", expected=", ".join(kinds))
    kind = str(options["type"])
    if kind not in kinds:
        raise ConfigError(
            f"{kind} is no {section}",
            expected=", ".join(kinds),
            hint=_did_you_mean(kind, kinds),
        )
    known = [field.name for field in fields(kinds[kind]) if field.init]  # type: ignore[arg-type]
    for key in options:
        if key != "type" and key not in known:
            raise ConfigError(
                f"{section}.{key} is not a key of {kind}",
                expected=", ".join(known),
                hint=_did_you_mean(key, known),
            )
    return kinds[kind](**{key: _plain(value) for key, value in options.items() if key != "type"})


def _plain(value: Any) -> Any:
    """A NumPy number as Python's: it would raise arrays that it meets to its own precision."""
    return value.item() if isinstance(value, np.generic) else value


def _did_you_mean(name: str, known: Iterable[str]) -> str | None:
    guess = nearest(name, known)
    return f"did you mean `{guess}`?" if guess else None
