"""Layout operators on symbolic tensors: Transpose, Reshape, Gather, Slice, Split and the like.

They move numbers without computing: they change the features, the step or the axes of a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.formats.onnx.node import MAX_LISTED, GraphNode
from lstm_cli.formats.onnx.ops_constant import clamp_slice
from lstm_cli.formats.onnx.sizes import (
    AxisSize,
    FreeAxes,
    OpenSize,
    is_all_steps,
    product_of,
)
from lstm_cli.formats.onnx.symbolic import (
    FEATURES,
    REVERSED_STEPS,
    Axis,
    Concatenation,
    RecurrentDirection,
    SymbolicTensor,
    UnsupportedError,
    check_feature_count,
    compose_steps,
    concatenate,
    count_axes,
    vector_at,
)

MAX_STEPS = 4096
"""Largest number of single steps that one operator may select."""


def move(
    free_axes: FreeAxes, node: GraphNode, value: SymbolicTensor
) -> list[SymbolicTensor] | None:
    """Outputs of a layout operator; None for any other operator."""
    op, rank = node.op, len(value.axes)
    if op == "Dropout" and not _is_inference(node):
        raise UnsupportedError("it drops values at random, as in training")
    if op in ("Identity", "Cast", "Dropout"):
        return [value]
    if op == "Transpose":
        return [transpose(value, node.attributes.get("perm"))]
    if op == "Unsqueeze":
        return [unsqueeze(value, node.axes(1) or [])]
    if op == "Squeeze":
        return [squeeze(free_axes, value, node.axes(1))]
    if op == "Flatten":
        return [flatten(free_axes, value, node.attributes["axis"])]
    if op == "Reshape":
        target = node.whole_numbers(1) or []
        return [reshape(free_axes, value, target, node.flag("allowzero"))]
    if op == "Gather":
        return [gather(free_axes, value, node.axis(rank), node.integers(1))]
    if op == "Slice":
        for axis, start, stop, step in node.slices(rank):
            value = slice_axis(free_axes, value, axis, start, stop, step)
        return [value]
    if op == "Split":
        return split(free_axes, value, node.axis(rank), node)
    if op == "Expand":
        return [expand(free_axes, value, node.whole_numbers(1) or [])]
    return None


def _is_inference(node: GraphNode) -> bool:
    """True unless the training mode of Dropout is on, which is an input since opset 12."""
    return node.input(2) is None or not node.constant(2).array.any()


def transpose(value: SymbolicTensor, perm: Sequence[int] | None) -> SymbolicTensor:
    """Permute the axes; None reverses them."""
    rank = len(value.axes)
    perm = list(range(rank))[::-1] if perm is None else [k % rank for k in perm]
    if sorted(perm) != list(range(rank)):
        raise UnsupportedError(f"its perm is {perm}, for a tensor of {count_axes(rank)}")
    order = [number for k in perm for number in _index_axes(value, k)]
    axes = tuple(value.axes[k] for k in perm)
    return replace(value, indices=value.indices.transpose(order), axes=axes)


def _index_axes(value: SymbolicTensor, axis: int) -> range:
    """Axes of `indices` that belong to one axis of the tensor."""
    start = sum(part == FEATURES for parts in value.axes[:axis] for part in parts)
    return range(start, start + value.axes[axis].count(FEATURES))


def unsqueeze(value: SymbolicTensor, axes: Sequence[int]) -> SymbolicTensor:
    """Insert axes of size 1."""
    rank = len(value.axes) + len(axes)
    places = {axis % rank for axis in axes if -rank <= axis < rank}
    if len(places) != len(axes):
        raise UnsupportedError(f"its axes are {list(axes)}, for a result of {rank} axes")
    old_axes = iter(value.axes)
    return replace(value, axes=tuple(() if k in places else next(old_axes) for k in range(rank)))


def squeeze(
    free_axes: FreeAxes, value: SymbolicTensor, axes: Sequence[int] | None
) -> SymbolicTensor:
    """Remove axes of size 1; None: all axes that are known to have size 1."""
    shape = free_axes.shape(value)
    if axes is None:
        axes = [k for k, n in enumerate(shape) if n == 1]
    for k in sorted({axis % len(shape) for axis in axes}, reverse=True):
        if shape[k] != 1:
            raise UnsupportedError(f"it squeezes axis {k}, which is not known to have size 1")
        value = _drop_axis(free_axes, value, k)
    return value


def _drop_axis(free_axes: FreeAxes, value: SymbolicTensor, k: int) -> SymbolicTensor:
    """Remove axis `k` of size 1; an axis of one step becomes that step."""
    for part in value.axes[k]:
        if part != FEATURES and part == free_axes.time and is_all_steps(value.step):
            value = tensor_at(value, free_axes.step_index(0))
    dropped = set(_index_axes(value, k))
    shape = [n for j, n in enumerate(value.indices.shape) if j not in dropped]
    axes = value.axes[:k] + value.axes[k + 1 :]
    return replace(value, indices=value.indices.reshape(shape), axes=axes)


def gather(
    free_axes: FreeAxes, value: SymbolicTensor, axis: int, positions: Array
) -> SymbolicTensor:
    """Select entries of an axis of features, or single steps of the axis of steps."""
    parts = value.axes[axis]
    if FEATURES in parts or not parts:
        value = as_features(value, axis)
        (number,) = _index_axes(value, axis)
        rest = value.indices.size * max(positions.size, 1) // value.indices.shape[number]
        check_feature_count(rest)
        indices = np.take(value.indices, positions.astype(np.int64), axis=number)
        new_axes: tuple[Axis, ...] = ((FEATURES,),) * positions.ndim
        axes = value.axes[:axis] + new_axes + value.axes[axis + 1 :]
        return replace(value, indices=indices, axes=axes)
    _record_selection(free_axes, value, axis)
    if positions.size > MAX_LISTED:
        raise UnsupportedError(f"it selects {positions.size:,} steps")
    numbers = [n if isinstance(n, OpenSize) else int(n) for n in positions.reshape(-1)]
    steps = [free_axes.step_index(n) for n in numbers]
    if positions.ndim == 0:
        return replace(tensor_at(value, steps[0]), axes=value.axes[:axis] + value.axes[axis + 1 :])
    return _select_steps(free_axes, value, axis, steps)


def as_features(value: SymbolicTensor, axis: int) -> SymbolicTensor:
    """Turn an axis of size 1 into an axis of features."""
    parts = value.axes[axis]
    if parts == (FEATURES,):
        return value
    if parts:
        raise UnsupportedError("it cuts an axis that holds more than features")
    number = _index_axes(value, axis).start
    axes = (*value.axes[:axis], (FEATURES,), *value.axes[axis + 1 :])
    return replace(value, indices=np.expand_dims(value.indices, number), axes=axes)


def _claim_step_axis(free_axes: FreeAxes, value: SymbolicTensor, axis: int) -> None:
    parts = value.axes[axis]
    if len(parts) != 1 or not free_axes.claim_time(parts[0]):
        raise UnsupportedError("it selects some sequences of a batch")


def _record_selection(free_axes: FreeAxes, value: SymbolicTensor, axis: int) -> None:
    """Claim the axis of steps, and remember a recurrent output whose steps are selected."""
    _claim_step_axis(free_axes, value, axis)
    if isinstance(value.signal, RecurrentDirection | Concatenation):
        free_axes.indexed_vectors.append(value.vector)


def _select_steps(
    free_axes: FreeAxes, value: SymbolicTensor, axis: int, steps: Sequence[Any]
) -> SymbolicTensor:
    """Select single steps, which become entries of an axis of features."""
    all_steps = range(len(steps)) if isinstance(steps, range) else list(range(len(steps)))
    if len(steps) == free_axes.steps and steps == all_steps:
        return value
    if len(steps) == free_axes.steps and steps == all_steps[::-1]:
        return replace(value, step=compose_steps(value.step, REVERSED_STEPS))
    if not 0 < len(steps) <= MAX_STEPS:
        raise UnsupportedError(f"it selects {len(steps):,} steps")
    axes = (*value.axes[:axis], (), *value.axes[axis + 1 :])
    tensors = [replace(tensor_at(value, step), axes=axes) for step in steps]
    return tensors[0] if len(tensors) == 1 else concatenate_tensors(tensors, axis, "steps")


def slice_axis(
    free_axes: FreeAxes, value: SymbolicTensor, axis: int, start: Any, stop: Any, step: int
) -> SymbolicTensor:
    """Select a range of features or of steps."""
    parts = value.axes[axis]
    if FEATURES in parts or not parts:
        value = as_features(value, axis)
        (number,) = _index_axes(value, axis)
        index = [slice(None)] * value.indices.ndim
        index[number] = clamp_slice(int(start), int(stop), int(step), value.indices.shape[number])
        return replace(value, indices=value.indices[tuple(index)])
    size = product_of(free_axes.size(part) for part in parts)
    to_end = stop == size or (isinstance(stop, int) and stop >= (1 << 31) - 1)
    if step == 1 and start == 0 and (to_end or (isinstance(size, int) and stop >= size)):
        return value
    _record_selection(free_axes, value, axis)
    if isinstance(size, int) and not free_axes.traced:
        steps = range(size)[clamp_slice(int(start), int(stop), int(step), size)]
        return _select_steps(free_axes, value, axis, steps)
    if step == -1 and start == -1 and isinstance(stop, int) and stop <= -(1 << 31) + 1:
        return replace(value, step=compose_steps(value.step, REVERSED_STEPS))
    return _select_open_steps(free_axes, value, axis, start, stop, to_end, step)


def _select_open_steps(
    free_axes: FreeAxes,
    value: SymbolicTensor,
    axis: int,
    start: Any,
    stop: Any,
    to_end: bool,
    step: int,
) -> SymbolicTensor:
    """Select a range of an open number of steps: steps next to the first or the last one."""
    first = free_axes.step_index(start)
    if not isinstance(first, int) or step != 1:
        raise UnsupportedError("it selects steps that depend on an open size")
    end = 0 if to_end else free_axes.step_index(stop)
    if not isinstance(end, int) or (first < 0) != (end <= 0 and first < 0) or end - first < 1:
        raise UnsupportedError("it selects steps that depend on an open size")
    return _select_steps(free_axes, value, axis, range(first, end))


def concatenate_tensors(values: Sequence[SymbolicTensor], axis: int, where: str) -> SymbolicTensor:
    """Concat along an axis of features."""
    values = [as_features(value, axis) for value in values]
    first = values[0]
    if any(value.axes != first.axes for value in values):
        raise UnsupportedError("it joins tensors of different layouts")
    (number,) = _index_axes(first, axis)
    check_feature_count(sum(value.indices.size for value in values))
    source = concatenate([value.vector for value in values], where)
    ends = np.cumsum([value.indices.size for value in values])
    places = [
        np.arange(value.indices.size).reshape(value.indices.shape) + end - value.indices.size
        for value, end in zip(values, ends, strict=True)
    ]
    indices = source.indices[np.concatenate(places, axis=number)]
    return SymbolicTensor(source.signal, source.step, indices, first.axes)


def split(
    free_axes: FreeAxes, value: SymbolicTensor, axis: int, node: GraphNode
) -> list[SymbolicTensor]:
    """Parts of a tensor along an axis."""
    size = free_axes.shape(value)[axis]
    if isinstance(size, OpenSize):
        lengths = node.split_lengths()
        if not lengths or min(lengths) < 1:
            raise UnsupportedError("it splits an axis of open size")
        ends = [int(n) for n in np.cumsum(lengths)]
    else:
        ends = [*node.split_points(size), size]
    starts = [0, *ends[:-1]]
    return [
        slice_axis(free_axes, value, axis, start, end, 1)
        for start, end in zip(starts, ends, strict=True)
    ]


def expand(free_axes: FreeAxes, value: SymbolicTensor, shape: Sequence[AxisSize]) -> SymbolicTensor:
    """Expand to a shape that the tensor already has; repeating numbers is unsupported."""
    rank = max(len(shape), len(value.axes))
    sizes: list[AxisSize] = [*[1] * (rank - len(value.axes)), *free_axes.shape(value)]
    target = [*[1] * (rank - len(shape)), *shape]
    if any(n not in (1, -1) and n != size for n, size in zip(target, sizes, strict=True)):
        raise UnsupportedError(f"it repeats {format_sizes(sizes)} to {format_sizes(target)}")
    return replace(value, axes=((),) * (rank - len(value.axes)) + value.axes)


def reverse(free_axes: FreeAxes, value: SymbolicTensor, axis: int) -> SymbolicTensor:
    """Reverse the order of the steps."""
    _claim_step_axis(free_axes, value, axis)
    return replace(value, step=compose_steps(value.step, REVERSED_STEPS))


def flatten(free_axes: FreeAxes, value: SymbolicTensor, axis: int) -> SymbolicTensor:
    """Flatten to two axes: all axes before `axis`, and the rest."""
    axis = axis + len(value.axes) if axis < 0 else axis
    shape = free_axes.shape(value)
    return reshape(free_axes, value, [product_of(shape[:axis]), product_of(shape[axis:])])


def reshape(
    free_axes: FreeAxes, value: SymbolicTensor, target: Sequence[AxisSize], zero: bool = False
) -> SymbolicTensor:
    """Reshape to `target`; 0 keeps the size of an axis unless `zero` is true."""
    sizes = free_axes.shape(value)
    shape = [sizes[k] if n == 0 and not zero else n for k, n in enumerate(target)]
    total = product_of(sizes)
    if -1 in shape:
        rest = product_of(n for n in shape if not (isinstance(n, int) and n == -1))
        filler = total.divided(rest) if isinstance(total, OpenSize) else total // int(rest or 1)  # type: ignore[arg-type]
        shape[shape.index(-1)] = filler
    if product_of(shape) != total:
        raise UnsupportedError(f"it reshapes {format_sizes(sizes)} to {format_sizes(shape)}")
    return _AxisRegrouping(free_axes, value).regroup(shape)


class _AxisRegrouping:
    """Distributes the parts of a tensor's axes over the axes of a new shape."""

    def __init__(self, free_axes: FreeAxes, value: SymbolicTensor) -> None:
        self.free_axes, self.value = free_axes, value
        features = iter(value.indices.shape)
        self.parts: list[tuple[str, AxisSize]] = [
            (part, next(features) if part == FEATURES else free_axes.size(part))
            for axis in value.axes
            for part in axis
        ]
        self.parts.reverse()

    def regroup(self, shape: Sequence[AxisSize]) -> SymbolicTensor:
        """Tensor with the axes of `shape`.

        Raises
        ------
        UnsupportedError
            An axis of the new shape mixes parts of several axes.
        """
        groups = [self._group(n) for n in shape]
        if self.parts:
            if any(size != 1 for _, size in self.parts) or not groups:
                raise UnsupportedError(
                    f"it reshapes to {format_sizes(shape)}, which mixes the tensor's axes"
                )
            groups[-1] += self.parts[::-1]
        value, axes, sizes = self.value, [], list[int]()
        for group in groups:
            if len(group) > 1:
                value, group = self._without_unit_axes(value, group)
            axis, feature_sizes = _merged(group)
            axes.append(axis)
            sizes += feature_sizes
        return replace(value, indices=value.indices.reshape(sizes), axes=tuple(axes))

    def _group(self, size: AxisSize) -> list[tuple[str, AxisSize]]:
        """Take the next parts that form an axis of this size."""
        if size == 1 and not (self.parts and self.parts[-1][1] == 1):
            return []
        group: list[tuple[str, AxisSize]] = []
        group_size: AxisSize = 1
        while self.parts and (group_size != size or not group):
            part, part_size = self.parts.pop()
            product = group_size * part_size
            if part == FEATURES and product != size and isinstance(product, int):
                part_size = self._split(size, group_size, part_size)
                product = group_size * part_size
            group.append((part, part_size))
            group_size = product
        if group_size != size:
            raise UnsupportedError(
                f"it reshapes to an axis of size {format_sizes([size])}, which mixes the "
                "tensor's axes"
            )
        return group

    def _split(self, size: AxisSize, group_size: AxisSize, part_size: AxisSize) -> AxisSize:
        """Features that complete an axis of `size`; the other features stay for the next axis."""
        if not (isinstance(size, int) and isinstance(group_size, int)):
            return part_size
        if (
            not isinstance(part_size, int)
            or group_size * part_size < size
            or not group_size
            or size % group_size
        ):
            return part_size
        features = size // group_size
        if part_size % features:
            return part_size
        self.parts.append((FEATURES, part_size // features))
        return features

    def _without_unit_axes(
        self, value: SymbolicTensor, group: list[tuple[str, AxisSize]]
    ) -> tuple[SymbolicTensor, list[tuple[str, AxisSize]]]:
        """Remove free axes of size 1 from a group; an axis of one step becomes that step."""
        rest = []
        for part, size in group:
            if part == FEATURES or size != 1:
                rest.append((part, size))
            elif part == self.free_axes.time and is_all_steps(value.step):
                value = tensor_at(value, self.free_axes.step_index(0))
        return value, rest or group[:1]


def _merged(group: Sequence[tuple[str, AxisSize]]) -> tuple[Axis, list[int]]:
    """Merge adjacent parts of features: one axis, and the sizes of its parts of features."""
    axis: list[str] = []
    sizes: list[int] = []
    for part, size in group:
        if part == FEATURES and axis[-1:] == [FEATURES]:
            sizes[-1] *= int(size)  # type: ignore[arg-type]
            continue
        axis.append(part)
        sizes += [int(size)] if part == FEATURES else []  # type: ignore[arg-type]
    return tuple(axis), sizes


def format_sizes(sizes: Sequence[AxisSize]) -> str:
    """Format a shape for errors; an open size is ``?``."""
    return str(tuple(n if isinstance(n, int) else "?" for n in sizes))


def tensor_at(value: SymbolicTensor, step: Any) -> SymbolicTensor:
    """Select one step of a tensor; the caller removes the axis of steps."""
    return replace(value, step=vector_at(value.vector, step).step)
