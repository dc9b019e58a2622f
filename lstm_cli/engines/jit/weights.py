"""One direction's weights, packed for the kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from lstm_cli.cells import Cell
from lstm_cli.cells.tracing import Stage
from lstm_cli.engines.jit.codegen.ir import Lanes
from lstm_cli.engines.jit.codegen.packing import Order, Packed, Packing
from lstm_cli.engines.jit.codegen.tile import Columns, columns
from lstm_cli.engines.jit.runtime.machine import Machine
from lstm_cli.engines.jit.runtime.memory import Stock, aligned
from lstm_cli.engines.schedule import stages
from lstm_cli.engines.steps import DirectionWeights
from lstm_cli.engines.types import Array


@dataclass(frozen=True, eq=False)
class Plan:
    """How all weights of one shape are packed: what need not be found anew for each of them.

    Attributes
    ----------
    input_size
        D.
    threads
        As many pack together at most.
    pairs
        Whether the matrices are multiplied in bfloat16.
    """

    cell: Cell
    input_size: int
    lanes: Lanes
    machine: Machine
    threads: int
    pairs: bool = False

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The cell's products."""
        return stages(self.cell)

    @cached_property
    def per(self) -> int | None:
        """Vectors a gate in a panel: one where phases must cut their columns alike."""
        return 1 if sum(stage.matrix == "weight_hh" for stage in self.stages) > 1 else None

    @cached_property
    def inputs(self) -> Packing:
        """Of W_ih."""
        return self._gates(len(self.cell.letters), self.input_size)

    @cached_property
    def products(self) -> tuple[Packing, ...]:
        """Of the matrix of every stage."""
        return tuple(self._stage(stage) for stage in self.stages)

    @cached_property
    def units(self) -> Columns:
        """The columns of the H units."""
        return columns(self.cell.hidden_size, 1, self.lanes, 1)

    @cached_property
    def outputs(self) -> Columns:
        """The columns of the P features of h."""
        return columns(self.cell.output_size, 1, self.lanes, 1)

    def packing(self, cut: Columns, order: Order) -> Packing:
        """Of a matrix, for products in floating point of its own."""
        return Packing(cut, order, self.machine, self.threads)

    def _rows(self, cut: Columns, K: int) -> Packing:
        """Of a matrix (gates * size, K), for the forward step."""
        gates, size = cut.split.gates, cut.size
        if self.pairs:
            cut, K = replace(cut, split=cut.split.paired), -(-K // 2)
        return self.packing(cut, Order.of(gates, size, K))

    def _stage(self, stage: Stage) -> Packing:
        H, P = self.cell.hidden_size, self.cell.output_size
        if stage.matrix == "weight_hr":
            return self._rows(columns(P, 1, self.lanes), H)
        return self._gates(len(stage.gates), P)

    def _gates(self, gates: int, K: int) -> Packing:
        H = self.cell.hidden_size
        return self._rows(columns(H, gates, self.lanes, self.per), K)


@lru_cache(maxsize=256)
def plan(
    cell: Cell, input_size: int, lanes: Lanes, machine: Machine, threads: int, pairs: bool = False
) -> Plan:
    """The plan for a cell that reads D = `input_size` features."""
    return Plan(cell, input_size, lanes, machine, threads, pairs)


@dataclass(frozen=True, eq=False)
class RecurrentWeights:
    """One direction's weights.

    Attributes
    ----------
    own
        As stored, without gaps.
    stock
        Where the memory of panels comes from.
    """

    plan: Plan
    own: DirectionWeights
    stock: Stock
    kernels: dict[Any, Any] = field(default_factory=dict)

    @property
    def cell(self) -> Cell:
        return self.plan.cell

    @property
    def lanes(self) -> Lanes:
        return self.plan.lanes

    @property
    def cache(self) -> int:
        """Bytes of a core's own second-level cache."""
        return self.plan.machine.cache

    @property
    def pairs(self) -> bool:
        """Whether the matrices are multiplied in bfloat16."""
        return self.plan.pairs

    @property
    def dtype(self) -> Any:
        return self.own.bias.dtype

    @property
    def sizes(self) -> tuple[int, ...]:
        """All sizes that shape a kernel's buffers."""
        return self.cell.hidden_size, self.cell.output_size, self.plan.input_size

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.plan.stages

    @property
    def units(self) -> Columns:
        """The columns of the H units."""
        return self.plan.units

    @property
    def outputs(self) -> Columns:
        """The columns of the P features of h."""
        return self.plan.outputs

    @cached_property
    def inputs(self) -> Packed:
        """W_ih, beginning from its bias."""
        return self.plan.inputs(self.own.weight_ih, self.own.bias, self.stock)

    @cached_property
    def products(self) -> tuple[Packed, ...]:
        """The matrix of every stage."""
        pairs = zip(self.plan.products, self.stages, strict=True)
        return tuple(packing(*self._tensors(stage), self.stock) for packing, stage in pairs)

    @cached_property
    def peepholes(self) -> Array:
        """(gates, stride) flat; one number where the cell has none."""
        stride = self.units.stride
        found = aligned(max(1, len(self.own.peepholes)) * stride, self.dtype)
        found[:] = 0
        for k, vector in enumerate(self.own.peepholes.values()):
            found[k * stride : k * stride + len(vector)] = vector
        return found

    def _tensors(self, stage: Stage) -> tuple[Array, Array | None]:
        """A stage's matrix and bias."""
        if stage.matrix == "weight_hr":
            return np.asarray(self.own.weight_hr), None
        rows, bias = self.own.rows(stage.gates), self.own.bias_hh
        return self.own.weight_hh[rows], None if bias is None else bias[rows]


def recurrent_weights(plan: Plan, tensors: Mapping[str, Array], stock: Stock) -> RecurrentWeights:
    """From tensors by name within the direction, without gaps."""
    return RecurrentWeights(plan, DirectionWeights.of(plan.cell, tensors), stock)
