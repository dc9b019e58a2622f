"""Comparison with a reference: a network's outputs, and those that another framework computed.

If they differ, the check looks for the cause: rounding, or another interpretation of the outputs.
One vector for each sequence may be the last step, the final states, a mean, and so on. For a
bidirectional layer all of these differ, and a file rarely states which one it holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from lstm_cli.cells import Activation
from lstm_cli.config import Config
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import (
    Array,
    DenseSpec,
    FlattenSpec,
    Layers,
    RecurrentSpec,
    ZeroStates,
)
from lstm_cli.errors import DataError, LstmCliError
from lstm_cli.network.difference import largest, scaled_difference
from lstm_cli.network.network import Network
from lstm_cli.network.normalization import TENSOR_NAMES
from lstm_cli.workflows.convert.reference_file import Reference, read_reference

BATCH = 64
"""Number of sequences that are computed together."""
SEED, DRAWS = 30, 3
"""Seed of the random last bits, and draws of them."""
SLACK = 8
"""Largest difference from a reference, as a multiple of the measured rounding."""
DISTINCT = 1e-2
"""Largest rounding at which a wrong network still differs visibly from a correct one."""

HEAD_ACTIVATIONS: dict[str, Activation | None] = {
    "softmax": None,
    "sigmoid": Activation("sigmoid"),
    "tanh": Activation("tanh"),
    "relu": Activation("relu"),
}
"""Activations of the last dense layer to try, since a file may not store them."""

Run = Callable[[Layers, Reference], Array]
"""Function from some of the network's layers and a reference's inputs to outputs."""


@dataclass(frozen=True)
class ReferenceCheck:
    """Difference between a network's outputs and those of a reference file.

    Attributes
    ----------
    path
        Path of the reference.
    largest_difference
        Largest difference: absolute for expected values up to 1, relative above.
    tolerance
        Largest difference that passes.
    place
        Place of the largest difference: ``sequence 3, step 5, feature 0``.
    expected, found
        The two values at that place.
    sequences, steps
        Sequences and steps of the reference.
    states
        The reference has initial states.
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
        """True if the difference is within the tolerance; NaN never is."""
        return self.largest_difference <= self.tolerance


@dataclass(frozen=True)
class OutputInterpretation:
    """Meaning of a reference's outputs, and the change that makes the network give them."""

    what: str
    hint: str


def check_reference(
    config: Config,
    tensors: Mapping[str, Array],
    path: str,
    tolerance: float,
    zero_states: ZeroStates,
) -> ReferenceCheck:
    """Compare a network's outputs, computed in float64, with those of a reference file.

    Parameters
    ----------
    zero_states
        Initial states that are 0, even if the file holds other ones.

    Raises
    ------
    DataError
        The file cannot be read, or does not fit the network.
    LstmCliError
        The outputs differ by more than the tolerance.
    """
    reference = read_reference(path)

    def run(
        layers: Layers,
        variant: Reference,
        tensors: Mapping[str, Array] = tensors,
        dtype: str = "float64",
    ) -> Array:
        names = {name for spec in layers for name in spec.parameters()}
        if layers[0].index == config.specs[0].index:  # later layers read no raw inputs
            names |= set(TENSOR_NAMES)
        weights = {name: value for name, value in tensors.items() if name in names}
        network = Network(layers, weights, ReferenceEngine(dtype))
        network.zero_states = zero_states
        return _outputs(network, variant)

    outputs = run(config.specs, reference)
    same_shape = outputs.shape == reference.outputs.shape
    if same_shape and (check := _compare(reference, outputs, tolerance)).holds:
        return check
    with np.errstate(over="ignore", invalid="ignore"):
        noise = _rounding(tensors, reference, partial(run, config.specs))
    if same_shape and check.largest_difference <= SLACK * noise:
        raise _rounding_error(config, reference, outputs, check, noise)
    slack = SLACK * noise if noise < DISTINCT else 0.0

    def fits(variant: Reference, outputs: Array) -> bool:
        return _compare(variant, outputs, max(tolerance, slack)).holds

    interpretation = find_interpretation(config.specs, reference, run, fits)
    raise (
        _difference_error(config, check, interpretation)
        if same_shape
        else _shape_error(config, reference, outputs, interpretation)
    )


def _rounding(
    tensors: Mapping[str, Array], reference: Reference, run: Callable[..., Array]
) -> float:
    """Measure the effect of rounding on the outputs, in the dtype of the reference.

    The network is run in float64: unchanged, and with random last bits in weights and inputs.
    It is also run in float32, unless the reference is wider. The result is 0 if a number
    overflows the dtype: rounding does not explain that.
    """
    narrow, rng = _is_narrow(reference.outputs), np.random.default_rng(SEED)

    def nudged(value: Array, *, wide: bool) -> Array:
        bit = 2.0**-53 if wide else 2.0**-24
        return np.asarray(value, np.float64) * (1 + bit * rng.choice([-1.0, 1.0], value.shape))

    def nudged_weight(name: str, value: Array) -> Array:
        summed = "bias" in name and value.dtype != np.float64  # the rounded sum of two biases
        return value if name in TENSOR_NAMES else nudged(value, wide=not (narrow or summed))

    exact = replace(reference, outputs=run(reference))
    others = [run(reference, dtype="float32")] if narrow else []
    for _ in range(DRAWS):
        changed = {name: nudged_weight(name, value) for name, value in tensors.items()}
        x = nudged(reference.x, wide=not narrow)
        others.append(run(replace(reference, x=x), changed))
    noise = max(_compare(exact, other, 0.0).largest_difference for other in others)
    return noise if np.isfinite(noise) else 0.0


def _is_narrow(value: Array) -> bool:
    with np.errstate(over="ignore"):
        return value.dtype.kind != "f" or bool((value.astype(np.float32) == value).all())


def _rounding_error(
    config: Config, reference: Reference, outputs: Array, check: ReferenceCheck, noise: float
) -> LstmCliError:
    """Return the error for a difference that rounding explains, with a check that still works."""
    first = _equal_steps(reference, outputs, check.tolerance)
    advice = "check it with a reference of fewer steps"
    if first and all(spec.directions == 1 for spec in _recurrent(config)):
        advice = (
            f"the first {first} steps agree: cut the reference to inputs[:, :{first}] and "
            f"outputs[:, :{first}]"
        )
    if check.largest_difference < DISTINCT:
        enough = float(f"{2 * check.largest_difference:.1g}")
        advice += f", or accept the rounding: --tolerance {enough:g}"
    return LstmCliError(
        f"{config.source} does not give the outputs of {check.path} to the tolerance, and rounding "
        "explains that: this network turns differences in the last bit of its weights and inputs "
        f"into ones of up to {noise:.2g}",
        expected=f"a difference of at most {check.tolerance:.2g}",
        found=_difference_text(check),
        hint=f"{advice}; nothing was written",
    )


def _difference_text(check: ReferenceCheck) -> str:
    return (
        f"{check.largest_difference:.2g} at {check.place}: {check.found:.7g}, in the reference "
        f"{check.expected:.7g}"
    )


def _equal_steps(reference: Reference, outputs: Array, tolerance: float) -> int:
    """Count the first steps at which all outputs agree; 0 for one vector per sequence."""
    if outputs.ndim != 3 or reference.lengths is not None:
        return 0
    for t in range(outputs.shape[1]):
        step = replace(reference, outputs=reference.outputs[:, t])
        if not _compare(step, outputs[:, t], tolerance).holds:
            return t
    return int(outputs.shape[1])


def _recurrent(config: Config) -> list[RecurrentSpec]:
    return [spec for spec in config.specs if isinstance(spec, RecurrentSpec)]


def _outputs(network: Network, reference: Reference) -> Array:
    """Run a network on all sequences of a reference, `BATCH` at a time."""
    x, lengths = reference.x, reference.lengths
    network.check_arrays(x, lengths)
    state, parts = _initial_states(network, reference), []
    for first in range(0, len(x), BATCH):
        rows = slice(first, first + BATCH)
        begin = None if state is None else [_rows(pair, rows) for pair in state]
        n = None if lengths is None else lengths[rows]
        parts.append(np.asarray(network.run(x[rows], n, begin).outputs))
    if not parts:
        raise DataError(f"{reference.path} holds no sequence", found=f"inputs {x.shape}")
    return np.concatenate(parts)


def _initial_states(network: Network, reference: Reference) -> list[Any] | None:
    if not reference.state:
        return None
    known = {(spec.index, letter) for spec in network.recurrent for letter in spec.cells[0].states}
    for index, letter in sorted(reference.state.keys() - known):
        names = ", ".join(f"state.{k}.{s}" for k, s in sorted(known))
        raise DataError(
            f"{reference.path} has an initial state that the network does not have",
            expected=names or "no states",
            found=f"state.{index}.{letter}",
        )
    return [_layer_state(network, spec, reference) for spec in network.recurrent]


def _layer_state(
    network: Network, spec: RecurrentSpec, reference: Reference
) -> tuple[Array | None, ...] | None:
    """Return (h, c) of one layer; a state that the reference lacks is 0."""
    sizes = dict(zip(spec.cells[0].states, spec.cells[0].state_sizes, strict=True))
    values = {letter: reference.state.get((spec.index, letter)) for letter in sizes}
    if all(value is None for value in values.values()):
        return None
    pair: list[Array | None] = [None, None]
    for place, letter in enumerate(sizes):
        value, shape = values[letter], (len(reference.x), spec.directions, sizes[letter])
        if value is None:
            value = np.zeros(shape)
        if value.ndim == 2 and (spec.directions == 1 or network.is_one_sided(spec)):
            value = value[:, None]
        pair[place] = value
    return tuple(pair)


def _rows(pair: tuple[Array | None, ...] | None, rows: slice) -> Any:
    return None if pair is None else tuple(None if v is None else v[rows] for v in pair)


def _shape_error(
    config: Config,
    reference: Reference,
    outputs: Array,
    interpretation: OutputInterpretation | None,
) -> DataError:
    expected, spec = reference.outputs, last_recurrent_layer(config.specs)
    hint = None if interpretation is None else interpretation.hint
    if expected.ndim < 2:
        hint = "store the outputs with an axis of features: outputs[:, None]"
    elif interpretation is None and spec is not None and expected.ndim != outputs.ndim:
        sequences = str(expected.ndim == 3).lower()
        hint = f"--set model.layers.{spec.index}.return_sequences={sequences}"
        if expected.ndim == 2 and spec.directions == 2:
            hint += (
                " takes the final states of both directions (PyTorch's h_n); the last step of "
                "both (y[:, -1]) is outputs[:, -1] of the results as they are; neither gives these "
                "outputs with the activations assumed"
            )
    what = "have another shape than the network's"
    return DataError(
        f"the outputs of {reference.path} {what}" + _meaning(interpretation),
        expected=str(outputs.shape),
        found=str(expected.shape),
        hint=hint,
    )


def _meaning(interpretation: OutputInterpretation | None) -> str:
    return "" if interpretation is None else f": they are {interpretation.what}"


def _compare(reference: Reference, outputs: Array, tolerance: float) -> ReferenceCheck:
    expected = np.asarray(reference.outputs, np.float64)
    difference = scaled_difference(expected, outputs)
    difference[np.isnan(difference)] = np.inf
    if reference.lengths is not None:  # frameworks store different values in the padding
        steps = np.arange(reference.x.shape[1]) if expected.ndim == 3 else np.zeros(1, int)
        valid = steps < np.asarray(reference.lengths)[:, None]
        difference = np.where(valid[:, :, None] if expected.ndim == 3 else valid, difference, 0.0)
    worst = largest(difference)
    return ReferenceCheck(
        reference.path,
        worst.value,
        tolerance,
        worst.place(),
        float(expected[worst.index]),
        float(outputs[worst.index]),
        reference.x.shape[0],
        reference.x.shape[1],
        bool(reference.state),
    )


def _difference_error(
    config: Config, check: ReferenceCheck, interpretation: OutputInterpretation | None
) -> LstmCliError:
    spec = last_recurrent_layer(config.specs)
    hint = (
        "an assumption may be wrong (activations, the last step or all, initial states): --set or "
    )
    hint += "--config change it; nothing was written"
    if interpretation is not None:
        hint = interpretation.hint
    elif spec is not None and spec.directions == 2 and not spec.return_sequences:
        hint += "; neither the final states of both directions nor their last step (y[:, -1]) fit"
    return LstmCliError(
        f"{config.source} does not give the outputs of {check.path}" + _meaning(interpretation),
        expected=f"a difference of at most {check.tolerance:.2g}",
        found=_difference_text(check),
        hint=hint,
    )


def last_recurrent_layer(layers: Layers) -> RecurrentSpec | None:
    """Return the last recurrent layer; None if a later layer mixes steps."""
    for spec in reversed(layers):
        if isinstance(spec, FlattenSpec):
            return None
        if isinstance(spec, RecurrentSpec):
            return spec
    return None


def find_interpretation(
    layers: Layers, reference: Reference, run: Run, fits: Callable[[Reference, Array], bool]
) -> OutputInterpretation | None:
    """Look for the interpretation under which the network gives a reference's outputs."""
    spec = last_recurrent_layer(layers)
    if spec is None:
        return None
    at = layers.index(spec)
    body, tail = (*layers[:at], replace(spec, return_sequences=True)), layers[at + 1 :]
    for variant, variant_meaning in (*_reference_variants(reference), *_stacked(reference, spec)):
        y = run(body, variant)
        for what, hint, value in _meanings(y, variant, spec, is_last=not tail):
            for head, setting in _heads(tail):
                outputs = _apply_head(head, value, run)
                if outputs.shape == variant.outputs.shape and fits(variant, outputs):
                    meanings = [OutputInterpretation(what, hint)]
                    meanings += [] if variant_meaning is None else [variant_meaning]
                    hints = [*(meaning.hint for meaning in meanings), setting]
                    return OutputInterpretation(
                        ", ".join(meaning.what for meaning in meanings),
                        "; ".join(filter(None, hints)),
                    )
    return None


def _reference_variants(
    reference: Reference,
) -> Iterator[tuple[Reference, OutputInterpretation | None]]:
    """Yield the reference as it is, without lengths, and with its first two axes exchanged."""
    yield reference, None
    if reference.lengths is not None:
        whole = replace(reference, lengths=None)
        hint = (
            "run the other framework with the lengths (PyTorch: pack_padded_sequence), or leave "
            "them out of the reference"
        )
        yield whole, OutputInterpretation("computed over the padding as well", hint)
    elif not reference.state:
        outputs = reference.outputs
        exchanged = replace(
            reference,
            x=reference.x.swapaxes(0, 1),
            outputs=outputs.swapaxes(0, 1) if outputs.ndim == 3 else outputs,
        )
        names = "inputs and outputs" if outputs.ndim == 3 else "inputs"
        hint = f"store {names} with the sequences first: swapaxes(0, 1)"
        yield exchanged, OutputInterpretation("computed with the steps as the first axis", hint)


def _heads(tail: Layers) -> Iterator[tuple[Layers, str]]:
    """Yield the layers after the recurrent ones, unchanged and with other last activations."""
    yield tail, ""
    last = tail[-1] if tail else None
    if isinstance(last, DenseSpec) and last.activation == Activation("identity"):
        for name, activation in HEAD_ACTIVATIONS.items():
            setting = f"--set model.layers.{last.index}.activation={name}"
            yield (*tail[:-1], replace(last, activation=activation)), setting


def _apply_head(head: Layers, value: Array, run: Run) -> Array:
    if not head or value.shape[-1] != head[0].input_size:
        return value
    steps = value if value.ndim == 3 else value[:, None]
    outputs = run(head, Reference("", steps, steps))
    return outputs if value.ndim == 3 else outputs[:, 0]


Meanings = Iterator[tuple[str, str, Array]]
"""Meanings of a reference's outputs, the changes that make the network give them, and outputs."""


def _meanings(y: Array, reference: Reference, spec: RecurrentSpec, *, is_last: bool) -> Meanings:
    """Yield meanings that a reference's outputs may have, given every step's outputs y (N, T, F).

    Parameters
    ----------
    is_last
        No layer follows the recurrent one.
    """
    setting = f"--set model.layers.{spec.index}.return_sequences"
    both, half = spec.directions == 2 and is_last, y.shape[2] // 2
    if reference.outputs.ndim == 3:
        yield "every step", "" if spec.return_sequences else f"{setting}=true", y
        for name, verb, merged in _merges(y[..., :half], y[..., half:]) if both else ():
            hint = _from_every_step(spec, f"{verb} the halves of its results yourself")
            yield f"the {name} of both directions", hint, merged
        return
    N, T, _ = y.shape
    n = np.full(N, T) if reference.lengths is None else np.asarray(reference.lengths)
    last = y[np.arange(N), np.maximum(n - 1, 0)]
    final = f"{setting}=false" if spec.return_sequences else ""
    yield from _step_meanings(y, n, last, spec, final)
    for name, value in _pools(y, n):
        source = "its results" if is_last else f"the steps of layer {spec.index} alone"
        advice = f"take it of {source}" + ("" if is_last else ", and compute what follows yourself")
        yield f"the {name}", _from_every_step(spec, f"no layer does this: {advice}"), value
    if both:
        yield from _direction_meanings(y, n, last, spec, final)


def _step_meanings(y: Array, n: Array, last: Array, spec: RecurrentSpec, final: str) -> Meanings:
    """Yield single steps of y (N, T, F): the final states, the last step, the first step.

    Parameters
    ----------
    n, last
        Valid steps (N,), and the outputs (N, F) at each sequence's last valid step.
    final
        Setting that makes the network return the final states; empty if it does already.
    """
    ragged = bool((n < y.shape[1]).any())
    if spec.directions == 2:
        ends = _final_states(y, last)
        yield "the final states of both directions (PyTorch's h_n)", final, ends
        what = "the last step of both directions (y[:, -1]), whose reverse half has read one step"
        if ragged:
            what = "the last valid step of both directions"
        yield what, _from_every_step(spec, f"take {_last_step(ragged)} of its results"), last
    else:
        yield "the last valid step" if ragged else "the last step (y[:, -1])", final, last
    hint = _from_every_step(spec, "take outputs[:, 0] of its results")
    yield "the first step (y[:, 0])", hint, y[:, 0]
    if ragged:
        hint = _from_every_step(spec, "take outputs[:, -1] of its results")
        yield "the last step of the batch, 0 for shorter sequences", hint, y[:, -1]


def _direction_meanings(
    y: Array, n: Array, last: Array, spec: RecurrentSpec, final: str
) -> Meanings:
    """Yield one direction's final states, and merged ones; parameters as in `_step_meanings`."""
    half, ends = y.shape[2] // 2, _final_states(y, last)
    settings = f"{final} gives both: " if final else ""
    advice = f"{settings}take that half of its results yourself"
    yield "the forward direction's final state (h_n[-2])", advice, ends[:, :half]
    yield "the reverse direction's final state (h_n[-1])", advice, ends[:, half:]
    for name, _, value in _merges(ends[:, :half], ends[:, half:]):
        advice = f"{settings}merge the halves of its results yourself"
        yield f"the {name} of both final states", advice, value
    place = _last_step(bool((n < y.shape[1]).any()))
    for name, _, value in _merges(last[:, :half], last[:, half:]):
        hint = _from_every_step(spec, f"merge the halves of {place} yourself")
        yield f"the {name} of both directions' last step (y[:, -1])", hint, value


def _final_states(y: Array, last: Array) -> Array:
    half = y.shape[2] // 2
    return np.concatenate([last[:, :half], y[:, 0, half:]], axis=1)  # (N, F): forward, reverse


def _last_step(ragged: bool) -> str:
    return "outputs[i, lengths[i] - 1]" if ragged else "outputs[:, -1]"


def _merges(one: Array, other: Array) -> Iterator[tuple[str, str, Array]]:
    """Yield the merges of two directions that Keras offers besides concatenation."""
    yield "sum", "add", one + other
    yield "mean", "average", (one + other) / 2
    yield "product", "multiply", one * other


def _stacked(
    reference: Reference, spec: RecurrentSpec
) -> Iterator[tuple[Reference, OutputInterpretation | None]]:
    """Yield final states stacked by direction as vectors (N, directions * H).

    PyTorch returns (layers * directions, N, H); others return (N, directions, H).
    """
    outputs, N, count = reference.outputs, len(reference.x), spec.directions
    if outputs.ndim != 3:
        return
    what = "stacked by direction"
    if outputs.shape[1] == N and len(outputs) % count == 0:
        vectors = np.concatenate(list(outputs[-count:]), axis=1)
        hint = f"store outputs = numpy.concatenate(list(outputs[-{count}:]), axis=1)"
        yield replace(reference, outputs=vectors), OutputInterpretation(what, hint)
    if outputs.shape[:2] == (N, count):
        vectors = outputs.reshape(N, -1)
        advice = f"store outputs.reshape({N}, -1)"
        yield replace(reference, outputs=vectors), OutputInterpretation(what, advice)


def _from_every_step(spec: RecurrentSpec, advice: str) -> str:
    """Complete advice that starts from every step's outputs."""
    if spec.return_sequences:
        return (
            f"convert it as it is, with every step, and {advice}; a reference of every step "
            "checks it"
        )
    setting = f"--set model.layers.{spec.index}.return_sequences=true"
    return f"{setting} gives every step; {advice}; a reference of every step checks it"


def _pools(y: Array, n: Array) -> Iterator[tuple[str, Array]]:
    """Yield the mean, sum and largest value over the valid steps."""
    valid = (np.arange(y.shape[1]) < n[:, None])[:, :, None]
    total = np.where(valid, y, 0).sum(axis=1)
    yield "mean over the valid steps", total / np.maximum(n, 1)[:, None]
    yield "sum over the steps", total
    yield (
        "largest value over the valid steps",
        np.where(valid, y, -np.inf).max(axis=1, initial=-np.inf),
    )
    if (n < y.shape[1]).any():
        yield "mean over all steps, padding included as 0", total / y.shape[1]
