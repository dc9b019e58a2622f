"""Keras's defaults by version: one table, and which line of it a file's version means.

A default matters where a file leaves an option out, and in files of weights alone. Flags that have
one default in every version stand where they are read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lstm_cli.errors import WeightsError
from lstm_cli.formats.keras.words import shown

Number = tuple[int, int, int]


@dataclass(frozen=True)
class Default:
    """A value, the first version that has it, and the file or release note that says so.

    Attributes
    ----------
    since
        Version of Keras.
    bundled
        Version with the suffix ``-tf``, of the Keras in TensorFlow; None: the same number.
    """

    value: Any
    since: Number
    source: str
    bundled: Number | None = None


FIRST = (2, 0, 0)
TF_1_AND_2 = (2, 2, 4)
"""Number with ``-tf`` that TensorFlow 1.13 to 2.1 all give, whose defaults differ."""

TABLE: Mapping[str, tuple[Default, ...]] = {
    "recurrent_activation": (
        Default("hard_sigmoid", FIRST, "keras/layers/recurrent.py; tf.keras.layers.LSTM r1.15"),
        Default("sigmoid", (2, 3, 0), "release notes of Keras 2.3.0; tf.keras.layers.LSTM r2.0"),
    ),
    "reset_after": (
        Default(False, FIRST, "keras/layers/recurrent.py; tf.keras.layers.GRU r1.15"),
        Default(True, (2, 4, 0), "tf.keras.layers.GRU r2.0", bundled=(2, 3, 0)),
    ),
    "hard_sigmoid": (
        Default(0.2, FIRST, "keras/activations.py: 0.2 x + 0.5"),
        Default(1 / 6, (3, 0, 0), "keras/src/activations: relu6(x + 3) / 6"),
    ),
    "leaky_relu": (Default(0.2, FIRST, "tf.nn.leaky_relu; keras/src/activations"),),
    "LeakyReLU": (Default(0.3, FIRST, "alpha; since Keras 3 negative_slope"),),
    "ELU": (Default(1.0, FIRST, "alpha"),),
    "ThresholdedReLU": (Default(1.0, FIRST, "theta; not in Keras 3"),),
    "ReLU": (Default(0.0, FIRST, "negative_slope and threshold, since Keras 2.2.3"),),
    "Masking": (Default(0.0, FIRST, "mask_value"),),
    "activation": (Default("tanh", FIRST, "keras/layers/recurrent.py"),),
}
"""Values of one option, the oldest first; options of a layer stand under the layer's class."""


@dataclass(frozen=True)
class Release:
    """The version of Keras that wrote a file.

    Attributes
    ----------
    text
        As it stands in the file; None where it does not.
    number
        The version, or the newest of its kind where the file has none.
    bundled
        Whether it is the Keras in TensorFlow: ``-tf``.
    told
        Whether the file, or its kind, tells it.
    """

    text: str | None
    number: Number
    bundled: bool = False
    told: bool = True

    def readings(self, option: str) -> tuple[Default, ...]:
        """The default that is assumed, and others that the file's version may mean."""
        have = [one for one in TABLE[option] if self._since(one) <= self.number]
        if not self.told:
            return tuple(reversed(have))
        newest = TABLE[option][-1]
        if self.bundled and self.number == TF_1_AND_2 and newest not in have:
            follows = newest.since < (3, 0, 0)
            return (newest, *reversed(have)) if follows else tuple(have[-1:])
        return tuple(have[-1:])

    def default(self, option: str) -> Any:
        """The value that is assumed."""
        return self.readings(option)[0].value

    @property
    def title(self) -> str:
        """The version in the words of a note."""
        return f"Keras {shown(self.text)}" if self.text else "Keras"

    def note(self, option: str, layers: Sequence[int]) -> str:
        """A note on an option that is left out: what is assumed, why, and what sets another."""
        taken, *others = self.readings(option)
        if not others:
            others = [one for one in TABLE[option] if one is not taken]
        settings = " ".join(
            f"--set model.layers.{k}.{option}={_text(others[0].value)}" for k in layers
        )
        which = f"layer{'s' if len(layers) > 1 else ''} {', '.join(map(str, layers))}"
        value, other = _shown(taken.value), _shown(others[0].value)
        lead = f"the file does not say {option} of {which}"
        if not self.told:
            since = ".".join(map(str, taken.since[:2]))
            return (
                f"{lead}, nor a version of Keras: {value} is taken, the default since Keras "
                f"{since}; before, it was {other}: {settings}"
            )
        if self.bundled and self.number == TF_1_AND_2:
            return (
                f"{lead}: {value} is taken, the default in TensorFlow 2, which wrote {self.title} "
                f"as TensorFlow 1.13 to 1.15 did, where it was {other}: {settings}"
            )
        return (
            f"{lead}: {value} is taken, the default in {self.title}; if it was {other}: {settings}"
        )

    def _since(self, one: Default) -> Number:
        return one.bundled if self.bundled and one.bundled is not None else one.since


TODAY = Release(None, (3, 999, 0))
"""Files of variables by path, which Keras writes since 2.12, when the last default had changed."""


def release(text: str | None, *, today: bool) -> Release:
    """The version that a file names, or none.

    Parameters
    ----------
    today
        Whether a file without a version is written as Keras 3 does.

    Raises
    ------
    WeightsError
        It is Keras 1.
    """
    match = re.match(r"(\d{1,3})\.(\d{1,3})(?:\.(\d{1,3}))?(.*)", text or "", re.DOTALL)
    if match is None:
        return Release(None, (3 if today else 2, 999, 0), told=False)
    number = int(match[1]), int(match[2]), int(match[3] or 0)
    if number < FIRST:
        raise keras_1(f"of Keras {shown(str(text))}")
    return Release(text, number, bundled=match[4].startswith("-tf"))


def keras_1(which: str) -> WeightsError:
    """The error that names Keras 1."""
    return WeightsError(
        f"the file is {which}, which named all options and weights differently",
        expected="Keras 2 or 3",
        hint="load it in Keras 2 and save it anew",
    )


def _text(value: Any) -> str:
    """A value as a setting has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def _shown(value: Any) -> str:
    return "hard_sigmoid (0.2 x + 0.5)" if value == "hard_sigmoid" else _text(value)
