"""How each operator is calculated on constants: a rule takes the call and its arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.formats.onnx import messages as m
from lstm_cli.formats.onnx.calls import Call
from lstm_cli.formats.onnx.sizes import OpenSizeError, Size, exceeds, same, sized
from lstm_cli.formats.onnx.tensors import DTYPES

LARGEST = 1 << 26
"""Numbers of the largest tensor that is calculated and does not stand in the file."""


def _bounded(shape: Sequence[int]) -> tuple[int, ...]:
    count = 1
    for n in shape:
        count *= max(int(n), 0)
        if n < 0 or count > LARGEST:
            raise ValueError(f"a tensor of shape {tuple(shape)} is calculated")
    return tuple(int(n) for n in shape)


def _cast(call: Call, arrays: Sequence[Any]) -> Any:
    array, to = arrays[0], call.attributes["to"]
    if array.dtype == object:
        return array
    if to == m.BFLOAT16:
        raise ValueError("a cast to bfloat16")
    return array.astype(np.float32 if to == m.FLOAT16 else DTYPES[to], copy=False)


def _shape_of_constant(call: Call, arrays: Sequence[Any]) -> Any:
    if call.constant(0).stretched:
        raise OpenSizeError("the shape of a tensor of open size")
    return sized(arrays[0].shape)[call.attributes.get("start", 0) : call.attributes.get("end")]


def _filled(call: Call, arrays: Sequence[Any]) -> Any:
    given = call.tensor("value")
    value = np.zeros(1, np.float32) if given is None else given.reshape(-1)
    if value.size != 1:
        raise ValueError(f"its value holds {value.size} numbers in the place of one")
    return np.broadcast_to(value, _bounded(stretched_shape(arrays[0])))


def stretched_shape(sizes: Array) -> tuple[int, ...]:
    """A shape in which open sizes stand as 1."""
    return tuple(1 if isinstance(n, Size) else max(int(n), 0) for n in sizes.reshape(-1))


def _expand(call: Call, arrays: Sequence[Any]) -> Any:
    shape = stretched_shape(arrays[1])
    return np.broadcast_to(arrays[0], _bounded(np.broadcast_shapes(arrays[0].shape, shape)))


def _slice(call: Call, arrays: Sequence[Any]) -> Any:
    array = arrays[0]
    index = [slice(None)] * array.ndim
    for axis, start, stop, step in call.slices(array.ndim):
        index[axis] = clamped(start, stop, step, array.shape[axis])
    return array[tuple(index)]


def clamped(start: int, stop: int, step: int, size: int) -> slice:
    """ONNX's slice of an axis, as Python has it."""
    if step == 0:
        raise ValueError("a slice with step 0")
    low, high = (0, size) if step > 0 else (-1, size - 1)
    first = min(max(start + size if start < 0 else start, 0), high)
    last = min(max(stop + size if stop < 0 else stop, low), size)
    if stop < -size:
        last = low
    return slice(first, None if last < 0 else last, step)


def _gather(call: Call, arrays: Sequence[Any]) -> Any:
    array = arrays[0]
    axis = call.axis(array.ndim)
    indices = call.integers(1).astype(np.int64)
    _bounded((*array.shape[:axis], *indices.shape, *array.shape[axis + 1 :]))
    return np.take(array, indices, axis=axis)


def _concat(call: Call, arrays: Sequence[Any]) -> Any:
    _bounded([sum(array.size for array in arrays)])
    return np.concatenate(arrays, axis=call.axis(arrays[0].ndim))


def _unsqueeze(call: Call, arrays: Sequence[Any]) -> Any:
    axes = call.axes(1)
    return np.expand_dims(arrays[0], tuple(axes or ()))


def _squeeze(call: Call, arrays: Sequence[Any]) -> Any:
    axes = call.axes(1)
    return np.squeeze(arrays[0], None if axes is None else tuple(axes))


def _reshape(call: Call, arrays: Sequence[Any]) -> Any:
    array = arrays[0]
    shape = [int(n) for n in call.integers(1).reshape(-1)]
    if not call.flag("allowzero"):
        shape = [array.shape[k] if n == 0 else n for k, n in enumerate(shape)]
    return array.reshape(shape)


def _transpose(call: Call, arrays: Sequence[Any]) -> Any:
    return np.transpose(arrays[0], call.attributes.get("perm"))


def _divide(call: Call, arrays: Sequence[Any]) -> Any:
    one, other = arrays[:2]
    if object in (one.dtype, other.dtype):
        return _elementwise(lambda a, b: a.divided(b) if isinstance(a, Size) else _cut(a, b))(
            call, arrays
        )
    if one.dtype.kind in "iu":
        return _elementwise(_cut)(call, [one.astype(object), other.astype(object)])
    return one / other


def _cut(a: Any, b: Any) -> int:
    if isinstance(b, Size):
        raise OpenSizeError("a division by an open size")
    quotient = abs(int(a)) // abs(int(b))
    return quotient if (a < 0) == (b < 0) else -quotient


def _elementwise(function: Callable[[Any, Any], Any]) -> Callable[[Call, Sequence[Any]], Any]:
    def rule(call: Call, arrays: Sequence[Any]) -> Any:
        one, other = np.broadcast_arrays(*arrays[:2])
        found = [function(a, b) for a, b in zip(one.flat, other.flat, strict=True)]
        made = np.empty(len(found), object)
        made[:] = found
        return made.reshape(one.shape)

    return rule


def _arithmetic(function: Callable[..., Any]) -> Callable[[Call, Sequence[Any]], Any]:
    def rule(call: Call, arrays: Sequence[Any]) -> Any:
        _bounded(np.broadcast_shapes(*(array.shape for array in arrays)))
        found = arrays[0]
        for array in arrays[1:]:
            found = function(found, array)
        return found

    return rule


def _remainder(call: Call, arrays: Sequence[Any]) -> Any:
    """With the sign of the divisor, or with fmod of what is divided."""
    return _arithmetic(np.fmod if call.flag("fmod") else np.mod)(call, arrays)


def _compared(known: Callable[..., Any], open_: Callable[[Any, Any], bool]) -> Any:
    def rule(call: Call, arrays: Sequence[Any]) -> Any:
        if object not in (arrays[0].dtype, arrays[1].dtype):
            return known(arrays[0], arrays[1])
        return _elementwise(open_)(call, arrays).astype(bool)

    return rule


def _where(call: Call, arrays: Sequence[Any]) -> Any:
    _bounded(np.broadcast_shapes(*(array.shape for array in arrays)))
    return np.where(arrays[0].astype(bool), arrays[1], arrays[2])


def _range(call: Call, arrays: Sequence[Any]) -> Any:
    start, stop, step = (array.reshape(-1)[0] for array in arrays)
    if any(isinstance(item, Size) for item in (start, stop, step)):
        raise OpenSizeError("a range of an open size")
    _bounded([max(0, int((stop - start) / step) + 1)])
    return np.arange(start, stop, step)


def _split(call: Call, arrays: Sequence[Any]) -> Any:
    axis = call.axis(arrays[0].ndim)
    return np.split(arrays[0], call.split_points(arrays[0].shape[axis]), axis)


def _flatten(call: Call, arrays: Sequence[Any]) -> Any:
    array, axis = arrays[0], call.attributes["axis"]
    axis = axis + array.ndim if axis < 0 else axis
    return array.reshape(int(np.prod(array.shape[:axis])), -1)


def _tile(call: Call, arrays: Sequence[Any]) -> Any:
    repeats = [int(n) for n in call.integers(1)]
    _bounded([n * k for n, k in zip(arrays[0].shape, repeats, strict=True)])
    return np.tile(arrays[0], repeats)


def _reduced(function: Callable[..., Any]) -> Callable[[Call, Sequence[Any]], Any]:
    def rule(call: Call, arrays: Sequence[Any]) -> Any:
        axes, keep = call.axes(1), call.flag("keepdims")
        if not arrays[0].ndim or (axes is None and call.flag("noop_with_empty_axes")):
            return arrays[0]
        return function(arrays[0], axis=None if axes is None else tuple(axes), keepdims=keep)

    return rule


def _matmul(call: Call, arrays: Sequence[Any]) -> Any:
    one, other = arrays[:2]
    if max(one.size, other.size, one.shape[0] * other.shape[-1]) > LARGEST:
        raise ValueError("a large product of constants")
    return one @ other


def _identity(call: Call, arrays: Sequence[Any]) -> Any:
    return arrays[0]


RULES: Mapping[str, Callable[[Call, Sequence[Any]], Any]] = {
    "Identity": _identity,
    "Dropout": _identity,
    "Cast": _cast,
    "Shape": _shape_of_constant,
    "Size": lambda call, arrays: np.int64(arrays[0].size),
    "ConstantOfShape": _filled,
    "Expand": _expand,
    "Slice": _slice,
    "Gather": _gather,
    "Concat": _concat,
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Split": _split,
    "Tile": _tile,
    "Range": _range,
    "Where": _where,
    "Add": _arithmetic(lambda a, b: a + b),
    "Sub": _arithmetic(lambda a, b: a - b),
    "Mul": _arithmetic(lambda a, b: a * b),
    "Div": _divide,
    "Mod": _remainder,
    "Pow": _arithmetic(np.power),
    "Min": _arithmetic(np.minimum),
    "Max": _arithmetic(np.maximum),
    "And": _arithmetic(np.logical_and),
    "Or": _arithmetic(np.logical_or),
    "Not": lambda call, arrays: ~arrays[0].astype(bool),
    "Neg": lambda call, arrays: -arrays[0],
    "Sqrt": lambda call, arrays: np.sqrt(arrays[0]),
    "Reciprocal": lambda call, arrays: 1 / arrays[0],
    "Abs": lambda call, arrays: np.abs(arrays[0]),
    "Floor": lambda call, arrays: np.floor(arrays[0]),
    "Ceil": lambda call, arrays: np.ceil(arrays[0]),
    "Equal": _compared(lambda a, b: a == b, same),
    "Greater": _compared(lambda a, b: a > b, exceeds),
    "Less": _compared(lambda a, b: a < b, lambda a, b: exceeds(b, a)),
    "GreaterOrEqual": _compared(lambda a, b: a >= b, lambda a, b: not exceeds(b, a)),
    "LessOrEqual": _compared(lambda a, b: a <= b, lambda a, b: not exceeds(a, b)),
    "ReduceProd": _reduced(np.prod),
    "ReduceSum": _reduced(np.sum),
    "ReduceMax": _reduced(np.max),
    "ReduceMin": _reduced(np.min),
    "MatMul": _matmul,
}
