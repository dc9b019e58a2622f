"""What every cell is: gates, states, parameters, and one step written as equations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from lstm_cli.cells.activations import SIGMOID, TANH, Activation
from lstm_cli.cells.expression import Value, clip


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
        What one gate's part of it is, in words.
    formula, shape
        The shape in letters, such as ``(4H, D)``, and in numbers.
    blocks
        Gate letters stacked along the first axis, in stored order; empty if not by gate.
    symbol
        The letter of one gate's block in the equations: ``W``, ``U``, ``b`` or ``p``.
    """

    name: str
    role: str
    formula: str
    shape: tuple[int, ...]
    blocks: tuple[str, ...] = ()
    symbol: str = ""


class Step(Protocol):
    """What an engine, or the tracer, hands to a cell for one time step."""

    @property
    def x(self) -> Mapping[str, Value]:
        """Input part of each gate's pre-activation, W x + b, by gate letter, each (N, H)."""

    @property
    def p(self) -> Mapping[str, Value]:
        """Per-unit vectors (peepholes), by gate letter, each (H,)."""

    def recurrent(self, vector: Value, gates: tuple[str, ...]) -> Mapping[str, Value]:
        """Recurrent part of the gates' pre-activations, U `vector` (+ its bias, if it has one)."""

    def project(self, vector: Value) -> Value:
        """W_hr `vector`: the projection of an unprojected output (N, H) to (N, P)."""

    def record(self, gate: str, value: Value) -> Value:
        """Note a finished gate and hand it back."""

    def select(self, new: tuple[Value, ...], old: tuple[Value, ...]) -> tuple[Value, ...]:
        """The states after this step: `new`, or `old` for a sequence that has ended."""


@dataclass(frozen=True, kw_only=True)
class Cell(ABC):
    """A recurrent cell. Subclasses are its equations; options are fields.

    Attributes
    ----------
    hidden_size
        Units H.
    recurrent_activation, activation
        Of the gates, and of the candidate.
    clip
        Pre-activations are limited to [-clip, clip]; None leaves them alone.
    bias
        False: no biases are stored. The equations are those of biases that are 0.
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
        """Features of h."""
        return self.hidden_size

    @property
    def letters(self) -> tuple[str, ...]:
        """Gate letters in stored order."""
        return tuple(gate.letter for gate in self.gates)

    @property
    def recurrent_bias(self) -> bool:
        """Whether the recurrent product takes a bias of its own (``bias_hh``)."""
        return False

    @property
    def bias_names(self) -> tuple[str, ...]:
        """Names of the biases that the equations have, whether they are stored or 0."""
        return ("bias_ih", "bias_hh") if self.recurrent_bias else ("bias",)

    @property
    def peephole_gates(self) -> tuple[str, ...]:
        """Gates that see the cell state, in stored order."""
        return ()

    @property
    def projects(self) -> bool:
        """Whether h is a projection of the unprojected output."""
        return False

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """Features of each state, in the order of `states`."""
        return (self.output_size, *(self.hidden_size for _ in self.states[1:]))

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """Names of the stored tensors of one direction."""
        return tuple(parameter.name for parameter in self.parameters(1))

    def gate_activation(self, letter: str) -> Activation:
        """The activation that gives this gate its value."""
        return self.activation if letter in ("g", "n") else self.recurrent_activation

    def parameters(self, input_size: int) -> tuple[Parameter, ...]:
        """The stored tensors of one direction that reads D = `input_size` features."""
        G, H, D, P = len(self.gates), self.hidden_size, input_size, self.output_size
        rows = "H" if G == 1 else f"{G}H"
        letters, reads = self.letters, "P" if self.projects else "H"
        found = [
            Parameter("weight_ih", "input matrix", f"({rows}, D)", (G * H, D), letters, "W"),
            Parameter(
                "weight_hh", "recurrent matrix", f"({rows}, {reads})", (G * H, P), letters, "U"
            ),
        ]
        if self.bias:
            roles = {"bias": "bias", "bias_ih": "input bias", "bias_hh": "recurrent bias"}
            found += [
                Parameter(name, roles[name], f"({rows},)", (G * H,), letters, symbol)
                for name, symbol in zip(self.bias_names, ("b", "b_h"), strict=False)
            ]
        return (*found, *self._extra_parameters())

    def _extra_parameters(self) -> tuple[Parameter, ...]:
        return ()

    def pre(self, a: Value) -> Value:
        """A finished pre-activation, clipped if the cell clips."""
        return a if self.clip is None else clip(a, -self.clip, self.clip)

    @abstractmethod
    def cell_forward(self, step: Step, *states: Value) -> tuple[Value, ...]:
        """One step: the new states from the previous ones, in the order of `states`."""

    def forward(
        self, steps: Iterable[Step], states: tuple[Value, ...]
    ) -> Iterator[tuple[Value, ...]]:
        """The sequence: `cell_forward` over `steps`, yielding the states after each."""
        for step in steps:
            states = step.select(self.cell_forward(step, *states), states)
            yield states
