"""One direction of a recurrent layer backwards: its kernel, then the products over all steps."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from lstm_cli.cells.tracing import Stage
from lstm_cli.engines.jit.batch import Rows
from lstm_cli.engines.jit.codegen import backward
from lstm_cli.engines.jit.codegen.backward import Derivatives, Shape, derivatives, gate_order
from lstm_cli.engines.jit.codegen.matmul import (
    Lines,
    Product,
    ProductKernel,
    product_kernel,
    run_product,
)
from lstm_cli.engines.jit.codegen.packing import Order, Packed, Packing
from lstm_cli.engines.jit.codegen.tile import columns
from lstm_cli.engines.jit.codegen.weight_gradient import (
    WeightGradient,
    gradient_kernel,
    run_gradient,
)
from lstm_cli.engines.jit.forward import Buffers, Sequences, equations
from lstm_cli.engines.jit.runtime.compiler import kernels
from lstm_cli.engines.jit.runtime.machine import Machine
from lstm_cli.engines.jit.runtime.memory import Arguments, Workspace, address
from lstm_cli.engines.jit.runtime.thread_pool import run, yield_address
from lstm_cli.engines.jit.runtime.worker_ir import team_words
from lstm_cli.engines.jit.weights import Plan, RecurrentWeights
from lstm_cli.engines.schedule import Schedule
from lstm_cli.engines.types import Array


@dataclass(frozen=True, eq=False)
class Design:
    """A compiled backward kernel, and how the weights it multiplies are packed.

    Attributes
    ----------
    kept
        Where derivatives are kept.
    stages
        The stage that each product undoes.
    products
        How its matrix is packed.
    inputs
        How W_ih is, for the derivatives of x.
    product
        The kernel that makes these.
    """

    address: int
    arguments: Arguments
    schedule: Schedule
    kept: Derivatives
    stages: tuple[Stage, ...]
    products: tuple[Packing, ...]
    inputs: Packing
    product: ProductKernel


@lru_cache(maxsize=256)
def design(weights: Plan, schedule: Schedule) -> Design:
    """The kernel for a cell and the shapes of its panels."""
    cell, machine = weights.cell, weights.machine
    kept = derivatives(cell, schedule)
    stages = tuple(phase.stage or schedule.phases[0].stage for phase in schedule.backward)
    products = tuple(_undoing(weights, kept, stage) for stage in stages)
    shape = Shape(weights.lanes, tuple(packing.columns.split for packing in products))
    name = f"backward {equations(cell)} {shape.name} {schedule.name}"
    built = kernels(name, lambda: backward.build(cell, schedule, shape, machine), machine)
    inputs = _transposed(weights, weights.input_size, kept.inputs, cell.letters, per=None)
    arguments = backward.arguments(len(products))
    product = product_kernel(inputs.columns.split, machine=machine)
    return Design(built["backward"], arguments, schedule, kept, stages, products, inputs, product)


def _undoing(weights: Plan, kept: Derivatives, stage: Stage) -> Packing:
    """How a stage's matrix is packed to multiply derivatives."""
    H, P, per = weights.cell.hidden_size, weights.cell.output_size, weights.per
    if stage.matrix == "weight_hr":
        return weights.packing(columns(H, 1, weights.lanes, per), Order.transposed(P, H))
    return _transposed(weights, P, kept.recurrent, stage.gates, per or 2)


def _transposed(
    weights: Plan, width: int, slots: Mapping[str, int], gates: tuple[str, ...], per: int | None
) -> Packing:
    """Of gates' blocks of a matrix (G*H, width), side by side as their derivatives are."""
    letters = weights.cell.letters
    blocks = [letters.index(gate) for gate in gate_order(dict(slots), gates)]
    order = Order.transposed(weights.cell.hidden_size, width, blocks)
    return weights.packing(columns(width, 1, weights.lanes, per), order)


@dataclass(frozen=True, eq=False)
class BackwardKernel:
    """A backward kernel with weights: those of each of its products, and W_ih."""

    design: Design
    products: tuple[Packed, ...]
    inputs: Packed


def backward_kernel(weights: RecurrentWeights, plan: Schedule) -> BackwardKernel:
    """The kernel, and the weights packed the other way round, once for these weights."""
    key = ("backward", plan)
    found = weights.kernels.get(key)
    if found is None:
        made, own, stock = design(weights.plan, plan), weights.own, weights.stock
        matrices = [np.asarray(getattr(own, stage.matrix)) for stage in made.stages]
        pairs = zip(made.products, matrices, strict=True)
        products = tuple(packing(matrix, None, stock) for packing, matrix in pairs)
        inputs = made.inputs(own.weight_ih, None, stock)
        found = weights.kernels[key] = BackwardKernel(made, products, inputs)
    return found


@dataclass(frozen=True, eq=False)
class BackwardBuffers:
    """What a way back works in, for a kind of batch, and the block that tells the kernel of it.

    Attributes
    ----------
    row, sequence, time, passed
        Of every valid step, in the order in which they are computed: its row, its sequence, and
        how many steps of that came before it in time, and in order.
    dz
        (steps, slots, stride) derivatives of pre-activations.
    dh, dc, apart
        (N, stride) derivatives of the states, and what of h's comes through no product.
    dp
        (N, gates, stride) of peepholes.
    projected
        (steps, stride) of what a projection gave.
    order
        Which step is next in the sums over all steps; None: they are in this order.
    zeros
        What stands for derivatives of outputs that nobody reads.
    firsts, meeting
        The block names them.
    offsets
        Where rows of an array begin, by what that depends on.
    """

    block: Array
    row: Array
    sequence: Array
    time: Array
    passed: Array
    dz: Array
    dh: Array
    dc: Array
    apart: Array
    dp: Array
    projected: Array
    order: Array | None
    zeros: Array
    firsts: Array
    meeting: Array
    offsets: dict[Hashable, Array] = field(default_factory=dict)

    def steps(self, array: Array) -> Array:
        """Where each step of an array (N, T, size) begins."""
        sequence, time = (stride // array.itemsize for stride in array.strides[:2])
        key = ("steps", sequence, time)
        if key not in self.offsets:
            found = self.sequence * sequence + self.time * time
            self.offsets[key] = found.astype(np.int64, copy=False)
        return self.offsets[key]

    def reads(self, array: Array) -> Array:
        """Where each step's row of an array (turns, N, stride) begins."""
        turn, row = (stride // array.itemsize for stride in array.strides[:2])
        key = ("reads", turn, row)
        if key not in self.offsets:
            self.offsets[key] = self.passed * turn + self.row * row
        return self.offsets[key]

    def sorted(self, lines: Lines) -> Lines:
        """Rows, one a step, in the order in which they are summed."""
        if self.order is None:
            return lines
        if lines.offsets is None:
            return Lines(lines.base, offsets=self.order * lines.step, owner=lines.owner)
        return Lines(lines.base, offsets=lines.offsets[self.order], owner=lines.owner)

    def begins(self, rows: Rows, row: int, step: int, column: int, *, reverse: bool) -> Array:
        """Where each row's first step is; see `Rows.offsets`."""
        key = ("begins", row, step, column)
        if key not in self.offsets:
            self.offsets[key] = rows.offsets(row, step, column, reverse=reverse)
        return self.offsets[key]


def backward_buffers(
    weights: RecurrentWeights, made: Design, given: Sequences, space: Workspace
) -> BackwardBuffers:
    """Buffers for the batch, kept for all full batches of its shape."""
    rows = given.rows
    if rows.order is not None:
        return _buffers(weights, made, given, space)
    key = ("backward", made, weights.sizes, rows, given.reverse, given.threads)
    return space.plan(key) or space.keep(key, _buffers(weights, made, given, space))


def _buffers(
    weights: RecurrentWeights, made: Design, given: Sequences, space: Workspace
) -> BackwardBuffers:
    rows, dtype, threads = given.rows, weights.dtype.name, given.threads
    row, sequence, time = rows.steps(reverse=given.reverse)
    units, outputs, N = weights.units.stride, weights.outputs.stride, rows.count
    gates = len(weights.cell.peephole_gates)
    passed = time
    if given.reverse:
        lengths = rows.T if rows.lengths is None else rows.lengths[row]
        passed = np.asarray(lengths - 1 - time)
    found = BackwardBuffers(
        block=made.arguments.empty(),
        row=row,
        sequence=sequence,
        time=time,
        passed=passed,
        dz=space.shaped("dz", (len(row), len(made.kept.slots), units), dtype),
        dh=space.shaped("dh", (N, outputs), dtype),
        dc=space.shaped("dc", (N, units), dtype),
        apart=space.shaped("dh apart", (N, outputs), dtype),
        dp=space.shaped("dp", (N, gates, units), dtype),
        projected=space.shaped("projected", (len(row), outputs), dtype),
        order=rows.sorted_steps(sequence, passed),
        zeros=space.get("zeros", max(4096, outputs), dtype),
        firsts=rows.firsts(),
        meeting=space.shaped("meeting", (team_words(threads),), "int64"),
    )
    entries = {
        "T": rows.T,
        "groups": rows.groups if rows.alone else 0,
        "apart": rows.apart,
        "ld": units,
        "ld_h": outputs,
        "h_step": N * outputs,
        "c_step": N * units,
        "slots": len(made.schedule.slots),
        "d_slots": len(made.kept.slots),
        "out_size": weights.cell.output_size,
        "limit": rows.largest,
        "active": address(rows.active),
        "starts": address(rows.starts),
        "firsts": address(found.firsts),
        "meeting": address(found.meeting),
        "yield": yield_address(),
        "dz": address(found.dz),
        "dh": address(found.dh),
        "dc": address(found.dc),
        "dh_apart": address(found.apart),
        "dp": address(found.dp),
        "projected": address(found.projected),
        "rows": address(space.get("back rows", threads * rows.largest, "int64")),
        "zeros": address(found.zeros),
    }
    for k, (packing, stage) in enumerate(zip(made.products, made.stages, strict=True)):
        entries |= {f"K_{k}": packing.K // max(1, len(stage.gates))}
        entries |= {f"panels_{k}": packing.columns.count}
    made.arguments.put(found.block, entries)
    return found


@dataclass(frozen=True)
class Gradients:
    """Derivatives for one direction: tensors by name, and initial states (N, size)."""

    tensors: Mapping[str, Array]
    states: tuple[Array, ...]


class BackwardPass:
    """One direction's way back.

    Parameters
    ----------
    given, left
        What the forward kernel was given, and what it left.
    """

    def __init__(
        self,
        weights: RecurrentWeights,
        kernel: BackwardKernel,
        given: Sequences,
        left: Buffers,
        space: Workspace,
        machine: Machine,
    ) -> None:
        self.weights, self.kernel, self.given, self.left = weights, kernel, given, left
        self.design, self.rows, self.cell = kernel.design, given.rows, weights.cell
        self.space, self.machine = space, machine
        self.buffers = backward_buffers(weights, kernel.design, given, space)
        self.units, self.steps = weights.units.stride, len(self.buffers.row)

    def run(self, d: Array, column: int, dx: Array, add: bool) -> Gradients:
        """All of it.

        Parameters
        ----------
        d
            (N, T, F) derivative of the layer's output, this direction's from `column` on; or
            (N, P) of the last step's output.
        dx
            (N, T, D) to be written, where there are valid steps, or with `add` added to.
        """
        self._steps(d, column)
        self._inputs(dx, add)
        return Gradients(self._tensors(), self._states())

    def _steps(self, d: Array, column: int) -> None:
        """The kernel: derivatives of all steps; those of peepholes, by thread."""
        rows, buffers, left = self.rows, self.buffers, self.left
        for begun in (buffers.dh, buffers.dc, buffers.apart, buffers.dp):
            begun.fill(0)
        if d.ndim == 2:
            own = d[:, column : column + self.cell.output_size]
            buffers.dh[:, : own.shape[1]] = own if rows.order is None else own[rows.order]
            d, row, step, column = buffers.zeros, 0, 0, 0
        else:
            row, step = (stride // d.itemsize for stride in d.strides[:2])
        reverse = self.given.reverse
        begins = buffers.begins(rows, row, step, column, reverse=reverse)
        entries = {
            "d_step": -step if reverse else step,
            "d": address(d),
            "d_at": address(begins),
            "p": address(self.weights.peepholes),
            "h": address(left.h),
            "c": address(left.c),
            "m": address(left.mask),
            "record": address(left.record),
        }
        entries |= {f"w_{k}": address(w.panels) for k, w in enumerate(self.kernel.products)}
        self.design.arguments.put(buffers.block, entries)
        buffers.meeting.fill(0)
        run(self.design.address, address(buffers.block), self.given.threads)

    def _inputs(self, dx: Array, add: bool) -> None:
        """Derivatives of x."""
        dz, inputs = self.buffers.dz, self.design.kept.inputs
        step = dz.shape[1] * self.units
        first = address(dz) + min(inputs.values()) * self.units * dz.itemsize
        a, out = Lines(first, step, owner=dz), Lines.of(dx, self.buffers.steps(dx))
        times = len(inputs)
        product = Product(
            self.steps, a, self.kernel.inputs, out, times=times, skip=self.units, add=add
        )
        run_product(self.design.product, product, self.given.threads)

    def _tensors(self) -> dict[str, Array]:
        """Derivatives of the stored tensors."""
        cell, kept, own = self.cell, self.design.kept, self.weights.own
        like = self.weights.stock.like
        lines = Lines.of(self.given.x, self.buffers.steps(self.given.x))
        bias = like(own.bias)
        found = {"weight_ih": like(own.weight_ih)}
        places = [kept.inputs[gate] for gate in cell.letters]
        self._gradient(found["weight_ih"], places, lines, bias)
        found["weight_hh"] = like(own.weight_hh)
        bias_hh = like(bias) if cell.recurrent_bias else None
        for k, phase in enumerate(self.design.schedule.phases):
            if phase.projects:
                found["weight_hr"] = like(np.asarray(own.weight_hr))
                self._projection(found["weight_hr"], self._reads(k))
                continue
            block = own.rows(phase.stage.gates)
            places = [kept.recurrent[gate] for gate in phase.stage.gates]
            part = None if bias_hh is None else bias_hh[block]
            self._gradient(found["weight_hh"][block], places, self._reads(k), part)
        if bias_hh is None:
            found["bias"] = bias
        else:
            found |= {"bias_ih": bias, "bias_hh": bias_hh}
        if own.peepholes:
            by_sequence = np.empty_like(self.buffers.dp)
            by_sequence[slice(None) if self.rows.order is None else self.rows.order] = (
                self.buffers.dp
            )
            found["peephole"] = by_sequence.sum(axis=0)[:, : cell.hidden_size].ravel()
        return found

    def _gradient(self, out: Array, slots: list[int], a: Lines, bias: Array | None) -> None:
        """Derivatives of gates' blocks of a matrix."""
        kernel = gradient_kernel(out.shape[1], self.weights.lanes.element, self.machine)
        dz = Lines(address(self.buffers.dz), self.buffers.dz.shape[1] * self.units)
        gates = np.array(slots, np.int64) * self.units
        given = self._sums(dz, gates, self.cell.hidden_size, a, out, bias)
        run_gradient(kernel, given, self.space, self.given.threads)

    def _projection(self, out: Array, a: Lines) -> None:
        """Derivatives of W_hr."""
        kernel = gradient_kernel(out.shape[1], self.weights.lanes.element, self.machine)
        gates = np.zeros(1, np.int64)
        dz, P = Lines.of(self.buffers.projected), self.cell.output_size
        given = self._sums(dz, gates, P, a, out)
        run_gradient(kernel, given, self.space, self.given.threads)

    def _sums(
        self,
        dz: Lines,
        gates: Array,
        units: int,
        a: Lines,
        out: Array,
        bias: Array | None = None,
    ) -> WeightGradient:
        """A product over all steps, in an order that does not depend on groups."""
        dz, a = self.buffers.sorted(dz), self.buffers.sorted(a)
        return WeightGradient(self.steps, dz, gates, units, a, out, bias)

    def _reads(self, k: int) -> Lines:
        """What product `k` of the forward step read, at all steps."""
        left = self.left
        if k == 0:
            buffer = left.h if left.masked is None else left.masked
            return Lines.of(buffer, self.buffers.reads(buffer))
        record = np.asarray(left.record)
        slot = self.design.schedule.reads[k - 1]
        base = address(record) + slot * self.units * record.itemsize
        return Lines(base, record.shape[1] * self.units, owner=record)

    def _states(self) -> tuple[Array, ...]:
        """Derivatives of the initial states."""
        found = []
        for buffer, size in zip(
            (self.buffers.dh, self.buffers.dc), self.cell.state_sizes, strict=False
        ):
            own = np.empty((len(buffer), size), buffer.dtype)
            own[slice(None) if self.rows.order is None else self.rows.order] = buffer[:, :size]
            found.append(own)
        return tuple(found)
