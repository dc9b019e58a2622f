"""ONNX's messages, as far as a network needs them; numbers are those of ``onnx.proto``."""

# ruff: noqa: RUF009 -- `single` and `array` declare fields, as dataclasses.field does

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lstm_cli.formats.onnx.message import Message, array, listed, single

UNDEFINED, FLOAT, UINT8, INT8, UINT16, INT16, INT32, INT64 = range(8)
STRING, BOOL, FLOAT16, DOUBLE, UINT32, UINT64 = range(8, 14)
BFLOAT16 = 16
"""``TensorProto.DataType``."""

A_FLOAT, A_INT, A_STRING, A_TENSOR, A_GRAPH, A_FLOATS, A_INTS, A_STRINGS = range(1, 9)
"""``AttributeProto.AttributeType``."""

EXTERNAL = 1
"""``TensorProto.data_location`` of values in a file of their own."""


@dataclass(frozen=True)
class Property(Message):
    """A key and its value (``StringStringEntryProto``)."""

    key: str = single(1, "text", "")
    value: str = single(2, "text", "")


@dataclass(frozen=True)
class Tensor(Message):
    """Values with a shape (``TensorProto``)."""

    dims: tuple[int, ...] = listed(1, "int")
    data_type: int = single(2, "int", 0)
    segment: memoryview | None = single(3, "bytes")
    float_data: Any = array(4, "<f4")
    int32_data: Any = array(5, "<i8")
    string_data: tuple[memoryview, ...] = listed(6, "bytes")
    int64_data: Any = array(7, "<i8")
    name: str = single(8, "text", "")
    raw_data: memoryview | bytes | None = single(9, "bytes")
    double_data: Any = array(10, "<f8")
    uint64_data: Any = array(11, "<i8")
    external_data: tuple[Property, ...] = listed(13, lambda: Property)
    data_location: int = single(14, "int", 0)


@dataclass(frozen=True)
class Dimension(Message):
    """A size, a name for one, or neither (``TensorShapeProto.Dimension``)."""

    value: int | None = single(1, "int")
    name: str | None = single(2, "text")


@dataclass(frozen=True)
class Shape(Message):
    """Sizes (``TensorShapeProto``)."""

    dims: tuple[Dimension, ...] = listed(1, lambda: Dimension)


@dataclass(frozen=True)
class TensorType(Message):
    """Element type and shape (``TypeProto.Tensor``)."""

    element: int = single(1, "int", 0)
    shape: Shape | None = single(2, lambda: Shape)


@dataclass(frozen=True)
class Type(Message):
    """A value's type (``TypeProto``): a tensor's, or one of the others."""

    tensor: TensorType | None = single(1, lambda: TensorType)
    sequence: memoryview | None = single(4, "bytes")
    map: memoryview | None = single(5, "bytes")
    sparse: memoryview | None = single(8, "bytes")
    optional: memoryview | None = single(9, "bytes")

    @property
    def other(self) -> str | None:
        """The type's name where it is no tensor; None: it is one, or is left open."""
        names = {"sequence": "sequence", "map": "map", "sparse": "sparse tensor"}
        names |= {"optional": "optional"}
        found = (word for field, word in names.items() if getattr(self, field) is not None)
        return next(found, None)


@dataclass(frozen=True)
class ValueInfo(Message):
    """Name and type of a value (``ValueInfoProto``)."""

    name: str = single(1, "text", "")
    type: Type | None = single(2, lambda: Type)


@dataclass(frozen=True)
class Attribute(Message):
    """A named constant of a node (``AttributeProto``); which field holds it, `type` says."""

    name: str = single(1, "text", "")
    f: float | None = single(2, "float")
    i: int | None = single(3, "int")
    s: memoryview | bytes | None = single(4, "bytes")
    t: Tensor | None = single(5, lambda: Tensor)
    g: Graph | None = single(6, lambda: Graph)
    floats: tuple[float, ...] = listed(7, "float")
    ints: tuple[int, ...] = listed(8, "int")
    strings: tuple[memoryview | bytes, ...] = listed(9, "bytes")
    type: int = single(20, "int", 0)
    reference: str = single(21, "text", "")
    sparse: memoryview | None = single(22, "bytes")


@dataclass(frozen=True)
class Node(Message):
    """One operation (``NodeProto``)."""

    inputs: tuple[str, ...] = listed(1, "text")
    outputs: tuple[str, ...] = listed(2, "text")
    name: str = single(3, "text", "")
    op_type: str = single(4, "text", "")
    attributes: tuple[Attribute, ...] = listed(5, lambda: Attribute)
    domain: str = single(7, "text", "")
    overload: str = single(8, "text", "")


@dataclass(frozen=True)
class Graph(Message):
    """Operations in an order in which they can be done (``GraphProto``)."""

    nodes: tuple[Node, ...] = listed(1, lambda: Node)
    name: str = single(2, "text", "")
    initializers: tuple[Tensor, ...] = listed(5, lambda: Tensor)
    inputs: tuple[ValueInfo, ...] = listed(11, lambda: ValueInfo)
    outputs: tuple[ValueInfo, ...] = listed(12, lambda: ValueInfo)
    value_infos: tuple[ValueInfo, ...] = listed(13, lambda: ValueInfo)
    sparse_initializers: tuple[memoryview, ...] = listed(15, "bytes")


@dataclass(frozen=True)
class OperatorSet(Message):
    """Which version of a domain's operators is meant (``OperatorSetIdProto``)."""

    domain: str = single(1, "text", "")
    version: int = single(2, "int", 0)


@dataclass(frozen=True)
class Function(Message):
    """Operations that a node of its name and domain stands for (``FunctionProto``)."""

    name: str = single(1, "text", "")
    inputs: tuple[str, ...] = listed(4, "text")
    outputs: tuple[str, ...] = listed(5, "text")
    attribute_names: tuple[str, ...] = listed(6, "text")
    nodes: tuple[Node, ...] = listed(7, lambda: Node)
    operator_sets: tuple[OperatorSet, ...] = listed(9, lambda: OperatorSet)
    domain: str = single(10, "text", "")
    attribute_defaults: tuple[Attribute, ...] = listed(11, lambda: Attribute)
    overload: str = single(13, "text", "")


@dataclass(frozen=True)
class Model(Message):
    """A file (``ModelProto``)."""

    ir_version: int = single(1, "int", 0)
    producer_name: str = single(2, "text", "")
    producer_version: str = single(3, "text", "")
    domain: str = single(4, "text", "")
    graph: Graph | None = single(7, lambda: Graph)
    operator_sets: tuple[OperatorSet, ...] = listed(8, lambda: OperatorSet)
    metadata: tuple[Property, ...] = listed(14, lambda: Property)
    functions: tuple[Function, ...] = listed(25, lambda: Function)
