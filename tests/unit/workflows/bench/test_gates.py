"""Costs of a layer by gate, against the parts that its cell has."""

import pytest

from lstm_cli.cells import GRU, LSTM, RNN, Activation
from lstm_cli.engines.types import DenseSpec, DropoutSpec, RecurrentSpec
from lstm_cli.errors import DeviceError
from lstm_cli.workflows.bench import GridSize, by_gate, gates

SIZE = GridSize(hidden=5, batch=3, steps=4, features=2)


def rows(*layers):
    return by_gate(layers, SIZE, threads=1)


def test_every_gate_of_an_lstm_has_its_two_products_and_its_function():
    costs = rows(RecurrentSpec(0, 2, (LSTM(hidden_size=5),)))
    parts = [(c.gate, c.name, c.part) for c in costs]
    names = {"i": "input", "f": "forget", "g": "candidate", "o": "output"}
    assert parts == [
        *((g, n, part) for g, n in names.items() for part in ("W x", "U h", "function")),
        ("", "", "states"),
        ("", "", "rest"),
    ]


def test_shares_are_parts_of_the_whole_pass():
    costs = rows(RecurrentSpec(0, 2, (GRU(hidden_size=5),) * 2), DenseSpec(1, 10, 3, None))
    assert sum(c.share for c in costs) == pytest.approx(1.0)
    whole = sum(c.seconds for c in costs)
    assert all(c.share == pytest.approx(c.seconds / whole) for c in costs)
    assert all(c.seconds > 0 for c in costs if c.gate)


def test_what_belongs_to_no_part_is_the_rest():
    seconds = {"input projection": 8.0, "recurrence": 32.0, "states": 3.0}
    seconds |= {"h input": 7.0, "h recurrent": 11.0, "h function": 13.0}
    costs = dict(gates._layer_costs(RecurrentSpec(0, 2, (RNN(hidden_size=5),)), seconds))
    assert costs["", "", "rest"] == 40 - 34
    assert costs["h", "hidden", "U h"] == 11


def test_layers_follow_one_another():
    costs = rows(
        RecurrentSpec(0, 2, (RNN(hidden_size=5),)),
        DropoutSpec(1, 5, 0.5),
        DenseSpec(2, 5, 3, Activation("relu")),
    )
    assert [(c.layer, c.gate, c.part) for c in costs] == [
        (0, "h", "W x"),
        (0, "h", "U h"),
        (0, "h", "function"),
        (0, "", "states"),
        (0, "", "rest"),
        (2, "", "product"),
    ]


def test_a_gate_that_is_not_used_has_no_function():
    costs = rows(RecurrentSpec(0, 2, (LSTM(hidden_size=5, use_forget_gate=False),)))
    assert ("f", "function") not in [(c.gate, c.part) for c in costs]


def test_the_pass_of_median_length_is_shown(monkeypatch):
    layer = RecurrentSpec(0, 2, (RNN(hidden_size=5),))
    passes = iter([9.0, 1.0, 3.0, 7.0, 5.0])

    def costs(net, seconds):
        first = next(passes)
        return {(0, "h", "hidden", "W x"): first, (0, "", "", "rest"): first}

    monkeypatch.setattr(gates, "_costs", costs)
    assert [(c.seconds, c.share) for c in rows(layer)] == [(5.0, 0.5), (5.0, 0.5)]


def test_a_dtype_the_reference_lacks_is_refused():
    with pytest.raises(DeviceError, match="bfloat16"):
        by_gate((RecurrentSpec(0, 2, (RNN(hidden_size=5),)),), SIZE, dtype="bfloat16")
