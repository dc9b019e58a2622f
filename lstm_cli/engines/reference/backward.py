"""Backpropagation through time for one direction of a recurrent layer, in NumPy.

The backward step is the gradient of the cell's graph (`lstm_cli.cells.gradient`). The derivative
of a weight matrix is a sum over steps. So one product over all steps computes it at the end.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from lstm_cli.cells import Cell, trace
from lstm_cli.cells.cell import PROJECTED, Stage
from lstm_cli.cells.expression import Program
from lstm_cli.cells.gradient import backward
from lstm_cli.engines.reference.step import TrainingStep
from lstm_cli.engines.reference.weights import DirectionWeights
from lstm_cli.engines.types import Array


@dataclass
class DirectionTape:
    """Values of one direction's forward pass, in the order of its steps, time first."""

    xt: Array  # (T, N, D)
    order: Array | None  # (T, N), time indices of a reversed pass
    padding: Array | None  # (T, N, 1), True past a sequence's end
    steps: list[TrainingStep] = field(default_factory=list)
    states: list[tuple[Array, ...]] = field(default_factory=list)  # before each step, and last


@dataclass(frozen=True)
class DirectionGradients:
    """Derivatives of one direction for its input (T, N, D), its tensors and initial states."""

    x: Array
    tensors: Mapping[str, Array]
    states: tuple[Array, ...]


@dataclass(frozen=True)
class _Programs:
    """Compiled expressions of a cell's backward step."""

    states: Program
    stages: tuple[tuple[Stage, Program], ...]


@lru_cache(maxsize=64)
def _programs(cell: Cell) -> _Programs:
    graph = backward(trace(cell))
    stages = tuple((part.stage, Program(part.gradients)) for part in graph.stages)
    return _Programs(Program(graph.states), stages)


class BackwardPass:
    """Backward pass of one direction: its steps from last to first."""

    def __init__(self, cell: Cell, weights: DirectionWeights, tape: DirectionTape) -> None:
        self.cell, self.weights, self.tape = cell, weights, tape
        self.programs = _programs(cell)
        T, N, _ = tape.xt.shape
        rows = len(weights.bias)
        self.dz = np.zeros((T, N, rows), tape.xt.dtype)  # for the input parts
        self.du = np.zeros((T, N, rows), tape.xt.dtype)  # for the recurrent parts
        self.peepholes = {gate: np.zeros_like(p) for gate, p in weights.peepholes.items()}
        self.projected: list[Array] = [np.empty(0)] * T

    def run(self, d_output: Array | None, d_last: Array | None) -> DirectionGradients:
        """Backward pass over all steps, then the products over all steps for the weights.

        Parameters
        ----------
        d_output
            (T, N, P) derivative for every step's h, in the pass's order, with padding of 0. None
            if the layer returned its last step alone.
        d_last
            (N, P) derivative for the last h of each sequence. None is zeros.
        """
        T, N, _ = self.tape.xt.shape
        dtype = self.tape.xt.dtype
        carry = {
            name: np.zeros((N, size), dtype)
            for name, size in zip(self.cell.states, self.cell.state_sizes, strict=True)
        }
        if d_last is not None:
            carry["h"] = carry["h"] + d_last
        for t in reversed(range(T)):
            if d_output is not None:
                carry["h"] = carry["h"] + d_output[t]
            carry = self._step(t, carry)
        dx = self.dz.reshape(T * N, -1) @ self.weights.weight_ih
        return DirectionGradients(dx.reshape(T, N, -1), self._tensors(), tuple(carry.values()))

    def _step(self, t: int, carry: dict[str, Array]) -> dict[str, Array]:
        """Derivatives for the states before step `t` from those after it."""
        step, padding = self.tape.steps[t], step_padding(self.tape, t)
        seeds = carry
        if padding is not None:
            seeds = {name: _zero(padding, d) for name, d in carry.items()}
        values = step.symbols(dict(zip(self.cell.states, self.tape.states[t], strict=True)))
        values |= {f"d_{name}": d for name, d in seeds.items()}
        adjoints = self.programs.states(values)
        for number, (stage, program) in enumerate(self.programs.stages):
            read = len(self.programs.stages) - 1 - number
            values["d_reads"] = self._stage(t, stage, step, read, adjoints)
            for name, part in program(values).items():
                adjoints[name] = adjoints[name] + part if name in adjoints else part
        for gate, block in self.weights.blocks.items():
            if f"x_{gate}" in adjoints:
                self.dz[t, :, block] = adjoints[f"x_{gate}"]
        for gate, total in self.peepholes.items():
            if f"p_{gate}" in adjoints:
                total += np.sum(adjoints[f"p_{gate}"], axis=0)
        return {
            name: self._before(adjoints.get(f"{name}_prev"), d, padding)
            for name, d in carry.items()
        }

    @staticmethod
    def _before(adjoint: Array | None, after: Array, padding: Array | None) -> Array:
        """Derivative for a state before the step. In padding it equals that after the step."""
        new = np.zeros_like(after) if adjoint is None else adjoint
        return new if padding is None else np.where(padding, after, new)

    def _stage(
        self, t: int, stage: Stage, step: TrainingStep, read: int, adjoints: dict[str, Array]
    ) -> Array:
        """Derivative for the vector that a product reads. Stores that for its result in `du`."""
        if stage.matrix == "weight_hr":
            d = adjoints.pop(PROJECTED)
            self.projected[t] = d
            return np.asarray(d @ self.weights.weight_hr)
        rows = self.weights.rows(stage.gates)
        d = self.du[t]
        for gate in stage.gates:
            if f"h_{gate}" in adjoints:
                d[:, self.weights.blocks[gate]] = adjoints.pop(f"h_{gate}")
        reads = d[:, rows] @ self.weights.weight_hh[rows]
        return np.asarray(reads if step.mask is None else reads * step.mask)

    def _tensors(self) -> dict[str, Array]:
        """Derivatives for the stored tensors of the direction."""
        T, N, D = self.tape.xt.shape
        dz = self.dz.reshape(T * N, -1)
        tensors = {"weight_ih": dz.T @ self.tape.xt.reshape(T * N, D)}
        tensors["weight_hh"] = np.zeros_like(self.weights.weight_hh)
        for k, stage in enumerate(reversed([stage for stage, _ in self.programs.stages])):
            reads = self._reads(k)
            if stage.matrix == "weight_hr":
                flat = np.concatenate(self.projected) if T else np.zeros((0, self.cell.output_size))
                tensors["weight_hr"] = flat.T @ reads
            else:
                rows = self.weights.rows(stage.gates)
                tensors["weight_hh"][rows] = self.du[:, :, rows].reshape(T * N, -1).T @ reads
        if self.cell.recurrent_bias:
            tensors["bias_ih"] = dz.sum(axis=0)
            tensors["bias_hh"] = self.du.sum(axis=(0, 1))
        else:
            tensors["bias"] = dz.sum(axis=0)
        if self.peepholes:
            tensors["peephole"] = np.concatenate(list(self.peepholes.values()))
        return tensors

    def _reads(self, k: int) -> Array:
        """Vectors that the `k`-th product read in all steps: (T * N, features)."""
        if not self.tape.steps:
            return np.zeros((0, self.cell.hidden_size), self.tape.xt.dtype)
        return np.concatenate([step.reads[k] for step in self.tape.steps])


def step_padding(tape: DirectionTape, t: int) -> Array | None:
    """(N, 1), True for sequences that ended before step `t`. None if all are running."""
    if tape.padding is None or not tape.padding[t].any():
        return None
    return np.asarray(tape.padding[t])


def _zero(padding: Array, d: Array) -> Array:
    return np.where(padding, np.zeros((), d.dtype), d)
