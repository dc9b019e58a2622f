"""The layers in NumPy: recurrent, dense, dropout and flatten, each forward and backward.

`Recurrent` joins its directions, which ``forward.py`` and ``backward.py`` compute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter
from typing import TypeAlias, assert_never

import numpy as np
from numpy.typing import DTypeLike

from lstm_cli.cells import Activation, Cell
from lstm_cli.cells.expression import Program, symbol
from lstm_cli.cells.gradient import gradient
from lstm_cli.engines.protocols import Layer
from lstm_cli.engines.reference.backward import BackwardPass, DirectionTape
from lstm_cli.engines.reference.forward import ForwardPass
from lstm_cli.engines.reference.weights import DirectionWeights
from lstm_cli.engines.types import (
    DIRECTIONS,
    Array,
    DenseSpec,
    DropoutSpec,
    FlattenSpec,
    LayerGradients,
    LayerResult,
    LayerSpec,
    LayerTape,
    RecurrentSpec,
    State,
    TrainingPass,
    own_tape,
)

ProductThreads: TypeAlias = Callable[[float], AbstractContextManager[object]]
"""Function from a product's multiply-adds to a context in which BLAS uses the threads for it."""


@dataclass(frozen=True)
class RecurrentTape(LayerTape):
    """Values of a recurrent layer's forward pass that its backward pass needs."""

    directions: tuple[DirectionTape, ...]
    lengths: Array | None
    input_mask: Array | None  # (N, T, D), dropout mask of the input


class Recurrent:
    """A recurrent layer of one direction or two.

    Parameters
    ----------
    tensors
        Tensors by stored name.
    product_threads
        Threads of the matrix products.
    by_gate
        Compute and time the products of each gate separately.
    """

    def __init__(
        self,
        spec: RecurrentSpec,
        tensors: Mapping[str, Array],
        product_threads: ProductThreads,
        *,
        by_gate: bool = False,
    ) -> None:
        self.spec, self._product_threads, self._by_gate = spec, product_threads, by_gate
        self._weights = [
            DirectionWeights.from_tensors(
                cell, {name: tensors[spec.prefix(d) + name] for name in cell.tensor_names}
            )
            for d, cell in enumerate(spec.cells)
        ]

    def forward(
        self,
        x: Array,
        lengths: Array | None,
        state: State[Array] | None = None,
        *,
        return_gates: bool = False,
        training: TrainingPass | None = None,
    ) -> LayerResult[Array, Array]:
        """Forward pass of every direction; see `lstm_cli.engines.protocols.Layer`."""
        spec, input_mask = self.spec, None
        outputs, finals, tapes = [], [], []
        gates: dict[str, dict[str, Array]] = {}
        seconds: dict[str, float] = {}
        with self._product_threads(self._step_size(len(x))), np.errstate(all="ignore"):
            if training is not None and spec.dropout:
                input_mask = training.mask(spec, 0, x.shape, spec.dropout)
                x = x * input_mask
            for d, cell in enumerate(spec.cells):
                direction = ForwardPass(
                    cell,
                    self._weights[d],
                    lengths,
                    reverse=d == 1,
                    by_gate=self._by_gate,
                    training=training is not None,
                    mask=_recurrent_mask(spec, cell, d, len(x), training),
                )
                start = _initial_states(cell, state, d, len(x), x.dtype)
                output, final = direction.run(x, start, spec.return_sequences, return_gates)
                outputs.append(output)
                finals.append(final)
                if direction.tape is not None:
                    tapes.append(direction.tape)
                if return_gates:
                    gates[DIRECTIONS[d]] = direction.gates
                for part, spent in direction.seconds.items():
                    seconds[part] = seconds.get(part, 0.0) + spent
            joined = outputs[0] if len(outputs) == 1 else np.concatenate(outputs, axis=-1)
        tape = RecurrentTape(tuple(tapes), lengths, input_mask) if tapes else None
        return LayerResult(joined, _stacked(finals), gates, seconds=seconds, tape=tape)

    def backward(
        self, tape: LayerTape, d_output: Array, *, d_logits: bool = False
    ) -> LayerGradients[Array, Array]:
        """Derivatives for the input, every tensor, and the initial states."""
        recorded, spec = own_tape(tape, RecurrentTape), self.spec
        tensors: dict[str, Array] = {}
        states, dx = [], None
        P = spec.cells[0].output_size
        with self._product_threads(self._step_size(len(d_output))), np.errstate(all="ignore"):
            for d, direction in enumerate(recorded.directions):
                part = d_output[..., d * P : (d + 1) * P]
                backward = BackwardPass(spec.cells[d], self._weights[d], direction)
                if spec.return_sequences:
                    gradients = backward.run(_reordered(direction, part.transpose(1, 0, 2)), None)
                else:
                    gradients = backward.run(None, _without_empty(part, recorded.lengths))
                tensors |= {spec.prefix(d) + name: v for name, v in gradients.tensors.items()}
                states.append(gradients.states)
                direction_dx = _reordered(direction, gradients.x).transpose(1, 0, 2)
                dx = direction_dx if dx is None else dx + direction_dx
            if recorded.input_mask is not None:
                dx = dx * recorded.input_mask
        return LayerGradients(np.asarray(dx), tensors, _stacked(states))

    def _step_size(self, N: int) -> float:
        """Multiply-adds of one step of N sequences."""
        cell = self.spec.cells[0]
        return float(N * len(cell.gates) * cell.hidden_size * cell.output_size)


def _recurrent_mask(
    spec: RecurrentSpec, cell: Cell, direction: int, N: int, training: TrainingPass | None
) -> Array | None:
    if training is None or not spec.recurrent_dropout:
        return None
    return training.mask(spec, 1 + direction, (N, cell.output_size), spec.recurrent_dropout)


def _stacked(finals: list[tuple[Array, ...]]) -> State[Array]:
    h = np.stack([final[0] for final in finals], axis=1)  # (N, directions, P)
    c = np.stack([final[1] for final in finals], axis=1) if len(finals[0]) > 1 else None
    return h, c


def _initial_states(
    cell: Cell, state: State[Array] | None, direction: int, N: int, dtype: DTypeLike
) -> tuple[Array, ...]:
    """Initial states of one direction, each (N, size)."""
    parts = state or (None, None)
    return tuple(
        np.zeros((N, size), dtype)
        if part is None
        else np.array(part[:, direction], dtype)  # a copy: the caller's array stays unchanged
        for part, size in zip(parts, cell.state_sizes, strict=False)
    )


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


@dataclass(frozen=True)
class DenseTape(LayerTape):
    """Values of a dense layer that its backward pass needs."""

    x: Array
    logits: Array
    output: Array


class Dense:
    """A dense layer.

    Parameters
    ----------
    tensors
        Tensors by stored name.
    product_threads
        Threads of the matrix products.
    """

    def __init__(
        self, spec: DenseSpec, tensors: Mapping[str, Array], product_threads: ProductThreads
    ) -> None:
        self.spec, self._product_threads = spec, product_threads
        self._names = tuple(spec.parameters())
        self._weight, self._bias = (tensors[name] for name in self._names)

    def forward(
        self,
        x: Array,
        lengths: Array | None,
        state: State[Array] | None = None,
        *,
        return_gates: bool = False,
        training: TrainingPass | None = None,
    ) -> LayerResult[Array, Array]:
        """act(W x + b) for every step, with padding of 0."""
        spec = self.spec
        with self._product_threads(float(x.size * spec.units)), np.errstate(all="ignore"):
            start = perf_counter()
            a = x.reshape(-1, x.shape[-1]) @ self._weight.T + self._bias
            a = a.reshape(*x.shape[:-1], spec.units)
            y = softmax(a) if spec.activation is None else spec.activation(a)
            if lengths is not None and y.ndim == 3:
                padding = np.arange(x.shape[1]) >= lengths[:, None]  # (N, T)
                y = np.where(padding[:, :, None], np.zeros((), y.dtype), y)
            seconds = {"product": perf_counter() - start}
        return LayerResult(y, logits=a, seconds=seconds, tape=DenseTape(x, a, y))

    def backward(
        self, tape: LayerTape, d_output: Array, *, d_logits: bool = False
    ) -> LayerGradients[Array, Array]:
        """Derivatives for input, weight and bias; padding of `d_output` is 0."""
        recorded, spec = own_tape(tape, DenseTape), self.spec
        size = float(d_output.size * spec.units)
        with self._product_threads(size), np.errstate(all="ignore"):
            d = d_output if d_logits else through_activation(spec, recorded, d_output)
            flat = d.reshape(-1, spec.units)
            weight, bias = self._names
            tensors = {
                weight: flat.T @ recorded.x.reshape(-1, spec.input_size),
                bias: flat.sum(axis=0),
            }
            dx = (flat @ self._weight).reshape(recorded.x.shape)
        return LayerGradients(dx, tensors)


def softmax(x: Array) -> Array:
    """Softmax over the last axis."""
    shifted = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def through_activation(spec: DenseSpec, tape: DenseTape, d: Array) -> Array:
    """Derivative for the values before the activation, from `d` for those after it."""
    if spec.activation is None:
        y = tape.output
        return np.asarray(y * (d - (d * y).sum(axis=-1, keepdims=True)))
    return np.asarray(_derivative(spec.activation)({"a": tape.logits, "d": d})["a"])


@lru_cache(maxsize=64)
def _derivative(activation: Activation) -> Program:
    return Program(gradient({activation(symbol("a")): symbol("d")}))


@dataclass(frozen=True)
class DropoutTape(LayerTape):
    """Dropout mask of a pass, in the shape of the input. None: the pass was the identity."""

    mask: Array | None


@dataclass(frozen=True)
class Dropout:
    """A dropout layer: inverted dropout in training, the identity otherwise."""

    spec: DropoutSpec

    def forward(
        self,
        x: Array,
        lengths: Array | None,
        state: State[Array] | None = None,
        *,
        return_gates: bool = False,
        training: TrainingPass | None = None,
    ) -> LayerResult[Array, Array]:
        """`x`, in training times a mask."""
        if training is None:
            return LayerResult(x)
        if self.spec.rate == 0:
            return LayerResult(x, tape=DropoutTape(None))
        mask = training.mask(self.spec, 0, x.shape, self.spec.rate)
        with np.errstate(all="ignore"):
            return LayerResult(x * mask, tape=DropoutTape(mask))

    def backward(
        self, tape: LayerTape, d_output: Array, *, d_logits: bool = False
    ) -> LayerGradients[Array, Array]:
        """`d_output` times the mask of the forward pass."""
        mask = own_tape(tape, DropoutTape).mask
        with np.errstate(all="ignore"):
            return LayerGradients(d_output if mask is None else d_output * mask)


@dataclass(frozen=True)
class FlattenTape(LayerTape):
    """Shape (N, T, F) of a flatten layer's input, and its lengths."""

    shape: tuple[int, ...]
    lengths: Array | None


@dataclass(frozen=True)
class Flatten:
    """A layer from (N, T, F) to (N, steps * F), padded with zeros."""

    spec: FlattenSpec

    def forward(
        self,
        x: Array,
        lengths: Array | None,
        state: State[Array] | None = None,
        *,
        return_gates: bool = False,
        training: TrainingPass | None = None,
    ) -> LayerResult[Array, Array]:
        """The steps of each sequence, one after another."""
        (N, T, F), steps = x.shape, self.spec.steps
        padded = np.zeros((N, steps, F), x.dtype)
        padded[:, :T] = x[:, :steps]
        return LayerResult(padded.reshape(N, steps * F), tape=FlattenTape(x.shape, lengths))

    def backward(
        self, tape: LayerTape, d_output: Array, *, d_logits: bool = False
    ) -> LayerGradients[Array, Array]:
        """Derivative (N, steps * F) as (N, T, F), with padding of 0."""
        recorded = own_tape(tape, FlattenTape)
        N, T, F = recorded.shape
        d = d_output.reshape(N, -1, F)
        padded = np.zeros(recorded.shape, d.dtype)
        steps = min(T, d.shape[1])
        padded[:, :steps] = d[:, :steps]
        if recorded.lengths is not None:
            padded[np.arange(T) >= recorded.lengths[:, None]] = 0
        return LayerGradients(padded)


def make_layer(
    spec: LayerSpec,
    tensors: Mapping[str, Array],
    product_threads: ProductThreads,
    *,
    by_gate: bool = False,
) -> Layer[Array, Array]:
    """The layer of a specification, with its tensors by stored name."""
    match spec:
        case RecurrentSpec():
            return Recurrent(spec, tensors, product_threads, by_gate=by_gate)
        case DenseSpec():
            return Dense(spec, tensors, product_threads)
        case DropoutSpec():
            return Dropout(spec)
        case FlattenSpec():
            return Flatten(spec)
        case _:
            assert_never(spec)
