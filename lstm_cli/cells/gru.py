"""The gated recurrent unit, with both conventions of the reset gate.

Cho et al. 2014 (reset before the product); cuDNN, PyTorch and Keras 2+ (reset after it).
"""

from __future__ import annotations

from dataclasses import dataclass

from lstm_cli.cells.cell import Cell, Gate, Step
from lstm_cli.cells.expression import Value


@dataclass(frozen=True, kw_only=True)
class GRU(Cell):
    """Gated recurrent unit: h = (1 - z) n + z h_prev.

    Attributes
    ----------
    reset_after
        The reset gate scales U_n h_prev + b_hn (True), or h_prev before its product (False).
    """

    reset_after: bool = True

    kind = "gru"
    gates = (
        Gate("r", "reset", "reset_gate"),
        Gate("z", "update", "update_gate"),
        Gate("n", "candidate", "candidate_value"),
    )

    @property
    def recurrent_bias(self) -> bool:
        return True

    def reset_gate(self, step: Step, a: Value) -> Value:
        """Share of the past that the candidate reads: r = σ(W_r x + b_ir + U_r h_prev + b_hr)."""
        return step.record("r", self.recurrent_activation(self.pre(a)))

    def update_gate(self, step: Step, a: Value) -> Value:
        """Share of the past that stays: z = σ(W_z x + b_iz + U_z h_prev + b_hz)."""
        return step.record("z", self.recurrent_activation(self.pre(a)))

    def candidate_value(self, step: Step, a: Value) -> Value:
        """Candidate for h: n = tanh(W_n x + b_in + r (U_n h_prev + b_hn)).

        Without `reset_after`, the last term is U_n (r h_prev) + b_hn.
        """
        return step.record("n", self.activation(self.pre(a)))

    def cell_forward(self, step: Step, *states: Value) -> tuple[Value, ...]:
        """One step: h = (1 - z) n + z h_prev."""
        (h_prev,) = states
        x = step.x
        u = step.recurrent(h_prev, self.letters if self.reset_after else ("r", "z"))
        r = self.reset_gate(step, x["r"] + u["r"])
        z = self.update_gate(step, x["z"] + u["z"])
        if self.reset_after:
            u_n = r * u["n"]
        else:
            u_n = step.recurrent(r * h_prev, ("n",))["n"]
        n = self.candidate_value(step, x["n"] + u_n)
        return ((1.0 - z) * n + z * h_prev,)
