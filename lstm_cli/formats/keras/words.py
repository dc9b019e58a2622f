"""Names from a file as they are shown, and the options of a Keras object, each of its type."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lstm_cli.errors import WeightsError

LONGEST = 80
"""Characters of a name or value that are shown."""


def shown(name: str) -> str:
    """A name from a file: as it is where it is plain, else quoted, never long."""
    text = name if name.isprintable() and name.strip() == name != "" else repr(name)
    text = text.encode("utf-8", "backslashreplace").decode()  # lone surrogates
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def shown_value(value: Any) -> str:
    """Any value from a description, short."""
    if isinstance(value, str):
        return shown(value)
    if isinstance(value, Mapping):
        return f"an object of class {shown(str(value.get('class_name')))}"
    if isinstance(value, list):
        return f"a list of {len(value)}" if len(value) > 8 else shown(str(value)[:200])
    return shown(str(value)[:200]) if not isinstance(value, int) else _whole(value)


def _whole(value: int) -> str:
    return str(value) if value.bit_length() < 200 else "a number beyond all measure"


@dataclass(frozen=True)
class Options:
    """The options of a layer or model; one that is missing has Keras's default.

    Attributes
    ----------
    owner
        Whose they are, for errors: ``the layer lstm (LSTM)``.
    """

    owner: str
    values: Mapping[str, Any]

    def get(self, key: str) -> Any:
        """The value as it stands; None if it is missing."""
        return self.values.get(key)

    def flag(self, key: str, default: bool = False) -> bool:
        """A truth value."""
        value = self._given(key, default)
        if not isinstance(value, bool):
            raise self.refused(key, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """A text."""
        value = self._given(key, default)
        if not isinstance(value, str):
            raise self.refused(key, "a text")
        return value

    def number(self, key: str, default: float) -> float:
        """A finite number."""
        value = self._given(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() < 1000:
            return float(value)
        if not isinstance(value, float) or not math.isfinite(value):
            raise self.refused(key, "a number")
        return value

    def size(self, key: str) -> int:
        """A whole number above 0; there is no default."""
        value = self.values.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise self.refused(key, "a whole number above 0")
        return value

    def refused(
        self, key: str, expected: str | None = None, hint: str | None = None
    ) -> WeightsError:
        """The error that names one option and its value."""
        return WeightsError(
            f"{self.owner} has {key}: {shown_value(self.values.get(key))}, which lstm-cli "
            + ("does not understand" if expected else "cannot represent"),
            expected=expected,
            hint=hint,
        )

    def _given(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value


def options(owner: str, values: Any) -> Options:
    """Options from any part of a description.

    Raises
    ------
    WeightsError
        It is no mapping.
    """
    if not isinstance(values, Mapping):
        raise WeightsError(f"{owner} has no config", expected="a mapping of its options")
    return Options(owner, values)
