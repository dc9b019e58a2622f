"""Layers without recurrence, in NumPy: dense, dropout, flatten; forward beside backward."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from time import perf_counter

import numpy as np

from lstm_cli.cells import Activation
from lstm_cli.cells.expression import Program, symbol
from lstm_cli.cells.gradient import gradient
from lstm_cli.engines.types import (
    Array,
    DenseSpec,
    DropoutSpec,
    FlattenSpec,
    LayerGradients,
    LayerResult,
    TrainingPass,
)


@dataclass(frozen=True)
class DenseWeights:
    """A dense layer's tensors."""

    weight: Array  # (units, D)
    bias: Array  # (units,)


@dataclass(frozen=True)
class DenseTape:
    """What a dense layer's backward pass needs."""

    x: Array
    logits: Array
    output: Array


def softmax(x: Array) -> Array:
    """Softmax over the last axis."""
    shifted = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def dense_forward(
    spec: DenseSpec, weights: DenseWeights, x: Array, lengths: Array | None
) -> LayerResult:
    """act(W x + b) on every step alike, 0 past a sequence's end."""
    begun = perf_counter()
    a = x.reshape(-1, x.shape[-1]) @ weights.weight.T + weights.bias
    a = a.reshape(*x.shape[:-1], spec.units)
    y = softmax(a) if spec.activation is None else spec.activation(a)
    if lengths is not None and y.ndim == 3:
        ended = np.arange(x.shape[1]) >= lengths[:, None]  # (N, T)
        y = np.where(ended[:, :, None], np.zeros((), y.dtype), y)
    seconds = {"product": perf_counter() - begun}
    return LayerResult(y, logits=a, seconds=seconds, tape=DenseTape(x, a, y))


def dense_backward(
    spec: DenseSpec, weights: DenseWeights, tape: DenseTape, d_output: Array, *, d_logits: bool
) -> LayerGradients:
    """Derivatives for input, weight and bias; `d_output` is 0 past a sequence's end."""
    d = d_output if d_logits else through_activation(spec, tape, d_output)
    flat = d.reshape(-1, spec.units)
    prefix = f"layers.{spec.index}."
    found = {
        prefix + "weight": flat.T @ tape.x.reshape(-1, spec.input_size),
        prefix + "bias": flat.sum(axis=0),
    }
    return LayerGradients((flat @ weights.weight).reshape(tape.x.shape), found)


def through_activation(spec: DenseSpec, tape: DenseTape, d: Array) -> Array:
    """The derivative for the values before the activation, from the one for those after it."""
    if spec.activation is None:
        y = tape.output
        return np.asarray(y * (d - (d * y).sum(axis=-1, keepdims=True)))
    return np.asarray(_derivative(spec.activation)({"a": tape.logits, "d": d})["a"])


@lru_cache(maxsize=64)
def _derivative(activation: Activation) -> Program:
    return Program(gradient({activation(symbol("a")): symbol("d")}))


def dropout_forward(spec: DropoutSpec, x: Array, training: TrainingPass | None) -> LayerResult:
    """Some values 0 and the rest larger, in training; else the identity."""
    if training is None or spec.rate == 0:
        return LayerResult(x)
    mask = training.mask(spec, 0, x.shape, spec.rate)
    return LayerResult(x * mask, tape=mask)


def flatten_forward(spec: FlattenSpec, x: Array, lengths: Array | None) -> LayerResult:
    """(N, T, F) to (N, steps * F), padded with zeros."""
    N, T, F = x.shape
    padded = np.zeros((N, spec.steps, F), x.dtype)
    padded[:, :T] = x[:, : spec.steps]
    return LayerResult(padded.reshape(N, spec.steps * F), tape=(x.shape, lengths))


def flatten_backward(
    tape: tuple[tuple[int, int, int], Array | None], d_output: Array
) -> LayerGradients:
    """(N, steps * F) back to (N, T, F); 0 past a sequence's end."""
    shape, lengths = tape
    N, T, F = shape
    d = d_output.reshape(N, -1, F)
    padded = np.zeros(shape, d.dtype)
    steps = min(T, d.shape[1])
    padded[:, :steps] = d[:, :steps]
    if lengths is not None:
        padded[np.arange(T) >= lengths[:, None]] = 0
    return LayerGradients(padded)
