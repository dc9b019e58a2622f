"""Options of optimizers and schedules: each default, bound and description stands once, in a class.

The class is a dataclass whose fields are made by `option`. `from_mapping` makes an object of it
from a config's section. The config's schema derives the keys of that section from the same fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import Field, field, fields
from typing import Any, ClassVar, Protocol, TypeAlias, TypeVar, get_type_hints

import numpy as np

from lstm_cli.errors import ConfigError, nearest

LARGEST = 2**24
"""Largest size; a larger one is probably a typing error."""

Bounds: TypeAlias = Mapping[str, float]
"""Bounds by the words of pydantic: ``gt``, ``ge``, ``lt`` and ``le``."""

ANY: Bounds = {}
POSITIVE: Bounds = {"gt": 0}
NOT_NEGATIVE: Bounds = {"ge": 0}
SHARE: Bounds = {"ge": 0, "lt": 1}
FACTOR: Bounds = {"gt": 0, "le": 1}
SIZE: Bounds = {"ge": 1, "le": LARGEST}
COUNT: Bounds = {"ge": 0, "le": LARGEST}


def option(default: Any, bounds: Bounds, description: str) -> Any:
    """Field of a dataclass that is a key of the config."""
    return field(default=default, metadata={"description": description, **bounds})


class Kind(Protocol):
    """A dataclass with options. Its docstring's first paragraph describes it in the schema.

    Attributes
    ----------
    name
        Value of the key ``type``.
    description
        Description of that value.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]
    name: ClassVar[str]
    description: ClassVar[str]


def options(kind: type[Kind]) -> dict[str, tuple[Any, Field[Any]]]:
    """Type and field of every option of a class, by key."""
    types = get_type_hints(kind)
    return {one.name: (types[one.name], one) for one in fields(kind) if one.init}


KindT = TypeVar("KindT", bound=Kind)


def from_mapping(
    section: str, kinds: Mapping[str, type[KindT]], values: Mapping[str, Any]
) -> KindT:
    """An object of the class that ``values["type"]`` names, with the other values as options.

    Parameters
    ----------
    section
        Name of the section for errors, such as ``optimizer``.
    kinds
        Classes by type.

    Raises
    ------
    ConfigError
        The type is missing or unknown, or a key is unknown. Values are not checked.
    """
    if "type" not in values:
        raise ConfigError(f"{section} has no type", expected=", ".join(kinds))
    name = str(values["type"])
    if name not in kinds:
        raise ConfigError(
            f"{name} is not a kind of {section}",
            expected=", ".join(kinds),
            hint=_did_you_mean(name, kinds),
        )
    keys = [one.name for one in fields(kinds[name]) if one.init]
    for key in values:
        if key != "type" and key not in keys:
            raise ConfigError(
                f"{section}.{key} is not a key of {name}",
                expected=", ".join(keys),
                hint=_did_you_mean(key, keys),
            )
    return kinds[name](**{key: _plain(value) for key, value in values.items() if key != "type"})


def _plain(value: Any) -> Any:
    """A NumPy number as a Python number, which does not change the precision of arrays."""
    return value.item() if isinstance(value, np.generic) else value


def _did_you_mean(name: str, names: Iterable[str]) -> str | None:
    guess = nearest(name, names)
    return f"did you mean `{guess}`?" if guess else None
