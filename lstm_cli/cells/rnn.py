"""The simple recurrent cell (Elman 1990): h = tanh(W x + U h_prev + b)."""

from __future__ import annotations

from dataclasses import dataclass

from lstm_cli.cells.activations import Activation
from lstm_cli.cells.cell import Cell, Gate, Step
from lstm_cli.cells.expression import Value


@dataclass(frozen=True, kw_only=True)
class RNN(Cell):
    """Simple recurrent cell: one gate, whose value is the output."""

    kind = "rnn"
    gates = (Gate("h", "hidden", "hidden_value"),)

    def gate_activation(self, letter: str) -> Activation:
        return self.activation

    def hidden_value(self, step: Step, a: Value) -> Value:
        """Value of the only gate, h = tanh(W x + U h_prev + b)."""
        return step.record("h", self.activation(self.pre(a)))

    def cell_forward(self, step: Step, *states: Value) -> tuple[Value, ...]:
        """One step: h = tanh(W x + U h_prev + b)."""
        (h_prev,) = states
        u = step.recurrent(h_prev, self.letters)
        return (self.hidden_value(step, step.x["h"] + u["h"]),)
