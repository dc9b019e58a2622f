"""Differences between a config and the config that a weights file carries, and notes on them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lstm_cli.cells import LSTM, Activation
from lstm_cli.config import Config
from lstm_cli.config.field_types import to_yaml_value
from lstm_cli.config.schema import LayerSection
from lstm_cli.engines.types import RecurrentSpec
from lstm_cli.errors import quote
from lstm_cli.formats.interchange import Imported

TRAINING_OPTIONS = ("dropout", "recurrent_dropout", "forget_bias")
"""Options of a layer that change no output."""
UNSTORED = {"onnx": ("stateful",)}
"""Options of a layer that a format cannot store, by format: their absence means nothing."""
EPSILON = 2**-24
"""Relative difference below which single precision does not distinguish two numbers."""
LISTED = 8
"""Most options that a note lists; others are counted."""

_SIMPLER = {
    Activation("affine"): Activation("identity"),
    Activation("scaled_tanh"): Activation("tanh"),
    Activation("leaky_relu", 0.0): Activation("relu"),
    Activation("thresholded_relu", 0.0): Activation("relu"),
}
"""Simpler activation that computes the same, by activation with these parameters."""


@dataclass(frozen=True)
class OptionMismatch:
    """An option whose value in a config is not the one in a file's own config.

    Attributes
    ----------
    layer, file_layer
        Index of the layer in the config, and in the file's own config; None: an option of the
        model.
    key
        Name of the option.
    config_value, file_value
        Value in the config, and in the file's own config, as in YAML.
    """

    layer: int | None
    file_layer: int | None
    key: str
    config_value: Any
    file_value: Any

    @property
    def place(self) -> str:
        """The option as messages name it: ``layers[0].clip``."""
        return self.key if self.layer is None else f"layers[{self.layer}].{self.key}"


def unstated_options(
    config: Config, file_config: Config | None, name: Path, *, tensors_only: bool
) -> tuple[str, ...]:
    """Return notes on options that a written file cannot store, and how to pass them.

    Parameters
    ----------
    config
        Config of the network that was written.
    file_config
        Config that the file implies when read without another; None: it implies none.
    name
        Name of the file.
    tensors_only
        The format holds tensors only, so that running it often needs a config.
    """
    mismatches = None if file_config is None else option_mismatches(config, file_config)
    if mismatches is None and tensors_only:
        return (f"to run {name}: lstm-cli run CONFIG DATA --weights {quote(str(name))}",)
    mismatches = _without_bias(mismatches)
    if not mismatches or file_config is None:
        return ()
    if tensors_only:
        missing = _without_bias(option_mismatches(file_config, config))
        settings = " ".join(_settings(file_config, config, missing))
        return (f"to run {name} without a config: {settings}",)
    meant = ", ".join(f"layer {m.layer} {m.key}: {_text(m.config_value)}" for m in mismatches)
    read = ", ".join(f"{m.key}: {_text(m.file_value)}" for m in mismatches)
    return (f"{name} cannot store {meant}; read back, it has {read}",)


def _without_bias(mismatches: Sequence[OptionMismatch] | None) -> list[OptionMismatch]:
    """Drop biases: the writer reports those that a format needs, and no setting removes them."""
    return [mismatch for mismatch in mismatches or () if mismatch.key != "bias"]


def contradictions(config: Config, file_config: Config, file: Imported) -> list[OptionMismatch]:
    """List the options that change outputs, and whose values contradict the file's own config.

    Options set on the command line are left out: the user has chosen them.
    """
    mismatches = option_mismatches(config, file_config)
    if mismatches is None:
        kinds = [
            " → ".join(layer.type for _, layer in _layers(one)) for one in (config, file_config)
        ]
        return [OptionMismatch(None, None, "layers", *kinds)]
    flatten = any(layer.type == "flatten" for _, layer in _layers(file_config))
    for key in ["input_size"] + ["steps"] * flatten:
        meant, read = getattr(config.model, key), getattr(file_config.model, key)
        mismatches += [OptionMismatch(None, None, key, meant, read)] if meant != read else []
    unstored = UNSTORED.get(file.format, ())
    return [
        mismatch
        for mismatch in mismatches
        if mismatch.key not in unstored
        and not _is_set(config, mismatch)
        and not (
            mismatch.key == "forget_gate"
            and mismatch.file_value
            and _forget_gate_is_open(file_config, mismatch.file_layer, file)
        )
    ]


def _forget_gate_is_open(file_config: Config, index: int | None, file: Imported) -> bool:
    """Return True if an lstm's forget gate is 1 for every input.

    A file stores ``forget_gate: false`` as such weights.
    """
    specs = [
        spec
        for spec in file_config.specs
        if isinstance(spec, RecurrentSpec) and spec.index == index
    ]
    for spec in specs:
        H = slice(spec.hidden_size, 2 * spec.hidden_size)
        for d, cell in enumerate(spec.cells):
            tensors = {
                p.name: file.tensors.get(spec.prefix(d) + p.name) for p in cell.parameters(1)
            }
            bias = tensors.pop("bias", None)
            gates = [value for name, value in tensors.items() if name != "weight_hr"]
            if bias is None or any(value is None or value[H].any() for value in gates):
                return False
            limit = np.inf if cell.clip is None else cell.clip
            f = cell.recurrent_activation(np.clip(bias[H].astype(float), -limit, limit))
            if not (isinstance(cell, LSTM) and np.all(np.abs(f - 1) < EPSILON)):
                return False
    return bool(specs)


def contradiction_note(
    config: Config,
    file_config: Config,
    mismatches: Sequence[OptionMismatch],
    path: Path,
    alone: str | None,
    *,
    settings: bool = True,
) -> str:
    """Return the note that a config and a weights file describe different networks.

    Parameters
    ----------
    file_config
        The file's own config.
    mismatches
        One or more results of `contradictions`.
    path
        Path of the file.
    alone
        Command that uses the file's own options; None: the file's options are used already.
    settings
        The command takes ``--set``.
    """
    of_config = "the config" if config.source == "config" else Path(config.source).name
    of_file = path.name
    if of_config == of_file:
        of_config, of_file = config.source, str(path)
    options = "; ".join(
        f"{m.place}: {_text(m.config_value)} in {of_config}, {_text(m.file_value)} in {of_file}"
        for m in mismatches[:LISTED]
    )
    options += f"; and {len(mismatches) - LISTED} more" if len(mismatches) > LISTED else ""
    used = of_config if alone else of_file
    note = f"{used} is taken where {of_config} and {of_file} differ: {options}"
    if alone is None:
        return note
    commands = [alone]
    if settings and len(mismatches) <= LISTED and mismatches[0].key != "layers":
        commands += [" ".join(_settings(config, file_config, mismatches))]
    return f"{note}. To take what {of_file} says: {', or '.join(commands)}"


def option_mismatches(config: Config, other: Config) -> list[OptionMismatch] | None:
    """List the options that differ and change outputs; None if the kinds of layers differ."""
    pairs = _pairs(config, other)
    if pairs is None:
        return None
    return [
        OptionMismatch(
            index,
            other_index,
            key,
            to_yaml_value(_value(layer, key)),
            to_yaml_value(_value(other_layer, key)),
        )
        for (index, layer), (other_index, other_layer) in pairs
        for key in type(layer).model_fields
        if key not in TRAINING_OPTIONS and _differs(layer, other_layer, key)
    ]


def unwritten_options(config: Config, file_config: Config) -> set[str]:
    """Return the options of a file's layers that a config leaves out, as ``--set`` names them.

    Empty if the kinds of layers differ.
    """
    return {
        f"model.layers.{index}.{key}"
        for (_, layer), (index, _) in _pairs(config, file_config) or ()
        for key in type(layer).model_fields.keys() - layer.model_fields_set
    }


def _pairs(
    config: Config, other: Config
) -> list[tuple[tuple[int, LayerSection], tuple[int, LayerSection]]] | None:
    layers, other_layers = list(_layers(config)), list(_layers(other))
    if [layer.type for _, layer in layers] != [layer.type for _, layer in other_layers]:
        return None
    return list(zip(layers, other_layers, strict=True))


def _layers(config: Config) -> Iterator[tuple[int, LayerSection]]:
    for index, layer in enumerate(config.model.layers):
        if layer.type != "dropout":  # computes nothing outside of training
            yield index, layer


def _value(layer: LayerSection, key: str) -> Any:
    value = getattr(layer, key)
    return _value(layer, "activation") if key == "cell_activation" and value is None else value


def _differs(layer: LayerSection, other: LayerSection, key: str) -> bool:
    if _computes_the_same(_value(layer, key), _value(other, key)):
        return False
    # Where the option follows the activation on both sides, only the activation is reported.
    return not (
        _follows_activation(layer, key)
        and _computes_the_same(_value(other, key), _value(other, "activation"))
    )


def _follows_activation(layer: LayerSection, key: str) -> bool:
    return key == "cell_activation" and getattr(layer, key) is None


def _computes_the_same(a: Any, b: Any) -> bool:
    """Return True if two values of an option give the same outputs in single precision."""
    if isinstance(a, tuple) and isinstance(b, tuple):  # one for both directions, or a pair
        return all(_computes_the_same(a[min(d, len(a) - 1)], b[min(d, len(b) - 1)]) for d in (0, 1))
    if isinstance(a, Activation) and isinstance(b, Activation):
        a, b = _SIMPLER.get(a, a), _SIMPLER.get(b, b)
        return (
            a.name == b.name
            and _computes_the_same(a.alpha, b.alpha)
            and _computes_the_same(a.beta, b.beta)
        )
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=EPSILON)
    return bool(a == b)


def _is_set(config: Config, mismatch: OptionMismatch) -> bool:
    """Return True if the command line sets the option, or the activation that it follows."""
    path: tuple[str | int, ...] = ("model", mismatch.key)
    if mismatch.layer is not None:
        follows = _follows_activation(config.model.layers[mismatch.layer], mismatch.key)
        path = ("model", "layers", mismatch.layer, "activation" if follows else mismatch.key)
    paths = (path, *((*path, part) for part in ("name", "alpha", "beta", 0, 1)))
    return any(config.where(*one).startswith("--set ") for one in paths)


def _settings(base: Config, other: Config, mismatches: Sequence[OptionMismatch]) -> Iterator[str]:
    """Yield the ``--set`` arguments that turn the options of `base` into those of `other`."""
    for mismatch in mismatches:
        yield _setting(mismatch.layer, mismatch.key, mismatch.file_value)
        index, other_index = mismatch.layer, mismatch.file_layer
        if index is None or other_index is None or mismatch.key != "activation":
            continue
        layer, other_layer = base.model.layers[index], other.model.layers[other_index]
        if layer.type == "lstm" and _follows_activation(layer, "cell_activation"):
            cell = _value(other_layer, "cell_activation")
            reported = any(m.layer == index and m.key == "cell_activation" for m in mismatches)
            if not reported and not _computes_the_same(cell, _value(other_layer, "activation")):
                yield _setting(index, "cell_activation", to_yaml_value(cell))


def _setting(layer: int | None, key: str, value: Any) -> str:
    place = "model" if layer is None else f"model.layers.{layer}"
    return f"--set {quote(f'{place}.{key}={_text(value)}')}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)  # YAML on one line
