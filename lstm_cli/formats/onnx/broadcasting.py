"""Values and constants brought to one layout, as NumPy broadcasts arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.formats.onnx.values import (
    FEATURES,
    Axis,
    RefusedError,
    Value,
    Vector,
)
from lstm_cli.formats.onnx.vectors import bounded


def collapsed(array: Array, value: Value) -> tuple[Array, Value]:
    """A constant broadcast to a value's features, and the value with the axes of both.

    Raises
    ------
    RefusedError
        It is not the same for every sequence and step.
    """
    if array.ndim > len(value.axes):
        value = replace(value, axes=((),) * (array.ndim - len(value.axes)) + value.axes)
    array = array.reshape((1,) * (len(value.axes) - array.ndim) + array.shape)
    features = list(value.pick.shape)
    shape: list[int] = []
    for k, axis in enumerate(value.axes):
        count = axis.count(FEATURES)
        own, features = features[:count], features[count:]
        if count and array.shape[k] != 1:
            if len(axis) != count:
                raise RefusedError("a constant differs from step to step")
            shape += own
        else:
            array = _alike(array, k)
            shape += [1] * count
    return np.broadcast_to(array.reshape(shape), value.pick.shape), value


def _alike(array: Array, axis: int) -> Array:
    """The first entry of an axis whose entries are all the same."""
    first = array.take([0], axis=axis)
    if array.shape[axis] != 1 and not (array == first).all():
        raise RefusedError("a constant differs from sequence to sequence or from step to step")
    return first


def aligned(
    one: Value, other: Value
) -> tuple[tuple[Vector, Vector], tuple[int, ...], tuple[Axis, ...]]:
    """Two values' vectors, broadcast to each other, with the shape and axes of the result."""
    rank = max(len(one.axes), len(other.axes))
    padded = [((),) * (rank - len(value.axes)) + value.axes for value in (one, other)]
    axes = tuple(_common(a, b) for a, b in zip(*padded, strict=True))
    picks = [
        _spread(value.pick, own, axes) for value, own in zip((one, other), padded, strict=True)
    ]
    bounded(math.prod(np.broadcast_shapes(*(pick.shape for pick in picks))))
    first, second = np.broadcast_arrays(*picks)
    found = (
        Vector(one.atom, one.step, first.reshape(-1)),
        Vector(other.atom, other.step, second.reshape(-1)),
    )
    return found, first.shape, axes


def _common(one: Axis, other: Axis) -> Axis:
    if one == other or not other:
        return one
    if not one:
        return other
    raise RefusedError("it combines values of different layouts")


def _spread(pick: Array, own: Sequence[Axis], axes: Sequence[Axis]) -> Array:
    """A pick with an axis for each of the result's axes of features."""
    sizes, shape = iter(pick.shape), []
    for mine, axis in zip(own, axes, strict=True):
        count = axis.count(FEATURES)
        shape += [next(sizes) for _ in range(count)] if mine else [1] * count
    return pick.reshape(shape)
