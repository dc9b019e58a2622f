"""Equivalence of two networks: both run on the same random sequences, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import Array, FlattenSpec, Layers, RecurrentSpec
from lstm_cli.network.difference import largest_difference
from lstm_cli.network.network import Network, ends_sequence
from lstm_cli.network.normalization import TENSOR_NAMES, Normalization, fold, fold_noise
from lstm_cli.network.results import layer_flops

SEED = 20
SEQUENCES, STEPS = 4, 7
"""Number of random sequences, and of steps where the config does not fix it."""
FEWEST = 2
"""Fewest sequences, and fewest steps: a recurrence shows from the second step on."""
BUDGET = 4e9
"""Most floating-point operations for one network, which take some seconds."""

ROUNDING = {"float32": 1e-5, "float64": 1e-12}
"""Relative difference that rounding explains in an ordinary network, by stored dtype."""
SLACK = 8
"""Largest difference of outputs, as a multiple of the rounding in the first layer's sums."""
ORDINARY = 256
"""Most terms of a sum in an ordinary network."""


@dataclass(frozen=True)
class ComparedNetwork:
    """One of two networks to compare: layers, and their tensors by native name."""

    layers: Layers
    tensors: Mapping[str, Array]


@dataclass(frozen=True)
class RandomInput:
    """Random sequences x (N, T, D), with lengths and initial states if both networks take them."""

    x: Array
    lengths: Array | None
    state: list[Any] | None


@dataclass(frozen=True)
class Equivalence:
    """Difference between two networks, and the largest one that rounding explains.

    Attributes
    ----------
    largest_difference, relative_difference
        Largest difference of all outputs and final states: absolute, and relative to the
        largest value of its array.
    tolerance
        Largest relative difference that rounding explains.
    place
        Place of the largest difference: ``the outputs, sequence 0, step 3, feature 2``.
    sequences, steps
        Sequences and steps that were run.
    ragged, states
        True if the sequences had different lengths; True if they began with random states.
    same_bits
        Every stored number is the same on both sides, to the bit.
    """

    largest_difference: float
    relative_difference: float
    tolerance: float
    place: str
    sequences: int
    steps: int
    ragged: bool
    states: bool
    same_bits: bool

    @property
    def holds(self) -> bool:
        """True if rounding explains the difference; it never explains NaN."""
        return self.relative_difference <= self.tolerance


def check_equivalence(
    one: ComparedNetwork,
    other: ComparedNetwork,
    steps: int | None,
    dtype: str,
    inputs: Normalization | None = None,
) -> Equivalence:
    """Run both networks on the same random input; compare outputs and final states.

    Parameters
    ----------
    steps
        Number of steps T if the config fixes it, else None.
    dtype
        The narrower dtype of both networks' tensors; it sets the tolerance.
    inputs
        Range of the data: inputs are drawn from mean + scale * normal. None: normal.
    """
    states = _state_forms(one.layers) == _state_forms(other.layers)
    sequences = random_input(one.layers, steps, states=states)
    if inputs is not None:
        sequences = replace(sequences, x=inputs.undo(sequences.x))
    expected, actual = (_run(network, sequences, states=states) for network in (one, other))
    relative, absolute, place = max(
        (array_difference(value, actual.get(name), name) for name, value in expected.items()),
        key=lambda difference: difference[0],
    )
    return Equivalence(
        absolute,
        relative,
        tolerance(one.layers, dtype),
        place,
        sequences.x.shape[0],
        sequences.x.shape[1],
        sequences.lengths is not None,
        sequences.state is not None,
        same_bits(one, other),
    )


def check_fold(network: ComparedNetwork, steps: int | None, inputs: Normalization) -> Equivalence:
    """Compare a network with the one whose weights include its normalization, in float64."""
    weights = {
        name: np.asarray(value, np.float64)
        for name, value in network.tensors.items()
        if name not in TENSOR_NAMES
    }
    folded = fold(network.layers, weights, inputs)
    noise = SLACK * fold_noise(network.layers, folded, inputs, np.float64)
    other = ComparedNetwork(network.layers, folded)
    proof = check_equivalence(network, other, steps, "float64", inputs)
    return replace(proof, tolerance=proof.tolerance + noise)


def tolerance(layers: Layers, dtype: str) -> float:
    """Return the relative difference that rounding to `dtype` explains; more for longer sums."""
    longest = max((p.shape[-1] for spec in layers for p in spec.parameters().values()), default=1)
    return ROUNDING[dtype] * max(1.0, math.sqrt(longest / ORDINARY))


def same_bits(one: ComparedNetwork, other: ComparedNetwork) -> bool:
    """Return True if both store the same numbers in the same order, under any names."""
    pairs = [list(network.tensors.values()) for network in (one, other)]
    return len(pairs[0]) == len(pairs[1]) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(*pairs, strict=True)
    )


def random_input(layers: Layers, steps: int | None, *, states: bool) -> RandomInput:
    """Draw random sequences for a network, fewer or shorter ones if `BUDGET` requires."""
    N, T = _size(layers, steps)
    rng = np.random.default_rng(SEED)
    x = rng.standard_normal((N, T, layers[0].input_size))
    lengths = None
    if not any(isinstance(spec, FlattenSpec) for spec in layers):
        lengths = rng.integers(1, T + 1, N)
        lengths[:2] = T, 1
    return RandomInput(x, lengths, _random_states(layers, N, rng) if states else None)


def _size(layers: Layers, steps: int | None) -> tuple[int, int]:
    """Return N and T within the budget."""
    N, T = SEQUENCES, steps or STEPS
    while T > FEWEST and _flops(layers, N, T) > BUDGET:
        T = max(FEWEST, T // 2)
    while N > FEWEST and _flops(layers, N, T) > BUDGET:
        N -= 1
    return N, T


def _flops(layers: Layers, N: int, T: int) -> float:
    total, positions = 0.0, N * T
    for spec in layers:
        total += sum(layer_flops(spec, positions).values())
        positions = N if ends_sequence(spec) else positions
    return total


def _recurrent(layers: Layers) -> list[RecurrentSpec]:
    return [spec for spec in layers if isinstance(spec, RecurrentSpec)]


def _state_forms(layers: Layers) -> list[Any]:
    """Return the forms of a network's states, equal for networks that take the same states."""
    # A projection to as many features as there are units has states of the same sizes as none.
    return [
        (s.kind, s.directions, s.cells[0].state_sizes, s.cells[0].projects)
        for s in _recurrent(layers)
    ]


def _random_states(layers: Layers, N: int, rng: np.random.Generator) -> list[Any]:
    states = []
    for spec in _recurrent(layers):
        sizes = spec.cells[0].state_sizes
        arrays = [0.5 * rng.standard_normal((N, spec.directions, size)) for size in sizes]
        states.append((arrays[0], arrays[1] if len(arrays) > 1 else None))
    return states


def _run(network: ComparedNetwork, sequences: RandomInput, *, states: bool) -> dict[str, Array]:
    """Return outputs, and final states where both networks have the same, by name in messages."""
    reference = Network(network.layers, network.tensors, ReferenceEngine("float64"))
    with np.errstate(over="ignore", invalid="ignore"):
        result = reference.run(sequences.x, sequences.lengths, sequences.state)
    arrays = {"the outputs": np.asarray(result.outputs)}
    if states:
        for k, (h, c) in enumerate(result.state):
            arrays[f"h of recurrent layer {k}"] = np.asarray(h)
            if c is not None:
                arrays[f"c of recurrent layer {k}"] = np.asarray(c)
    return arrays


def array_difference(expected: Array, actual: Array | None, name: str) -> tuple[float, float, str]:
    """Return the largest difference, relative to the largest value and absolute, and its place.

    It is infinite for other shapes, or a NaN in one array.
    """
    if actual is None or actual.shape != expected.shape:
        shape = None if actual is None else actual.shape
        return math.inf, math.inf, f"the shape of {name}: {shape}, not {expected.shape}"
    difference = largest_difference(expected, actual)
    if not difference.index:
        return 0.0, 0.0, name
    largest = float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
    relative = difference.value / largest if largest else difference.value
    place = difference.place("step" if name == "the outputs" else "direction")
    return relative, difference.value, f"{name}, {place}"
