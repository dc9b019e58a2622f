"""Forward pass of one direction of a recurrent layer in NumPy, with time as the first axis.

``step.py`` computes the gates; ``layers.py`` joins the directions.
"""

from __future__ import annotations

from collections.abc import Iterator
from time import perf_counter

import numpy as np

from lstm_cli.cells import Cell
from lstm_cli.engines.reference.backward import DirectionTape
from lstm_cli.engines.reference.step import NumpyStep, ProfiledStep, TrainingStep
from lstm_cli.engines.reference.weights import DirectionWeights
from lstm_cli.engines.types import Array

PROJECTION_BYTES = 4 << 20
"""Bytes of input projections per matrix product. A long sequence takes several products."""


class ForwardPass:
    """One direction of a recurrent layer over one batch.

    Attributes
    ----------
    tape
        Values for the backward pass. Set in training.
    padding
        (T, N, 1), True past a sequence's end. None if all sequences have T steps.
    gates
        Gates and states of every step by name, if requested.
    seconds
        Seconds by part.
    """

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
        self.tape: DirectionTape | None = None
        self.padding: Array | None = None
        self.gates: dict[str, Array] = {}
        self.seconds: dict[str, float] = {"input projection": 0.0, "recurrence": 0.0}

    def run(
        self, x: Array, states: tuple[Array, ...], sequences: bool, return_gates: bool
    ) -> tuple[Array, tuple[Array, ...]]:
        """Output (N, T, P), or (N, P) of the last step, and the final states."""
        N, T, _ = x.shape
        if self.lengths is not None and (self.lengths < T).any():
            self.padding = (np.arange(T)[:, None] >= self.lengths)[:, :, None]
        order = self._order(N, T)
        xt = x.transpose(1, 0, 2) if order is None else x[np.arange(N), order]  # (T, N, D)
        out = np.zeros((T, N, self.cell.output_size), x.dtype) if sequences else None
        history: dict[str, list[Array]] = {}
        if self.training:
            self.tape = DirectionTape(xt, order, self.padding, states=[states])
        start = perf_counter()
        for t, states in enumerate(  # noqa: B020 - each step's states are the next one's start
            self.cell.forward(self._steps(xt, history if return_gates else None), states)
        ):
            if out is not None:
                out[t] = states[0]
            if self.tape is not None:
                self.tape.states.append(states)
            if return_gates:
                for name, value in zip(self.cell.states, states, strict=True):
                    history.setdefault(f"state {name}", []).append(value)
        self.gates = {
            name.removeprefix("state "): self._restore(np.stack(values), order)
            for name, values in history.items()
        }
        output = self._last(states[0], T) if out is None else self._restore(out, order)
        self.seconds["recurrence"] = perf_counter() - start - self.seconds["input projection"]
        return output, states

    def _last(self, h: Array, T: int) -> Array:
        nonempty = np.full(len(h), T > 0) if self.lengths is None else self.lengths > 0
        return np.where(nonempty[:, None], h, np.zeros((), h.dtype))

    def _steps(self, xt: Array, history: dict[str, list[Array]] | None) -> Iterator[NumpyStep]:
        """Yield a step object for each step. One product projects the inputs of many steps."""
        T, N, _ = xt.shape
        rows = self.weights.weight_ih.shape[0]
        steps = max(1, PROJECTION_BYTES // max(1, N * rows * xt.itemsize))
        for first in range(0, T, steps):
            start = perf_counter()
            z = self._project(xt[first : first + steps])
            self.seconds["input projection"] += perf_counter() - start
            for time, z_t in enumerate(z, first):
                padding = None if self.padding is None else self.padding[time]
                yield self._step(z_t, padding, history)

    def _step(
        self, z: Array, padding: Array | None, history: dict[str, list[Array]] | None
    ) -> NumpyStep:
        if self.tape is not None:
            step = TrainingStep(self.weights, z, padding, history, self.seconds, mask=self.mask)
            self.tape.steps.append(step)
            return step
        kind = ProfiledStep if self.by_gate else NumpyStep
        return kind(self.weights, z, padding, history, self.seconds)

    def _project(self, xt: Array) -> Array:
        """W_ih x + b for several steps: (steps, N, gates * H)."""
        steps, N, D = xt.shape
        flat = np.ascontiguousarray(xt).reshape(steps * N, D)
        w = self.weights
        if not self.by_gate:
            z = flat @ w.weight_ih.T
        else:
            z = np.empty((steps * N, w.weight_ih.shape[0]), flat.dtype)
            for gate, block in w.blocks.items():
                start = perf_counter()
                z[:, block] = flat @ w.weight_ih[block].T
                key = f"{gate} input"
                self.seconds[key] = self.seconds.get(key, 0.0) + perf_counter() - start
        z += w.bias
        return z.reshape(steps, N, len(w.bias))

    def _order(self, N: int, T: int) -> Array | None:
        """Time indices (T, N) that reverse each sequence within its length. None: forward."""
        if not self.reverse:
            return None
        t = np.arange(T)[:, None]
        n = np.full(N, T) if self.lengths is None else self.lengths
        return np.where(t < n, n - 1 - t, t)

    def _restore(self, values: Array, order: Array | None) -> Array:
        """(T, N, F) in this pass's order to (N, T, F) in the caller's, with padding of 0."""
        if self.padding is not None:
            values = np.where(self.padding, np.zeros((), values.dtype), values)
        if order is not None:
            values = np.take_along_axis(values, order[:, :, None], axis=0)
        return np.ascontiguousarray(values.transpose(1, 0, 2))
