"""Operators that compute each feature from itself: activations, products, softmax."""

from __future__ import annotations

from lstm_cli.cells import Activation
from lstm_cli.formats.onnx.arithmetic import made, terms, timed
from lstm_cli.formats.onnx.values import (
    FEATURES,
    Activated,
    Product,
    RefusedError,
    Softmaxed,
    Value,
)
from lstm_cli.formats.onnx.vectors import at, complete, same_vector


def divide(one: Value, other: Value, where: str) -> Value:
    """One value by another: x / (1 + |x|) is softsign, anything else is refused."""
    parts, bias = terms(other.vector)
    inner = parts[0].source.atom
    plain = len(parts) == 1 and parts[0].weight.identity and complete(parts[0].source)
    ones = bias is not None and bool((bias.array == 1).all())
    if plain and ones and isinstance(inner, Activated) and inner.activation.name == "symmrelu":
        source = at(inner.source, parts[0].source.step)
        if same_vector(source, one.vector):
            return activate(one, Activation("softsign"), where)
    raise RefusedError("it divides by values that depend on the input")


def exponential(value: Value, where: str) -> Value:
    """exp(-x x), which is the activation gauss; anything else is refused."""
    parts, bias = terms(value.vector)
    inner = parts[0].source.atom
    negative = len(parts) == 1 and bias is None and bool((parts[0].weight.array == -1).all())
    if negative and parts[0].weight.diagonal and isinstance(inner, Product):
        left, right = (at(side, parts[0].source.step) for side in (inner.left, inner.right))
        if complete(parts[0].source) and same_vector(left, right):
            atom = Activated(value.pick.size, timed(left), where, left, Activation("gauss"))
            return made(atom, value.pick.shape, value.axes)
    raise RefusedError("the exponential is no activation that lstm-cli has")


def activate(value: Value, activation: Activation, where: str) -> Value:
    """An activation, element by element."""
    atom = Activated(value.pick.size, timed(value.vector), where, value.vector, activation)
    return made(atom, value.pick.shape, value.axes)


def softmax(value: Value, axis: int, opset: int, where: str) -> Value:
    """Softmax over the features, which must be one axis alone."""
    rank = len(value.axes)
    own = value.pick.shape[-1] if value.pick.ndim else 1
    last = axis in (-1, rank - 1) or (opset < 13 and all(not p for p in value.axes[axis:-1]))
    if not last or value.axes[-1] != (FEATURES,) or own != value.pick.size:
        raise RefusedError(f"softmax over axis {axis}, which is not the features")
    atom = Softmaxed(value.pick.size, timed(value.vector), where, value.vector)
    return made(atom, value.pick.shape, value.axes)
