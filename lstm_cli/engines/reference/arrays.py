"""Arrays in NumPy's memory: elementwise expressions, losses of rows, and trivial transfers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from lstm_cli.cells.expression import Expression, Program
from lstm_cli.engines.feed import HostFeed
from lstm_cli.engines.types import Array, Deferred, RowsLoss, Values

CHUNK = 1 << 16
"""Numbers of each array per evaluation, so that intermediate results stay in the cache."""

_FEW_CLASSES = 32
"""Largest number of classes for which logits are stored column by column."""


class HostArrays(ABC):
    """`lstm_cli.engines.protocols.ArrayOperations` of an engine whose arrays are NumPy arrays."""

    accelerator = None

    def feed(self) -> HostFeed:
        """The feed that copies nothing."""
        return HostFeed()

    def from_device_array(self, array: Any) -> Any:
        """Always None, since the engine has no memory but NumPy's."""
        return None

    def normalize(self, x: Array, mean: Array, scale: Array) -> Array:
        """`x` unchanged: the network normalizes NumPy arrays itself."""
        return x

    def from_padded(self, x: Array, lengths: Array | None) -> Array:
        """`x` unchanged: layers take padded arrays."""
        return x

    def to_padded(self, values: Array) -> Array:
        """`values` unchanged: layers return padded arrays."""
        return values

    def to_host(self, values: Array) -> Array:
        """`values` unchanged: they are in NumPy's memory."""
        return values

    def download(self, array: Array) -> Array:
        """A copy."""
        return np.array(array)

    def copy(self, array: Array) -> Array:
        """A writable copy without gaps."""
        return np.array(array, order="C")

    def convert_like(self, array: Any, other: Array) -> Array:
        """`array` in the dtype of `other`, without gaps."""
        return np.ascontiguousarray(array, other.dtype)

    def zeros_like(self, array: Array) -> Array:
        """Zeros in the shape and dtype of `array`."""
        return np.zeros_like(array)

    def empty_like(self, array: Array) -> Array:
        """Uninitialized array in the shape and dtype of `array`."""
        return np.empty_like(array)

    @abstractmethod
    def total(self, root: Expression, values: Values) -> float:
        """Sum of an expression over all elements."""

    def totals(self, root: Expression, many: Sequence[Values]) -> list[Deferred]:
        """Sums of an expression, computed at once."""
        sums = [self.total(root, values) for values in many]
        return [lambda value=value: value for value in sums]  # type: ignore[misc]

    def all_finite(self, arrays: Sequence[Array]) -> bool:
        """Whether all numbers are finite."""
        return all(bool(np.isfinite(array).all()) for array in arrays)

    def match_layout(self, array: Any, values: Array) -> Any:
        """Always None, since the engine has no layout but NumPy's."""
        return None

    def gather_valid(self, values: Array, rows: Array | None) -> Array:
        """The valid rows as one array (rows, F)."""
        if rows is None:
            return np.ascontiguousarray(values.reshape(-1, values.shape[-1]))
        return np.ascontiguousarray(values[rows])

    def scatter_valid(self, gathered: Array, values: Array, rows: Array | None) -> Array:
        """Rows in the shape of `values`, and 0 elsewhere."""
        padded = gathered.astype(values.dtype, copy=False)
        if rows is not None:
            padded = np.zeros(values.shape, values.dtype)
            padded[rows] = gathered
        return padded.reshape(values.shape)

    def cross_entropy(
        self, logits: Array, targets: Array, class_weights: Array | None, label_smoothing: float
    ) -> RowsLoss:
        """Cross-entropy of the softmax of logits (rows, F)."""
        return cross_entropy(logits, targets, class_weights, label_smoothing)


class NumpyElementwise(HostArrays):
    """Expressions on NumPy arrays, one cache-sized chunk at a time."""

    def evaluate(
        self, roots: Mapping[str, Expression], values: Values, out: Mapping[str, Array]
    ) -> None:
        """Compute every root, element by element, into its array of `out`."""
        program = _program(tuple(roots.items()))
        with np.errstate(all="ignore"):
            for inputs, outputs in _chunks(values, out):
                results = program(inputs)
                for name, root in roots.items():
                    if root.op == "symbol":  # an input, which another root may overwrite
                        results[name] = np.array(results[name])
                for name, array in outputs.items():
                    array[...] = results[name]

    def total(self, root: Expression, values: Values) -> float:
        """Sum of an expression over all elements, in double precision."""
        program = _program((("", root),))
        with np.errstate(all="ignore"):
            return float(sum(_sum(program, inputs) for inputs, _ in _chunks(values, {})))


def _sum(program: Program, inputs: Values) -> float:
    wide = {
        name: value.astype(np.float64) if isinstance(value, np.ndarray) else value
        for name, value in inputs.items()
    }
    result = program(wide)[""]
    if isinstance(result, np.ndarray):
        return float(result.sum())
    return float(result) * next(v.size for v in wide.values() if isinstance(v, np.ndarray))


@lru_cache(maxsize=256)
def _program(roots: tuple[tuple[str, Expression], ...]) -> Program:
    return Program(dict(roots))


def _chunks(
    values: Values, out: Mapping[str, Array]
) -> Iterator[tuple[Values, Mapping[str, Array]]]:
    """Flat views of `CHUNK` numbers of every array; numbers unchanged."""
    arrays = {name: v for name, v in values.items() if isinstance(v, np.ndarray)}
    check_same_layout([*arrays.values(), *out.values()])
    size = next(iter((arrays or out).values())).size
    if 0 < size <= CHUNK:
        yield values, out
        return
    inputs = {name: array.reshape(-1) for name, array in arrays.items()}
    outputs = {name: array.reshape(-1) for name, array in out.items()}
    for first in range(0, size, CHUNK):
        part = slice(first, first + CHUNK)
        chunk = {name: array[part] for name, array in inputs.items()}
        yield {**values, **chunk}, {name: array[part] for name, array in outputs.items()}


def check_same_layout(arrays: Sequence[Array]) -> None:
    """Refuse arrays that differ in shape or have gaps.

    Raises
    ------
    ValueError
        `arrays` is empty, or has several shapes, or an array with gaps. It is the caller's mistake.
    """
    if not arrays:
        raise ValueError("at least one array is needed")
    shape = arrays[0].shape
    for array in arrays:
        if array.shape != shape or not array.flags.c_contiguous:
            raise ValueError(f"arrays of one shape without gaps are needed, not {array.shape}")


NUMPY = NumpyElementwise()
"""Array operations for callers that have no engine."""


# Cross-entropy of rows


def _for_row_sums(logits: Array) -> Array:
    """A copy in the memory order in which NumPy sums rows fastest: the longer axis contiguous."""
    return np.array(logits, order="F" if logits.shape[-1] <= _FEW_CLASSES else "C")


@np.errstate(all="ignore")  # a value that is not finite shows in the loss
def log_softmax(logits: Array) -> Array:
    """Logarithm of the softmax over the last axis."""
    shifted = _for_row_sums(logits)
    shifted -= shifted.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


@np.errstate(all="ignore")  # a value that is not finite shows in the loss
def cross_entropy(
    a: Array, targets: Array, class_weights: Array | None, label_smoothing: float
) -> RowsLoss:
    """Loss of logits (rows, F) and its derivative.

    `lstm_cli.engines.protocols.ArrayOperations.cross_entropy` describes the parameters.
    """
    if targets.ndim == 1 and not label_smoothing:
        weights = np.ones(len(a)) if class_weights is None else class_weights[targets]
        return _class_cross_entropy(a, targets, weights)
    a, F = a.astype(np.float64), a.shape[1]
    t = targets if targets.ndim == 2 else np.eye(F)[targets]
    weights = np.ones(len(a))
    if class_weights is not None:
        weights = t @ class_weights
    smooth = (1 - label_smoothing) * t + label_smoothing / F
    if class_weights is not None:
        # The share of each class has the weight of that class, as in PyTorch. The division
        # cancels the row's weight, which is multiplied in below.
        smooth = smooth * class_weights / np.where(weights, weights, 1)[:, None]
    logs = log_softmax(a)
    d = np.exp(logs) * smooth.sum(axis=1, keepdims=True) - smooth
    total = float(weights.sum())
    scale = 1 / total if total else 0.0
    value = -float(((smooth * logs).sum(axis=1) * weights).sum())
    return RowsLoss(lambda: value, d * (weights * scale)[:, None], total, scale)


def _class_cross_entropy(a: Array, classes: Array, weights: Array) -> RowsLoss:
    """`cross_entropy` for one class per row, without label smoothing."""
    total = float(weights.sum())
    scale = 1 / total if total else 0.0
    e = _for_row_sums(a)
    e -= e.max(axis=1, keepdims=True)
    targets = np.arange(len(a)), classes
    margin = e[targets].astype(np.float64)
    np.exp(e, out=e)
    sums = e.sum(axis=1, dtype=np.float64)
    value = float(((np.log(sums) - margin) * weights).sum())
    e *= (weights * scale / sums).astype(e.dtype)[:, None]
    e[targets] -= (weights * scale).astype(e.dtype)
    return RowsLoss(lambda: value, np.ascontiguousarray(e), total, scale)
