"""ONNX's operator specification: inputs, attributes, gate orders and activation names.

The table repeats ONNX's specification, operator by operator and opset by opset; a test compares
every row with the onnx package. A wrong attribute or number of inputs is an error, as in ONNX
Runtime. If lstm-cli ignored a wrong attribute, the default would silently replace it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lstm_cli.errors import WeightsError, counted
from lstm_cli.formats.gates import ONNX_GATES
from lstm_cli.formats.onnx.proto import OnnxAttribute, OnnxNode, quote_name
from lstm_cli.formats.onnx.symbolic import UnsupportedError

RECURRENT_OPERATORS = frozenset(kind.upper() for kind in ONNX_GATES)

ACTIVATION_NAMES = {
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "relu": "Relu",
    "affine": "Affine",
    "elu": "Elu",
    "hard_sigmoid": "HardSigmoid",
    "leaky_relu": "LeakyRelu",
    "scaled_tanh": "ScaledTanh",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "thresholded_relu": "ThresholdedRelu",
}
"""Activations of ONNX's recurrent operators: lstm-cli's name to ONNX's name."""
NATIVE_ACTIVATIONS = {name.lower(): native for native, name in ACTIVATION_NAMES.items()}
"""ONNX's name in lower case to lstm-cli's name; ONNX ignores the case of activation names."""

NEWEST = 28
"""Newest opset that the table was checked against."""

ANY_NUMBER = 1 << 30
"""Maximum number of inputs of a variadic operator."""

_UNARY = (
    "Abs", "Ceil", "Exp", "Floor", "Identity", "Neg", "Not", "Reciprocal", "Relu", "Sigmoid",
    "Size", "Softplus", "Softsign", "Sqrt", "Tanh",
)  # fmt: skip
_BINARY = (
    "Add", "And", "Div", "Equal", "Greater", "Less", "MatMul", "Mul", "Or", "PRelu", "Pow", "Sub",
    "Tile",
)  # fmt: skip
_CELL = (
    "activation_alpha:floats activation_beta:floats activations:strings clip:float "
    "direction:string=forward hidden_size:int"
)
_REDUCED = "keepdims:int=1 noop_with_empty_axes:int=0"
_OLD_REDUCED = "axes:ints keepdims:int=1"
_NORM = "epsilon:float=1e-05 momentum:float=0.9"
_GEMM = "alpha:float=1.0 beta:float=1.0 transA:int=0 transB:int=0"
_VALUES = (
    "sparse_value:sparse_tensor value:tensor value_float:float value_floats:floats "
    "value_int:int value_ints:ints value_string:string value_strings:strings"
)

_TABLE: Mapping[str, tuple[str, ...]] = {
    "LSTM": (
        f"7 3-8 {_CELL} input_forget:int=0",
        f"14 3-8 {_CELL} input_forget:int=0 layout:int=0",
    ),
    "GRU": (
        f"7 3-6 {_CELL} linear_before_reset:int=0",
        f"14 3-6 {_CELL} layout:int=0 linear_before_reset:int=0",
    ),
    "RNN": (f"7 3-6 {_CELL}", f"14 3-6 {_CELL} layout:int=0"),
    "If": ("7 1-1 else_branch:graph! then_branch:graph!",),
    "Constant": (
        "7 0-0 value:tensor!",
        "11 0-0 sparse_value:sparse_tensor value:tensor",
        f"12 0-0 {_VALUES}",
    ),
    "ConstantOfShape": ("9 1-1 value:tensor",),
    "Cast": (
        "7 1-1 to:int!",
        "19 1-1 saturate:int=1 to:int!",
        "24 1-1 round_mode:string=up saturate:int=1 to:int!",
    ),
    "Dropout": ("7 1-1 ratio:float=0.5", "12 1-3 seed:int"),
    "BatchNormalization": (
        f"7 5-5 {_NORM} spatial:int=1",
        f"9 5-5 {_NORM}",
        f"14 5-5 {_NORM} training_mode:int=0",
    ),
    "Clip": ("7 1-1 max:float=3.4028235e+38 min:float=-3.4028235e+38", "11 1-3"),
    "Gemm": (f"7 3-3 {_GEMM}", f"11 2-3 {_GEMM}"),
    "Softmax": ("7 1-1 axis:int=1", "13 1-1 axis:int=-1"),
    "Elu": ("7 1-1 alpha:float=1.0",),
    "HardSigmoid": ("7 1-1 alpha:float=0.2 beta:float=0.5",),
    "LeakyRelu": ("7 1-1 alpha:float=0.01",),
    "ThresholdedRelu": ("7 1-1 alpha:float=1.0",),
    "Selu": ("7 1-1 alpha:float=1.6732631921768188 gamma:float=1.0507010221481323",),
    "Concat": ("7 1-n axis:int!",),
    "Flatten": ("7 1-1 axis:int=1",),
    "Gather": ("7 2-2 axis:int=0",),
    "Transpose": ("7 1-1 perm:ints",),
    "Reshape": ("7 2-2", "14 2-2 allowzero:int=0"),
    "Shape": ("7 1-1", "15 1-1 end:int start:int=0"),
    "Slice": ("7 1-1 axes:ints ends:ints! starts:ints!", "10 3-5"),
    "Split": (
        "7 1-1 axis:int=0 split:ints",
        "13 1-2 axis:int=0",
        "18 1-2 axis:int=0 num_outputs:int",
    ),
    "Squeeze": ("7 1-1 axes:ints", "13 1-2"),
    "Unsqueeze": ("7 1-1 axes:ints!", "13 2-2"),
    "ReverseSequence": ("10 2-2 batch_axis:int=1 time_axis:int=0",),
    "ReduceSum": (f"7 1-1 {_OLD_REDUCED}", f"13 1-2 {_REDUCED}"),
    **dict.fromkeys(
        ("ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd"),
        (f"7 1-1 {_OLD_REDUCED}", f"18 1-2 {_REDUCED}"),
    ),
    "Mod": ("10 2-2 fmod:int=0",),
    "Range": ("11 3-3", "27 3-3 stash_type:int=1"),
    "Where": ("9 3-3",),
    "Expand": ("8 2-2",),
    **dict.fromkeys(("GreaterOrEqual", "LessOrEqual"), ("12 2-2",)),
    **dict.fromkeys(("Max", "Min"), ("7 1-n",)),
    **dict.fromkeys(_UNARY, ("7 1-1",)),
    **dict.fromkeys(_BINARY, ("7 2-2",)),
}
"""Rows of each operator: first opset, minimum and maximum number of inputs, attributes.

An attribute is ``name:type``, with ``=default``, or with ``!`` if it is required.
"""

_FIELDS = {
    "float": "f",
    "int": "i",
    "string": "s",
    "tensor": "t",
    "graph": "g",
    "floats": "floats",
    "ints": "ints",
    "strings": "strings",
    "sparse_tensor": "sparse",
}
"""Field of the protobuf message that holds a value of each type."""
_TYPES = {
    0: "undefined", 1: "float", 2: "int", 3: "string", 4: "tensor", 5: "graph", 6: "floats",
    7: "ints", 8: "strings", 9: "tensors", 10: "graphs", 11: "sparse_tensor", 12: "sparse_tensors",
    13: "type_proto", 14: "type_protos",
}  # fmt: skip
_EMPTY: Mapping[str, Any] = {"float": 0.0, "int": 0, "string": b""}
"""Values that proto3 writers omit because they are zero."""


@dataclass(frozen=True)
class AttributeSchema:
    """Type of an attribute, its default (None: no default), and whether it is required."""

    type: str
    default: Any
    required: bool


@dataclass(frozen=True)
class OperatorSchema:
    """Number of inputs and attributes of an operator."""

    min_inputs: int
    max_inputs: int
    attributes: Mapping[str, AttributeSchema]


def _parse_attribute(text: str) -> AttributeSchema:
    name, _, default = text.rstrip("!").partition("=")
    convert = {"float": float, "int": int}.get(name, str)
    return AttributeSchema(name, convert(default) if default else None, text.endswith("!"))


def _parse_row(row: str) -> tuple[int, OperatorSchema]:
    since, inputs, *attributes = row.split()
    min_inputs, max_inputs = inputs.split("-")
    pairs = (text.split(":", 1) for text in attributes)
    kinds = {name: _parse_attribute(text) for name, text in pairs}
    return int(since), OperatorSchema(
        int(min_inputs), ANY_NUMBER if max_inputs == "n" else int(max_inputs), kinds
    )


SCHEMAS: Mapping[str, tuple[tuple[int, OperatorSchema], ...]] = {
    op: tuple(_parse_row(row) for row in rows) for op, rows in _TABLE.items()
}
"""Schemas of each operator with the first opset of each, oldest first."""


_UNSUPPORTED = {
    "a convolution": ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "DeformConv"),
    "pooling": ("MaxPool", "AveragePool", "LpPool", "GlobalMaxPool", "GlobalAveragePool",
                "GlobalLpPool"),
    "attention": ("Attention", "MultiHeadAttention", "GroupQueryAttention"),
    "normalization": ("LayerNormalization", "SkipLayerNormalization", "InstanceNormalization",
                      "GroupNormalization", "RMSNormalization", "LpNormalization", "LRN"),
    "a loop": ("Loop", "Scan"),
    "quantized arithmetic": ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear",
                             "MatMulInteger", "DynamicQuantizeLSTM", "DynamicQuantizeMatMul"),
}  # fmt: skip
_DESCRIPTIONS = {op: description for description, ops in _UNSUPPORTED.items() for op in ops}


def unsupported_reason(node: OnnxNode) -> str | None:
    """Reason why lstm-cli cannot read a node of this operator; None if the operator is known."""
    if node.op_type in SCHEMAS:
        return None
    description = _DESCRIPTIONS.get(node.op_type)
    if description is None:
        return "it is an operator that lstm-cli does not know"
    verb = "is" if description.startswith("a ") else "does"
    return f"it {verb} {description}, for which lstm-cli has no layer"


def schema_of(op: str, opset: int) -> OperatorSchema | None:
    """Schema of an operator in an opset; None for an operator that lstm-cli does not know.

    Raises
    ------
    UnsupportedError
        The operator is newer than the opset.
    """
    rows = [schema for since, schema in SCHEMAS.get(op, ()) if since <= opset]
    if not rows and op in SCHEMAS:
        first = SCHEMAS[op][0][0]
        raise UnsupportedError(f"opset {opset} has no such operator; opset {first} is the first")
    return rows[-1] if rows else None


def node_title(node: OnnxNode) -> str:
    """Format a node for errors: its name (or first output) and operator."""
    name = next((name for name in (node.name, *node.outputs) if name), None)
    operator = quote_name(node.op_type)
    return f"a {operator}" if name is None else f"node {quote_name(name)} ({operator})"


def resolve_attributes(
    node: OnnxNode, scope: Mapping[str, OnnxAttribute | None]
) -> dict[str, OnnxAttribute]:
    """Attributes of a node by name; references become the enclosing function's attributes.

    Parameters
    ----------
    scope
        Attributes of the enclosing function by name; None for an omitted attribute.

    Raises
    ------
    WeightsError
        An attribute occurs twice, or refers to an attribute that the function does not have.
    """
    attributes: dict[str, OnnxAttribute | None] = {}
    for attribute in node.attributes:
        if attribute.name in attributes:
            raise _attribute_error(node, attribute.name, "one attribute of this name", "two")
        attributes[attribute.name] = attribute
        if attribute.reference:
            attributes[attribute.name] = _referenced_attribute(node, attribute, scope)
    return {name: attribute for name, attribute in attributes.items() if attribute is not None}


def _referenced_attribute(
    node: OnnxNode, attribute: OnnxAttribute, scope: Mapping[str, OnnxAttribute | None]
) -> OnnxAttribute | None:
    if attribute.reference not in scope:
        raise _attribute_error(
            node,
            attribute.name,
            "an attribute of the enclosing function",
            f"a reference to {quote_name(attribute.reference)}, which it does not have",
        )
    if any(_is_set(attribute, field) for field in _FIELDS.values()):
        raise _attribute_error(node, attribute.name, "a value or a reference", "both")
    value = scope[attribute.reference]
    return None if value is None else replace(value, name=attribute.name)


def read_attributes(
    node: OnnxNode, attributes: Mapping[str, OnnxAttribute], schema: OperatorSchema
) -> dict[str, Any]:
    """Attribute values as numbers, strings, lists and messages, with defaults filled in.

    Raises
    ------
    WeightsError
        An attribute is unknown, missing, or of another type than the operator's.
    """
    values = {
        name: kind.default for name, kind in schema.attributes.items() if kind.default is not None
    }
    for name, attribute in attributes.items():
        kind = schema.attributes.get(name)
        if kind is not None:
            values[name] = _value(node, attribute, kind.type)
        elif not name.startswith("__"):  # ONNX reserves such names for runtimes
            known = ", ".join(schema.attributes) or "none"
            expected = f"one of this operator's attributes: {known}"
            raise _attribute_error(node, name, expected, quote_name(name))
    for name, kind in schema.attributes.items():
        if kind.required and name not in attributes:
            raise _attribute_error(node, name, f"a value of type {kind.type.upper()}", "none")
    return values


def _value(node: OnnxNode, attribute: OnnxAttribute, expected: str) -> Any:
    """Value of an attribute, which must have the expected type and only that field set."""
    type_name = _TYPES.get(attribute.type, str(attribute.type))
    if type_name != expected:
        raise _attribute_error(
            node, attribute.name, f"type {expected.upper()}", f"type {type_name.upper()}"
        )
    field = _FIELDS[expected]
    fields = [(name, other) for name, other in _FIELDS.items() if other != field]
    others = [name for name, other in fields if _is_set(attribute, other)]
    value = getattr(attribute, field)
    if others or (value is None and expected not in _EMPTY):
        values = " and ".join(f"a value of type {name.upper()}" for name in others) or "no value"
        raise _attribute_error(node, attribute.name, f"a value of type {expected.upper()}", values)
    value = _EMPTY[expected] if value is None else value
    if expected == "string":
        return _text(node, attribute.name, value)
    if expected == "strings":
        return [_text(node, attribute.name, item) for item in value]
    return list(value) if isinstance(value, tuple) else value


def _is_set(attribute: OnnxAttribute, field: str) -> bool:
    return getattr(attribute, field) not in (None, ())


def _text(node: OnnxNode, name: str, data: Any) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise _attribute_error(node, name, "UTF-8", "other bytes") from None


def check_inputs(node: OnnxNode, count: int, schema: OperatorSchema) -> None:
    """Check the number of inputs of an operator.

    Raises
    ------
    WeightsError
        The node has too few or too many inputs, as an operator of another opset would.
    """
    low, high = schema.min_inputs, schema.max_inputs
    if low <= count <= high:
        return
    if low == high:
        expected = counted(low, "input")
    else:
        expected = f"{low} inputs or more" if high == ANY_NUMBER else f"{low} to {high} inputs"
    raise WeightsError(
        f"{node_title(node)} has a number of inputs that its operator does not take in the "
        "model's opset",
        expected=expected,
        found=str(count),
    )


def _attribute_error(node: OnnxNode, name: str, expected: str, attributes: str) -> WeightsError:
    return WeightsError(
        f"{node_title(node)}: its attribute {quote_name(name)} cannot be read",
        expected=expected,
        found=attributes,
    )
