"""Protobuf codec and the messages of an ONNX file, in bounded memory.

The file has three layers, bottom to top. The wire format converts bytes to fields and back.
`Message` converts fields to a frozen dataclass and back. ONNX's messages have the field numbers of
``onnx.proto``. A field is a key (number and wire type) and a value: a varint, four or eight bytes,
or a length and that many bytes. The decoder never allocates memory from a declared length.
"""

# ruff: noqa: RUF009 -- field declarations are calls, as dataclasses.field is

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np

from lstm_cli.engines.types import Array

Raw: TypeAlias = "int | memoryview"
"""A field's stored value: the number of a varint, or the bytes of any other wire type."""

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
"""Wire types of protobuf."""

_MAX_VARINT_BYTES = 10  # a varint of 64 bits
_CHUNK_BYTES = 1 << 16  # packed varints decoded at once; each needs 40 bytes of scratch memory
_MASK = (1 << 64) - 1


class WireError(ValueError):
    """The bytes are not a protobuf message."""


def read_fields(data: memoryview) -> Iterator[tuple[int, int, Raw]]:
    """Yield the number, wire type and value of each field of a message.

    Raises
    ------
    WireError
        The message is cut short, or has an unknown wire type.
    """
    offset, end = 0, len(data)
    while offset < end:
        key, offset = read_varint(data, offset)
        number, wire_type = key >> 3, key & 7
        if number == 0:
            raise WireError("a field has the number 0")
        value: Raw
        if wire_type == VARINT:
            value, offset = read_varint(data, offset)
        else:
            size, offset = _value_extent(data, offset, wire_type)
            if size > end - offset:
                rest = end - offset
                raise WireError(f"field {number} has {size:,} bytes, but only {rest:,} follow")
            value, offset = data[offset : offset + size], offset + size
        yield number, wire_type, value


def _value_extent(data: memoryview, offset: int, wire_type: int) -> tuple[int, int]:
    if wire_type == LENGTH_DELIMITED:
        return read_varint(data, offset)
    if wire_type in (FIXED32, FIXED64):
        return (4 if wire_type == FIXED32 else 8), offset
    raise WireError(f"a field has wire type {wire_type}, which protobuf does not define")


def read_varint(data: memoryview, offset: int) -> tuple[int, int]:
    """Decode an unsigned number of up to 64 bits; also return the offset of the next value."""
    if offset < len(data) and data[offset] < 0x80:
        return data[offset], offset + 1
    value = 0
    for k, byte in enumerate(data[offset : offset + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << (7 * k)
        if byte < 0x80:
            return value & _MASK, offset + k + 1
    raise WireError("a number is cut short or longer than 64 bits")


def to_signed(value: int) -> int:
    """Reinterpret an unsigned 64-bit number as int64, as protobuf's int32 and int64 are stored."""
    return value - (1 << 64) if value >> 63 else value


def read_packed_varints(data: memoryview) -> Array:
    """Decode a run of packed varints as int64, in chunks of `_CHUNK_BYTES`.

    Raises
    ------
    WireError
        The run is cut short, or a number is longer than 64 bits.
    """
    octets = np.frombuffer(data, np.uint8)
    if octets.size and octets[-1] >= 0x80:
        raise WireError("packed numbers are cut short")
    parts, offset = [np.zeros(0, np.int64)], 0
    while offset < octets.size:
        stop = min(offset + _CHUNK_BYTES, octets.size)
        if octets[stop - 1] >= 0x80:  # the last varint continues after the chunk
            ahead = octets[stop : stop + _MAX_VARINT_BYTES] < 0x80
            if not ahead.any():
                raise WireError("a packed number is longer than 64 bits")
            stop += int(np.argmax(ahead)) + 1
        parts.append(_decode_whole_varints(octets[offset:stop]))
        offset = stop
    return np.concatenate(parts)


def _decode_whole_varints(octets: Array) -> Array:
    """Decode varints from bytes that end with a complete varint."""
    ends = np.flatnonzero(octets < 0x80)
    if ends.size == octets.size:
        return octets.astype(np.int64)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MAX_VARINT_BYTES:
        raise WireError("a packed number is longer than 64 bits")
    values = np.zeros(ends.size, np.uint64)
    for k in range(int(lengths.max())):
        has = lengths > k
        septet = (octets[starts[has] + k] & 0x7F).astype(np.uint64)
        values[has] |= septet << np.uint64(7 * k)
    return values.view(np.int64)


def read_packed_numbers(data: memoryview, dtype: str) -> Array:
    """View packed numbers of fixed width, such as ``<f4``, without a copy.

    Raises
    ------
    WireError
        The byte count is not a multiple of the width.
    """
    width = np.dtype(dtype).itemsize
    if len(data) % width:
        raise WireError(f"{len(data):,} bytes do not divide into numbers of {width} bytes")
    return np.frombuffer(data, dtype)


def encode_varint(value: int) -> bytes:
    """Encode a number of up to 64 bits; a negative number is encoded as int64."""
    value &= _MASK
    octets = bytearray()
    while value >= 0x80:
        octets.append(value & 0x7F | 0x80)
        value >>= 7
    octets.append(value)
    return bytes(octets)


def encode_value(number: int, wire_type: int, value: Any) -> bytes:
    """Encode one field: an int, a float (four bytes), or bytes with a length prefix."""
    key = encode_varint(number << 3 | wire_type)
    if wire_type == VARINT:
        return key + encode_varint(int(value))
    if wire_type == FIXED32:
        return key + struct.pack("<f", value)
    return key + encode_varint(len(value)) + bytes(value)


MAX_DEPTH = 40
"""Largest depth of nested messages. Only hostile files nest graphs more deeply."""
MAX_PARTS = 1_000_000
"""Largest number of fields and list items of a file.

Two bytes of a file may need a hundred bytes of memory.
"""
MESSAGE_COST, ARRAY_COST = 6, 3
"""Parts counted for each message and each packed array, in proportion to the decoding time."""

FieldKind: TypeAlias = "str | Callable[[], type[Message]]"
"""Type of a field: ``int``, ``float``, ``text``, ``bytes``, the dtype of an array, or a function
that returns the message class."""

_WIRE_TYPES = {"int": VARINT, "float": FIXED32, "text": LENGTH_DELIMITED, "bytes": LENGTH_DELIMITED}


@dataclass(frozen=True)
class FieldSpec:
    """Number, type and cardinality of a field."""

    number: int
    kind: FieldKind
    is_repeated: bool
    is_packed: bool = False


def single(number: int, kind: FieldKind, default: Any = None) -> Any:
    """Declare a field with one value; a value equal to `default` is not written."""
    return dataclasses.field(default=default, metadata={"spec": FieldSpec(number, kind, False)})


def repeated(number: int, kind: FieldKind) -> Any:
    """Declare a repeated field: a tuple."""
    return dataclasses.field(default=(), metadata={"spec": FieldSpec(number, kind, True)})


def packed(number: int, dtype: str) -> Any:
    """Declare a field of packed numbers: an array of `dtype` (``<i8``: varints), or None."""
    spec = FieldSpec(number, dtype, False, is_packed=True)
    return dataclasses.field(default=None, metadata={"spec": spec})


class PartBudget:
    """Parts (fields, messages, list items) that the decoder may still read."""

    def __init__(self, parts: int = MAX_PARTS) -> None:
        self.parts_left = parts

    def spend(self, parts: int) -> None:
        """Count decoded parts.

        Raises
        ------
        WireError
            The file has too many parts.
        """
        self.parts_left -= parts
        if self.parts_left < 0:
            raise WireError(f"more than {MAX_PARTS:,} parts")


@dataclass(frozen=True)
class Message:
    """Base of all protobuf messages; the dataclass fields declare number and type."""

    @classmethod
    def decode(cls, data: memoryview, budget: PartBudget | None = None, depth: int = 0) -> Self:
        """Decode `data`; fields that the class does not declare are skipped.

        Raises
        ------
        WireError
            The message is malformed, nested too deep, or has too many parts.
        """
        if depth > MAX_DEPTH:
            raise WireError(f"messages are nested more than {MAX_DEPTH} deep")
        budget = budget or PartBudget()
        budget.spend(MESSAGE_COST)
        specs, values = _field_specs(cls), dict[str, Any]()
        for number, wire_type, raw in read_fields(data):
            budget.spend(1)
            if number not in specs:
                continue
            name, spec = specs[number]
            if spec.is_packed:
                budget.spend(ARRAY_COST)
                values.setdefault(name, []).append(_numbers(spec.kind, wire_type, raw))
            elif spec.is_repeated:
                values.setdefault(name, []).extend(
                    _list_items(spec.kind, wire_type, raw, budget, depth)
                )
            else:
                values[name] = _value(spec.kind, wire_type, raw, budget, depth)
        return cls(**{name: _finished(value) for name, value in values.items()})

    def encode(self) -> bytes:
        """Encode the message as bytes."""
        parts: list[bytes] = []
        for field in dataclasses.fields(self):
            spec, value = field.metadata["spec"], getattr(self, field.name)
            if spec.is_packed:
                parts += [] if value is None else [_encode_packed(spec, value)]
            elif spec.is_repeated:
                parts += [_encode_field(spec, item) for item in value]
            elif value is not None and value != field.default:
                parts.append(_encode_field(spec, value))
        return b"".join(parts)


_FIELD_SPECS: dict[type, Mapping[int, tuple[str, FieldSpec]]] = {}


def _field_specs(cls: type[Message]) -> Mapping[int, tuple[str, FieldSpec]]:
    if cls not in _FIELD_SPECS:
        specs = {field.name: field.metadata["spec"] for field in dataclasses.fields(cls)}
        _FIELD_SPECS[cls] = {spec.number: (name, spec) for name, spec in specs.items()}
    return _FIELD_SPECS[cls]


def _finished(value: Any) -> Any:
    if not isinstance(value, list):
        return value
    if value and isinstance(value[0], np.ndarray):
        return np.concatenate(value) if len(value) > 1 else value[0]
    return tuple(value)


def _list_items(
    kind: FieldKind, wire_type: int, raw: Raw, budget: PartBudget, depth: int
) -> list[Any]:
    if kind in ("int", "float") and wire_type == LENGTH_DELIMITED:
        numbers = _numbers("<i8" if kind == "int" else "<f4", wire_type, raw)
        budget.spend(numbers.size)
        return list(numbers.tolist())
    return [_value(kind, wire_type, raw, budget, depth)]


def _numbers(kind: FieldKind, wire_type: int, raw: Raw) -> Any:
    """Decode a packed array; a single unpacked number becomes an array of size 1."""
    if isinstance(raw, int):
        return np.array([to_signed(raw)], np.int64)
    if kind == "<i8":
        if wire_type != LENGTH_DELIMITED:
            raise WireError("an integer field has another wire type")
        return read_packed_varints(raw)
    return read_packed_numbers(raw, str(kind))


def _value(kind: FieldKind, wire_type: int, raw: Raw, budget: PartBudget, depth: int) -> Any:
    expected = _WIRE_TYPES[kind] if isinstance(kind, str) else LENGTH_DELIMITED
    if wire_type != expected:
        raise WireError("the wire type of a field does not fit the type of the field")
    if isinstance(raw, int):
        return to_signed(raw)
    if callable(kind):
        return kind().decode(raw, budget, depth + 1)
    if kind == "float":
        return float(struct.unpack("<f", raw)[0])
    return _text(raw) if kind == "text" else raw


def _text(raw: memoryview) -> str:
    try:
        return str(raw, "utf-8")
    except UnicodeDecodeError:
        raise WireError("a name is not UTF-8") from None


def _encode_field(spec: FieldSpec, value: Any) -> bytes:
    if isinstance(value, Message):
        return encode_value(spec.number, LENGTH_DELIMITED, value.encode())
    if spec.kind == "text":
        value = value.encode()
    return encode_value(spec.number, _WIRE_TYPES[str(spec.kind)], value)


def _encode_packed(spec: FieldSpec, value: Any) -> bytes:
    if spec.kind == "<i8":
        data = b"".join(encode_varint(int(item)) for item in value)
    else:
        data = np.ascontiguousarray(value, str(spec.kind)).tobytes()
    return encode_value(spec.number, LENGTH_DELIMITED, data)


UNDEFINED, FLOAT, UINT8, INT8, UINT16, INT16, INT32, INT64 = range(8)
STRING, BOOL, FLOAT16, DOUBLE, UINT32, UINT64 = range(8, 14)
BFLOAT16 = 16
"""``TensorProto.DataType``."""

(
    ATTRIBUTE_FLOAT,
    ATTRIBUTE_INT,
    ATTRIBUTE_STRING,
    ATTRIBUTE_TENSOR,
    ATTRIBUTE_GRAPH,
    ATTRIBUTE_FLOATS,
    ATTRIBUTE_INTS,
    ATTRIBUTE_STRINGS,
) = range(1, 9)
"""``AttributeProto.AttributeType``."""

EXTERNAL = 1
"""``TensorProto.data_location`` of a tensor that is stored in a separate file."""


def quote_name(name: str) -> str:
    """Format a name from a file for an error or a note."""
    plain = bool(name) and name.isprintable() and " " not in name
    return name[:200] if plain else repr(name)[:200]


@dataclass(frozen=True)
class OnnxProperty(Message):
    """Key and value of a metadata entry (``StringStringEntryProto``)."""

    key: str = single(1, "text", "")
    value: str = single(2, "text", "")


@dataclass(frozen=True)
class OnnxTensor(Message):
    """Stored tensor: shape, data type and values (``TensorProto``)."""

    dims: tuple[int, ...] = repeated(1, "int")
    data_type: int = single(2, "int", 0)
    segment: memoryview | None = single(3, "bytes")
    float_data: Any = packed(4, "<f4")
    int32_data: Any = packed(5, "<i8")
    string_data: tuple[memoryview, ...] = repeated(6, "bytes")
    int64_data: Any = packed(7, "<i8")
    name: str = single(8, "text", "")
    raw_data: memoryview | bytes | None = single(9, "bytes")
    double_data: Any = packed(10, "<f8")
    uint64_data: Any = packed(11, "<i8")
    external_data: tuple[OnnxProperty, ...] = repeated(13, lambda: OnnxProperty)
    data_location: int = single(14, "int", 0)


@dataclass(frozen=True)
class OnnxDimension(Message):
    """Size of an axis, its symbolic name, or neither (``TensorShapeProto.Dimension``)."""

    value: int | None = single(1, "int")
    name: str | None = single(2, "text")


@dataclass(frozen=True)
class OnnxShape(Message):
    """Shape of a tensor (``TensorShapeProto``)."""

    dims: tuple[OnnxDimension, ...] = repeated(1, lambda: OnnxDimension)


@dataclass(frozen=True)
class OnnxTensorType(Message):
    """Element type and shape of a tensor (``TypeProto.Tensor``)."""

    element: int = single(1, "int", 0)
    shape: OnnxShape | None = single(2, lambda: OnnxShape)


@dataclass(frozen=True)
class OnnxType(Message):
    """Type of a graph value: a tensor, or one of ONNX's other types (``TypeProto``)."""

    tensor: OnnxTensorType | None = single(1, lambda: OnnxTensorType)
    sequence: memoryview | None = single(4, "bytes")
    map: memoryview | None = single(5, "bytes")
    sparse: memoryview | None = single(8, "bytes")
    optional: memoryview | None = single(9, "bytes")

    @property
    def non_tensor_kind(self) -> str | None:
        """Name of the type if it is not a tensor, else None."""
        names = {"sequence": "sequence", "map": "map", "sparse": "sparse tensor"}
        names |= {"optional": "optional"}
        return next((n for field, n in names.items() if getattr(self, field) is not None), None)


@dataclass(frozen=True)
class OnnxValueInfo(Message):
    """Name and type of a graph value (``ValueInfoProto``)."""

    name: str = single(1, "text", "")
    type: OnnxType | None = single(2, lambda: OnnxType)


@dataclass(frozen=True)
class OnnxAttribute(Message):
    """Named constant of a node (``AttributeProto``); `type` selects the field that holds it."""

    name: str = single(1, "text", "")
    f: float | None = single(2, "float")
    i: int | None = single(3, "int")
    s: memoryview | bytes | None = single(4, "bytes")
    t: OnnxTensor | None = single(5, lambda: OnnxTensor)
    g: OnnxGraph | None = single(6, lambda: OnnxGraph)
    floats: tuple[float, ...] = repeated(7, "float")
    ints: tuple[int, ...] = repeated(8, "int")
    strings: tuple[memoryview | bytes, ...] = repeated(9, "bytes")
    type: int = single(20, "int", 0)
    reference: str = single(21, "text", "")
    sparse: memoryview | None = single(22, "bytes")


@dataclass(frozen=True)
class OnnxNode(Message):
    """Operator with its inputs, outputs and attributes (``NodeProto``)."""

    inputs: tuple[str, ...] = repeated(1, "text")
    outputs: tuple[str, ...] = repeated(2, "text")
    name: str = single(3, "text", "")
    op_type: str = single(4, "text", "")
    attributes: tuple[OnnxAttribute, ...] = repeated(5, lambda: OnnxAttribute)
    domain: str = single(7, "text", "")
    overload: str = single(8, "text", "")


@dataclass(frozen=True)
class OnnxGraph(Message):
    """Nodes in topological order, with inputs, outputs and stored tensors (``GraphProto``)."""

    nodes: tuple[OnnxNode, ...] = repeated(1, lambda: OnnxNode)
    name: str = single(2, "text", "")
    initializers: tuple[OnnxTensor, ...] = repeated(5, lambda: OnnxTensor)
    inputs: tuple[OnnxValueInfo, ...] = repeated(11, lambda: OnnxValueInfo)
    outputs: tuple[OnnxValueInfo, ...] = repeated(12, lambda: OnnxValueInfo)
    value_infos: tuple[OnnxValueInfo, ...] = repeated(13, lambda: OnnxValueInfo)
    sparse_initializers: tuple[memoryview, ...] = repeated(15, "bytes")


@dataclass(frozen=True)
class OnnxOperatorSet(Message):
    """Domain and version of an operator set (``OperatorSetIdProto``)."""

    domain: str = single(1, "text", "")
    version: int = single(2, "int", 0)


@dataclass(frozen=True)
class OnnxFunction(Message):
    """Nodes that replace every node of the function's name and domain (``FunctionProto``)."""

    name: str = single(1, "text", "")
    inputs: tuple[str, ...] = repeated(4, "text")
    outputs: tuple[str, ...] = repeated(5, "text")
    attribute_names: tuple[str, ...] = repeated(6, "text")
    nodes: tuple[OnnxNode, ...] = repeated(7, lambda: OnnxNode)
    operator_sets: tuple[OnnxOperatorSet, ...] = repeated(9, lambda: OnnxOperatorSet)
    domain: str = single(10, "text", "")
    attribute_defaults: tuple[OnnxAttribute, ...] = repeated(11, lambda: OnnxAttribute)
    overload: str = single(13, "text", "")


@dataclass(frozen=True)
class OnnxModel(Message):
    """Root message of an ONNX file (``ModelProto``)."""

    ir_version: int = single(1, "int", 0)
    producer_name: str = single(2, "text", "")
    producer_version: str = single(3, "text", "")
    domain: str = single(4, "text", "")
    graph: OnnxGraph | None = single(7, lambda: OnnxGraph)
    operator_sets: tuple[OnnxOperatorSet, ...] = repeated(8, lambda: OnnxOperatorSet)
    metadata: tuple[OnnxProperty, ...] = repeated(14, lambda: OnnxProperty)
    functions: tuple[OnnxFunction, ...] = repeated(25, lambda: OnnxFunction)
