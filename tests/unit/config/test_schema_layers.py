"""Layer specifications: sizes through the layers, cells per direction, activations."""

from __future__ import annotations

from math import prod

from lstm_cli.cells import GRU, LSTM, RNN, Activation
from lstm_cli.config import from_text
from lstm_cli.engines.types import DenseSpec, DropoutSpec, FlattenSpec, LayerSpec, RecurrentSpec


def specs(layers: str, head: str = "input_size: 5") -> tuple[LayerSpec, ...]:
    return from_text(f"model: {{{head}, layers: [{layers}]}}", "a", None).specs


def test_defaults_of_an_lstm() -> None:
    assert specs("{type: lstm, hidden_size: 7}") == (
        RecurrentSpec(
            index=0,
            input_size=5,
            cells=(
                LSTM(
                    hidden_size=7,
                    recurrent_activation=Activation("sigmoid"),
                    activation=Activation("tanh"),
                    cell_activation=Activation("tanh"),
                    clip=None,
                    peepholes=False,
                    projection_size=None,
                    coupled_input_forget=False,
                    use_forget_gate=True,
                ),
            ),
            return_sequences=True,
            stateful=False,
            dropout=0.0,
            recurrent_dropout=0.0,
            forget_bias=1.0,
        ),
    )


def test_every_option_of_an_lstm_reaches_its_cell() -> None:
    (spec,) = specs(
        "{type: lstm, hidden_size: 7, bidirectional: true, return_sequences: false, "
        "stateful: true, clip: 3, recurrent_activation: hard_sigmoid, activation: [relu, elu], "
        "cell_activation: {name: elu, alpha: 2}, dropout: 0.25, recurrent_dropout: 0.125, "
        "peepholes: true, projection_size: 2, coupled_input_forget: true, forget_bias: -0.5}"
    )
    assert isinstance(spec, RecurrentSpec)
    forward, reverse = spec.cells
    shared = {
        "hidden_size": 7,
        "clip": 3.0,
        "recurrent_activation": Activation("hard_sigmoid", 0.2, 0.5),
        "cell_activation": Activation("elu", 2.0),
        "peepholes": True,
        "projection_size": 2,
        "coupled_input_forget": True,
        "use_forget_gate": True,
    }
    assert forward == LSTM(activation=Activation("relu"), **shared)
    assert reverse == LSTM(activation=Activation("elu", 1.0), **shared)
    assert not spec.return_sequences
    assert spec.stateful
    assert (spec.dropout, spec.recurrent_dropout, spec.forget_bias) == (0.25, 0.125, -0.5)


def test_an_lstm_without_a_forget_gate() -> None:
    (spec,) = specs("{type: lstm, hidden_size: 2, forget_gate: false}")
    assert isinstance(spec, RecurrentSpec)
    assert spec.cells == (LSTM(hidden_size=2, use_forget_gate=False),)


def test_cell_activation_follows_activation_in_each_direction() -> None:
    (spec,) = specs("{type: lstm, hidden_size: 2, bidirectional: true, activation: [relu, gauss]}")
    assert isinstance(spec, RecurrentSpec)
    names = [cell.cell_activation.name for cell in spec.cells if isinstance(cell, LSTM)]
    assert names == ["relu", "gauss"]


def test_gru_and_rnn() -> None:
    gru, rnn = specs(
        "{type: gru, hidden_size: 3, reset_after: false, clip: 2, recurrent_activation: softsign, "
        "activation: relu}, {type: rnn, hidden_size: 4, clip: 5, activation: linear}"
    )
    assert isinstance(gru, RecurrentSpec)
    assert isinstance(rnn, RecurrentSpec)
    assert gru.cells == (
        GRU(
            hidden_size=3,
            reset_after=False,
            clip=2.0,
            recurrent_activation=Activation("softsign"),
            activation=Activation("relu"),
        ),
    )
    assert rnn.cells == (RNN(hidden_size=4, clip=5.0, activation=Activation("identity")),)
    assert rnn.input_size == 3


def test_sizes_run_through_the_row() -> None:
    sizes = specs(
        "{type: lstm, hidden_size: 7, bidirectional: true}, {type: dropout, rate: 0.5}, "
        "{type: lstm, hidden_size: 6, bidirectional: true, projection_size: 4}, "
        "{type: dense, units: 9, activation: relu}, {type: flatten}, "
        "{type: dense, units: 2, activation: softmax}",
        head="input_size: 5, steps: 11",
    )
    assert [(s.input_size, s.output_size) for s in sizes] == [
        (5, 14),
        (14, 14),
        (14, 8),
        (8, 9),
        (9, 99),
        (99, 2),
    ]
    assert [s.index for s in sizes] == [0, 1, 2, 3, 4, 5]
    assert sizes[1] == DropoutSpec(1, 14, 0.5)
    assert sizes[3] == DenseSpec(3, 8, 9, Activation("relu"))
    assert sizes[4] == FlattenSpec(4, 9, 11)
    assert sizes[5] == DenseSpec(5, 99, 2, None)


def test_softmax_may_be_written_as_a_mapping() -> None:
    (spec,) = specs("{type: dense, units: 2, activation: {name: softmax}}")
    assert spec == DenseSpec(0, 5, 2, None)


def test_a_dense_layer_is_linear_by_default() -> None:
    assert specs("{type: dense, units: 2}") == (DenseSpec(0, 5, 2, Activation("identity")),)


def test_parameters_of_the_japanese_vowels_network() -> None:
    shapes = specs(
        "{type: lstm, hidden_size: 100, return_sequences: false}, "
        "{type: dense, units: 9, activation: softmax}",
        head="input_size: 12",
    )
    assert sum(prod(p.shape) for s in shapes for p in s.parameters().values()) == 46_109
