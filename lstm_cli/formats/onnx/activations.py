"""Operators that are activations, and those spelt with several operators."""

from __future__ import annotations

from typing import Any

import numpy as np

from lstm_cli.cells import Activation
from lstm_cli.engines.types import Array
from lstm_cli.formats.onnx.calls import Call
from lstm_cli.formats.onnx.operators import NAMES
from lstm_cli.formats.onnx.tensors import short
from lstm_cli.formats.onnx.values import (
    Activated,
    Anything,
    Exceeds,
    RefusedError,
    Value,
)
from lstm_cli.formats.onnx.vectors import same_vector

_OPERATORS = {name: ours for name, ours in NAMES.items() if name not in ("affine", "scaledtanh")}
LARGE = 16
"""From here on softplus of x is x in float32."""


def activation(call: Call) -> Activation:
    """The activation that an operator is.

    Raises
    ------
    RefusedError
        It is none.
    """
    op = call.op
    if op in ("Clip", "Max"):
        return _rectifier(call)
    if op == "Abs":
        return Activation("symmrelu")
    if op == "PRelu":
        return _leaky(call.constant(1).array)
    name = _OPERATORS.get(op.lower())  # the schemas know no other spelling
    if name is None:
        raise RefusedError("it is no operator that lstm-cli has a layer for")
    return Activation(name, **{k: short(v) for k, v in call.attributes.items()})


def _leaky(slopes: Array) -> Activation:
    """PRelu with one slope for all features."""
    if not slopes.size or (slopes != slopes.flat[0]).any():
        raise RefusedError("its slopes differ from feature to feature")
    return Activation("leaky_relu", short(slopes.flat[0]))


def _rectifier(call: Call) -> Activation:
    """Clip or Max at 0: relu."""
    limits: list[Any] = [call.attributes.get("min"), call.attributes.get("max")]
    if call.op == "Max" and len(call.inputs) != 2:
        raise RefusedError("it takes the largest of more than a value and a constant")
    for k in (1, 2):
        if call.given(k) is not None:
            limits[k - 1] = float(call.constant(k).array.reshape(-1)[0])
            if call.constant(k).array.size != 1:
                limits[0] = None
    low, high = limits
    if low != 0 or (high is not None and high < np.finfo(np.float32).max):
        raise RefusedError(f"it limits values to [{low}, {high}], which is no activation here")
    return Activation("relu")


def exceeds(call: Call) -> Exceeds:
    """Greater: where values are larger than a constant."""
    value, limit = call.given(0), call.constant(1).array
    if not isinstance(value, Value) or limit.size != 1:
        raise RefusedError("it compares values that depend on the input")
    return Exceeds(value.vector, float(limit.reshape(-1)[0]))


def softplus(condition: Exceeds, yes: Anything | None, no: Anything | None) -> Value:
    """x where x is large, softplus of x elsewhere: softplus, since both are the same there."""
    if (
        isinstance(yes, Value)
        and isinstance(no, Value)
        and isinstance(no.atom, Activated)
        and no.atom.activation.name == "softplus"
        and condition.limit >= LARGE
        and same_vector(condition.vector, yes.vector)
        and same_vector(no.atom.source, yes.vector)
    ):
        return no
    raise RefusedError("it chooses by values that depend on the input")
