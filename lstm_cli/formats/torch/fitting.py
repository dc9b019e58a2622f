"""Whether PyTorch's modules can hold a layer, and which one holds it."""

from __future__ import annotations

from collections.abc import Iterator

from lstm_cli.cells import GRU, LSTM, RNN, Activation, Cell
from lstm_cli.cells.activations import SIGMOID, TANH
from lstm_cli.engines.types import LayerSpec, RecurrentSpec
from lstm_cli.errors import Problem, WeightsError

_MODULES = {"lstm": "nn.LSTM", "gru": "nn.GRU", "rnn": "nn.RNN"}
_RELU = Activation("relu")


def check_layers(layers: tuple[LayerSpec, ...]) -> None:
    """Raise WeightsError naming every layer and option that PyTorch's modules lack."""
    problems = [
        Problem(
            f"{_MODULES[spec.kind]} cannot hold layer {spec.index} ({spec.kind}): it has {option}",
            expected=expected,
            found=found,
            hint="ONNX holds it: --to onnx",
        )
        for spec in layers
        if isinstance(spec, RecurrentSpec)
        for option, expected, found in _misfits(spec)
    ]
    if problems:
        raise WeightsError(problems)


def _misfits(spec: RecurrentSpec) -> Iterator[tuple[str, str, str]]:
    """Option, what the module has instead, and what the layer has."""
    for cell in dict.fromkeys(spec.cells):
        yield from _of_any(cell)
        if isinstance(cell, LSTM):
            yield from _of_lstm(cell)
        if isinstance(cell, GRU) and not cell.reset_after:
            yield "another reset", "reset_after: true", "reset_after: false"
    if len({cell.activation for cell in spec.cells}) > 1:
        found = ", ".join(str(cell.activation) for cell in spec.cells)
        yield "two activations", "one for both directions", f"activation: {found}"


def _of_any(cell: Cell) -> Iterator[tuple[str, str, str]]:
    if cell.clip is not None:
        yield "a clip", "none", f"clip: {cell.clip:g}"
    allowed = (TANH, _RELU) if isinstance(cell, RNN) else (TANH,)
    if cell.activation not in allowed:
        words = " or ".join(map(str, allowed))
        yield "another activation", words, f"activation: {cell.activation}"
    if not isinstance(cell, RNN) and cell.recurrent_activation != SIGMOID:
        found = f"recurrent_activation: {cell.recurrent_activation}"
        yield "another activation", "sigmoid", found


def _of_lstm(cell: LSTM) -> Iterator[tuple[str, str, str]]:
    if cell.cell_activation != TANH:
        yield "another activation", "tanh", f"cell_activation: {cell.cell_activation}"
    if cell.peepholes:
        yield "peepholes", "none", "peepholes: true"
    if cell.coupled_input_forget:
        yield "coupled gates", "a forget gate of its own", "coupled_input_forget: true"
    if cell.projection_size is not None and cell.projection_size >= cell.hidden_size:
        found = f"projection_size: {cell.projection_size}"
        yield "a wide projection", f"fewer features than {cell.hidden_size}", found


def alike(first: RecurrentSpec, second: RecurrentSpec) -> bool:
    """Whether one module can hold both, as two of its layers."""
    return first.cells == second.cells
