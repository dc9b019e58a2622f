"""Do config, weights and data fit each other? Every misfit, and where each side came from."""

from __future__ import annotations

import math
import os
import shlex
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
from lstm_cli.errors import ConfigError, DataError, DeviceMemoryError, Problem, WeightsError
from lstm_cli.network.network import Network, ends_sequence
from lstm_cli.network.normalization import STORED, Normalization, Rounding
from lstm_cli.network.weights import expected_tensors, merge_biases, misfits

SAMPLE, SAMPLE_BYTES = 64, 8 << 20
"""Sequences, and bytes of them, by which it is judged what a dtype loses."""
SAMPLE_LOSS = 0.05
"""Share of a feature's deviation that rounding may take without a note."""
NAMED = 8
"""Features that a message names; more become a count."""

if TYPE_CHECKING:
    from lstm_cli.data import Batch, Dataset


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
    config: Config, tensors: Mapping[str, Array], file: str | None
) -> list[Problem]:
    """Every misfit between a config and weights, each side with its origin.

    `file` is what the weights were read from; None if they were given as arrays.
    """
    name = file or "the weights given"
    hint = None
    if file is not None:
        hint = f"lstm-cli inspect-shapes {shlex.quote(file)} shows what the file holds"
    merged = merge_biases(config.specs, tensors)
    wanted = expected_tensors(config.specs)
    problems = []
    for misfit in misfits(config.specs, {key: v.shape for key, v in merged.items()}):
        places: tuple[str, ...] = ()
        if misfit.name in STORED:
            places = sources_of(config, config.specs[0], "(D,)")
        if misfit.name in wanted:
            spec, parameter = wanted[misfit.name]
            places = sources_of(config, spec, parameter.formula)
        if misfit.found is not None:
            places += (f"{misfit.found} is {misfit.name} in {name}",)
        else:
            places += (f"not in {name}",)
        problems.append(Problem(misfit.what, where=places, hint=hint))
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
        found=f"{counts[largest.index]:,} parameters in layer {largest.index} "
        f"({layer_title(largest)})",
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


def reading_dtype(network: Network, data: Dataset) -> str:
    """The type in which inputs are read: where they are normalized, one that holds them."""
    dtype = array_dtype(network.engine)
    return dtype if network.normalization is None else data.holding(dtype)


def lost_digits(network: Network, data: Dataset) -> str | None:
    """A note on the inputs that the engine's dtype cannot hold, by the first sequences.

    None where it holds all that is stored, or the network normalizes it first.
    """
    engine, reader = network.engine, next((s for s in network.layers if s.parameters()), None)
    # What multiplies the inputs: in bfloat16 and the like, a recurrent layer's matrix.
    dtype = engine.dtype if isinstance(reader, RecurrentSpec) else array_dtype(engine)
    held = dtype == array_dtype(engine) == data.holding(array_dtype(engine))
    if held or network.normalization is not None:
        return None
    batch = _sample(data, None)
    lost = [] if batch is None else _lost(_valid(batch, batch.x), dtype, "feature")
    return f"digits of the inputs are lost in {dtype}: {listed(lost)}" if lost else None


def lost_targets(network: Network, data: Dataset) -> list[Rounding]:
    """Targets that outputs in the engine's dtype cannot tell apart, by the first sequences."""
    dtype, info = array_dtype(network.engine), data.targets
    if info is None or info.kind != "values" or data.holding_targets(dtype) == dtype:
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


def _sample(data: Dataset, per_step: bool | None) -> Batch | None:
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


def check_weights(config: Config, tensors: Mapping[str, Array], file: str | None) -> None:
    """Raise WeightsError naming every misfit between a config and weights."""
    problems = weights_problems(config, tensors, file)
    if problems:
        raise WeightsError(problems)


def data_problems(config: Config, data: Dataset) -> list[Problem]:
    """Every misfit between a config and a dataset's inputs."""
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
                f"the inputs have {data.features} features, the network reads {D}{gates}",
                where=(
                    f"D = {D} is model.input_size, {config.where('model', 'input_size')}",
                    f"{data.features} is the last axis of {data.input_name}",
                ),
                hint=None
                if is_weights(config.source)
                else f"--set model.input_size={data.features}, if the data is right",
            )
        )
    flattened = [spec for spec in config.specs if isinstance(spec, FlattenSpec)]
    problems += [
        Problem(
            f"the longest sequence has {data.max_steps} steps, layer {spec.index} (flatten) "
            f"takes {spec.steps}",
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
    return problems if targets is None else [*problems, targets]


def _targets_problem(config: Config, data: Dataset) -> Problem | None:
    """Targets that a loss named in the config cannot take, as far as their shape tells."""
    info = data.targets
    if info is None or config.train is None:
        return None
    loss, last = config.train.loss, config.specs[-1]
    per_step = not any(ends_sequence(spec) for spec in config.specs)
    single = {(), (1,)} if loss == "cross_entropy" or last.output_size == 1 else set()
    if info.per_step is not None and info.per_step != per_step:
        units = ("a sequence", "a step")
        what = f"the targets are one {units[info.per_step]}, the outputs one {units[per_step]}"
        hint = f"`return_sequences: {str(info.per_step).lower()}` in the last recurrent layer"
    elif info.shape not in {(last.output_size,), *single}:
        what = f"a target has shape {info.shape}, an output ({last.output_size},)"
        hint = "`units` of the last layer, or `train.loss`, must suit the targets"
    else:
        return None
    return Problem(
        f"{what}: {loss} cannot compare them",
        where=(
            f"train.loss is {loss}, {config.where('train', 'loss')}",
            f"{last.output_size} features from layer {last.index} ({layer_title(last)}), "
            f"{config.where('model', 'layers', last.index)}",
            f"targets {info.name}",
        ),
        hint=hint,
    )


def check_data(config: Config, data: Dataset) -> None:
    """Raise DataError naming every misfit between a config and a dataset."""
    problems = data_problems(config, data)
    if problems:
        raise DataError(problems)
