"""Do two networks compute the same? Both are run on random sequences, in float64."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import Array, FlattenSpec, Layers, RecurrentSpec
from lstm_cli.network.network import Network, ends_sequence
from lstm_cli.network.normalization import TENSOR_NAMES, Normalization, fold, fold_noise
from lstm_cli.network.results import layer_flops

SEED = 20
SEQUENCES, STEPS = 4, 7
FEWEST = 2
"""Sequences and steps at least: a recurrence shows from the second step on."""
BUDGET = 4e9
"""Floating-point operations of one side: some seconds."""

ROUNDING = {"float32": 1e-5, "float64": 1e-12}
"""Relative difference that rounding explains in a network of ordinary size, by stored dtype."""
SLACK = 8
"""Outputs may differ by so many times the rounding of the first layer's pre-activations."""
ORDINARY = 256
"""Terms of a sum up to which a network is one of ordinary size."""


@dataclass(frozen=True)
class Sided:
    """One side: layers, and tensors that fit them, by native name."""

    layers: Layers
    tensors: Mapping[str, Array]


@dataclass(frozen=True)
class Trial:
    """Random sequences, with lengths and initial states where both sides take them."""

    x: Array
    lengths: Array | None
    state: list[Any] | None


@dataclass(frozen=True)
class Proof:
    """How far two networks are apart.

    Attributes
    ----------
    largest_difference, relative_difference
        Of all outputs and final states: absolute, and beside the largest value there.
    tolerance
        What the relative one may be.
    place
        Where the largest one is: ``the outputs, sequence 0, step 3, feature 2``.
    sequences, steps
        That were run.
    ragged, states
        Whether the sequences were of different lengths, and began with random states.
    same_bits
        Every number stored is the same on both sides, to the bit.
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
        """Whether rounding explains the difference; NaN is never explained."""
        return self.relative_difference <= self.tolerance


@dataclass(frozen=True)
class Difference:
    """The largest difference between two arrays, and where it is."""

    absolute: float = 0.0
    relative: float = 0.0
    place: str = ""


def prove(
    one: Sided,
    other: Sided,
    steps: int | None,
    dtype: str,
    inputs: Normalization | None = None,
) -> Proof:
    """Run both sides on the same random input and compare outputs and final states.

    Parameters
    ----------
    steps
        T where the config fixes it.
    dtype
        The narrower one of what both sides store, which says how much rounding may change.
    inputs
        Range of the data: inputs are drawn from mean + scale * normal. None: normal.
    """
    alike = _states(one.layers) == _states(other.layers)
    trial = draw(one.layers, steps, states=alike)
    if inputs is not None:
        trial = replace(trial, x=inputs.undo(trial.x))
    found = [_run(side, trial, states=alike) for side in (one, other)]
    worst = max(
        (difference(found[0][name], found[1].get(name), name) for name in found[0]),
        key=lambda d: d.relative,
    )
    return Proof(
        worst.absolute,
        worst.relative,
        tolerance(one.layers, dtype),
        worst.place,
        trial.x.shape[0],
        trial.x.shape[1],
        trial.lengths is not None,
        trial.state is not None,
        same_bits(one, other),
    )


def prove_fold(side: Sided, steps: int | None, inputs: Normalization) -> Proof:
    """Run a network beside what its normalization, folded in float64, makes of its weights."""
    own = {
        name: np.asarray(v, np.float64)
        for name, v in side.tensors.items()
        if name not in TENSOR_NAMES
    }
    folded = fold(side.layers, own, inputs)
    noise = SLACK * fold_noise(side.layers, folded, inputs, np.float64)
    proof = prove(side, Sided(side.layers, folded), steps, "float64", inputs)
    return replace(proof, tolerance=proof.tolerance + noise)


def tolerance(layers: Layers, dtype: str) -> float:
    """The relative difference that rounding to `dtype` explains; larger for longer sums."""
    longest = max((p.shape[-1] for spec in layers for p in spec.parameters().values()), default=1)
    return ROUNDING[dtype] * max(1.0, math.sqrt(longest / ORDINARY))


def same_bits(one: Sided, other: Sided) -> bool:
    """Whether both sides store the same numbers in the same order, whatever their names."""
    pairs = [list(side.tensors.values()) for side in (one, other)]
    return len(pairs[0]) == len(pairs[1]) and all(
        a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
        for a, b in zip(*pairs, strict=True)
    )


def draw(layers: Layers, steps: int | None, *, states: bool) -> Trial:
    """Random sequences for a network: as many steps as it takes a moment to compute."""
    N, T = _size(layers, steps)
    rng = np.random.default_rng(SEED)
    x = rng.standard_normal((N, T, layers[0].input_size))
    lengths = None
    if not any(isinstance(spec, FlattenSpec) for spec in layers):
        lengths = rng.integers(1, T + 1, N)
        lengths[:2] = T, 1
    return Trial(x, lengths, _initial(layers, N, rng) if states else None)


def _size(layers: Layers, steps: int | None) -> tuple[int, int]:
    """N and T within the budget."""
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


def _states(layers: Layers) -> list[Any]:
    """What a network's states are: equal for two that can begin with the same ones."""
    # A projection to as many features as there are units has states of the same sizes as none.
    return [
        (s.kind, s.directions, s.cells[0].state_sizes, s.cells[0].projects)
        for s in _recurrent(layers)
    ]


def _initial(layers: Layers, N: int, rng: np.random.Generator) -> list[Any]:
    states = []
    for spec in _recurrent(layers):
        sizes = spec.cells[0].state_sizes
        drawn = [0.5 * rng.standard_normal((N, spec.directions, size)) for size in sizes]
        states.append((drawn[0], drawn[1] if len(drawn) > 1 else None))
    return states


def _run(side: Sided, trial: Trial, *, states: bool) -> dict[str, Array]:
    """Outputs, and final states where both sides have the same, by what they are called."""
    network = Network(side.layers, side.tensors, ReferenceEngine("float64"))
    with np.errstate(over="ignore", invalid="ignore"):
        result = network.run(trial.x, trial.lengths, trial.state)
    found = {"the outputs": np.asarray(result.outputs)}
    if states:
        for k, (h, c) in enumerate(result.state):
            found[f"h of recurrent layer {k}"] = np.asarray(h)
            if c is not None:
                found[f"c of recurrent layer {k}"] = np.asarray(c)
    return found


def difference(expected: Array, found: Array | None, name: str) -> Difference:
    """The largest difference of two arrays; infinite where their shapes or a NaN differ."""
    if found is None or found.shape != expected.shape:
        shape = None if found is None else found.shape
        return Difference(math.inf, math.inf, f"the shape of {name}: {shape}, not {expected.shape}")
    if not expected.size:
        return Difference(place=name)
    with np.errstate(invalid="ignore"):
        apart = np.abs(np.asarray(expected, np.float64) - found)
    same = (expected == found) | (np.isnan(expected) & np.isnan(found))
    apart = np.where(same, 0.0, np.where(np.isnan(apart), math.inf, apart))
    at = np.unravel_index(int(np.argmax(apart)), apart.shape)
    largest = float(np.abs(expected[np.isfinite(expected)]).max(initial=0.0))
    absolute = float(apart[at])
    place = f"{name}, {place_text(at, expected.ndim, name)}"
    return Difference(absolute, absolute / largest if largest else absolute, place)


def place_text(at: Sequence[Any], rank: int, name: str = "the outputs") -> str:
    """An index of outputs (N, T, F) or (N, F), or of a state (N, directions, H), in words."""
    middle = "step" if name == "the outputs" else "direction"
    words = ("sequence", middle, "feature") if rank == 3 else ("sequence", "feature")
    return ", ".join(f"{word} {int(k)}" for word, k in zip(words, at, strict=True))
