"""Two descriptions of one network: what a file says of it less, or otherwise, than a config."""

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
from lstm_cli.config.schema import Layer
from lstm_cli.engines.types import RecurrentSpec
from lstm_cli.errors import quote
from lstm_cli.formats.model import Imported

TRAINING = ("dropout", "recurrent_dropout", "forget_bias")
"""Options of a layer that change no output."""
UNSAYABLE = {"onnx": ("stateful",)}
"""Options of a layer that a format has no place for: its silence says nothing."""
EPSILON = 2**-24
"""Relative difference of numbers that are one number in single precision."""
MOST = 8
"""Differences that a note lists."""

_PLAIN = {
    Activation("affine"): Activation("identity"),
    Activation("scaled_tanh"): Activation("tanh"),
    Activation("leaky_relu", 0.0): Activation("relu"),
    Activation("thresholded_relu", 0.0): Activation("relu"),
}
"""Activations that are another one with these parameters."""


@dataclass(frozen=True)
class Gap:
    """An option that a file says nothing or something else about.

    Attributes
    ----------
    layer, number
        Index of the layer in the config that was given, and in the file's own; None: an option
        of the model.
    key, meant, read
        The option, its value in both as it is written in YAML.
    """

    layer: int | None
    number: int | None
    key: str
    meant: Any
    read: Any

    @property
    def place(self) -> str:
        """The option as messages name it: ``layers[0].clip``."""
        return self.key if self.layer is None else f"layers[{self.layer}].{self.key}"


def unsaid(config: Config, own: Config | None, name: Path, *, bare: bool) -> tuple[str, ...]:
    """Notes on what a file, read alone, would be taken for that it is not.

    Parameters
    ----------
    config
        Of the network that was written.
    own
        Of the file, read back without another; None if it tells none.
    name
        Of the file.
    bare
        The format holds tensors only, so that a config is often needed beside it.
    """
    found = None if own is None else gaps(config, own)
    if found is None and bare:
        return (f"to run {name}: lstm-cli run CONFIG DATA --weights {quote(str(name))}",)
    # Biases that a format needs are the writer's to say, and no setting takes them away.
    found = [gap for gap in found or () if gap.key != "bias"]
    if not found or own is None:
        return ()
    if bare:
        apart = [gap for gap in gaps(own, config) or () if gap.key != "bias"]
        settings = " ".join(_settings(own, config, apart))
        return (f"to run {name} without a config: {settings}",)
    meant = ", ".join(f"layer {gap.layer} {gap.key}: {_text(gap.meant)}" for gap in found)
    read = ", ".join(f"{gap.key}: {_text(gap.read)}" for gap in found)
    return (f"{name} cannot say {meant}; read back, it has {read}",)


def contradictions(config: Config, own: Config, file: Imported) -> list[Gap]:
    """Options that change outputs, and that a config gives otherwise than a file beside it.

    What the command line sets is not among them.

    Parameters
    ----------
    own
        The file's own config.
    """
    found = gaps(config, own)
    if found is None:
        kinds = [" → ".join(layer.type for _, layer in _layers(one)) for one in (config, own)]
        return [Gap(None, None, "layers", *kinds)]
    keys = ["input_size"] + ["steps"] * any(layer.type == "flatten" for _, layer in _layers(own))
    for key in keys:
        meant, read = getattr(config.model, key), getattr(own.model, key)
        found += [Gap(None, None, key, meant, read)] if meant != read else []
    silent = UNSAYABLE.get(file.format, ())
    return [
        gap
        for gap in found
        if gap.key not in silent
        and not _is_typed(config, gap)
        and not (gap.key == "forget_gate" and gap.read and _stays_open(own, gap.number, file))
    ]


def _stays_open(own: Config, number: int | None, file: Imported) -> bool:
    """Whether an lstm's forget gate is 1 whatever it reads, as `forget_gate` false is written."""
    specs = [spec for spec in own.specs if isinstance(spec, RecurrentSpec) and spec.index == number]
    for spec in specs:
        H = slice(spec.hidden_size, 2 * spec.hidden_size)
        for d, cell in enumerate(spec.cells):
            held = {p.name: file.tensors.get(spec.prefix(d) + p.name) for p in cell.parameters(1)}
            bias = held.pop("bias", None)
            gates = [value for name, value in held.items() if name != "weight_hr"]
            if bias is None or any(value is None or value[H].any() for value in gates):
                return False
            limit = np.inf if cell.clip is None else cell.clip
            opened = cell.recurrent_activation(np.clip(bias[H].astype(float), -limit, limit))
            if not (isinstance(cell, LSTM) and np.all(np.abs(opened - 1) < EPSILON)):
                return False
    return bool(specs)


def contradiction_note(
    config: Config,
    own: Config,
    found: Sequence[Gap],
    path: Path,
    alone: str | None,
    *,
    settings: bool = True,
) -> str:
    """The note that a config and a file beside it describe different networks.

    Parameters
    ----------
    own
        The file's own config.
    found
        What `contradictions` gave: one or more.
    path
        Of the file.
    alone
        How to take what the file says; None: it is taken, and not the config.
    settings
        Whether the command takes ``--set``.
    """
    mine = "the config" if config.source == "config" else Path(config.source).name
    theirs = path.name
    if mine == theirs:
        mine, theirs = config.source, str(path)
    listed = "; ".join(
        f"{gap.place}: {_text(gap.meant)} in {mine}, {_text(gap.read)} in {theirs}"
        for gap in found[:MOST]
    )
    listed += f"; and {len(found) - MOST} more" if len(found) > MOST else ""
    note = f"{mine if alone else theirs} is taken where {mine} and {theirs} differ: {listed}"
    if alone is None:
        return note
    ways = [alone]
    if settings and len(found) <= MOST and found[0].key != "layers":
        ways += [" ".join(_settings(config, own, found))]
    return f"{note}. To take what {theirs} says: {', or '.join(ways)}"


def gaps(config: Config, other: Config) -> list[Gap] | None:
    """Options that differ and change outputs; None if the layers are other ones."""
    pairs = _pairs(config, other)
    if pairs is None:
        return None
    return [
        Gap(k, number, key, to_yaml_value(_value(layer, key)), to_yaml_value(_value(read, key)))
        for (k, layer), (number, read) in pairs
        for key in type(layer).model_fields
        if key not in TRAINING and _differs(layer, read, key)
    ]


def left_out(config: Config, own: Config) -> set[str]:
    """Options of a file's own layers, as ``--set`` names them there, that a config does not write.

    Empty if its layers are of other kinds.
    """
    return {
        f"model.layers.{number}.{key}"
        for (_, layer), (number, _) in _pairs(config, own) or ()
        for key in type(layer).model_fields.keys() - layer.model_fields_set
    }


def _pairs(
    config: Config, other: Config
) -> list[tuple[tuple[int, Layer], tuple[int, Layer]]] | None:
    """The layers of both that compute, with their indices; None if they are of other kinds."""
    mine, theirs = list(_layers(config)), list(_layers(other))
    if [layer.type for _, layer in mine] != [layer.type for _, layer in theirs]:
        return None
    return list(zip(mine, theirs, strict=True))


def _layers(config: Config) -> Iterator[tuple[int, Layer]]:
    """Every layer that computes, with its index."""
    for index, layer in enumerate(config.model.layers):
        if layer.type != "dropout":
            yield index, layer


def _value(layer: Layer, key: str) -> Any:
    """An option, ``cell_activation`` resolved."""
    value = getattr(layer, key)
    return _value(layer, "activation") if key == "cell_activation" and value is None else value


def _differs(layer: Layer, read: Layer, key: str) -> bool:
    if _same(_value(layer, key), _value(read, key)):
        return False
    # Where it follows the activation on both sides, only that one differs.
    return not (_follows(layer, key) and _same(_value(read, key), _value(read, "activation")))


def _follows(layer: Layer, key: str) -> bool:
    """Whether an option is left out, and is what ``activation`` is."""
    return key == "cell_activation" and getattr(layer, key) is None


def _same(a: Any, b: Any) -> bool:
    """Whether two values of an option give the same outputs in single precision."""
    if isinstance(a, tuple) and isinstance(b, tuple):  # one for both directions, or a pair
        return all(_same(a[min(d, len(a) - 1)], b[min(d, len(b) - 1)]) for d in (0, 1))
    if isinstance(a, Activation) and isinstance(b, Activation):
        a, b = _PLAIN.get(a, a), _PLAIN.get(b, b)
        return a.name == b.name and _same(a.alpha, b.alpha) and _same(a.beta, b.beta)
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=EPSILON)
    return bool(a == b)


def _is_typed(config: Config, gap: Gap) -> bool:
    """Whether the command line sets an option, or the one that it follows."""
    path: tuple[str | int, ...] = ("model", gap.key)
    if gap.layer is not None:
        follows = _follows(config.model.layers[gap.layer], gap.key)
        path = ("model", "layers", gap.layer, "activation" if follows else gap.key)
    paths = (path, *((*path, part) for part in ("name", "alpha", "beta", 0, 1)))
    return any(config.where(*one).startswith("--set ") for one in paths)


def _settings(base: Config, wanted: Config, found: Sequence[Gap]) -> Iterator[str]:
    """Settings of the command line that turn one config into another; see `gaps`."""
    for gap in found:
        yield _setting(gap.layer, gap.key, gap.read)
        if gap.layer is None or gap.number is None or gap.key != "activation":
            continue
        layer, read = base.model.layers[gap.layer], wanted.model.layers[gap.number]
        if layer.type == "lstm" and _follows(layer, "cell_activation"):
            cell = _value(read, "cell_activation")
            listed = any(g.layer == gap.layer and g.key == "cell_activation" for g in found)
            if not listed and not _same(cell, _value(read, "activation")):
                yield _setting(gap.layer, "cell_activation", to_yaml_value(cell))


def _setting(layer: int | None, key: str, value: Any) -> str:
    place = "model" if layer is None else f"model.layers.{layer}"
    return f"--set {quote(f'{place}.{key}={_text(value)}')}"


def _text(value: Any) -> str:
    """A value as it is written in YAML, on one line."""
    return value if isinstance(value, str) else json.dumps(value)
