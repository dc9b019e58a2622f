"""The reference engine: NumPy, step by step, the cells' own equations. The oracle.

It supports every layer option in float32 and float64. Time is the first axis inside a layer;
the input projection is one product for a run of steps, the recurrence one for each step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from lstm_cli.cells import Cell
from lstm_cli.engines.steps import DirectionWeights, NumpyStep, ProfiledStep
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

PROJECTION_BYTES = 4 << 20
"""Input projections are held for a run of steps of about this size, not for all of them."""


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
            pass_ = _Pass(cell, weights[d], lengths, reverse=d == 1, by_gate=self.by_gate)
            start = _initial(cell, state, d, len(x), self.dtype)
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


def _initial(
    cell: Cell, state: State | None, direction: int, N: int, dtype: str
) -> tuple[Array, ...]:
    """The direction's initial states, each (N, size)."""
    given = state or (None, None)
    return tuple(
        np.zeros((N, size), dtype)
        if whole is None
        else np.array(whole[:, direction], dtype)  # a copy: the caller's stays as it was
        for whole, size in zip(given, cell.state_sizes, strict=False)
    )


class _Pass:
    """One direction of a recurrent layer over one batch."""

    def __init__(
        self,
        cell: Cell,
        weights: DirectionWeights,
        lengths: Array | None,
        *,
        reverse: bool,
        by_gate: bool,
    ) -> None:
        self.cell, self.weights, self.lengths = cell, weights, lengths
        self.reverse, self.by_gate = reverse, by_gate
        self.ended: Array | None = None  # (T, N, 1), True past a sequence's end
        self.kept: dict[str, Array] = {}
        self.seconds: dict[str, float] = {"input projection": 0.0, "recurrence": 0.0}

    def run(
        self, x: Array, states: tuple[Array, ...], sequences: bool, keep: bool
    ) -> tuple[Array, tuple[Array, ...]]:
        """Output (N, T, P), or (N, P) of the last step, and the final states."""
        N, T, _ = x.shape
        if self.lengths is not None and (self.lengths < T).any():
            self.ended = (np.arange(T)[:, None] >= self.lengths)[:, :, None]
        order = self._order(N, T)
        xt = x.transpose(1, 0, 2) if order is None else x[np.arange(N), order]  # (T, N, D)
        out = np.zeros((T, N, self.cell.output_size), x.dtype) if sequences else None
        history: dict[str, list[Array]] = {}
        begun = perf_counter()
        for t, states in enumerate(  # noqa: B020 - each step's states are the next one's start
            self.cell.forward(self._steps(xt, history if keep else None), states)
        ):
            if out is not None:
                out[t] = states[0]
            if keep:
                for name, value in zip(self.cell.states, states, strict=True):
                    history.setdefault(f"state {name}", []).append(value)
        self.seconds["recurrence"] = perf_counter() - begun - self.seconds["input projection"]
        self.kept = {
            name.removeprefix("state "): self._restore(np.stack(values), order)
            for name, values in history.items()
        }
        if out is not None:
            return self._restore(out, order), states
        seen = np.full(N, T > 0) if self.lengths is None else self.lengths > 0
        return np.where(seen[:, None], states[0], np.zeros((), x.dtype)), states

    def _steps(self, xt: Array, history: dict[str, list[Array]] | None) -> Iterator[NumpyStep]:
        """A step object for each time, the input projected for a run of steps at once."""
        T, N, _ = xt.shape
        rows = self.weights.weight_ih.shape[0]
        run = max(1, PROJECTION_BYTES // max(1, N * rows * xt.itemsize))
        kind = ProfiledStep if self.by_gate else NumpyStep
        for first in range(0, T, run):
            begun = perf_counter()
            z = self._project(xt[first : first + run])
            self.seconds["input projection"] += perf_counter() - begun
            for time, z_t in enumerate(z, first):
                ended = None if self.ended is None else self.ended[time]
                yield kind(self.weights, z_t, ended, history, self.seconds)

    def _project(self, part: Array) -> Array:
        """W_ih x + b for a run of steps: (run, N, gates * H)."""
        run, N, D = part.shape
        flat = np.ascontiguousarray(part).reshape(run * N, D)
        w = self.weights
        if not self.by_gate:
            z = flat @ w.weight_ih.T
        else:
            z = np.empty((run * N, w.weight_ih.shape[0]), flat.dtype)
            for gate, block in w.blocks.items():
                begun = perf_counter()
                z[:, block] = flat @ w.weight_ih[block].T
                key = f"{gate} input"
                self.seconds[key] = self.seconds.get(key, 0.0) + perf_counter() - begun
        z += w.bias
        return z.reshape(run, N, -1)

    def _order(self, N: int, T: int) -> Array | None:
        """Time index (T, N) that turns each sequence round within its length; None: forward."""
        if not self.reverse:
            return None
        t = np.arange(T)[:, None]
        n = np.full(N, T) if self.lengths is None else self.lengths
        return np.where(t < n, n - 1 - t, t)

    def _restore(self, values: Array, order: Array | None) -> Array:
        """(T, N, F) in this pass's order to (N, T, F) in the caller's, 0 past the ends."""
        if self.ended is not None:
            values = np.where(self.ended, np.zeros((), values.dtype), values)
        if order is not None:
            values = np.take_along_axis(values, order[:, :, None], axis=0)
        return np.ascontiguousarray(values.transpose(1, 0, 2))


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
