"""Backward pass of one direction: its kernel, then the products over all steps.

`codegen.backward` writes the kernel itself. Start at `BackwardPass.run`.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from lstm_cli.cells.cell import Stage
from lstm_cli.engines.jit.batch import RowGroups
from lstm_cli.engines.jit.codegen import backward
from lstm_cli.engines.jit.codegen.backward import (
    BackwardVariant,
    DerivativeSlots,
    derivative_slots,
    gate_order,
)
from lstm_cli.engines.jit.codegen.matmul import (
    Matmul,
    MatmulKernel,
    MemoryRows,
    matmul_kernel,
    run_matmul,
)
from lstm_cli.engines.jit.codegen.packing import MatrixLayout, PackedMatrix, PanelPacking
from lstm_cli.engines.jit.codegen.tile import split_columns
from lstm_cli.engines.jit.codegen.weight_gradient import (
    WeightGradient,
    run_weight_gradient,
    weight_gradient_kernel,
)
from lstm_cli.engines.jit.forward import ForwardBuffers, ForwardInputs, equations
from lstm_cli.engines.jit.runtime.compiler import load_kernels
from lstm_cli.engines.jit.runtime.machine import Machine
from lstm_cli.engines.jit.runtime.memory import Arguments, Workspace, address
from lstm_cli.engines.jit.runtime.thread_pool import run, syscall_address
from lstm_cli.engines.jit.runtime.worker_ir import shared_phase_words
from lstm_cli.engines.jit.weights import PackingPlan, RecurrentWeights
from lstm_cli.engines.schedule import CellSchedule
from lstm_cli.engines.types import Array


@dataclass(frozen=True, eq=False)
class BackwardPlan:
    """A compiled backward kernel, and the packing of the weights that it multiplies.

    Attributes
    ----------
    address, arguments
        Address of the kernel, and layout of its argument block.
    schedule
        Phases of the cell's step.
    slots
        Slots of the derivatives of pre-activations.
    stages
        Forward stage that each product differentiates.
    products
        Packing of each product's matrix.
    inputs
        Packing of W_ih for the derivatives of x.
    input_kernel
        Matrix product that computes the derivatives of x.
    """

    address: int
    arguments: Arguments
    schedule: CellSchedule
    slots: DerivativeSlots
    stages: tuple[Stage, ...]
    products: tuple[PanelPacking, ...]
    inputs: PanelPacking
    input_kernel: MatmulKernel


@lru_cache(maxsize=256)
def backward_plan(weights: PackingPlan, schedule: CellSchedule) -> BackwardPlan:
    """The kernel for a cell and the shapes of its panels."""
    cell, machine = weights.cell, weights.machine
    slots = derivative_slots(cell, schedule)
    stages = tuple(phase.stage or schedule.phases[0].stage for phase in schedule.backward)
    products = tuple(_stage_packing(weights, slots, stage) for stage in stages)
    splits = tuple(packing.columns.split for packing in products)
    variant = BackwardVariant(weights.vector, splits)
    name = f"backward {equations(cell)} {variant.name} {schedule.name}"
    kernels = load_kernels(name, lambda: backward.build(cell, schedule, variant, machine), machine)
    inputs = _transposed(weights, weights.input_size, slots.inputs, cell.letters, None)
    return BackwardPlan(
        address=kernels["backward"],
        arguments=backward.backward_arguments(len(products)),
        schedule=schedule,
        slots=slots,
        stages=stages,
        products=products,
        inputs=inputs,
        input_kernel=matmul_kernel(inputs.columns.split, machine=machine),
    )


def _stage_packing(weights: PackingPlan, slots: DerivativeSlots, stage: Stage) -> PanelPacking:
    """Packing of a stage's matrix to multiply derivatives."""
    H, P = weights.cell.hidden_size, weights.cell.output_size
    vectors = weights.gate_vectors
    if stage.matrix == "weight_hr":
        columns = split_columns(H, 1, weights.vector, vectors)
        return weights.packing(columns, MatrixLayout.transposed(P, H))
    return _transposed(weights, P, slots.recurrent, stage.gates, vectors or 2)


def _transposed(
    weights: PackingPlan,
    width: int,
    slots: Mapping[str, int],
    gates: tuple[str, ...],
    gate_vectors: int | None,
) -> PanelPacking:
    """Packing of gates' blocks of a matrix (G*H, width), in the order of their slots."""
    letters = weights.cell.letters
    blocks = [letters.index(gate) for gate in gate_order(dict(slots), gates)]
    layout = MatrixLayout.transposed(weights.cell.hidden_size, width, blocks)
    columns = split_columns(width, 1, weights.vector, gate_vectors)
    return weights.packing(columns, layout)


@dataclass(frozen=True, eq=False)
class BackwardKernel:
    """A backward kernel with the packed weights of its products, and W_ih."""

    plan: BackwardPlan
    products: tuple[PackedMatrix, ...]
    inputs: PackedMatrix


def backward_kernel(weights: RecurrentWeights, schedule: CellSchedule) -> BackwardKernel:
    """The kernel, and the transposed weights, packed once for these weights."""
    key = ("backward", schedule)
    kernel = weights.kernels.get(key)
    if kernel is None:
        plan, tensors = backward_plan(weights.plan, schedule), weights.tensors
        matrices = [np.asarray(getattr(tensors, stage.matrix)) for stage in plan.stages]
        products = tuple(
            packing(matrix, None, weights.array_pool)
            for packing, matrix in zip(plan.products, matrices, strict=True)
        )
        inputs = plan.inputs(tensors.weight_ih, None, weights.array_pool)
        kernel = weights.kernels[key] = BackwardKernel(plan, products, inputs)
    return kernel


@dataclass(frozen=True, eq=False)
class BackwardBuffers:
    """Buffers of one direction's backward pass for one kind of batch.

    A step record is one valid step of one sequence. Records have the order of computation.

    Attributes
    ----------
    block
        The kernel's argument block.
    row, sequence, time, earlier_steps
        (records,) row, sequence, time, and number of earlier steps of the sequence in this pass.
    dz
        (records, slots, stride) derivatives of pre-activations.
    dh, dc
        (N, stride) derivatives of the states.
    dh_direct
        (N, stride) part of the derivative of h that comes through no product.
    dp
        (N, gates, stride) derivatives of peepholes by row.
    projected
        (records, stride) derivatives of a projection's results.
    order
        (records,) record numbers in the order of sums over all steps. None: 0, 1, 2, ...
    zeros
        Zeros, in place of derivatives of outputs that no later layer reads.
    first_records, phase_memory
        Arrays whose addresses are in `block`.
    offsets
        Offsets of rows and steps in an array, in numbers, by the array's strides.
    """

    block: Array
    row: Array
    sequence: Array
    time: Array
    earlier_steps: Array
    dz: Array
    dh: Array
    dc: Array
    dh_direct: Array
    dp: Array
    projected: Array
    order: Array | None
    zeros: Array
    first_records: Array
    phase_memory: Array
    offsets: dict[Hashable, Array] = field(default_factory=dict)

    def steps(self, array: Array) -> Array:
        """Offset of each record's step in an array (N, T, size), in numbers: (records,)."""
        sequence, time = (stride // array.itemsize for stride in array.strides[:2])
        key = ("steps", sequence, time)
        if key not in self.offsets:
            places = self.sequence * sequence + self.time * time
            self.offsets[key] = places.astype(np.int64, copy=False)
        return self.offsets[key]

    def operand_rows(self, array: Array) -> Array:
        """Offset of each record's row in states (times, N, stride) before its step, in numbers."""
        time, row = (stride // array.itemsize for stride in array.strides[:2])
        key = ("operand rows", time, row)
        if key not in self.offsets:
            self.offsets[key] = self.earlier_steps * time + self.row * row
        return self.offsets[key]

    def in_sum_order(self, rows: MemoryRows) -> MemoryRows:
        """The rows, one per record, in the order of sums over steps."""
        if self.order is None:
            return rows
        if rows.offsets is None:
            return MemoryRows(rows.base, offsets=self.order * rows.step, owner=rows.owner)
        return MemoryRows(rows.base, offsets=rows.offsets[self.order], owner=rows.owner)

    def row_starts(
        self, rows: RowGroups, row: int, step: int, column: int, *, reverse: bool
    ) -> Array:
        """Offset of each row's first step, in numbers; see `RowGroups.offsets`."""
        key = ("row starts", row, step, column)
        if key not in self.offsets:
            self.offsets[key] = rows.offsets(row, step, column, reverse=reverse)
        return self.offsets[key]


def backward_buffers(
    weights: RecurrentWeights, plan: BackwardPlan, inputs: ForwardInputs, workspace: Workspace
) -> BackwardBuffers:
    """Buffers for the batch; all full batches of one shape share them."""
    rows = inputs.rows
    if rows.order is not None:
        return _buffers(weights, plan, inputs, workspace)
    key = ("backward", plan, weights.sizes, rows, inputs.reverse, inputs.threads)
    buffers: BackwardBuffers | None = workspace.cached(key)
    if buffers is None:
        buffers = workspace.remember(key, _buffers(weights, plan, inputs, workspace))
    return buffers


def _buffers(
    weights: RecurrentWeights, plan: BackwardPlan, inputs: ForwardInputs, workspace: Workspace
) -> BackwardBuffers:
    rows, dtype, threads = inputs.rows, weights.dtype.name, inputs.threads
    row, sequence, time = rows.steps(reverse=inputs.reverse)
    units, outputs, N = weights.units.stride, weights.outputs.stride, rows.count
    gates = len(weights.cell.peephole_gates)
    earlier_steps = time
    if inputs.reverse:
        lengths = rows.T if rows.lengths is None else rows.lengths[row]
        earlier_steps = np.asarray(lengths - 1 - time)
    buffers = BackwardBuffers(
        block=plan.arguments.empty(),
        row=row,
        sequence=sequence,
        time=time,
        earlier_steps=earlier_steps,
        dz=workspace.shaped("dz", (len(row), len(plan.slots.slots), units), dtype),
        dh=workspace.shaped("dh", (N, outputs), dtype),
        dc=workspace.shaped("dc", (N, units), dtype),
        dh_direct=workspace.shaped("direct dh", (N, outputs), dtype),
        dp=workspace.shaped("dp", (N, gates, units), dtype),
        projected=workspace.shaped("projected", (len(row), outputs), dtype),
        order=rows.sum_order(sequence, earlier_steps),
        zeros=workspace.get("zeros", max(4096, outputs), dtype),
        first_records=rows.first_records(),
        phase_memory=workspace.shaped("phases", (shared_phase_words(threads),), "int64"),
    )
    entries = {
        "T": rows.T,
        "groups": rows.groups if rows.thread_owns_groups else 0,
        "step_stride": rows.step_stride,
        "ld": units,
        "ld_h": outputs,
        "h_step": N * outputs,
        "c_step": N * units,
        "slots": len(plan.schedule.slots),
        "d_slots": len(plan.slots.slots),
        "out_size": weights.cell.output_size,
        "limit": rows.largest,
        "active": address(rows.active),
        "starts": address(rows.starts),
        "first_records": address(buffers.first_records),
        "phase_memory": address(buffers.phase_memory),
        "syscall": syscall_address(),
        "dz": address(buffers.dz),
        "dh": address(buffers.dh),
        "dc": address(buffers.dc),
        "dh_direct": address(buffers.dh_direct),
        "dp": address(buffers.dp),
        "projected": address(buffers.projected),
        "rows": address(workspace.get("back rows", threads * rows.largest, "int64")),
        "zeros": address(buffers.zeros),
    }
    for k, (packing, stage) in enumerate(zip(plan.products, plan.stages, strict=True)):
        entries |= {f"K_{k}": packing.K // max(1, len(stage.gates))}
        entries |= {f"panels_{k}": packing.columns.count}
    plan.arguments.put(buffers.block, entries)
    return buffers


@dataclass(frozen=True)
class DirectionGradients:
    """Derivatives of one direction: tensors by name, and initial states (N, size)."""

    tensors: Mapping[str, Array]
    states: tuple[Array, ...]


class BackwardPass:
    """Backward pass of one direction over one batch.

    Parameters
    ----------
    inputs, forward
        Inputs of the forward pass, and the buffers that it filled.
    """

    def __init__(
        self,
        weights: RecurrentWeights,
        kernel: BackwardKernel,
        inputs: ForwardInputs,
        forward: ForwardBuffers,
        workspace: Workspace,
        machine: Machine,
    ) -> None:
        self.weights, self.kernel, self.inputs, self.forward = weights, kernel, inputs, forward
        self.plan, self.rows, self.cell = kernel.plan, inputs.rows, weights.cell
        self.workspace, self.machine = workspace, machine
        self.buffers = backward_buffers(weights, kernel.plan, inputs, workspace)
        self.units, self.records = weights.units.stride, len(self.buffers.row)

    def run(self, d: Array, column: int, dx: Array, add: bool) -> DirectionGradients:
        """Compute all derivatives of this direction.

        Parameters
        ----------
        d
            (N, T, F) derivative of the layer's output, whose columns for this direction begin at
            `column`; or (N, F) derivative of the last step's output.
        dx
            (N, T, D) derivative of x, written at valid steps.
        add
            True: add to `dx` instead of overwriting it.
        """
        self._run_kernel(d, column)
        self._input_gradient(dx, add)
        return DirectionGradients(self._tensor_gradients(), self._state_gradients())

    def _run_kernel(self, d: Array, column: int) -> None:
        """Derivatives of all steps, of states, and of peepholes by row."""
        rows, buffers, forward = self.rows, self.buffers, self.forward
        for sums in (buffers.dh, buffers.dc, buffers.dh_direct, buffers.dp):
            sums.fill(0)
        if d.ndim == 2:
            last = d[:, column : column + self.cell.output_size]
            by_row = last if rows.order is None else last[rows.order]
            buffers.dh[:, : last.shape[1]] = by_row
            d, row, step, column = buffers.zeros, 0, 0, 0
        else:
            row, step = (stride // d.itemsize for stride in d.strides[:2])
        reverse = self.inputs.reverse
        starts = buffers.row_starts(rows, row, step, column, reverse=reverse)
        entries = {
            "d_step": -step if reverse else step,
            "d": address(d),
            "d_at": address(starts),
            "p": address(self.weights.peepholes),
            "h": address(forward.h),
            "c": address(forward.c),
            "m": address(forward.mask),
            "record": address(forward.record),
        }
        entries |= {f"w_{k}": address(w.panels) for k, w in enumerate(self.kernel.products)}
        self.plan.arguments.put(buffers.block, entries)
        buffers.phase_memory.fill(0)
        run(self.plan.address, address(buffers.block), self.inputs.threads)

    def _input_gradient(self, dx: Array, add: bool) -> None:
        """Derivatives of x."""
        dz, slots = self.buffers.dz, self.plan.slots.inputs
        step = dz.shape[1] * self.units
        first = address(dz) + min(slots.values()) * self.units * dz.itemsize
        product = Matmul(
            self.records,
            MemoryRows(first, step, owner=dz),
            self.kernel.inputs,
            MemoryRows.of(dx, self.buffers.steps(dx)),
            times=len(slots),
            skip=self.units,
            add=add,
        )
        run_matmul(self.plan.input_kernel, product, self.inputs.threads)

    def _tensor_gradients(self) -> dict[str, Array]:
        """Derivatives of the stored tensors."""
        cell, slots, tensors = self.cell, self.plan.slots, self.weights.tensors
        like = self.weights.array_pool.like
        x_rows = MemoryRows.of(self.inputs.x, self.buffers.steps(self.inputs.x))
        bias = like(tensors.bias)
        gradients = {"weight_ih": like(tensors.weight_ih)}
        places = [slots.inputs[gate] for gate in cell.letters]
        self._gate_gradient(gradients["weight_ih"], places, x_rows, bias)
        gradients["weight_hh"] = like(tensors.weight_hh)
        bias_hh = like(bias) if cell.recurrent_bias else None
        for k, phase in enumerate(self.plan.schedule.phases):
            if phase.projects:
                gradients["weight_hr"] = like(np.asarray(tensors.weight_hr))
                self._projection_gradient(gradients["weight_hr"], self._operand_rows(k))
                continue
            block = tensors.rows(phase.stage.gates)
            places = [slots.recurrent[gate] for gate in phase.stage.gates]
            part = None if bias_hh is None else bias_hh[block]
            self._gate_gradient(gradients["weight_hh"][block], places, self._operand_rows(k), part)
        if bias_hh is None:
            gradients["bias"] = bias
        else:
            gradients |= {"bias_ih": bias, "bias_hh": bias_hh}
        if tensors.peepholes:
            by_sequence = self._by_sequence(self.buffers.dp)
            gradients["peephole"] = by_sequence.sum(axis=0)[:, : cell.hidden_size].ravel()
        return gradients

    def _gate_gradient(
        self, out: Array, slots: list[int], a: MemoryRows, bias: Array | None
    ) -> None:
        kernel = weight_gradient_kernel(out.shape[1], self.weights.vector.element, self.machine)
        dz = MemoryRows(address(self.buffers.dz), self.buffers.dz.shape[1] * self.units)
        gates = np.array(slots, np.int64) * self.units
        gradient = self._sum_over_steps(dz, gates, self.cell.hidden_size, a, out, bias)
        run_weight_gradient(kernel, gradient, self.workspace, self.inputs.threads)

    def _projection_gradient(self, out: Array, a: MemoryRows) -> None:
        kernel = weight_gradient_kernel(out.shape[1], self.weights.vector.element, self.machine)
        gates = np.zeros(1, np.int64)
        dz, P = MemoryRows.of(self.buffers.projected), self.cell.output_size
        gradient = self._sum_over_steps(dz, gates, P, a, out)
        run_weight_gradient(kernel, gradient, self.workspace, self.inputs.threads)

    def _sum_over_steps(
        self,
        dz: MemoryRows,
        gates: Array,
        units: int,
        a: MemoryRows,
        out: Array,
        bias: Array | None = None,
    ) -> WeightGradient:
        """A product over all steps, in an order that does not depend on groups."""
        dz, a = self.buffers.in_sum_order(dz), self.buffers.in_sum_order(a)
        return WeightGradient(self.records, dz, gates, units, a, out, bias)

    def _operand_rows(self, k: int) -> MemoryRows:
        """Rows that product `k` of the forward step multiplied, one per record."""
        forward = self.forward
        if k == 0:
            buffer = forward.h if forward.masked is None else forward.masked
            return MemoryRows.of(buffer, self.buffers.operand_rows(buffer))
        record = np.asarray(forward.record)
        slot = self.plan.schedule.reads[k - 1]
        base = address(record) + slot * self.units * record.itemsize
        return MemoryRows(base, record.shape[1] * self.units, owner=record)

    def _state_gradients(self) -> tuple[Array, ...]:
        buffers = zip((self.buffers.dh, self.buffers.dc), self.cell.state_sizes, strict=False)
        return tuple(self._by_sequence(buffer[:, :size]) for buffer, size in buffers)

    def _by_sequence(self, values: Array) -> Array:
        """A copy of values by row, in the caller's order of sequences."""
        copy = np.empty(values.shape, values.dtype)
        copy[slice(None) if self.rows.order is None else self.rows.order] = values
        return copy
