"""From a cell's equations to a graph that an engine can emit code from.

The cell is called once with symbols. Each matrix product cuts the step: what the product
reads must be known before it, so a cell becomes a sequence of stages followed by the states.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lstm_cli.cells.cell import Cell, Step
from lstm_cli.cells.expression import Expression, Value, evaluate, symbol

PROJECTED = "projected"
"""The symbol that stands for W_hr times the unprojected output."""


@dataclass(frozen=True)
class Stage:
    """One matrix product of a step.

    Attributes
    ----------
    matrix
        ``weight_hh`` or ``weight_hr``.
    reads
        The vector it multiplies, from symbols known before this stage.
    gates
        Gate letters whose recurrent parts it gives, as symbols ``h_<letter>``; none for a
        projection, which gives the symbol `PROJECTED`.
    """

    matrix: str
    reads: Expression
    gates: tuple[str, ...] = ()


@dataclass(frozen=True)
class CellGraph:
    """A cell's step as data: products in order, then gates and states as expressions.

    Symbols: ``x_<gate>`` and ``h_<gate>`` (input and recurrent part of a pre-activation),
    ``p_<gate>`` (peephole), ``<state>_prev``, and `PROJECTED`.
    """

    stages: tuple[Stage, ...]
    gates: Mapping[str, Expression]
    states: Mapping[str, Expression]

    def cell_forward(self, step: Step, *states: Value) -> tuple[Value, ...]:
        """The same step as the cell's own `cell_forward`, evaluated from the graph."""
        known: dict[str, Value] = {f"x_{k}": v for k, v in step.x.items()}
        known |= {f"p_{k}": v for k, v in step.p.items()}
        known |= {f"{k}_prev": v for k, v in zip(self.states, states, strict=True)}
        for stage in self.stages:
            vector = evaluate({"": stage.reads}, known)[""]
            if stage.matrix == "weight_hr":
                known[PROJECTED] = step.project(vector)
            else:
                parts = step.recurrent(vector, stage.gates)
                known |= {f"h_{gate}": parts[gate] for gate in stage.gates}
        for gate, value in evaluate(self.gates, known).items():
            step.record(gate, value)
        return tuple(evaluate(self.states, known).values())


class _Tracer:
    """A step whose values are symbols; it notes products and gates as the cell asks for them."""

    def __init__(self, cell: Cell) -> None:
        self.x = {gate: symbol(f"x_{gate}") for gate in cell.letters}
        self.p = {gate: symbol(f"p_{gate}") for gate in cell.peephole_gates}
        self.stages: list[Stage] = []
        self.gates: dict[str, Expression] = {}

    def recurrent(self, vector: Value, gates: tuple[str, ...]) -> Mapping[str, Value]:
        self.stages.append(Stage("weight_hh", vector, gates))
        return {gate: symbol(f"h_{gate}") for gate in gates}

    def project(self, vector: Value) -> Value:
        self.stages.append(Stage("weight_hr", vector))
        return symbol(PROJECTED)

    def record(self, gate: str, value: Value) -> Value:
        self.gates[gate] = value
        return value

    def select(self, new: tuple[Value, ...], old: tuple[Value, ...]) -> tuple[Value, ...]:
        return new


def trace(cell: Cell) -> CellGraph:
    """The graph of one step of `cell`, its options resolved."""
    tracer = _Tracer(cell)
    states = cell.cell_forward(tracer, *(symbol(f"{name}_prev") for name in cell.states))
    named = dict(zip(cell.states, states, strict=True))
    return CellGraph(tuple(tracer.stages), tracer.gates, named)
