"""Arrays in a device's memory: copies to and from the device, and operations on its arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lstm_cli.cells.expression import Expression, select, symbol
from lstm_cli.engines.cuda.batch import DeviceBatch, PackedSequences, make_batch
from lstm_cli.engines.cuda.codegen import elementwise
from lstm_cli.engines.cuda.codegen.data_movement import (
    gather_rows,
    normalize,
    pack_steps,
    scatter_rows,
    unpack_steps,
)
from lstm_cli.engines.cuda.codegen.elementwise import DeferredSums
from lstm_cli.engines.cuda.codegen.rows import cross_entropy
from lstm_cli.engines.cuda.precision import Precision
from lstm_cli.engines.cuda.runtime.device import Device, DeviceArray, dtype_name, is_host_array
from lstm_cli.engines.types import Array, Deferred, RowsLoss, State, Values

ADOPTED_DTYPES = ("float32", "float64")
"""Dtypes of device arrays that the engine takes from callers without a copy."""

MAX_CACHED_BATCHES = 64
"""Largest number of cached batches without lengths, one per size."""

_SELF_DIFFERENCE = symbol("x") - symbol("x")
NOT_FINITE: Expression = select(
    _SELF_DIFFERENCE < 0.0, 1.0, select(_SELF_DIFFERENCE <= 0.0, 0.0, 1.0)
)
"""Expression of `x`: 1 for NaN and infinity, since x - x is NaN for both; else 0."""


class DeviceArrays:
    """Array operations of `lstm_cli.engines.protocols.Engine`, for arrays on a device.

    Parameters
    ----------
    device
        Device that holds the arrays.
    precision
        Precision of the engine.
    """

    def __init__(self, device: Device, precision: Precision) -> None:
        self.hardware, self.precision = device, precision
        self._sums = DeferredSums(device)
        self._batches: dict[tuple[int, int], DeviceBatch] = {}

    def from_device_array(self, array: Any) -> DeviceArray | None:
        """View a caller's array of floats that is on this device; None if it is elsewhere."""
        view = None if is_host_array(array) else self.hardware.from_device_array(array)
        return view if view is not None and dtype_name(view.dtype) in ADOPTED_DTYPES else None

    def to_device(self, array: Any) -> DeviceArray:
        """An array on the device in the accumulator type; a NumPy array is copied."""
        view = self.from_device_array(array)
        if view is None:
            return self.hardware.upload(np.ascontiguousarray(array, self.precision.accumulator))
        if dtype_name(view.dtype) != self.precision.accumulator:
            return self.to_device(self.hardware.download(view))
        return view

    def state_to_device(
        self, state: State[DeviceArray | Array] | None
    ) -> State[DeviceArray] | None:
        """States (h, c) of a layer on the device."""
        if state is None:
            return None
        h, c = state
        return self.to_device(h), None if c is None else self.to_device(c)

    def normalize(self, x: DeviceArray, mean: Array, scale: Array) -> DeviceArray:
        """Compute (x - mean) / scale of a caller's array (N, T, D) on the device."""
        return normalize(self.hardware, x, mean, scale, self.precision.accumulator)

    def from_padded(self, x: Any, lengths: Array | None) -> PackedSequences:
        """Move values (N, T, F) or (N, F) to the device, without padding."""
        N, T = (x.shape[0], x.shape[1]) if x.ndim == 3 else (x.shape[0], 1)
        batch = self._device_batch(int(N), int(T), lengths)
        if x.ndim == 2:
            return PackedSequences(batch, self.to_device(x), per_step=False)
        return PackedSequences(batch, self._packed(batch, x))

    def _device_batch(self, N: int, T: int, lengths: Array | None) -> DeviceBatch:
        """A batch on the device; one without lengths is created once per size."""
        if lengths is not None:
            return make_batch(self.hardware, N, T, lengths)
        if (N, T) not in self._batches:
            if len(self._batches) >= MAX_CACHED_BATCHES:
                self._batches.clear()
            self._batches[N, T] = make_batch(self.hardware, N, T, None)
        return self._batches[N, T]

    def _packed(self, batch: DeviceBatch, x: Any) -> DeviceArray:
        """Pack (N, T, F), in either memory, as (Q, F)."""
        if self.from_device_array(x) is not None:
            return pack_steps(self.hardware, batch, x, self.precision.accumulator)
        rows = x.reshape(-1, x.shape[2])
        if batch.lengths is not None:
            rows = x[np.arange(batch.T) < batch.lengths[:, None]]
        return self.to_device(rows)

    def to_padded(self, values: Any) -> DeviceArray:
        """A layer's output as (N, T, F) or (N, F) on the device, 0 in the padding."""
        return (
            unpack_steps(self.hardware, values) if isinstance(values, PackedSequences) else values
        )

    def to_host(self, values: Any) -> Array:
        """An array, or a layer's output, in NumPy's memory."""
        if not isinstance(values, PackedSequences):
            view = None if is_host_array(values) else self.hardware.from_device_array(values)
            return values if view is None else self.hardware.download(view)
        rows, batch = self.hardware.download(values.values), values.batch
        if not values.per_step or batch.lengths is None:
            return rows.reshape(values.shape)
        out = np.zeros(values.shape, rows.dtype)
        out[np.arange(batch.T) < batch.lengths[:, None]] = rows
        return out

    def pack_like(
        self, reference: PackedSequences, values: Any, *, per_step: bool
    ) -> PackedSequences:
        """Pack a caller's derivatives like `reference`, over the same batch.

        Derivatives that are packed already are returned unchanged.
        """
        if isinstance(values, PackedSequences):
            return values
        if not per_step:
            return PackedSequences(reference.batch, self.to_device(values), per_step=False)
        return PackedSequences(reference.batch, self._packed(reference.batch, values))

    def download(self, array: Any) -> Array:
        """Copy an array to NumPy's memory."""
        return np.array(array) if is_host_array(array) else self.hardware.download(array)

    def copy(self, array: Any) -> DeviceArray:
        """Copy an array to the device, in the accumulator type."""
        return self.hardware.upload(np.ascontiguousarray(array, self.precision.accumulator))

    def convert_like(self, array: Any, other: Any) -> Any:
        """The array in the memory and dtype of another."""
        if is_host_array(other):
            return np.ascontiguousarray(self._host_array(array), other.dtype)
        if self.from_device_array(array) is not None and array.dtype == other.dtype:
            return array
        host_array = self._host_array(array)
        return self.hardware.upload(np.ascontiguousarray(host_array, dtype_name(other.dtype)))

    def _host_array(self, array: Any) -> Array:
        return array if is_host_array(array) else self.hardware.download(array)

    def zeros_like(self, array: Any) -> Any:
        """Zeros in the memory, shape and dtype of an array."""
        if is_host_array(array):
            return np.zeros_like(array)
        return self.hardware.zeros(array.shape, dtype_name(array.dtype))

    def empty_like(self, array: Any) -> Any:
        """Uninitialized array in the memory, shape and dtype of an array."""
        if is_host_array(array):
            return np.empty_like(array)
        return self.hardware.empty(array.shape, dtype_name(array.dtype))

    def evaluate(
        self, roots: Mapping[str, Expression], values: Values, out: Mapping[str, Any]
    ) -> None:
        """Compute every root elementwise; NumPy arrays are copied to the device and back."""
        on_device = {
            id(array): self._upload_if_host(array) for array in (*values.values(), *out.values())
        }
        elementwise.evaluate(
            self.hardware,
            roots,
            {name: on_device[id(value)] for name, value in values.items()},
            {name: on_device[id(array)] for name, array in out.items()},
        )
        for array in out.values():
            if is_host_array(array):
                array[...] = self.hardware.download(on_device[id(array)])

    def total(self, root: Expression, values: Values) -> float:
        """Sum an expression over all elements."""
        return self.totals(root, [values])[0]()

    def totals(self, root: Expression, many: Sequence[Values]) -> list[Deferred]:
        """Sums of an expression for each of `many` values; reading the first waits for all."""
        sums = []
        for values in many:
            on_device = {name: self._upload_if_host(value) for name, value in values.items()}
            sums.append(elementwise.total(self.hardware, root, on_device, self._sums))
        return sums

    def all_finite(self, arrays: Sequence[Any]) -> bool:
        """True if all numbers of the arrays are finite."""
        return not any(count() for count in self.totals(NOT_FINITE, [{"x": a} for a in arrays]))

    def gather_valid(self, values: Any, rows: Array | None) -> DeviceArray:
        """Gather the rows that count in a loss, as (rows, F)."""
        if not isinstance(values, PackedSequences):
            chosen = values.reshape(-1, values.shape[-1]) if rows is None else values[rows]
            return self._upload_if_host(np.ascontiguousarray(chosen))
        if rows is None or values.per_step:
            return values.values
        return gather_rows(self.hardware, values.values, self._row_numbers(rows))

    def scatter_valid(self, gathered: DeviceArray, values: Any, rows: Array | None) -> Any:
        """Scatter gathered rows to their places in the layout of `values`; 0 elsewhere."""
        if not isinstance(values, PackedSequences):
            out = np.zeros(values.shape, values.dtype)
            places = out.reshape(-1, values.shape[-1]) if rows is None else out
            places[slice(None) if rows is None else rows] = self.hardware.download(gathered)
            return out
        if rows is not None and not values.per_step:
            numbers = self._row_numbers(rows)
            gathered = scatter_rows(self.hardware, gathered, numbers, values.batch.N)
        return PackedSequences(values.batch, gathered, values.per_step)

    def _row_numbers(self, rows: Array) -> DeviceArray:
        return self.hardware.upload(np.flatnonzero(rows))

    def match_layout(self, array: Any, values: Any) -> DeviceArray | None:
        """A caller's device array in the layout of `values`.

        None: the array is in NumPy's memory, or its shape differs from that of `values`, or some
        rows belong to empty sequences.
        """
        if not isinstance(values, PackedSequences) or self.from_device_array(array) is None:
            return None
        batch = values.batch
        empty = batch.T == 0 or (batch.lengths is not None and not batch.lengths.all())
        if tuple(array.shape) != values.shape or (empty and not values.per_step):
            return None
        return self._packed(batch, array) if values.per_step else self.to_device(array)

    def cross_entropy(
        self,
        logits: DeviceArray,
        targets: Array,
        class_weights: Array | None,
        label_smoothing: float,
    ) -> RowsLoss:
        """Cross-entropy of the softmax of logits (rows, F)."""
        return cross_entropy(
            self.hardware, logits, targets, class_weights, label_smoothing, self._sums
        )

    def _upload_if_host(self, value: Any) -> Any:
        """Copy a NumPy array to the device in its dtype; return other values unchanged."""
        if not is_host_array(value):
            return value
        return self.hardware.upload(np.ascontiguousarray(value))
