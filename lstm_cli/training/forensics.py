"""Where the first value that is not finite came from: data, weights, a gate, or a gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array, LayerResult, LayerSpec, RecurrentSpec, TrainingPass
from lstm_cli.errors import DataError, LstmCliError, TrainingError
from lstm_cli.network.network import Network
from lstm_cli.network.results import hosted_layer
from lstm_cli.network.weights import expected_tensors
from lstm_cli.training.learner import Learner, Moment, Piece
from lstm_cli.training.surroundings import Places


@dataclass(frozen=True)
class NotFinite:
    """A value of the forward pass that is not finite.

    Attributes
    ----------
    what
        ``nan in gate f (forget) of layer 0 (lstm), unit 12``.
    row, step
        Row of the batch, and step; None after the steps are gone.
    """

    what: str
    row: int
    step: int | None


def explain(
    learner: Learner, moment: Moment, numbers: Array, places: Places, when: str
) -> LstmCliError:
    """The error for a piece whose loss, gradients or new weights are not finite.

    Looked for in the order in which values are made: inputs, targets, weights, the forward
    pass, the loss, its derivatives.

    Parameters
    ----------
    numbers
        Number of each row's sequence.
    when
        ``epoch 3, batch 7 of 10``.
    """
    when = f"{when}, after {_counted(moment.number, 'update')}"
    piece = replace(moment.piece, x=learner.network.engine.to_host(moment.piece.x))
    stopped = f"training stopped in {when}"
    data = bad_data(piece, learner.criterion.targets.per_step, numbers, places, stopped)
    if data is not None:
        return data
    where: tuple[str, ...] = (when,)
    made = _bad_weight(learner, moment)
    if made is None:
        passed = _bad_forward(learner, moment)
        if passed is not None:
            made = passed.what
            where = (place_of(passed, piece, numbers, places), when)
    made = made or _bad_gradient(learner, moment) or f"the loss is {moment.loss.value}"
    return TrainingError(
        "training came upon a value that is not finite",
        found=made,
        where=where,
        hint=_cause(learner),
    )


def trace(
    network: Network,
    x: Array,
    lengths: Array | None,
    state: Any,
    training: TrainingPass | None = None,
) -> NotFinite | None:
    """The first value of a forward pass that is not finite: by layer, then by step."""
    checked, n = network.check(x, lengths)
    states = network.check_state(state, checked.shape[0])
    y = network.engine.batch(checked, n)
    for spec, prepared in network.prepared():
        result = network.engine.forward(
            spec, prepared, y, n, states.get(spec.index), keep=True, training=training
        )
        found = _in_layer(spec, hosted_layer(result, network.engine.to_host), n)
        if found is not None:
            return found
        y = result.output
    return None


def place_of(found: NotFinite, piece: Piece, numbers: Array, places: Places) -> str:
    """``step 5 of sequence 17 of words.h5:/inputs``."""
    sequence = places.sequence(int(numbers[found.row]))
    if found.step is None:
        return sequence
    return f"step {found.step + _before(piece, found.row)} of {sequence}"


def bad_data(
    piece: Piece, per_step: bool, numbers: Array, places: Places, why: str
) -> DataError | None:
    """The error for the first input or target that is not finite; None if all are."""
    culprit = _bad_input(piece, numbers, places)
    culprit = culprit or _bad_target(piece, per_step, numbers, places)
    if culprit is None:
        return None
    file = culprit.partition(" at ")[2].partition(":/")[0]
    return DataError(
        "the data hold a value that is not finite",
        expected="real numbers: a step that is not known is better left out than filled with NaN",
        found=culprit,
        where=why,
        hint=f"lstm-cli data {file} says what else is wrong with the file",
    )


def _bad_input(piece: Piece, numbers: Array, places: Places) -> str | None:
    bad = ~np.isfinite(piece.x)
    if piece.lengths is not None:
        bad &= (np.arange(piece.x.shape[1]) < piece.lengths[:, None])[:, :, None]
    if not bad.any():
        return None
    row, step, feature = _first(bad)
    place = places.input(int(numbers[row]), step + _before(piece, row), feature)
    return f"{piece.x[row, step, feature]} at {place}"


def _bad_target(piece: Piece, per_step: bool, numbers: Array, places: Places) -> str | None:
    targets = piece.targets
    if targets.dtype.kind != "f":
        return None
    bad = ~np.isfinite(targets)
    if piece.lengths is not None:
        counted = piece.lengths > 0
        if per_step:
            counted = np.arange(targets.shape[1]) < piece.lengths[:, None]
        bad &= counted.reshape(counted.shape + (1,) * (bad.ndim - counted.ndim))
    if not bad.any():
        return None
    row, *rest = _first(bad)
    step = rest.pop(0) + _before(piece, row) if per_step else None
    value = rest[0] if rest and targets.shape[-1] > 1 else None
    place = places.target(int(numbers[row]), step, value)
    return f"{targets[tuple(_first(bad))]} at {place}"


def _bad_weight(learner: Learner, moment: Moment) -> str | None:
    for name, value in learner.weights.items():
        bad = ~np.isfinite(value)
        if bad.any():
            made = ""
            if moment.update is not None:
                norm, rate = moment.update.norm, moment.update.rate
                made = f", made by an update of rate {rate:g} from a gradient of norm {norm:.3g}"
            return f"{_entry(learner.network, name, value, bad)}{made}"
    return None


def _bad_forward(learner: Learner, moment: Moment) -> NotFinite | None:
    piece, training = moment.piece, TrainingPass(learner.seed, moment.number)
    return trace(learner.network, piece.x, piece.lengths, moment.state, training)


def _bad_gradient(learner: Learner, moment: Moment) -> str | None:
    """The last layer's first: there the derivatives begin."""
    gradients = moment.gradients.weights
    for name, value in reversed(gradients.items()):
        bad = ~np.isfinite(value)
        if bad.any():
            return f"the gradient of {_entry(learner.network, name, value, bad)}"
    name = max(gradients, key=lambda name: float(np.abs(gradients[name]).max(initial=0)))
    value = np.abs(gradients[name])
    if moment.update is None or moment.update.finite or not value.size:
        return None
    largest = _entry(learner.network, name, gradients[name], value == value.max())
    return f"a gradient whose square is infinite, largest for {largest}"


def _entry(network: Network, name: str, values: Array, bad: Array) -> str:
    """``layers.0.weight_hh[37, 4] (gate f of layer 0, lstm) is nan``."""
    at = _first(bad)
    spec, parameter = expected_tensors(network.layers)[name]
    gate = ""
    if parameter.blocks:
        rows = values.shape[0] // len(parameter.blocks)
        gate = f"gate {parameter.blocks[at[0] // rows]} of "
    index = ", ".join(map(str, at))
    return f"{name}[{index}], {gate}layer {spec.index} ({spec.kind}): {values[at]}"


def _in_layer(spec: LayerSpec, result: LayerResult, lengths: Array | None) -> NotFinite | None:
    layer = f"layer {spec.index} ({spec.kind})"
    if isinstance(spec, RecurrentSpec):
        found = [
            one
            for direction, kept in result.kept.items()
            for one in _in_direction(spec, direction, kept, lengths, layer)
        ]
        return min(found, key=lambda one: one[0])[1] if found else None
    for name, values in (("before its activation", result.logits), ("output", result.output)):
        if values is None or (bad := _valid(~np.isfinite(values), lengths)) is None:
            continue
        row, *step, unit = _first(bad)
        what = f"{values[(row, *step, unit)]} in unit {unit} of {layer}, {name}"
        return NotFinite(what, row, step[0] if step else None)
    return None


def _in_direction(
    spec: RecurrentSpec,
    direction: str,
    kept: Mapping[str, Array],
    lengths: Array | None,
    layer: str,
) -> Iterator[tuple[int, NotFinite]]:
    """For every gate and state its first bad value, with the place in the order of computing."""
    cell = spec.cells[0]
    names = {gate.letter: f"gate {gate.letter} ({gate.name})" for gate in cell.gates}
    names |= {state: f"state {state}" for state in reversed(cell.states)}
    side = f", {direction} direction" if spec.directions > 1 else ""
    for name, label in names.items():
        if name not in kept or (bad := _valid(~np.isfinite(kept[name]), lengths)) is None:
            continue
        N, T, _ = bad.shape
        n = np.full(N, T) if lengths is None else lengths
        computed = np.broadcast_to(np.arange(T), (N, T))
        if direction == "reverse":
            computed = n[:, None] - 1 - computed
        when = np.where(bad.any(axis=2), computed, T)
        row, step = np.unravel_index(int(when.argmin()), when.shape)
        unit = int(bad[row, step].argmax())
        what = f"{kept[name][row, step, unit]} in {label} of {layer}{side}, unit {unit}"
        yield int(when.min()), NotFinite(what, int(row), int(step))


def _valid(bad: Array, lengths: Array | None) -> Array | None:
    """The bad values among the steps that count; None if there are none."""
    if lengths is not None:
        rows = lengths > 0
        if bad.ndim == 3:
            rows = np.arange(bad.shape[1]) < lengths[:, None]
        bad = bad & rows[..., None]
    return bad if bad.any() else None


def _cause(learner: Learner) -> str:
    slower = f"--set train.optimizer.learning_rate={learner.updates.rate / 10:g}"
    if learner.updates.clip_norm is not None or learner.updates.clip_value is not None:
        return f"the values have exploded: train slower, {slower}, in a new --output"
    return (
        "the values have exploded: limit the gradient, --set train.clip_norm=1.0, or train "
        f"slower, {slower}, in a new --output"
    )


def _before(piece: Piece, row: int) -> int:
    return int(piece.before if isinstance(piece.before, int) else piece.before[row])


def _first(bad: Array) -> tuple[int, ...]:
    return tuple(int(k) for k in np.unravel_index(int(bad.argmax()), bad.shape))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
