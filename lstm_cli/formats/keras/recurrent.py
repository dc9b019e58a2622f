"""Keras's recurrent layers in native terms: options, gate blocks, and the split of biases.

Keras has one bias for each direction. The GRU with ``reset_after`` has two, for the input and for
the recurrence, as the rows of one array (2, 3H): `native_tensors`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lstm_cli.errors import WeightsError, counted
from lstm_cli.formats.builder import NativeTensor, bias_names, gate_tensor, one_or_each
from lstm_cli.formats.gates import KERAS_GATES
from lstm_cli.formats.keras.architecture import KerasLayer, class_name_of, layer_title
from lstm_cli.formats.keras.options import (
    ActivationConfig,
    LayerOptions,
    Release,
    parse_options,
    printable_value,
    read_activation,
)
from lstm_cli.hdf5.image import StoredVariable

KINDS = {"LSTM": "lstm", "GRU": "gru", "SimpleRNN": "rnn"}
CLASSES = {kind: name for name, kind in KINDS.items()}
GATE_ORDERS = {"lstm": "i f c o", "gru": "z r h", "rnn": "h"}
"""Keras's order of the gates, in its own letters."""
WRAPPERS = ("RNN", "Bidirectional")
CUDNN = {"CuDNNLSTM": "LSTM", "CuDNNGRU": "GRU"}


@dataclass(frozen=True)
class KerasDirection:
    """One direction of a recurrent layer.

    Attributes
    ----------
    kind
        ``lstm``, ``gru`` or ``rnn``.
    layer, cell
        Options of the layer and of its cell. They differ only for a cell in an RNN layer.
    inner
        Path of the variables below the layer's path.
    """

    kind: str
    layer: LayerOptions
    cell: LayerOptions
    inner: str

    @property
    def hidden_size(self) -> int:
        """Number of units H."""
        return self.cell.size("units")

    @property
    def biased(self) -> bool:
        """Whether the direction has biases."""
        return self.cell.flag("use_bias", True)


def read_directions(layer: KerasLayer) -> tuple[KerasDirection, ...]:
    """Directions of a layer: one, or forward and reverse.

    Raises
    ------
    WeightsError
        The outputs are not concatenated, the only direction is reverse, or the two directions
        differ in more than activations.
    """
    if layer.kind != "Bidirectional":
        directions: tuple[KerasDirection, ...] = (_direction(layer.kind, layer.options, "cell"),)
    else:
        if layer.options.get("merge_mode") != "concat" and "merge_mode" in layer.options.values:
            raise layer.options.refused("merge_mode", hint="lstm-cli has concat only")
        forward = layer.options.get("layer")
        reverse = layer.options.get("backward_layer")
        reverse = _reversed(forward) if reverse is None else reverse
        directions = (
            _inner(layer, forward, "forward_layer/cell"),
            _inner(layer, reverse, "backward_layer/cell"),
        )
    for number, direction in enumerate(directions):
        _check(direction, number, len(directions))
    _check_alike(layer, directions)
    return directions


def _reversed(forward: Any) -> Any:
    # Without a backward layer Keras derives one from the config of the forward layer.
    config = forward.get("config") if isinstance(forward, Mapping) else None
    if not isinstance(config, Mapping):
        return forward
    return {**forward, "config": {**config, "go_backwards": not config.get("go_backwards")}}


def _inner(layer: KerasLayer, entry: Any, inner: str) -> KerasDirection:
    kind = class_name_of(entry)
    owner = f"{layer_title(kind, inner.split('/')[0])} of {layer.title}"
    return _direction(kind, parse_options(owner, entry.get("config")), inner)


def _direction(kind: str, layer_options: LayerOptions, inner: str) -> KerasDirection:
    if kind in KINDS:
        return KerasDirection(KINDS[kind], layer_options, layer_options, inner)
    if kind in CUDNN:
        raise cudnn_error(layer_options.owner, CUDNN[kind])
    cell = layer_options.get("cell")
    cell_kind = (
        class_name_of(cell).removesuffix("Cell")
        if isinstance(cell, Mapping)
        else printable_value(cell)
    )
    if kind != "RNN" or not isinstance(cell, Mapping) or cell_kind not in KINDS:
        raise WeightsError(
            f"{layer_options.owner} is not a recurrent layer that lstm-cli has",
            expected="LSTM, GRU or SimpleRNN",
            found=cell_kind if kind == "RNN" else printable_value(kind),
        )
    return KerasDirection(
        KINDS[cell_kind],
        layer_options,
        parse_options(f"the cell of {layer_options.owner}", cell["config"]),
        inner,
    )


def _check(direction: KerasDirection, number: int, count: int) -> None:
    if direction.layer.flag("go_backwards") != bool(number):
        raise direction.layer.refused(
            "go_backwards", hint="Bidirectional(merge_mode='concat') has a reverse pass"
        )
    if direction.layer.flag("time_major"):
        raise direction.layer.refused("time_major")
    if count > 1 and direction.layer.flag("stateful"):
        # Keras keeps the state of the reverse direction; lstm-cli always starts it anew.
        raise direction.layer.refused("stateful")


def _check_alike(layer: KerasLayer, directions: Sequence[KerasDirection]) -> None:
    alike: dict[str, set[Any]] = {
        "class": {d.kind for d in directions},
        "units": {d.hidden_size for d in directions},
        "return_sequences": {d.layer.flag("return_sequences") for d in directions},
        "reset_after": {d.cell.flag("reset_after") for d in directions if d.kind == "gru"},
    }
    for what, values in alike.items():
        if len(values) > 1:
            both = " and ".join(str(value) for value in sorted(values, key=str))
            raise WeightsError(f"the two directions of {layer.title} differ in {what}", found=both)


def layer_options(
    directions: Sequence[KerasDirection], release: Release, reset_after: bool
) -> dict[str, Any]:
    """Options of a layer as in a config, except those that its tensors show."""
    first = directions[0]
    options: dict[str, Any] = {
        "return_sequences": first.layer.flag("return_sequences"),
        "stateful": first.layer.flag("stateful"),
        "activation": _activation(directions, "activation", release),
    }
    if first.kind != "rnn":
        options["recurrent_activation"] = _activation(directions, "recurrent_activation", release)
    for key in ("dropout", "recurrent_dropout"):
        options[key] = first.cell.number(key, 0.0)
        if not 0 <= options[key] < 1:
            raise first.cell.refused(key)
    if first.kind == "gru":
        options["reset_after"] = reset_after
    return options


def _activation(
    directions: Sequence[KerasDirection], key: str, release: Release
) -> ActivationConfig | list[ActivationConfig]:
    each = [read_activation(one.cell, key, release.default(key), release) for one in directions]
    if "softmax" in each:
        raise directions[each.index("softmax")].cell.refused(key)
    activation: ActivationConfig | list[ActivationConfig] = one_or_each(each)
    return activation


def infer_reset_after(
    directions: Sequence[KerasDirection], biases: Sequence[StoredVariable | None], release: Release
) -> bool:
    """`reset_after` of a GRU: from its biases, else its options, else the version's default."""
    if directions[0].kind != "gru":
        return False
    for bias in biases:
        if bias is not None:
            return bias.value.ndim == 2
    return directions[0].cell.flag("reset_after", release.default("reset_after"))


def unstated_options(directions: Sequence[KerasDirection]) -> tuple[str, ...]:
    """Missing options that no bias determines and whose defaults Keras has changed."""
    keys = [] if directions[0].kind == "rnn" else ["recurrent_activation"]
    if directions[0].kind == "gru" and not any(direction.biased for direction in directions):
        keys.append("reset_after")
    return tuple(
        key for key in keys if any(key not in direction.cell.values for direction in directions)
    )


def is_cudnn_bias(kind: str, width: int, bias: Sequence[int] | None) -> bool:
    """Whether a bias is from CuDNNLSTM or CuDNNGRU: two biases in one vector (2 G H,)."""
    return kind != "SimpleRNN" and bias is not None and tuple(bias) == (2 * width,)


def cudnn_error(what: str, kind: str) -> WeightsError:
    """Error for a layer in cuDNN's layout.

    Parameters
    ----------
    kind
        ``LSTM`` or ``GRU``.
    """
    arguments = "recurrent_activation='sigmoid'"
    arguments += ", reset_after=True" if kind == "GRU" else ""
    return WeightsError(
        f"{what} keeps its weights in cuDNN's layout (CuDNN{kind}), which lstm-cli does not read",
        expected=f"the weights of a {kind} layer",
        hint=f"in Keras 2, replace CuDNN{kind} by {kind}(units, {arguments}), load the weights "
        "(Keras converts them), and save the model: model.save('model.h5')",
    )


def native_tensors(
    direction: KerasDirection, variables: Sequence[StoredVariable]
) -> dict[str, NativeTensor]:
    """Native tensors of one direction.

    An lstm or rnn has one bias. A gru has ``bias_ih`` and ``bias_hh``: the rows of a Keras bias
    (2, 3H) with ``reset_after``; without it, the Keras bias (3H,) and zeros.

    Parameters
    ----------
    variables
        Kernel (D, G * H), recurrent kernel (H, G * H) and, if the direction has biases, the
        bias (G * H,), or (2, G * H) for two biases.

    Raises
    ------
    WeightsError
        A shape does not fit the units or contradicts ``reset_after``, or is cuDNN's.
    """
    H = direction.hidden_size
    width = len(KERAS_GATES[direction.kind]) * H
    _check_shape(direction, variables[0], (None, width))
    _check_shape(direction, variables[1], (H, width))
    tensors = {
        name: _gate_tensor(direction.kind, variable, transposed=True)
        for name, variable in zip(("weight_ih", "weight_hh"), variables, strict=False)
    }
    if not direction.biased:
        return tensors
    bias, names = variables[2], bias_names(direction.kind)
    _check_bias(direction, bias, width)
    if direction.kind == "gru" and bias.value.ndim == 2:
        rows = [_gate_tensor(direction.kind, bias, row=k) for k in range(2)]
        return tensors | dict(zip(names, rows, strict=True))
    zeros = [NativeTensor(np.zeros(width, variables[0].value.dtype))]
    biases = [_gate_tensor(direction.kind, bias), *zeros]
    return tensors | dict(zip(names, biases, strict=False))


def _check_bias(direction: KerasDirection, bias: StoredVariable, width: int) -> None:
    two = direction.kind == "gru" and bias.value.ndim == 2
    if is_cudnn_bias(CLASSES[direction.kind], width, bias.value.shape):
        raise cudnn_error(direction.cell.owner, CLASSES[direction.kind])
    _check_shape(direction, bias, (2, width) if two else (width,))
    if direction.kind == "gru" and direction.cell.get("reset_after") not in (None, two):
        raise direction.cell.refused(
            "reset_after", expected=f"the value that fits the bias {bias.value.shape}"
        )


def _gate_tensor(
    kind: str, variable: StoredVariable, *, transposed: bool = False, row: int | None = None
) -> NativeTensor:
    return gate_tensor(
        kind,
        KERAS_GATES[kind],
        variable.name,
        variable.value,
        variable.dtype,
        transposed=transposed,
        row=row,
    )


def _check_shape(
    direction: KerasDirection, variable: StoredVariable, expected: tuple[int | None, ...]
) -> None:
    shape = variable.value.shape
    fits = len(shape) == len(expected) and all(
        w in (None, n) for n, w in zip(shape, expected, strict=True)
    )
    if not fits or 0 in shape:
        text = ", ".join("D" if w is None else str(w) for w in expected)
        raise WeightsError(
            f"{direction.cell.owner} has a tensor that does not fit its "
            f"{counted(direction.hidden_size, 'unit')}",
            expected=f"({text}{',' if len(expected) == 1 else ''})",
            found=f"{variable.name} {shape}",
        )
