"""Parameters, gates and states of cells, for every option that changes them."""

from __future__ import annotations

from typing import Any

import pytest

from lstm_cli.cells import CELLS, GRU, LSTM, RNN, Activation, Cell, trace

SHAPES: list[tuple[Cell, dict[str, tuple[str, tuple[int, ...]]]]] = [
    (
        LSTM(hidden_size=5),
        {
            "weight_ih": ("(4H, D)", (20, 3)),
            "weight_hh": ("(4H, H)", (20, 5)),
            "bias": ("(4H,)", (20,)),
        },
    ),
    (
        LSTM(hidden_size=5, peepholes=True, projection_size=2),
        {
            "weight_ih": ("(4H, D)", (20, 3)),
            "weight_hh": ("(4H, P)", (20, 2)),
            "bias": ("(4H,)", (20,)),
            "peephole": ("(3H,)", (15,)),
            "weight_hr": ("(P, H)", (2, 5)),
        },
    ),
    (
        LSTM(hidden_size=5, coupled_input_forget=True, use_forget_gate=False),
        {
            "weight_ih": ("(4H, D)", (20, 3)),
            "weight_hh": ("(4H, H)", (20, 5)),
            "bias": ("(4H,)", (20,)),
        },
    ),
    (
        GRU(hidden_size=5),
        {
            "weight_ih": ("(3H, D)", (15, 3)),
            "weight_hh": ("(3H, H)", (15, 5)),
            "bias_ih": ("(3H,)", (15,)),
            "bias_hh": ("(3H,)", (15,)),
        },
    ),
    (
        RNN(hidden_size=5),
        {"weight_ih": ("(H, D)", (5, 3)), "weight_hh": ("(H, H)", (5, 5)), "bias": ("(H,)", (5,))},
    ),
]


@pytest.mark.parametrize(("cell", "expected"), SHAPES, ids=lambda value: getattr(value, "kind", ""))
def test_parameters(cell: Cell, expected: dict[str, Any]) -> None:
    actual = {p.name: (p.formula, p.shape) for p in cell.parameters(3)}
    assert actual == expected
    assert cell.tensor_names == tuple(expected)


def test_native_order_of_gates() -> None:
    assert {kind: "".join(cell(hidden_size=1).letters) for kind, cell in CELLS.items()} == {
        "lstm": "ifgo",
        "gru": "rzn",
        "rnn": "h",
    }
    assert LSTM(hidden_size=1, peepholes=True).peephole_gates == ("i", "f", "o")


def test_every_gate_names_a_method() -> None:
    for cell in CELLS.values():
        for gate in cell.gates:
            assert callable(getattr(cell, gate.method))
            assert getattr(cell, gate.method).__doc__


@pytest.mark.parametrize(
    ("cell", "sizes"),
    [
        (LSTM(hidden_size=5), (5, 5)),
        (LSTM(hidden_size=5, projection_size=2), (2, 5)),
        (GRU(hidden_size=5), (5,)),
        (RNN(hidden_size=5), (5,)),
    ],
    ids=["lstm", "projected", "gru", "rnn"],
)
def test_state_sizes(cell: Cell, sizes: tuple[int, ...]) -> None:
    assert cell.state_sizes == sizes
    assert cell.output_size == sizes[0]
    assert len(cell.states) == len(sizes)


def test_gate_activations() -> None:
    sigma, candidate = Activation("hard_sigmoid"), Activation("relu")
    lstm = LSTM(hidden_size=1, recurrent_activation=sigma, activation=candidate)
    assert [lstm.gate_activation(gate) for gate in "ifgo"] == [sigma, sigma, candidate, sigma]
    gru = GRU(hidden_size=1, recurrent_activation=sigma, activation=candidate)
    assert [gru.gate_activation(gate) for gate in "rzn"] == [sigma, sigma, candidate]
    assert RNN(hidden_size=1, activation=candidate).gate_activation("h") == candidate


@pytest.mark.parametrize(
    ("cell", "stages"),
    [
        (LSTM(hidden_size=5), [("weight_hh", "ifgo")]),
        (LSTM(hidden_size=5, projection_size=2), [("weight_hh", "ifgo"), ("weight_hr", "")]),
        (GRU(hidden_size=5), [("weight_hh", "rzn")]),
        (GRU(hidden_size=5, reset_after=False), [("weight_hh", "rz"), ("weight_hh", "n")]),
        (RNN(hidden_size=5), [("weight_hh", "h")]),
    ],
    ids=["lstm", "projected", "gru", "gru before", "rnn"],
)
def test_stages(cell: Cell, stages: list[tuple[str, str]]) -> None:
    graph = trace(cell)
    assert [(stage.matrix, "".join(stage.gates)) for stage in graph.stages] == stages
    assert repr(graph.stages[0].reads) == "h_prev"


def test_what_the_later_stages_read() -> None:
    before = trace(GRU(hidden_size=5, reset_after=False))
    assert before.stages[1].reads is before.gates["r"] * before.stages[0].reads
    projected = trace(LSTM(hidden_size=5, projection_size=2))
    assert repr(projected.states["h"]) == "projected"
    assert projected.gates["o"] in projected.stages[1].reads.args


def test_options_are_resolved_in_the_graph() -> None:
    assert "f" not in trace(LSTM(hidden_size=5, use_forget_gate=False)).gates
    coupled = trace(LSTM(hidden_size=5, coupled_input_forget=True)).gates
    assert coupled["f"] is 1.0 - coupled["i"]
    assert "clip" not in repr(trace(LSTM(hidden_size=5)).states["h"])
    assert repr(trace(LSTM(hidden_size=5, clip=0.5)).states["c"]).count("clip(") == 3
