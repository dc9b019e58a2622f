"""Reader of PyTorch files: the state dict, the order of its modules, and the native network."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array, Layers
from lstm_cli.errors import WeightsError, counted
from lstm_cli.formats.builder import (
    NativeTensor,
    NetworkBuilder,
    add_biases,
    direction_without_bias,
    gate_tensor,
    join_directions,
    whole_tensor,
)
from lstm_cli.formats.gates import NATIVE_GATES
from lstm_cli.formats.interchange import Imported, ReadOptions
from lstm_cli.formats.limits import check_regular, read_whole
from lstm_cli.formats.native import deserialize_entries
from lstm_cli.formats.torch.archive import TorchArchive
from lstm_cli.formats.torch.module_order import ModuleOrder, find_module_order, natural_sort_key
from lstm_cli.formats.torch.module_recognition import recognize_modules
from lstm_cli.formats.torch.modules import (
    BIASES,
    RecurrentModule,
    StateTensors,
    TorchDirection,
)
from lstm_cli.formats.torch.state_dict import StateDict, find_state_dict, select_tensors
from lstm_cli.formats.torch.tensors import FLOATS, StateTensor, list_names, printable, widen
from lstm_cli.output_files import error_reason


def read(path: Path, options: ReadOptions) -> Imported:
    """Read torch.save's file, or a safetensors file with PyTorch's names.

    Raises
    ------
    WeightsError
        The file is unreadable or hostile, or lstm-cli cannot represent the network.
    """
    check_regular(path)
    if _is_safetensors(path):
        whole = StateDict((), read_tensors(path))
        part = _below_prefix(whole, options.prefix, path)
        if options.only or options.ignore:
            (part,) = select_tensors([part], options, path, [whole])
        title = "PyTorch state dict in safetensors"
        return _build_imported(
            path, part.tensors, title, options.layers, stored=False, notes=part.notes
        )
    with TorchArchive(path) as archive:
        state = find_state_dict(archive.root, options, path)
        tensors = {name: archive.tensor(name, view) for name, view in state.tensors.items()}
        stored = not _is_sorted(tensors)
        title, notes = "PyTorch state dict", state.notes
        return _build_imported(path, tensors, title, options.layers, stored=stored, notes=notes)


def _is_sorted(tensors: StateTensors) -> bool:
    # PyTorch never sorts names, because a module's weight comes before its bias.
    names = list(tensors)
    starts = [name.rpartition(".")[2].startswith("bias") for name in names]
    return names == sorted(names) and any(a > b for a, b in pairwise(starts))


def _build_imported(
    path: Path,
    tensors: StateTensors,
    title: str,
    layers: Layers | None,
    *,
    stored: bool,
    notes: tuple[str, ...] = (),
) -> Imported:
    modules, left_out = recognize_modules(tensors, str(path), stored)
    order = find_module_order(modules, stored, str(path), layers)
    builder = build_network(order)
    builder.notes[:0] = [*notes, *left_out]
    kinds = {kind: " ".join(gates) for kind, gates in NATIVE_GATES.items()}
    orders = builder.used_gate_orders(kinds)
    return builder.finish(path, "pytorch", title, _sha256(path), orders, describes_layers=False)


def _below_prefix(state: StateDict, prefix: str | None, path: Path) -> StateDict:
    part = state.below(prefix) if prefix else state
    if not part.tensors and prefix:
        raise WeightsError(
            f"{path} has no tensor below {printable(prefix)}",
            found=list_names(list(state.tensors)),
        )
    return part


def _is_safetensors(path: Path) -> bool:
    # A zip archive starts with PK, a pickle with 0x80, safetensors with the header's length.
    try:
        with path.open("rb") as file:
            head = file.read(9)
    except (OSError, ValueError):
        return False  # opening it as an archive reports the problem
    return head[8:] == b"{" and not head.startswith(b"PK")


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsError(
            f"the weights file {path} cannot be read", found=error_reason(error)
        ) from None


def build_network(order: ModuleOrder) -> NetworkBuilder:
    """Build the native network of modules in order.

    Raises
    ------
    WeightsError
        The file lacks the values of a tensor.
    """
    builder = NetworkBuilder(order.modules[0].input_size, order.steps)
    for k, module in enumerate(order.modules):
        if k == order.flatten:
            builder.add("flatten")
        if isinstance(module, RecurrentModule):
            for layer in module.layers:
                _add_recurrent(builder, module, layer)
        else:
            tensors = {"weight": module.weight, "bias": module.bias}
            builder.add("dense", {n: _whole(t) for n, t in tensors.items() if t is not None})
    builder.notes += _notes(order, builder)
    return builder


def _add_recurrent(
    builder: NetworkBuilder, module: RecurrentModule, layer: Sequence[TorchDirection]
) -> None:
    directions = [_direction_tensors(direction) for direction in layer]
    if (without := direction_without_bias(directions)) is not None:
        builder.notes.append(f"no {without} bias is stored for {printable(module.name)}: set to 0")
    builder.add(module.kind, join_directions(module.kind, directions))


def _direction_tensors(direction: TorchDirection) -> dict[str, NativeTensor]:
    """Native tensors of one direction; an lstm or rnn has the sum of its two biases."""
    tensors, kind = direction.tensors, direction.kind
    native = {stem: _gates(kind, tensors[stem]) for stem in ("weight_ih", "weight_hh")}
    if "bias_ih" in tensors:
        biases = {stem: _gates(kind, tensors[stem]) for stem in BIASES}
        native |= (
            biases if kind == "gru" else {"bias": add_biases(biases["bias_ih"], biases["bias_hh"])}
        )
    if "weight_hr" in tensors:
        native["weight_hr"] = _whole(tensors["weight_hr"])
    return native


def _whole(tensor: StateTensor) -> NativeTensor:
    return whole_tensor(tensor.name, tensor.read(), tensor.dtype, shape=tensor.shape)


def _gates(kind: str, tensor: StateTensor) -> NativeTensor:
    return gate_tensor(kind, NATIVE_GATES[kind], tensor.name, tensor.read(), tensor.dtype)


def _notes(order: ModuleOrder, builder: NetworkBuilder) -> list[str]:
    """Notes on facts that a state dict does not state, and on how to set them."""
    notes = [] if order.note is None else [order.note]
    if order.flatten is not None:
        module = order.modules[order.flatten]
        before = order.modules[order.flatten - 1]
        states = isinstance(before, RecurrentModule) and len(before.layers) == order.steps
        notes.append(
            f"{printable(module.name)} reads {counted(module.input_size, 'feature')}, "
            f"{order.steps} times the outputs of the layer before: "
            f"read as {order.steps} steps side by side (flatten)"
            + (f", not as the final states of all {order.steps} layers (h_n)" if states else "")
        )
    return notes + _assumption_notes(builder.layers, order.flatten is not None)


def _assumption_notes(layers: Sequence[Mapping[str, Any]], flat: bool) -> list[str]:
    notes = []
    places = {
        kind: [k for k, layer in enumerate(layers) if layer["type"] in kinds]
        for kind, kinds in {
            "rnn": ("rnn",), "dense": ("dense",), "recurrent": ("lstm", "gru", "rnn"),
        }.items()
    }  # fmt: skip
    if places["recurrent"] and not flat:
        notes.append(_every_step_note(layers, places["recurrent"][-1]))
    if places["rnn"]:
        notes.append(f"tanh is assumed in the rnn; if not: {_settings(places['rnn'], 'relu')}")
    if places["dense"]:
        notes.append(
            "no activation is assumed after a Linear; if not: "
            f"{_settings(places['dense'], 'softmax')}"
        )
    if len(places["recurrent"]) > 1:
        notes.append(
            "dropout between layers is not stored, and changes no output; for training: "
            f"--set model.layers.{places['recurrent'][1]}.dropout=0.2"
        )
    return notes


def _every_step_note(layers: Sequence[Mapping[str, Any]], last: int) -> str:
    """Note on taking one vector per sequence; a bidirectional layer offers two kinds."""
    setting = f"--set model.layers.{last}.return_sequences=false"
    if not layers[last].get("bidirectional"):
        return f"every step's output is taken; for the last valid step only: {setting}"
    return (
        "every step's output is taken; for the final states of both directions (h_n): "
        f"{setting}; for the last step (y[:, -1]), whose reverse half has read one step only: "
        "outputs[:, -1] of the results with every step"
    )


def _settings(places: list[int], activation: str) -> str:
    shown_places = places if len(places) <= 4 else places[:3] + places[-1:]
    return " ".join(f"--set model.layers.{k}.activation={activation}" for k in shown_places)


_DTYPE_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def read_tensors(path: Path) -> dict[str, StateTensor]:
    """All tensors by name; names that differ by a number are sorted by the number.

    Raises
    ------
    WeightsError
        The file is missing, unreadable or not safetensors.
    """
    entries, _ = deserialize_entries(path, read_whole(path))
    tensors = {}
    for name, entry in sorted(entries, key=lambda pair: natural_sort_key(pair[0])):
        dtype = _DTYPE_NAMES.get(entry["dtype"], str(entry["dtype"]).lower())
        shape = tuple(entry["shape"])
        read = partial(_safetensors_values, path, name, dtype, shape, entry["data"])
        tensors[name] = StateTensor(name, shape, dtype, read)
    return tensors


def _safetensors_values(
    path: Path, name: str, dtype: str, shape: tuple[int, ...], data: bytearray
) -> Array:
    if dtype not in FLOATS:
        raise WeightsError(
            f"{printable(name)} is stored as {dtype}",
            expected="one of " + ", ".join(FLOATS),
            where=str(path),
        )
    try:
        values = np.frombuffer(data, f"<{FLOATS[dtype]}").reshape(shape)
    except ValueError as error:
        raise WeightsError(
            f"{printable(name)} has a shape that no array can have",
            found=f"{shape}: {error}",
            where=str(path),
        ) from None
    return widen(values, dtype)
