"""Search for the first value that is not finite: in data, weights, a gate, or a gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from lstm_cli.engines.protocols import array_dtype
from lstm_cli.engines.reference.engine import ReferenceEngine
from lstm_cli.engines.types import (
    Array,
    LayerResult,
    Layers,
    LayerSpec,
    RecurrentSpec,
    TrainingPass,
)
from lstm_cli.errors import DataError, LstmCliError, TrainingError, WeightsError, counted, quote
from lstm_cli.network import backpropagation
from lstm_cli.network.backpropagation import Gradients
from lstm_cli.network.network import Network
from lstm_cli.network.normalization import MEAN, SCALE
from lstm_cli.network.results import layer_to_host
from lstm_cli.network.weights import expected_tensors
from lstm_cli.training.interfaces import Places
from lstm_cli.training.losses import LossValue, MeanLoss
from lstm_cli.training.train_step import Chunk, PassTrace, StepTrace, TrainStep

USUAL_RATE = 0.01
"""Largest learning rate that a hint suggests."""


@dataclass(frozen=True)
class NonFiniteValue:
    """A value of the forward pass that is not finite.

    Attributes
    ----------
    what
        Description such as ``nan in gate f (forget) of layer 0 (lstm), unit 12``.
    row, step
        Row of the batch, and step. The step is None in outputs without steps.
    layer
        Index of the layer.
    """

    what: str
    row: int
    step: int | None
    layer: int


def nonfinite_error(
    train_step: TrainStep, trace: StepTrace, numbers: Array, places: Places, when: str
) -> LstmCliError:
    """Error for a chunk whose loss, gradients or new weights are not finite.

    The search follows the order of computation: inputs, targets, weights, forward pass, loss,
    derivatives. The reference engine repeats the passes, so that every engine leads to the same
    message. If the reference engine computes finite values, the network's engine repeats them.

    Parameters
    ----------
    numbers
        (N,) number of each row's sequence.
    when
        Position in the run, such as ``epoch 3, batch 7 of 10``.
    """
    when = f"{when}, after {counted(trace.number, 'update')}"
    exchange = train_step.exchange
    order, error = _own_error(train_step, trace, numbers, places, when)
    if exchange.size > 1:
        # All ranks raise the error of the rank whose value comes first.
        every = exchange.gather((order, type(error), error.problems))
        rank = min(range(exchange.size), key=lambda r: (every[r][0], r))
        _, kind, (problem, *others) = every[rank]
        error = kind([replace(problem, where=(*problem.where, f"rank {rank}")), *others])
    return error


def _own_error(
    train_step: TrainStep, trace: StepTrace, numbers: Array, places: Places, when: str
) -> tuple[tuple[int, int], LstmCliError]:
    """The first bad value of this rank's passes: its place in the order of search, and the error.

    The place is a stage of the search and a micro-batch.
    """
    network = train_step.network
    trace = replace(trace, passes=tuple(_on_host(one, network) for one in trace.passes))
    stopped = f"training stopped in {when}"
    per_step = train_step.criterion.targets.per_step
    for one in trace.passes:
        data = nonfinite_data_error(one.chunk, per_step, numbers, places, stopped)
        if data is not None:
            return (0, one.chunk.micro_batch), data
    where: tuple[str, ...] = (when,)
    what, value, culprit, stage = _bad_weight(train_step, trace), None, None, 1
    before_updates = what is None and not trace.number
    for one in trace.passes if what is None else ():
        chunk, training = one.chunk, one.chunk.training_pass(train_step.seed, trace.number)
        value = first_nonfinite(network, chunk.x, chunk.lengths, one.state, training)
        if value is not None:
            what, culprit, stage = value.what, one, 2
            where = (location(value, chunk, numbers, places), when)
            break
    if what is None:
        what, culprit, stage = _bad_loss_or_gradient(train_step, trace)
    culprit = culprit or next(iter(trace.passes), None)
    hint = _hint(train_step)
    if before_updates and culprit is not None:
        hint = _hint_at_start(train_step, culprit, trace.number, value)
    error = TrainingError(
        "a value in training is not finite",
        found=what,
        where=where,
        hint=hint,
    )
    return (stage, 0 if culprit is None else culprit.chunk.micro_batch), error


def first_nonfinite(
    network: Network,
    x: Array,
    lengths: Array | None,
    state: Any,
    training: TrainingPass | None = None,
) -> NonFiniteValue | None:
    """The first value of a forward pass that is not finite.

    The order is: layer, step in the order of computation, gate or state in the order of the cell,
    row, unit. The reference engine repeats the pass, so that the result does not depend on the
    engine. But engines round differently. So if the reference engine's values are finite, the
    network's engine repeats the pass.
    """
    reference = _on_reference(network)
    state = None if state is None else _states_to_host(state, network)
    value = _first_on_engine(reference, x, lengths, state, training)
    if value is not None:
        return value
    value = _first_on_engine(network, x, lengths, state, training)
    if value is None:
        return None
    name = f"{network.engine.name}, {network.engine.dtype}"
    more = f"; on {name} alone: the reference engine, which rounds differently, finds none"
    return replace(value, what=value.what + more)


def _on_reference(
    network: Network,
    dtype: str | None = None,
    layers: Layers | None = None,
    weights: Mapping[str, Array] | None = None,
) -> Network:
    """The network on the reference engine. Arguments replace its dtype, layers or weights."""
    engine = network.engine
    reference = ReferenceEngine(dtype or array_dtype(engine), engine.threads)
    result = Network(layers or network.layers, weights or network.tensors, reference)
    result.zero_states = network.zero_states
    return result


def _states_to_host(state: Sequence[Any], network: Network) -> list[Any]:
    to_host = network.engine.to_host
    return [
        tuple(None if part is None else to_host(part) for part in one)
        if isinstance(one, tuple | list)
        else one
        for one in state
    ]


def _on_host(one: PassTrace, network: Network) -> PassTrace:
    to_host, chunk = network.engine.to_host, one.chunk
    state = None if one.state is None else _states_to_host(one.state, network)
    chunk = replace(chunk, x=to_host(chunk.x), targets=to_host(chunk.targets))
    return replace(one, chunk=chunk, state=state)


def _first_on_engine(
    network: Network,
    x: Array,
    lengths: Array | None,
    state: Any,
    training: TrainingPass | None,
) -> NonFiniteValue | None:
    """`first_nonfinite` on the network's engine."""
    checked, n = network.check(x, lengths)
    states = network.check_state(state, checked.shape[0])
    y = network.engine.from_padded(checked, n)
    for layer in network.engine_layers:
        spec = layer.spec
        result = layer.forward(y, n, states.get(spec.index), return_gates=True, training=training)
        value = _in_layer(spec, layer_to_host(result, network.engine.to_host), n)
        if value is not None:
            return value
        y = result.output
    return None


def location(value: NonFiniteValue, chunk: Chunk, numbers: Array, places: Places) -> str:
    """Place of a value in the data, such as ``step 5 of sequence 17 of words.h5:/inputs``."""
    sequence = places.sequence(_sequence(chunk, value.row, numbers))
    if value.step is None:
        return sequence
    return f"step {value.step + _before(chunk, value.row)} of {sequence}"


def nonfinite_data_error(
    chunk: Chunk, per_step: bool, numbers: Array, places: Places, why: str
) -> DataError | None:
    """Error for the first input or target that is not finite. None if all are finite.

    Parameters
    ----------
    per_step
        Whether targets have a step axis.
    numbers
        (N,) number of each row's sequence.
    why
        Consequence of the value, such as ``training stopped in epoch 3``.
    """
    culprit = _bad_input(chunk, numbers, places)
    culprit = culprit or _bad_target(chunk, per_step, numbers, places)
    if culprit is None:
        return None
    file = culprit.partition(" at ")[2].partition(":/")[0]
    return DataError(
        "the data hold a value that is not finite",
        expected="real numbers: leave out an unknown step rather than fill it with NaN",
        found=culprit,
        where=why,
        hint=f"lstm-cli data {quote(file)} says what else is wrong with the file",
    )


def _bad_input(chunk: Chunk, numbers: Array, places: Places) -> str | None:
    bad = ~np.isfinite(chunk.x)
    if chunk.lengths is not None:
        bad &= (np.arange(chunk.x.shape[1]) < chunk.lengths[:, None])[:, :, None]
    if not bad.any():
        return None
    row, step, feature = _first(bad)
    place = places.input(_sequence(chunk, row, numbers), step + _before(chunk, row), feature)
    return f"{chunk.x[row, step, feature]} at {place}"


def _bad_target(chunk: Chunk, per_step: bool, numbers: Array, places: Places) -> str | None:
    targets = chunk.targets
    if targets.dtype.kind != "f":
        return None
    bad = ~np.isfinite(targets)
    if chunk.lengths is not None:
        valid = chunk.lengths > 0
        if per_step:
            valid = np.arange(targets.shape[1]) < chunk.lengths[:, None]
        bad &= valid.reshape(valid.shape + (1,) * (bad.ndim - valid.ndim))
    if not bad.any():
        return None
    row, *rest = _first(bad)
    step = rest.pop(0) + _before(chunk, row) if per_step else None
    value = rest[0] if rest and targets.shape[-1] > 1 else None
    place = places.target(_sequence(chunk, row, numbers), step, value)
    return f"{targets[tuple(_first(bad))]} at {place}"


def _bad_weight(train_step: TrainStep, trace: StepTrace) -> str | None:
    for name, value in train_step.weights.items():
        bad = ~np.isfinite(value)
        if bad.any():
            cause = ""
            if trace.update is not None:
                norm, rate = trace.update.norm, trace.update.rate
                cause = f", made by an update of rate {rate:g} from a gradient of norm {norm:.3g}"
            return f"{_entry(train_step.network, name, value, bad)}{cause}"
    return None


def _bad_loss_or_gradient(
    train_step: TrainStep, trace: StepTrace
) -> tuple[str, PassTrace | None, int]:
    """Description of the bad value, the pass that has it, and the stage of the search.

    The reference engine repeats the passes; if its values are finite, those of the network's engine
    are described.
    """
    reference = _on_reference(train_step.network)
    if reference is not train_step.network:
        for one in trace.passes:
            loss, gradients = _loss_and_gradients(reference, train_step, one, trace.number)
            what = _bad_loss(loss) or _bad_gradient(train_step, gradients)
            if what is not None:
                return what, one, 3
    bad = next((one for one in trace.passes if not math.isfinite(one.loss.value)), None)
    what = None if bad is None else _bad_loss(bad.loss)
    if what is not None:
        return what, bad, 4
    what = _bad_gradient(train_step, trace.gradients)
    return what or f"the loss is {trace.loss.value}", None, 5


def _loss_and_gradients(
    network: Network, train_step: TrainStep, one: PassTrace, number: int
) -> tuple[LossValue, Gradients]:
    """Loss and derivatives of a recorded pass, repeated with `network` after `number` updates."""
    chunk, training = one.chunk, one.chunk.training_pass(train_step.seed, number)
    tape = backpropagation.forward(network, chunk.x, chunk.lengths, one.state, training)
    loss = train_step.criterion(
        tape.values, tape.logit_values, chunk.targets, tape.lengths, network.engine
    )
    fused = train_step.criterion.fused
    return loss, backpropagation.backward(network, tape, loss.gradient, d_logits=fused)


def _bad_loss(loss: MeanLoss) -> str | None:
    if math.isfinite(loss.value):
        return None
    return f"the loss is {loss.value}, although all outputs are finite"


def _bad_gradient(train_step: TrainStep, derivatives: Gradients) -> str | None:
    """The first bad gradient in the order of computation, from the last layer."""
    gradients = derivatives.weights
    for name, value in reversed(gradients.items()):
        bad = ~np.isfinite(value)
        if bad.any():
            return f"the gradient of {_entry(train_step.network, name, value, bad)}"
    name = max(gradients, key=lambda name: float(np.abs(gradients[name]).max(initial=0)))
    value = np.abs(gradients[name])
    if not value.size or math.isfinite(_squares(gradients)):
        return None
    largest = _entry(train_step.network, name, gradients[name], value == value.max())
    return f"a gradient whose square is infinite, largest for {largest}"


def _entry(network: Network, name: str, values: Array, bad: Array) -> str:
    """Description such as ``layers.0.weight_hh[37, 4], gate f of layer 0 (lstm): nan``."""
    at = _first(bad)
    spec, parameter = expected_tensors(network.layers)[name]
    gate = ""
    if parameter.blocks:
        rows = values.shape[0] // len(parameter.blocks)
        gate = f"gate {parameter.blocks[at[0] // rows]} of "
    index = ", ".join(map(str, at))
    return f"{name}[{index}], {gate}layer {spec.index} ({spec.kind}): {values[at]}"


def _in_layer(spec: LayerSpec, result: LayerResult, lengths: Array | None) -> NonFiniteValue | None:
    layer = f"layer {spec.index} ({spec.kind})"
    if isinstance(spec, RecurrentSpec) and result.gates:
        values_in_order = [
            one
            for direction, gates in result.gates.items()
            for one in _in_direction(spec, direction, gates, lengths, layer)
        ]
        return min(values_in_order, key=lambda one: one[0])[1] if values_in_order else None
    for name, values in (("before its activation", result.logits), ("output", result.output)):
        if values is None or (bad := _valid(~np.isfinite(values), lengths)) is None:
            continue
        row, *step, unit = _first(bad)
        what = f"{values[(row, *step, unit)]} in unit {unit} of {layer}, {name}"
        return NonFiniteValue(what, row, step[0] if step else None, spec.index)
    return None


def _in_direction(
    spec: RecurrentSpec,
    direction: str,
    gates: Mapping[str, Array],
    lengths: Array | None,
    layer: str,
) -> Iterator[tuple[int, NonFiniteValue]]:
    """First bad value of every gate and state, with its step in the order of computation."""
    cell = spec.cells[0]
    names = {gate.letter: f"gate {gate.letter} ({gate.name})" for gate in cell.gates}
    names |= {state: f"state {state}" for state in reversed(cell.states)}
    side = f", {direction} direction" if spec.directions > 1 else ""
    for name, label in names.items():
        if name not in gates or (bad := _valid(~np.isfinite(gates[name]), lengths)) is None:
            continue
        N, T, _ = bad.shape
        n = np.full(N, T) if lengths is None else lengths
        computed = np.broadcast_to(np.arange(T), (N, T))
        if direction == "reverse":
            computed = n[:, None] - 1 - computed
        when = np.where(bad.any(axis=2), computed, T)
        row, step = np.unravel_index(int(when.argmin()), when.shape)
        unit = int(bad[row, step].argmax())
        what = f"{gates[name][row, step, unit]} in {label} of {layer}{side}, unit {unit}"
        yield int(when.min()), NonFiniteValue(what, int(row), int(step), spec.index)


def _valid(bad: Array, lengths: Array | None) -> Array | None:
    """Mask of the bad values in valid steps. None if there are none."""
    if lengths is not None:
        rows = lengths > 0
        if bad.ndim == 3:
            rows = np.arange(bad.shape[1]) < lengths[:, None]
        bad = bad & rows[..., None]
    return bad if bad.any() else None


def _hint(train_step: TrainStep) -> str:
    updates = train_step.updates
    slower = f"--set train.optimizer.learning_rate={min(updates.rate / 10, USUAL_RATE):g}"
    if updates.clip_norm is not None or updates.clip_value is not None:
        return f"the values have exploded: train slower, {slower}, in a new --output"
    return (
        "the values have exploded: limit the gradient, --set train.clip_norm=1.0, or train "
        f"slower, {slower}, in a new --output"
    )


def _hint_at_start(
    train_step: TrainStep, one: PassTrace, number: int, value: NonFiniteValue | None
) -> str:
    """Hint for an error before the first update, where a smaller learning rate cannot help.

    Each setting is tried on the chunk. The hint names the first with a finite loss and finite
    derivatives.
    """
    network, chunk = train_step.network, one.chunk
    why = "no update was made yet: the weights at the start are too large, or the inputs are"

    def is_finite(changed: Callable[[], Network]) -> bool:
        try:
            loss, gradients = _loss_and_gradients(changed(), train_step, one, number)
        except WeightsError:  # values beyond the dtype
            return False
        return math.isfinite(loss.value) and math.isfinite(_squares(gradients.weights))

    settings = _settings_to_try(network, chunk, value)
    with np.errstate(all="ignore"):
        advice = next(
            (text for text, changed in settings if is_finite(changed)), "begin with smaller ones"
        )
    return f"{why}: {advice}, in a new --output"


def _settings_to_try(
    network: Network, chunk: Chunk, value: NonFiniteValue | None
) -> list[tuple[str, Callable[[], Network]]]:
    """Advice by setting, each with a function that returns the network with that setting."""

    def normalized() -> Network:
        x = np.asarray(chunk.x, np.float64)
        valid = x.reshape(-1, x.shape[2])
        if chunk.lengths is not None:
            valid = x[np.arange(x.shape[1]) < chunk.lengths[:, None]]
        scale = valid.std(axis=0)
        stored = {MEAN: valid.mean(axis=0), SCALE: np.where(scale > 0, scale, 1.0)}
        return _on_reference(network, weights={**network.weights, **stored})

    def clipped(index: int) -> Network:
        layers = [
            replace(spec, cells=tuple(replace(cell, clip=_CLIP) for cell in spec.cells))
            if isinstance(spec, RecurrentSpec) and spec.index == index
            else spec
            for spec in network.layers
        ]
        return _on_reference(network, layers=layers)

    settings: list[tuple[str, Callable[[], Network]]] = []
    if network.normalization is None:
        settings.append(
            ("--set train.normalize=true scales the inputs of weights drawn anew", normalized)
        )
    for spec in network.recurrent:
        if spec.cells[0].clip is None and (value is None or spec.index == value.layer):
            clip = f"--set model.layers.{spec.index}.clip={_CLIP:g}"
            settings.append((f"{clip} limits what enters its gates", partial(clipped, spec.index)))
    if array_dtype(network.engine) != "float64":
        wide = partial(_on_reference, network, "float64")
        settings.append(("--dtype float64 holds larger values", wide))
    return settings


_CLIP = 5.0
"""Suggested limit of pre-activations, which hardly changes sigmoid and tanh."""


def _squares(gradients: Mapping[str, Array]) -> float:
    """Sum of the squares of all derivatives in their dtype, as for their norm."""
    with np.errstate(all="ignore"):
        return float(sum(np.square(value).sum() for value in gradients.values()))


def _sequence(chunk: Chunk, row: int, numbers: Array) -> int:
    """Number of the sequence in a row of a chunk."""
    return int(numbers[row if chunk.rows is None else chunk.rows[row]])


def _before(chunk: Chunk, row: int) -> int:
    return int(chunk.before if isinstance(chunk.before, int) else chunk.before[row])


def _first(bad: Array) -> tuple[int, ...]:
    return tuple(int(k) for k in np.unravel_index(int(bad.argmax()), bad.shape))
