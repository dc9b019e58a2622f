"""Layers of a Keras chain, added one by one to a native network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lstm_cli.errors import Problem, WeightsError
from lstm_cli.formats.builder import (
    NativeTensor,
    NetworkBuilder,
    direction_without_bias,
    join_directions,
    whole_tensor,
)
from lstm_cli.formats.keras import recurrent
from lstm_cli.formats.keras.architecture import (
    CELL_ROLES,
    DENSE_ROLES,
    KerasLayer,
    VariableSource,
    describe_layer,
)
from lstm_cli.formats.keras.options import (
    ACTIVATION_LAYERS,
    DEFAULTS,
    IDENTITY,
    Release,
    layer_activation,
    printable_value,
    read_activation,
)

MAX_PROBLEMS = 20
MAX_IDENTITY_VALUES = 64 << 20
"""Largest number of values in all identity matrices that replace activation layers."""
INPUT_SHAPE_KEYS = ("batch_shape", "batch_input_shape")
"""Keys of the input's shape in Keras 3 and in Keras 2."""
TRAINING_ONLY = {
    "GaussianNoise": "adds noise",
    "GaussianDropout": "multiplies by noise",
    "AlphaDropout": "drops values",
    "ActivityRegularization": "adds to the loss",
}
"""Layers that act in training only."""
REFUSED = {
    "Lambda": "holds Python code, which lstm-cli does not run",
}
WEIGHTED = ("Dense", "TimeDistributed", *recurrent.KINDS, *recurrent.WRAPPERS)
KNOWN_KINDS = {
    *WEIGHTED, *recurrent.CUDNN, *ACTIVATION_LAYERS, *TRAINING_ONLY, "InputLayer", "Dropout",
    "SpatialDropout1D", "Masking", "Flatten", "Reshape",
}  # fmt: skip
SAVE_REST = (
    "%skeras.Sequential([keras.Input(model.layers[k].output.shape[1:]), *model.layers[k + 1:]])"
    ".save('rest.keras') saves the layers after layer k; DATA then holds the values of "
    "keras.Model(model.inputs, model.layers[k].output).predict(x)"
)
"""Hint on saving only the layers after layer k; the placeholder sets k."""


def check_kinds(layers: Sequence[KerasLayer]) -> None:
    """Refuse layers that lstm-cli does not have.

    Raises
    ------
    WeightsError
        The error names each of these layers.
    """
    unknown = [k for k, layer in enumerate(layers) if layer.kind not in KNOWN_KINDS]
    first = next((k for k, layer in enumerate(layers) if layer.kind in WEIGHTED), len(layers))
    if not unknown:
        return
    last, hint = layers[unknown[-1]], None
    if unknown[-1] < first < len(layers) and last.group == last.name:
        hint = SAVE_REST % f"k = model.layers.index(model.get_layer({last.name!r})); "
    problems = [replace(_unknown(layers[k]), hint=hint) for k in unknown[:MAX_PROBLEMS]]
    raise WeightsError(problems)


def _unknown(layer: KerasLayer) -> Problem:
    why = REFUSED.get(layer.kind, "has no counterpart in lstm-cli")
    return Problem(f"{layer.title} {why}")


class KerasNetworkBuilder:
    """Adds the layers of a chain to `network`, with Keras's defaults and checks."""

    def __init__(self, source: VariableSource, release: Release, *, describes_layers: bool) -> None:
        self.network = NetworkBuilder()
        self.notes = self.network.notes
        self._source, self._release, self.describes_layers = source, release, describes_layers
        self._unstated: dict[str, list[int]] = {}
        self._declared_steps: int | None = None
        self._flat_input = False
        self._open_flatten: KerasLayer | None = None
        self._identity_values_left = MAX_IDENTITY_VALUES

    def set_input_shape(self, shape: Any) -> None:
        """Set the input's shape, (batch, T, D) or (batch, D), unless it is known already."""
        network = self.network
        if network.size is not None or not isinstance(shape, list) or len(shape) not in (2, 3):
            return
        sizes = [n if isinstance(n, int) and 0 < n < 2**31 else None for n in shape[1:]]
        network.size = network.input_size = sizes[-1]
        self._declared_steps = sizes[0] if len(sizes) == 2 else None
        self._flat_input = len(sizes) == 1
        if self._flat_input:
            self.notes.append("the model reads no sequences: lstm-cli applies it to every step")

    def add(self, layer: KerasLayer) -> None:
        """Add one layer.

        Raises
        ------
        WeightsError
            lstm-cli cannot represent the layer; the error names it and the option.
        """
        for key in INPUT_SHAPE_KEYS:
            self.set_input_shape(layer.options.get(key))
        self._note_half_precision(layer.options.get("dtype"))
        if layer.kind in WEIGHTED[2:]:
            return self._recurrent(layer)
        if layer.kind in ACTIVATION_LAYERS:
            return self._activation(layer)
        if layer.kind in TRAINING_ONLY:
            return self.notes.append(
                f"{layer.title} {TRAINING_ONLY[layer.kind]} in training only: left out"
            )
        handlers: dict[str, Callable[[KerasLayer], None]] = {
            "InputLayer": lambda _: None,
            "Dense": self._dense,
            "TimeDistributed": self._time_distributed,
            "Dropout": self._dropout,
            "SpatialDropout1D": self._dropout,
            "Masking": self._masking,
            "Flatten": self._flatten,
            "Reshape": self._reshape,
        }
        if layer.kind in recurrent.CUDNN:
            raise recurrent.cudnn_error(layer.title, recurrent.CUDNN[layer.kind])
        if layer.kind not in handlers:
            raise WeightsError([_unknown(layer)])
        return handlers[layer.kind](layer)

    def complete(self) -> NetworkBuilder:
        """Network of all layers, with notes on defaults.

        Raises
        ------
        WeightsError
            A flatten layer lacks its number of steps, or the model has no layer.
        """
        if self._open_flatten is not None:
            raise self._no_steps(self._open_flatten)
        if self.network.input_size is None or not self.network.layers:
            raise WeightsError("the model has no layer that does anything")
        self.notes += self._default_notes()
        return self.network

    def _default_notes(self) -> Iterator[str]:
        """Notes on missing options whose defaults differ between versions of Keras."""
        for key, places in self._unstated.items():
            assumed, *others = self._release.possible_defaults(key)
            usual = assumed is DEFAULTS[key][-1] and not others
            if usual and not self.describes_layers and key == "recurrent_activation":
                continue  # the note on all activations covers it
            yield self._release.note(key, places)
        yield from self._hard_sigmoid_notes()

    def _hard_sigmoid_notes(self) -> Iterator[str]:
        """Note on hard_sigmoid, which is another function in Keras 3, if the version is unknown."""
        alpha = self._release.default("hard_sigmoid")
        if self._release.is_known:
            return
        other = next(one.value for one in DEFAULTS["hard_sigmoid"] if one.value != alpha)
        settings = [
            f"--set {place}.alpha={other!r}"
            for k, layer in enumerate(self.network.layers)
            for key in ("activation", "recurrent_activation")
            for place, value in _activations_by_key(f"model.layers.{k}.{key}", layer.get(key))
            if isinstance(value, dict)
            and (value["name"], value["alpha"]) == ("hard_sigmoid", alpha)
        ]
        if settings:
            slopes = ("0.2 x + 0.5", "x/6 + 0.5")
            assumed, other_slope = slopes if alpha == 0.2 else slopes[::-1]
            yield (
                f"no version of Keras is in the file: hard_sigmoid is taken as {assumed}; "
                f"{' '.join(settings)} makes it {other_slope}, "
                f"as in Keras {3 if alpha == 0.2 else 2}"
            )

    def _recurrent(self, layer: KerasLayer) -> None:
        if not self.network.has_steps or self._open_flatten is not None:
            raise WeightsError(f"{layer.title} reads no sequence", expected="(batch, steps, D)")
        directions = recurrent.read_directions(layer)
        each, biases = [], []
        for direction in directions:
            roles = CELL_ROLES if direction.biased else CELL_ROLES[:2]
            variables = self._source.variables(layer, direction.inner, roles)
            each.append(recurrent.native_tensors(direction, variables))
            self._check_input_size(layer, variables[0].value.shape[0])
            biases.append(variables[2] if direction.biased else None)
        if (without := direction_without_bias(each)) is not None:
            self.notes.append(f"{layer.title} has no {without} bias: there it is 0")
        reset_after = recurrent.infer_reset_after(directions, biases, self._release)
        options = recurrent.layer_options(directions, self._release, reset_after)
        for key in recurrent.unstated_options(directions):
            self._unstated.setdefault(key, []).append(len(self.network.layers))
        kind = directions[0].kind
        self.network.add(kind, join_directions(kind, each), **options)

    def _time_distributed(self, layer: KerasLayer) -> None:
        inner = layer.options.get("layer")
        inner_layer = describe_layer(inner, f"{layer.path}/layer", layer.group)
        if inner_layer.kind not in ("Dense", "Dropout", *ACTIVATION_LAYERS):
            raise WeightsError(f"{layer.title} wraps {inner_layer.title}", expected="a Dense layer")
        self.add(
            replace(inner_layer, name=layer.name)
        )  # Keras 2 names variables by the wrapper only

    def _dense(self, layer: KerasLayer) -> None:
        units, biased = layer.options.size("units"), layer.options.flag("use_bias", True)
        variables = self._source.variables(layer, "", DENSE_ROLES if biased else DENSE_ROLES[:1])
        kernel = variables[0].value
        if kernel.ndim != 2 or kernel.shape[1] != units or 0 in kernel.shape:
            raise self._misfit(layer, f"({self.network.size or 'D'}, {units})", kernel.shape)
        bias = variables[1].value if biased else None
        if bias is not None and bias.shape != (units,):
            raise self._misfit(layer, f"({units},)", bias.shape)
        activation = read_activation(layer.options, "activation", "linear", self._release)
        self._check_input_size(layer, kernel.shape[0])
        tensors = {
            role: whole_tensor(
                variable.name,
                variable.value.T,
                variable.dtype,
                shape=variable.value.shape,
                change="transposed" if role == "weight" else "",
            )
            for role, variable in zip(("weight", "bias"), variables, strict=False)
        }
        self.network.add("dense", tensors, activation=activation)

    def _activation(self, layer: KerasLayer) -> None:
        """Merge an activation into the dense layer before it, or add an identity matrix for it."""
        network = self.network
        last = 2 if network.has_steps else 1
        activation = layer_activation(layer.kind, layer.options, self._release, last)
        if activation == IDENTITY:
            return
        before = network.layers[-1] if network.layers else {}
        if before.get("type") == "dense" and "activation" not in before:
            before["activation"] = activation
            return
        F = network.size
        if F is None or self._open_flatten is not None or self._identity_values_left < F * F:
            raise WeightsError(f"{layer.title} follows no layer whose size is known")
        self._identity_values_left -= F * F
        dtype = next((v.dtype for v in network.tensors.values()), np.dtype(np.float32))
        identity = NativeTensor(np.eye(F, dtype=dtype))
        network.add("dense", {"weight": identity}, activation=activation)
        self.notes.append(
            f"{layer.title} became a dense layer with the identity matrix and that activation"
        )

    def _dropout(self, layer: KerasLayer) -> None:
        rate = layer.options.number("rate", 0.0)
        if not 0 <= rate < 1:
            raise layer.options.refused("rate", "a share below 1")
        if layer.kind != "Dropout":
            self.notes.append(
                f"{layer.title} drops whole features in training; here it drops single values"
            )
        self.network.add("dropout", rate=rate)

    def _masking(self, layer: KerasLayer) -> None:
        value = printable_value(
            layer.options.number("mask_value", self._release.default("Masking"))
        )
        self.notes.append(
            f"{layer.title} is left out: Keras skips steps whose values are all {value}; here the "
            "lengths in the data say which steps count"
        )

    def _flatten(self, layer: KerasLayer) -> None:
        if layer.options.text("data_format", "channels_last") != "channels_last":
            raise layer.options.refused("data_format")
        if not self.network.has_steps or self._flat_input:
            return
        if self._declared_steps is None or self.network.size is None:
            self._open_flatten = layer  # the next dense layer determines the steps
        else:
            self.network.steps = self._declared_steps
        self.network.add("flatten")

    def _reshape(self, layer: KerasLayer) -> None:
        target = layer.options.get("target_shape")
        T, F, has_steps = self._declared_steps, self.network.size, self.network.has_steps
        if not isinstance(target, list) or not all(isinstance(n, int) for n in target):
            raise layer.options.refused("target_shape", "a list of sizes")
        known = F is not None and self._open_flatten is None
        if known and self._keeps_shape(target):
            return
        flat = known and has_steps and T is not None and target in ([-1], [T * (F or 0)])
        if not flat:
            raise layer.options.refused("target_shape")
        self._flatten(layer)

    def _keeps_shape(self, target: Sequence[int]) -> bool:
        F = self.network.size
        if not self.network.has_steps:
            return list(target) in ([F], [-1])
        T = self._declared_steps
        return list(target) in ([T, F], [-1, F]) or (T is not None and list(target) == [T, -1])

    def _check_input_size(self, layer: KerasLayer, size: int) -> None:
        """Check the input size of a layer; after a flatten without known steps, derive them."""
        network = self.network
        if self._open_flatten is not None:
            steps, rest = divmod(size, network.size or size)
            if rest or steps == 0:
                raise self._no_steps(self._open_flatten)
            network.steps, self._open_flatten, network.size = steps, None, size
        if network.size is None:
            network.size = network.input_size = size
        if size != network.size:
            raise self._misfit(layer, f"({network.size}, …)", (size,))

    def _note_half_precision(self, dtype: Any) -> None:
        config = dtype.get("config") if isinstance(dtype, dict) else None
        name = config.get("name") if isinstance(config, dict) else dtype
        if isinstance(name, str) and "float16" in name:
            name_text = printable_value(name)
            note = f"Keras computes the model in {name_text}; in lstm-cli, --dtype sets the dtype"
            if note not in self.notes:
                self.notes.append(note)

    @staticmethod
    def _misfit(layer: KerasLayer, expected: str, actual: Any) -> WeightsError:
        return WeightsError(
            f"{layer.title} has a kernel or bias that does not fit",
            expected=expected,
            found=str(actual),
        )

    @staticmethod
    def _no_steps(layer: KerasLayer) -> WeightsError:
        return WeightsError(
            f"{layer.title} needs a fixed number of steps, which the file does not state",
            hint="save the whole model, with an input of fixed steps: Input((steps, features))",
        )


def _activations_by_key(place: str, value: Any) -> list[tuple[str, Any]]:
    # A pair has one activation for each direction.
    if isinstance(value, list):
        return [(f"{place}.{k}", one) for k, one in enumerate(value)]
    return [(place, value)]
