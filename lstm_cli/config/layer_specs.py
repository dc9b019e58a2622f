"""Layer specifications for engines, resolved from a checked config."""

from __future__ import annotations

from math import prod

from lstm_cli.cells import GRU, LSTM, RNN, Activation, Cell
from lstm_cli.config.problems import ProblemReport
from lstm_cli.config.schema import (
    DenseLayer,
    DropoutLayer,
    FlattenLayer,
    GRULayer,
    Layer,
    LSTMLayer,
    ModelSection,
    RNNLayer,
)
from lstm_cli.engines.types import DenseSpec, DropoutSpec, FlattenSpec, LayerSpec, RecurrentSpec

MAX_PARAMETERS = 2**40
"""Most parameters of a network."""


def resolve(model: ModelSection) -> tuple[LayerSpec, ...]:
    """Specifications of the layers in order; each layer reads the outputs of the one before.

    The config must have passed `lstm_cli.config.checks.check_config`.
    """
    specs: list[LayerSpec] = []
    size = model.input_size
    for index, layer in enumerate(model.layers):
        spec = _spec(index, layer, size, model.steps or 1)
        specs.append(spec)
        size = spec.output_size
    return tuple(specs)


def check_parameter_count(specs: tuple[LayerSpec, ...], report: ProblemReport) -> None:
    """Add a problem if the network is too large for any machine's memory."""
    total = sum(prod(p.shape) for spec in specs for p in spec.parameters().values())
    if total > MAX_PARAMETERS:
        report.add(
            ("model", "layers"),
            "model.layers have more parameters than any machine holds",
            expected=f"at most {MAX_PARAMETERS:,}",
            found=f"{total:,}, {4 * total / 1e12:,.0f} TB in float32",
            hint="check hidden_size, units, input_size and steps for a typing error",
        )


def _spec(index: int, layer: Layer, size: int, steps: int) -> LayerSpec:
    if isinstance(layer, DenseLayer):
        activation = None if layer.activation == "softmax" else layer.activation
        return DenseSpec(index, size, layer.units, activation, layer.bias)
    if isinstance(layer, DropoutLayer):
        return DropoutSpec(index, size, layer.rate)
    if isinstance(layer, FlattenLayer):
        return FlattenSpec(index, size, steps)
    return _recurrent(index, layer, size)


def _recurrent(index: int, layer: LSTMLayer | GRULayer | RNNLayer, size: int) -> RecurrentSpec:
    directions = 2 if layer.bidirectional else 1
    return RecurrentSpec(
        index,
        size,
        tuple(_cell(layer, direction) for direction in range(directions)),
        return_sequences=layer.return_sequences,
        stateful=layer.stateful,
        dropout=layer.dropout,
        recurrent_dropout=layer.recurrent_dropout,
        forget_bias=layer.forget_bias if isinstance(layer, LSTMLayer) else 1.0,
    )


def _cell(layer: LSTMLayer | GRULayer | RNNLayer, direction: int) -> Cell:
    activation = _for_direction(layer.activation, direction)
    if isinstance(layer, LSTMLayer):
        return LSTM(
            hidden_size=layer.hidden_size,
            clip=layer.clip,
            bias=layer.bias,
            activation=activation,
            recurrent_activation=_for_direction(layer.recurrent_activation, direction),
            cell_activation=_for_direction(layer.cell_activation or layer.activation, direction),
            peepholes=layer.peepholes,
            projection_size=layer.projection_size,
            coupled_input_forget=layer.coupled_input_forget,
            use_forget_gate=layer.forget_gate,
        )
    if isinstance(layer, GRULayer):
        return GRU(
            hidden_size=layer.hidden_size,
            clip=layer.clip,
            bias=layer.bias,
            activation=activation,
            recurrent_activation=_for_direction(layer.recurrent_activation, direction),
            reset_after=layer.reset_after,
        )
    return RNN(
        hidden_size=layer.hidden_size, clip=layer.clip, bias=layer.bias, activation=activation
    )


def _for_direction(option: tuple[Activation, ...], direction: int) -> Activation:
    return option[min(direction, len(option) - 1)]
