"""From modules in order to a config and native tensors, and where each part of them stood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.formats.gates import NATIVE, stored_blocks
from lstm_cli.formats.model import Stored
from lstm_cli.formats.torch.modules import Direction, Linear, Recurrent
from lstm_cli.formats.torch.order import Order
from lstm_cli.formats.torch.tensors import StoredTensor, shown


@dataclass
class Network:
    """A network in native terms, as it grows layer by layer."""

    layers: list[dict[str, Any]] = field(default_factory=list)
    tensors: dict[str, Array] = field(default_factory=dict)
    stored: list[Stored] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    halves: dict[str, Array] = field(default_factory=dict)


def translate(order: Order) -> tuple[dict[str, Any], Network]:
    """The config as a mapping, and the network.

    Raises
    ------
    WeightsError
        The file lacks a tensor's values.
    """
    network = Network()
    for k, module in enumerate(order.modules):
        if k == order.flatten:
            network.layers.append({"type": "flatten"})
        if isinstance(module, Recurrent):
            _add_recurrent(network, module)
        else:
            _add_linear(network, module)
    model: dict[str, Any] = {"input_size": order.modules[0].input_size}
    if order.steps is not None:
        model["steps"] = order.steps
    model["layers"] = network.layers
    network.notes += _assumptions(order, network)
    return {"model": model}, network


def _add_recurrent(network: Network, module: Recurrent) -> None:
    for layer in module.layers:
        first = layer[0]
        options: dict[str, Any] = {"type": first.kind, "hidden_size": first.hidden_size}
        if len(layer) == 2:
            options["bidirectional"] = True
        if first.projection_size is not None:
            options["projection_size"] = first.projection_size
        biased = ["bias_ih" in direction.tensors for direction in layer]
        if not any(biased):
            options["bias"] = False
        elif not all(biased):
            without = "reverse" if biased[0] else "forward"
            network.notes.append(f"no {without} bias is stored for {shown(module.name)}: set to 0")
        prefix = f"layers.{len(network.layers)}."
        network.layers.append(options)
        for direction, way in zip(layer, ("", "reverse."), strict=False):
            _add_direction(network, direction, prefix + way, biased=any(biased))


def _add_direction(network: Network, direction: Direction, prefix: str, *, biased: bool) -> None:
    tensors, gates = direction.tensors, NATIVE[direction.kind]
    for stem in ("weight_ih", "weight_hh"):
        _add(network, tensors[stem], prefix + stem, gates)
    if biased:
        _add_biases(network, direction, prefix)
    if "weight_hr" in tensors:
        _add(network, tensors["weight_hr"], f"{prefix}weight_hr")


def _add_biases(network: Network, direction: Direction, prefix: str) -> None:
    """gru keeps both; lstm and rnn have their sum, added in float64 and rounded once."""
    tensors, gates = direction.tensors, NATIVE[direction.kind]
    rows = len(gates) * direction.hidden_size
    if "bias_ih" not in tensors:
        stems = ("bias_ih", "bias_hh") if direction.kind == "gru" else ("bias",)
        like = network.tensors[f"{prefix}weight_ih"]
        network.tensors.update({prefix + stem: np.zeros(rows, like.dtype) for stem in stems})
    elif direction.kind == "gru":
        for stem in ("bias_ih", "bias_hh"):
            _add(network, tensors[stem], prefix + stem, gates)
    else:
        pair = tensors["bias_ih"], tensors["bias_hh"]
        first, second = (tensor.read() for tensor in pair)
        network.tensors[f"{prefix}bias"] = _sum(first, second)
        network.halves |= {f"{prefix}bias_ih": first, f"{prefix}bias_hh": second}
        for tensor, other in (pair, pair[::-1]):
            change = f"added to {other.name}"
            network.stored += _blocks(tensor, f"{prefix}bias", gates, change)


def _sum(first: Array, second: Array) -> Array:
    dtype = np.result_type(first, second)
    with np.errstate(all="ignore"):  # an overflow is refused later, where values are checked
        return np.asarray(first.astype(np.float64) + second, dtype)


def _add(network: Network, tensor: StoredTensor, native: str, gates: tuple[str, ...] = ()) -> None:
    network.tensors[native] = tensor.read()
    network.stored += _blocks(tensor, native, gates)


def _blocks(
    tensor: StoredTensor, native: str, gates: tuple[str, ...], change: str = ""
) -> list[Stored]:
    if not gates:
        return [Stored(tensor.name, tensor.shape, tensor.dtype, "", native, "", change)]
    shape = np.broadcast_to(np.float32(0), tensor.shape)
    found = stored_blocks(tensor.name, shape, native, gates, change=change)
    return [replace(one, dtype=tensor.dtype) for one in found]


def _add_linear(network: Network, module: Linear) -> None:
    prefix = f"layers.{len(network.layers)}."
    bias = {"bias": False} if module.bias is None else {}
    network.layers.append({"type": "dense", "units": module.output_size, **bias})
    _add(network, module.weight, f"{prefix}weight")
    if module.bias is not None:
        _add(network, module.bias, f"{prefix}bias")


def _assumptions(order: Order, network: Network) -> list[str]:
    """What a state dict does not say, and what to set where it is otherwise."""
    notes = [] if order.note is None else [order.note]
    if order.flatten is not None:
        module = order.modules[order.flatten]
        before = order.modules[order.flatten - 1]
        states = isinstance(before, Recurrent) and len(before.layers) == order.steps
        notes.append(
            f"{shown(module.name)} reads {module.input_size} features, {order.steps} times what "
            f"the layer before gives: taken for {order.steps} steps side by side (flatten)"
            + (f", not for the final states of all {order.steps} layers (h_n)" if states else "")
        )
    return notes + _unsaid(network.layers, order.flatten is not None)


def _unsaid(layers: Sequence[Mapping[str, Any]], flat: bool) -> list[str]:
    notes = []
    places = {
        kind: [k for k, layer in enumerate(layers) if layer["type"] in kinds]
        for kind, kinds in {
            "rnn": ("rnn",), "dense": ("dense",), "recurrent": ("lstm", "gru", "rnn"),
        }.items()
    }  # fmt: skip
    if places["recurrent"] and not flat:
        notes.append(_every_step(layers, places["recurrent"][-1]))
    if places["rnn"]:
        notes.append(f"tanh is assumed in the rnn; if not: {_set(places['rnn'], 'relu')}")
    if places["dense"]:
        notes.append(
            f"no activation is assumed after a Linear; if not: {_set(places['dense'], 'softmax')}"
        )
    if len(places["recurrent"]) > 1:
        notes.append(
            "dropout between layers is not stored, and changes no output; for training: "
            f"--set model.layers.{places['recurrent'][1]}.dropout=0.2"
        )
    return notes


def _every_step(layers: Sequence[Mapping[str, Any]], last: int) -> str:
    """How to take one vector a sequence, of which a bidirectional layer has two."""
    setting = f"--set model.layers.{last}.return_sequences=false"
    if not layers[last].get("bidirectional"):
        return f"every step's output is taken; for the last valid step only: {setting}"
    return (
        "every step's output is taken; for the final states of both directions (h_n): "
        f"{setting}; for the last step (y[:, -1]), whose reverse half has read one step only: "
        "outputs[:, -1] of the results with every step"
    )


def _set(places: list[int], activation: str) -> str:
    shown_places = places if len(places) <= 4 else places[:3] + places[-1:]
    return " ".join(f"--set model.layers.{k}.activation={activation}" for k in shown_places)
