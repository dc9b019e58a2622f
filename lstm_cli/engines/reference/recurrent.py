"""Forward pass of a recurrent layer in NumPy, and its backward pass over both directions.

`ForwardPass` runs one direction with time as the first axis. `recurrent_forward` joins the
directions' outputs. ``step.py`` computes the gates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import DTypeLike

from lstm_cli.cells import Cell
from lstm_cli.engines.reference.backward import BackwardPass, DirectionTape
from lstm_cli.engines.reference.step import (
    DirectionWeights,
    NumpyStep,
    ProfiledStep,
    TrainingStep,
)
from lstm_cli.engines.types import (
    DIRECTIONS,
    Array,
    LayerGradients,
    LayerResult,
    RecurrentSpec,
    State,
    TrainingPass,
)

PROJECTION_BYTES = 4 << 20
"""Bytes of input projections per matrix product. A long sequence takes several products."""


@dataclass(frozen=True)
class RecurrentBatch:
    """Inputs and options of a recurrent layer's forward pass."""

    x: Array  # (N, T, D)
    lengths: Array | None  # (N,)
    state: State | None
    return_gates: bool = False
    by_gate: bool = False
    training: TrainingPass | None = None


@dataclass(frozen=True)
class RecurrentTape:
    """Values of a forward pass that `recurrent_backward` needs."""

    directions: tuple[DirectionTape, ...]
    lengths: Array | None
    input_mask: Array | None  # (N, T, D), dropout mask of the input


def recurrent_forward(
    spec: RecurrentSpec, weights: list[DirectionWeights], batch: RecurrentBatch
) -> LayerResult:
    """Forward pass of every direction over the batch."""
    x, training = batch.x, batch.training
    input_mask = None
    if training is not None and spec.dropout:
        input_mask = training.mask(spec, 0, x.shape, spec.dropout)
        x = x * input_mask
    outputs, finals, tapes = [], [], []
    gates: dict[str, dict[str, Array]] = {}
    seconds: dict[str, float] = {}
    for d, cell in enumerate(spec.cells):
        direction = ForwardPass(
            cell,
            weights[d],
            batch.lengths,
            reverse=d == 1,
            by_gate=batch.by_gate,
            training=training is not None,
            mask=_recurrent_mask(spec, cell, d, len(x), training),
        )
        start = initial_states(cell, batch.state, d, len(x), x.dtype)
        output, final = direction.run(x, start, spec.return_sequences, batch.return_gates)
        outputs.append(output)
        finals.append(final)
        if direction.tape is not None:
            tapes.append(direction.tape)
        if batch.return_gates:
            gates[DIRECTIONS[d]] = direction.gates
        for part, spent in direction.seconds.items():
            seconds[part] = seconds.get(part, 0.0) + spent
    joined = outputs[0] if len(outputs) == 1 else np.concatenate(outputs, axis=-1)
    tape = RecurrentTape(tuple(tapes), batch.lengths, input_mask) if tapes else None
    return LayerResult(joined, _stacked(finals), gates, seconds=seconds, tape=tape)


def _recurrent_mask(
    spec: RecurrentSpec, cell: Cell, direction: int, N: int, training: TrainingPass | None
) -> Array | None:
    if training is None or not spec.recurrent_dropout:
        return None
    return training.mask(spec, 1 + direction, (N, cell.output_size), spec.recurrent_dropout)


def _stacked(finals: list[tuple[Array, ...]]) -> State:
    h = np.stack([final[0] for final in finals], axis=1)  # (N, directions, P)
    c = np.stack([final[1] for final in finals], axis=1) if len(finals[0]) > 1 else None
    return h, c


def initial_states(
    cell: Cell, state: State | None, direction: int, N: int, dtype: DTypeLike
) -> tuple[Array, ...]:
    """Initial states of one direction, each (N, size)."""
    parts = state or (None, None)
    return tuple(
        np.zeros((N, size), dtype)
        if part is None
        else np.array(part[:, direction], dtype)  # a copy: the caller's array stays unchanged
        for part, size in zip(parts, cell.state_sizes, strict=False)
    )


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


def recurrent_backward(
    spec: RecurrentSpec, weights: list[DirectionWeights], tape: RecurrentTape, d_output: Array
) -> LayerGradients:
    """Derivatives for the input, every tensor, and the initial states."""
    tensors: dict[str, Array] = {}
    states, dx = [], None
    P = spec.cells[0].output_size
    for d, (cell, direction) in enumerate(zip(spec.cells, tape.directions, strict=True)):
        part = d_output[..., d * P : (d + 1) * P]
        backward = BackwardPass(cell, weights[d], direction)
        if spec.return_sequences:
            gradients = backward.run(_reordered(direction, part.transpose(1, 0, 2)), None)
        else:
            gradients = backward.run(None, _without_empty(part, tape.lengths))
        tensors |= {spec.prefix(d) + name: value for name, value in gradients.tensors.items()}
        states.append(gradients.states)
        direction_dx = _reordered(direction, gradients.x).transpose(1, 0, 2)
        dx = direction_dx if dx is None else dx + direction_dx
    if tape.input_mask is not None:
        dx = dx * tape.input_mask
    return LayerGradients(np.asarray(dx), tensors, _stacked(states))


def _without_empty(d_last: Array, lengths: Array | None) -> Array:
    """`d_last` with 0 for sequences of length 0, which have no last step."""
    if lengths is None:
        return d_last
    return np.where((lengths > 0)[:, None], d_last, np.zeros((), d_last.dtype))


def _reordered(tape: DirectionTape, values: Array) -> Array:
    """(T, N, F) converted between the caller's order and the pass's, with padding of 0."""
    if tape.padding is not None:
        values = np.where(tape.padding, np.zeros((), values.dtype), values)
    if tape.order is not None:
        values = np.take_along_axis(values, tape.order[:, :, None], axis=0)
    return values
