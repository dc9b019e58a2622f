"""Reader of PyTorch files: the state dict, the order of its modules, and the native network."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array, Layers
from lstm_cli.errors import WeightsError, counted
from lstm_cli.formats.gates import NATIVE_GATES, gate_sources
from lstm_cli.formats.interchange import Imported, ReadOptions, TensorSource
from lstm_cli.formats.limits import check_regular, read_whole
from lstm_cli.formats.native import deserialize_entries
from lstm_cli.formats.torch.archive import TorchArchive
from lstm_cli.formats.torch.module_order import ModuleOrder, find_module_order, natural_sort_key
from lstm_cli.formats.torch.module_recognition import recognize_modules
from lstm_cli.formats.torch.modules import (
    LinearModule,
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
    config, builder = build_network(find_module_order(modules, stored, str(path), layers))
    kinds = {str(layer["type"]) for layer in builder.layers}
    return Imported(
        path=path,
        format="pytorch",
        title=title,
        sha256=_sha256(path),
        config=config,
        tensors=builder.tensors,
        sources=tuple(builder.sources),
        gate_orders={
            kind: " ".join(gates) for kind, gates in NATIVE_GATES.items() if kind in kinds
        },
        notes=(*notes, *left_out, *builder.notes),
        split_biases=builder.split_biases,
    )


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


@dataclass
class TorchNetworkBuilder:
    """Native network that grows layer by layer; its fields are those of `Imported`."""

    layers: list[dict[str, Any]] = field(default_factory=list)
    tensors: dict[str, Array] = field(default_factory=dict)
    sources: list[TensorSource] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    split_biases: dict[str, Array] = field(default_factory=dict)


def build_network(order: ModuleOrder) -> tuple[dict[str, Any], TorchNetworkBuilder]:
    """Build the config, as a mapping, and the native network.

    Raises
    ------
    WeightsError
        The file lacks the values of a tensor.
    """
    builder = TorchNetworkBuilder()
    for k, module in enumerate(order.modules):
        if k == order.flatten:
            builder.layers.append({"type": "flatten"})
        if isinstance(module, RecurrentModule):
            _add_recurrent(builder, module)
        else:
            _add_linear(builder, module)
    model: dict[str, Any] = {"input_size": order.modules[0].input_size}
    if order.steps is not None:
        model["steps"] = order.steps
    model["layers"] = builder.layers
    builder.notes += _notes(order, builder)
    return {"model": model}, builder


def _add_recurrent(builder: TorchNetworkBuilder, module: RecurrentModule) -> None:
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
            builder.notes.append(
                f"no {without} bias is stored for {printable(module.name)}: set to 0"
            )
        prefix = f"layers.{len(builder.layers)}."
        builder.layers.append(options)
        for direction, folder in zip(layer, ("", "reverse."), strict=False):
            _add_direction(builder, direction, prefix + folder, biased=any(biased))


def _add_direction(
    builder: TorchNetworkBuilder, direction: TorchDirection, prefix: str, *, biased: bool
) -> None:
    tensors, gates = direction.tensors, NATIVE_GATES[direction.kind]
    for stem in ("weight_ih", "weight_hh"):
        _add_tensor(builder, tensors[stem], prefix + stem, gates)
    if biased:
        _add_biases(builder, direction, prefix)
    if "weight_hr" in tensors:
        _add_tensor(builder, tensors["weight_hr"], f"{prefix}weight_hr")


def _add_biases(builder: TorchNetworkBuilder, direction: TorchDirection, prefix: str) -> None:
    """Add both biases of a gru, or the sum of those of an lstm or rnn, rounded once."""
    tensors, gates = direction.tensors, NATIVE_GATES[direction.kind]
    rows = len(gates) * direction.hidden_size
    if "bias_ih" not in tensors:
        stems = ("bias_ih", "bias_hh") if direction.kind == "gru" else ("bias",)
        like = builder.tensors[f"{prefix}weight_ih"]
        builder.tensors.update({prefix + stem: np.zeros(rows, like.dtype) for stem in stems})
    elif direction.kind == "gru":
        for stem in ("bias_ih", "bias_hh"):
            _add_tensor(builder, tensors[stem], prefix + stem, gates)
    else:
        pair = tensors["bias_ih"], tensors["bias_hh"]
        first, second = (tensor.read() for tensor in pair)
        builder.tensors[f"{prefix}bias"] = _rounded_sum(first, second)
        builder.split_biases |= {f"{prefix}bias_ih": first, f"{prefix}bias_hh": second}
        for tensor, other in (pair, pair[::-1]):
            change = f"added to {other.name}"
            builder.sources += _tensor_sources(tensor, f"{prefix}bias", gates, change)


def _rounded_sum(first: Array, second: Array) -> Array:
    dtype = np.result_type(first, second)
    with np.errstate(all="ignore"):  # an overflow is refused later, with all values
        return np.asarray(first.astype(np.float64) + second, dtype)


def _add_tensor(
    builder: TorchNetworkBuilder, tensor: StateTensor, native: str, gates: tuple[str, ...] = ()
) -> None:
    builder.tensors[native] = tensor.read()
    builder.sources += _tensor_sources(tensor, native, gates)


def _tensor_sources(
    tensor: StateTensor, native: str, gates: tuple[str, ...], change: str = ""
) -> list[TensorSource]:
    if not gates:
        return [TensorSource(tensor.name, tensor.shape, tensor.dtype, "", native, "", change)]
    shape = np.broadcast_to(np.float32(0), tensor.shape)
    found = gate_sources(tensor.name, shape, native, gates, change=change)
    return [replace(one, dtype=tensor.dtype) for one in found]


def _add_linear(builder: TorchNetworkBuilder, module: LinearModule) -> None:
    prefix = f"layers.{len(builder.layers)}."
    bias = {"bias": False} if module.bias is None else {}
    builder.layers.append({"type": "dense", "units": module.output_size, **bias})
    _add_tensor(builder, module.weight, f"{prefix}weight")
    if module.bias is not None:
        _add_tensor(builder, module.bias, f"{prefix}bias")


def _notes(order: ModuleOrder, builder: TorchNetworkBuilder) -> list[str]:
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
