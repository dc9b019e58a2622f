"""Open sizes and free axes: the axis sizes that an ONNX graph does not fix.

An `OpenSize` is a polynomial in the names of free axes. `FreeAxes` records the axes of steps and
batch, which the operators of the graph reveal one by one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.formats.onnx.symbolic import (
    ALL_STEPS,
    FEATURES,
    REVERSED_STEPS,
    Axis,
    FeatureVector,
    StepIndex,
    SymbolicTensor,
    UnsupportedError,
)

MAX_TERMS = 16
"""Largest number of terms of a polynomial, and largest number of factors of a term."""

AxisSize: TypeAlias = "int | OpenSize"
"""Size of an axis: a number, or open."""


class OpenSizeError(UnsupportedError):
    """A calculation needs the number of an open size."""


@dataclass(frozen=True)
class OpenSize:
    """Polynomial: pairs of sorted axis names and a coefficient; () is the constant term."""

    terms: tuple[tuple[tuple[str, ...], int], ...]

    @classmethod
    def of(cls, name: str) -> OpenSize:
        """Size of the free axis `name`."""
        return cls((((name,), 1),))

    def __add__(self, other: object) -> AxisSize:
        terms = dict(self.terms)
        for names, count in _terms(other):
            terms[names] = terms.get(names, 0) + count
        return _from_terms(terms)

    def __mul__(self, other: object) -> AxisSize:
        terms: dict[tuple[str, ...], int] = {}
        for names, count in self.terms:
            for more, times in _terms(other):
                key = tuple(sorted(names + more))
                terms[key] = terms.get(key, 0) + count * times
        return _from_terms(terms)

    def __neg__(self) -> AxisSize:
        return self * -1

    def __sub__(self, other: object) -> AxisSize:
        return self + OpenSize(tuple(_terms(other))) * -1

    def __rsub__(self, other: object) -> AxisSize:
        return OpenSize(tuple(_terms(self * -1))) + other

    __radd__ = __add__
    __rmul__ = __mul__

    def divided(self, by: AxisSize) -> AxisSize:
        """Exact quotient.

        Raises
        ------
        OpenSizeError
            The quotient is not a polynomial.
        """
        if by == self:
            return 1
        if isinstance(by, int) and by and all(count % by == 0 for _, count in self.terms):
            return _from_terms({names: count // by for names, count in self.terms})
        if isinstance(by, OpenSize) and len(by.terms) == 1:
            ((names, count),) = by.terms
            quotients = [(_without_names(k, names), n) for k, n in self.terms]
            if all(not n % count and k is not None for k, n in quotients):
                return _from_terms({k or (): n // count for k, n in quotients})
        raise OpenSizeError("it divides an open size")

    @property
    def names(self) -> frozenset[str]:
        """Names of the free axes in the polynomial."""
        return frozenset(name for names, _ in self.terms for name in names)

    @property
    def offset(self) -> tuple[str, int] | None:
        """(name, k) if the size is that of one axis plus k, else None."""
        terms = dict(self.terms)
        k = terms.pop((), 0)
        if len(terms) != 1:
            return None
        ((names, count),) = terms.items()
        return (names[0], k) if count == 1 and len(names) == 1 else None


def product_of(sizes: Iterable[AxisSize]) -> AxisSize:
    """Product of all sizes; 1 for no sizes."""
    total: AxisSize = 1
    for size in sizes:
        total = total * size
    return total


def size_exceeds(one: AxisSize, other: AxisSize) -> bool:
    """True if `one` is larger than `other`, for open sizes of at least 1.

    Raises
    ------
    OpenSizeError
        The answer depends on the open sizes.
    """
    difference = one - other
    if isinstance(difference, int):
        return difference > 0
    low, high = _bounds(difference)
    if low > 0 or high <= 0:
        return low > 0
    raise OpenSizeError("a comparison depends on an open size")


def size_equals(one: AxisSize, other: AxisSize) -> bool:
    """True if both sizes are equal for all open sizes, False if they are equal for none.

    Raises
    ------
    OpenSizeError
        The answer depends on the open sizes.
    """
    if one == other:
        return True
    difference = one - other
    if isinstance(difference, int):
        return False
    low, high = _bounds(difference)
    if low > 0 or high < 0:
        return False
    raise OpenSizeError("a comparison depends on an open size")


def _bounds(size: OpenSize) -> tuple[float, float]:
    """Bounds of a polynomial for open sizes of at least 1; infinite if unknown."""
    counts = [count for names, count in size.terms if names]
    at_one = sum(count for _, count in size.terms)
    rises, falls = all(count > 0 for count in counts), all(count < 0 for count in counts)
    return at_one if rises else -math.inf, at_one if falls else math.inf


def whole_number(number: object) -> int:
    """Convert a size to int.

    Raises
    ------
    OpenSizeError
        The size is open.
    UnsupportedError
        The number is not an integer.
    """
    if isinstance(number, OpenSize):
        raise OpenSizeError("it needs the number of an open size")
    value = float(number)  # type: ignore[arg-type]
    if not math.isfinite(value) or value != int(value):
        raise UnsupportedError(f"{value} is not a size")
    return int(number)  # type: ignore[call-overload, no-any-return]


def size_array(numbers: Sequence[Any]) -> Array:
    """Sizes as an array: int64, or dtype object if a size is open."""
    if any(isinstance(number, OpenSize) for number in numbers):
        array = np.empty(len(numbers), object)
        array[:] = numbers
        return array
    return np.array(numbers, np.int64)


def _terms(value: object) -> tuple[tuple[tuple[str, ...], int], ...]:
    return value.terms if isinstance(value, OpenSize) else (((), whole_number(value)),)


def _from_terms(terms: dict[tuple[str, ...], int]) -> AxisSize:
    nonzero = {names: count for names, count in terms.items() if count}
    large = any(abs(count) >> 63 for count in nonzero.values())
    if large or len(nonzero) > MAX_TERMS or any(len(names) > MAX_TERMS for names in nonzero):
        raise OpenSizeError("its calculation of sizes grows too large")
    if not any(nonzero):
        return nonzero.get((), 0)
    return OpenSize(tuple(sorted(nonzero.items())))


def _without_names(names: tuple[str, ...], without: tuple[str, ...]) -> tuple[str, ...] | None:
    rest = list(names)
    for name in without:
        if name not in rest:
            return None
        rest.remove(name)
    return tuple(rest)


class FreeAxes:
    """The free axes of the input; operators reveal the axis of steps and the batch axis.

    Attributes
    ----------
    sizes
        Size of each axis by name; None: open.
    labels
        Text for each axis in errors.
    traced
        An open size was replaced by a number that the exporter wrote into the graph.
    batch, time
        Names of the batch axis and of the axis of steps, None until they are known.
    indexed_vectors
        Vectors of which an operator selected single steps.
    """

    def __init__(
        self, sizes: dict[str, int | None], labels: Mapping[str, str], *, traced: bool = False
    ) -> None:
        self.sizes, self.labels, self.traced = sizes, labels, traced
        self.batch: str | None = None
        self.time: str | None = None
        self.indexed_vectors: list[FeatureVector] = []

    @property
    def steps(self) -> int | None:
        """Number of steps T; None if it is open or the axis of steps is unknown."""
        return None if self.time is None else self.sizes[self.time]

    def size(self, name: str) -> AxisSize:
        """Size of a free axis."""
        size = self.sizes[name]
        return OpenSize.of(name) if size is None else size

    def shape(self, value: SymbolicTensor) -> list[AxisSize]:
        """Shape of a symbolic tensor."""
        features = iter(value.indices.shape)
        return [
            product_of(next(features) if part == FEATURES else self.size(part) for part in axis)
            for axis in value.axes
        ]

    def claim_time(self, name: str) -> bool:
        """Use an axis as the axis of steps; False if the axis is known to be the batch.

        Raises
        ------
        UnsupportedError
            Another axis is already the axis of steps.
        """
        if name == self.batch:
            return False
        if self.time not in (None, name):
            raise UnsupportedError("two axes are used as steps")
        self.time = name
        if len(self.sizes) == 2:
            self.batch = next(other for other in self.sizes if other != name)
        return True

    def claim_axes(self, time: Axis, batch: Axis) -> None:
        """Use two axes as the axis of steps and the batch axis.

        Raises
        ------
        UnsupportedError
            The axes have other contents, or another use elsewhere in the graph.
        """
        if len(time) != 1 or len(batch) > 1 or FEATURES in time + batch:
            raise UnsupportedError("its input is not laid out as steps, sequences and features")
        if not self.claim_time(time[0]) or (batch and batch[0] != (self.batch or batch[0])):
            raise UnsupportedError("it uses as steps an axis that is the batch elsewhere")

    def step_index(self, step: AxisSize) -> StepIndex:
        """Resolve the number of a step; a negative number stays negative if T is open.

        Raises
        ------
        UnsupportedError
            The step is out of range, or depends on an open size.
        """
        if isinstance(step, OpenSize):
            offset = step.offset
            if offset is None or offset[0] != self.time or offset[1] >= 0:
                raise UnsupportedError("it selects a step that depends on an open size")
            step = offset[1]
        if self.traced:
            if step > 0:
                raise UnsupportedError(f"it selects step {step} of an open number of steps")
        elif self.steps is not None:
            if not -self.steps <= step < self.steps:
                raise UnsupportedError(f"it selects step {step} of {self.steps}")
            return step % self.steps
        return int(step)

    def is_last(self, step: StepIndex) -> bool:
        """True for the last step."""
        return step == -1 or (self.steps is not None and step == self.steps - 1)

    def is_first(self, step: StepIndex) -> bool:
        """True for step 0."""
        return step == 0 or (self.steps is not None and step == -self.steps)


def is_all_steps(step: StepIndex) -> bool:
    """True for all steps, in either order."""
    return step in (ALL_STEPS, REVERSED_STEPS)
