"""Backward kernel: the steps of one direction from last to first, written as LLVM IR.

A step starts with the products that carry the derivative of h back from the step after it. The
gradient of the cell's expression graph yields the other derivatives. Derivatives of pre-activations
are stored for all steps. From these, large products over all steps compute the derivatives of
weights and inputs afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from lstm_cli.cells import Cell
from lstm_cli.cells.cell import PROJECTED, Stage
from lstm_cli.cells.expression import Expression, lift
from lstm_cli.engines.jit.codegen import cell as cell_ir
from lstm_cli.engines.jit.codegen.ir import Module, Value, VectorType, lane_mask, load_masked
from lstm_cli.engines.jit.codegen.sequence import (
    ADDRESSES,
    NUMBERS,
    MatmulOperand,
    SequenceKernel,
)
from lstm_cli.engines.jit.codegen.tile import PanelShape, PanelSplit
from lstm_cli.engines.jit.runtime.machine import Machine
from lstm_cli.engines.jit.runtime.memory import Arguments
from lstm_cli.engines.schedule import MASK, BackwardPhase, CellSchedule, reads_symbol, symbols


@dataclass(frozen=True)
class DerivativeSlots:
    """Slots of a step record for the derivatives of pre-activations.

    Equal derivatives share a slot. The order is: slots of the recurrent part alone, shared slots,
    slots of the input part alone. So the slots of either part are contiguous.

    Attributes
    ----------
    slots
        Expression of each slot.
    recurrent, inputs
        By gate, the slot of ``h_<gate>`` and of ``x_<gate>``.
    """

    slots: tuple[Expression, ...]
    recurrent: dict[str, int]
    inputs: dict[str, int]


@lru_cache(maxsize=256)
def derivative_slots(cell: Cell, schedule: CellSchedule) -> DerivativeSlots:
    """The slots of a cell's derivatives. A gate without influence has the constant 0."""
    derivatives: dict[str, Expression] = {}
    for phase in schedule.backward:
        derivatives |= phase.derivatives
    pairs = {g: tuple(derivatives.get(f"{k}_{g}", lift(0.0)) for k in "hx") for g in cell.letters}
    unequal = [gate for gate, (h, x) in pairs.items() if h is not x]
    shared = [gate for gate in cell.letters if gate not in unequal]
    recurrent = {gate: k for k, gate in enumerate([*unequal, *shared])}
    inputs = {gate: k + len(unequal) for k, gate in enumerate([*shared, *unequal])}
    slots = [pairs[gate][0] for gate in recurrent] + [pairs[gate][1] for gate in unequal]
    return DerivativeSlots(tuple(slots), recurrent, inputs)


def gate_order(slots: dict[str, int], gates: tuple[str, ...]) -> tuple[str, ...]:
    """Gates in the order of their slots."""
    return tuple(sorted(gates, key=slots.__getitem__))


@dataclass(frozen=True)
class BackwardVariant:
    """Vectors and panels of each product that a kernel is written for."""

    vector: VectorType
    products: tuple[PanelSplit, ...]

    @property
    def name(self) -> str:
        return ", ".join([self.vector.suffix, *(split.name for split in self.products)])


@lru_cache(maxsize=8)
def backward_arguments(phases: int) -> Arguments:
    """Layout of the kernel's argument block; see `codegen.forward.ForwardArguments`.

    Product 0 carries the derivative of h back from the following step. Each later product k
    differentiates the stage of backward phase k.
    """
    numbers = [*NUMBERS, "ld", "ld_h", "h_step", "c_step", "slots", "d_slots", "d_step", "out_size"]
    numbers += ["limit"]
    addresses = [*ADDRESSES, "d", "d_at", "p", "h", "c", "m", "record", "dz", "dh", "dc"]
    addresses += ["dh_direct", "dp", "projected", "rows", "zeros"]
    for k in range(phases):
        numbers += [f"K_{k}", f"panels_{k}"]
        addresses += [f"w_{k}"]
    return Arguments(numbers, addresses)


def build(cell: Cell, schedule: CellSchedule, variant: BackwardVariant, machine: Machine) -> Module:
    """A module with the function ``backward``."""
    module = Module()
    _BackwardEmitter(module, cell, schedule, variant, machine).emit()
    return module


class _BackwardEmitter(SequenceKernel):
    """Emitter of one backward kernel."""

    def __init__(
        self,
        module: Module,
        cell: Cell,
        schedule: CellSchedule,
        variant: BackwardVariant,
        machine: Machine,
    ) -> None:
        layout = backward_arguments(len(schedule.backward))
        super().__init__(module, "backward", layout, variant.vector.element, machine)
        self.cell, self.schedule, self.variant = cell, schedule, variant
        self.slots = derivative_slots(cell, schedule)
        self.has_direct_dh = any("h_prev" in phase.derivatives for phase in schedule.backward)

    def emit(self) -> None:
        """Write the whole kernel."""
        f, a, part = self.f, self.a, self.f.args["part"]
        self.z_rows = f.at(a["rows"], f.mul(part, a["limit"]), "ptr")
        with self.groups() as first_record:
            q, t = f.variable("i64", first_record), f.variable("i64", 0)
            with f.while_() as forwards:  # to the last step
                forwards.leave_if(f.compare("sge", f.get(t), a["T"]))
                count = self.running(f.get(t))
                forwards.leave_if(f.compare("eq", count, 0))
                f.set(q, f.add(f.get(q), self.records(count)))
                f.set(t, f.add(f.get(t), 1))
            rows_after = f.variable("i64", 0)
            with f.while_() as steps:
                number, more = f.sub(f.get(t), 1), f.compare("sgt", f.get(t), 0)
                running = f.variable("i64", 0)
                with f.when(more):
                    f.set(running, self.running(number))
                rows, q_after = f.get(running), f.get(q)
                f.set(q, f.select(more, f.sub(q_after, self.records(rows)), q_after))
                step = _StepEmitter(self, number, f.get(q))
                self._gate_rows(f.get(rows_after), q_after, self.schedule.phases[0].stage.gates)
                with self.phase():
                    self._carry_dh(f.get(t), f.get(rows_after))
                    with f.when(more):
                        self._first_phase(step, rows)
                steps.leave_if(f.compare("eq", f.get(t), 0))
                self._later_phases(step, rows)
                f.set(t, number)
                f.set(rows_after, rows)

    def _gate_rows(self, count: Value, q: Value, gates: tuple[str, ...]) -> None:
        """Write the addresses of the rows' derivatives for gates in neighboring slots."""
        f, a = self.f, self.a
        first = min(self.slots.recurrent[gate] for gate in gates)
        base = f.at(a["dz"], f.mul(a["ld"], first), self.element)
        self.rows(self.z_rows, count, base, q, f.mul(a["ld"], a["d_slots"]))

    def _carry_dh(self, step: Value, count: Value) -> None:
        """Emit the derivative of h from the following step, for the rows that have that step."""
        f, a = self.f, self.a
        gates = self.schedule.phases[0].stage.gates
        split = self.variant.products[0]
        operand = MatmulOperand(
            a["w_0"], a["zeros"], a["K_0"], step, len(gates), a["ld"], init_per_panel=False
        )
        for shape in split.shapes:
            vector = shape.vector
            products = self.products(split, shape, a["panels_0"], self.z_rows, count, operand)
            with products as (r, column, result):
                row = f.add(self.first, r)
                at = f.add(f.mul(row, a["ld_h"]), column)
                d = f.load(vector.type, result, 4)
                if self.schedule.dropout:
                    mask = f.load(vector.type, f.at(a["m"], at, self.element), 4)
                    d = f.fmul(d, mask)
                if self.has_direct_dh:
                    direct = f.load(vector.type, f.at(a["dh_direct"], at, self.element), 4)
                    d = f.fadd(d, direct)
                f.store(d, f.at(a["dh"], at, self.element), 4)

    def _first_phase(self, step: _StepEmitter, count: Value) -> None:
        """The first phase, which has no product of its own."""
        f, phase, split = self.f, self.schedule.backward[0], self.variant.products[0]
        for shape in split.shapes:
            with (
                self.panels(split, shape, self.a["panels_0"]) as panel,
                f.loop(0, count) as r,
                f.loop(0, shape.columns, shape.vector.count) as shift,
            ):
                column = f.add(panel.column, shift)
                _ElementEmitter(step, phase, 0, shape, r, column, None).compute()

    def _later_phases(self, step: _StepEmitter, count: Value) -> None:
        """The phases of one step that start with a product."""
        for k, phase in enumerate(self.schedule.backward):
            if phase.stage is None:
                continue
            self._operand_rows(step, phase.stage, count)
            split, panels = self.variant.products[k], self.a[f"panels_{k}"]
            operand = self._operand(step, k, phase.stage)
            with self.phase():
                for shape in split.shapes:
                    products = self.products(split, shape, panels, self.z_rows, count, operand)
                    with products as (r, column, result):
                        _ElementEmitter(step, phase, k, shape, r, column, result).compute()

    def _operand_rows(self, step: _StepEmitter, stage: Stage, count: Value) -> None:
        """Write the addresses of the rows that hold the derivatives of a stage's results."""
        a = self.a
        if stage.gates:
            self._gate_rows(count, step.q, stage.gates)
        else:
            self.rows(self.z_rows, count, a["projected"], step.q, a["ld_h"])

    def _operand(self, step: _StepEmitter, k: int, stage: Stage) -> MatmulOperand:
        a = self.a
        times = max(1, len(stage.gates))
        w, K = a[f"w_{k}"], a[f"K_{k}"]
        return MatmulOperand(w, a["zeros"], K, step.number, times, a["ld"], init_per_panel=False)


class _StepEmitter:
    """Addresses of the states before one step, and the step's first record `q`."""

    def __init__(self, kernel: _BackwardEmitter, number: Value, q: Value) -> None:
        self.kernel, self.number, self.q = kernel, number, q
        f, a, element = kernel.f, kernel.a, kernel.element
        self.h = f.at(a["h"], f.mul(number, a["h_step"]), element)
        self.c = f.at(a["c"], f.mul(number, a["c_step"]), element)


class _ElementEmitter:
    """Derivatives of one row and one vector of columns.

    Parameters
    ----------
    k
        Number of the backward phase.
    r
        Row within the group.
    result
        Address of the phase's matrix product; None for a phase without one.
    """

    def __init__(
        self,
        step: _StepEmitter,
        phase: BackwardPhase,
        k: int,
        shape: PanelShape,
        r: Value,
        column: Value,
        result: Value | None,
    ) -> None:
        self.step, self.phase, self.k, self.shape, self.result = step, phase, k, shape, result
        self.kernel, self.f, self.a = step.kernel, step.kernel.f, step.kernel.a
        self.column, self.row = column, self.f.add(self.kernel.first, r)
        self.record = self.f.add(step.q, r)

    def compute(self) -> None:
        """Load the operands, compute this phase's derivatives, and store them."""
        f, slots = self.f, self.kernel.slots.slots
        derivatives = dict(self.phase.derivatives)
        roots = {
            name: d
            for name, d in derivatives.items()
            if name.partition("_")[0] not in ("x", "h") or "_prev" in name
        }
        roots |= {f"dz {s}": d for s, d in enumerate(slots) if self._is_filled(d, derivatives)}
        values = {name: self._load(name) for name in symbols(roots.values())}
        if self.k == 0 and self._is_read_later("d_h"):
            d_h = values.get("d_h") or self._load("d_h")
            f.store(d_h, self._at(self.a["dh"], self.row, "ld_h"), 4)
        for name, d in cell_ir.emit(f, self.shape.vector, roots, values).items():
            self._store(name, d)

    def _is_filled(self, d: Expression, derivatives: dict[str, Expression]) -> bool:
        """True if this phase computes the slot `d`. The last phase stores the constants, too."""
        last = self.k == len(self.kernel.schedule.backward) - 1
        return any(d is other for other in derivatives.values()) or (last and d.op == "constant")

    def _is_read_later(self, name: str) -> bool:
        phases = self.kernel.schedule.backward[1:]
        return any(name in symbols(phase.derivatives.values()) for phase in phases)

    def _at(self, base: Value, row: Value, ld: str) -> Value:
        """Address of this vector in a row of a buffer."""
        f = self.f
        return f.at(base, f.add(f.mul(row, self.a[ld]), self.column), self.kernel.element)

    def _slot(self, base: Value, row: Value, slots: Value | int, k: int) -> Value:
        return self._at(base, self.f.add(self.f.mul(row, slots), k), "ld")

    def _load(self, name: str) -> Value:
        """Value of a symbol; d_h is the carried derivative plus that of the output."""
        step, a, f, vector = self.step, self.a, self.f, self.shape.vector
        if name == "d_h" and self.k == 0:
            carried = f.load(vector.type, self._at(a["dh"], self.row, "ld_h"), 4)
            start = f.load("i64", f.at(a["d_at"], self.row, "i64"))
            at = f.add(f.add(start, f.mul(step.number, a["d_step"])), self.column)
            count = f.sub(a["out_size"], self.column)
            place = f.at(a["d"], at, self.kernel.element)
            d_output = load_masked(f, vector, place, lane_mask(f, vector, count))
            return f.fadd(carried, d_output)
        return f.load(vector.type, self._address(name), 4)

    def _address(self, name: str) -> Value:
        """Address of a symbol's value."""
        step, a = self.step, self.a
        if self.result is not None and name == str(reads_symbol(self._stage_number()).payload):
            return self.result
        if name.startswith("slot "):
            slot = int(name.removeprefix("slot "))
            return self._slot(a["record"], self.record, a["slots"], slot)
        if name.startswith("p_"):
            gates = self.kernel.cell.peephole_gates
            return self._slot(a["p"], Value("i64", "0"), 0, gates.index(name[2:]))
        buffer, row, ld = {
            "d_h": (a["dh"], self.row, "ld_h"),
            "d_c": (a["dc"], self.row, "ld"),
            "h_prev": (step.h, self.row, "ld_h"),
            "c_prev": (step.c, self.row, "ld"),
            MASK: (a["m"], self.row, "ld_h"),
        }[name]
        return self._at(buffer, row, ld)

    def _stage_number(self) -> int:
        stages = [phase.stage for phase in self.kernel.schedule.phases]
        return stages.index(self.phase.stage)  # type: ignore[arg-type]

    def _store(self, name: str, d: Value) -> None:
        """Store a derivative by its name."""
        f, a = self.f, self.a
        if name.startswith("dz "):
            slot = int(name.removeprefix("dz "))
            f.store(d, self._slot(a["dz"], self.record, a["d_slots"], slot), 4)
        elif name.startswith("p_"):
            # One sum per row, since the sum over rows must not depend on the groups of rows.
            gates = self.kernel.cell.peephole_gates
            at = self._slot(a["dp"], self.row, len(gates), gates.index(name[2:]))
            f.store(f.fadd(f.load(d.type, at, 4), d), at, 4)
        elif name == PROJECTED:
            f.store(d, self._at(a["projected"], self.record, "ld_h"), 4)
        elif name == "c_prev":
            f.store(d, self._at(a["dc"], self.row, "ld"), 4)
        else:
            f.store(d, self._at(a["dh_direct"], self.row, "ld_h"), 4)
