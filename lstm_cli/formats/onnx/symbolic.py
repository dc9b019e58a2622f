"""Symbolic values of an ONNX graph: each value records the computation that it comes from.

A `Signal` is a computed quantity: the input, a recurrent direction, a linear map, an activation.
A `FeatureVector` selects features of a signal at one step or at all steps. A `SymbolicTensor`
lays a feature vector out over the axes of a tensor. An operator that only moves numbers
(Transpose, Reshape, Slice, Gather, ...) changes the features, the step or the axes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeAlias

import numpy as np

from lstm_cli.cells import Activation
from lstm_cli.engines.types import Array
from lstm_cli.errors import LstmCliError
from lstm_cli.formats.builder import NativeTensor

ALL_STEPS, REVERSED_STEPS = "all", "reversed"
"""All steps in order, or all steps from the last to the first."""

StepIndex: TypeAlias = "int | str | None"
"""One step (negative: from the end), `ALL_STEPS`, `REVERSED_STEPS`, or None for a signal without
steps."""

Axis: TypeAlias = "tuple[str, ...]"
"""Contents of one tensor axis: names of free axes, and `FEATURES` for an axis of features."""

FEATURES = "f"

MAX_FEATURES = 1 << 22
"""Largest number of features of a value. Only wrong or hostile files exceed it."""


class UnsupportedError(ValueError):
    """lstm-cli cannot represent an operation of the graph; the message is a clause."""


@dataclass(frozen=True)
class Origin:
    """Name, shape and dtype of the stored tensor that a constant comes from."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, eq=False)
class ConstantTensor:
    """A tensor that does not depend on the graph's inputs.

    Attributes
    ----------
    array
        Values; of dtype object if some values are open sizes.
    origins
        Stored tensors that the constant comes from.
    change
        Operation applied to the stored tensors: empty, ``transposed`` or ``computed``.
    open_as_one
        An axis of open size has size 1 in `array`: all entries along that axis are equal.
    """

    array: Any
    origins: tuple[Origin, ...] = ()
    change: str = ""
    open_as_one: bool = False


@dataclass(frozen=True)
class RuntimeInput:
    """A graph input other than the sequences (a state or lengths), or a view of such an input.

    `computed` is true if an operator may have changed its values.
    """

    name: str
    computed: bool = False


@dataclass(frozen=True, eq=False)
class GreaterThan:
    """Boolean mask of the features that are larger than a limit."""

    vector: FeatureVector
    limit: float


@dataclass(frozen=True)
class UnsupportedValue:
    """A value that lstm-cli cannot represent; an error only if the output depends on it."""

    what: str
    error: LstmCliError | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Signal:
    """A computed quantity of `size` features; one vector per step if `per_step` is true.

    `where` names the node that computes the signal, for errors.
    """

    size: int
    per_step: bool
    where: str

    def __repr__(self) -> str:
        """Type, size and node only: a signal holds its whole computation."""
        return f"{type(self).__name__}({self.size}) of {self.where}"


@dataclass(frozen=True, eq=False)
class FeatureVector:
    """Features `indices` (n,) of a signal, at one step or at all steps."""

    signal: Signal
    step: StepIndex
    indices: Array


@dataclass(frozen=True, eq=False)
class SymbolicTensor:
    """A feature vector over the axes of a tensor.

    `indices` has one axis for each `FEATURES` in `axes`, in the same order.
    """

    signal: Signal
    step: StepIndex
    indices: Array
    axes: tuple[Axis, ...]

    @property
    def vector(self) -> FeatureVector:
        """The features without the tensor's axes."""
        return FeatureVector(self.signal, self.step, self.indices.reshape(-1))


GraphValue: TypeAlias = (
    "SymbolicTensor | ConstantTensor | RuntimeInput | GreaterThan | UnsupportedValue"
)


@dataclass(frozen=True, eq=False, repr=False)
class InputSequences(Signal):
    """The graph's input of sequences."""


@dataclass(frozen=True, eq=False, repr=False)
class ZeroState(Signal):
    """A state of zeros before the first step."""


@dataclass(frozen=True, eq=False)
class Weight:
    """A matrix (in, out), or the diagonal (n,) of a diagonal matrix, with its stored tensors.

    `columns` is the range of columns of the stored tensor; None: all columns, or unknown.
    """

    array: Array
    origins: tuple[Origin, ...] = ()
    change: str = ""
    columns: tuple[int, int] | None = None

    @property
    def diagonal(self) -> bool:
        """True if the weight only scales each feature."""
        return bool(self.array.ndim == 1)

    @property
    def identity(self) -> bool:
        """True if the weight is the identity matrix."""
        return self.diagonal and bool((self.array == 1).all())


@dataclass(frozen=True, eq=False)
class Term:
    """One summand of a linear map."""

    source: FeatureVector
    weight: Weight


@dataclass(frozen=True, eq=False, repr=False)
class LinearMap(Signal):
    """The sum of all `terms` plus `bias` (n,)."""

    terms: tuple[Term, ...] = ()
    bias: Weight | None = None


@dataclass(frozen=True, eq=False, repr=False)
class ActivationOutput(Signal):
    """An elementwise activation of `source`."""

    source: FeatureVector
    activation: Activation


@dataclass(frozen=True, eq=False, repr=False)
class SoftmaxOutput(Signal):
    """Softmax over all features of `source`."""

    source: FeatureVector


@dataclass(frozen=True, eq=False, repr=False)
class ElementwiseProduct(Signal):
    """The elementwise product of two vectors."""

    first: FeatureVector
    second: FeatureVector


@dataclass(frozen=True, eq=False, repr=False)
class Concatenation(Signal):
    """Vectors joined along their features; no part is itself a `Concatenation`."""

    parts: tuple[FeatureVector, ...]


@dataclass(frozen=True, eq=False, repr=False)
class FlattenedSteps(Signal):
    """All steps of a vector joined into one vector, step by step."""

    source: FeatureVector
    steps: int


@dataclass(frozen=True)
class AmbiguousParameter:
    """Activation parameter that the file omits, or that ONNX Runtime reads in another way.

    Attributes
    ----------
    role, letter
        Option of the layer, such as ``cell_activation``, and ``alpha`` or ``beta``.
    name
        Name of the activation in the file.
    value, other
        Value that lstm-cli takes, and the alternative.
    why
        Source of the alternative, as the beginning of a clause.
    """

    role: str
    letter: str
    name: str
    value: float
    other: float
    why: str


@dataclass(frozen=True, eq=False, repr=False)
class RecurrentDirection(Signal):
    """One direction of a recurrent layer.

    Attributes
    ----------
    kind, options
        Cell and options as in the config, without the hidden size; activations are objects.
    source
        Input of the direction, at all steps in order.
    reverse
        The direction runs from the last step to the first; output k still belongs to step k.
    tensors
        Weights with their sources, by native name without layer and direction.
    input_states
        States (``h``, ``c``) that are inputs of the graph.
    ambiguous_parameters
        Activation parameters with more than one reading.
    ragged
        The lengths of the sequences are an input of the graph.
    """

    kind: str
    options: Mapping[str, Any]
    source: FeatureVector
    reverse: bool
    tensors: Mapping[str, NativeTensor]
    input_states: frozenset[str] = frozenset()
    ambiguous_parameters: tuple[AmbiguousParameter, ...] = ()
    ragged: bool = False


@dataclass(frozen=True, eq=False, repr=False)
class FinalCellState(Signal):
    """Final c of a recurrent direction: an output of the graph that no layer can read."""


def count_axes(rank: int) -> str:
    """Number of axes with its noun, for errors."""
    return "1 axis" if rank == 1 else f"{rank} axes"


def check_feature_count(count: int) -> None:
    """Limit the number of features of one value.

    Raises
    ------
    UnsupportedError
        The value has more than `MAX_FEATURES` features.
    """
    if count > MAX_FEATURES:
        raise UnsupportedError(f"it makes one value of {count:,} features")


def all_features(signal: Signal) -> FeatureVector:
    """All features of a signal, at all steps if it has steps."""
    return FeatureVector(signal, ALL_STEPS if signal.per_step else None, np.arange(signal.size))


def compose_steps(inner: StepIndex, outer: StepIndex) -> StepIndex:
    """Step of the source if a reader at step `outer` reads the source at step `inner`."""
    if inner is None or isinstance(inner, int):
        return inner
    if inner == ALL_STEPS:
        return outer
    if outer == ALL_STEPS:
        return REVERSED_STEPS
    if outer == REVERSED_STEPS:
        return ALL_STEPS
    return None if outer is None else -1 - int(outer)


def vector_at(vector: FeatureVector, step: StepIndex) -> FeatureVector:
    """Select `step` of a vector that is read at all steps."""
    if isinstance(vector.signal, Concatenation) and not vector.signal.per_step:
        return vector
    return FeatureVector(vector.signal, compose_steps(vector.step, step), vector.indices)


def parts_of(vector: FeatureVector) -> Iterator[FeatureVector]:
    """Split a vector into consecutive parts of signals that are no `Concatenation`."""
    if not isinstance(vector.signal, Concatenation):
        yield vector
        return
    parts = vector.signal.parts
    ends = np.cumsum([part.indices.size for part in parts])
    which = np.searchsorted(ends, vector.indices, side="right")
    breaks = np.flatnonzero(np.diff(which)) + 1
    runs = np.split(which, breaks), np.split(np.asarray(vector.indices), breaks)
    for part_numbers, positions in zip(*runs, strict=True):
        if part_numbers.size:
            part = parts[part_numbers[0]]
            start = ends[part_numbers[0]] - part.indices.size
            step = compose_steps(part.step, vector.step) if vector.signal.per_step else part.step
            yield FeatureVector(part.signal, step, part.indices[positions - start])


def concatenate(vectors: Sequence[FeatureVector], where: str) -> FeatureVector:
    """Join vectors along their features; neighbors of one signal and step become one part."""
    check_feature_count(sum(vector.indices.size for vector in vectors))
    flat = (part for vector in vectors for part in parts_of(vector))
    parts = []
    for _, group in groupby(flat, lambda part: (id(part.signal), part.step)):
        run = list(group)
        indices = np.concatenate([part.indices for part in run])
        parts.append(FeatureVector(run[0].signal, run[0].step, indices))
    if len(parts) == 1:
        return parts[0]
    per_step = any(part.step in (ALL_STEPS, REVERSED_STEPS) for part in parts)
    size = sum(part.indices.size for part in parts)
    return all_features(Concatenation(size, per_step, where, tuple(parts)))


def same_vector(one: FeatureVector, other: FeatureVector) -> bool:
    """True if both vectors are the same features of the same signals at the same steps."""
    pairs = zip(parts_of(one), parts_of(other), strict=False)
    return one.indices.size == other.indices.size and all(
        a.signal is b.signal and a.step == b.step and np.array_equal(a.indices, b.indices)
        for a, b in pairs
    )


def same_array(one: Array, other: Array) -> bool:
    """True if both arrays hold the same numbers; two views of the same memory are not read."""
    if one.shape != other.shape:
        return False
    if one.strides == other.strides and one.ctypes.data == other.ctypes.data:
        return True
    return bool(np.array_equal(one, other))


def is_identity_selection(indices: Array, size: int) -> bool:
    """True if the indices are all of `size` features, in order."""
    return bool(indices.size == size and (indices == np.arange(size)).all())


def is_complete(vector: FeatureVector) -> bool:
    """True if the vector is all features of its signal, in order."""
    return is_identity_selection(vector.indices, vector.signal.size)


def shortest_decimal(value: float) -> float:
    """Round a float32 to the shortest decimal that denotes the same float32."""
    return float(str(np.float32(value)))
