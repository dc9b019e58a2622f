"""Packed weights of one direction of a recurrent layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from lstm_cli.cells import Cell
from lstm_cli.cells.cell import Stage
from lstm_cli.engines.jit.codegen.ir import VectorType
from lstm_cli.engines.jit.codegen.packing import MatrixLayout, PackedMatrix, PanelPacking
from lstm_cli.engines.jit.codegen.tile import Columns, split_columns
from lstm_cli.engines.jit.runtime.machine import Machine
from lstm_cli.engines.jit.runtime.memory import ArrayPool, aligned
from lstm_cli.engines.reference.weights import DirectionWeights
from lstm_cli.engines.schedule import stages
from lstm_cli.engines.types import Array


@dataclass(frozen=True, eq=False)
class PackingPlan:
    """Packing of all matrices of a cell, shared by all weights of the same shape.

    Attributes
    ----------
    input_size
        Number of input features D.
    vector
        Full vector of this machine in the layer's dtype.
    threads
        Largest number of threads that pack one matrix.
    bf16
        True: matrices are multiplied in bfloat16.
    """

    cell: Cell
    input_size: int
    vector: VectorType
    machine: Machine
    threads: int
    bf16: bool = False

    @cached_property
    def stages(self) -> tuple[Stage, ...]:
        """The matrix products of one step, in order."""
        return stages(self.cell)

    @cached_property
    def gate_vectors(self) -> int | None:
        """Number of vectors per gate in a panel; None: the default of `split_columns`.

        A cell with several products of W_hh needs 1, so that all its phases have the same panels.
        """
        return 1 if sum(stage.matrix == "weight_hh" for stage in self.stages) > 1 else None

    @cached_property
    def inputs(self) -> PanelPacking:
        """Packing of W_ih (G*H, D)."""
        return self._gates(len(self.cell.letters), self.input_size)

    @cached_property
    def products(self) -> tuple[PanelPacking, ...]:
        """Packing of each stage's matrix."""
        return tuple(self._stage(stage) for stage in self.stages)

    @cached_property
    def units(self) -> Columns:
        """Columns of the H units."""
        return split_columns(self.cell.hidden_size, 1, self.vector, 1)

    @cached_property
    def outputs(self) -> Columns:
        """Columns of the P features of h."""
        return split_columns(self.cell.output_size, 1, self.vector, 1)

    def packing(self, columns: Columns, layout: MatrixLayout) -> PanelPacking:
        """Packing of a matrix in its own dtype, never in bfloat16."""
        return PanelPacking(columns, layout, self.machine, self.threads)

    def _rows(self, columns: Columns, K: int) -> PanelPacking:
        """Packing of a matrix (gates * size, K) for the forward step."""
        gates, size = columns.split.gates, columns.size
        if self.bf16:
            columns, K = replace(columns, split=columns.split.with_bf16), -(-K // 2)
        return self.packing(columns, MatrixLayout.of(gates, size, K))

    def _stage(self, stage: Stage) -> PanelPacking:
        H, P = self.cell.hidden_size, self.cell.output_size
        if stage.matrix == "weight_hr":
            return self._rows(split_columns(P, 1, self.vector), H)
        return self._gates(len(stage.gates), P)

    def _gates(self, gates: int, K: int) -> PanelPacking:
        H = self.cell.hidden_size
        return self._rows(split_columns(H, gates, self.vector, self.gate_vectors), K)


@lru_cache(maxsize=256)
def packing_plan(
    cell: Cell,
    input_size: int,
    vector: VectorType,
    machine: Machine,
    threads: int,
    bf16: bool = False,
) -> PackingPlan:
    """The cached plan for a cell that reads D = `input_size` features."""
    return PackingPlan(cell, input_size, vector, machine, threads, bf16)


@dataclass(frozen=True, eq=False)
class RecurrentWeights:
    """Weights of one direction, packed at first use.

    Attributes
    ----------
    tensors
        The stored tensors, contiguous.
    array_pool
        Source of the memory for panels.
    kernels
        Kernels bound to these weights, by schedule.
    """

    plan: PackingPlan
    tensors: DirectionWeights
    array_pool: ArrayPool
    kernels: dict[Any, Any] = field(default_factory=dict)

    @property
    def cell(self) -> Cell:
        return self.plan.cell

    @property
    def vector(self) -> VectorType:
        return self.plan.vector

    @property
    def cache(self) -> int:
        """Bytes of a core's second-level cache."""
        return self.plan.machine.cache

    @property
    def bf16(self) -> bool:
        """True if matrices are multiplied in bfloat16."""
        return self.plan.bf16

    @property
    def dtype(self) -> Any:
        return self.tensors.bias.dtype

    @property
    def sizes(self) -> tuple[int, int, int]:
        """H, P and D: the sizes that shape a kernel's buffers."""
        return self.cell.hidden_size, self.cell.output_size, self.plan.input_size

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.plan.stages

    @property
    def units(self) -> Columns:
        """Columns of the H units."""
        return self.plan.units

    @property
    def outputs(self) -> Columns:
        """Columns of the P features of h."""
        return self.plan.outputs

    @cached_property
    def inputs(self) -> PackedMatrix:
        """W_ih; its sums start from the bias."""
        return self.plan.inputs(self.tensors.weight_ih, self.tensors.bias, self.array_pool)

    @cached_property
    def products(self) -> tuple[PackedMatrix, ...]:
        """Each stage's matrix."""
        packed = []
        for packing, stage in zip(self.plan.products, self.stages, strict=True):
            matrix, bias = self._stage_tensors(stage)
            packed.append(packing(matrix, bias, self.array_pool))
        return tuple(packed)

    @cached_property
    def peepholes(self) -> Array:
        """Peephole vectors, flat (gates * stride,); a row of zeros for a cell without them."""
        stride = self.units.stride
        flat = aligned(max(1, len(self.tensors.peepholes)) * stride, self.dtype)
        flat[:] = 0
        for k, values in enumerate(self.tensors.peepholes.values()):
            flat[k * stride : k * stride + len(values)] = values
        return flat

    def _stage_tensors(self, stage: Stage) -> tuple[Array, Array | None]:
        if stage.matrix == "weight_hr":
            return np.asarray(self.tensors.weight_hr), None
        rows, bias = self.tensors.rows(stage.gates), self.tensors.bias_hh
        return self.tensors.weight_hh[rows], None if bias is None else bias[rows]


def recurrent_weights(
    plan: PackingPlan, tensors: Mapping[str, Array], array_pool: ArrayPool
) -> RecurrentWeights:
    """Weights from contiguous tensors by name within the direction."""
    return RecurrentWeights(plan, DirectionWeights.from_tensors(plan.cell, tensors), array_pool)
