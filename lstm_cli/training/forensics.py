"""Where the first value that is not finite came from: data, weights, a gate, or a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import (
    Array,
    LayerResult,
    LayerSpec,
    RecurrentSpec,
    TrainingPass,
    array_dtype,
)
from lstm_cli.errors import DataError, LstmCliError, TrainingError, WeightsError, quote
from lstm_cli.network import backpropagation
from lstm_cli.network.backpropagation import Gradients
from lstm_cli.network.network import Network
from lstm_cli.network.normalization import MEAN, SCALE
from lstm_cli.network.results import hosted_layer
from lstm_cli.network.weights import expected_tensors
from lstm_cli.training.criterion import LossValue
from lstm_cli.training.learner import Learner, Moment, Piece
from lstm_cli.training.surroundings import Places

USUAL_RATE = 0.01
"""A learning rate above this is not divided in the advice to train slower, but replaced."""


@dataclass(frozen=True)
class NotFinite:
    """A value of the forward pass that is not finite.

    Attributes
    ----------
    what
        ``nan in gate f (forget) of layer 0 (lstm), unit 12``.
    row, step
        Row of the batch, and step; None after the steps are gone.
    layer
        Index of the layer.
    """

    what: str
    row: int
    step: int | None
    layer: int


def explain(
    learner: Learner, moment: Moment, numbers: Array, places: Places, when: str
) -> LstmCliError:
    """The error for a piece whose loss, gradients or new weights are not finite.

    Looked for in the order in which values are made: inputs, targets, weights, the forward
    pass, the loss, its derivatives. From the forward pass on with the reference engine, so that
    every engine names the same place; with the network's own where that one finds nothing.

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
    made, passed = _bad_weight(learner, moment), None
    early = made is None and not moment.number  # what no update can have made
    if made is None:
        moment = _on_host(moment, piece, learner.network)
        training = TrainingPass(learner.seed, moment.number)
        passed = trace(learner.network, piece.x, piece.lengths, moment.state, training)
    if passed is not None:
        made = passed.what
        where = (place_of(passed, piece, numbers, places), when)
    made = made or _bad_loss_or_gradient(learner, moment)
    return TrainingError(
        "training came upon a value that is not finite",
        found=made,
        where=where,
        hint=_cause_at_start(learner, moment, passed) if early else _cause(learner),
    )


def trace(
    network: Network,
    x: Array,
    lengths: Array | None,
    state: Any,
    training: TrainingPass | None = None,
) -> NotFinite | None:
    """The first value of a forward pass that is not finite.

    First is the first layer, in it the first step that was computed, there the first gate or state
    in the cell's order, and the first row and unit. The reference engine computes the pass, so that
    all engines name the same; where its values are finite, for it rounds otherwise, the network's
    own does.
    """
    twin = _twin(network)
    state = None if state is None else _hosted(state, network)
    found = _trace(twin, x, lengths, state, training)
    if found is not None or twin is network:
        return found
    found = _trace(network, x, lengths, state, training)
    if found is None:
        return None
    name = f"{network.engine.name}, {network.engine.dtype}"
    more = f"; on {name} alone: the reference engine, which rounds otherwise, finds none"
    return replace(found, what=found.what + more)


def _twin(network: Network, dtype: str | None = None, **changed: Any) -> Network:
    """The same network on the reference engine, or with other layers or tensors."""
    engine = network.engine
    if isinstance(engine, ReferenceEngine) and dtype is None and not changed:
        return network
    reference = ReferenceEngine(dtype or array_dtype(engine), getattr(engine, "threads", None))
    given = {"layers": network.layers, "weights": network.tensors, **changed}
    twin = Network(given["layers"], given["weights"], reference)
    twin.zero_states = network.zero_states
    return twin


def _hosted(state: Sequence[Any], network: Network) -> list[Any]:
    to_host = network.engine.to_host
    return [
        tuple(None if part is None else to_host(part) for part in one)
        if isinstance(one, tuple | list)
        else one
        for one in state
    ]


def _on_host(moment: Moment, piece: Piece, network: Network) -> Moment:
    """A moment whose piece and state are in NumPy's memory."""
    targets = network.engine.to_host(piece.targets)
    state = None if moment.state is None else _hosted(moment.state, network)
    return replace(moment, piece=replace(piece, targets=targets), state=state)


def _trace(
    network: Network,
    x: Array,
    lengths: Array | None,
    state: Any,
    training: TrainingPass | None,
) -> NotFinite | None:
    """`trace` on the network's own engine."""
    checked, n = network.check(x, lengths)
    states = network.check_state(state, checked.shape[0])
    y = network.engine.from_padded(checked, n)
    for spec, prepared in network.prepared():
        result = network.engine.forward(
            spec, prepared, y, n, states.get(spec.index), return_gates=True, training=training
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
        hint=f"lstm-cli data {quote(file)} says what else is wrong with the file",
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


def _bad_loss_or_gradient(learner: Learner, moment: Moment) -> str:
    """Of the reference engine; where all of it is finite, of the network's own."""
    twin = _twin(learner.network)
    if twin is not learner.network:
        loss, gradients = _learned(twin, learner, moment)
        made = _bad_loss(loss) or _bad_gradient(learner, gradients)
        if made is not None:
            return made
    made = _bad_loss(moment.loss) or _bad_gradient(learner, moment.gradients)
    return made or f"the loss is {moment.loss.value}"


def _learned(network: Network, learner: Learner, moment: Moment) -> tuple[LossValue, Gradients]:
    """Loss and derivatives of a moment, by a network that need not be the learner's."""
    piece, training = moment.piece, TrainingPass(learner.seed, moment.number)
    tape = backpropagation.forward(network, piece.x, piece.lengths, moment.state, training)
    given = tape.values, tape.logit_values, piece.targets, tape.lengths, network.engine
    loss = learner.criterion(*given)
    fused = learner.criterion.fused
    return loss, backpropagation.backward(network, tape, loss.gradient, d_logits=fused)


def _bad_loss(loss: LossValue) -> str | None:
    if math.isfinite(loss.value):
        return None
    return f"the loss is {loss.value}, of outputs that are finite"


def _bad_gradient(learner: Learner, found: Gradients) -> str | None:
    """The last layer's first: there the derivatives begin."""
    gradients = found.weights
    for name, value in reversed(gradients.items()):
        bad = ~np.isfinite(value)
        if bad.any():
            return f"the gradient of {_entry(learner.network, name, value, bad)}"
    name = max(gradients, key=lambda name: float(np.abs(gradients[name]).max(initial=0)))
    value = np.abs(gradients[name])
    if not value.size or math.isfinite(_squares(gradients)):
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
    if isinstance(spec, RecurrentSpec) and result.gates:
        found = [
            one
            for direction, kept in result.gates.items()
            for one in _in_direction(spec, direction, kept, lengths, layer)
        ]
        return min(found, key=lambda one: one[0])[1] if found else None
    for name, values in (("before its activation", result.logits), ("output", result.output)):
        if values is None or (bad := _valid(~np.isfinite(values), lengths)) is None:
            continue
        row, *step, unit = _first(bad)
        what = f"{values[(row, *step, unit)]} in unit {unit} of {layer}, {name}"
        return NotFinite(what, row, step[0] if step else None, spec.index)
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
        yield int(when.min()), NotFinite(what, int(row), int(step), spec.index)


def _valid(bad: Array, lengths: Array | None) -> Array | None:
    """The bad values among the steps that count; None if there are none."""
    if lengths is not None:
        rows = lengths > 0
        if bad.ndim == 3:
            rows = np.arange(bad.shape[1]) < lengths[:, None]
        bad = bad & rows[..., None]
    return bad if bad.any() else None


def _cause(learner: Learner) -> str:
    slower = f"--set train.optimizer.learning_rate={min(learner.updates.rate / 10, USUAL_RATE):g}"
    if learner.updates.clip_norm is not None or learner.updates.clip_value is not None:
        return f"the values have exploded: train slower, {slower}, in a new --output"
    return (
        "the values have exploded: limit the gradient, --set train.clip_norm=1.0, or train "
        f"slower, {slower}, in a new --output"
    )


def _cause_at_start(learner: Learner, moment: Moment, found: NotFinite | None) -> str:
    """A setting with which this piece's loss and derivatives are finite: nothing was learned yet.

    Each is tried; learning more slowly would change nothing.
    """
    network, piece = learner.network, moment.piece
    why = "no update was made yet: the weights at the start are too large, or the inputs are"

    def sound(twin: Callable[[], Network]) -> bool:
        try:
            loss, gradients = _learned(twin(), learner, moment)
        except WeightsError:  # values beyond the dtype
            return False
        return math.isfinite(loss.value) and math.isfinite(_squares(gradients.weights))

    def normalized() -> Network:
        x = np.asarray(piece.x, np.float64)
        valid = x.reshape(-1, x.shape[2])
        if piece.lengths is not None:
            valid = x[np.arange(x.shape[1]) < piece.lengths[:, None]]
        scale = valid.std(axis=0)
        stored = {MEAN: valid.mean(axis=0), SCALE: np.where(scale > 0, scale, 1.0)}
        return _twin(network, weights={**network.weights, **stored})

    def clipped(index: int) -> Network:
        layers = [
            replace(spec, cells=tuple(replace(cell, clip=_CLIP) for cell in spec.cells))
            if isinstance(spec, RecurrentSpec) and spec.index == index
            else spec
            for spec in network.layers
        ]
        return _twin(network, layers=layers)

    ways: list[tuple[str, Callable[[], Network]]] = []
    if network.normalization is None:
        ways.append(
            ("--set train.normalize=true scales the inputs of weights drawn anew", normalized)
        )
    for spec in network.recurrent:
        if spec.cells[0].clip is None and (found is None or spec.index == found.layer):
            setting = f"--set model.layers.{spec.index}.clip={_CLIP:g}"
            ways.append((f"{setting} limits what enters its gates", partial(clipped, spec.index)))
    if array_dtype(network.engine) != "float64":
        ways.append(("--dtype float64 holds larger values", partial(_twin, network, "float64")))
    with np.errstate(all="ignore"):
        way = next((text for text, twin in ways if sound(twin)), "begin with smaller ones")
    return f"{why}: {way}, in a new --output"


_CLIP = 5.0
"""A limit of pre-activations that leaves sigmoid and tanh as they are, nearly."""


def _squares(gradients: Mapping[str, Array]) -> float:
    """The sum of the squares of all derivatives, as their norm is computed."""
    with np.errstate(all="ignore"):
        return float(sum(np.square(value).sum() for value in gradients.values()))


def _before(piece: Piece, row: int) -> int:
    return int(piece.before if isinstance(piece.before, int) else piece.before[row])


def _first(bad: Array) -> tuple[int, ...]:
    return tuple(int(k) for k in np.unravel_index(int(bad.argmax()), bad.shape))


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
