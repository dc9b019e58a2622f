"""Forward kernel: one direction of a recurrent layer over a batch, written as LLVM IR.

The kernel projects the inputs of as many steps as fit in the cache. Then each step computes one
panel's recurrent products after another, and the cell's equations on each while it is cached.
`_ElementEmitter.compute` is where the gates of one row are computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from lstm_cli.cells import Cell
from lstm_cli.cells.cell import PROJECTED
from lstm_cli.cells.expression import Expression
from lstm_cli.engines.jit.codegen import cell as cell_ir
from lstm_cli.engines.jit.codegen.ir import (
    Module,
    Value,
    VectorType,
    i64,
    lane_mask,
    load_masked,
    store_first,
)
from lstm_cli.engines.jit.codegen.sequence import (
    ADDRESSES,
    NUMBERS,
    MatmulOperand,
    SequenceKernel,
)
from lstm_cli.engines.jit.codegen.tile import PanelShape, PanelSplit, round_to_bfloat16
from lstm_cli.engines.jit.runtime.machine import Machine
from lstm_cli.engines.jit.runtime.memory import Arguments
from lstm_cli.engines.schedule import MASK, CellSchedule, Phase, symbols


@dataclass(frozen=True)
class ForwardVariant:
    """Vectors and panels that a kernel is written for.

    Attributes
    ----------
    inputs
        Panels of the gates' columns in the input projection.
    products
        Panels of each phase's columns.
    """

    vector: VectorType
    inputs: PanelSplit
    products: tuple[PanelSplit, ...]

    @property
    def bf16(self) -> bool:
        """True if matrices are multiplied in bfloat16."""
        return self.inputs.main.bf16

    @property
    def name(self) -> str:
        splits = (self.inputs, *self.products)
        return ", ".join([self.vector.suffix, *(split.name for split in splits)])


@dataclass(frozen=True)
class ForwardArguments:
    """Layout of the kernel's argument block: entries of the weights, of a batch, of a call.

    Strides are in numbers, not bytes. `h_mask` and `c_mask` are masks on the step: 0 keeps one
    buffer, 1 alternates between two, -1 keeps every step. `bf16_x` and `bf16_h` are inputs
    and h in bfloat16.
    """

    weights: Arguments
    batch: Arguments
    call: Arguments
    all: Arguments


@lru_cache(maxsize=8)
def forward_arguments(phases: int) -> ForwardArguments:
    """The layout for a cell with this number of phases."""
    numbers, addresses = ["K_x", "panels_x"], ["w_x", "b_x", "p"]
    for k in range(phases):
        numbers += [f"K_{k}", f"panels_{k}"]
        addresses += [f"w_{k}", f"b_{k}"]
    weights = Arguments(numbers, addresses)
    numbers = [*NUMBERS, "limit", "out_size", "ld", "ld_h", "h_step", "h_mask", "c_step", "c_mask"]
    addresses = [*ADDRESSES, "h", "c", "m", "hm", "record", "z", "rows", "bf16_x", "bf16_h"]
    addresses += [f"reads_{k}" for k in range(1, phases)]
    numbers += ["recorded", "slots", "z_size", "in_size", "ld_x"]
    batch = Arguments(numbers, addresses)
    numbers = ["cycles_x", "cycles", "x_step", "y_step"]
    call = Arguments(numbers, ["x", "x_at", "y", "y_at"])
    return ForwardArguments(weights, batch, call, Arguments.joined(call, batch, weights))


def build(cell: Cell, schedule: CellSchedule, variant: ForwardVariant, machine: Machine) -> Module:
    """A module with the function ``forward``."""
    module = Module()
    _ForwardEmitter(module, cell, schedule, variant, machine).emit()
    return module


class _ForwardEmitter(SequenceKernel):
    """Emitter of one forward kernel."""

    def __init__(
        self,
        module: Module,
        cell: Cell,
        schedule: CellSchedule,
        variant: ForwardVariant,
        machine: Machine,
    ) -> None:
        layout = forward_arguments(len(schedule.phases)).all
        super().__init__(module, "forward", layout, variant.vector.element, machine)
        self.cell, self.schedule, self.variant = cell, schedule, variant

    def emit(self) -> None:
        """Write the whole kernel."""
        f, a, part = self.f, self.a, self.f.args["part"]
        share = f.select(f.compare("sgt", a["groups"], 0), part, 0)
        self.z = f.at(a["z"], f.mul(share, a["z_size"]), self.element)
        self.x_rows = f.at(a["rows"], f.mul(part, f.mul(a["limit"], 2)), "ptr")
        self.h_rows = f.at(self.x_rows, a["limit"], "ptr")
        if self.variant.bf16:
            place = f.mul(f.mul(share, a["limit"]), a["ld_x"])
            self.bf16_x = f.at(a["bf16_x"], place, self.element)
        with self.groups() as first_record:
            if self.variant.bf16:
                with self.phase(), f.when(f.compare("eq", self.me, 0)):
                    self._round_states()
            q, t = f.variable("i64", first_record), f.variable("i64", 0)
            with f.while_() as runs:
                start = f.get(t)
                runs.leave_if(f.compare("sge", start, a["T"]))
                runs.leave_if(f.compare("eq", self.running(start), 0))
                stamp = self.clock()
                stop = self._project(start)
                stamp = self.add_cycles("cycles_x", stamp)
                z_row = f.variable("i64", 0)
                with f.loop(start, stop) as step:
                    count = self.running(step)
                    self._step(_StepEmitter(self, step, f.get(z_row), f.get(q)), count)
                    f.set(z_row, f.add(f.get(z_row), count))
                    f.set(q, f.add(f.get(q), f.mul(self.records(count), a["recorded"])))
                self.add_cycles("cycles", stamp)
                f.set(t, stop)

    def _project(self, start: Value) -> Value:
        """Project the inputs of as many steps as fit. Returns the step after the last of them."""
        f, a = self.f, self.a
        stop, total = f.variable("i64", start), f.variable("i64", 0)
        with f.while_() as run:
            step, rows = f.get(stop), f.get(total)
            run.leave_if(f.compare("sge", step, a["T"]))
            count = self.running(step)
            run.leave_if(f.compare("eq", count, 0))
            full = f.compare("sgt", f.add(rows, count), a["limit"])
            run.leave_if(f.binary("and", full, f.compare("sgt", rows, 0)))
            shift = f.mul(step, a["x_step"])
            with f.loop(0, count) as r:
                at = f.load("i64", f.at(a["x_at"], f.add(self.first, r), "i64"))
                row = f.at(a["x"], f.add(at, shift), self.element)
                f.store(row, f.at(self.x_rows, f.add(rows, r), "ptr"))
            f.set(total, f.add(rows, count))
            f.set(stop, f.add(step, 1))
        rows, stride, K = f.get(total), f.mul(a["ld"], len(self.cell.letters)), a["K_x"]
        if self.variant.bf16:
            self._round_inputs(rows)
        with self.phase():
            for shape in self.variant.inputs.shapes:
                with self.panels(self.variant.inputs, shape, a["panels_x"]) as panel:
                    out = f.at(self.z, panel.column, self.element)
                    w, b = panel.data(a["w_x"], K), panel.data(a["b_x"], 1)
                    product = self.tiles.product(shape)
                    f.call(product, self.x_rows, rows, w, K, 1, 0, b, out, stride, a["ld"])
        return f.get(stop)

    def _round_row(self, row: Value, target: Value, size: Value) -> None:
        """Copy a row in bfloat16, with zeros after its last number."""
        f, vector = self.f, self.variant.vector
        with f.loop(0, size, vector.count) as k:
            mask = lane_mask(f, vector, f.sub(size, k))
            values = load_masked(f, vector, f.at(row, k, self.element), mask)
            rounded = round_to_bfloat16(f, vector, values, self.machine)
            f.store(rounded, f.at(target, k, "i16"), 2)

    def _round_inputs(self, count: Value) -> None:
        """Round a share of the inputs to bfloat16, and take the rounded rows as the operand."""
        f, a = self.f, self.a
        with self.phase():
            start = f.div(f.mul(count, self.me), self.workers)
            stop = f.div(f.mul(count, f.add(self.me, 1)), self.workers)
            with f.loop(start, stop) as r:
                row = f.load("ptr", f.at(self.x_rows, r, "ptr"))
                target = f.at(self.bf16_x, f.mul(r, a["ld_x"]), self.element)
                self._round_row(row, target, a["in_size"])
        self.rows(self.x_rows, count, self.bf16_x, i64(0), a["ld_x"])

    def _round_states(self) -> None:
        """Round the group's initial h to bfloat16."""
        f, a = self.f, self.a
        stop = f.load("i64", f.at(f.at(a["starts"], self.group, "i64"), 1, "i64"))
        with f.loop(self.first, stop) as row:
            at = f.mul(row, a["ld_h"])
            target = f.at(a["bf16_h"], at, "i16")
            self._round_row(f.at(a["h"], at, self.element), target, a["ld_h"])

    def _step(self, step: _StepEmitter, count: Value) -> None:
        """One step of all running rows."""
        for k, phase in enumerate(self.schedule.phases):
            base, ld = step.operand(k)
            self.rows(self.h_rows, count, base, self.first, ld)
            split = self.variant.products[k]
            a, panels = self.a, self.a[f"panels_{k}"]
            operand = MatmulOperand(a[f"w_{k}"], a[f"b_{k}"], a[f"K_{k}"], step.number)
            with self.phase():
                for shape in reversed(split.shapes):
                    products = self.products(split, shape, panels, self.h_rows, count, operand)
                    with products as (r, column, result):
                        _ElementEmitter(step, phase, shape, r, column, result).compute()


class _StepEmitter:
    """Addresses of the states before and after one step.

    Attributes
    ----------
    number
        Number of the step.
    z_row
        First row of the step's input projections.
    q
        Number of the step's first record.
    """

    def __init__(self, kernel: _ForwardEmitter, number: Value, z_row: Value, q: Value) -> None:
        self.kernel, self.f, self.a = kernel, kernel.f, kernel.a
        self.number, self.z_row, self.q = number, z_row, q
        after = self.f.add(number, 1)
        self.h, self.h_new = self._state("h", "h", number), self._state("h", "h", after)
        self.c, self.c_new = self._state("c", "c", number), self._state("c", "c", after)
        if kernel.variant.bf16:
            self.bf16_h, self.bf16_h_new = self._bf16_state(number), self._bf16_state(after)
        if kernel.schedule.dropout:
            self.m, self.m_new = self._state("hm", "h", number), self._state("hm", "h", after)

    def _state(self, buffer: str, kind: str, step: Value) -> Value:
        f, a = self.f, self.a
        time = f.binary("and", step, a[f"{kind}_mask"])
        return f.at(a[buffer], f.mul(time, a[f"{kind}_step"]), self.kernel.element)

    def _bf16_state(self, step: Value) -> Value:
        f, a = self.f, self.a
        time = f.binary("and", step, a["h_mask"])
        return f.at(a["bf16_h"], f.mul(time, a["h_step"]), "i16")

    def operand(self, k: int) -> tuple[Value, Value]:
        """Address of the rows that product `k` multiplies, and numbers from row to row."""
        if self.kernel.variant.bf16:
            base = self.a[f"reads_{k}"] if k else self.bf16_h
            return base, self.f.div(self.a["ld" if k else "ld_h"], 2)
        if k:
            return self.a[f"reads_{k}"], self.a["ld"]
        return (self.m if self.kernel.schedule.dropout else self.h), self.a["ld_h"]


class _ElementEmitter:
    """The cell's equations on one row and one vector of columns.

    Parameters
    ----------
    r
        Row within the group.
    result
        Address of the first gate's matrix product.
    """

    def __init__(
        self,
        step: _StepEmitter,
        phase: Phase,
        shape: PanelShape,
        r: Value,
        column: Value,
        result: Value,
    ) -> None:
        self.step, self.phase, self.shape = step, phase, shape
        self.kernel, self.f, self.a = step.kernel, step.f, step.a
        self.r, self.column, self.result = r, column, result
        self.row = self.f.add(self.kernel.first, r)

    def compute(self) -> None:
        """Load the operands, compute gates and states, and store them."""
        f, vector, roots = self.f, self.shape.vector, self.phase.roots
        values = {name: self._load(name) for name in symbols(roots.values())}
        computed: dict[str, Value] = {}
        for expressions in self._passes(roots):
            computed |= cell_ir.emit(f, vector, expressions, values)
        for name, value in computed.items():
            self._store(name, value)
        if self.kernel.schedule.dropout and "h" in roots:
            masked = f.fmul(computed["h"], values.get(MASK) or self._load(MASK))
            f.store(masked, self._at(self.step.m_new, self.row, "ld_h"), 4)

    def _passes(self, roots: Mapping[str, Expression]) -> list[Mapping[str, Expression]]:
        """Sets of expressions to emit together: recorded slots apart, for states of equal bits."""
        if self.kernel.schedule.backward:
            return [roots]
        slots = {name: node for name, node in roots.items() if name.startswith("slot")}
        return [{name: node for name, node in roots.items() if name not in slots}, slots]

    def _at(self, base: Value, row: Value, ld: str) -> Value:
        """Address of this vector in a row of a buffer."""
        f = self.f
        return f.at(base, f.add(f.mul(row, self.a[ld]), self.column), self.kernel.element)

    def _slot(self, base: Value, row: Value, slots: Value | int, k: int) -> Value:
        return self._at(base, self.f.add(self.f.mul(row, slots), k), "ld")

    def _address(self, name: str) -> Value:
        """Address of a symbol's value."""
        step, a, f, cell = self.step, self.a, self.f, self.kernel.cell
        if name.startswith("slot "):
            q = f.add(step.q, self.r)
            return self._slot(a["record"], q, a["slots"], int(name.removeprefix("slot ")))
        if name == "h_prev":
            return self._at(step.h, self.row, "ld_h")
        if name == "c_prev":
            return self._at(step.c, self.row, "ld")
        if name == MASK:
            return self._at(a["m"], self.row, "ld_h")
        if name == PROJECTED:
            return self.result
        kind, _, gate = name.partition("_")
        if kind == "x":
            row, gates = f.add(step.z_row, self.r), cell.letters
            return self._slot(self.kernel.z, row, len(gates), gates.index(gate))
        if kind == "p":
            return self._slot(a["p"], Value("i64", "0"), 0, cell.peephole_gates.index(gate))
        place = self.phase.stage.gates.index(gate) * self.shape.columns
        return f.at(self.result, place, self.kernel.element)

    def _load(self, name: str) -> Value:
        return self.f.load(self.shape.vector.type, self._address(name), 4)

    def _store(self, name: str, value: Value) -> None:
        """Store a result by its name."""
        f, step = self.f, self.step
        if name == "reads":
            k = self.kernel.schedule.phases.index(self.phase) + 1
            self._store_operand(value, self.a[f"reads_{k}"], "ld")
        elif name == "c":
            f.store(value, self._at(step.c_new, self.row, "ld"), 4)
        elif name == "h":
            f.store(value, self._at(step.h_new, self.row, "ld_h"), 4)
            if self.kernel.variant.bf16:
                self._store_operand(value, step.bf16_h_new, "ld_h")
            self._store_output(value)
        else:
            f.store(value, self._address(name), 4)

    def _store_operand(self, value: Value, base: Value, ld: str) -> None:
        """Store numbers that a later product multiplies."""
        f = self.f
        if self.kernel.variant.bf16:
            place = f.add(f.mul(self.row, self.a[ld]), self.column)
            rounded = round_to_bfloat16(f, self.shape.vector, value, self.kernel.machine)
            f.store(rounded, f.at(base, place, "i16"), 2)
        else:
            f.store(value, self._at(base, self.row, ld), 4)

    def _store_output(self, value: Value) -> None:
        """Store the layer's output of this step, without padding columns."""
        f, a = self.f, self.a
        with f.when(f.compare("ne", f.convert("ptrtoint", a["y"], "i64"), 0)):
            start = f.load("i64", f.at(a["y_at"], self.row, "i64"))
            at = f.add(f.add(start, f.mul(self.step.number, a["y_step"])), self.column)
            place = f.at(a["y"], at, self.kernel.element)
            store_first(f, self.shape.vector, value, place, f.sub(a["out_size"], self.column))
