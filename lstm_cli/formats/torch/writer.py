"""Writer of a network as a state dict, in torch.save's archive or in safetensors.

The archive is written here opcode by opcode, so that equal tensors give equal bytes.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import assert_never

import numpy as np

from lstm_cli.cells import Activation
from lstm_cli.cells.activations import TANH
from lstm_cli.engines.types import (
    Array,
    DenseSpec,
    DropoutSpec,
    FlattenSpec,
    RecurrentSpec,
)
from lstm_cli.errors import WeightsError
from lstm_cli.formats.capabilities import StorableLayer, problems, storable_layers
from lstm_cli.formats.gates import OPEN_GATE_BIAS, lacks_forget_gate, open_forget_gate
from lstm_cli.formats.interchange import Export
from lstm_cli.formats.native import sort_metadata
from lstm_cli.output_files import SIGNATURE, write_atomically

ModuleLayers = list[RecurrentSpec | DenseSpec]
"""Layers of one module: equal recurrent layers in a row, or one dense layer."""


def write(path: Path, export: Export) -> tuple[str, ...]:
    """Write a state dict; the notes name everything that it cannot hold.

    ``.safetensors`` gives safetensors, any other name torch.save's archive.

    Raises
    ------
    WeightsError
        PyTorch's modules lack options of some layers; the error names each of them.
    LstmCliError
        The file cannot be written. An older file is kept.
    """
    layers = storable_layers(export.layers)
    if refusals := problems("pytorch", layers):
        raise WeightsError(refusals)
    groups = _group_layers(layers)
    safetensors = path.suffix.lower() == ".safetensors"
    # In a sorted file, a head behind a flatten could also be the first layer.
    flat = any(isinstance(spec, FlattenSpec) for spec in layers)
    names = _names(groups, is_numbered_before=safetensors and flat)
    tensors: dict[str, Array] = {}
    for group, name in zip(groups, names, strict=True):
        tensors |= {f"{name}.{key}": value for key, value in _module_tensors(group, export.tensors)}
    if safetensors:
        from safetensors.numpy import save

        data = sort_metadata(save(tensors, {"format": "pt", "producer": SIGNATURE}))
    else:
        data = write_archive(tensors)
    write_atomically(path, data, "the weights")
    return tuple(_notes(layers, dict(zip(names, groups, strict=True))))


def _group_layers(layers: tuple[StorableLayer, ...]) -> list[ModuleLayers]:
    """Group equal recurrent layers in a row, which become one module."""
    groups: list[ModuleLayers] = []
    continues = False
    for spec in layers:
        match spec:
            case RecurrentSpec():
                last = groups[-1][-1] if continues else None
                if isinstance(last, RecurrentSpec) and are_alike(last, spec):
                    groups[-1].append(spec)
                else:
                    groups.append([spec])
                continues = True
            case DenseSpec():
                groups.append([spec])
                continues = False
            case FlattenSpec():
                continues = False
            case DropoutSpec():
                pass
            case _:
                assert_never(spec)
    return groups


def _names(groups: list[ModuleLayers], *, is_numbered_before: bool) -> list[str]:
    # Numbers are the names in an nn.ModuleList.
    kinds = [group[0].kind for group in groups]
    plain = len(kinds) == 1 or (len(kinds) == 2 and kinds[0] != "dense" and kinds[1] == "dense")
    if plain and not is_numbered_before:
        return ["head" if kind == "dense" else kind for kind in kinds]
    return [str(k) for k in range(len(kinds))]


def _module_tensors(group: ModuleLayers, tensors: Mapping[str, Array]) -> list[tuple[str, Array]]:
    first = group[0]
    if isinstance(first, DenseSpec):
        parameters = first.parameters().items()
        return [(parameter.name, _contiguous(tensors[name])) for name, parameter in parameters]
    return [
        (f"{stem}_l{k}" + ("_reverse" if direction else ""), value)
        for k, spec in enumerate(group)
        if isinstance(spec, RecurrentSpec)
        for direction in range(spec.directions)
        for stem, value in _direction_tensors(spec, direction, tensors)
    ]


def _direction_tensors(
    spec: RecurrentSpec, direction: int, tensors: Mapping[str, Array]
) -> list[tuple[str, Array]]:
    """Tensors of one direction in PyTorch's order, with the bias of an lstm or rnn as (b, 0)."""
    prefix, cell = spec.prefix(direction), spec.cells[direction]
    cell_tensors = {name: _contiguous(tensors[prefix + name]) for name in cell.tensor_names}
    if lacks_forget_gate(cell):
        cell_tensors = open_forget_gate(cell_tensors)
    if "bias" in cell_tensors:
        cell_tensors["bias_ih"] = cell_tensors.pop("bias")
        cell_tensors["bias_hh"] = np.zeros_like(cell_tensors["bias_ih"])
    order = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    return [(stem, cell_tensors[stem]) for stem in order if stem in cell_tensors]


def _contiguous(value: Array) -> Array:
    return np.ascontiguousarray(value, np.asarray(value).dtype.newbyteorder("="))


def _notes(layers: tuple[StorableLayer, ...], modules: Mapping[str, ModuleLayers]) -> list[str]:
    """Notes on facts that the code around the state dict must supply."""
    titles = {spec.index: f" ({name})" for name, group in modules.items() for spec in group}
    notes = []
    for spec in layers:
        where = f"layer {spec.index}{titles.get(spec.index, '')}"
        match spec:
            case RecurrentSpec():
                notes += [f"{where}: {note}" for note in _recurrent_notes(spec)]
            case DenseSpec():
                if spec.activation != Activation("identity"):
                    notes.append(f"{where}: its activation {spec.activation_name} is not stored")
            case FlattenSpec():
                notes.append(f"{where}: flatten is not stored: torch.flatten(x, 1)")
            case DropoutSpec():
                notes.append(f"{where}: dropout is not stored; it changes no output")
            case _:
                assert_never(spec)
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
        notes.append("stateful is not stored: pass the states from call to call yourself")
    if lacks_forget_gate(cell):
        notes.append(
            f"forget_gate: false is written as a forget gate that is 1 (bias {OPEN_GATE_BIAS:g})"
        )
    return notes


def are_alike(first: RecurrentSpec, second: RecurrentSpec) -> bool:
    """Whether one module can hold both layers."""
    return first.cells == second.cells


FOLDER = "archive"
ALIGNMENT = 64
"""Alignment of each member in bytes, so that PyTorch can map the file into memory."""
_LOCAL_HEADER_BYTES = 30
_PADDING_FIELD = 0x4246


def write_archive(tensors: Mapping[str, Array]) -> bytes:
    """Bytes of an archive: a pickle, the byte order, the values of each tensor, the version."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        _add_member(archive, buffer, "data.pkl", pickle_state_dict(tensors))
        _add_member(archive, buffer, "byteorder", b"little")
        for k, value in enumerate(tensors.values()):
            values = value.astype(value.dtype.newbyteorder("<"), copy=False)
            _add_member(archive, buffer, f"data/{k}", values.tobytes())
        _add_member(archive, buffer, "version", b"3\n")
    return buffer.getvalue()


def _add_member(archive: zipfile.ZipFile, buffer: io.BytesIO, name: str, data: bytes) -> None:
    """Add a member with a fixed date, mode and system, so that the bytes repeat."""
    member = zipfile.ZipInfo(f"{FOLDER}/{name}")
    member.create_system = 3
    member.external_attr = 0o644 << 16
    start = buffer.tell() + _LOCAL_HEADER_BYTES + len(member.filename) + 4
    padding = -start % ALIGNMENT
    member.extra = struct.pack("<HH", _PADDING_FIELD, padding) + bytes(padding)
    archive.writestr(member, data)


_STORAGES = {"float32": "FloatStorage", "float64": "DoubleStorage"}


def pickle_state_dict(tensors: Mapping[str, Array]) -> bytes:
    """Pickle an OrderedDict of contiguous tensors with values in storages 0, 1, 2, ...

    The opcodes are those of torch.save in protocol 2.
    """
    memo: dict[str, int] = {}
    parts = [b"\x80\x02", _global_opcodes(memo, "collections", "OrderedDict"), b")R("]
    for k, (name, value) in enumerate(tensors.items()):
        parts += [_text_opcodes(name), _tensor_opcodes(memo, str(k), value)]
    return b"".join([*parts, b"u."])


def _tensor_opcodes(memo: dict[str, int], key: str, value: Array) -> bytes:
    # _rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict())
    strides = tuple(step // value.itemsize for step in value.strides)
    storage_class = _global_opcodes(memo, "torch", _STORAGES[str(value.dtype)])
    storage = [
        _text_opcodes("storage"),
        storage_class,
        _text_opcodes(key),
        _text_opcodes("cpu"),
        _integer_opcodes(value.size),
    ]
    parts = [
        _global_opcodes(memo, "torch._utils", "_rebuild_tensor_v2"),
        b"((",
        *storage,
        b"tQ",
        _integer_opcodes(0),
        _tuple_opcodes(value.shape),
        _tuple_opcodes(strides),
        b"\x89",
        _global_opcodes(memo, "collections", "OrderedDict"),
        b")R",
        b"tR",
    ]
    return b"".join(parts)


def _global_opcodes(memo: dict[str, int], module: str, name: str) -> bytes:
    # By name the first time (GLOBAL, BINPUT), later by memo (BINGET).
    if name in memo:
        return b"h" + bytes([memo[name]])
    memo[name] = len(memo)
    return f"c{module}\n{name}\n".encode() + b"q" + bytes([memo[name]])


def _text_opcodes(text: str) -> bytes:
    data = text.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def _integer_opcodes(value: int) -> bytes:
    if value < 2**31:
        return b"J" + struct.pack("<i", value)
    return b"\x8a\x08" + struct.pack("<q", value)


def _tuple_opcodes(sizes: tuple[int, ...]) -> bytes:
    # The tuple has one or two integers.
    ends = {1: b"\x85", 2: b"\x86"}
    return b"".join(map(_integer_opcodes, sizes)) + ends[len(sizes)]
