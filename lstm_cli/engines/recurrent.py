"""A recurrent layer in NumPy: both directions, their outputs side by side, and backwards."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lstm_cli.cells import Cell
from lstm_cli.engines.backpropagation import BackwardPass, PassTape
from lstm_cli.engines.recurrence import Pass, initial_states
from lstm_cli.engines.steps import DirectionWeights
from lstm_cli.engines.types import (
    DIRECTIONS,
    Array,
    LayerGradients,
    LayerResult,
    RecurrentSpec,
    State,
    TrainingPass,
)


@dataclass(frozen=True)
class RecurrentBatch:
    """What a recurrent layer computes on, and how."""

    x: Array  # (N, T, D)
    lengths: Array | None  # (N,)
    state: State | None
    keep: bool = False
    by_gate: bool = False
    training: TrainingPass | None = None


@dataclass(frozen=True)
class _LayerTape:
    passes: tuple[PassTape, ...]
    lengths: Array | None
    dropped: Array | None  # what the input was multiplied by


def recurrent_forward(
    spec: RecurrentSpec, weights: list[DirectionWeights], batch: RecurrentBatch
) -> LayerResult:
    """Every direction over the batch."""
    x, training = batch.x, batch.training
    dropped = None
    if training is not None and spec.dropout:
        dropped = training.mask(spec, 0, x.shape, spec.dropout)
        x = x * dropped
    parts, finals, tapes = [], [], []
    kept: dict[str, dict[str, Array]] = {}
    seconds: dict[str, float] = {}
    for d, cell in enumerate(spec.cells):
        pass_ = Pass(
            cell,
            weights[d],
            batch.lengths,
            reverse=d == 1,
            by_gate=batch.by_gate,
            training=training is not None,
            mask=_recurrent_mask(spec, cell, d, len(x), training),
        )
        start = initial_states(cell, batch.state, d, len(x), x.dtype)
        sequence, final = pass_.run(x, start, spec.return_sequences, batch.keep)
        parts.append(sequence)
        finals.append(final)
        if pass_.tape is not None:
            tapes.append(pass_.tape)
        if batch.keep:
            kept[DIRECTIONS[d]] = pass_.kept
        for part, spent in pass_.seconds.items():
            seconds[part] = seconds.get(part, 0.0) + spent
    output = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
    tape = _LayerTape(tuple(tapes), batch.lengths, dropped) if tapes else None
    return LayerResult(output, _stacked(finals), kept, seconds=seconds, tape=tape)


def _recurrent_mask(
    spec: RecurrentSpec, cell: Cell, direction: int, N: int, training: TrainingPass | None
) -> Array | None:
    if training is None or not spec.recurrent_dropout:
        return None
    return training.mask(spec, 1 + direction, (N, cell.output_size), spec.recurrent_dropout)


def _stacked(finals: list[tuple[Array, ...]]) -> State:
    """Each direction's states (N, size) as (N, directions, size)."""
    h = np.stack([final[0] for final in finals], axis=1)
    c = np.stack([final[1] for final in finals], axis=1) if len(finals[0]) > 1 else None
    return h, c


def recurrent_backward(
    spec: RecurrentSpec, weights: list[DirectionWeights], tape: _LayerTape, d_output: Array
) -> LayerGradients:
    """Derivatives for the input, every tensor, and the initial states."""
    found: dict[str, Array] = {}
    states, dx = [], None
    P = spec.cells[0].output_size
    for d, (cell, own) in enumerate(zip(spec.cells, tape.passes, strict=True)):
        part = d_output[..., d * P : (d + 1) * P]
        backward = BackwardPass(cell, weights[d], own)
        if spec.return_sequences:
            gradients = backward.run(_in_order(own, part.transpose(1, 0, 2)), None)
        else:
            gradients = backward.run(None, _seen(part, tape.lengths))
        found |= {spec.prefix(d) + name: value for name, value in gradients.tensors.items()}
        states.append(gradients.states)
        own_dx = _in_order(own, gradients.x).transpose(1, 0, 2)
        dx = own_dx if dx is None else dx + own_dx
    if tape.dropped is not None:
        dx = dx * tape.dropped
    return LayerGradients(np.asarray(dx), found, _stacked(states))


def _seen(d_last: Array, lengths: Array | None) -> Array:
    """The derivative for the last step's output, which a sequence of length 0 does not have."""
    if lengths is None:
        return d_last
    return np.where((lengths > 0)[:, None], d_last, np.zeros((), d_last.dtype))


def _in_order(tape: PassTape, values: Array) -> Array:
    """(T, N, F) between the caller's order and the pass's, 0 past the ends."""
    if tape.ended is not None:
        values = np.where(tape.ended, np.zeros((), values.dtype), values)
    if tape.order is not None:
        values = np.take_along_axis(values, tape.order[:, :, None], axis=0)
    return values
