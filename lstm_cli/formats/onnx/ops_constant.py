"""Constant folding: operators whose inputs are stored tensors, shapes and open sizes.

`fold` runs the rule of an operator from the table `RULES`. A rule takes the node and the arrays
of its inputs, and returns one array or a list of arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.formats.onnx import proto
from lstm_cli.formats.onnx.node import DTYPES, GraphNode, known_sizes
from lstm_cli.formats.onnx.sizes import (
    OpenSize,
    OpenSizeError,
    size_array,
    size_equals,
    size_exceeds,
)
from lstm_cli.formats.onnx.symbolic import ConstantTensor, Origin, UnsupportedError, count_axes

Rule: TypeAlias = Callable[[GraphNode, Sequence[Any]], Any]

_VIEW_OPERATORS = frozenset(
    {"Identity", "Dropout", "Shape", "Size", "ConstantOfShape", "Expand", "Slice", "Gather"}
    | {"Unsqueeze", "Squeeze", "Transpose", "Split"}
)
"""Operators that do not read all values of a constant."""
_COUNTING_OPERATORS = frozenset({"Shape", "Size", "ReduceSum", "ReduceProd", "MatMul"})
"""Operators whose result depends on how often equal entries repeat along an axis."""
PRODUCTS_PER_NUMBER = 64
"""Multiplications of a matrix product that take as long as reading one number."""


def fold(node: GraphNode) -> list[ConstantTensor] | None:
    """Outputs of an operator on constants; None if the operator has no rule.

    Raises
    ------
    UnsupportedError
        The operator cannot be computed for these inputs.
    """
    rule = RULES.get(node.op)
    if rule is None:
        return None
    inputs = node.inputs
    constants = [value for value in inputs if isinstance(value, ConstantTensor)]
    arrays = [value.array if isinstance(value, ConstantTensor) else None for value in inputs]
    open_as_one = any(value.open_as_one for value in constants)
    if open_as_one and node.op in _COUNTING_OPERATORS:
        raise OpenSizeError("it counts along an axis of open size")
    if node.op not in _VIEW_OPERATORS:
        node.bounded_shape([max((value.array.size for value in constants), default=0)])
    outputs = rule(node, arrays)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    results = [_without_objects(array) for array in outputs]
    new_bytes = sum(_new_bytes(array, constants) for array in results)
    node.budget.spend(byte_count=new_bytes, where=node.where)
    origins = _origins(constants)
    change = _change_of(node.op, constants)
    open_as_one = open_as_one or _leaves_size_as_one(node, arrays)
    return [ConstantTensor(array, origins, change, open_as_one) for array in results]


def _new_bytes(array: Array, constants: Sequence[ConstantTensor]) -> int:
    """Bytes that an array adds to the memory of the constants, 0 if it is a view of one."""
    if any(np.may_share_memory(array, constant.array) for constant in constants):
        return 0
    if not array.size:
        return 0
    extents = [(n - 1) * abs(stride) for n, stride in zip(array.shape, array.strides, strict=True)]
    return int(array.itemsize + sum(extents))


def _leaves_size_as_one(node: GraphNode, arrays: Sequence[Any]) -> bool:
    """True if an axis of open size has size 1 in the array of the result."""
    shape = {"ConstantOfShape": 0, "Expand": 1}.get(node.op)
    return shape is not None and arrays[shape].dtype == object


def _origins(constants: Sequence[ConstantTensor]) -> tuple[Origin, ...]:
    origins: dict[Origin, None] = {}
    for constant in constants:
        origins.update(dict.fromkeys(constant.origins))
        if len(origins) > 8:
            break
    return tuple(origins)[:8]


def _change_of(op: str, constants: Sequence[ConstantTensor]) -> str:
    if not constants or op in ("Identity", "Unsqueeze", "Squeeze", "Dropout"):
        return constants[0].change if constants else ""
    if op == "Transpose" and constants[0].change in ("", "transposed"):
        return "" if constants[0].change else "transposed"
    return "computed"


def _without_objects(value: Any) -> Array:
    """Convert an array of dtype object to int64 unless it holds open sizes."""
    array: Array = np.asarray(value)
    if array.dtype != object:
        return array
    if any(isinstance(item, OpenSize) for item in array.flat):
        return array
    return array.astype(np.int64)


def _cast(node: GraphNode, arrays: Sequence[Any]) -> Any:
    array, to = arrays[0], node.attributes["to"]
    if array.dtype == object:
        return array
    if to == proto.BFLOAT16:
        raise UnsupportedError("it casts to bfloat16")
    return array.astype(np.float32 if to == proto.FLOAT16 else DTYPES[to], copy=False)


def _shape_of_constant(node: GraphNode, arrays: Sequence[Any]) -> Any:
    return size_array(arrays[0].shape)[node.attributes.get("start", 0) : node.attributes.get("end")]


def _constant_of_shape(node: GraphNode, arrays: Sequence[Any]) -> Any:
    tensor = node.tensor("value")
    value = np.zeros(1, np.float32) if tensor is None else tensor.reshape(-1)
    if value.size != 1:
        raise UnsupportedError(f"its value holds {value.size} numbers instead of one")
    return np.broadcast_to(value, node.bounded_shape(_sizes(node, 0)))


def _sizes(node: GraphNode, k: int) -> tuple[int, ...]:
    """Input `k` as a shape, with 1 for open sizes."""
    sizes = node.whole_numbers(k) or []
    return tuple(1 if isinstance(n, OpenSize) else max(n, 0) for n in sizes)


def _expand(node: GraphNode, arrays: Sequence[Any]) -> Any:
    return np.broadcast_to(arrays[0], node.bounded_shape(arrays[0].shape, _sizes(node, 1)))


def _slice(node: GraphNode, arrays: Sequence[Any]) -> Any:
    array = arrays[0]
    index = [slice(None)] * array.ndim
    for axis, start, stop, step in node.slices(array.ndim):
        index[axis] = clamp_slice(start, stop, step, array.shape[axis])
    return array[tuple(index)]


def clamp_slice(start: int, stop: int, step: int, size: int) -> slice:
    """Convert ONNX's slice of an axis of `size` to a Python slice."""
    if step == 0:
        raise UnsupportedError("its slice has step 0")
    low, high = (0, size) if step > 0 else (-1, size - 1)
    first = min(max(start + size if start < 0 else start, 0), high)
    last = min(max(stop + size if stop < 0 else stop, low), size)
    if stop < -size:
        last = low
    return slice(first, None if last < 0 else last, step)


def _gather(node: GraphNode, arrays: Sequence[Any]) -> Any:
    array = arrays[0]
    axis = node.axis(array.ndim)
    indices = node.integers(1)
    node.bounded_shape((*array.shape[:axis], *indices.shape, *array.shape[axis + 1 :]))
    return np.take(array, indices.astype(np.int64), axis=axis)


def _concat(node: GraphNode, arrays: Sequence[Any]) -> Any:
    node.bounded_shape([sum(array.size for array in arrays)])
    return np.concatenate(arrays, axis=node.axis(arrays[0].ndim))


def _squeeze(node: GraphNode, arrays: Sequence[Any]) -> Any:
    axes = node.axes(1)
    return np.squeeze(arrays[0], None if axes is None else tuple(axes))


def _reshape(node: GraphNode, arrays: Sequence[Any]) -> Any:
    array = arrays[0]
    shape = known_sizes(node.whole_numbers(1) or [])
    if not node.flag("allowzero"):
        shape = [array.shape[k] if n == 0 else n for k, n in enumerate(shape)]
    return array.reshape(shape)


def _div(node: GraphNode, arrays: Sequence[Any]) -> Any:
    one, other = arrays[:2]
    if object in (one.dtype, other.dtype):
        return _elementwise(_truncated_quotient)(node, arrays)
    node.bounded_shape(one.shape, other.shape)
    if one.dtype.kind not in "iu":
        return one / other
    if not other.all():
        raise UnsupportedError("it divides by 0")
    quotient = np.abs(one) // np.abs(other)
    return np.where((one < 0) == (other < 0), quotient, -quotient)


def _truncated_quotient(a: Any, b: Any) -> Any:
    """Quotient of two sizes, rounded toward 0."""
    if isinstance(a, OpenSize):
        return a.divided(b)
    if isinstance(b, OpenSize):
        raise OpenSizeError("it divides a number by an open size")
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def _elementwise(function: Callable[[Any, Any], Any]) -> Rule:
    """Rule of a binary function of Python numbers and open sizes, which NumPy cannot compute."""

    def rule(node: GraphNode, arrays: Sequence[Any]) -> Any:
        shape = node.bounded_shape(*(array.shape for array in arrays[:2]))
        one, other = (np.broadcast_to(array, shape) for array in arrays[:2])
        pairs = zip(one.reshape(-1).tolist(), other.reshape(-1).tolist(), strict=True)
        items = [function(a, b) for a, b in pairs]
        result = np.empty(len(items), object)
        result[:] = items
        return result.reshape(one.shape)

    return rule


def _arithmetic(function: Callable[..., Any]) -> Rule:
    """Rule of a binary NumPy function, applied from the first input to the last."""

    def rule(node: GraphNode, arrays: Sequence[Any]) -> Any:
        node.bounded_shape(*(array.shape for array in arrays))
        result = arrays[0]
        for array in arrays[1:]:
            result = function(result, array)
        return result

    return rule


def _mod(node: GraphNode, arrays: Sequence[Any]) -> Any:
    """Mod with the sign of the divisor, or with fmod=1 of the dividend."""
    return _arithmetic(np.fmod if node.flag("fmod") else np.mod)(node, arrays)


def _comparison(plain: Callable[..., Any], open_: Callable[[Any, Any], bool]) -> Rule:
    """Rule of a comparison: `plain` for arrays of numbers, `open_` for open sizes."""

    def rule(node: GraphNode, arrays: Sequence[Any]) -> Any:
        if object not in (arrays[0].dtype, arrays[1].dtype):
            node.bounded_shape(*(array.shape for array in arrays))
            return plain(arrays[0], arrays[1])
        return _elementwise(open_)(node, arrays).astype(bool)

    return rule


def _where(node: GraphNode, arrays: Sequence[Any]) -> Any:
    node.bounded_shape(*(array.shape for array in arrays))
    return np.where(arrays[0].astype(bool), arrays[1], arrays[2])


def _range(node: GraphNode, arrays: Sequence[Any]) -> Any:
    start, stop, step = (array.reshape(-1)[0] for array in arrays)
    if any(isinstance(item, OpenSize) for item in (start, stop, step)):
        raise OpenSizeError("it makes a range of an open size")
    if not step:
        raise UnsupportedError("its range has step 0")
    node.bounded_shape([max(0, int((stop - start) / step) + 1)])
    return np.arange(start, stop, step)


def _split(node: GraphNode, arrays: Sequence[Any]) -> Any:
    axis = node.axis(arrays[0].ndim)
    return np.split(arrays[0], node.split_points(arrays[0].shape[axis]), axis)


def _flatten(node: GraphNode, arrays: Sequence[Any]) -> Any:
    array, axis = arrays[0], node.attributes["axis"]
    axis = axis + array.ndim if axis < 0 else axis
    return array.reshape(int(np.prod(array.shape[:axis])), -1)


def _tile(node: GraphNode, arrays: Sequence[Any]) -> Any:
    repeats = known_sizes(node.whole_numbers(1) or [])
    if len(repeats) != arrays[0].ndim:
        axes = count_axes(arrays[0].ndim)
        raise UnsupportedError(f"its repeats are {repeats}, for a tensor of {axes}")
    node.bounded_shape([n * max(k, 0) for n, k in zip(arrays[0].shape, repeats, strict=True)])
    return np.tile(arrays[0], repeats)


def _reduction(function: Callable[..., Any]) -> Rule:
    """Rule of a NumPy reduction over the axes of the node."""

    def rule(node: GraphNode, arrays: Sequence[Any]) -> Any:
        axes, keep = node.axes(1), node.flag("keepdims")
        if not arrays[0].ndim or (axes is None and node.flag("noop_with_empty_axes")):
            return arrays[0]
        return function(arrays[0], axis=None if axes is None else tuple(axes), keepdims=keep)

    return rule


def _matmul(node: GraphNode, arrays: Sequence[Any]) -> Any:
    one, other = arrays[:2]
    if not one.ndim or not other.ndim or one.shape[-1] != other.shape[-2:][0]:
        raise UnsupportedError(f"it multiplies tensors of shape {one.shape} and {other.shape}")
    rows, columns = one.shape[-2:-1], other.shape[-1:] if other.ndim > 1 else ()
    outer = np.broadcast_shapes(one.shape[:-2], other.shape[:-2])
    shape = node.bounded_shape((*outer, *rows, *columns))
    products = math.prod(shape) * one.shape[-1]
    numbers = products // (PRODUCTS_PER_NUMBER if one.dtype.kind == "f" else 1)
    node.budget.spend(numbers=numbers, where=node.where)
    return one @ other


RULES: Mapping[str, Rule] = {
    "Identity": lambda node, arrays: arrays[0],
    "Dropout": lambda node, arrays: arrays[0],
    "Cast": _cast,
    "Shape": _shape_of_constant,
    "Size": lambda node, arrays: np.int64(arrays[0].size),
    "ConstantOfShape": _constant_of_shape,
    "Expand": _expand,
    "Slice": _slice,
    "Gather": _gather,
    "Concat": _concat,
    "Unsqueeze": lambda node, arrays: np.expand_dims(arrays[0], tuple(node.axes(1) or ())),
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": lambda node, arrays: np.transpose(arrays[0], node.attributes.get("perm")),
    "Split": _split,
    "Tile": _tile,
    "Range": _range,
    "Where": _where,
    "Add": _arithmetic(lambda a, b: a + b),
    "Sub": _arithmetic(lambda a, b: a - b),
    "Mul": _arithmetic(lambda a, b: a * b),
    "Div": _div,
    "Mod": _mod,
    "Pow": _arithmetic(np.power),
    "Min": _arithmetic(np.minimum),
    "Max": _arithmetic(np.maximum),
    "And": _arithmetic(np.logical_and),
    "Or": _arithmetic(np.logical_or),
    "Not": lambda node, arrays: ~arrays[0].astype(bool),
    "Neg": lambda node, arrays: -arrays[0],
    "Sqrt": lambda node, arrays: np.sqrt(arrays[0]),
    "Reciprocal": lambda node, arrays: 1 / arrays[0],
    "Abs": lambda node, arrays: np.abs(arrays[0]),
    "Floor": lambda node, arrays: np.floor(arrays[0]),
    "Ceil": lambda node, arrays: np.ceil(arrays[0]),
    "Equal": _comparison(lambda a, b: a == b, size_equals),
    "Greater": _comparison(lambda a, b: a > b, size_exceeds),
    "Less": _comparison(lambda a, b: a < b, lambda a, b: size_exceeds(b, a)),
    "GreaterOrEqual": _comparison(lambda a, b: a >= b, lambda a, b: not size_exceeds(b, a)),
    "LessOrEqual": _comparison(lambda a, b: a <= b, lambda a, b: not size_exceeds(a, b)),
    "ReduceProd": _reduction(np.prod),
    "ReduceSum": _reduction(np.sum),
    "ReduceMax": _reduction(np.max),
    "ReduceMin": _reduction(np.min),
    "MatMul": _matmul,
}
"""Rule of each operator that `fold` can compute."""
