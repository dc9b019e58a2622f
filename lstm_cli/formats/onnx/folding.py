"""Operators on constants: what a graph calculates from shapes and stored tensors alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.formats.onnx.calls import Call
from lstm_cli.formats.onnx.constant_rules import RULES
from lstm_cli.formats.onnx.sizes import Size
from lstm_cli.formats.onnx.values import Constant, Origin


def fold(call: Call) -> list[Constant] | None:
    """The operator's outputs; None: it is none that is folded.

    Raises
    ------
    ValueError
        It cannot be calculated from these inputs.
    """
    rule = RULES.get(call.op)
    if rule is None:
        return None
    inputs = call.inputs
    constants = [value for value in inputs if isinstance(value, Constant)]
    arrays = [value.array if isinstance(value, Constant) else None for value in inputs]
    made = rule(call, arrays)
    made = made if isinstance(made, list) else [made]
    origins = _origins(constants)
    change = _change(call.op, constants)
    stretched = any(value.stretched for value in constants) or _stretches(call, arrays)
    return [Constant(_tidy(array), origins, change, stretched) for array in made]


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
