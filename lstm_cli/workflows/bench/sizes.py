"""Sizes to measure, with their layers, floating-point work, random weights and batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil

import numpy as np

from lstm_cli.cells import LSTM
from lstm_cli.engines.types import Array, Layers, LayerSpec, RecurrentSpec
from lstm_cli.errors import UsageError
from lstm_cli.network.initializers import initialize
from lstm_cli.network.network import ends_sequence
from lstm_cli.network.results import layer_flops


@dataclass(frozen=True)
class GridSize:
    """A point of a grid: units H, sequences N, steps T, features D."""

    hidden: int
    batch: int
    steps: int
    features: int

    def __str__(self) -> str:
        text = f"{self.hidden} × {self.batch} × {self.steps}"
        return text if self.features == self.hidden else f"{text}, D {self.features}"


def grid(
    hidden: Sequence[int],
    batch: Sequence[int],
    steps: Sequence[int],
    features: Sequence[int] | None = None,
) -> tuple[GridSize, ...]:
    """Every combination once; the last list varies fastest. Without `features`, D = H.

    Raises
    ------
    UsageError
        A number below 1, or an empty list.
    """
    lists = {"hidden": hidden, "batch": batch, "steps": steps, "features": features}
    for name, numbers in lists.items():
        if numbers is not None and (not numbers or min(numbers) < 1):
            raise UsageError(
                f"the list of {name} does not name sizes",
                expected="whole numbers of at least 1",
                found=", ".join(map(str, numbers)) or "an empty list",
                hint=f"--{name} 128",
            )
    sizes = (
        GridSize(H, N, T, D)
        for H, N, T in product(hidden, batch, steps)
        for D in ((H,) if features is None else features)
    )
    return tuple(dict.fromkeys(sizes))


DEFAULT_SIZES = grid((32, 100, 128, 256), (1, 32), (100,))
"""Sizes of a benchmark without options; no vector length divides H = 100."""


def one_lstm(size: GridSize) -> tuple[LayerSpec, ...]:
    """One LSTM layer of this size: the workload without a config."""
    return (RecurrentSpec(0, size.features, (LSTM(hidden_size=size.hidden),)),)


def describe(layers: Layers) -> str:
    """The layers in a few words, ``lstm 12 → 100, dense 100 → 9``."""
    return ", ".join(f"{spec.kind} {spec.input_size} → {spec.output_size}" for spec in layers)


def flops(layers: Layers, size: GridSize, positions: int | None = None) -> float:
    """Floating-point operations of all matrix products over a batch.

    Parameters
    ----------
    positions
        Valid steps of all sequences together; None: N T.
    """
    total = 0.0
    positions = size.batch * size.steps if positions is None else positions
    for spec in layers:
        total += sum(layer_flops(spec, positions).values())
        if ends_sequence(spec):
            positions = size.batch
    return total


def training_flops(layers: Layers, size: GridSize, positions: int | None = None) -> float:
    """Floating-point operations of a training step: three times `flops`.

    Every product W x of the forward pass has two in the backward pass: dy xᵀ for the weights
    and Wᵀ dy for the inputs. The optimizer multiplies no matrices, so it is not counted.
    """
    return 3 * flops(layers, size, positions)


def recurrent_reads(layers: Layers, steps: int, item: int) -> Mapping[int, int]:
    """Number of reads of recurrent matrices in a pass, by bytes of a matrix.

    Every step multiplies by the recurrent weights of each direction in turn. Weights that stay
    in registers or a cache are read from there.

    Parameters
    ----------
    steps
        Steps of the pass.
    item
        Bytes per weight.
    """
    reads: dict[int, int] = {}
    for spec in layers:
        if isinstance(spec, RecurrentSpec):
            work = layer_flops(spec, 1)["recurrence"]
            matrix = int(work / 2 / spec.directions) * item
            reads[matrix] = reads.get(matrix, 0) + spec.directions * steps
    return reads


def random_weights(layers: Layers, seed: int, dtype: str) -> dict[str, Array]:
    """Weights without zeros or equal values, which would hide mistakes."""
    rng = np.random.default_rng(seed)
    weights = initialize(layers, seed=seed, dtype="float64")
    return {
        name: (value + rng.uniform(-0.5, 0.5, value.shape) * (value.ndim == 1)).astype(dtype)
        for name, value in weights.items()
    }


def random_inputs(layers: Layers, size: GridSize, seed: int, dtype: str) -> Array:
    """A batch (N, T, D) from the standard normal distribution."""
    rng = np.random.default_rng([seed, 1])
    shape = (size.batch, size.steps, layers[0].input_size)
    return rng.standard_normal(shape).astype(dtype)


def random_lengths(size: GridSize, seed: int) -> Array:
    """Lengths (N,) from the uniform distribution between T / 10 and T."""
    rng = np.random.default_rng([seed, 3])
    return rng.integers(ceil(size.steps / 10), size.steps + 1, size.batch)


def random_targets(layers: Layers, size: GridSize, loss: str, seed: int, dtype: str) -> Array:
    """Targets for a loss, one for each row of the outputs.

    Classes (N, T) or (N,) int64 for cross_entropy; else values (N, T, F) or (N, F) in `dtype`.
    Values are 0 and 1 for binary_cross_entropy, otherwise from the standard normal distribution.
    """
    rng = np.random.default_rng([seed, 2])
    one_per_sequence = any(ends_sequence(spec) for spec in layers)
    rows = (size.batch,) if one_per_sequence else (size.batch, size.steps)
    F = layers[-1].output_size
    if loss == "cross_entropy":
        return rng.integers(0, F, rows)
    if loss == "binary_cross_entropy":
        return rng.integers(0, 2, (*rows, F)).astype(dtype)
    return rng.standard_normal((*rows, F)).astype(dtype)
