"""Arrays of an engine that computes in NumPy's memory: there is nothing to move."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np

from lstm_cli.cells.expression import Expression
from lstm_cli.engines.arrays import Array, Late, RowsLoss, Values
from lstm_cli.engines.cross_entropy import cross_entropy


class HostArrays(ABC):
    """What `lstm_cli.engines.types.Engine` asks about arrays, where they are NumPy's own."""

    def adopt(self, array: Any) -> Any:
        """None: no memory but NumPy's."""
        return None

    def normalized(self, x: Array, mean: Array, scale: Array) -> Array:
        """The values themselves: `adopt` takes none."""
        return x

    def batch(self, x: Array, lengths: Array | None) -> Array:
        """The values as they are."""
        return x

    def laid_out(self, values: Array) -> Array:
        """The values as they are."""
        return values

    def to_host(self, values: Array) -> Array:
        """The values as they are: they are in NumPy's memory already."""
        return values

    def download(self, array: Array) -> Array:
        """A copy."""
        return np.array(array)

    def copy(self, array: Array) -> Array:
        """A writable copy without gaps."""
        return np.array(array, order="C")

    def like(self, array: Any, other: Array) -> Array:
        """The array in the dtype of another, without gaps."""
        return np.ascontiguousarray(array, other.dtype)

    def zeros_like(self, array: Array) -> Array:
        """Zeros."""
        return np.zeros_like(array)

    def empty_like(self, array: Array) -> Array:
        """Any values."""
        return np.empty_like(array)

    @abstractmethod
    def total(self, root: Expression, values: Values) -> float:
        """The sum of an expression."""

    def totals(self, root: Expression, many: Sequence[Values]) -> list[Late]:
        """The sums of an expression, made at once."""
        found = [self.total(root, values) for values in many]
        return [lambda value=value: value for value in found]  # type: ignore[misc]

    def finite(self, arrays: Sequence[Array]) -> bool:
        """Whether all numbers are."""
        return all(bool(np.isfinite(array).all()) for array in arrays)

    def aligned(self, array: Any, values: Array) -> Any:
        """None: no memory but NumPy's."""
        return None

    def counted(self, values: Array, rows: Array | None) -> Array:
        """The rows that count, (rows, F)."""
        if rows is None:
            return np.ascontiguousarray(values.reshape(-1, values.shape[-1]))
        return np.ascontiguousarray(values[rows])

    def spread(self, counted: Array, values: Array, rows: Array | None) -> Array:
        """The rows that count at their places."""
        gradient = counted.astype(values.dtype, copy=False)
        if rows is not None:
            gradient = np.zeros(values.shape, values.dtype)
            gradient[rows] = counted
        return gradient.reshape(values.shape)

    def cross_entropy(
        self, logits: Array, targets: Array, class_weights: Array | None, label_smoothing: float
    ) -> RowsLoss:
        """Cross-entropy of the softmax of logits (rows, F)."""
        return cross_entropy(logits, targets, class_weights, label_smoothing)
