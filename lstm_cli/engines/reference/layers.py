"""Dense, dropout and flatten layers in NumPy, forward and backward."""

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
class PreparedDense:
    """Tensors of a dense layer."""

    weight: Array  # (units, D)
    bias: Array  # (units,)


@dataclass(frozen=True)
class DenseTape:
    """Values of a dense layer that its backward pass needs."""

    x: Array
    logits: Array
    output: Array


def softmax(x: Array) -> Array:
    """Softmax over the last axis."""
    shifted = np.exp(x - x.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def dense_forward(
    spec: DenseSpec, weights: PreparedDense, x: Array, lengths: Array | None
) -> LayerResult:
    """act(W x + b) for every step, with padding of 0."""
    start = perf_counter()
    a = x.reshape(-1, x.shape[-1]) @ weights.weight.T + weights.bias
    a = a.reshape(*x.shape[:-1], spec.units)
    y = softmax(a) if spec.activation is None else spec.activation(a)
    if lengths is not None and y.ndim == 3:
        padding = np.arange(x.shape[1]) >= lengths[:, None]  # (N, T)
        y = np.where(padding[:, :, None], np.zeros((), y.dtype), y)
    seconds = {"product": perf_counter() - start}
    return LayerResult(y, logits=a, seconds=seconds, tape=DenseTape(x, a, y))


def dense_backward(
    spec: DenseSpec, weights: PreparedDense, tape: DenseTape, d_output: Array, *, d_logits: bool
) -> LayerGradients:
    """Derivatives for input, weight and bias; padding of `d_output` is 0."""
    d = d_output if d_logits else through_activation(spec, tape, d_output)
    flat = d.reshape(-1, spec.units)
    prefix = f"layers.{spec.index}."
    tensors = {
        prefix + "weight": flat.T @ tape.x.reshape(-1, spec.input_size),
        prefix + "bias": flat.sum(axis=0),
    }
    return LayerGradients((flat @ weights.weight).reshape(tape.x.shape), tensors)


def through_activation(spec: DenseSpec, tape: DenseTape, d: Array) -> Array:
    """Derivative for the values before the activation, from `d` for those after it."""
    if spec.activation is None:
        y = tape.output
        return np.asarray(y * (d - (d * y).sum(axis=-1, keepdims=True)))
    return np.asarray(_derivative(spec.activation)({"a": tape.logits, "d": d})["a"])


@lru_cache(maxsize=64)
def _derivative(activation: Activation) -> Program:
    return Program(gradient({activation(symbol("a")): symbol("d")}))


def dropout_forward(spec: DropoutSpec, x: Array, training: TrainingPass | None) -> LayerResult:
    """Inverted dropout in training; the identity otherwise."""
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
    """Derivative (N, steps * F) as (N, T, F), with padding of 0."""
    shape, lengths = tape
    N, T, F = shape
    d = d_output.reshape(N, -1, F)
    padded = np.zeros(shape, d.dtype)
    steps = min(T, d.shape[1])
    padded[:, :steps] = d[:, :steps]
    if lengths is not None:
        padded[np.arange(T) >= lengths[:, None]] = 0
    return LayerGradients(padded)
