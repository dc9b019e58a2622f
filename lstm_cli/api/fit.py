"""Do config, weights and data fit each other? Every misfit, and where each side came from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lstm_cli.api.shapes import layer_title
from lstm_cli.config import Config
from lstm_cli.engines.types import Array, DenseSpec, FlattenSpec, LayerSpec, RecurrentSpec
from lstm_cli.errors import DataError, Problem, WeightsError
from lstm_cli.network.weights import expected_tensors, merge_biases, misfits

if TYPE_CHECKING:
    from lstm_cli.data import Dataset


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
    hint = f"lstm-cli inspect-shapes {file} shows what the file holds" if file else None
    merged = merge_biases(config.specs, tensors)
    wanted = expected_tensors(config.specs)
    problems = []
    for misfit in misfits(config.specs, {key: v.shape for key, v in merged.items()}):
        places: tuple[str, ...] = ()
        if misfit.name in wanted:
            spec, parameter = wanted[misfit.name]
            places = sources_of(config, spec, parameter.formula)
        if misfit.found is not None:
            places += (f"{misfit.found} is {misfit.name} in {name}",)
        else:
            places += (f"not in {name}",)
        problems.append(Problem(misfit.what, where=places, hint=hint))
    return problems


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
                hint=f"--set model.input_size={data.features}, if the data is right",
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
    return problems


def check_data(config: Config, data: Dataset) -> None:
    """Raise DataError naming every misfit between a config and a dataset."""
    problems = data_problems(config, data)
    if problems:
        raise DataError(problems)
