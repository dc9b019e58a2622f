"""Options of Keras's layers, and their defaults by version of Keras.

One table has the defaults that changed, and a release tells which rows apply. A default matters
where a file leaves an option out, and in files of weights alone. Flags with one default in every
version are read with that default in place.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lstm_cli.errors import WeightsError

MAX_CHARACTERS = 80
"""Characters of a name or value in a message."""


def printable(name: str) -> str:
    """Name from a file for a message: quoted if it is not plain, shortened if it is long."""
    text = name if name.isprintable() and name.strip() == name != "" else repr(name)
    text = text.encode("utf-8", "backslashreplace").decode()  # lone surrogates
    return text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS - 1] + "…"


def printable_value(value: Any) -> str:
    """Value from a description for a message, shortened."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return f"an object of class {printable(str(value.get('class_name')))}"
    if isinstance(value, list):
        return f"a list of {len(value)}" if len(value) > 8 else printable(str(value)[:200])
    return printable(str(value)[:200]) if not isinstance(value, int) else _whole(value)


def _whole(value: int) -> str:
    return str(value) if value.bit_length() < 200 else "a number of very many digits"


@dataclass(frozen=True)
class LayerOptions:
    """Options of a layer or model; a missing option has Keras's default.

    Attributes
    ----------
    owner
        Layer or model in words, for errors: ``the layer lstm (LSTM)``.
    """

    owner: str
    values: Mapping[str, Any]

    def get(self, key: str) -> Any:
        """Value of an option as the file has it; None if the option is missing."""
        return self.values.get(key)

    def flag(self, key: str, default: bool = False) -> bool:
        """Value of an option that is true or false."""
        value = self._value_or_default(key, default)
        if not isinstance(value, bool):
            raise self.refused(key, "true or false")
        return value

    def text(self, key: str, default: str) -> str:
        """Value of an option that is a text."""
        value = self._value_or_default(key, default)
        if not isinstance(value, str):
            raise self.refused(key, "a text")
        return value

    def number(self, key: str, default: float) -> float:
        """Value of an option that is a finite number."""
        value = self._value_or_default(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() < 1000:
            return float(value)
        if not isinstance(value, float) or not math.isfinite(value):
            raise self.refused(key, "a number")
        return value

    def size(self, key: str) -> int:
        """Value of an option that is a whole number above 0 and has no default."""
        value = self.values.get(key)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
            raise self.refused(key, "a whole number above 0")
        return value

    def refused(
        self, key: str, expected: str | None = None, hint: str | None = None
    ) -> WeightsError:
        """Error that names an option and its value."""
        return WeightsError(
            f"{self.owner} has {key}: {printable_value(self.values.get(key))}, which lstm-cli "
            + ("does not understand" if expected else "cannot represent"),
            expected=expected,
            hint=hint,
        )

    def _value_or_default(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value


def parse_options(owner: str, values: Any) -> LayerOptions:
    """Options from a part of a description.

    Raises
    ------
    WeightsError
        The part is not a mapping.
    """
    if not isinstance(values, Mapping):
        raise WeightsError(f"{owner} has no config", expected="a mapping of its options")
    return LayerOptions(owner, values)


VersionNumber = tuple[int, int, int]


@dataclass(frozen=True)
class VersionDefault:
    """Default of an option, its first version, and the file or release note that states it.

    Attributes
    ----------
    since
        First version of Keras with this default.
    in_tensorflow
        First version with this default of the Keras in TensorFlow, which has the suffix ``-tf``.
        None: the number is that of `since`.
    """

    value: Any
    since: VersionNumber
    source: str
    in_tensorflow: VersionNumber | None = None


OLDEST_RELEASE = (2, 0, 0)
TENSORFLOW_1_OR_2 = (2, 2, 4)
"""Version with ``-tf`` in all of TensorFlow 1.13 to 2.1, whose defaults differ."""

DEFAULTS: Mapping[str, tuple[VersionDefault, ...]] = {
    "recurrent_activation": (
        VersionDefault(
            "hard_sigmoid", OLDEST_RELEASE, "keras/layers/recurrent.py; tf.keras.layers.LSTM r1.15"
        ),
        VersionDefault(
            "sigmoid", (2, 3, 0), "release notes of Keras 2.3.0; tf.keras.layers.LSTM r2.0"
        ),
    ),
    "reset_after": (
        VersionDefault(
            False, OLDEST_RELEASE, "keras/layers/recurrent.py; tf.keras.layers.GRU r1.15"
        ),
        VersionDefault(True, (2, 4, 0), "tf.keras.layers.GRU r2.0", in_tensorflow=(2, 3, 0)),
    ),
    "hard_sigmoid": (
        VersionDefault(0.2, OLDEST_RELEASE, "keras/activations.py: 0.2 x + 0.5"),
        VersionDefault(1 / 6, (3, 0, 0), "keras/src/activations: relu6(x + 3) / 6"),
    ),
    "leaky_relu": (VersionDefault(0.2, OLDEST_RELEASE, "tf.nn.leaky_relu; keras/src/activations"),),
    "LeakyReLU": (VersionDefault(0.3, OLDEST_RELEASE, "alpha; since Keras 3 negative_slope"),),
    "ELU": (VersionDefault(1.0, OLDEST_RELEASE, "alpha"),),
    "ThresholdedReLU": (VersionDefault(1.0, OLDEST_RELEASE, "theta; not in Keras 3"),),
    "ReLU": (
        VersionDefault(0.0, OLDEST_RELEASE, "negative_slope and threshold, since Keras 2.2.3"),
    ),
    "Masking": (VersionDefault(0.0, OLDEST_RELEASE, "mask_value"),),
    "activation": (VersionDefault("tanh", OLDEST_RELEASE, "keras/layers/recurrent.py"),),
}
"""Defaults of each option, oldest first. Activation layers have one row for their parameters."""


@dataclass(frozen=True)
class Release:
    """Version of Keras that wrote a file.

    Attributes
    ----------
    text
        Version as the file has it; None if the file has none.
    number
        Version as a number; the newest possible one if the file has none.
    in_tensorflow
        Whether this is the Keras in TensorFlow, ``-tf``.
    is_known
        Whether the file, or its kind, determines the version.
    """

    text: str | None
    number: VersionNumber
    in_tensorflow: bool = False
    is_known: bool = True

    def possible_defaults(self, option: str) -> tuple[VersionDefault, ...]:
        """Assumed default of an option, then others that are possible for this version."""
        in_effect = [row for row in DEFAULTS[option] if self._since(row) <= self.number]
        if not self.is_known:
            return tuple(reversed(in_effect))
        newest = DEFAULTS[option][-1]
        if self.in_tensorflow and self.number == TENSORFLOW_1_OR_2 and newest not in in_effect:
            follows = newest.since < (3, 0, 0)
            return (newest, *reversed(in_effect)) if follows else tuple(in_effect[-1:])
        return tuple(in_effect[-1:])

    def default(self, option: str) -> Any:
        """Assumed default of an option."""
        return self.possible_defaults(option)[0].value

    @property
    def title(self) -> str:
        """Version in words, for notes."""
        return f"Keras {printable(self.text)}" if self.text else "Keras"

    def note(self, option: str, layers: Sequence[int]) -> str:
        """Note on an option that the file leaves out: the assumed value, and how to set another."""
        assumed, *others = self.possible_defaults(option)
        if not others:
            others = [one for one in DEFAULTS[option] if one is not assumed]
        settings = " ".join(
            f"--set model.layers.{k}.{option}={_yaml_text(others[0].value)}" for k in layers
        )
        which = f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
        value, other = _default_in_words(assumed.value), _default_in_words(others[0].value)
        lead = f"the file does not state {option} of {which}"
        if not self.is_known:
            since = ".".join(map(str, assumed.since[:2]))
            return (
                f"{lead}, nor a version of Keras: {value} is assumed, the default since Keras "
                f"{since}; before, it was {other}: {settings}"
            )
        if self.in_tensorflow and self.number == TENSORFLOW_1_OR_2:
            return (
                f"{lead}: {value} is assumed, the default in TensorFlow 2, which wrote "
                f"{self.title} as TensorFlow 1.13 to 1.15 did, where it was {other}: {settings}"
            )
        return (
            f"{lead}: {value} is assumed, the default in {self.title}; "
            f"if it was {other}: {settings}"
        )

    def _since(self, one: VersionDefault) -> VersionNumber:
        return (
            one.in_tensorflow if self.in_tensorflow and one.in_tensorflow is not None else one.since
        )


NEWEST_RELEASE = Release(None, (3, 999, 0))
"""Release for files of variables by path: Keras writes them since 2.12, with today's defaults."""


def find_release(text: str | None, *, today: bool) -> Release:
    """Release of a file from the text of its version.

    Parameters
    ----------
    today
        Whether a file without a version has the form of Keras 3.

    Raises
    ------
    WeightsError
        The version is Keras 1.
    """
    match = re.match(r"(\d{1,3})\.(\d{1,3})(?:\.(\d{1,3}))?(.*)", text or "", re.DOTALL)
    if match is None:
        return Release(None, (3 if today else 2, 999, 0), is_known=False)
    number = int(match[1]), int(match[2]), int(match[3] or 0)
    if number < OLDEST_RELEASE:
        raise keras_1_error(f"of Keras {printable(str(text))}")
    return Release(text, number, in_tensorflow=match[4].startswith("-tf"))


def keras_1_error(which: str) -> WeightsError:
    """Error for a file of Keras 1."""
    return WeightsError(
        f"the file is {which}, which named all options and weights differently",
        expected="Keras 2 or 3",
        hint="load the file in Keras 2 and save the model again",
    )


def _yaml_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _default_in_words(value: Any) -> str:
    return "hard_sigmoid (0.2 x + 0.5)" if value == "hard_sigmoid" else _yaml_text(value)
