"""Writing a network as a state dict, in torch.save's archive or in safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from lstm_cli.cells import LSTM, Activation
from lstm_cli.cells.activations import TANH
from lstm_cli.engines.types import (
    Array,
    DenseSpec,
    DropoutSpec,
    FlattenSpec,
    LayerSpec,
    RecurrentSpec,
)
from lstm_cli.formats.gates import NATIVE
from lstm_cli.formats.model import Export
from lstm_cli.formats.native import repeatable
from lstm_cli.formats.torch.archive_writing import archived
from lstm_cli.formats.torch.fitting import alike, check_layers
from lstm_cli.output_files import SIGNATURE, write_atomically

Stack = list[RecurrentSpec | DenseSpec]
"""Layers of one module: several recurrent ones alike, or one dense layer."""

OPEN = 40.0
"""A forget gate's bias that is 1 after a sigmoid, to the last bit of float64."""


def write(path: Path, export: Export) -> tuple[str, ...]:
    """Write a state dict; what it cannot say, as notes.

    ``.safetensors`` gives safetensors, any other name torch.save's archive.

    Raises
    ------
    WeightsError
        PyTorch's modules cannot hold a layer: names every layer and option.
    LstmCliError
        The file cannot be written. An older file stays as it was.
    """
    check_layers(export.layers)
    stacks = _stacks(export.layers)
    safetensors = path.suffix.lower() == ".safetensors"
    # Sorted by name, a head behind a flatten could as well be a layer in front.
    flat = any(isinstance(spec, FlattenSpec) for spec in export.layers)
    names = _names(stacks, numbered=safetensors and flat)
    tensors: dict[str, Array] = {}
    for stack, name in zip(stacks, names, strict=True):
        tensors |= {f"{name}.{key}": value for key, value in _module(stack, export.tensors)}
    if safetensors:
        from safetensors.numpy import save

        data = repeatable(save(tensors, {"format": "pt", "producer": SIGNATURE}))
    else:
        data = archived(tensors)
    write_atomically(path, data, "the weights")
    return tuple(_notes(export, dict(zip(names, stacks, strict=True))))


def _stacks(layers: tuple[LayerSpec, ...]) -> list[Stack]:
    """Recurrent layers that follow one another and are alike are one module's."""
    stacks: list[Stack] = []
    open_stack = False
    for spec in layers:
        if isinstance(spec, DropoutSpec):
            continue
        if isinstance(spec, RecurrentSpec):
            last = stacks[-1][-1] if open_stack else None
            if isinstance(last, RecurrentSpec) and alike(last, spec):
                stacks[-1].append(spec)
            else:
                stacks.append([spec])
        elif isinstance(spec, DenseSpec):
            stacks.append([spec])
        open_stack = isinstance(spec, RecurrentSpec)
    return stacks


def _names(stacks: list[Stack], *, numbered: bool) -> list[str]:
    """``lstm`` and ``head`` for the plainest network; else numbers, as nn.ModuleList has them."""
    kinds = [stack[0].kind for stack in stacks]
    plain = len(kinds) == 1 or (len(kinds) == 2 and kinds[0] != "dense" and kinds[1] == "dense")
    if plain and not numbered:
        return ["head" if kind == "dense" else kind for kind in kinds]
    return [str(k) for k in range(len(kinds))]


def _module(stack: Stack, tensors: Mapping[str, Array]) -> list[tuple[str, Array]]:
    first = stack[0]
    if isinstance(first, DenseSpec):
        own = first.parameters().items()
        return [(parameter.name, _plain(tensors[name])) for name, parameter in own]
    return [
        (f"{stem}_l{k}" + ("_reverse" if direction else ""), value)
        for k, spec in enumerate(stack)
        if isinstance(spec, RecurrentSpec)
        for direction in range(spec.directions)
        for stem, value in _direction(spec, direction, tensors)
    ]


def _direction(
    spec: RecurrentSpec, direction: int, tensors: Mapping[str, Array]
) -> list[tuple[str, Array]]:
    """In PyTorch's order; the one bias of an lstm or rnn as (b, 0)."""
    prefix, cell = spec.prefix(direction), spec.cells[direction]
    own = {name: _plain(tensors[prefix + name]) for name in cell.tensor_names}
    if "bias" in own:
        own["bias_ih"] = own.pop("bias")
        own["bias_hh"] = np.zeros_like(own["bias_ih"])
    if isinstance(cell, LSTM) and not cell.use_forget_gate:
        _open_forget_gate(own)
    order = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    return [(stem, own[stem]) for stem in order if stem in own]


def _open_forget_gate(own: dict[str, Array]) -> None:
    """A gate that is always 1: c = c + i g, as the LSTM before 2000 has it."""
    at = NATIVE["lstm"].index("f")
    for stem in ("weight_ih", "weight_hh", "bias_ih"):
        own[stem] = own[stem].copy()
        np.split(own[stem], len(NATIVE["lstm"]))[at][...] = OPEN if stem == "bias_ih" else 0


def _plain(value: Array) -> Array:
    return np.ascontiguousarray(value, np.asarray(value).dtype.newbyteorder("="))


def _notes(export: Export, modules: Mapping[str, Stack]) -> list[str]:
    """What the state dict leaves to the code that loads it."""
    layers = {spec.index: name for name, stack in modules.items() for spec in stack}
    notes = []
    for spec in export.layers:
        where = f"layer {spec.index}" + (f" ({layers[spec.index]})" if spec.index in layers else "")
        if isinstance(spec, DenseSpec) and spec.activation != Activation("identity"):
            notes.append(f"{where}: its activation {spec.activation_name} is not stored")
        if isinstance(spec, FlattenSpec):
            notes.append(f"{where}: flatten is not stored: torch.flatten(x, 1)")
        if isinstance(spec, DropoutSpec):
            notes.append(f"{where}: dropout is not stored; it changes no output")
        if isinstance(spec, RecurrentSpec):
            notes += [f"{where}: {note}" for note in _recurrent_notes(spec)]
    return notes


def _recurrent_notes(spec: RecurrentSpec) -> list[str]:
    cell = spec.cells[0]
    notes = []
    if spec.kind == "rnn" and cell.activation != TANH:
        notes.append(f"nn.RNN needs nonlinearity={str(cell.activation)!r}")
    if not spec.return_sequences:
        what = "the last valid step"
        if spec.directions == 2:
            what = "the final states of both directions (h_n), not the last step (y[:, -1])"
        notes.append(f"return_sequences: false is not stored: take {what}")
    if spec.stateful:
        notes.append("stateful is not stored: hand the states on yourself")
    if isinstance(cell, LSTM) and not cell.use_forget_gate:
        notes.append(f"forget_gate: false is written as a forget gate that is 1 (bias {OPEN:g})")
    return notes
