"""Format of targets for a loss: shape check against the outputs, and selection of valid rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.errors import DataError, counted


@dataclass(frozen=True)
class TargetFormat:
    """Format of the targets of a network with this loss.

    Attributes
    ----------
    loss
        One of `lstm_cli.training.losses.LOSSES`.
    per_step
        Whether the network returns sequences.
    features
        Number of features F of the network's output.
    name
        Name of the targets, for error messages.
    """

    loss: str
    per_step: bool
    features: int
    name: str

    def valid_rows(
        self, targets: Array, shape: tuple[int, ...], lengths: Array | None
    ) -> tuple[Array | None, Array]:
        """Valid rows of outputs of `shape`, and the targets of these rows.

        Returns
        -------
        rows, values
            Mask of the valid rows, (N, T) per step, else (N,); None: all are valid. Targets of the
            valid rows: classes (rows,) int64, or numbers (rows, F).

        Raises
        ------
        DataError
            The targets have another shape, an unknown class, or a value that the loss does not
            take.
        """
        reshaped = self._reshaped(targets, shape)
        rows = self._rows(shape, lengths)
        values = select_rows(reshaped, rows, len(shape) - 1)
        if self.loss == "cross_entropy":
            values = self._classes(values) if values.ndim == 1 else self._shares(values)
        low, high = values.min(initial=0), values.max(initial=0)
        if self.loss == "binary_cross_entropy" and (low < 0 or high > 1):
            raise DataError(
                f"{self.name} holds values that binary_cross_entropy does not take",
                expected="0 to 1",
                found=f"{low:g} to {high:g}",
            )
        return rows, values

    def check_shape(self, targets: Array, shape: tuple[int, ...]) -> None:
        """Raise DataError unless targets fit outputs of `shape`."""
        self._reshaped(targets, shape)

    def _rows(self, shape: tuple[int, ...], lengths: Array | None) -> Array | None:
        """Mask of valid rows: (N, T) per step, else (N,). None: all are valid."""
        full = shape[1] if self.per_step else 1
        if lengths is None or lengths.min(initial=full) >= full:
            return None
        if self.per_step:
            return np.asarray(np.arange(shape[1]) < lengths[:, None])
        return np.asarray(lengths > 0)

    def _reshaped(self, targets: Array, shape: tuple[int, ...]) -> Array:
        """The targets as classes (N, [T]) or as values (N, [T], F)."""
        rank = len(shape)
        if self.loss == "cross_entropy" and targets.ndim == rank and targets.shape[-1] == 1:
            targets = targets[..., 0]
        if self.loss == "cross_entropy" and targets.shape == shape[:-1]:
            return targets
        if targets.ndim == rank - 1 and self.features == 1:
            targets = targets[..., None]
        if targets.shape != shape:
            raise DataError(
                f"the targets {self.name} do not fit the network's outputs",
                expected=f"{shape}, the shape of the outputs"
                + (f", or classes {shape[:-1]}" if self.loss == "cross_entropy" else ""),
                found=f"{targets.shape} in a batch of {shape[0]}",
                hint=self._shape_hint(targets, shape),
            )
        return targets

    def _shape_hint(self, targets: Array, shape: tuple[int, ...]) -> str | None:
        one_number = targets.shape == shape[:-1]
        if one_number and targets.dtype.kind not in "iu":
            return "one number for each output needs `units: 1` in the last layer"
        if self.per_step and targets.ndim < len(shape) and not one_number:
            return (
                "one target per sequence needs `return_sequences: false` in the last recurrent "
                "layer"
            )
        if not self.per_step and targets.ndim > len(shape):
            return "one target per step needs `return_sequences: true` in the last recurrent layer"
        if one_number:
            return "class targets need a softmax at the end and `train.loss: cross_entropy`"
        return None

    def _shares(self, targets: Array) -> Array:
        """Checked shares of the classes (rows, F)."""
        whole = (targets == np.floor(targets)).all(axis=1)
        wrong = whole & ((targets < 0).any(axis=1) | (targets.sum(axis=1) > 1))
        if wrong.any():
            row = ", ".join(f"{value:g}" for value in targets[wrong][0][:8])
            hint = None
            if not self.per_step:
                hint = "a class per step needs `return_sequences: true` in the last recurrent layer"
            raise DataError(
                f"{self.name} holds numbers that are no shares of classes",
                expected=f"one class per target, or {counted(self.features, 'share')} per target, "
                "each from 0 to 1, with sum 1",
                found=row,
                hint=hint,
            )
        return targets

    def _classes(self, targets: Array) -> Array:
        wrong = (targets < 0) | (targets >= self.features) | (targets != np.floor(targets))
        if wrong.any():
            raise DataError(
                f"{self.name} holds a class that the network does not have",
                expected=f"whole numbers 0 to {self.features - 1}: the last layer has "
                f"{counted(self.features, 'unit')}",
                found=f"{targets[wrong][0]}",
            )
        return targets.astype(np.int64)


def select_rows(array: Array, rows: Array | None, axes: int) -> Array:
    """The valid rows as one array (rows, ...). Without a mask, a view of all rows.

    Parameters
    ----------
    axes
        Number of leading axes that number the rows: 2 of (N, T, F).
    """
    if rows is None:
        return array.reshape(-1, *array.shape[axes:])
    return np.asarray(array[rows])
