"""What a recurrent operator of ONNX takes: its tensors and its attributes, of a layer of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from lstm_cli.cells import LSTM, Activation, Cell
from lstm_cli.engines.types import DIRECTIONS, Array, RecurrentSpec
from lstm_cli.errors import WeightsError
from lstm_cli.formats.gates import NATIVE_GATES, reorder_gates
from lstm_cli.formats.onnx.functions import RECURRENT
from lstm_cli.formats.onnx.orders import GATES, PEEPHOLES


def operands(spec: RecurrentSpec, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """W (dirs, G*H, D), R (dirs, G*H, H); B (dirs, 2*G*H) and P (dirs, 3*H) where there are any.

    Raises
    ------
    WeightsError
        There is no bias that holds an absent forget gate open.
    """
    found = [
        _of_direction(spec, d, {name: tensors[spec.prefix(d) + name] for name in cell.tensor_names})
        for d, cell in enumerate(spec.cells)
    ]
    return {name: np.stack([own[name] for own in found]) for name in found[0]}


def projection(spec: RecurrentSpec, tensors: Mapping[str, Array]) -> Array:
    """(dirs*H, dirs*P): what both directions' outputs, side by side, are multiplied by."""
    H, P = spec.hidden_size, spec.cells[0].output_size
    found = np.zeros((spec.directions * H, spec.directions * P))
    for d in range(spec.directions):
        found[d * H : (d + 1) * H, d * P : (d + 1) * P] = tensors[spec.prefix(d) + "weight_hr"].T
    return found


def _of_direction(
    spec: RecurrentSpec, direction: int, own: Mapping[str, Array]
) -> dict[str, Array]:
    cell = spec.cells[direction]
    native = {name: np.array(value, np.float64) for name, value in own.items()}
    if cell.projects:
        native["weight_hh"] = native["weight_hh"] @ native["weight_hr"]  # U W_hr, (4H, H)
    if not forgets(cell):
        _hold_open(spec, direction, native)
    ours, theirs = NATIVE_GATES[cell.kind], GATES[cell.kind]
    found = {
        "W": reorder_gates(native["weight_ih"], ours, theirs),
        "R": reorder_gates(native["weight_hh"], ours, theirs),
    }
    if cell.bias:
        bias = native[cell.bias_names[0]]
        biases = (bias, native.get("bias_hh", np.zeros_like(bias)))
        found["B"] = np.concatenate([reorder_gates(part, ours, theirs) for part in biases])
    if "peephole" in native:
        found["P"] = reorder_gates(native["peephole"], cell.peephole_gates, PEEPHOLES)
    return found


def forgets(cell: Cell) -> bool:
    """Whether c is multiplied by a forget gate."""
    return not isinstance(cell, LSTM) or cell.use_forget_gate


def _hold_open(spec: RecurrentSpec, direction: int, native: dict[str, Array]) -> None:
    """Give the forget gate, which the cell does not have, weights that make it exactly 1."""
    H, cell = spec.hidden_size, spec.cells[direction]
    bias = _opening(cell)
    if bias is None:
        limit = "" if cell.clip is None else f" within the clip of {cell.clip:g}"
        raise WeightsError(
            f"layer {spec.index} ({spec.kind}, {DIRECTIONS[direction]}) has no forget gate, and "
            "ONNX's LSTM has one that must stay at exactly 1",
            expected="a recurrent_activation that reaches 1",
            found=f"{cell.recurrent_activation}, which does not{limit}",
        )
    forget = slice(H, 2 * H)
    for name in ("weight_ih", "weight_hh", "peephole"):
        if name in native:
            native[name][forget] = 0
    native["bias"][forget] = bias


def _opening(cell: Cell) -> float | None:
    """A pre-activation that makes the gates' activation 1 in float32, if there is one."""
    function = cell.recurrent_activation
    limit = np.inf if cell.clip is None else cell.clip
    with np.errstate(all="ignore"):
        for bias in np.clip(list(_candidates(function)), -limit, limit):
            if np.isfinite(bias) and np.float32(function(np.float64(np.float32(bias)))) == 1:
                return float(bias)
    return None


def _candidates(function: Activation) -> Iterator[float]:
    """Where sigmoid and tanh are 1 to the last digit; where a straight line is; well beyond it."""
    yield from (40.0, 1.0, 0.0)
    if function.alpha is not None and function.beta is not None and function.alpha != 0:
        yield (1 - function.beta) / function.alpha
        yield 2 * (1 - function.beta) / function.alpha


def attributes(spec: RecurrentSpec) -> dict[str, Any]:
    """The operator's attributes.

    Raises
    ------
    WeightsError
        An activation that ONNX's operators do not have.
    """
    cell = spec.cells[0]
    found: dict[str, Any] = {
        "hidden_size": spec.hidden_size,
        "direction": "bidirectional" if spec.directions == 2 else "forward",
        **_activations(spec),
        **_clip(spec),
    }
    if isinstance(cell, LSTM) and cell.coupled_input_forget and cell.use_forget_gate:
        found["input_forget"] = 1
    if spec.kind == "gru":
        found["linear_before_reset"] = int(getattr(cell, "reset_after", True))
    return found


def _clip(spec: RecurrentSpec) -> dict[str, float]:
    clip = spec.cells[0].clip
    if clip is None or clip > float(np.finfo(np.float32).max):
        return {}
    if np.float32(clip) == 0:
        raise WeightsError(
            f"layer {spec.index} ({spec.kind}): its clip is 0 in float32, which ONNX refuses",
            found=f"{clip:g}",
        )
    return {"clip": float(clip)}


def _activations(spec: RecurrentSpec) -> dict[str, Any]:
    """Names, and parameters listed for those activations only that take them."""
    chosen = [_known(spec, d, f) for d, cell in enumerate(spec.cells) for f in _functions(cell)]
    found: dict[str, Any] = {"activations": [RECURRENT[f.name] for f in chosen]}
    for key in ("alpha", "beta"):
        values = [value for f in chosen if (value := getattr(f, key)) is not None]
        if values:
            found[f"activation_{key}"] = values
    return found


def _functions(cell: Cell) -> tuple[Activation, ...]:
    """A direction's activations as the operator lists them: f g h, f g, or f."""
    if cell.kind == "rnn":
        return (cell.activation,)
    if isinstance(cell, LSTM):
        return (cell.recurrent_activation, cell.activation, cell.cell_activation)
    return (cell.recurrent_activation, cell.activation)


def _known(spec: RecurrentSpec, direction: int, function: Activation) -> Activation:
    if function.name == "identity":
        return Activation("affine", 1.0, 0.0)
    if function.name not in RECURRENT:
        raise WeightsError(
            f"layer {spec.index} ({spec.kind}, {DIRECTIONS[direction]}): ONNX's recurrent "
            f"operators have no activation {function.name}",
            expected="one of " + ", ".join(["identity", *RECURRENT]),
        )
    return function
