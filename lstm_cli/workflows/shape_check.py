"""Misfits between config, weights and data: shapes, their origins, messages and hints.

`misfit_describer` describes the misfits of weights, and `data_problems` those of data. Each problem
has both shapes and their origins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from lstm_cli.cells import Cell
from lstm_cli.config import Config
from lstm_cli.engines.types import (
    DenseSpec,
    FlattenSpec,
    LayerSpec,
    RecurrentSpec,
)
from lstm_cli.errors import (
    DataError,
    Problem,
    counted,
    quote,
)
from lstm_cli.network.network import ends_sequence
from lstm_cli.network.normalization import TENSOR_NAMES
from lstm_cli.network.weights import Misfit, MisfitDescriber, expected_tensors
from lstm_cli.workflows.weights_files import is_weights

if TYPE_CHECKING:
    from lstm_cli.data import SequenceData, TargetInfo

NO_WEIGHTS = "--set weights=null draws new weights, untrained ones"


def dimension_origins(config: Config, spec: LayerSpec, formula: str) -> tuple[str, ...]:
    """Return the value and the origin of every dimension that a shape's formula names.

    For ``(4H, D)`` one text is ``H = 100 is model.layers[0].hidden_size, net.yaml line 7``.
    """
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


def misfit_describer(
    config: Config, file: str | None, *, in_config: bool = False
) -> MisfitDescriber:
    """Return the function that describes misfits of weights with the origins of both shapes.

    Parameters
    ----------
    file
        Name of the weights file; None if the weights were given as arrays.
    in_config
        The config's key `weights` names the file.
    """
    source = file or "the weights given"
    hint = None
    if file is not None:
        hint = f"lstm-cli inspect-shapes {quote(file)} shows what the file holds"
    if in_config:
        hint = f"{NO_WEIGHTS}; {hint}"

    def describe(misfits: Sequence[Misfit]) -> list[Problem]:
        biases = {misfit.layer: misfit.bias for misfit in misfits if misfit.bias is not None}
        setting = " ".join(
            f"--set model.layers.{k}.bias={str(bias).lower()}" for k, bias in biases.items()
        )
        return [
            Problem(
                misfit.what,
                where=_misfit_origins(config, misfit, source),
                hint=hint if misfit.bias is None else setting,
            )
            for misfit in misfits
        ]

    return describe


def _misfit_origins(config: Config, misfit: Misfit, source: str) -> tuple[str, ...]:
    expected = expected_tensors(config.specs)
    places: tuple[str, ...] = ()
    if misfit.name in TENSOR_NAMES:
        places = dimension_origins(config, config.specs[0], "(D,)")
    if misfit.name in expected:
        spec, parameter = expected[misfit.name]
        places = dimension_origins(config, spec, parameter.formula)
    if misfit.found is not None:
        places += (f"{misfit.found} is {misfit.name} in {source}",)
    else:
        places += (f"not in {source}",)
    if misfit.bias is not None:
        line = config.where("model", "layers", misfit.layer or 0, "bias")
        places += (f"bias: {str(not misfit.bias).lower()} in layers[{misfit.layer}], {line}",)
    return places


def data_problems(config: Config, data: SequenceData, *, learning: bool = True) -> list[Problem]:
    """List every misfit between a config and a dataset.

    Parameters
    ----------
    learning
        The network is to be trained. If not, inputs that serve as targets need not fit.
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
    """Return the misfit of targets whose shape the config's loss cannot take; None without one."""
    if data.targets is None or config.train is None or config.train.loss is None:
        return None
    loss, last = config.train.loss, config.specs[-1]
    per_step = not any(ends_sequence(spec) for spec in config.specs)
    info = data.targets.resolve(per_step)
    window = config.data.window
    if loss == "cross_entropy" and window is not None and window.predict > 1:
        return Problem(
            f"cross_entropy learns one class per window, not the classes of {window.predict} steps",
            where=(
                f"predict is {window.predict}, {config.where('data', 'window', 'predict')}",
                f"train.loss is {loss}, {config.where('train', 'loss')}",
            ),
            hint="--set data.window.predict=1",
        )
    single = {(), (1,)} if loss == "cross_entropy" or last.output_size == 1 else set()
    if info.per_step != per_step:
        units = (f"per {data.noun}", "per step")
        what = (
            f"the targets are one {units[bool(info.per_step)]}, the outputs one {units[per_step]}"
        )
        hint = _per_step_hint(config, per_step)
        fits = info.shape in {(last.output_size,), *single}
        if hint is not None and hint.startswith("--set") and not fits:
            hint += f" {_target_shape_hint(config, info, bool(info.per_step))}"
    elif info.shape not in {(last.output_size,), *single}:
        what = f"a target has shape {info.shape}, an output ({last.output_size},)"
        hint = _target_shape_hint(config, data.targets, per_step)
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


def _per_step_hint(config: Config, per_step: bool) -> str | None:
    """Propose the setting that turns outputs `per_step` into the opposite."""
    recurrent = [spec for spec in config.specs if isinstance(spec, RecurrentSpec)]
    flat = next((spec for spec in config.specs if isinstance(spec, FlattenSpec)), None)
    if flat is not None:
        return f"without layer {flat.index} (flatten) the outputs are one per step"
    if not recurrent:
        return None
    return f"--set model.layers.{recurrent[-1].index}.return_sequences={str(not per_step).lower()}"


def _target_shape_hint(config: Config, info: TargetInfo, per_step: bool) -> str:
    """Propose another last layer, loss or return_sequences for targets of another shape."""
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
    other, setting = info.resolve(not per_step), _per_step_hint(config, per_step)
    if info.per_step is not None or setting is None:
        return hint
    if other.shape == () and softmax and not per_step:
        shares = "" if other.kind == "class" else f"; {hint}, if they are shares of classes"
        return f"{setting}, if they are a class per step{shares}"
    if other.shape == (F,) or (other.shape == () and (F == 1 or softmax)):
        unit = "sequence" if per_step else "step"
        return f"{setting}, if they are one per {unit}; else {hint}"
    return hint


def check_data(config: Config, data: SequenceData, *, learning: bool = True) -> None:
    """Raise DataError with every misfit of `data_problems`, if there is any."""
    problems = data_problems(config, data, learning=learning)
    if problems:
        raise DataError(problems)


def layer_title(spec: LayerSpec) -> str:
    """Describe a layer in a few words: ``lstm 12 → 100, both directions``."""
    words = f"{spec.kind} {spec.input_size} → {spec.output_size}"
    if isinstance(spec, DenseSpec) and spec.activation_name != "identity":
        words += f", {spec.activation_name}"
    if isinstance(spec, DenseSpec) and not spec.bias:
        words += ", no bias"
    if isinstance(spec, RecurrentSpec):
        words += "".join(f", {option}" for option in _layer_options(spec))
    return words


def _layer_options(spec: RecurrentSpec) -> Iterator[str]:
    cell = spec.cells[0]
    if spec.directions == 2:
        yield "both directions"
    if not spec.return_sequences:
        yield "last step"
    if spec.stateful:
        yield "stateful"
    yield from cell_options(cell)


def cell_options(cell: Cell) -> Iterator[str]:
    """Describe the options of a cell that differ from the defaults, in a few words each."""
    if cell.projects:
        yield f"{counted(cell.hidden_size, 'unit')} projected to {cell.output_size}"
    if not cell.bias:
        yield "no biases"
    if cell.peephole_gates:
        yield "peepholes"
    if getattr(cell, "coupled_input_forget", False):
        yield "f = 1 - i"
    if not getattr(cell, "use_forget_gate", True):
        yield "no forget gate"
    if not getattr(cell, "reset_after", True):
        yield "reset before"
    if cell.clip is not None:
        yield f"clip {cell.clip:g}"
