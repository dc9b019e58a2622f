"""How each operator is calculated on constants: a rule takes the call and its arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lstm_cli.formats.onnx import messages as m
from lstm_cli.formats.onnx.calls import Call, known
from lstm_cli.formats.onnx.sizes import OpenSizeError, Size, exceeds, same, sized
from lstm_cli.formats.onnx.tensors import DTYPES
from lstm_cli.formats.onnx.values import RefusedError

PRODUCTS = 64
"""Multiplications in a product of matrices that take as long as a number read otherwise."""


def _cast(call: Call, arrays: Sequence[Any]) -> Any:
    array, to = arrays[0], call.attributes["to"]
    if array.dtype == object:
        return array
    if to == m.BFLOAT16:
        raise RefusedError("a cast to bfloat16")
    return array.astype(np.float32 if to == m.FLOAT16 else DTYPES[to], copy=False)


def _shape_of_constant(call: Call, arrays: Sequence[Any]) -> Any:
    return sized(arrays[0].shape)[call.attributes.get("start", 0) : call.attributes.get("end")]


def _filled(call: Call, arrays: Sequence[Any]) -> Any:
    given = call.tensor("value")
    value = np.zeros(1, np.float32) if given is None else given.reshape(-1)
    if value.size != 1:
        raise RefusedError(f"its value holds {value.size} numbers in the place of one")
    return np.broadcast_to(value, call.bounded(_sizes(call, 0)))


def _sizes(call: Call, k: int) -> tuple[int, ...]:
    """A shape in which open sizes stand as 1."""
    sizes = call.whole_numbers(k) or []
    return tuple(1 if isinstance(n, Size) else max(n, 0) for n in sizes)


def _expand(call: Call, arrays: Sequence[Any]) -> Any:
    return np.broadcast_to(arrays[0], call.bounded(arrays[0].shape, _sizes(call, 1)))


def _slice(call: Call, arrays: Sequence[Any]) -> Any:
    array = arrays[0]
    index = [slice(None)] * array.ndim
    for axis, start, stop, step in call.slices(array.ndim):
        index[axis] = clamped(start, stop, step, array.shape[axis])
    return array[tuple(index)]


def clamped(start: int, stop: int, step: int, size: int) -> slice:
    """ONNX's slice of an axis, as Python has it."""
    if step == 0:
        raise RefusedError("a slice with step 0")
    low, high = (0, size) if step > 0 else (-1, size - 1)
    first = min(max(start + size if start < 0 else start, 0), high)
    last = min(max(stop + size if stop < 0 else stop, low), size)
    if stop < -size:
        last = low
    return slice(first, None if last < 0 else last, step)


def _gather(call: Call, arrays: Sequence[Any]) -> Any:
    array = arrays[0]
    axis = call.axis(array.ndim)
    indices = call.integers(1)
    call.bounded((*array.shape[:axis], *indices.shape, *array.shape[axis + 1 :]))
    return np.take(array, indices.astype(np.int64), axis=axis)


def _concat(call: Call, arrays: Sequence[Any]) -> Any:
    call.bounded([sum(array.size for array in arrays)])
    return np.concatenate(arrays, axis=call.axis(arrays[0].ndim))


def _unsqueeze(call: Call, arrays: Sequence[Any]) -> Any:
    axes = call.axes(1)
    return np.expand_dims(arrays[0], tuple(axes or ()))


def _squeeze(call: Call, arrays: Sequence[Any]) -> Any:
    axes = call.axes(1)
    return np.squeeze(arrays[0], None if axes is None else tuple(axes))


def _reshape(call: Call, arrays: Sequence[Any]) -> Any:
    array = arrays[0]
    shape = known(call.whole_numbers(1) or [])
    if not call.flag("allowzero"):
        shape = [array.shape[k] if n == 0 else n for k, n in enumerate(shape)]
    return array.reshape(shape)


def _transpose(call: Call, arrays: Sequence[Any]) -> Any:
    return np.transpose(arrays[0], call.attributes.get("perm"))


def _divide(call: Call, arrays: Sequence[Any]) -> Any:
    one, other = arrays[:2]
    if object in (one.dtype, other.dtype):
        return _elementwise(_cut)(call, arrays)
    call.bounded(one.shape, other.shape)
    if one.dtype.kind not in "iu":
        return one / other
    if not other.all():
        raise RefusedError("it divides by 0")
    quotient = np.abs(one) // np.abs(other)
    return np.where((one < 0) == (other < 0), quotient, -quotient)


def _cut(a: Any, b: Any) -> Any:
    """The quotient of two sizes, towards 0."""
    if isinstance(a, Size):
        return a.divided(b)
    if isinstance(b, Size):
        raise OpenSizeError("a number is divided by a size that the file leaves open")
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def _elementwise(function: Callable[[Any, Any], Any]) -> Callable[[Call, Sequence[Any]], Any]:
    def rule(call: Call, arrays: Sequence[Any]) -> Any:
        shape = call.bounded(*(array.shape for array in arrays[:2]))
        one, other = (np.broadcast_to(array, shape) for array in arrays[:2])
        pairs = zip(one.reshape(-1).tolist(), other.reshape(-1).tolist(), strict=True)
        found = [function(a, b) for a, b in pairs]  # Python's numbers: NumPy's know no open size
        made = np.empty(len(found), object)
        made[:] = found
        return made.reshape(one.shape)

    return rule


def _arithmetic(function: Callable[..., Any]) -> Callable[[Call, Sequence[Any]], Any]:
    def rule(call: Call, arrays: Sequence[Any]) -> Any:
        call.bounded(*(array.shape for array in arrays))
        found = arrays[0]
        for array in arrays[1:]:
            found = function(found, array)
        return found

    return rule


def _remainder(call: Call, arrays: Sequence[Any]) -> Any:
    """With the sign of the divisor, or with fmod of what is divided."""
    return _arithmetic(np.fmod if call.flag("fmod") else np.mod)(call, arrays)


def _compared(plain: Callable[..., Any], open_: Callable[[Any, Any], bool]) -> Any:
    def rule(call: Call, arrays: Sequence[Any]) -> Any:
        if object not in (arrays[0].dtype, arrays[1].dtype):
            call.bounded(*(array.shape for array in arrays))
            return plain(arrays[0], arrays[1])
        return _elementwise(open_)(call, arrays).astype(bool)

    return rule


def _where(call: Call, arrays: Sequence[Any]) -> Any:
    call.bounded(*(array.shape for array in arrays))
    return np.where(arrays[0].astype(bool), arrays[1], arrays[2])


def _range(call: Call, arrays: Sequence[Any]) -> Any:
    start, stop, step = (array.reshape(-1)[0] for array in arrays)
    if any(isinstance(item, Size) for item in (start, stop, step)):
        raise OpenSizeError("a range of an open size")
    if not step:
        raise RefusedError("its numbers are 0 apart")
    call.bounded([max(0, int((stop - start) / step) + 1)])
    return np.arange(start, stop, step)


def _split(call: Call, arrays: Sequence[Any]) -> Any:
    axis = call.axis(arrays[0].ndim)
    return np.split(arrays[0], call.split_points(arrays[0].shape[axis]), axis)


def _flatten(call: Call, arrays: Sequence[Any]) -> Any:
    array, axis = arrays[0], call.attributes["axis"]
    axis = axis + array.ndim if axis < 0 else axis
    return array.reshape(int(np.prod(array.shape[:axis])), -1)


def _tile(call: Call, arrays: Sequence[Any]) -> Any:
    repeats = known(call.whole_numbers(1) or [])
    if len(repeats) != arrays[0].ndim:
        raise RefusedError(f"it repeats {arrays[0].ndim} axes {repeats} times")
    call.bounded([n * max(k, 0) for n, k in zip(arrays[0].shape, repeats, strict=True)])
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
    if not one.ndim or not other.ndim or one.shape[-1] != other.shape[-2:][0]:
        raise RefusedError(f"it multiplies tensors of shape {one.shape} and {other.shape}")
    rows, columns = one.shape[-2:-1], other.shape[-1:] if other.ndim > 1 else ()
    outer = np.broadcast_shapes(one.shape[:-2], other.shape[:-2])
    shape = call.bounded((*outer, *rows, *columns))
    work = math.prod(shape) * one.shape[-1]
    call.effort.spend(work=work // (PRODUCTS if one.dtype.kind == "f" else 1), where=call.where)
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
