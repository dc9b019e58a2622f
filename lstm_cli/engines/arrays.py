"""Arrays where an engine has them: what it computes on them, element by element and row by row."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray

from lstm_cli.cells.expression import Expression

Array: TypeAlias = NDArray[Any]
Own: TypeAlias = Any
"""An array, or values over a batch, in the engine's own memory and form."""

Values: TypeAlias = Mapping[str, Own | float]
"""What symbols stand for: arrays, and numbers."""

Late: TypeAlias = Callable[[], float]
"""A number that may still be computed: to ask for it is to wait for it."""


@dataclass(frozen=True)
class RowsLoss:
    """A loss of rows, and its derivative.

    Attributes
    ----------
    total
        The sum over rows, times their weights.
    gradient
        The mean's derivative for the rows, (rows, F).
    weight
        What the mean is over: rows, or the sum of their class weights.
    scale
        What `total` is multiplied by to be the mean; 0 if nothing counts.
    """

    total: Late
    gradient: Own
    weight: float
    scale: float


class Elementwise(Protocol):
    """Where an engine's arrays are, and what it computes on them, element by element.

    What a method takes may be in NumPy's memory, or the engine's own.

    All arrays of one call have one shape, no gaps between their numbers, and may be one another.
    Numbers are values of symbols too: what changes from call to call belongs there, for an engine
    may make code of the expressions.
    """

    def evaluate(
        self, roots: Mapping[str, Expression], values: Values, out: Mapping[str, Own]
    ) -> None:
        """Every root, into its array of `out`, which may be one of the inputs.

        Parameters
        ----------
        roots
            What to compute, by name.
        values
            Of every symbol; arrays in the dtype of `out`.
        out
            Writable arrays, one for each root.
        """

    def total(self, root: Expression, values: Values) -> float:
        """The sum over all elements, each computed and added in double precision."""

    def totals(self, root: Expression, many: Sequence[Values]) -> Sequence[Late]:
        """The `total` for each of `many` values."""

    def finite(self, arrays: Sequence[Own]) -> bool:
        """Whether all numbers of these arrays are."""

    def like(self, array: Any, other: Own) -> Own:
        """The array in the memory and dtype of another, without gaps; itself where it is so."""

    def copy(self, array: Array) -> Own:
        """A writable copy in this engine's memory, without gaps."""

    def zeros_like(self, array: Own) -> Own:
        """Zeros in the memory, shape and dtype of an array."""

    def empty_like(self, array: Own) -> Own:
        """The same with any values."""

    def download(self, array: Own) -> Array:
        """A copy in NumPy's memory."""

    def to_host(self, values: Own) -> Array:
        """An array, or what a layer gave, in NumPy's memory: (N, T, F) or (N, F)."""

    def counted(self, values: Own, rows: Array | None) -> Own:
        """The rows that count, one after another, of values (N, T, F) or (N, F): (rows, F).

        Parameters
        ----------
        rows
            (N, T) or (N,), False at no row but those that are padding; None: all count.
        """

    def spread(self, counted: Own, values: Own, rows: Array | None) -> Own:
        """What `counted` gathered, at its places in the form of `values`; 0 elsewhere."""

    def aligned(self, array: Any, values: Own) -> Own | None:
        """An array of the shape of `values` as these are stored, if that costs no wait.

        None for an array in NumPy's memory, which `counted` is for.
        """

    def cross_entropy(
        self, logits: Own, targets: Array, class_weights: Array | None, label_smoothing: float
    ) -> RowsLoss:
        """Cross-entropy of the softmax of logits (rows, F).

        Parameters
        ----------
        targets
            In NumPy's memory: classes (rows,) int64, or the classes' shares (rows, F).
        class_weights
            (F,) what each class's share counts for; None: 1.
        label_smoothing
            This share of each target is spread over all classes.
        """
