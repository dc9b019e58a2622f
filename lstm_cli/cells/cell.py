"""The base class of cells, and the tracer that turns a cell's equations into a graph.

A `Cell` has gates, states, parameters and one step written as equations. `trace` calls the step
once with symbols. The result is a `CellGraph`, from which engines emit code. A matrix product can
only start when the vector that it reads is known. So a graph is a sequence of stages, one per
product, and then the new states.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from lstm_cli.cells.activations import SIGMOID, TANH, Activation
from lstm_cli.cells.expression import Expression, Value, clip, evaluate, symbol


@dataclass(frozen=True)
class Gate:
    """One gate: its letter in the equations, its name, and the method that computes it."""

    letter: str
    name: str
    method: str


@dataclass(frozen=True)
class Parameter:
    """A stored tensor of a layer.

    Attributes
    ----------
    name
        Name within its layer and direction, such as ``weight_ih``.
    role
        Role of one gate's part, such as ``input matrix``.
    formula, shape
        The shape in letters, such as ``(4H, D)``, and in numbers.
    blocks
        Gate letters stacked along the first axis, in stored order. Empty for other tensors.
    symbol
        Name in the equations of one gate's block: ``W``, ``U``, ``b``, ``b_h``, ``p`` or ``W_hr``.
    """

    name: str
    role: str
    formula: str
    shape: tuple[int, ...]
    blocks: tuple[str, ...] = ()
    symbol: str = ""


class Step(Protocol):
    """Inputs and matrix products of one time step, which an engine or the tracer supplies."""

    @property
    def x(self) -> Mapping[str, Value]:
        """Input part of each gate's pre-activation, W x + b, by gate letter, each (N, H)."""

    @property
    def p(self) -> Mapping[str, Value]:
        """Per-unit vectors (peepholes), by gate letter, each (H,)."""

    def recurrent(self, vector: Value, gates: tuple[str, ...]) -> Mapping[str, Value]:
        """Recurrent parts of the gates' pre-activations, each (N, H).

        They are U `vector`, plus the recurrent bias of a cell that has one.
        """

    def project(self, vector: Value) -> Value:
        """W_hr `vector`: the projection of an unprojected output (N, H) to (N, P)."""

    def record(self, gate: str, value: Value) -> Value:
        """Record the value of a finished gate, and return it."""

    def select(self, new: tuple[Value, ...], old: tuple[Value, ...]) -> tuple[Value, ...]:
        """States after this step: `new`, or `old` for a sequence that has ended."""


@dataclass(frozen=True, kw_only=True)
class Cell(ABC):
    """A recurrent cell. Subclasses contain the equations, and their fields are the options.

    Attributes
    ----------
    hidden_size
        Number of units H.
    recurrent_activation, activation
        Activation of the gates, and of the candidate.
    clip
        Limit of pre-activations to [-clip, clip]. None: no limit.
    bias
        False: no biases are stored, and the equations have biases of 0.
    """

    hidden_size: int
    recurrent_activation: Activation = SIGMOID
    activation: Activation = TANH
    clip: float | None = None
    bias: bool = True

    kind: ClassVar[str]
    gates: ClassVar[tuple[Gate, ...]]
    states: ClassVar[tuple[str, ...]] = ("h",)

    @property
    def output_size(self) -> int:
        """Number of features of h."""
        return self.hidden_size

    @property
    def letters(self) -> tuple[str, ...]:
        """Gate letters in stored order."""
        return tuple(gate.letter for gate in self.gates)

    @property
    def recurrent_bias(self) -> bool:
        """Whether the recurrent product has its own bias (``bias_hh``)."""
        return False

    @property
    def bias_names(self) -> tuple[str, ...]:
        """Names of the biases in the equations, stored or 0."""
        return ("bias_ih", "bias_hh") if self.recurrent_bias else ("bias",)

    @property
    def peephole_gates(self) -> tuple[str, ...]:
        """Gates that read the cell state, in stored order."""
        return ()

    @property
    def projects(self) -> bool:
        """Whether h is a projection of the unprojected output."""
        return False

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """Number of features of each state, in the order of `states`."""
        return (self.output_size, *(self.hidden_size for _ in self.states[1:]))

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Names of the stored tensors of one direction."""
        return tuple(parameter.name for parameter in self.parameters(1))

    def gate_activation(self, letter: str) -> Activation:
        """Activation of the gate with this letter."""
        return self.activation if letter in ("g", "n") else self.recurrent_activation

    def parameters(self, input_size: int) -> tuple[Parameter, ...]:
        """Stored tensors of one direction with D = `input_size` input features."""
        G, H, D, P = len(self.gates), self.hidden_size, input_size, self.output_size
        rows = "H" if G == 1 else f"{G}H"
        letters, reads = self.letters, "P" if self.projects else "H"
        tensors = [
            Parameter("weight_ih", "input matrix", f"({rows}, D)", (G * H, D), letters, "W"),
            Parameter(
                "weight_hh", "recurrent matrix", f"({rows}, {reads})", (G * H, P), letters, "U"
            ),
        ]
        if self.bias:
            roles = {"bias": "bias", "bias_ih": "input bias", "bias_hh": "recurrent bias"}
            tensors += [
                Parameter(name, roles[name], f"({rows},)", (G * H,), letters, symbol)
                for name, symbol in zip(self.bias_names, ("b", "b_h"), strict=False)
            ]
        return (*tensors, *self._extra_parameters())

    def _extra_parameters(self) -> tuple[Parameter, ...]:
        return ()

    def pre(self, a: Value) -> Value:
        """The pre-activation `a`, limited to [-clip, clip] if the cell has a `clip`."""
        return a if self.clip is None else clip(a, -self.clip, self.clip)

    @abstractmethod
    def cell_forward(self, step: Step, *states: Value) -> tuple[Value, ...]:
        """One step: new states from the previous ones, in the order of `states`."""

    def forward(
        self, steps: Iterable[Step], states: tuple[Value, ...]
    ) -> Iterator[tuple[Value, ...]]:
        """Run a sequence: `cell_forward` for each of `steps`. Yields the states after each step."""
        for step in steps:
            states = step.select(self.cell_forward(step, *states), states)
            yield states


# Tracing


PROJECTED = "projected"
"""Symbol of the projected output, W_hr times the unprojected output."""


@dataclass(frozen=True)
class Stage:
    """One matrix product of a step.

    Attributes
    ----------
    matrix
        ``weight_hh`` or ``weight_hr``.
    reads
        Vector that the matrix multiplies, as an expression of symbols known before this stage.
    gates
        Gates whose recurrent parts the product computes, as symbols ``h_<letter>``. Empty for a
        projection, which computes the symbol `PROJECTED`.
    """

    matrix: str
    reads: Expression
    gates: tuple[str, ...] = ()


@dataclass(frozen=True)
class CellGraph:
    """A cell's step as a graph: products in order, then gates and states as expressions.

    The symbols are: ``x_<gate>`` and ``h_<gate>``, the input and recurrent part of a
    pre-activation; ``p_<gate>``, a peephole; ``<state>_prev``; and `PROJECTED`.
    """

    stages: tuple[Stage, ...]
    gates: Mapping[str, Expression]
    states: Mapping[str, Expression]

    def cell_forward(self, step: Step, *states: Value) -> tuple[Value, ...]:
        """One step, evaluated from the graph. The result equals that of the cell's own method."""
        values: dict[str, Value] = {f"x_{k}": v for k, v in step.x.items()}
        values |= {f"p_{k}": v for k, v in step.p.items()}
        values |= {f"{k}_prev": v for k, v in zip(self.states, states, strict=True)}
        for stage in self.stages:
            vector = evaluate({"": stage.reads}, values)[""]
            if stage.matrix == "weight_hr":
                values[PROJECTED] = step.project(vector)
            else:
                parts = step.recurrent(vector, stage.gates)
                values |= {f"h_{gate}": parts[gate] for gate in stage.gates}
        for gate, value in evaluate(self.gates, values).items():
            step.record(gate, value)
        return tuple(evaluate(self.states, values).values())


class _Tracer:
    """A step whose values are symbols. It records the products and gates that the cell requests."""

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
    """The graph of one step of `cell`, with the cell's options."""
    tracer = _Tracer(cell)
    states = cell.cell_forward(tracer, *(symbol(f"{name}_prev") for name in cell.states))
    named = dict(zip(cell.states, states, strict=True))
    return CellGraph(tuple(tracer.stages), tracer.gates, named)
