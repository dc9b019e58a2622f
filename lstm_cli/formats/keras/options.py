"""Options of Keras's layers, activations among them, and their defaults by version of Keras.

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

from lstm_cli.cells import Activation
from lstm_cli.errors import WeightsError, shortened


def printable_value(value: Any) -> str:
    """Value from a description for a message, shortened."""
    if isinstance(value, str):
        return shortened(value)
    if isinstance(value, Mapping):
        return f"an object of class {shortened(str(value.get('class_name')))}"
    if isinstance(value, list):
        return f"a list of {len(value)}" if len(value) > 8 else shortened(str(value)[:200])
    return shortened(str(value)[:200]) if not isinstance(value, int) else _whole(value)


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
        return f"Keras {shortened(self.text)}" if self.text else "Keras"

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
        raise keras_1_error(f"of Keras {shortened(str(text))}")
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


ActivationConfig = str | dict[str, Any]
"""Activation in a config: a name, or {name, alpha, beta}."""

IDENTITY = "identity"
SHARED_NAMES = ("sigmoid", "tanh", "relu", "softplus", "softsign", "softmax")
ACTIVATION_LAYERS = ("ReLU", "LeakyReLU", "ELU", "ThresholdedReLU", "Softmax", "Activation")
ACTIVATION_HINT = "train the model with one of " + ", ".join(
    (*SHARED_NAMES, "linear", "elu", "leaky_relu", "hard_sigmoid")
)


def read_activation(
    owner: LayerOptions, key: str, default: str, release: Release
) -> ActivationConfig:
    """Read the activation under `key` of a layer's options.

    Parameters
    ----------
    release
        Version of Keras, on which the meaning of a name depends.

    Raises
    ------
    WeightsError
        lstm-cli has no such activation.
    """
    value = owner.get(key)
    if value is None:
        value = default if key not in owner.values else "linear"
    if isinstance(value, Mapping):
        kind, config = value.get("class_name"), value.get("config")
        if value.get("registered_name") in (None, "function") and kind == "function":
            value = config
        elif kind in ACTIVATION_LAYERS:
            return layer_activation(
                str(kind), parse_options(f"{key} of {owner.owner}", config), release
            )
        elif isinstance(kind, str) and not config:
            value = kind
    activation = _by_name(value, release) if isinstance(value, str) else None
    if activation is None:
        raise owner.refused(key, hint=ACTIVATION_HINT)
    return activation


def _by_name(name: str, release: Release) -> ActivationConfig | None:
    if name in SHARED_NAMES:
        return name
    if (
        name in ACTIVATION_LAYERS and name != "Activation"
    ):  # Keras 2 makes a layer from the name of its class
        return layer_activation(name, LayerOptions(f"the activation {name}", {}), release)
    if name == "linear":
        return IDENTITY
    if name in ("elu", "celu"):
        return {"name": "elu", "alpha": 1.0}
    if name == "leaky_relu":
        return {"name": "leaky_relu", "alpha": release.default(name)}
    if name == "hard_sigmoid":
        return {"name": "hard_sigmoid", "alpha": release.default(name), "beta": 0.5}
    return None


def layer_activation(
    kind: str, layer: LayerOptions, release: Release, last: int = -1
) -> ActivationConfig:
    """Activation that a separate layer computes.

    Parameters
    ----------
    last
        Index of the last axis, the only one that lstm-cli's softmax can use.
    """
    if kind == "Activation":
        return read_activation(layer, "activation", "linear", release)
    if kind == "Softmax":
        if layer.get("axis") not in (None, -1, last):
            raise layer.refused("axis")
        return "softmax"
    if kind == "ELU":
        return {"name": "elu", "alpha": layer.number("alpha", release.default(kind))}
    if kind == "ThresholdedReLU":
        return {"name": "thresholded_relu", "alpha": layer.number("theta", release.default(kind))}
    if kind == "LeakyReLU":
        key = "negative_slope" if "negative_slope" in layer.values else "alpha"
        return {"name": "leaky_relu", "alpha": layer.number(key, release.default(kind))}
    return _relu(layer, release.default(kind))


def _relu(layer: LayerOptions, default: float) -> ActivationConfig:
    slope, threshold = (layer.number(key, default) for key in ("negative_slope", "threshold"))
    if threshold != 0:
        raise layer.refused("threshold")
    if layer.get("max_value") is None:
        return {"name": "leaky_relu", "alpha": slope} if slope else "relu"
    if slope or layer.number("max_value", 0.0) != 1:
        raise layer.refused("max_value")
    return {"name": "hard_sigmoid", "alpha": 1.0, "beta": 0.0}


def keras_activation(activation: Activation | None, owner: str, option: str, dtype: str) -> Any:
    """Write an activation as Keras 3 does: as a name, or as an activation layer.

    Parameters
    ----------
    activation
        Activation; None is softmax over the units.
    owner, option
        Layer and option in words, for errors.
    dtype
        Dtype of an activation layer.

    Raises
    ------
    WeightsError
        Keras has no such activation; the error names the layer and the option.
    """
    if activation is None:
        return "softmax"
    name, alpha, beta = activation.name, activation.alpha, activation.beta
    if name in SHARED_NAMES:
        return name
    if name == "identity":
        return "linear"
    if name == "hard_sigmoid" and beta == 0.5 and math.isclose(alpha or 0, 1 / 6, rel_tol=1e-7):
        return "hard_sigmoid"
    if name == "hard_sigmoid" and (alpha, beta) == (1, 0):
        return _object("ReLU", dtype=dtype, max_value=1.0, negative_slope=0.0, threshold=0.0)
    if name == "elu":
        return "elu" if alpha == 1 else _object("ELU", dtype=dtype, alpha=alpha)
    if name == "leaky_relu":
        usual = alpha == 0.2
        return "leaky_relu" if usual else _object("LeakyReLU", dtype=dtype, negative_slope=alpha)
    raise WeightsError(
        f"{owner} has {option}: {activation}, which Keras does not have",
        expected="one of "
        + ", ".join((*SHARED_NAMES, "identity, elu, leaky_relu"))
        + ", or hard_sigmoid "
        "with alpha 1/6 and beta 0.5",
        found=_in_full(activation),
    )


def _object(kind: str, **config: Any) -> dict[str, Any]:
    return {
        "module": "keras.layers",
        "class_name": kind,
        "config": config,
        "registered_name": None,
    }


def _in_full(activation: Activation) -> str:
    parameters = {"alpha": activation.alpha, "beta": activation.beta}
    text = ", ".join(f"{key} {value:g}" for key, value in parameters.items() if value is not None)
    return f"{printable_value(activation.name)} with {text}" if text else activation.name
