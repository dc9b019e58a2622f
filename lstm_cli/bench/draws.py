"""Random weights, inputs and targets, repeatable by their seed."""

from __future__ import annotations

from math import ceil

import numpy as np

from lstm_cli.bench.sizes import Size
from lstm_cli.engines.types import Array, Layers
from lstm_cli.network.initializers import initialize
from lstm_cli.network.network import ends_sequence


def random_weights(layers: Layers, seed: int, dtype: str) -> dict[str, Array]:
    """Weights in which nothing is zero or equal, so that a mistake cannot hide."""
    rng = np.random.default_rng(seed)
    weights = initialize(layers, seed=seed, dtype="float64")
    return {
        name: (value + rng.uniform(-0.5, 0.5, value.shape) * (value.ndim == 1)).astype(dtype)
        for name, value in weights.items()
    }


def random_inputs(layers: Layers, size: Size, seed: int, dtype: str) -> Array:
    """A batch (N, T, D) of the standard normal distribution."""
    rng = np.random.default_rng([seed, 1])
    shape = (size.batch, size.steps, layers[0].input_size)
    return rng.standard_normal(shape).astype(dtype)


def random_lengths(size: Size, seed: int) -> Array:
    """Lengths (N,) of the uniform distribution between a tenth of the steps and all of them."""
    rng = np.random.default_rng([seed, 3])
    return rng.integers(ceil(size.steps / 10), size.steps + 1, size.batch)


def random_targets(layers: Layers, size: Size, loss: str, seed: int, dtype: str) -> Array:
    """Targets that the loss takes, one for each row of the outputs.

    Classes (N, T) or (N,) int64 under cross_entropy; else values (N, T, F) or (N, F) in
    `dtype`: 0 and 1 under binary_cross_entropy, of the standard normal distribution otherwise.
    """
    rng = np.random.default_rng([seed, 2])
    ended = any(ends_sequence(spec) for spec in layers)
    rows = (size.batch,) if ended else (size.batch, size.steps)
    F = layers[-1].output_size
    if loss == "cross_entropy":
        return rng.integers(0, F, rows)
    if loss == "binary_cross_entropy":
        return rng.integers(0, 2, (*rows, F)).astype(dtype)
    return rng.standard_normal((*rows, F)).astype(dtype)
