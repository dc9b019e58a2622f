"""Arrays in a device's memory: what the cuda engine moves there and back, and computes on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lstm_cli.cells.expression import Expression, select, symbol
from lstm_cli.engines.arrays import Array, Late, RowsLoss, Values
from lstm_cli.engines.cuda.batch import DeviceBatch, PackedSequences, make_batch
from lstm_cli.engines.cuda.codegen import elementwise
from lstm_cli.engines.cuda.codegen.elementwise import DeferredSums
from lstm_cli.engines.cuda.codegen.layout import (
    gather_rows,
    normalize,
    pack_steps,
    scatter_rows,
    unpack_steps,
)
from lstm_cli.engines.cuda.codegen.rows import cross_entropy
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.runtime.device import Device, DeviceArray, dtype_name, is_host_array

ADOPTED_DTYPES = ("float32", "float64")
"""Dtypes of a caller's arrays on the device that are taken as they are."""

MAX_CACHED_BATCHES = 64
"""Batches without lengths that are remembered, by their size."""

_SELF_DIFFERENCE = symbol("x") - symbol("x")
NOT_FINITE: Expression = select(
    _SELF_DIFFERENCE < 0.0, 1.0, select(_SELF_DIFFERENCE <= 0.0, 0.0, 1.0)
)
"""1 for NaN and infinity, whose difference with themselves is NaN; else 0."""


class DeviceArrays:
    """What `lstm_cli.engines.types.Engine` asks about arrays, where they are a device's.

    Parameters
    ----------
    device
        Whose memory.
    precision
        Of the numbers.
    """

    def __init__(self, device: Device, precision: Precision) -> None:
        self.hardware, self.precision = device, precision
        self._sums = DeferredSums(device)
        self._full: dict[tuple[int, int], DeviceBatch] = {}

    def adopt(self, array: Any) -> DeviceArray | None:
        """A caller's array of floats that is on this device already."""
        own = None if is_host_array(array) else self.hardware.adopt(array)
        return own if own is not None and dtype_name(own.dtype) in ADOPTED_DTYPES else None

    def own(self, array: Any) -> DeviceArray:
        """An array on the device, of the real numbers' type: a copy if it is NumPy's."""
        found = self.adopt(array)
        if found is None:
            return self.hardware.upload(np.ascontiguousarray(array, self.precision.real))
        if dtype_name(found.dtype) != self.precision.real:
            return self.own(self.hardware.download(found))
        return found

    def normalized(self, x: DeviceArray, mean: Array, scale: Array) -> DeviceArray:
        """(x - mean) / scale of a caller's array (N, T, D), computed where it is."""
        return normalize(self.hardware, x, mean, scale, self.precision.real)

    def batch(self, x: Any, lengths: Array | None) -> PackedSequences:
        """Values of a batch on the device, the steps that there are."""
        N, T = (x.shape[0], x.shape[1]) if x.ndim == 3 else (x.shape[0], 1)
        batch = self._batch(int(N), int(T), lengths)
        if x.ndim == 2:
            return PackedSequences(batch, self.own(x), per_step=False)
        return PackedSequences(batch, self._packed(batch, x))

    def _batch(self, N: int, T: int, lengths: Array | None) -> DeviceBatch:
        """What kernels ask about a batch; without lengths made once for a size."""
        if lengths is not None:
            return make_batch(self.hardware, N, T, lengths)
        if (N, T) not in self._full:
            if len(self._full) >= MAX_CACHED_BATCHES:
                self._full.clear()
            self._full[N, T] = make_batch(self.hardware, N, T, None)
        return self._full[N, T]

    def _packed(self, batch: DeviceBatch, x: Any) -> DeviceArray:
        """(N, T, F) in either memory as (Q, F)."""
        if self.adopt(x) is not None:
            return pack_steps(self.hardware, batch, x, self.precision.real)
        rows = x.reshape(-1, x.shape[2])
        if batch.lengths is not None:
            rows = x[np.arange(batch.T) < batch.lengths[:, None]]
        return self.own(rows)

    def laid_out(self, values: Any) -> DeviceArray:
        """What a layer gave as (N, T, F) or (N, F) on the device, 0 in the padding."""
        return (
            unpack_steps(self.hardware, values) if isinstance(values, PackedSequences) else values
        )

    def to_host(self, values: Any) -> Array:
        """An array, or what a layer gave, in NumPy's memory."""
        if not isinstance(values, PackedSequences):
            own = None if is_host_array(values) else self.hardware.adopt(values)
            return values if own is None else self.hardware.download(own)
        real, batch = self.hardware.download(values.real), values.batch
        if not values.per_step or batch.lengths is None:
            return real.reshape(values.shape)
        out = np.zeros(values.shape, real.dtype)
        out[np.arange(batch.T) < batch.lengths[:, None]] = real
        return out

    def over(self, like: PackedSequences, values: Any, *, per_step: bool) -> PackedSequences:
        """Values over the batch of others: derivatives, as a caller or another layer has them."""
        if isinstance(values, PackedSequences):
            return values
        if not per_step:
            return PackedSequences(like.batch, self.own(values), per_step=False)
        return PackedSequences(like.batch, self._packed(like.batch, values))

    def download(self, array: Any) -> Array:
        """A copy in NumPy's memory."""
        return np.array(array) if is_host_array(array) else self.hardware.download(array)

    def copy(self, array: Any) -> DeviceArray:
        """A copy on the device, of the real numbers' type."""
        return self.hardware.upload(np.ascontiguousarray(array, self.precision.real))

    def like(self, array: Any, other: Any) -> Any:
        """The array in the memory and dtype of another."""
        if is_host_array(other):
            given = array if is_host_array(array) else self.hardware.download(array)
            return np.ascontiguousarray(given, other.dtype)
        if self.adopt(array) is not None and array.dtype == other.dtype:
            return array
        given = array if is_host_array(array) else self.hardware.download(array)
        return self.hardware.upload(np.ascontiguousarray(given, dtype_name(other.dtype)))

    def zeros_like(self, array: Any) -> Any:
        """Zeros, where the array is."""
        if is_host_array(array):
            return np.zeros_like(array)
        return self.hardware.zeros(array.shape, dtype_name(array.dtype))

    def empty_like(self, array: Any) -> Any:
        """Any values, where the array is."""
        if is_host_array(array):
            return np.empty_like(array)
        return self.hardware.empty(array.shape, dtype_name(array.dtype))

    def evaluate(
        self, roots: Mapping[str, Expression], values: Values, out: Mapping[str, Any]
    ) -> None:
        """Every root, element by element; arrays of NumPy's are copied there and back."""
        own = {id(array): self._there(array) for array in (*values.values(), *out.values())}
        given = {name: own[id(value)] for name, value in values.items()}
        elementwise.evaluate(
            self.hardware, roots, given, {name: own[id(array)] for name, array in out.items()}
        )
        for array in out.values():
            if is_host_array(array):
                array[...] = self.hardware.download(own[id(array)])

    def total(self, root: Expression, values: Values) -> float:
        """The sum of an expression over all elements."""
        return self.totals(root, [values])[0]()

    def totals(self, root: Expression, many: Sequence[Values]) -> list[Late]:
        """The sums of an expression; the first that is asked for waits for all."""
        found = []
        for values in many:
            given = {name: self._there(value) for name, value in values.items()}
            found.append(elementwise.total(self.hardware, root, given, self._sums))
        return found

    def finite(self, arrays: Sequence[Any]) -> bool:
        """Whether all numbers are."""
        return not any(late() for late in self.totals(NOT_FINITE, [{"x": a} for a in arrays]))

    def counted(self, values: Any, rows: Array | None) -> DeviceArray:
        """The rows that count, (rows, F)."""
        if not isinstance(values, PackedSequences):
            own = values.reshape(-1, values.shape[-1]) if rows is None else values[rows]
            return self._there(np.ascontiguousarray(own))
        if rows is None or values.per_step:
            return values.real
        return gather_rows(self.hardware, values.real, self.hardware.upload(np.flatnonzero(rows)))

    def spread(self, counted: DeviceArray, values: Any, rows: Array | None) -> Any:
        """The rows that count at their places."""
        if not isinstance(values, PackedSequences):
            out = np.zeros(values.shape, values.dtype)
            places = out.reshape(-1, values.shape[-1]) if rows is None else out
            places[slice(None) if rows is None else rows] = self.hardware.download(counted)
            return out
        if rows is not None and not values.per_step:
            where = self.hardware.upload(np.flatnonzero(rows))
            counted = scatter_rows(self.hardware, counted, where, values.batch.N)
        return PackedSequences(values.batch, counted, values.per_step)

    def aligned(self, array: Any, values: Any) -> DeviceArray | None:
        """A caller's array on the device as `values` are stored; None: it is NumPy's."""
        if not isinstance(values, PackedSequences) or self.adopt(array) is None:
            return None
        batch = values.batch
        empty = batch.T == 0 or (batch.lengths is not None and not batch.lengths.all())
        if tuple(array.shape) != values.shape or (empty and not values.per_step):
            return None
        return self._packed(batch, array) if values.per_step else self.own(array)

    def cross_entropy(
        self,
        logits: DeviceArray,
        targets: Array,
        class_weights: Array | None,
        label_smoothing: float,
    ) -> RowsLoss:
        """Cross-entropy of the softmax of logits (rows, F)."""
        given = (targets, class_weights, label_smoothing)
        return cross_entropy(self.hardware, logits, *given, self._sums)

    def _there(self, value: Any) -> Any:
        """A number as it is, an array on the device, in its own dtype."""
        return self.hardware.upload(np.ascontiguousarray(value)) if is_host_array(value) else value
