"""Activations as Keras writes them, by name or as an object, and as a config does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lstm_cli.cells import Activation
from lstm_cli.errors import WeightsError
from lstm_cli.formats.keras.options import LayerOptions, Release, parse_options, printable_value

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
