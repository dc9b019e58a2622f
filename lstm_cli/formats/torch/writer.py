"""Writing a network as a state dict, in torch.save's archive or in safetensors."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from lstm_cli.cells import GRU, LSTM, RNN, Activation, Cell
from lstm_cli.cells.activations import SIGMOID, TANH
from lstm_cli.engines.types import (
    Array,
    DenseSpec,
    DropoutSpec,
    FlattenSpec,
    LayerSpec,
    RecurrentSpec,
)
from lstm_cli.errors import Problem, WeightsError
from lstm_cli.files import write_whole
from lstm_cli.formats.gates import NATIVE_GATES
from lstm_cli.formats.interchange import Export
from lstm_cli.formats.native import sort_metadata
from lstm_cli.overwriting import SIGNATURE

ModuleLayers = list[RecurrentSpec | DenseSpec]
"""Layers of one module: several recurrent ones alike, or one dense layer."""

OPEN_GATE_BIAS = 40.0
"""A forget gate's bias that is 1 after a sigmoid, to the last bit of float64."""


def write(path: Path, export: Export) -> tuple[str, ...]:
    """Write a state dict; what it cannot say, as notes.

    ``.safetensors`` gives safetensors, any other name torch.save's archive.

    Raises
    ------
    WeightsError
        PyTorch's modules cannot hold a layer: names every layer and option.
    LstmCliError
        The file cannot be written. An older file stays as it was.
    """
    check_layers(export.layers)
    stacks = _stacks(export.layers)
    safetensors = path.suffix.lower() == ".safetensors"
    # Sorted by name, a head behind a flatten could as well be a layer in front.
    flat = any(isinstance(spec, FlattenSpec) for spec in export.layers)
    names = _names(stacks, is_numbered_before=safetensors and flat)
    tensors: dict[str, Array] = {}
    for stack, name in zip(stacks, names, strict=True):
        tensors |= {f"{name}.{key}": value for key, value in _module(stack, export.tensors)}
    if safetensors:
        from safetensors.numpy import save

        data = sort_metadata(save(tensors, {"format": "pt", "producer": SIGNATURE}))
    else:
        data = write_archive(tensors)
    write_whole(path, data, "the weights")
    return tuple(_notes(export, dict(zip(names, stacks, strict=True))))


def _stacks(layers: tuple[LayerSpec, ...]) -> list[ModuleLayers]:
    """Recurrent layers that follow one another and are alike are one module's."""
    stacks: list[ModuleLayers] = []
    open_stack = False
    for spec in layers:
        if isinstance(spec, DropoutSpec):
            continue
        if isinstance(spec, RecurrentSpec):
            last = stacks[-1][-1] if open_stack else None
            if isinstance(last, RecurrentSpec) and are_alike(last, spec):
                stacks[-1].append(spec)
            else:
                stacks.append([spec])
        elif isinstance(spec, DenseSpec):
            stacks.append([spec])
        open_stack = isinstance(spec, RecurrentSpec)
    return stacks


def _names(stacks: list[ModuleLayers], *, is_numbered_before: bool) -> list[str]:
    """``lstm`` and ``head`` for the plainest network; else numbers, as nn.ModuleList has them."""
    kinds = [stack[0].kind for stack in stacks]
    plain = len(kinds) == 1 or (len(kinds) == 2 and kinds[0] != "dense" and kinds[1] == "dense")
    if plain and not is_numbered_before:
        return ["head" if kind == "dense" else kind for kind in kinds]
    return [str(k) for k in range(len(kinds))]


def _module(stack: ModuleLayers, tensors: Mapping[str, Array]) -> list[tuple[str, Array]]:
    first = stack[0]
    if isinstance(first, DenseSpec):
        own = first.parameters().items()
        return [(parameter.name, _plain(tensors[name])) for name, parameter in own]
    return [
        (f"{stem}_l{k}" + ("_reverse" if direction else ""), value)
        for k, spec in enumerate(stack)
        if isinstance(spec, RecurrentSpec)
        for direction in range(spec.directions)
        for stem, value in _direction(spec, direction, tensors)
    ]


def _direction(
    spec: RecurrentSpec, direction: int, tensors: Mapping[str, Array]
) -> list[tuple[str, Array]]:
    """In PyTorch's order; the one bias of an lstm or rnn as (b, 0)."""
    prefix, cell = spec.prefix(direction), spec.cells[direction]
    own = {name: _plain(tensors[prefix + name]) for name in cell.tensor_names}
    if "bias" in own:
        own["bias_ih"] = own.pop("bias")
        own["bias_hh"] = np.zeros_like(own["bias_ih"])
    if isinstance(cell, LSTM) and not cell.use_forget_gate:
        _open_forget_gate(own)
    order = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    return [(stem, own[stem]) for stem in order if stem in own]


def _open_forget_gate(own: dict[str, Array]) -> None:
    """A gate that is always 1: c = c + i g, as the LSTM before 2000 has it."""
    at = NATIVE_GATES["lstm"].index("f")
    for stem in ("weight_ih", "weight_hh", "bias_ih"):
        own[stem] = own[stem].copy()
        np.split(own[stem], len(NATIVE_GATES["lstm"]))[at][...] = (
            OPEN_GATE_BIAS if stem == "bias_ih" else 0
        )


def _plain(value: Array) -> Array:
    return np.ascontiguousarray(value, np.asarray(value).dtype.newbyteorder("="))


def _notes(export: Export, modules: Mapping[str, ModuleLayers]) -> list[str]:
    """What the state dict leaves to the code that loads it."""
    layers = {spec.index: name for name, stack in modules.items() for spec in stack}
    notes = []
    for spec in export.layers:
        where = f"layer {spec.index}" + (f" ({layers[spec.index]})" if spec.index in layers else "")
        if isinstance(spec, DenseSpec) and spec.activation != Activation("identity"):
            notes.append(f"{where}: its activation {spec.activation_name} is not stored")
        if isinstance(spec, FlattenSpec):
            notes.append(f"{where}: flatten is not stored: torch.flatten(x, 1)")
        if isinstance(spec, DropoutSpec):
            notes.append(f"{where}: dropout is not stored; it changes no output")
        if isinstance(spec, RecurrentSpec):
            notes += [f"{where}: {note}" for note in _recurrent_notes(spec)]
    return notes


def _recurrent_notes(spec: RecurrentSpec) -> list[str]:
    cell = spec.cells[0]
    notes = []
    if spec.kind == "rnn" and cell.activation != TANH:
        notes.append(f"nn.RNN needs nonlinearity={str(cell.activation)!r}")
    if not spec.return_sequences:
        what = "the last valid step"
        if spec.directions == 2:
            what = "the final states of both directions (h_n), not the last step (y[:, -1])"
        notes.append(f"return_sequences: false is not stored: take {what}")
    if spec.stateful:
        notes.append("stateful is not stored: hand the states on yourself")
    if isinstance(cell, LSTM) and not cell.use_forget_gate:
        notes.append(
            f"forget_gate: false is written as a forget gate that is 1 (bias {OPEN_GATE_BIAS:g})"
        )
    return notes


_MODULES = {"lstm": "nn.LSTM", "gru": "nn.GRU", "rnn": "nn.RNN"}
_RELU = Activation("relu")


def check_layers(layers: tuple[LayerSpec, ...]) -> None:
    """Raise WeightsError naming every layer and option that PyTorch's modules lack."""
    problems = [
        Problem(
            f"{_MODULES[spec.kind]} cannot hold layer {spec.index} ({spec.kind}): it has {option}",
            expected=expected,
            found=found,
            hint="ONNX holds it: --to onnx",
        )
        for spec in layers
        if isinstance(spec, RecurrentSpec)
        for option, expected, found in _misfits(spec)
    ]
    if problems:
        raise WeightsError(problems)


def _misfits(spec: RecurrentSpec) -> Iterator[tuple[str, str, str]]:
    """Option, what the module has instead, and what the layer has."""
    for cell in dict.fromkeys(spec.cells):
        yield from _of_any(cell)
        if isinstance(cell, LSTM):
            yield from _of_lstm(cell)
        if isinstance(cell, GRU) and not cell.reset_after:
            yield "another reset", "reset_after: true", "reset_after: false"
    if len({cell.activation for cell in spec.cells}) > 1:
        found = ", ".join(str(cell.activation) for cell in spec.cells)
        yield "two activations", "one for both directions", f"activation: {found}"


def _of_any(cell: Cell) -> Iterator[tuple[str, str, str]]:
    if cell.clip is not None:
        yield "a clip", "none", f"clip: {cell.clip:g}"
    allowed = (TANH, _RELU) if isinstance(cell, RNN) else (TANH,)
    if cell.activation not in allowed:
        words = " or ".join(map(str, allowed))
        yield "another activation", words, f"activation: {cell.activation}"
    if not isinstance(cell, RNN) and cell.recurrent_activation != SIGMOID:
        found = f"recurrent_activation: {cell.recurrent_activation}"
        yield "another activation", "sigmoid", found


def _of_lstm(cell: LSTM) -> Iterator[tuple[str, str, str]]:
    if cell.cell_activation != TANH:
        yield "another activation", "tanh", f"cell_activation: {cell.cell_activation}"
    if cell.peepholes:
        yield "peepholes", "none", "peepholes: true"
    if cell.coupled_input_forget:
        yield "coupled gates", "a forget gate of its own", "coupled_input_forget: true"
    if cell.projection_size is not None and cell.projection_size >= cell.hidden_size:
        found = f"projection_size: {cell.projection_size}"
        yield "a wide projection", f"fewer features than {cell.hidden_size}", found


def are_alike(first: RecurrentSpec, second: RecurrentSpec) -> bool:
    """Whether one module can hold both, as two of its layers."""
    return first.cells == second.cells


FOLDER = "archive"
ALIGNMENT = 64
"""Each member's bytes begin at a multiple of this, so that PyTorch can map them."""
_HEADER = 30
_PADDING = 0x4246


def write_archive(tensors: Mapping[str, Array]) -> bytes:
    """The file: a pickle, the byte order, the values of each tensor, the format's version."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, buffer, "data.pkl", pickle_state_dict(tensors))
        _add(archive, buffer, "byteorder", b"little")
        for k, value in enumerate(tensors.values()):
            values = value.astype(value.dtype.newbyteorder("<"), copy=False)
            _add(archive, buffer, f"data/{k}", values.tobytes())
        _add(archive, buffer, "version", b"3\n")
    return buffer.getvalue()


def _add(archive: zipfile.ZipFile, buffer: io.BytesIO, name: str, data: bytes) -> None:
    """A member whose date, mode and system say nothing about where it was written."""
    member = zipfile.ZipInfo(f"{FOLDER}/{name}")
    member.create_system = 3
    member.external_attr = 0o644 << 16
    start = buffer.tell() + _HEADER + len(member.filename) + 4
    padding = -start % ALIGNMENT
    member.extra = struct.pack("<HH", _PADDING, padding) + bytes(padding)
    archive.writestr(member, data)


_STORAGES = {"float32": "FloatStorage", "float64": "DoubleStorage"}


def pickle_state_dict(tensors: Mapping[str, Array]) -> bytes:
    """An OrderedDict of tensors, contiguous ones whose values are in storages 0, 1, 2, ..."""
    memo: dict[str, int] = {}
    parts = [b"\x80\x02", _named(memo, "collections", "OrderedDict"), b")R("]
    for k, (name, value) in enumerate(tensors.items()):
        parts += [_text(name), _tensor(memo, str(k), value)]
    return b"".join([*parts, b"u."])


def _tensor(memo: dict[str, int], key: str, value: Array) -> bytes:
    """``_rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())``."""
    strides = tuple(step // value.itemsize for step in value.strides)
    storage = _named(memo, "torch", _STORAGES[str(value.dtype)])
    parts = [
        _named(memo, "torch._utils", "_rebuild_tensor_v2"),
        b"((", _text("storage"), storage, _text(key), _text("cpu"), _integer(value.size), b"tQ",
        _integer(0), _sizes(value.shape), _sizes(strides), b"\x89",
        _named(memo, "collections", "OrderedDict"), b")R", b"tR",
    ]  # fmt: skip
    return b"".join(parts)


def _named(memo: dict[str, int], module: str, name: str) -> bytes:
    """A class or function: by name the first time (GLOBAL, BINPUT), by memo then (BINGET)."""
    if name in memo:
        return b"h" + bytes([memo[name]])
    memo[name] = len(memo)
    return f"c{module}\n{name}\n".encode() + b"q" + bytes([memo[name]])


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integer(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _sizes(sizes: tuple[int, ...]) -> bytes:
    """A tuple of at most two integers."""
    ends = {1: b"\x85", 2: b"\x86"}
    return b"".join(map(_integer, sizes)) + ends[len(sizes)]
