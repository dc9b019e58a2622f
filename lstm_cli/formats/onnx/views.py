"""Operators that only move numbers about: they change which features, which step, which axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.formats.onnx.calls import MOST_LISTED, Call
from lstm_cli.formats.onnx.constant_rules import clamped
from lstm_cli.formats.onnx.frame import Frame, every
from lstm_cli.formats.onnx.reshaping import at_step, flatten, reshape, shown
from lstm_cli.formats.onnx.sizes import Number, Size, product
from lstm_cli.formats.onnx.values import (
    FEATURES,
    REVERSED,
    Axis,
    Joined,
    Recurrent,
    RefusedError,
    Value,
)
from lstm_cli.formats.onnx.vectors import bounded, composed, counted, joined

MOST_STEPS = 4096
"""Single steps that one operator may pick."""


def transpose(frame: Frame, value: Value, perm: Sequence[int] | None) -> Value:
    """Axes in another order."""
    rank = len(value.axes)
    perm = list(range(rank))[::-1] if perm is None else [k % rank for k in perm]
    if sorted(perm) != list(range(rank)):
        raise RefusedError(f"axes {perm} of {rank}")
    order = [number for k in perm for number in _feature_numbers(value, k)]
    return replace(value, pick=value.pick.transpose(order), axes=tuple(value.axes[k] for k in perm))


def _feature_numbers(value: Value, axis: int) -> range:
    """Which axes of `pick` belong to an axis."""
    before = sum(part == FEATURES for parts in value.axes[:axis] for part in parts)
    return range(before, before + value.axes[axis].count(FEATURES))


def unsqueeze(frame: Frame, value: Value, axes: Sequence[int]) -> Value:
    """New axes of size 1."""
    rank = len(value.axes) + len(axes)
    places = {axis % rank for axis in axes if -rank <= axis < rank}
    if len(places) != len(axes):
        raise RefusedError(f"axes {list(axes)} of {rank}")
    own = iter(value.axes)
    return replace(value, axes=tuple(() if k in places else next(own) for k in range(rank)))


def squeeze(frame: Frame, value: Value, axes: Sequence[int] | None) -> Value:
    """Axes of size 1 taken away; None: all that are known to be."""
    dims = frame.dims(value)
    if axes is None:
        axes = [k for k, n in enumerate(dims) if n == 1]
    places = sorted({axis % len(dims) for axis in axes}, reverse=True)
    for k in places:
        if dims[k] != 1:
            raise RefusedError(f"it squeezes axis {k}, which is not known to have size 1")
        value = _without(frame, value, k)
    return value


def _without(frame: Frame, value: Value, k: int) -> Value:
    """Without axis `k` of size 1."""
    for part in value.axes[k]:
        if part != FEATURES and part == frame.time and every(value.step):
            value = at_step(value, frame.index(0))
    gone = set(_feature_numbers(value, k))
    shape = [n for j, n in enumerate(value.pick.shape) if j not in gone]
    return replace(value, pick=value.pick.reshape(shape), axes=value.axes[:k] + value.axes[k + 1 :])


def gather(frame: Frame, value: Value, axis: int, indices: Array) -> Value:
    """Entries of an axis: one, or several."""
    parts = value.axes[axis]
    if FEATURES in parts or not parts:
        value = as_features(value, axis)
        (number,) = _feature_numbers(value, axis)
        bounded(value.pick.size * max(indices.size, 1) // value.pick.shape[number])
        pick = np.take(value.pick, indices.astype(np.int64), axis=number)
        kept: tuple[Axis, ...] = ((FEATURES,),) * indices.ndim
        return replace(value, pick=pick, axes=value.axes[:axis] + kept + value.axes[axis + 1 :])
    _single_time(frame, value, axis)
    frame.picked += [value.vector] if isinstance(value.atom, Recurrent | Joined) else []
    if indices.size > MOST_LISTED:
        raise RefusedError(f"it picks {indices.size:,} steps")
    steps = [frame.index(n if isinstance(n, Size) else int(n)) for n in indices.reshape(-1)]
    if indices.ndim == 0:
        return replace(at_step(value, steps[0]), axes=value.axes[:axis] + value.axes[axis + 1 :])
    return _some_steps(frame, value, axis, steps)


def as_features(value: Value, axis: int) -> Value:
    """With an axis of size 1 as one of features."""
    parts = value.axes[axis]
    if parts == (FEATURES,):
        return value
    if parts:
        raise RefusedError("it cuts an axis that runs over more than features")
    number = _feature_numbers(value, axis).start
    axes = (*value.axes[:axis], (FEATURES,), *value.axes[axis + 1 :])
    return replace(value, pick=np.expand_dims(value.pick, number), axes=axes)


def _single_time(frame: Frame, value: Value, axis: int) -> None:
    parts = value.axes[axis]
    if len(parts) != 1 or not frame.is_time(parts[0]):
        raise RefusedError("it picks some sequences of a batch")


def _some_steps(frame: Frame, value: Value, axis: int, steps: Sequence[Any]) -> Value:
    """Several single steps, as features of an axis of its own."""
    all_steps = range(len(steps)) if isinstance(steps, range) else list(range(len(steps)))
    if len(steps) == frame.steps and steps == all_steps:
        return value
    if len(steps) == frame.steps and steps == all_steps[::-1]:
        return replace(value, step=composed(value.step, REVERSED))
    if not 0 < len(steps) <= MOST_STEPS:
        raise RefusedError(f"it picks {len(steps):,} steps")
    axes = (*value.axes[:axis], (), *value.axes[axis + 1 :])
    picked = [replace(at_step(value, step), axes=axes) for step in steps]
    return picked[0] if len(picked) == 1 else stacked(picked, axis, "steps")


def slice_axis(frame: Frame, value: Value, axis: int, start: Any, stop: Any, step: int) -> Value:
    """A range of an axis."""
    parts = value.axes[axis]
    if FEATURES in parts or not parts:
        value = as_features(value, axis)
        (number,) = _feature_numbers(value, axis)
        index = [slice(None)] * value.pick.ndim
        index[number] = clamped(int(start), int(stop), int(step), value.pick.shape[number])
        return replace(value, pick=value.pick[tuple(index)])
    size = product(frame.size(part) for part in parts)
    far = stop == size or (isinstance(stop, int) and stop >= (1 << 31) - 1)
    if step == 1 and start == 0 and (far or (isinstance(size, int) and stop >= size)):
        return value
    _single_time(frame, value, axis)
    frame.picked += [value.vector] if isinstance(value.atom, Recurrent | Joined) else []
    if isinstance(size, int) and not frame.guessed:
        chosen = clamped(int(start), int(stop), int(step), size)
        return _some_steps(frame, value, axis, range(size)[chosen])
    if step == -1 and start == -1 and isinstance(stop, int) and stop <= -(1 << 31) + 1:
        return replace(value, step=composed(value.step, REVERSED))
    return _open_steps(frame, value, axis, start, stop, far, step)


def _open_steps(
    frame: Frame, value: Value, axis: int, start: Any, stop: Any, far: bool, step: int
) -> Value:
    """A range of steps where T is open: only a few from the beginning, or from the end."""
    first = frame.index(start)
    if not isinstance(first, int) or step != 1:
        raise RefusedError("it picks steps that depend on the sizes")
    end = 0 if far else frame.index(stop)
    if not isinstance(end, int) or (first < 0) != (end <= 0 and first < 0) or end - first < 1:
        raise RefusedError("it picks steps that depend on the sizes")
    return _some_steps(frame, value, axis, range(first, end))


def stacked(values: Sequence[Value], axis: int, where: str) -> Value:
    """Values side by side along an axis of features."""
    values = [as_features(value, axis) for value in values]
    first = values[0]
    if any(value.axes != first.axes for value in values):
        raise RefusedError("it puts values of different layouts side by side")
    (number,) = _feature_numbers(first, axis)
    bounded(sum(value.pick.size for value in values))
    source = joined([value.vector for value in values], where)
    ends = np.cumsum([value.pick.size for value in values])
    places = [
        counted(value.pick.size).reshape(value.pick.shape) + end - value.pick.size
        for value, end in zip(values, ends, strict=True)
    ]
    pick = source.pick[np.concatenate(places, axis=number)]
    return Value(source.atom, source.step, pick, first.axes)


def split(frame: Frame, value: Value, axis: int, call: Call) -> list[Value]:
    """An axis in parts."""
    size = frame.dims(value)[axis]
    if isinstance(size, Size):
        lengths = call.split_lengths()
        if not lengths or min(lengths) < 1:
            raise RefusedError("it splits an axis of open size")
        ends = [int(n) for n in np.cumsum(lengths)]
    else:
        ends = [*call.split_points(size), size]
    starts = [0, *ends[:-1]]
    return [
        slice_axis(frame, value, axis, start, end, 1)
        for start, end in zip(starts, ends, strict=True)
    ]


def expand(frame: Frame, value: Value, shape: Sequence[Number]) -> Value:
    """To a shape that it already has; what would repeat numbers is refused."""
    rank = max(len(shape), len(value.axes))
    dims: list[Number] = [*[1] * (rank - len(value.axes)), *frame.dims(value)]
    wanted = [*[1] * (rank - len(shape)), *shape]
    if any(n not in (1, -1) and n != own for n, own in zip(wanted, dims, strict=True)):
        raise RefusedError(f"it repeats {shown(dims)} to {shown(wanted)}")
    return replace(value, axes=((),) * (rank - len(value.axes)) + value.axes)


def reverse(frame: Frame, value: Value, axis: int) -> Value:
    """The steps from the last to the first."""
    _single_time(frame, value, axis)
    return replace(value, step=composed(value.step, REVERSED))


def _is_off(call: Call) -> bool:
    """Whether a Dropout changes nothing: no training mode, which newer ones have as an input."""
    return call.given(2) is None or not call.constant(2).array.any()


def view(frame: Frame, call: Call, value: Value) -> list[Value] | None:
    """The outputs of an operator that only moves numbers about; None: it is none of them."""
    op, rank = call.op, len(value.axes)
    if op == "Dropout" and not _is_off(call):
        raise RefusedError("it drops values at random, as in training")
    if op in ("Identity", "Cast", "Dropout"):
        return [value]
    if op == "Transpose":
        return [transpose(frame, value, call.attributes.get("perm"))]
    if op == "Unsqueeze":
        return [unsqueeze(frame, value, call.axes(1) or [])]
    if op == "Squeeze":
        return [squeeze(frame, value, call.axes(1))]
    if op == "Flatten":
        return [flatten(frame, value, call.attributes["axis"])]
    if op == "Reshape":
        target = call.whole_numbers(1) or []
        return [reshape(frame, value, target, call.flag("allowzero"))]
    if op == "Gather":
        return [gather(frame, value, call.axis(rank), call.integers(1))]
    if op == "Slice":
        for axis, start, stop, step in call.slices(rank):
            value = slice_axis(frame, value, axis, start, stop, step)
        return [value]
    if op == "Split":
        return split(frame, value, call.axis(rank), call)
    if op == "Expand":
        return [expand(frame, value, call.whole_numbers(1) or [])]
    return None
