"""The reference engine: NumPy, step by step, the cells' own equations. The oracle.

It supports every layer option in float32 and float64. Time is the first axis inside a layer;
the input projection is one product for a run of steps, the recurrence one for each step.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from lstm_cli.engines.recurrence import Pass, initial_states
from lstm_cli.engines.steps import DirectionWeights
from lstm_cli.engines.types import (
    DIRECTIONS,
    SUPPORTED_DTYPES,
    Array,
    DenseSpec,
    FlattenSpec,
    LayerResult,
    LayerSpec,
    RecurrentSpec,
    State,
)
from lstm_cli.errors import DeviceError

THREADED_PRODUCT = 2e7
"""Multiply-adds below which a product is left to one thread: waking others costs more, and
much more where the cores are shared."""


@dataclass(frozen=True)
class _DenseWeights:
    weight: Array  # (units, D)
    bias: Array  # (units,)


class ReferenceEngine:
    """NumPy on the CPU.

    Parameters
    ----------
    dtype
        ``float32`` or ``float64``.
    threads
        Threads BLAS may use; None leaves it alone.
    by_gate
        Compute each gate's products apart and time them: slower, and the same results within
        rounding. `LayerResult.seconds` then has a row a gate and part.

    Raises
    ------
    DeviceError
        Another dtype.
    """

    name = "reference"
    device = "cpu"

    def __init__(
        self, dtype: str = "float32", threads: int | None = None, *, by_gate: bool = False
    ) -> None:
        if dtype not in SUPPORTED_DTYPES:
            raise DeviceError(
                f"the reference engine does not compute in {dtype}",
                expected=" or ".join(SUPPORTED_DTYPES),
                hint="--dtype float32",
            )
        self.dtype = dtype
        self.threads = threads
        self.by_gate = by_gate
        self._blas: Any = None

    def prepare(self, spec: LayerSpec, weights: Mapping[str, Array]) -> Any:
        """The layer's weights in this engine's dtype, contiguous, one record a direction."""
        own = {name: np.ascontiguousarray(weights[name], self.dtype) for name in spec.parameters()}
        if isinstance(spec, DenseSpec):
            prefix = f"layers.{spec.index}."
            return _DenseWeights(own[prefix + "weight"], own[prefix + "bias"])
        if isinstance(spec, RecurrentSpec):
            return [
                DirectionWeights.of(cell, {k: own[spec.prefix(d) + k] for k in cell.tensor_names})
                for d, cell in enumerate(spec.cells)
            ]
        return None

    def to_host(self, array: Array) -> Array:
        """The array itself: it is in NumPy's memory already."""
        return array

    def forward(
        self,
        spec: LayerSpec,
        prepared: Any,
        x: Array,
        lengths: Array | None,
        state: State | None = None,
        *,
        keep: bool = False,
    ) -> LayerResult:
        """One layer over a batch; see `lstm_cli.engines.types.Engine`."""
        with self._blas_threads(_product_size(spec, x)), np.errstate(all="ignore"):
            if isinstance(spec, RecurrentSpec):
                return self._recurrent(spec, prepared, x, lengths, state, keep)
            if isinstance(spec, DenseSpec):
                return _dense(spec, prepared, x, lengths, keep)
            return LayerResult(_flatten(spec, x) if isinstance(spec, FlattenSpec) else x)

    def _blas_threads(self, size: float) -> Any:
        """Limit BLAS to this engine's threads, or to one where they would only wait."""
        if self.threads is None:
            return nullcontext()
        if self._blas is None:
            from threadpoolctl import ThreadpoolController

            self._blas = ThreadpoolController()
        threads = self.threads if size >= THREADED_PRODUCT else 1
        return self._blas.limit(limits=threads, user_api="blas")

    def _recurrent(
        self,
        spec: RecurrentSpec,
        weights: list[DirectionWeights],
        x: Array,
        lengths: Array | None,
        state: State | None,
        keep: bool,
    ) -> LayerResult:
        parts, finals, kept = [], [], {}
        seconds: dict[str, float] = {}
        for d, cell in enumerate(spec.cells):
            pass_ = Pass(cell, weights[d], lengths, reverse=d == 1, by_gate=self.by_gate)
            start = initial_states(cell, state, d, len(x), self.dtype)
            sequence, final = pass_.run(x, start, spec.return_sequences, keep)
            parts.append(sequence)
            finals.append(final)
            if keep:
                kept[DIRECTIONS[d]] = pass_.kept
            for part, spent in pass_.seconds.items():
                seconds[part] = seconds.get(part, 0.0) + spent
        output = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        h = np.stack([final[0] for final in finals], axis=1)  # (N, directions, P)
        c = np.stack([f[1] for f in finals], axis=1) if len(finals[0]) > 1 else None
        return LayerResult(output, (h, c), kept, seconds=seconds)


def _product_size(spec: LayerSpec, x: Array) -> float:
    """Multiply-adds of the product that a layer makes most often."""
    if isinstance(spec, RecurrentSpec):
        cell = spec.cells[0]
        return float(len(x) * len(cell.gates) * cell.hidden_size * cell.output_size)
    return float(x.size * spec.output_size) if isinstance(spec, DenseSpec) else 0.0


def _softmax(x: Array) -> Array:
    shifted = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def _dense(
    spec: DenseSpec, weights: _DenseWeights, x: Array, lengths: Array | None, keep: bool
) -> LayerResult:
    begun = perf_counter()
    a = x.reshape(-1, x.shape[-1]) @ weights.weight.T + weights.bias
    a = a.reshape(*x.shape[:-1], spec.units)
    y = _softmax(a) if spec.activation is None else spec.activation(a)
    if lengths is not None and y.ndim == 3:
        ended = np.arange(x.shape[1]) >= lengths[:, None]  # (N, T)
        y = np.where(ended[:, :, None], np.zeros((), y.dtype), y)
    return LayerResult(y, logits=a if keep else None, seconds={"product": perf_counter() - begun})


def _flatten(spec: FlattenSpec, x: Array) -> Array:
    N, T, F = x.shape
    padded = np.zeros((N, spec.steps, F), x.dtype)
    padded[:, :T] = x[:, : spec.steps]
    return padded.reshape(N, spec.steps * F)
