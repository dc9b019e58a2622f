"""The LSTM cell: two states, eight weight matrices, four biases, one function per gate.

Hochreiter and Schmidhuber 1997; forget gate, Gers et al. 2000; peepholes, Gers et al. 2002;
projection, Sak et al. 2014; coupled gates, Greff et al. 2017.
"""

from __future__ import annotations

from dataclasses import dataclass

from lstm_cli.cells.activations import TANH, Activation
from lstm_cli.cells.cell import Cell, Gate, Parameter, Step
from lstm_cli.cells.expression import Value


@dataclass(frozen=True, kw_only=True)
class LSTM(Cell):
    """Long short-term memory with states h (output) and c (cell).

    Attributes
    ----------
    cell_activation
        Activation of c in the output h = o * act(c).
    peepholes
        Gates i and f also read the old c, and o the new c, each through a vector.
    projection_size
        Number of features P of the projected output h = W_hr (o * act(c)). None: h has H features.
    coupled_input_forget
        True: the forget gate is f = 1 - i.
    use_forget_gate
        False: the LSTM of 1997, which has no forget gate: c = c_prev + i g.
    """

    cell_activation: Activation = TANH
    peepholes: bool = False
    projection_size: int | None = None
    coupled_input_forget: bool = False
    use_forget_gate: bool = True

    kind = "lstm"
    states = ("h", "c")
    gates = (
        Gate("i", "input", "input_gate"),
        Gate("f", "forget", "forget_gate"),
        Gate("g", "candidate", "candidate_value"),
        Gate("o", "output", "output_gate"),
    )

    @property
    def output_size(self) -> int:
        return self.projection_size or self.hidden_size

    @property
    def projects(self) -> bool:
        return self.projection_size is not None

    @property
    def peephole_gates(self) -> tuple[str, ...]:
        return ("i", "f", "o") if self.peepholes else ()

    def _extra_parameters(self) -> tuple[Parameter, ...]:
        H, P = self.hidden_size, self.projection_size
        tensors = []
        if self.peepholes:
            tensors.append(
                Parameter("peephole", "peephole", "(3H,)", (3 * H,), self.peephole_gates, "p")
            )
        if P is not None:
            tensors.append(Parameter("weight_hr", "projection", "(P, H)", (P, H), (), "W_hr"))
        return tuple(tensors)

    def input_gate(self, step: Step, a: Value, c_prev: Value) -> Value:
        """Share of the candidate that enters c: i = σ(W_i x + U_i h_prev + b_i [+ p_i c_prev])."""
        if self.peepholes:
            a = a + step.p["i"] * c_prev
        return step.record("i", self.recurrent_activation(self.pre(a)))

    def forget_gate(self, step: Step, a: Value, c_prev: Value, i: Value) -> Value:
        """Share of c that stays: f = σ(W_f x + U_f h_prev + b_f [+ p_f c_prev]), or f = 1 - i.

        None for a cell without forget gate, whose share is 1.
        """
        if not self.use_forget_gate:
            return None
        if self.coupled_input_forget:
            return step.record("f", 1.0 - i)
        if self.peepholes:
            a = a + step.p["f"] * c_prev
        return step.record("f", self.recurrent_activation(self.pre(a)))

    def candidate_value(self, step: Step, a: Value) -> Value:
        """Candidate for c: g = tanh(W_g x + U_g h_prev + b_g)."""
        return step.record("g", self.activation(self.pre(a)))

    def output_gate(self, step: Step, a: Value, c: Value) -> Value:
        """Share of c in the output: o = σ(W_o x + U_o h_prev + b_o [+ p_o c])."""
        if self.peepholes:
            a = a + step.p["o"] * c
        return step.record("o", self.recurrent_activation(self.pre(a)))

    def cell_forward(self, step: Step, *states: Value) -> tuple[Value, ...]:
        """One step: c = f c_prev + i g; h = o tanh(c), projected if the cell projects."""
        h_prev, c_prev = states
        x, u = step.x, step.recurrent(h_prev, self.letters)
        i = self.input_gate(step, x["i"] + u["i"], c_prev)
        f = self.forget_gate(step, x["f"] + u["f"], c_prev, i)
        g = self.candidate_value(step, x["g"] + u["g"])
        c = i * g + (c_prev if f is None else f * c_prev)
        o = self.output_gate(step, x["o"] + u["o"], c)
        h = o * self.cell_activation(c)
        return (step.project(h) if self.projects else h), c
