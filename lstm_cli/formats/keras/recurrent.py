"""Keras's recurrent layers: options, and tensors by gate, in native terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.errors import WeightsError
from lstm_cli.formats.gates import NATIVE_GATES, gate_sources, reorder_gates
from lstm_cli.formats.interchange import TensorSource
from lstm_cli.formats.keras.activations import ActivationConfig, read_activation
from lstm_cli.formats.keras.architecture import KerasLayer, class_name_of, layer_title
from lstm_cli.formats.keras.hdf5 import StoredVariable
from lstm_cli.formats.keras.options import LayerOptions, Release, parse_options, printable_value

KINDS = {"LSTM": "lstm", "GRU": "gru", "SimpleRNN": "rnn"}
CLASSES = {kind: name for name, kind in KINDS.items()}
KERAS_GATES = {"lstm": ("i", "f", "g", "o"), "gru": ("z", "r", "n"), "rnn": ("h",)}
"""Keras's order of the gates, in native letters."""
GATE_ORDERS = {"lstm": "i f c o", "gru": "z r h", "rnn": "h"}
"""The same in Keras's own letters."""
WRAPPERS = ("RNN", "Bidirectional")
CUDNN = {"CuDNNLSTM": "LSTM", "CuDNNGRU": "GRU"}


@dataclass(frozen=True)
class KerasDirection:
    """One pass over the steps.

    Attributes
    ----------
    kind
        ``lstm``, ``gru`` or ``rnn``.
    layer, cell
        Options of the layer and of its cell; the same but for a cell in an RNN layer.
    inner
        Where the variables are below the layer's path.
    """

    kind: str
    layer: LayerOptions
    cell: LayerOptions
    inner: str

    @property
    def hidden_size(self) -> int:
        """Units H."""
        return self.cell.size("units")

    @property
    def biased(self) -> bool:
        """Whether it has biases."""
        return self.cell.flag("use_bias", True)


def read_directions(layer: KerasLayer) -> tuple[KerasDirection, ...]:
    """The one direction of a layer, or forward and reverse.

    Raises
    ------
    WeightsError
        Not outputs side by side, a pass that only goes backwards, or two that differ in more
        than activations.
    """
    if layer.kind != "Bidirectional":
        found: tuple[KerasDirection, ...] = (_direction(layer.kind, layer.options, "cell"),)
    else:
        if layer.options.get("merge_mode") != "concat" and "merge_mode" in layer.options.values:
            raise layer.options.refused("merge_mode", hint="concat is what lstm-cli has")
        forward = layer.options.get("layer")
        reverse = layer.options.get("backward_layer")
        reverse = _reversed(forward) if reverse is None else reverse
        found = (
            _inner(layer, forward, "forward_layer/cell"),
            _inner(layer, reverse, "backward_layer/cell"),
        )
    for number, one in enumerate(found):
        _check(one, number, len(found))
    _check_alike(layer, found)
    return found


def _reversed(forward: Any) -> Any:
    """Without a backward layer Keras makes it of the forward one's config."""
    config = forward.get("config") if isinstance(forward, Mapping) else None
    if not isinstance(config, Mapping):
        return forward
    return {**forward, "config": {**config, "go_backwards": not config.get("go_backwards")}}


def _inner(layer: KerasLayer, entry: Any, inner: str) -> KerasDirection:
    kind = class_name_of(entry)
    owner = f"{layer_title(kind, inner.split('/')[0])} of {layer.title}"
    return _direction(kind, parse_options(owner, entry.get("config")), inner)


def _direction(kind: str, given: LayerOptions, inner: str) -> KerasDirection:
    if kind in KINDS:
        return KerasDirection(KINDS[kind], given, given, inner)
    if kind in CUDNN:
        raise cudnn_error(given.owner, CUDNN[kind])
    cell = given.get("cell")
    of = (
        class_name_of(cell).removesuffix("Cell")
        if isinstance(cell, Mapping)
        else printable_value(cell)
    )
    if kind != "RNN" or not isinstance(cell, Mapping) or of not in KINDS:
        raise WeightsError(
            f"{given.owner} is no recurrent layer that lstm-cli has",
            expected="LSTM, GRU or SimpleRNN",
            found=of if kind == "RNN" else printable_value(kind),
        )
    return KerasDirection(
        KINDS[of], given, parse_options(f"the cell of {given.owner}", cell["config"]), inner
    )


def _check(one: KerasDirection, number: int, count: int) -> None:
    if one.layer.flag("go_backwards") != bool(number):
        raise one.layer.refused(
            "go_backwards", hint="Bidirectional(merge_mode='concat') has a reverse pass"
        )
    if one.layer.flag("time_major"):
        raise one.layer.refused("time_major")
    if count > 1 and one.layer.flag("stateful"):
        # Keras carries the reverse direction's state on; here it always starts anew.
        raise one.layer.refused("stateful")


def _check_alike(layer: KerasLayer, found: Sequence[KerasDirection]) -> None:
    alike: dict[str, set[Any]] = {
        "class": {d.kind for d in found},
        "units": {d.hidden_size for d in found},
        "return_sequences": {d.layer.flag("return_sequences") for d in found},
        "reset_after": {d.cell.flag("reset_after") for d in found if d.kind == "gru"},
    }
    for what, values in alike.items():
        if len(values) > 1:
            both = " and ".join(str(value) for value in sorted(values, key=str))
            raise WeightsError(f"the two directions of {layer.title} differ in {what}", found=both)


def layer_config(
    found: Sequence[KerasDirection], release: Release, reset_after: bool
) -> dict[str, Any]:
    """The layer's options in the config's words, those that are not the default."""
    first = found[0]
    config: dict[str, Any] = {"type": first.kind, "hidden_size": first.hidden_size}
    if len(found) > 1:
        config["bidirectional"] = True
    if not any(one.biased for one in found):
        config["bias"] = False
    if not first.layer.flag("return_sequences"):
        config["return_sequences"] = False
    if first.layer.flag("stateful"):
        config["stateful"] = True
    for key, usual in (("activation", "tanh"), ("recurrent_activation", "sigmoid")):
        if key == "activation" or first.kind != "rnn":
            config |= _activation(found, key, usual, release)
    for key in ("dropout", "recurrent_dropout"):
        rate = first.cell.number(key, 0.0)
        if not 0 <= rate < 1:
            raise first.cell.refused(key)
        config |= {key: rate} if rate else {}
    if first.kind == "gru" and not reset_after:
        config["reset_after"] = False
    return config


def _activation(
    found: Sequence[KerasDirection], key: str, usual: str, release: Release
) -> dict[str, ActivationConfig | list[ActivationConfig]]:
    each = [read_activation(one.cell, key, release.default(key), release) for one in found]
    if "softmax" in each:
        raise found[each.index("softmax")].cell.refused(key)
    if all(one == usual for one in each):
        return {}
    return {key: each[0] if all(one == each[0] for one in each) else each}


def infer_reset_after(
    found: Sequence[KerasDirection], biases: Sequence[StoredVariable | None], release: Release
) -> bool:
    """A GRU's convention: what its biases tell, else its options, else the version's default."""
    if found[0].kind != "gru":
        return False
    for bias in biases:
        if bias is not None:
            return bias.value.ndim == 2
    return found[0].cell.flag("reset_after", release.default("reset_after"))


def unstated_options(found: Sequence[KerasDirection]) -> tuple[str, ...]:
    """Options whose defaults Keras changed and that neither a layer nor its biases tell."""
    keys = [] if found[0].kind == "rnn" else ["recurrent_activation"]
    if found[0].kind == "gru" and not any(one.biased for one in found):
        keys.append("reset_after")
    return tuple(key for key in keys if any(key not in one.cell.values for one in found))


def is_cudnn_bias(kind: str, width: int, bias: Sequence[int] | None) -> bool:
    """Whether a bias is that of CuDNNLSTM or CuDNNGRU: two, one after the other, in one row."""
    return kind != "SimpleRNN" and bias is not None and tuple(bias) == (2 * width,)


def cudnn_error(what: str, kind: str) -> WeightsError:
    """The error that names cuDNN's layout.

    Parameters
    ----------
    kind
        ``LSTM`` or ``GRU``.
    """
    parse_options = "recurrent_activation='sigmoid'"
    parse_options += ", reset_after=True" if kind == "GRU" else ""
    return WeightsError(
        f"{what} keeps its weights in cuDNN's layout (CuDNN{kind}), which lstm-cli does not read",
        expected=f"the weights of a {kind} layer",
        hint=f"in Keras 2, put {kind}(units, {parse_options}) in the place of CuDNN{kind}, load the "
        "weights there, which Keras converts, and save that: model.save('model.h5')",
    )


def native_tensors(
    one: KerasDirection, variables: Sequence[StoredVariable], prefix: str, *, biased: bool
) -> tuple[dict[str, Array], list[TensorSource]]:
    """Native tensors of one direction, and where they stood.

    Parameters
    ----------
    variables
        Kernel (D, G * H), recurrent kernel (H, G * H) and, if it has biases, bias (G * H,), or
        (2, G * H) where there are two.
    biased
        The layer has biases: those of this direction are 0 if it has none itself.

    Raises
    ------
    WeightsError
        A shape that does not fit the units.
    """
    letters, H = KERAS_GATES[one.kind], one.hidden_size
    width = len(letters) * H
    kernel, recurrent = variables[0], variables[1]
    _check_shape(one, kernel, (None, width))
    _check_shape(one, recurrent, (H, width))
    found, stored = {}, []
    for native, variable in ((f"{prefix}weight_ih", kernel), (f"{prefix}weight_hh", recurrent)):
        found[native] = reorder_gates(variable.value.T, letters, NATIVE_GATES[one.kind])
        stored += _blocks(variable, native, letters, axis=1, change="transposed")
    if not biased:
        return found, stored
    biases, where = split_bias(
        one, variables[2] if one.biased else None, prefix, kernel.value.dtype
    )
    return found | biases, stored + where


def split_bias(
    one: KerasDirection, bias: StoredVariable | None, prefix: str, dtype: Any
) -> tuple[dict[str, Array], list[TensorSource]]:
    letters, width = KERAS_GATES[one.kind], len(KERAS_GATES[one.kind]) * one.hidden_size
    names = [prefix + n for n in (("bias_ih", "bias_hh") if one.kind == "gru" else ("bias",))]
    found = {name: np.zeros(width, dtype) for name in names}
    if bias is None:
        return found, []
    two = one.kind == "gru" and bias.value.ndim == 2
    if is_cudnn_bias(CLASSES[one.kind], width, bias.value.shape):
        raise cudnn_error(one.cell.owner, CLASSES[one.kind])
    _check_shape(one, bias, (2, width) if two else (width,))
    if one.kind == "gru" and one.cell.get("reset_after") not in (None, two):
        raise one.cell.refused("reset_after", expected=f"what its bias {bias.value.shape} says")
    stored: list[TensorSource] = []
    for k, name in enumerate(names if two else names[:1]):
        values = bias.value[k] if two else bias.value
        found[name] = reorder_gates(values, letters, NATIVE_GATES[one.kind])
        leading = (k,) if two else ()
        stored += _blocks(bias, name, letters, leading=leading)
    return found, stored


def _blocks(
    variable: StoredVariable, native: str, letters: Sequence[str], **how: Any
) -> list[TensorSource]:
    found = gate_sources(variable.name, variable.value, native, letters, **how)
    return [replace(block, dtype=variable.dtype) for block in found]


def _check_shape(
    one: KerasDirection, variable: StoredVariable, wanted: tuple[int | None, ...]
) -> None:
    shape = variable.value.shape
    fits = len(shape) == len(wanted) and all(
        w in (None, n) for n, w in zip(shape, wanted, strict=True)
    )
    if not fits or 0 in shape:
        text = ", ".join("D" if w is None else str(w) for w in wanted)
        raise WeightsError(
            f"{one.cell.owner} has a tensor that does not fit its {one.hidden_size} units",
            expected=f"({text}{',' if len(wanted) == 1 else ''})",
            found=f"{variable.name} {shape}",
        )
