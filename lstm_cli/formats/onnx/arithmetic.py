"""Operators that compute: linear maps, activations, products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.formats.onnx.broadcasting import aligned, collapsed
from lstm_cli.formats.onnx.frame import Frame, every
from lstm_cli.formats.onnx.values import (
    ALL,
    FEATURES,
    REVERSED,
    Atom,
    Axis,
    Constant,
    Flattened,
    Linear,
    Product,
    RefusedError,
    Term,
    Value,
    Vector,
    Weight,
    Zeros,
)
from lstm_cli.formats.onnx.vectors import at, bounded, complete, counted


def timed(*vectors: Vector) -> bool:
    """Whether something made of these has one value a step."""
    return any(every(vector.step) for vector in vectors)


def made(atom: Atom, shape: Sequence[int], axes: tuple[Axis, ...]) -> Value:
    """All of a new atom over a tensor's axes."""
    return Value(atom, ALL if atom.timed else None, counted(atom.size).reshape(shape), axes)


def zeros(constant: Constant, where: str) -> Value | None:
    """An initial state of zeros as a value: what a product with it is, tells its weights."""
    array = constant.array
    if array.dtype.kind != "f" or not array.ndim or not array.shape[-1] or array.any():
        return None
    size = array.shape[-1]
    axes = ((),) * (array.ndim - 1) + ((FEATURES,),)
    return made(Zeros(size, False, where), (size,), axes)


def matmul(frame: Frame, value: Value, constant: Constant, where: str) -> Value:
    """The last axis times a constant matrix (in, out)."""
    matrix = constant.array
    if matrix.ndim < 1 or matrix.dtype.kind != "f":
        raise RefusedError(f"it multiplies with a tensor of {matrix.ndim} axes")
    drop = matrix.ndim == 1
    matrix = matrix[:, None] if drop else matrix
    if any(n != 1 for n in matrix.shape[:-2]):
        raise RefusedError("it multiplies with several matrices")
    matrix = matrix.reshape(matrix.shape[-2:])
    source = _contracted(frame, value, matrix.shape[0], where)
    if source.pick.size != matrix.shape[0]:
        raise RefusedError(f"it multiplies {source.pick.size} features with {matrix.shape}")
    term = Term(source, Weight(matrix, constant.origins, constant.change))
    atom = Linear(matrix.shape[1], timed(source), where, (term,))
    outer = tuple(tuple(p for p in axis if p != FEATURES) for axis in value.axes[:-1])
    shape = () if drop else (atom.size,)
    return made(atom, shape, (*outer, *(((FEATURES,),) if not drop else ())))


def _contracted(frame: Frame, value: Value, size: int, where: str) -> Vector:
    """The features over which a matrix product sums."""
    last = value.axes[-1] if value.axes else ()
    if FEATURES in last or not last:
        own = value.pick.shape[len(value.pick.shape) - last.count(FEATURES) :]
        if int(np.prod(own, dtype=object)) != value.pick.size:
            raise RefusedError("it multiplies several rows of features with a matrix")
    free = [part for part in last if part != FEATURES]
    if not free:
        return value.vector
    if len(free) != 1 or not frame.is_time(free[0]) or not every(value.step):
        raise RefusedError("it sums over the sequences of a batch")
    return _flattened(frame, value, last, size, where)


def _flattened(frame: Frame, value: Value, last: Axis, size: int, where: str) -> Vector:
    """All steps' features side by side, in the order in which the axis runs."""
    features = value.pick.size
    if frame.time is not None and frame.steps is None:
        frame.sizes[frame.time] = size // max(features, 1)
    steps = frame.steps or 0
    bounded(steps * features)
    source = Vector(value.atom, ALL, value.pick.reshape(-1))
    order = counted(steps * features).reshape(steps, features)
    order = order[::-1] if value.step == REVERSED else order
    if last[0] == FEATURES:
        if len(last) > 2:
            raise RefusedError("it sums over features on both sides of the steps")
        order = order.T
    return Vector(Flattened(steps * features, False, where, source, steps), None, order.reshape(-1))


def output(frame: Frame, value: Value) -> Vector:
    """A value as a network's output: where steps and features share an axis, all side by side.

    Raises
    ------
    RefusedError
        It is laid out in another way.
    """
    mixed = [axis for axis in value.axes if FEATURES in axis and len(axis) > 1]
    if not mixed:
        return value.vector
    free = [part for part in mixed[0] if part != FEATURES]
    if len(mixed) > 1 or len(free) > 1 or sum(axis.count(FEATURES) for axis in value.axes) > 1:
        raise RefusedError("several axes share one with the features")
    if not every(value.step) or not frame.is_time(free[0]) or frame.steps is None:
        raise RefusedError(
            "features of different sequences, or of any number of steps, share an axis"
        )
    return _flattened(frame, value, mixed[0], value.pick.size * frame.steps, value.atom.where)


def terms(vector: Vector) -> tuple[tuple[Term, ...], Weight | None]:
    """A vector as a sum; one that is no linear map is its own only summand."""
    atom = vector.atom
    if not isinstance(atom, Linear) or _closed(atom):
        return (Term(vector, Weight(np.ones(vector.pick.size))),), None
    cut = None if complete(vector) else vector.pick
    own = [Term(at(_cut_source(t, cut), vector.step), columns(t.weight, cut)) for t in atom.terms]
    return tuple(own), None if atom.bias is None else columns(atom.bias, cut)


def _closed(atom: Linear) -> bool:
    """Whether a sum is a state, of a gated unit, rather than part of a larger sum."""
    return (
        len(atom.terms) > 1
        and all(term.weight.diagonal for term in atom.terms)
        and any(isinstance(term.source.atom, Product) for term in atom.terms)
    )


def _cut_source(term: Term, pick: Array | None) -> Vector:
    """What a summand reads, for some of its outputs."""
    source = term.source
    if pick is None or not term.weight.diagonal:
        return source
    return Vector(source.atom, source.step, source.pick[pick])


def columns(weight: Weight, pick: Array | None) -> Weight:
    """Some outputs of a weight; a stretch of them is a view."""
    if pick is None:
        return weight
    start = int(pick[0]) if pick.size else 0
    if not (pick == counted(pick.size) + start).all():
        return replace(weight, array=weight.array[..., pick], change="computed", columns=None)
    stop = start + pick.size
    before = weight.columns[0] if weight.columns else 0
    return replace(
        weight, array=weight.array[..., start:stop], columns=(before + start, before + stop)
    )


def add(one: Value, other: Value, where: str) -> Value:
    """Two values added."""
    (first, second), shape, axes = aligned(one, other)
    (a, bias), (b, more) = terms(first), terms(second)
    atom = Linear(first.pick.size, timed(first, second), where, a + b, _summed(bias, more))
    return made(atom, shape, axes)


def _summed(one: Weight | None, other: Weight | None) -> Weight | None:
    if one is None or other is None:
        return other if one is None else one
    total = one.array.astype(np.float64) + other.array
    dtype = np.result_type(one.array, other.array)
    alike = one.columns if one.columns == other.columns else None
    return Weight(total.astype(dtype), one.origins + other.origins, "added", alike)


def add_constant(value: Value, constant: Constant, where: str) -> Value:
    """A constant added, the same for every sequence and step."""
    array, value = collapsed(constant.array, value)
    if not array.any() and not isinstance(value.atom, Linear):
        return value
    own, bias = terms(value.vector)
    more = Weight(array.reshape(-1), constant.origins, constant.change)
    atom = Linear(value.pick.size, timed(value.vector), where, own, _summed(bias, more))
    return made(atom, value.pick.shape, value.axes)


def scale(value: Value, constant: Constant, where: str) -> Value:
    """Multiplied with a constant, the same for every sequence and step."""
    array, value = collapsed(constant.array, value)
    if (array == 1).all():
        return value
    if not array.any():
        return multiply(value, made(Zeros(value.pick.size, False, where), (-1,), ()), where)
    weight = Weight(array.reshape(-1), constant.origins, constant.change)
    term = Term(value.vector, weight)
    atom = Linear(value.pick.size, timed(value.vector), where, (term,))
    return made(atom, value.pick.shape, value.axes)


def multiply(one: Value, other: Value, where: str) -> Value:
    """Two values multiplied."""
    if isinstance(other.atom, Zeros) and other.pick.size == one.pick.size:
        left, right, shape, axes = one.vector, other.vector, one.pick.shape, one.axes
    else:
        (left, right), shape, axes = aligned(one, other)
    atom = Product(left.pick.size, timed(left, right), where, left, right)
    return made(atom, shape, axes)
