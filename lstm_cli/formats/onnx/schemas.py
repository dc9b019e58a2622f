"""Which inputs and attributes each operator takes in which opset, and reading them by that.

The table says what ONNX's operator specification says; a test compares every row with the onnx
package. A type, a name or a number of inputs that an operator does not have is refused, as ONNX
Runtime refuses it: passed over, it would leave a default in the place of what was meant.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from lstm_cli.errors import WeightsError
from lstm_cli.formats.onnx.messages import Attribute, Node
from lstm_cli.formats.onnx.tensors import quoted
from lstm_cli.formats.onnx.values import RefusedError

NEWEST = 28
"""Opset up to which the table is known to hold."""

MANY = 1 << 30
"""Inputs of an operator that takes any number of them."""

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
"""By operator, what holds from an opset on: inputs, least and most, and attributes.

An attribute is ``name:type``, with ``=default``, or ``!`` where it must be there.
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
"""Where a value of each type stands in the message."""
_TYPES = {
    0: "undefined", 1: "float", 2: "int", 3: "string", 4: "tensor", 5: "graph", 6: "floats",
    7: "ints", 8: "strings", 9: "tensors", 10: "graphs", 11: "sparse_tensor", 12: "sparse_tensors",
    13: "type_proto", 14: "type_protos",
}  # fmt: skip
_EMPTY: Mapping[str, Any] = {"float": 0.0, "int": 0, "string": b""}
"""What a value is that its writer left out for being zero, as protobuf's third version does."""


@dataclass(frozen=True)
class Kind:
    """An attribute's type; its default, None where there is none."""

    type: str
    default: Any
    required: bool


@dataclass(frozen=True)
class Schema:
    """What an operator takes."""

    least: int
    most: int
    attributes: Mapping[str, Kind]


def _kind(text: str) -> Kind:
    name, _, default = text.rstrip("!").partition("=")
    convert = {"float": float, "int": int}.get(name, str)
    return Kind(name, convert(default) if default else None, text.endswith("!"))


def _parsed(row: str) -> tuple[int, Schema]:
    since, inputs, *attributes = row.split()
    least, most = inputs.split("-")
    pairs = (text.split(":", 1) for text in attributes)
    kinds = {name: _kind(text) for name, text in pairs}
    return int(since), Schema(int(least), MANY if most == "n" else int(most), kinds)


SCHEMAS: Mapping[str, tuple[tuple[int, Schema], ...]] = {
    op: tuple(_parsed(row) for row in rows) for op, rows in _TABLE.items()
}
"""By operator, schemas with the opset from which each holds, oldest first."""


_KINDS = {
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
_WORDS = {op: word for word, ops in _KINDS.items() for op in ops}


def unread(node: Node) -> str | None:
    """What a node does that lstm-cli reads in no way, in words; None: it may be read."""
    if node.op_type in SCHEMAS:
        return None
    word = _WORDS.get(node.op_type)
    return (
        "it is an operator that lstm-cli does not know"
        if word is None
        else (
            f"it is {word}, for which lstm-cli has no layer"
            if word[:2] == "a "
            else f"it does {word}, for which lstm-cli has no layer"
        )
    )


def schema_of(op: str, opset: int) -> Schema | None:
    """An operator's schema in an opset; None for an operator that lstm-cli does not know."""
    rows = [schema for since, schema in SCHEMAS.get(op, ()) if since <= opset]
    if not rows and op in SCHEMAS:
        raise RefusedError(f"opset {opset} has no such operator; {SCHEMAS[op][0][0]} is the first")
    return rows[-1] if rows else None


def title(node: Node) -> str:
    """A node as errors name it."""
    names = [name for name in (node.name, *node.outputs) if name]
    return (
        f"node {quoted(names[0])} ({quoted(node.op_type)})"
        if names
        else f"a {quoted(node.op_type)}"
    )


def resolved(node: Node, scope: Mapping[str, Attribute | None]) -> dict[str, Attribute]:
    """A node's attributes by name, those of the function around it in the place of references.

    Parameters
    ----------
    scope
        Attributes of the function by name; None for one that is left out.

    Raises
    ------
    WeightsError
        One stands twice, or refers to what the function does not have.
    """
    found: dict[str, Attribute | None] = {}
    for attribute in node.attributes:
        if attribute.name in found:
            raise _refused(node, attribute.name, "it once", "it twice")
        found[attribute.name] = attribute
        if attribute.reference:
            found[attribute.name] = _referred(node, attribute, scope)
    return {name: attribute for name, attribute in found.items() if attribute is not None}


def _referred(
    node: Node, attribute: Attribute, scope: Mapping[str, Attribute | None]
) -> Attribute | None:
    if attribute.reference not in scope:
        raise _refused(
            node,
            attribute.name,
            "an attribute of the function around the node",
            f"a reference to {quoted(attribute.reference)}, which is none",
        )
    if any(_holds(attribute, field) for field in _FIELDS.values()):
        raise _refused(node, attribute.name, "a value or a reference", "both")
    value = scope[attribute.reference]
    return None if value is None else replace(value, name=attribute.name)


def read_attributes(node: Node, given: Mapping[str, Attribute], schema: Schema) -> dict[str, Any]:
    """An operator's attributes as numbers, texts, lists and messages; defaults filled in.

    Raises
    ------
    WeightsError
        One is unknown, of another type than the operator's, or missing.
    """
    found = {
        name: kind.default for name, kind in schema.attributes.items() if kind.default is not None
    }
    for name, attribute in given.items():
        kind = schema.attributes.get(name)
        if kind is not None:
            found[name] = _value(node, attribute, kind.type)
        elif not name.startswith("__"):  # names of a runtime's own, as the specification has it
            known = ", ".join(schema.attributes) or "none"
            raise _refused(node, name, f"one of this operator's attributes: {known}", "it")
    for name, kind in schema.attributes.items():
        if kind.required and name not in given:
            raise _refused(node, name, f"a value of type {kind.type.upper()}", "none")
    return found


def _value(node: Node, attribute: Attribute, expected: str) -> Any:
    """The value, which must be of the expected type, and nothing beside it."""
    type_name = _TYPES.get(attribute.type, str(attribute.type))
    if type_name != expected:
        raise _refused(
            node, attribute.name, f"type {expected.upper()}", f"type {type_name.upper()}"
        )
    field = _FIELDS[expected]
    others = [name for name, own in _FIELDS.items() if own != field and _holds(attribute, own)]
    value = getattr(attribute, field)
    if others or (value is None and expected not in _EMPTY):
        values = " and ".join(f"a value of type {name.upper()}" for name in others) or "no value"
        raise _refused(node, attribute.name, f"a value of type {expected.upper()}", values)
    value = _EMPTY[expected] if value is None else value
    if expected == "string":
        return _text(node, attribute.name, value)
    if expected == "strings":
        return [_text(node, attribute.name, item) for item in value]
    return list(value) if isinstance(value, tuple) else value


def _holds(attribute: Attribute, field: str) -> bool:
    return getattr(attribute, field) not in (None, ())


def _text(node: Node, name: str, data: Any) -> str:
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise _refused(node, name, "UTF-8", "other bytes") from None


def check_inputs(node: Node, count: int, schema: Schema) -> None:
    """Raise unless an operator may have so many inputs.

    Raises
    ------
    WeightsError
        Too few or too many: an operator of another opset.
    """
    if schema.least <= count <= schema.most:
        return
    most = "any number" if schema.most == MANY else str(schema.most)
    raise WeightsError(
        f"{title(node)} is not what its operator is in the model's opset",
        expected=f"{schema.least} inputs" + ("" if schema.least == schema.most else f" to {most}"),
        found=str(count),
    )


def _refused(node: Node, name: str, expected: str, found: str) -> WeightsError:
    return WeightsError(
        f"{title(node)}: its attribute {quoted(name)} cannot be read",
        expected=expected,
        found=found,
    )
