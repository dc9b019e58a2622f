"""A network as a TMVA weights file, as today's ROOT writes it: matrices by slot, not by label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from lstm_cli.cells import GRU, LSTM, Activation
from lstm_cli.engines.types import (
    Array,
    DenseSpec,
    DropoutSpec,
    FlattenSpec,
    LayerSpec,
    RecurrentSpec,
)
from lstm_cli.errors import WeightsError
from lstm_cli.formats.model import Export
from lstm_cli.formats.tmva.exported import (
    TAGS,
    activation_code,
    check_recurrent,
    gates,
    refuse,
)
from lstm_cli.formats.tmva.frame import Plan, framed, line
from lstm_cli.output_files import write_atomically

IDENTITY = Activation("identity")
MOST_VARIABLES = 1_000_000


def write(path: Path, export: Export) -> tuple[str, ...]:
    """Write a TMVA weights file.

    Returns
    -------
    What was left out because it changes no output, and what TMVA asks of the data.

    Raises
    ------
    WeightsError
        TMVA has not a layer or an option of it: names both; or nothing says how many steps a
        sequence has.
    LstmCliError
        The file cannot be written. An older file stays as it was.
    """
    specs: tuple[LayerSpec, ...] = tuple(
        spec for spec in export.layers if not isinstance(spec, DropoutSpec)
    )
    steps = _steps(export, specs)
    _check_flow(specs, steps)
    specs, output = _without_output_function(specs)
    wide = any(value.dtype == np.float64 for value in export.tensors.values())
    pattern = "{:.16e}" if wide else "{:.8e}"  # as many digits as tell any two values apart
    body = [text for spec in specs for text in _layer(spec, export.tensors, steps, pattern)]
    plan = Plan(export.name, export.input_size, steps, specs, output)
    write_atomically(path, framed(plan, body), "the weights")
    return tuple(_notes(export, steps))


def _steps(export: Export, specs: tuple[LayerSpec, ...]) -> int:
    """T, which every recurrent layer of TMVA declares."""
    if export.steps is not None:
        if (variables := export.steps * export.input_size) > MOST_VARIABLES:
            raise WeightsError(
                "TMVA declares a variable for every step and feature",
                expected=f"at most {MOST_VARIABLES:,}",
                found=f"{variables:,}",
                where="model.steps",
            )
        return export.steps
    if not any(isinstance(spec, RecurrentSpec) for spec in specs):
        return 1
    raise WeightsError(
        "a TMVA file says how many steps every sequence has, and the config does not",
        expected="model.steps",
        hint="--set model.steps=T, with T the steps of a sequence",
    )


def _check_flow(specs: tuple[LayerSpec, ...], steps: int) -> None:
    """TMVA's dense layers read one vector, never steps."""
    if not specs:
        raise WeightsError("TMVA has no network without layers", expected="a layer with weights")
    one_vector = steps == 1 and not any(isinstance(spec, RecurrentSpec) for spec in specs)
    for spec in specs:
        if isinstance(spec, RecurrentSpec):
            check_recurrent(spec)
            one_vector = not spec.return_sequences
        elif isinstance(spec, FlattenSpec):
            one_vector = True
        elif not one_vector:
            refuse(
                spec,
                "every step as its input",
                "one vector: a flatten layer before it, or return_sequences: false",
            )


def _without_output_function(specs: tuple[LayerSpec, ...]) -> tuple[tuple[LayerSpec, ...], str]:
    """The layers, a last sigmoid or softmax taken out of them: TMVA's output function."""
    last = specs[-1]
    if isinstance(last, DenseSpec):
        letter = {"softmax": "M", "sigmoid": "S"}.get(last.activation_name)
        if letter is not None:
            return (*specs[:-1], replace(last, activation=IDENTITY)), letter
    return specs, "I"


def _layer(
    spec: LayerSpec, tensors: Mapping[str, Array], steps: int, pattern: str
) -> Iterator[str]:
    """The lines of one layer."""
    if isinstance(spec, RecurrentSpec):
        yield from _recurrent(spec, tensors, steps, pattern)
        if not spec.return_sequences:
            yield _flattening(spec.output_size)
    elif isinstance(spec, FlattenSpec):
        yield _flattening(spec.output_size)
    elif isinstance(spec, DenseSpec):
        yield line("DenseLayer", Width=spec.units, ActivationFunction=activation_code(spec))
        prefix = f"layers.{spec.index}."
        yield _matrix("Weights", tensors[prefix + "weight"], pattern)
        yield _matrix("Biases", tensors[prefix + "bias"][:, None], pattern)
        yield "</DenseLayer>"


def _flattening(width: int) -> str:
    return line("ReshapeLayer", "/", Depth=1, Height=1, Width=width, Flattening=1)


def _recurrent(
    spec: RecurrentSpec, tensors: Mapping[str, Array], steps: int, pattern: str
) -> Iterator[str]:
    kind, cell, H = TAGS[spec.kind], spec.cells[0], spec.hidden_size
    sizes = {"StateSize": H, **({"CellSize": H} if isinstance(cell, LSTM) else {})}
    after = {"ResetGateAfter": int(cell.reset_after)} if isinstance(cell, GRU) else {}
    yield line(
        kind.tag,
        **sizes,
        InputSize=spec.input_size,
        TimeSteps=steps,
        RememberState=int(spec.stateful),
        ReturnSequence=int(spec.return_sequences),
        **after,
    )
    found = gates(spec, tensors)
    held = iter(zip(kind.weights, kind.held("slots"), strict=True))
    for letter, bias in zip(kind.letters, kind.biases, strict=True):
        for _ in "WU":  # two elements in front of each bias, whatever they hold
            name, key = next(held)
            yield _matrix(name, found[key], pattern)
        yield _matrix(bias, found["b", letter], pattern)
    yield f"</{kind.tag}>"


def _matrix(name: str, values: Array, pattern: str) -> str:
    rows, columns = values.shape
    text = "  ".join(map(pattern.format, values.ravel().tolist()))
    return f"{line(name, Rows=rows, Columns=columns)}{text}  </{name}>"


def _notes(export: Export, steps: int) -> Iterator[str]:
    for spec in export.layers:
        if isinstance(spec, DropoutSpec):
            yield f"layer {spec.index} (dropout) is left out: it acts in training only"
        if not isinstance(spec, RecurrentSpec):
            continue
        if spec.dropout or spec.recurrent_dropout:
            yield f"the dropout of layer {spec.index} is left out: it acts in training only"
        cell = spec.cells[0]
        if isinstance(cell, LSTM) and not cell.use_forget_gate:
            yield f"layer {spec.index} has no forget gate: written as one that is always 1"
    if any(isinstance(spec, RecurrentSpec | FlattenSpec) for spec in export.layers):
        yield f"TMVA takes sequences of exactly {steps} steps: ragged ones differ there"
    if not isinstance(export.layers[-1], DenseSpec | DropoutSpec):
        yield "TMVA trains networks that end in a dense layer; this one does not"
