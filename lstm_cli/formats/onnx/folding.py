"""Operators on constants: what a graph calculates from shapes and stored tensors alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.formats.onnx.calls import Call
from lstm_cli.formats.onnx.constant_rules import RULES
from lstm_cli.formats.onnx.sizes import OpenSizeError, Size
from lstm_cli.formats.onnx.values import Constant, Origin

_VIEWS = frozenset(
    {"Identity", "Dropout", "Shape", "Size", "ConstantOfShape", "Expand", "Slice", "Gather"}
    | {"Unsqueeze", "Squeeze", "Transpose", "Split"}
)
"""Operators that do not read all of a constant."""
_COUNTING = frozenset({"Shape", "Size", "ReduceSum", "ReduceProd", "MatMul"})
"""Operators for which it matters how often an equal number stands there."""


def fold(call: Call) -> list[Constant] | None:
    """The operator's outputs; None: it is none that is folded.

    Raises
    ------
    RefusedError
        It cannot be calculated from these inputs.
    """
    rule = RULES.get(call.op)
    if rule is None:
        return None
    inputs = call.inputs
    constants = [value for value in inputs if isinstance(value, Constant)]
    arrays = [value.array if isinstance(value, Constant) else None for value in inputs]
    stretched = any(value.stretched for value in constants)
    if stretched and call.op in _COUNTING:
        raise OpenSizeError("it counts along an axis of open size")
    if call.op not in _VIEWS:
        call.bounded([max((value.array.size for value in constants), default=0)])
    made = rule(call, arrays)
    made = [_tidy(array) for array in (made if isinstance(made, list) else [made])]
    call.effort.spend(room=sum(_new_bytes(array, constants) for array in made), where=call.where)
    origins = _origins(constants)
    change = _change(call.op, constants)
    stretched = stretched or _stretches(call, arrays)
    return [Constant(array, origins, change, stretched) for array in made]


def _new_bytes(array: Array, constants: Sequence[Constant]) -> int:
    """Bytes of memory that an array takes beyond that of the constants it may be a view of."""
    if any(np.may_share_memory(array, constant.array) for constant in constants):
        return 0
    if not array.size:
        return 0
    extents = [(n - 1) * abs(stride) for n, stride in zip(array.shape, array.strides, strict=True)]
    return int(array.itemsize + sum(extents))


def _stretches(call: Call, arrays: Sequence[Any]) -> bool:
    """Whether an open size stands as 1 in the shape of what is made."""
    shape = {"ConstantOfShape": 0, "Expand": 1}.get(call.op)
    return shape is not None and arrays[shape].dtype == object


def _origins(constants: Sequence[Constant]) -> tuple[Origin, ...]:
    found: dict[Origin, None] = {}
    for constant in constants:
        found.update(dict.fromkeys(constant.origins))
        if len(found) > 8:
            break
    return tuple(found)[:8]


def _change(op: str, constants: Sequence[Constant]) -> str:
    """What stands between the stored tensor and the result."""
    if not constants or op in ("Identity", "Unsqueeze", "Squeeze", "Dropout"):
        return constants[0].change if constants else ""
    if op == "Transpose" and constants[0].change in ("", "transposed"):
        return "" if constants[0].change else "transposed"
    return "computed"


def _tidy(given: Any) -> Array:
    """An array that declares no open sizes unless it has some."""
    array: Array = np.asarray(given)
    if array.dtype != object:
        return array
    if any(isinstance(item, Size) for item in array.flat):
        return array
    return array.astype(np.int64)
