"""One direction of a recurrent layer backwards, in NumPy: backpropagation through time.

The step is the gradient of the cell's own graph. What does not depend on the step before is
left to the end: the derivatives of all weights are one product each over all steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from lstm_cli.cells import Cell, trace
from lstm_cli.cells.expression import Program
from lstm_cli.cells.gradient import backward
from lstm_cli.cells.tracing import PROJECTED, Stage
from lstm_cli.engines.steps import DirectionWeights, TrainingStep
from lstm_cli.engines.types import Array


@dataclass
class PassTape:
    """What one direction keeps of its forward pass: in its own order, time first."""

    xt: Array  # (T, N, D)
    order: Array | None  # (T, N)
    ended: Array | None  # (T, N, 1)
    steps: list[TrainingStep] = field(default_factory=list)
    states: list[tuple[Array, ...]] = field(default_factory=list)  # before each step, and last


@dataclass(frozen=True)
class PassGradients:
    """Derivatives for one direction: input (T, N, D), tensors by name, initial states."""

    x: Array
    tensors: Mapping[str, Array]
    states: tuple[Array, ...]


@dataclass(frozen=True)
class _Programs:
    """A cell's backward step, ready to compute."""

    states: Program
    stages: tuple[tuple[Stage, Program], ...]


@lru_cache(maxsize=64)
def _programs(cell: Cell) -> _Programs:
    graph = backward(trace(cell))
    stages = tuple((part.stage, Program(part.gradients)) for part in graph.stages)
    return _Programs(Program(graph.states), stages)


class BackwardPass:
    """The steps of one direction from last to first."""

    def __init__(self, cell: Cell, weights: DirectionWeights, tape: PassTape) -> None:
        self.cell, self.weights, self.tape = cell, weights, tape
        self.programs = _programs(cell)
        T, N, _ = tape.xt.shape
        rows = len(weights.bias)
        self.dz = np.zeros((T, N, rows), tape.xt.dtype)  # for the input parts
        self.du = np.zeros((T, N, rows), tape.xt.dtype)  # for the recurrent parts
        self.peepholes = {gate: np.zeros_like(p) for gate, p in weights.peepholes.items()}
        self.projected: list[Array] = [np.empty(0)] * T

    def run(self, d_output: Array | None, d_last: Array | None) -> PassGradients:
        """All steps, then the products over all steps.

        Parameters
        ----------
        d_output
            (T, N, P) derivative for every step's h, in the pass's order, 0 past the ends; None
            if only the last step's output was used.
        d_last
            (N, P) derivative for the last h of each sequence; None for zeros.
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
        return PassGradients(dx.reshape(T, N, -1), self._tensors(), tuple(carry.values()))

    def _step(self, t: int, carry: dict[str, Array]) -> dict[str, Array]:
        """Derivatives for the states before step `t` from those after it."""
        step, ended = self.tape.steps[t], step_ended(self.tape, t)
        seeds = carry if ended is None else {k: _zero(ended, d) for k, d in carry.items()}
        known = step.symbols(dict(zip(self.cell.states, self.tape.states[t], strict=True)))
        known |= {f"d_{name}": d for name, d in seeds.items()}
        adjoints = self.programs.states(known)
        for number, (stage, program) in enumerate(self.programs.stages):
            read = len(self.programs.stages) - 1 - number
            known["d_reads"] = self._stage(t, stage, step, read, adjoints)
            for name, part in program(known).items():
                adjoints[name] = adjoints[name] + part if name in adjoints else part
        for gate, block in self.weights.blocks.items():
            if f"x_{gate}" in adjoints:
                self.dz[t, :, block] = adjoints[f"x_{gate}"]
        for gate, total in self.peepholes.items():
            if f"p_{gate}" in adjoints:
                total += np.sum(adjoints[f"p_{gate}"], axis=0)
        return {
            name: self._before(adjoints.get(f"{name}_prev"), d, ended) for name, d in carry.items()
        }

    @staticmethod
    def _before(adjoint: Array | None, after: Array, ended: Array | None) -> Array:
        """A state's derivative before the step; a sequence that is over passes its own on."""
        new = np.zeros_like(after) if adjoint is None else adjoint
        return new if ended is None else np.where(ended, after, new)

    def _stage(
        self, t: int, stage: Stage, step: TrainingStep, read: int, adjoints: dict[str, Array]
    ) -> Array:
        """The derivative for what a product reads; its own output's is noted for the weights."""
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
        """Derivatives of the stored tensors."""
        T, N, D = self.tape.xt.shape
        dz = self.dz.reshape(T * N, -1)
        found = {"weight_ih": dz.T @ self.tape.xt.reshape(T * N, D)}
        found["weight_hh"] = np.zeros_like(self.weights.weight_hh)
        for k, stage in enumerate(reversed([stage for stage, _ in self.programs.stages])):
            reads = self._reads(k)
            if stage.matrix == "weight_hr":
                flat = np.concatenate(self.projected) if T else np.zeros((0, self.cell.output_size))
                found["weight_hr"] = flat.T @ reads
            else:
                rows = self.weights.rows(stage.gates)
                found["weight_hh"][rows] = self.du[:, :, rows].reshape(T * N, -1).T @ reads
        if self.cell.recurrent_bias:
            found["bias_ih"] = dz.sum(axis=0)
            found["bias_hh"] = self.du.sum(axis=(0, 1))
        else:
            found["bias"] = dz.sum(axis=0)
        if self.peepholes:
            found["peephole"] = np.concatenate(list(self.peepholes.values()))
        return found

    def _reads(self, k: int) -> Array:
        """What the `k`-th product read in all steps: (T * N, features)."""
        if not self.tape.steps:
            return np.zeros((0, self.cell.hidden_size), self.tape.xt.dtype)
        return np.concatenate([step.reads[k] for step in self.tape.steps])


def step_ended(tape: PassTape, t: int) -> Array | None:
    """(N, 1) which sequences are over at step `t`; None if none is."""
    if tape.ended is None or not tape.ended[t].any():
        return None
    return np.asarray(tape.ended[t])


def _zero(ended: Array, d: Array) -> Array:
    return np.where(ended, np.zeros((), d.dtype), d)
