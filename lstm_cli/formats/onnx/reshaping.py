"""Reshape: the same numbers over other axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lstm_cli.formats.onnx.frame import Frame, every, merged
from lstm_cli.formats.onnx.sizes import Number, Size, product
from lstm_cli.formats.onnx.values import FEATURES, RefusedError, Value
from lstm_cli.formats.onnx.vectors import at


def flatten(frame: Frame, value: Value, axis: int) -> Value:
    """Two axes: what stands before `axis`, and the rest."""
    axis = axis + len(value.axes) if axis < 0 else axis
    dims = frame.dims(value)
    return reshape(frame, value, [product(dims[:axis]), product(dims[axis:])])


def reshape(frame: Frame, value: Value, target: Sequence[Number], zero: bool = False) -> Value:
    """The same numbers in the same order over other axes."""
    dims = frame.dims(value)
    shape = [dims[k] if n == 0 and not zero else n for k, n in enumerate(target)]
    total = product(dims)
    if -1 in shape:
        rest = product(n for n in shape if not (isinstance(n, int) and n == -1))
        filler = total.divided(rest) if isinstance(total, Size) else total // int(rest or 1)  # type: ignore[arg-type]
        shape[shape.index(-1)] = filler
    if product(shape) != total:
        raise RefusedError(f"it reshapes {shown(dims)} to {shown(shape)}")
    return _Regrouping(frame, value).grouped(shape)


class _Regrouping:
    """Spreads the parts of a value's axes over new ones."""

    def __init__(self, frame: Frame, value: Value) -> None:
        self.frame, self.value = frame, value
        features = iter(value.pick.shape)
        self.parts: list[tuple[str, Number]] = [
            (part, next(features) if part == FEATURES else frame.size(part))
            for axis in value.axes
            for part in axis
        ]
        self.parts.reverse()

    def grouped(self, shape: Sequence[Number]) -> Value:
        groups = [self._group(n) for n in shape]
        if self.parts:
            if any(size != 1 for _, size in self.parts) or not groups:
                raise RefusedError(f"it reshapes to {shown(shape)} across the axes")
            groups[-1] += self.parts[::-1]
        value, axes, sizes = self.value, [], list[int]()
        for group in groups:
            if len(group) > 1:
                value, group = self._thinned(value, group)
            axis = merged([tuple(part for part, _ in group)])
            axes.append(axis)
            sizes += _merged_sizes(group)
        return replace(value, pick=value.pick.reshape(sizes), axes=tuple(axes))

    def _group(self, size: Number) -> list[tuple[str, Number]]:
        """The next parts that make an axis of this size."""
        if size == 1 and not (self.parts and self.parts[-1][1] == 1):
            return []
        group: list[tuple[str, Number]] = []
        have: Number = 1
        while self.parts and (have != size or not group):
            part, own = self.parts.pop()
            grown = have * own
            if part == FEATURES and grown != size and isinstance(grown, int):
                own = self._split(size, have, own)
                grown = have * own
            group.append((part, own))
            have = grown
        if have != size:
            raise RefusedError(f"it reshapes to an axis of {shown([size])} across others")
        return group

    def _split(self, size: Number, have: Number, own: Number) -> Number:
        """How much of an axis of features an axis takes; the rest is for the next one."""
        if not (isinstance(size, int) and isinstance(have, int) and isinstance(own, int)):
            return own
        if have * own < size or not have or size % have or own % (size // have):
            return own
        taken = size // have
        self.parts.append((FEATURES, own // taken))
        return taken

    def _thinned(
        self, value: Value, group: list[tuple[str, Number]]
    ) -> tuple[Value, list[tuple[str, Number]]]:
        """A group without free axes of size 1, which only stood between others."""
        kept = []
        for part, size in group:
            if part == FEATURES or size != 1:
                kept.append((part, size))
            elif part == self.frame.time and every(value.step):
                value = at_step(value, self.frame.index(0))
        return value, kept or group[:1]


def _merged_sizes(group: Sequence[tuple[str, Number]]) -> list[int]:
    sizes: list[int] = []
    previous = ""
    for part, size in group:
        if part == FEATURES:
            n = int(size)  # type: ignore[arg-type]
            if previous == FEATURES:
                sizes[-1] *= n
            else:
                sizes.append(n)
        previous = part
    return sizes


def shown(sizes: Sequence[Number]) -> str:
    return str(tuple(n if isinstance(n, int) else "?" for n in sizes))


def at_step(value: Value, step: Any) -> Value:
    """One step of a value; its axes are the caller's to mend."""
    found = at(value.vector, step)
    return replace(value, step=found.step)
