"""One direction of a recurrent layer over one batch, in NumPy: time is the first axis."""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

import numpy as np
from numpy.typing import DTypeLike

from lstm_cli.cells import Cell
from lstm_cli.engines.backpropagation import PassTape
from lstm_cli.engines.steps import DirectionWeights, NumpyStep, ProfiledStep, TrainingStep
from lstm_cli.engines.types import Array, State

PROJECTION_BYTES = 4 << 20
"""Input projections are held for a run of steps of about this size, not for all of them."""


def initial_states(
    cell: Cell, state: State | None, direction: int, N: int, dtype: DTypeLike
) -> tuple[Array, ...]:
    """The direction's initial states, each (N, size)."""
    given = state or (None, None)
    return tuple(
        np.zeros((N, size), dtype)
        if whole is None
        else np.array(whole[:, direction], dtype)  # a copy: the caller's stays as it was
        for whole, size in zip(given, cell.state_sizes, strict=False)
    )


class Pass:
    """One direction of a recurrent layer over one batch."""

    def __init__(
        self,
        cell: Cell,
        weights: DirectionWeights,
        lengths: Array | None,
        *,
        reverse: bool,
        by_gate: bool = False,
        training: bool = False,
        mask: Array | None = None,
    ) -> None:
        self.cell, self.weights, self.lengths = cell, weights, lengths
        self.reverse, self.by_gate = reverse, by_gate
        self.training, self.mask = training, mask
        self.tape: PassTape | None = None
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
        if self.training:
            self.tape = PassTape(xt, order, self.ended, states=[states])
        begun = perf_counter()
        for t, states in enumerate(  # noqa: B020 - each step's states are the next one's start
            self.cell.forward(self._steps(xt, history if keep else None), states)
        ):
            if out is not None:
                out[t] = states[0]
            if self.tape is not None:
                self.tape.states.append(states)
            if keep:
                for name, value in zip(self.cell.states, states, strict=True):
                    history.setdefault(f"state {name}", []).append(value)
        self.kept = {
            name.removeprefix("state "): self._restore(np.stack(values), order)
            for name, values in history.items()
        }
        output = self._last(states[0], T) if out is None else self._restore(out, order)
        self.seconds["recurrence"] = perf_counter() - begun - self.seconds["input projection"]
        return output, states

    def _last(self, h: Array, T: int) -> Array:
        """The last step's output, 0 for a sequence that has none."""
        seen = np.full(len(h), T > 0) if self.lengths is None else self.lengths > 0
        return np.where(seen[:, None], h, np.zeros((), h.dtype))

    def _steps(self, xt: Array, history: dict[str, list[Array]] | None) -> Iterator[NumpyStep]:
        """A step object for each time, the input projected for a run of steps at once."""
        T, N, _ = xt.shape
        rows = self.weights.weight_ih.shape[0]
        run = max(1, PROJECTION_BYTES // max(1, N * rows * xt.itemsize))
        for first in range(0, T, run):
            begun = perf_counter()
            z = self._project(xt[first : first + run])
            self.seconds["input projection"] += perf_counter() - begun
            for time, z_t in enumerate(z, first):
                ended = None if self.ended is None else self.ended[time]
                yield self._step(z_t, ended, history)

    def _step(
        self, z: Array, ended: Array | None, history: dict[str, list[Array]] | None
    ) -> NumpyStep:
        if self.tape is not None:
            step = TrainingStep(self.weights, z, ended, history, self.seconds, mask=self.mask)
            self.tape.steps.append(step)
            return step
        kind = ProfiledStep if self.by_gate else NumpyStep
        return kind(self.weights, z, ended, history, self.seconds)

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
        return z.reshape(run, N, len(w.bias))

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
