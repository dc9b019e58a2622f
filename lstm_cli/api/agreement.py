"""Does a network give what another framework gave?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lstm_cli.api.proof import place_text
from lstm_cli.api.readings import Reading, fitting_reading, last_recurrent
from lstm_cli.api.reference_files import Reference, read_reference
from lstm_cli.config import Config
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import Array, Layers, RecurrentSpec, ZeroStates
from lstm_cli.errors import DataError, LstmCliError
from lstm_cli.network.network import Network
from lstm_cli.network.normalization import TENSOR_NAMES

BATCH = 64
SEED, DRAWS = 30, 3
"""Of the random last bits, and how often they are drawn."""
SLACK = 8
"""A reference may differ by so many times what was measured of rounding."""
DISTINCT = 1e-2
"""Below this, rounding leaves enough to tell a wrong network from a right one."""


@dataclass(frozen=True)
class Agreement:
    """How far outputs are from those of a reference file.

    Attributes
    ----------
    path
        Of the reference.
    largest_difference
        Absolute up to 1, beside the expected value above.
    tolerance
        What it may be.
    place
        ``sequence 3, step 5, feature 0``.
    expected, found
        The two values there.
    sequences, steps
        Of the reference.
    states
        Whether it begins with initial states.
    """

    path: str
    largest_difference: float
    tolerance: float
    place: str
    expected: float
    found: float
    sequences: int
    steps: int
    states: bool

    @property
    def holds(self) -> bool:
        """Whether the difference is within the tolerance; NaN never is."""
        return self.largest_difference <= self.tolerance


def agreement(
    config: Config,
    tensors: Mapping[str, Array],
    path: str,
    tolerance: float,
    zero_states: ZeroStates,
) -> Agreement:
    """Compare a network's outputs, computed in float64, with those of a reference file.

    Initial states that `zero_states` names are 0, whatever the file holds.

    Raises
    ------
    DataError
        The file cannot be read, or does not fit the network.
    LstmCliError
        The outputs differ by more than the tolerance.
    """
    reference = read_reference(path)

    def run(layers: Layers, given: Reference) -> Array:
        needed = {name for spec in layers for name in spec.parameters()}
        if layers[0].index == config.specs[0].index:  # what follows reads no raw inputs
            needed |= set(TENSOR_NAMES)
        own = {name: value for name, value in tensors.items() if name in needed}
        network = Network(layers, own, ReferenceEngine("float64"))
        network.zero_states = zero_states
        return _outputs(network, given)

    outputs = run(config.specs, reference)
    alike = outputs.shape == reference.outputs.shape
    if alike and (found := _compared(reference, outputs, tolerance)).holds:
        return found
    with np.errstate(over="ignore", invalid="ignore"):
        noise = _rounding(config.specs, tensors, reference, zero_states)
    if alike and found.largest_difference <= SLACK * noise:
        raise _rounded(config, reference, outputs, found, noise)
    slack = SLACK * noise if noise < DISTINCT else 0.0

    def fits(given: Reference, outputs: Array) -> bool:
        return _compared(given, outputs, max(tolerance, slack)).holds

    reading = fitting_reading(config.specs, reference, run, fits)
    raise (
        _disagree(config, found, reading)
        if alike
        else _misshapen(config, reference, outputs, reading)
    )


def _rounding(
    layers: Layers, tensors: Mapping[str, Array], reference: Reference, zero_states: ZeroStates
) -> float:
    """How far rounding, in the type that a reference was computed in, moves a network's outputs.

    The network is run in float64 as it is, with weights and inputs that are off by their last
    bit, and in float32 unless the reference is wider. The result is 0 where a number is too large
    for the type: that is no matter of its last digits.
    """
    narrow, rng = _is_narrow(reference.outputs), np.random.default_rng(SEED)
    needed = {name for spec in layers for name in spec.parameters()} | set(TENSOR_NAMES)
    own = {name: value for name, value in tensors.items() if name in needed}

    def off(value: Array, *, wide: bool) -> Array:
        bit = 2.0**-53 if wide else 2.0**-24
        return np.asarray(value, np.float64) * (1 + bit * rng.choice([-1.0, 1.0], value.shape))

    def drawn(name: str, value: Array) -> Array:
        summed = "bias" in name and value.dtype != np.float64  # of two biases, and rounded
        return value if name in TENSOR_NAMES else off(value, wide=not (narrow or summed))

    def run(weights: Mapping[str, Array], x: Array, dtype: str = "float64") -> Array:
        network = Network(layers, weights, ReferenceEngine(dtype))
        network.zero_states = zero_states
        return _outputs(network, replace(reference, x=x))

    exact = replace(reference, outputs=run(own, reference.x))
    others = [run(own, reference.x, "float32")] if narrow else []
    for _ in range(DRAWS):
        weights = {name: drawn(name, value) for name, value in own.items()}
        others.append(run(weights, off(reference.x, wide=not narrow)))
    apart = max(_compared(exact, other, 0.0).largest_difference for other in others)
    return apart if np.isfinite(apart) else 0.0


def _is_narrow(value: Array) -> bool:
    """Whether all numbers are ones of float32."""
    with np.errstate(over="ignore"):
        return value.dtype.kind != "f" or bool((value.astype(np.float32) == value).all())


def _rounded(
    config: Config, reference: Reference, outputs: Array, found: Agreement, noise: float
) -> LstmCliError:
    """The error where rounding explains a difference, with what can be checked all the same."""
    first = _agreeing_steps(reference, outputs, found.tolerance)
    ways = "check it with a reference of fewer steps"
    if first and all(spec.directions == 1 for spec in _recurrent(config)):
        ways = (
            f"the first {first} steps agree: cut the reference to inputs[:, :{first}] and "
            f"outputs[:, :{first}]"
        )
    if found.largest_difference < DISTINCT:
        enough = float(f"{2 * found.largest_difference:.1g}")
        ways += f", or accept the rounding: --tolerance {enough:g}"
    return LstmCliError(
        f"{config.source} does not give the outputs of {found.path} to the tolerance, and rounding "
        "explains that: this network turns differences in the last bit of its weights and inputs "
        f"into ones of up to {noise:.2g}",
        expected=f"a difference of at most {found.tolerance:.2g}",
        found=f"{found.largest_difference:.2g} at {found.place}: {found.found:.7g}, there "
        f"{found.expected:.7g}",
        hint=f"{ways}; nothing was written",
    )


def _agreeing_steps(reference: Reference, outputs: Array, tolerance: float) -> int:
    """Steps from the first one on at which all outputs agree; 0 for one vector a sequence."""
    if outputs.ndim != 3 or reference.lengths is not None:
        return 0
    for t in range(outputs.shape[1]):
        own = replace(reference, outputs=reference.outputs[:, t])
        if not _compared(own, outputs[:, t], tolerance).holds:
            return t
    return int(outputs.shape[1])


def _recurrent(config: Config) -> list[RecurrentSpec]:
    return [spec for spec in config.specs if isinstance(spec, RecurrentSpec)]


def _outputs(network: Network, reference: Reference) -> Array:
    """Of all sequences, computed some at a time."""
    x, lengths = reference.x, reference.lengths
    network.check_arrays(x, lengths)
    state, parts = _initial(network, reference), []
    for first in range(0, len(x), BATCH):
        rows = slice(first, first + BATCH)
        begin = None if state is None else [_rows(pair, rows) for pair in state]
        n = None if lengths is None else lengths[rows]
        parts.append(np.asarray(network.run(x[rows], n, begin).outputs))
    if not parts:
        raise DataError(f"{reference.path} holds no sequence", found=f"inputs {x.shape}")
    return np.concatenate(parts)


def _initial(network: Network, reference: Reference) -> list[Any] | None:
    if not reference.state:
        return None
    known = {(spec.index, letter) for spec in network.recurrent for letter in spec.cells[0].states}
    for index, letter in sorted(reference.state.keys() - known):
        have = ", ".join(f"state.{k}.{s}" for k, s in sorted(known))
        raise DataError(
            f"{reference.path} has an initial state that the network has not",
            expected=have or "no states",
            found=f"state.{index}.{letter}",
        )
    return [_layer_state(network, spec, reference) for spec in network.recurrent]


def _layer_state(
    network: Network, spec: RecurrentSpec, reference: Reference
) -> tuple[Array | None, ...] | None:
    """(h, c) of one layer; what is not given is 0."""
    sizes = dict(zip(spec.cells[0].states, spec.cells[0].state_sizes, strict=True))
    given = {letter: reference.state.get((spec.index, letter)) for letter in sizes}
    if all(value is None for value in given.values()):
        return None
    pair: list[Array | None] = [None, None]
    for place, letter in enumerate(sizes):
        value, shape = given[letter], (len(reference.x), spec.directions, sizes[letter])
        if value is None:
            value = np.zeros(shape)
        if value.ndim == 2 and (spec.directions == 1 or network.is_one_sided(spec)):
            value = value[:, None]
        pair[place] = value
    return tuple(pair)


def _rows(pair: tuple[Array | None, ...] | None, rows: slice) -> Any:
    return None if pair is None else tuple(None if v is None else v[rows] for v in pair)


def _misshapen(
    config: Config, reference: Reference, outputs: Array, reading: Reading | None
) -> DataError:
    expected, spec = reference.outputs, last_recurrent(config.specs)
    hint = None if reading is None else reading.hint
    if expected.ndim < 2:
        hint = "store the outputs with an axis of features: outputs[:, None]"
    elif reading is None and spec is not None and expected.ndim != outputs.ndim:
        every = str(expected.ndim == 3).lower()
        hint = f"--set model.layers.{spec.index}.return_sequences={every}"
        if expected.ndim == 2 and spec.directions == 2:
            hint += (
                " takes the final states of both directions (PyTorch's h_n); the last step of "
                "both (y[:, -1]) is outputs[:, -1] of the results as they are; neither gives these "
                "outputs with the activations assumed"
            )
    what = "have another shape than the network's"
    return DataError(
        f"the outputs of {reference.path} {what}" + _are(reading),
        expected=str(outputs.shape),
        found=str(expected.shape),
        hint=hint,
    )


def _are(reading: Reading | None) -> str:
    return "" if reading is None else f": they are {reading.what}"


def _compared(reference: Reference, outputs: Array, tolerance: float) -> Agreement:
    expected = np.asarray(reference.outputs, np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(expected - outputs) / np.maximum(1.0, np.abs(expected))
    apart = np.where(np.isnan(apart), np.inf, apart)
    if reference.lengths is not None:  # frameworks differ in what they leave in the padding
        steps = np.arange(reference.x.shape[1]) if expected.ndim == 3 else np.zeros(1, int)
        valid = steps < np.asarray(reference.lengths)[:, None]
        apart = np.where(valid[:, :, None] if expected.ndim == 3 else valid, apart, 0.0)
    at = np.unravel_index(int(np.argmax(apart)), apart.shape)
    return Agreement(
        reference.path,
        float(apart[at]),
        tolerance,
        place_text(at, expected.ndim),
        float(expected[at]),
        float(outputs[at]),
        reference.x.shape[0],
        reference.x.shape[1],
        bool(reference.state),
    )


def _disagree(config: Config, found: Agreement, reading: Reading | None) -> LstmCliError:
    spec = last_recurrent(config.specs)
    hint = (
        "an assumption may be wrong (activations, the last step or all, initial states): --set or "
    )
    hint += "--config change it; nothing was written"
    if reading is not None:
        hint = reading.hint
    elif spec is not None and spec.directions == 2 and not spec.return_sequences:
        hint += "; neither the final states of both directions nor their last step (y[:, -1]) fit"
    return LstmCliError(
        f"{config.source} does not give the outputs of {found.path}" + _are(reading),
        expected=f"a difference of at most {found.tolerance:.2g}",
        found=f"{found.largest_difference:.2g} at {found.place}: {found.found:.7g}, there "
        f"{found.expected:.7g}",
        hint=hint,
    )
