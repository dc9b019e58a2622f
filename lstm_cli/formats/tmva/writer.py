"""Writer of TMVA files as today's ROOT has them: matrices by slot, not by label."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NoReturn, TypeAlias, assert_never

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
from lstm_cli.errors import WeightsError, counted
from lstm_cli.formats.capabilities import StorableLayer, check_cell, storable_layers
from lstm_cli.formats.gates import NATIVE_GATES, lacks_forget_gate, open_forget_gate
from lstm_cli.formats.interchange import Export
from lstm_cli.formats.tmva.document import ACTIVATIONS
from lstm_cli.formats.tmva.header import TmvaNetwork, file_bytes, tag_text
from lstm_cli.formats.tmva.slots import LAYER_KINDS
from lstm_cli.output_files import write_atomically

TmvaLayer: TypeAlias = RecurrentSpec | DenseSpec | FlattenSpec
"""Layers with elements in a file; dropout acts in training only."""

IDENTITY = Activation("identity")
MAX_VARIABLES = 1_000_000


def write(path: Path, export: Export) -> tuple[str, ...]:
    """Write a TMVA weights file.

    Returns
    -------
    Notes on parts left out that change no output, and on TMVA's demands on the data.

    Raises
    ------
    WeightsError
        TMVA lacks a layer or an option, which the error names, or the number of steps is not
        known.
    LstmCliError
        The file cannot be written. An older file is kept.
    """
    layers = storable_layers(export.layers)
    specs = tuple(spec for spec in layers if not isinstance(spec, DropoutSpec))
    steps = _steps(export, specs)
    _check_flow(specs, steps)
    specs, output = _without_output_function(specs)
    wide = any(value.dtype == np.float64 for value in export.tensors.values())
    pattern = "{:.16e}" if wide else "{:.8e}"  # digits that distinguish any two values
    body = [text for spec in specs for text in _layer(spec, export.tensors, steps, pattern)]
    plan = TmvaNetwork(export.name, export.input_size, steps, specs, output)
    write_atomically(path, file_bytes(plan, body), "the weights")
    return tuple(_notes(layers, steps))


def _steps(export: Export, specs: tuple[TmvaLayer, ...]) -> int:
    """Number of steps T, which every recurrent layer of TMVA declares."""
    if export.steps is not None:
        if (variables := export.steps * export.input_size) > MAX_VARIABLES:
            raise WeightsError(
                "TMVA declares a variable for every step and feature",
                expected=f"at most {MAX_VARIABLES:,}",
                found=f"{variables:,}",
                where="model.steps",
            )
        return export.steps
    if not any(isinstance(spec, RecurrentSpec) for spec in specs):
        return 1
    raise WeightsError(
        "a TMVA file states how many steps every sequence has, and the config does not",
        expected="model.steps",
        hint="--set model.steps=T, with T the steps of a sequence",
    )


def _check_flow(specs: tuple[TmvaLayer, ...], steps: int) -> None:
    """Refuse a dense layer that reads every step, because TMVA's reads one vector."""
    if not specs:
        raise WeightsError("TMVA has no network without layers", expected="a layer with weights")
    one_vector = steps == 1 and not any(isinstance(spec, RecurrentSpec) for spec in specs)
    for spec in specs:
        match spec:
            case RecurrentSpec():
                check_cell("tmva", spec, spec.cells[0])
                one_vector = not spec.return_sequences
            case FlattenSpec():
                one_vector = True
            case DenseSpec():
                if not one_vector:
                    refuse_layer(
                        spec,
                        "every step as its input",
                        "one vector: a flatten layer before it, or return_sequences: false",
                    )
            case _:
                assert_never(spec)


def _without_output_function(specs: tuple[TmvaLayer, ...]) -> tuple[tuple[TmvaLayer, ...], str]:
    """Layers without the last sigmoid or softmax, which becomes TMVA's output function."""
    last = specs[-1]
    if isinstance(last, DenseSpec):
        letter = {"softmax": "M", "sigmoid": "S"}.get(last.activation_name)
        if letter is not None:
            return (*specs[:-1], replace(last, activation=IDENTITY)), letter
    return specs, "I"


def _layer(
    spec: TmvaLayer, tensors: Mapping[str, Array], steps: int, pattern: str
) -> Iterator[str]:
    """Lines of one layer."""
    match spec:
        case RecurrentSpec():
            yield from _recurrent(spec, tensors, steps, pattern)
            if not spec.return_sequences:
                yield _flattening(spec.output_size)
        case FlattenSpec():
            yield _flattening(spec.output_size)
        case DenseSpec():
            yield tag_text("DenseLayer", Width=spec.units, ActivationFunction=activation_code(spec))
            prefix = f"layers.{spec.index}."
            yield _matrix("Weights", tensors[prefix + "weight"], pattern)
            yield _matrix("Biases", tensors[prefix + "bias"][:, None], pattern)
            yield "</DenseLayer>"
        case _:
            assert_never(spec)


def _flattening(width: int) -> str:
    return tag_text("ReshapeLayer", "/", Depth=1, Height=1, Width=width, Flattening=1)


def _recurrent(
    spec: RecurrentSpec, tensors: Mapping[str, Array], steps: int, pattern: str
) -> Iterator[str]:
    kind, cell, H = KINDS_BY_NAME[spec.kind], spec.cells[0], spec.hidden_size
    sizes = {"StateSize": H, **({"CellSize": H} if isinstance(cell, LSTM) else {})}
    reset_after = {"ResetGateAfter": int(cell.reset_after)} if isinstance(cell, GRU) else {}
    yield tag_text(
        kind.tag,
        **sizes,
        InputSize=spec.input_size,
        TimeSteps=steps,
        RememberState=int(spec.stateful),
        ReturnSequence=int(spec.return_sequences),
        **reset_after,
    )
    matrices = gate_matrices(spec, tensors)
    slot_contents = iter(zip(kind.weights, kind.slot_contents("slots"), strict=True))
    for letter, bias in zip(kind.letters, kind.biases, strict=True):
        for _ in "WU":  # two elements before each bias, in the order of slots
            name, key = next(slot_contents)
            yield _matrix(name, matrices[key], pattern)
        yield _matrix(bias, matrices["b", letter], pattern)
    yield f"</{kind.tag}>"


def _matrix(name: str, values: Array, pattern: str) -> str:
    rows, columns = values.shape
    text = "  ".join(map(pattern.format, values.ravel().tolist()))
    return f"{tag_text(name, Rows=rows, Columns=columns)}{text}  </{name}>"


def _notes(layers: tuple[StorableLayer, ...], steps: int) -> Iterator[str]:
    for spec in layers:
        if isinstance(spec, DropoutSpec):
            yield f"layer {spec.index} (dropout) is left out: it acts in training only"
        if not isinstance(spec, RecurrentSpec):
            continue
        if spec.dropout or spec.recurrent_dropout:
            yield f"the dropout of layer {spec.index} is left out: it acts in training only"
        if lacks_forget_gate(spec.cells[0]):
            yield f"layer {spec.index} has no forget gate: written as one that is always 1"
    if any(isinstance(spec, RecurrentSpec | FlattenSpec) for spec in layers):
        yield f"TMVA reads sequences of exactly {counted(steps, 'step')}: outputs of others differ"
    if not isinstance(layers[-1], DenseSpec | DropoutSpec):
        yield "TMVA trains networks that end in a dense layer; this one does not"


KINDS_BY_NAME = {kind.name: kind for kind in LAYER_KINDS.values()}


def refuse_layer(spec: LayerSpec, what: str, expected: str, hint: str | None = None) -> NoReturn:
    """Raise the error that names an option TMVA lacks."""
    raise WeightsError(
        f"TMVA cannot represent layer {spec.index} ({spec.kind}): it has {what}",
        expected=expected,
        where=f"layers.{spec.index}",
        hint=hint,
    )


def gate_matrices(
    spec: RecurrentSpec, tensors: Mapping[str, Array]
) -> dict[tuple[str, str], Array]:
    """Matrices W (H, D), U (H, H) and b (H, 1) of each gate, by matrix and letter.

    Raises
    ------
    WeightsError
        The candidate of a gru has a recurrent bias under the reset gate, which TMVA lacks.
    """
    prefix, letters = spec.prefix(0), NATIVE_GATES[spec.kind]
    stacks = {name: tensors[prefix + name] for name in ("weight_ih", "weight_hh")}
    stacks["bias"] = _single_bias(spec, tensors)[:, None]
    if lacks_forget_gate(spec.cells[0]):
        stacks = open_forget_gate(stacks)
    return {
        (matrix, letter): block
        for matrix, stack in zip("WUb", stacks.values(), strict=True)
        for letter, block in zip(letters, np.split(stack, len(letters)), strict=True)
    }


def _single_bias(spec: RecurrentSpec, tensors: Mapping[str, Array]) -> Array:
    cell, prefix = spec.cells[0], spec.prefix(0)
    if not isinstance(cell, GRU):
        return tensors[prefix + "bias"]
    inner, outer = tensors[prefix + "bias_hh"], tensors[prefix + "bias_ih"]
    if cell.reset_after and np.any(inner[2 * spec.hidden_size :]):
        refuse_layer(
            spec,
            "reset_after: true and a recurrent bias of its candidate (the last third of "
            f"{prefix}bias_hh) that is not 0",
            "one bias per gate, outside the reset gate's reach",
            hint="train the layer in TMVA's form: reset_after: false has no such bias",
        )
    total = inner.astype(np.float64) + outer
    return np.asarray(total, np.result_type(inner, outer))


def activation_code(spec: DenseSpec) -> int:
    """TMVA's code for the activation of a dense layer.

    Raises
    ------
    WeightsError
        TMVA has no code for it.
    """
    activation = spec.activation
    if activation is None or activation.name not in ACTIVATIONS:
        last = " (softmax: in the last layer only)" if activation is None else ""
        refuse_layer(
            spec, f"activation: {spec.activation_name}", "one of " + ", ".join(ACTIVATIONS) + last
        )
    return ACTIVATIONS.index(activation.name)
