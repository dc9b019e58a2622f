"""The forward kernel: one direction of a recurrent layer over a batch, written as LLVM IR.

For a run of steps whose input projections fit the cache, these are computed at once; then step by
step each panel's recurrent products, and the cell's equations on them while they are at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from lstm_cli.cells import Cell
from lstm_cli.cells.expression import Expression
from lstm_cli.cells.tracing import PROJECTED
from lstm_cli.engines.jit.codegen import cell
from lstm_cli.engines.jit.codegen.ir import (
    Lanes,
    Module,
    Value,
    first_lanes,
    i64,
    load_part,
    store_part,
)
from lstm_cli.engines.jit.codegen.sequence import ADDRESSES, NUMBERS, Factors, SequenceKernel
from lstm_cli.engines.jit.codegen.tile import Part, Split, halved
from lstm_cli.engines.jit.runtime.machine import Machine
from lstm_cli.engines.jit.runtime.memory import Arguments
from lstm_cli.engines.schedule import MASK, Phase, Schedule, symbols


@dataclass(frozen=True)
class Shape:
    """What a kernel is made for: all of it shows in the code.

    Attributes
    ----------
    inputs
        How the gates' columns are cut for the input projection.
    products
        How each phase's columns are cut.
    """

    lanes: Lanes
    inputs: Split
    products: tuple[Split, ...]

    @property
    def pairs(self) -> bool:
        """Whether matrices are multiplied in bfloat16."""
        return self.inputs.main.pairs

    @property
    def name(self) -> str:
        splits = (self.inputs, *self.products)
        return ", ".join([self.lanes.suffix, *(split.name for split in splits)])


@dataclass(frozen=True)
class Blocks:
    """The kernel's block, in three parts: of the weights, of a kind of batch, and of a call.

    Strides are in numbers, not bytes. `h_turn` and `c_turn` are masks on the step: 0 keeps one
    buffer, 1 alternates between two, -1 keeps every step. `halves_x` and `halves_h` are inputs
    and h in bfloat16.
    """

    weights: Arguments
    batch: Arguments
    call: Arguments
    all: Arguments


@lru_cache(maxsize=8)
def blocks(phases: int) -> Blocks:
    """The layout for a cell with so many phases."""
    numbers, addresses = ["K_x", "panels_x"], ["w_x", "b_x", "p"]
    for k in range(phases):
        numbers += [f"K_{k}", f"panels_{k}"]
        addresses += [f"w_{k}", f"b_{k}"]
    weights = Arguments(numbers, addresses)
    numbers = [*NUMBERS, "limit", "out_size", "ld", "ld_h", "h_step", "h_turn", "c_step", "c_turn"]
    addresses = [*ADDRESSES, "h", "c", "m", "hm", "record", "z", "rows", "halves_x", "halves_h"]
    addresses += [f"reads_{k}" for k in range(1, phases)]
    numbers += ["keep", "slots", "z_size", "in_size", "ld_x"]
    batch = Arguments(numbers, addresses)
    numbers = ["cycles_x", "cycles", "x_step", "y_step"]
    call = Arguments(numbers, ["x", "x_at", "y", "y_at"])
    return Blocks(weights, batch, call, Arguments.joined(call, batch, weights))


def build(cell: Cell, schedule: Schedule, shape: Shape, machine: Machine) -> Module:
    """A module with the function ``forward``."""
    module = Module()
    _Kernel(module, cell, schedule, shape, machine).emit()
    return module


class _Kernel(SequenceKernel):
    """The emission of one forward kernel."""

    def __init__(
        self, module: Module, cell: Cell, schedule: Schedule, shape: Shape, machine: Machine
    ) -> None:
        layout = blocks(len(schedule.phases)).all
        super().__init__(module, "forward", layout, shape.lanes.element, machine)
        self.cell, self.schedule, self.shape = cell, schedule, shape

    def emit(self) -> None:
        """All of it."""
        f, a, part = self.f, self.a, self.f.args["part"]
        own = f.select(f.compare("sgt", a["groups"], 0), part, 0)
        self.own_z = f.at(a["z"], f.mul(own, a["z_size"]), self.element)
        self.x_rows = f.at(a["rows"], f.mul(part, f.mul(a["limit"], 2)), "ptr")
        self.h_rows = f.at(self.x_rows, a["limit"], "ptr")
        if self.shape.pairs:
            x_halves = f.mul(f.mul(own, a["limit"]), a["ld_x"])
            self.x_halves = f.at(a["halves_x"], x_halves, self.element)
        with self.groups() as number:
            if self.shape.pairs:
                with self.phase(), f.when(f.compare("eq", self.me, 0)):
                    self._halve_states()
            q, t = f.variable("i64", number), f.variable("i64", 0)
            with f.while_() as runs:
                begun = f.get(t)
                runs.leave_if(f.compare("sge", begun, a["T"]))
                runs.leave_if(f.compare("eq", self.running(begun), 0))
                stamp = self.clock()
                ended = self._project(begun)
                stamp = self.spent("cycles_x", stamp)
                z_row = f.variable("i64", 0)
                with f.loop(begun, ended) as step:
                    count = self.running(step)
                    self._step(_Here(self, step, f.get(z_row), f.get(q)), count)
                    f.set(z_row, f.add(f.get(z_row), count))
                    f.set(q, f.add(f.get(q), f.mul(self.numbers(count), a["keep"])))
                self.spent("cycles", stamp)
                f.set(t, ended)

    def _project(self, begun: Value) -> Value:
        """The input projections of as many steps as fit; the step behind them."""
        f, a = self.f, self.a
        ended, total = f.variable("i64", begun), f.variable("i64", 0)
        with f.while_() as run:
            step, rows = f.get(ended), f.get(total)
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
            f.set(ended, f.add(step, 1))
        rows, stride, K = f.get(total), f.mul(a["ld"], len(self.cell.letters)), a["K_x"]
        if self.shape.pairs:
            self._halve_inputs(rows)
        with self.phase():
            for part in self.shape.inputs.parts:
                with self.panels(self.shape.inputs, part, a["panels_x"]) as panel:
                    out = f.at(self.own_z, panel.column, self.element)
                    w, b = panel.data(a["w_x"], K), panel.data(a["b_x"], 1)
                    product = self.tiles.product(part)
                    f.call(product, self.x_rows, rows, w, K, 1, 0, b, out, stride, a["ld"])
        return f.get(ended)

    def _halve(self, row: Value, into: Value, size: Value) -> None:
        """A row of numbers in bfloat16, with 0 behind the last one."""
        f, lanes = self.f, self.shape.lanes
        with f.loop(0, size, lanes.count) as k:
            mask = first_lanes(f, lanes, f.sub(size, k))
            values = load_part(f, lanes, f.at(row, k, self.element), mask)
            f.store(halved(f, lanes, values, self.machine), f.at(into, k, "i16"), 2)

    def _halve_inputs(self, count: Value) -> None:
        """Inputs in bfloat16, each thread a share of the rows; they are what is multiplied then."""
        f, a = self.f, self.a
        with self.phase():
            start = f.div(f.mul(count, self.me), self.workers)
            stop = f.div(f.mul(count, f.add(self.me, 1)), self.workers)
            with f.loop(start, stop) as r:
                row = f.load("ptr", f.at(self.x_rows, r, "ptr"))
                into = f.at(self.x_halves, f.mul(r, a["ld_x"]), self.element)
                self._halve(row, into, a["in_size"])
        self.rows(self.x_rows, count, self.x_halves, i64(0), a["ld_x"])

    def _halve_states(self) -> None:
        """The group's first h in bfloat16."""
        f, a = self.f, self.a
        behind = f.load("i64", f.at(f.at(a["starts"], self.group, "i64"), 1, "i64"))
        with f.loop(self.first, behind) as row:
            at = f.mul(row, a["ld_h"])
            into = f.at(a["halves_h"], at, "i16")
            self._halve(f.at(a["h"], at, self.element), into, a["ld_h"])

    def _step(self, here: _Here, count: Value) -> None:
        """One step of all running rows."""
        for k, phase in enumerate(self.schedule.phases):
            base, ld = here.reads(k)
            self.rows(self.h_rows, count, base, self.first, ld)
            split = self.shape.products[k]
            a, panels = self.a, self.a[f"panels_{k}"]
            factors = Factors(a[f"w_{k}"], a[f"b_{k}"], a[f"K_{k}"], here.step)
            with self.phase():
                for part in reversed(split.parts):
                    products = self.products(split, part, panels, self.h_rows, count, factors)
                    with products as (r, column, own):
                        _Place(here, phase, part, r, column, own).compute()


class _Here:
    """Where the states before and after a step are."""

    def __init__(self, kernel: _Kernel, step: Value, z_row: Value, q: Value) -> None:
        self.kernel, self.f, self.a = kernel, kernel.f, kernel.a
        self.step, self.z_row, self.q = step, z_row, q
        after = self.f.add(step, 1)
        self.h, self.h_new = self._turn("h", "h", step), self._turn("h", "h", after)
        self.c, self.c_new = self._turn("c", "c", step), self._turn("c", "c", after)
        if kernel.shape.pairs:
            self.halves, self.halves_new = self._halves(step), self._halves(after)
        if kernel.schedule.dropout:
            self.m, self.m_new = self._turn("hm", "h", step), self._turn("hm", "h", after)

    def _turn(self, buffer: str, kind: str, step: Value) -> Value:
        f, a = self.f, self.a
        turn = f.binary("and", step, a[f"{kind}_turn"])
        return f.at(a[buffer], f.mul(turn, a[f"{kind}_step"]), self.kernel.element)

    def _halves(self, step: Value) -> Value:
        f, a = self.f, self.a
        turn = f.binary("and", step, a["h_turn"])
        return f.at(a["halves_h"], f.mul(turn, a["h_step"]), "i16")

    def reads(self, k: int) -> tuple[Value, Value]:
        """The vectors that product `k` reads: their address, and from one row to the next."""
        if self.kernel.shape.pairs:
            base = self.a[f"reads_{k}"] if k else self.halves
            return base, self.f.div(self.a["ld" if k else "ld_h"], 2)
        if k:
            return self.a[f"reads_{k}"], self.a["ld"]
        return (self.m if self.kernel.schedule.dropout else self.h), self.a["ld_h"]


class _Place:
    """One row and one vector of columns: where its numbers are, and the equations on them."""

    def __init__(
        self, here: _Here, phase: Phase, part: Part, r: Value, column: Value, own: Value
    ) -> None:
        self.here, self.phase, self.part = here, phase, part
        self.kernel, self.f, self.a = here.kernel, here.f, here.a
        self.r, self.column, self.own = r, column, own
        self.row = self.f.add(self.kernel.first, r)

    def compute(self) -> None:
        """What follows the product."""
        f, lanes, roots = self.f, self.part.lanes, self.phase.roots
        values = {name: self._load(name) for name in symbols(roots.values())}
        found: dict[str, Value] = {}
        for part in self._passes(roots):
            found |= cell.emit(f, lanes, part, values)
        for name, value in found.items():
            self._store(name, value)
        if self.kernel.schedule.dropout and "h" in roots:
            masked = f.fmul(found["h"], values.get(MASK) or self._load(MASK))
            f.store(masked, self._at(self.here.m_new, self.row, "ld_h"), 4)

    def _passes(self, roots: Mapping[str, Expression]) -> list[Mapping[str, Expression]]:
        """What is emitted together: states have the same bits whether or not gates are kept."""
        if self.kernel.schedule.backward:
            return [roots]
        slots = {name: node for name, node in roots.items() if name.startswith("slot")}
        return [{name: node for name, node in roots.items() if name not in slots}, slots]

    def _at(self, base: Value, row: Value, ld: str) -> Value:
        """The vector in a row of a buffer."""
        f = self.f
        return f.at(base, f.add(f.mul(row, self.a[ld]), self.column), self.kernel.element)

    def _slot(self, base: Value, row: Value, slots: Value | int, k: int) -> Value:
        return self._at(base, self.f.add(self.f.mul(row, slots), k), "ld")

    def _address(self, name: str) -> Value:
        """Where a symbol's value is kept."""
        here, a, f, cell = self.here, self.a, self.f, self.kernel.cell
        if name.startswith("slot "):
            q = f.add(here.q, self.r)
            return self._slot(a["record"], q, a["slots"], int(name.removeprefix("slot ")))
        if name == "h_prev":
            return self._at(here.h, self.row, "ld_h")
        if name == "c_prev":
            return self._at(here.c, self.row, "ld")
        if name == MASK:
            return self._at(a["m"], self.row, "ld_h")
        if name == PROJECTED:
            return self.own
        kind, _, gate = name.partition("_")
        if kind == "x":
            row, gates = f.add(here.z_row, self.r), cell.letters
            return self._slot(self.kernel.own_z, row, len(gates), gates.index(gate))
        if kind == "p":
            return self._slot(a["p"], Value("i64", "0"), 0, cell.peephole_gates.index(gate))
        place = self.phase.stage.gates.index(gate) * self.part.columns
        return f.at(self.own, place, self.kernel.element)

    def _load(self, name: str) -> Value:
        return self.f.load(self.part.lanes.type, self._address(name), 4)

    def _store(self, name: str, value: Value) -> None:
        """A result to where it is kept."""
        f, here = self.f, self.here
        if name == "reads":
            k = self.kernel.schedule.phases.index(self.phase) + 1
            self._store_factor(value, self.a[f"reads_{k}"], "ld")
        elif name == "c":
            f.store(value, self._at(here.c_new, self.row, "ld"), 4)
        elif name == "h":
            f.store(value, self._at(here.h_new, self.row, "ld_h"), 4)
            if self.kernel.shape.pairs:
                self._store_factor(value, here.halves_new, "ld_h")
            self._output(value)
        else:
            f.store(value, self._address(name), 4)

    def _store_factor(self, value: Value, base: Value, ld: str) -> None:
        """What a product will multiply."""
        f = self.f
        if self.kernel.shape.pairs:
            place = f.add(f.mul(self.row, self.a[ld]), self.column)
            f.store(
                halved(f, self.part.lanes, value, self.kernel.machine), f.at(base, place, "i16"), 2
            )
        else:
            f.store(value, self._at(base, self.row, ld), 4)

    def _output(self, value: Value) -> None:
        """The layer's output of this step, without the columns that only fill the vector."""
        f, a = self.f, self.a
        with f.when(f.compare("ne", f.convert("ptrtoint", a["y"], "i64"), 0)):
            start = f.load("i64", f.at(a["y_at"], self.row, "i64"))
            at = f.add(f.add(start, f.mul(self.here.step, a["y_step"])), self.column)
            place = f.at(a["y"], at, self.kernel.element)
            store_part(f, self.part.lanes, value, place, f.sub(a["out_size"], self.column))
