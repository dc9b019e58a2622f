"""What a reference holds of a network's steps: which readings of them give its outputs.

One vector for each sequence may be the last step, the final states, a mean, ...: for a
bidirectional layer all of them differ, and a file rarely says which one was meant.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from lstm_cli.api.reference_files import Reference
from lstm_cli.cells import Activation
from lstm_cli.engines.types import (
    Array,
    DenseSpec,
    FlattenSpec,
    Layers,
    RecurrentSpec,
)

ACTIVATIONS: dict[str, Activation | None] = {
    "softmax": None,
    "sigmoid": Activation("sigmoid"),
    "tanh": Activation("tanh"),
    "relu": Activation("relu"),
}
"""Activations that a head may have beyond its file."""

Run = Callable[[Layers, Reference], Array]
"""Outputs of some of the network's layers for the inputs of a reference."""


@dataclass(frozen=True)
class Reading:
    """What the outputs of a reference are, and what it takes to have the network give them."""

    what: str
    hint: str


def last_recurrent(layers: Layers) -> RecurrentSpec | None:
    """The last recurrent layer, if what follows acts on every step alone."""
    for spec in reversed(layers):
        if isinstance(spec, FlattenSpec):
            return None
        if isinstance(spec, RecurrentSpec):
            return spec
    return None


def fitting_reading(
    layers: Layers, reference: Reference, run: Run, fits: Callable[[Reference, Array], bool]
) -> Reading | None:
    """The reading of a network's steps that gives a reference's outputs; None if none does."""
    spec = last_recurrent(layers)
    if spec is None:
        return None
    at = layers.index(spec)
    body, tail = (*layers[:at], replace(spec, return_sequences=True)), layers[at + 1 :]
    for given, aside in (*_inputs(reference), *_stacked(reference, spec)):
        y = run(body, given)
        for reading, value in _values(y, given, spec, bare=not tail):
            for head, setting in _heads(tail):
                found = _applied(head, value, run)
                if found.shape == given.outputs.shape and fits(given, found):
                    return _told(reading, aside, setting)
    return None


def _told(reading: Reading, aside: Reading | None, setting: str) -> Reading:
    parts = [reading] if aside is None else [reading, aside]
    hints = [part.hint for part in parts if part.hint] + ([setting] if setting else [])
    what = ", ".join(part.what for part in parts)
    return Reading(what, "; ".join(hints))


def _inputs(reference: Reference) -> Iterator[tuple[Reference, Reading | None]]:
    """The reference, and what else may have been meant by its axes and lengths."""
    yield reference, None
    if reference.lengths is not None:
        whole = replace(reference, lengths=None)
        hint = (
            "run the other framework with the lengths (PyTorch: pack_padded_sequence), or leave "
            "them out of the reference"
        )
        yield whole, Reading("computed over the padding as well", hint)
    elif not reference.state:
        outputs = reference.outputs
        turned = replace(
            reference,
            x=reference.x.swapaxes(0, 1),
            outputs=outputs.swapaxes(0, 1) if outputs.ndim == 3 else outputs,
        )
        names = "inputs and outputs" if outputs.ndim == 3 else "inputs"
        hint = f"store {names} with the sequences first: swapaxes(0, 1)"
        yield turned, Reading("computed with the steps as the first axis", hint)


def _heads(tail: Layers) -> Iterator[tuple[Layers, str]]:
    """The layers after the recurrent ones, also with an activation that the file lacks."""
    yield tail, ""
    last = tail[-1] if tail else None
    if isinstance(last, DenseSpec) and last.activation == Activation("identity"):
        for name, activation in ACTIVATIONS.items():
            setting = f"--set model.layers.{last.index}.activation={name}"
            yield (*tail[:-1], replace(last, activation=activation)), setting


def _applied(tail: Layers, value: Array, run: Run) -> Array:
    """The layers after the recurrent ones on every step, or on one vector a sequence."""
    if not tail or value.shape[-1] != tail[0].input_size:
        return value
    steps = value if value.ndim == 3 else value[:, None]
    made = run(tail, Reference("", steps, steps))
    return made if value.ndim == 3 else made[:, 0]


def _values(
    y: Array, given: Reference, spec: RecurrentSpec, *, bare: bool
) -> Iterator[tuple[Reading, Array]]:
    """Readings of every step's outputs y (N, T, F), with what each gives."""
    both, half = spec.directions == 2, y.shape[2] // 2
    setting = f"--set model.layers.{spec.index}.return_sequences"
    if given.outputs.ndim == 3:
        yield Reading("every step", "" if spec.return_sequences else f"{setting}=true"), y
        if both and bare:
            for name, how, merged in _merges(y[..., :half], y[..., half:]):
                hint = _own(spec, f"{how} the halves of its results yourself")
                yield Reading(f"the {name} of both directions", hint), merged
        return
    N, T, _ = y.shape
    n = np.full(N, T) if given.lengths is None else np.asarray(given.lengths)
    ragged, rows = bool((n < T).any()), np.arange(N)
    last = y[rows, np.maximum(n - 1, 0)]
    place = "outputs[i, lengths[i] - 1]" if ragged else "outputs[:, -1]"
    final = "" if not spec.return_sequences else f"{setting}=false"
    if both:
        ends = np.concatenate([last[:, :half], y[:, 0, half:]], axis=1)
        yield Reading("the final states of both directions (PyTorch's h_n)", final), ends
        what = (
            "the last valid step of both directions"
            if ragged
            else (
                "the last step of both directions (y[:, -1]), whose reverse half has read one step"
            )
        )
        yield Reading(what, _own(spec, f"take {place} of its results")), last
    else:
        what = "the last valid step" if ragged else "the last step (y[:, -1])"
        yield Reading(what, final), last
    yield (
        Reading("the first step (y[:, 0])", _own(spec, "take outputs[:, 0] of its results")),
        y[:, 0],
    )
    if ragged:
        hint = _own(spec, "take outputs[:, -1] of its results")
        yield Reading("the last step of the batch, 0 for shorter sequences", hint), y[:, -1]
    for name, value in _pools(y, n):
        where = "its results" if bare else f"the steps of layer {spec.index} alone"
        own = f"take it of {where}" + ("" if bare else ", and compute what follows yourself")
        yield Reading(f"the {name}", _own(spec, f"no layer does this: {own}")), value
    if both and bare:
        for name, value in (
            ("the forward direction's final state (h_n[-2])", ends[:, :half]),
            ("the reverse direction's final state (h_n[-1])", ends[:, half:]),
            *(
                (f"the {name} of both final states", value)
                for name, _, value in _merges(ends[:, :half], ends[:, half:])
            ),
            *(
                (f"the {name} of both directions' last step (y[:, -1])", value)
                for name, _, value in _merges(last[:, :half], last[:, half:])
            ),
        ):
            if "y[:, -1]" in name:
                yield Reading(name, _own(spec, f"merge the halves of {place} yourself")), value
                continue
            take = "take that half" if "direction" in name else "merge the halves"
            settings = f"{final} gives both: " if final else ""
            yield Reading(name, f"{settings}{take} of its results yourself"), value


def _merges(one: Array, other: Array) -> Iterator[tuple[str, str, Array]]:
    """What Keras' Bidirectional may make of both directions, apart from side by side."""
    yield "sum", "add", one + other
    yield "mean", "average", (one + other) / 2
    yield "product", "multiply", one * other


def _stacked(
    reference: Reference, spec: RecurrentSpec
) -> Iterator[tuple[Reference, Reading | None]]:
    """Final states as PyTorch gives them, (layers * directions, N, H), or (N, directions, H)."""
    outputs, N, count = reference.outputs, len(reference.x), spec.directions
    if outputs.ndim != 3:
        return
    what = "stacked by direction"
    if outputs.shape[1] == N and len(outputs) % count == 0:
        side = np.concatenate(list(outputs[-count:]), axis=1)
        hint = f"store outputs = numpy.concatenate(list(outputs[-{count}:]), axis=1)"
        yield replace(reference, outputs=side), Reading(what, hint)
    if outputs.shape[:2] == (N, count):
        side = outputs.reshape(N, -1)
        yield replace(reference, outputs=side), Reading(what, f"store outputs.reshape({N}, -1)")


def _own(spec: RecurrentSpec, what: str) -> str:
    """Advice that starts from every step's outputs."""
    if spec.return_sequences:
        return (
            f"convert it as it is, with every step, and {what}; a reference of every step checks it"
        )
    setting = f"--set model.layers.{spec.index}.return_sequences=true"
    return f"{setting} gives every step; {what}; a reference of every step checks it"


def _pools(y: Array, n: Array) -> Iterator[tuple[str, Array]]:
    """Means, sums and largest values over the valid steps."""
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
