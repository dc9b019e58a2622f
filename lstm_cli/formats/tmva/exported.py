"""Which of our layers TMVA has, and what each one's matrices are there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import numpy as np

from lstm_cli.cells import GRU, LSTM, Activation
from lstm_cli.cells.activations import SIGMOID, TANH
from lstm_cli.engines.types import Array, DenseSpec, LayerSpec, RecurrentSpec
from lstm_cli.errors import WeightsError
from lstm_cli.formats.gates import NATIVE
from lstm_cli.formats.tmva.attributes import ACTIVATIONS
from lstm_cli.formats.tmva.slots import KINDS

OPEN = 40.0
"""A forget gate's bias at which its sigmoid is 1 to the last bit of a double."""

TAGS = {kind.name: kind for kind in KINDS.values()}


def refuse(spec: LayerSpec, what: str, expected: str, hint: str | None = None) -> NoReturn:
    """Say what of a layer TMVA has not."""
    raise WeightsError(
        f"TMVA cannot represent layer {spec.index} ({spec.kind}): it has {what}",
        expected=expected,
        where=f"layers.{spec.index}",
        hint=hint,
    )


def check_recurrent(spec: RecurrentSpec) -> None:
    """Make sure that TMVA has a recurrent layer of these options.

    Raises
    ------
    WeightsError
        Names the first that it has not.
    """
    if spec.directions > 1:
        refuse(spec, "bidirectional: true", "one direction")
    cell = spec.cells[0]
    if cell.clip is not None:
        refuse(spec, f"clip: {cell.clip:g}", "no clip")
    _check_activation(spec, "activation", cell.activation, TANH)
    if spec.kind != "rnn":
        _check_activation(spec, "recurrent_activation", cell.recurrent_activation, SIGMOID)
    if isinstance(cell, LSTM):
        _check_lstm(spec, cell)


def _check_lstm(spec: RecurrentSpec, cell: LSTM) -> None:
    _check_activation(spec, "cell_activation", cell.cell_activation, TANH)
    if cell.peepholes:
        refuse(spec, "peepholes: true", "gates that see x and h alone")
    if cell.projection_size is not None:
        refuse(spec, f"projection_size: {cell.projection_size}", "h as wide as c")
    if cell.coupled_input_forget:
        refuse(spec, "coupled_input_forget: true", "a forget gate of its own")


def _check_activation(spec: LayerSpec, key: str, found: Activation, wanted: Activation) -> None:
    if found != wanted:
        refuse(spec, f"{key}: {found}", f"{key}: {wanted}, which TMVA's layer always has")


def gates(spec: RecurrentSpec, tensors: Mapping[str, Array]) -> dict[tuple[str, str], Array]:
    """Each gate's W (H, D), U (H, H) and b (H, 1), by matrix and letter.

    Raises
    ------
    WeightsError
        A gru's candidate has a recurrent bias inside the reset gate's reach, which TMVA has not.
    """
    prefix, letters = spec.prefix(0), NATIVE[spec.kind]
    found: dict[tuple[str, str], Array] = {}
    stacks = {"W": tensors[prefix + "weight_ih"], "U": tensors[prefix + "weight_hh"]}
    for matrix, stack in {**stacks, "b": _bias(spec, tensors)[:, None]}.items():
        blocks = np.split(stack, len(letters))
        found |= {(matrix, letter): block for letter, block in zip(letters, blocks, strict=True)}
    cell = spec.cells[0]
    if isinstance(cell, LSTM) and not cell.use_forget_gate:
        found |= {(matrix, "f"): np.zeros_like(found[matrix, "f"]) for matrix in "WU"}
        found["b", "f"] = np.full_like(found["b", "f"], OPEN)
    return found


def _bias(spec: RecurrentSpec, tensors: Mapping[str, Array]) -> Array:
    cell, prefix = spec.cells[0], spec.prefix(0)
    if not isinstance(cell, GRU):
        return tensors[prefix + "bias"]
    inner, outer = tensors[prefix + "bias_hh"], tensors[prefix + "bias_ih"]
    if cell.reset_after and np.any(inner[2 * spec.hidden_size :]):
        refuse(
            spec,
            "reset_after: true and a recurrent bias of its candidate (the last third of "
            f"{prefix}bias_hh) that is not 0",
            "one bias a gate, added outside the reset gate's reach",
            hint="train the layer in TMVA's form: reset_after: false has no such bias",
        )
    total = inner.astype(np.float64) + outer
    return np.asarray(total, np.result_type(inner, outer))


def activation_code(spec: DenseSpec) -> int:
    """TMVA's code of a dense layer's activation.

    Raises
    ------
    WeightsError
        It has none.
    """
    found = spec.activation
    if found is None or found.name not in ACTIVATIONS:
        last = " (softmax: in the last layer alone)" if found is None else ""
        refuse(
            spec, f"activation: {spec.activation_name}", "one of " + ", ".join(ACTIVATIONS) + last
        )
    return ACTIVATIONS.index(found.name)
