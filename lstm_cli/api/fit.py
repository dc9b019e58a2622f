"""Do config, weights and data fit each other? Every misfit, and where each side came from."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from lstm_cli.api.shapes import layer_title
from lstm_cli.api.weights_files import is_weights
from lstm_cli.config import Config
from lstm_cli.engines.types import (
    Array,
    DenseSpec,
    Engine,
    FlattenSpec,
    LayerSpec,
    RecurrentSpec,
    array_dtype,
)
from lstm_cli.errors import (
    ConfigError,
    DataError,
    DeviceMemoryError,
    Problem,
    WeightsError,
    counted,
    quote,
)
from lstm_cli.network.network import Network, ends_sequence
from lstm_cli.network.normalization import TENSOR_NAMES, Normalization, Rounding
from lstm_cli.network.weights import expected_tensors, merge_biases, misfits

SAMPLE, SAMPLE_BYTES = 64, 8 << 20
"""Sequences, and bytes of them, by which it is judged what a dtype loses."""
SAMPLE_LOSS = 0.05
"""Share of a feature's deviation that rounding may take without a note."""
NO_WEIGHTS = "--set weights=null draws new weights, untrained ones"
NAMED = 8
"""Features that a message names; more become a count."""

if TYPE_CHECKING:
    from lstm_cli.data import Batch, SequenceData, TargetInfo


def sources_of(config: Config, spec: LayerSpec, formula: str) -> tuple[str, ...]:
    """For every letter of a formula, its value and the line it comes from."""
    k = spec.index
    places = []
    if "H" in formula and isinstance(spec, RecurrentSpec):
        line = config.where("model", "layers", k, "hidden_size")
        places.append(f"H = {spec.hidden_size} is model.layers[{k}].hidden_size, {line}")
    if "P" in formula and isinstance(spec, RecurrentSpec):
        line = config.where("model", "layers", k, "projection_size")
        P = spec.cells[0].output_size
        places.append(f"P = {P} is model.layers[{k}].projection_size, {line}")
    if "units" in formula and isinstance(spec, DenseSpec):
        line = config.where("model", "layers", k, "units")
        places.append(f"units = {spec.units} is model.layers[{k}].units, {line}")
    if "D" in formula and k == 0:
        line = config.where("model", "input_size")
        places.append(f"D = {spec.input_size} is model.input_size, {line}")
    elif "D" in formula:
        before = config.specs[k - 1]
        line = config.where("model", "layers", k - 1)
        places.append(
            f"D = {spec.input_size} is the output of layer {k - 1} ({layer_title(before)}), {line}"
        )
    return tuple(places)


def weights_problems(
    config: Config, tensors: Mapping[str, Array], file: str | None, *, named: bool = False
) -> list[Problem]:
    """Every misfit between a config and weights, each side with its origin.

    Parameters
    ----------
    file
        What the weights were read from; None if they were given as arrays.
    named
        The config's key `weights` names the file.
    """
    name = file or "the weights given"
    hint = None
    if file is not None:
        hint = f"lstm-cli inspect-shapes {quote(file)} shows what the file holds"
    if named:
        hint = f"{NO_WEIGHTS}; {hint}"
    merged = merge_biases(config.specs, tensors)
    wanted = expected_tensors(config.specs)
    problems = []
    found = misfits(config.specs, {key: v.shape for key, v in merged.items()})
    settings = {misfit.layer: misfit.bias for misfit in found if misfit.bias is not None}
    setting = " ".join(
        f"--set model.layers.{k}.bias={str(bias).lower()}" for k, bias in settings.items()
    )
    for misfit in found:
        places: tuple[str, ...] = ()
        if misfit.name in TENSOR_NAMES:
            places = sources_of(config, config.specs[0], "(D,)")
        if misfit.name in wanted:
            spec, parameter = wanted[misfit.name]
            places = sources_of(config, spec, parameter.formula)
        if misfit.found is not None:
            places += (f"{misfit.found} is {misfit.name} in {name}",)
        else:
            places += (f"not in {name}",)
        if misfit.bias is not None:
            line = config.where("model", "layers", misfit.layer or 0, "bias")
            places += (f"bias: {str(not misfit.bias).lower()} in layers[{misfit.layer}], {line}",)
        problems.append(
            Problem(misfit.what, where=places, hint=hint if misfit.bias is None else setting)
        )
    return problems


def check_memory(config: Config, engine: Engine) -> None:
    """Raise if the weights alone are more than the memory of this machine or its GPU can hold.

    Raises
    ------
    ConfigError
        This machine's memory is too small.
    DeviceMemoryError
        The GPU's is.
    """
    size = np.dtype(array_dtype(engine)).itemsize
    counts = {
        spec.index: sum(math.prod(parameter.shape) for parameter in spec.parameters().values())
        for spec in config.specs
    }
    # Drawn or read, cast, and prepared by the engine: at times there are three of them.
    needed, there = 3 * size * sum(counts.values()), _memory()
    _check_gpu(engine, needed * 2 // 3)  # there as they are, and packed
    if there is None or needed <= there:
        return
    largest = config.specs[max(counts, key=lambda k: counts[k])]
    raise ConfigError(
        f"the weights of this network need {needed / 1e9:.0f} GB while it is built",
        expected=f"less than the {there / 1e9:.0f} GB of this machine",
        found=f"{counted(counts[largest.index], 'parameter', grouped=True)} in "
        f"layer {largest.index} ({layer_title(largest)})",
        where=config.where("model", "layers", largest.index),
        hint="fewer units in that layer",
    )


def _check_gpu(engine: Engine, needed: int) -> None:
    hardware = getattr(engine, "hardware", None)
    if hardware is None:
        return
    free, total = hardware.memory()
    if needed > total:
        raise DeviceMemoryError(
            needed,
            free,
            total,
            purpose="this network's weights alone",
            hint="fewer units, or --device cpu",
        )


def _memory() -> int | None:
    """Bytes of memory this machine has; None where that is not told."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def reading_dtype(network: Network, data: SequenceData) -> str:
    """The type in which inputs are read: where they are normalized, one that holds them."""
    dtype = array_dtype(network.engine)
    return dtype if network.normalization is None else data.dtype_for_inputs(dtype)


def misplaced_states(
    network: Network, data: SequenceData, batch_size: int, numbers: Array | None = None
) -> str | None:
    """A note on windows that continue what does not stand before them in their sequence.

    None if no layer is stateful, or each row of a batch goes on where it ended in the one before.
    `numbers` are the windows that are run; None: all.
    """
    stateful = next((spec for spec in network.recurrent if spec.stateful), None)
    if stateful is None or not data.windowed:
        return None
    every = np.arange(data.count) if numbers is None else np.sort(numbers)
    files, sequences = data.files.file_of(every), data.files.sequences(every)
    begin, length = data.files.step_ranges(every)[0], data.max_steps
    for file in np.unique(files):
        own = np.flatnonzero(files == file)
        before, after = own[:-batch_size], own[batch_size:]
        wrong = (sequences[before] != sequences[after]) | (begin[after] != begin[before] + length)
        if wrong.any():
            k = int(np.argmax(wrong))
            one, other = (int(every[at[k]]) for at in (after, before))
            return (
                f"layer {stateful.index} is stateful, but {data.sequence(one)} continues "
                f"{data.sequence(other)}, which does not end where it begins; "
                f"--set model.layers.{stateful.index}.stateful=false begins every window anew"
            )
    return None


def lost_digits(network: Network, data: SequenceData) -> str | None:
    """A note on the inputs that the engine's dtype cannot hold, by the first sequences.

    None where it holds all that is stored, or the network normalizes it first.
    """
    engine, reader = network.engine, next((s for s in network.layers if s.parameters()), None)
    # What multiplies the inputs: in bfloat16 and the like, a recurrent layer's matrix.
    dtype = engine.dtype if isinstance(reader, RecurrentSpec) else array_dtype(engine)
    held = dtype == array_dtype(engine) == data.dtype_for_inputs(array_dtype(engine))
    if held or network.normalization is not None:
        return None
    batch = _sample(data, None)
    lost = [] if batch is None else _lost(_valid(batch, batch.x), dtype, "feature")
    return f"digits of the inputs are lost in {dtype}: {listed(lost)}" if lost else None


def lost_targets(network: Network, data: SequenceData) -> list[Rounding]:
    """Targets that outputs in the engine's dtype cannot tell apart, by the first sequences."""
    dtype, info = array_dtype(network.engine), data.targets
    if info is None or info.kind != "values" or data.dtype_for_targets(dtype) == dtype:
        return []
    batch = _sample(data, network.returns_sequences)
    if batch is None or batch.targets is None:
        return []
    y = batch.targets
    rows = y if info.per_step is False or not network.returns_sequences else _valid(batch, y)
    return _lost(rows.reshape(len(rows), -1), dtype, "target")


def listed(lost: Sequence[Rounding]) -> str:
    """Features that lose digits, in words."""
    more = f", and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
    return ", ".join(map(str, lost[:NAMED])) + more


def _sample(data: SequenceData, per_step: bool | None) -> Batch | None:
    """The first sequences in float64; None where they are too much to read for a note."""
    if not data.total_steps or data.max_steps * data.features > SAMPLE_BYTES:
        return None
    wide = data.batches(
        SAMPLE, np.float64, targets=per_step is not None, per_step=per_step, max_bytes=SAMPLE_BYTES
    )
    return next(wide)


def _valid(batch: Batch, values: Array) -> Array:
    """The valid steps, one after the other."""
    n = np.full(batch.count, batch.x.shape[1]) if batch.lengths is None else batch.lengths
    return np.asarray(values[np.arange(batch.x.shape[1]) < n[:, None]])


def _lost(rows: Array, dtype: str, noun: str) -> list[Rounding]:
    """The columns of which a dtype loses digits, beside their deviation."""
    rows = rows[np.isfinite(rows).all(axis=1)]
    if not len(rows):
        return []
    shifted = rows - rows[0]
    deviation = shifted.std(axis=0)
    varies = deviation > 0
    mean = np.where(varies, rows[0] + shifted.mean(axis=0), 0.0)
    scaling = Normalization(mean, np.where(varies, deviation, 1.0))
    return scaling.roundings(dtype, SAMPLE_LOSS, noun)


def check_weights(
    config: Config, tensors: Mapping[str, Array], file: str | None, *, named: bool = False
) -> None:
    """Raise WeightsError naming every misfit between a config and weights."""
    problems = weights_problems(config, tensors, file, named=named)
    if problems:
        raise WeightsError(problems)


def data_problems(config: Config, data: SequenceData, *, learning: bool = True) -> list[Problem]:
    """Every misfit between a config and a dataset.

    Unless there is to be `learning`, inputs that stand in for targets need not fit.
    """
    problems = []
    first, D = config.specs[0], config.specs[0].input_size
    if data.features != D:
        gates = ""
        if isinstance(first, RecurrentSpec):
            H = first.hidden_size
            letters = ", ".join(f"W_{gate}" for gate in first.cells[0].letters)
            gates = f": {letters} of layer 0 are ({H}, {D}) = (H, D)"
        problems.append(
            Problem(
                f"the inputs have {counted(data.features, 'feature')}, "
                f"the network reads {D}{gates}",
                where=(
                    f"D = {D} is model.input_size, {config.where('model', 'input_size')}",
                    f"{data.features} is the last axis of {data.input_name}",
                ),
                hint=_features_hint(config, data),
            )
        )
    flattened = [spec for spec in config.specs if isinstance(spec, FlattenSpec)]
    problems += [
        Problem(
            f"the longest sequence has {counted(data.max_steps, 'step')}, "
            f"layer {spec.index} (flatten) takes {spec.steps}",
            where=(
                f"{spec.steps} is model.steps, {config.where('model', 'steps')}",
                f"{data.max_steps} is the longest sequence of {data.input_name}",
            ),
            hint=f"--set model.steps={data.max_steps}",
        )
        for spec in flattened
        if data.max_steps > spec.steps
    ]
    targets = _targets_problem(config, data)
    if targets is not None and (learning or not data.targets_are_inputs):
        problems.append(targets)
    return problems


def _features_hint(config: Config, data: SequenceData) -> str | None:
    if data.reversed_features == config.specs[0].input_size:
        if config.data.transpose:
            return "--set data.transpose=false, if the axes are not reversed in this file"
        return "--set data.transpose=true, if MATLAB, Julia, Fortran or R wrote the file"
    if is_weights(config.source):
        return None
    return f"--set model.input_size={data.features}, if the data is right"


def _targets_problem(config: Config, data: SequenceData) -> Problem | None:
    """Targets that a loss named in the config cannot take, as far as their shape tells."""
    if data.targets is None or config.train is None or config.train.loss is None:
        return None
    loss, last = config.train.loss, config.specs[-1]
    per_step = not any(ends_sequence(spec) for spec in config.specs)
    info = data.targets.resolve(per_step)
    window = config.data.window
    if loss == "cross_entropy" and window is not None and window.predict > 1:
        return Problem(
            f"cross_entropy learns one class for a window, not those of {window.predict} steps",
            where=(
                f"predict is {window.predict}, {config.where('data', 'window', 'predict')}",
                f"train.loss is {loss}, {config.where('train', 'loss')}",
            ),
            hint="--set data.window.predict=1",
        )
    single = {(), (1,)} if loss == "cross_entropy" or last.output_size == 1 else set()
    if info.per_step != per_step:
        units = (f"a {data.noun}", "a step")
        what = (
            f"the targets are one {units[bool(info.per_step)]}, the outputs one {units[per_step]}"
        )
        hint = _placing_hint(config, per_step)
        fits = info.shape in {(last.output_size,), *single}
        if hint is not None and hint.startswith("--set") and not fits:
            hint += f" {_shape_hint(config, info, bool(info.per_step))}"
    elif info.shape not in {(last.output_size,), *single}:
        what = f"a target has shape {info.shape}, an output ({last.output_size},)"
        hint = _shape_hint(config, data.targets, per_step)
    else:
        return None
    return Problem(
        f"{what}: {loss} cannot compare them",
        where=(
            f"train.loss is {loss}, {config.where('train', 'loss')}",
            f"{counted(last.output_size, 'feature')} from layer {last.index} "
            f"({layer_title(last)}), {config.where('model', 'layers', last.index)}",
            f"targets {info.name}",
        ),
        hint=hint,
    )


def _placing_hint(config: Config, per_step: bool) -> str | None:
    """Hint that turns a network that returns outputs `per_step` into the opposite."""
    recurrent = [spec for spec in config.specs if isinstance(spec, RecurrentSpec)]
    flat = next((spec for spec in config.specs if isinstance(spec, FlattenSpec)), None)
    if flat is not None:
        return f"without layer {flat.index} (flatten) the outputs are one a step"
    if not recurrent:
        return None
    return f"--set model.layers.{recurrent[-1].index}.return_sequences={str(not per_step).lower()}"


def _shape_hint(config: Config, info: TargetInfo, per_step: bool) -> str:
    """Hint that fits the last layer, the loss or the steps to targets of another shape."""
    placed, last = info.resolve(per_step), config.specs[-1]
    F, units = last.output_size, placed.shape[0] if placed.shape else 1
    softmax = isinstance(last, DenseSpec) and last.activation is None
    if placed.shape == () and softmax:
        return "--set train.loss=cross_entropy takes the targets as classes"
    if is_weights(config.source):
        hint = "in a config, data.targets names another dataset"
    elif isinstance(last, DenseSpec):
        hint = f"--set model.layers.{last.index}.units={units}"
    else:
        hint = f"a last layer {{type: dense, units: {units}}}"
    other, turn = info.resolve(not per_step), _placing_hint(config, per_step)
    if info.per_step is not None or turn is None:
        return hint
    if other.shape == () and softmax and not per_step:
        shares = "" if other.kind == "class" else f"; {hint}, if they are shares of classes"
        return f"{turn}, if they are a class a step{shares}"
    if other.shape == (F,) or (other.shape == () and (F == 1 or softmax)):
        return f"{turn}, if they are one {'a sequence' if per_step else 'a step'}; else {hint}"
    return hint


def check_data(config: Config, data: SequenceData, *, learning: bool = True) -> None:
    """Raise DataError naming every misfit of `data_problems`."""
    problems = data_problems(config, data, learning=learning)
    if problems:
        raise DataError(problems)
