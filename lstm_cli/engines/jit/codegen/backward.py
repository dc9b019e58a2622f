"""The backward kernel: the steps of one direction from last to first, written as LLVM IR.

A step begins with the products that bring the derivative of h back from the step behind it. The
gradient of the cell's own graph does the rest. Derivatives of pre-activations are kept for all
steps, since those of weights and inputs are large products over all of them, made afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from lstm_cli.cells import Cell
from lstm_cli.cells.expression import Expression, lift
from lstm_cli.cells.tracing import PROJECTED, Stage
from lstm_cli.engines.jit.codegen import cell
from lstm_cli.engines.jit.codegen.ir import Lanes, Module, Value, first_lanes, load_part
from lstm_cli.engines.jit.codegen.sequence import ADDRESSES, NUMBERS, Factors, SequenceKernel
from lstm_cli.engines.jit.codegen.tile import Part, Split
from lstm_cli.engines.jit.runtime.machine import Machine
from lstm_cli.engines.jit.runtime.memory import Arguments
from lstm_cli.engines.schedule import (
    MASK,
    BackwardPhase,
    Schedule,
    reads_symbol,
    symbols,
)


@dataclass(frozen=True)
class Derivatives:
    """Which derivatives are kept of each step, and where.

    Equal ones are kept once. Those that only the recurrence has come first, then the shared
    ones, then those that only the input has: so both find theirs side by side.

    Attributes
    ----------
    slots
        By slot, what it holds.
    recurrent, inputs
        By gate, the slot of ``h_<gate>`` and of ``x_<gate>``.
    """

    slots: tuple[Expression, ...]
    recurrent: dict[str, int]
    inputs: dict[str, int]


@lru_cache(maxsize=256)
def derivatives(cell: Cell, schedule: Schedule) -> Derivatives:
    """The slots of a cell's derivatives; 0 for a gate that nothing depends on."""
    found: dict[str, Expression] = {}
    for phase in schedule.backward:
        found |= phase.derivatives
    pairs = {g: tuple(found.get(f"{k}_{g}", lift(0.0)) for k in "hx") for g in cell.letters}
    apart = [gate for gate, (h, x) in pairs.items() if h is not x]
    shared = [gate for gate in cell.letters if gate not in apart]
    recurrent = {gate: k for k, gate in enumerate([*apart, *shared])}
    inputs = {gate: k + len(apart) for k, gate in enumerate([*shared, *apart])}
    slots = [pairs[gate][0] for gate in recurrent] + [pairs[gate][1] for gate in apart]
    return Derivatives(tuple(slots), recurrent, inputs)


def gate_order(slots: dict[str, int], gates: tuple[str, ...]) -> tuple[str, ...]:
    """Gates as their slots follow one another."""
    return tuple(sorted(gates, key=slots.__getitem__))


@dataclass(frozen=True)
class Shape:
    """What a kernel is made for: how each product's columns are cut."""

    lanes: Lanes
    products: tuple[Split, ...]

    @property
    def name(self) -> str:
        return ", ".join([self.lanes.suffix, *(split.name for split in self.products)])


@lru_cache(maxsize=8)
def arguments(phases: int) -> Arguments:
    """The kernel's block; see `forward.Blocks`.

    Product 0 brings h's derivative back from the step behind; product k undoes the stage of
    backward phase k.
    """
    numbers = [*NUMBERS, "ld", "ld_h", "h_step", "c_step", "slots", "d_slots", "d_step", "out_size"]
    numbers += ["limit"]
    addresses = [*ADDRESSES, "d", "d_at", "p", "h", "c", "m", "record", "dz", "dh", "dc"]
    addresses += ["dh_apart", "dp", "projected", "rows", "zeros"]
    for k in range(phases):
        numbers += [f"K_{k}", f"panels_{k}"]
        addresses += [f"w_{k}"]
    return Arguments(numbers, addresses)


def build(cell: Cell, schedule: Schedule, shape: Shape, machine: Machine) -> Module:
    """A module with the function ``backward``."""
    module = Module()
    _Kernel(module, cell, schedule, shape, machine).emit()
    return module


class _Kernel(SequenceKernel):
    """The emission of one backward kernel."""

    def __init__(
        self, module: Module, cell: Cell, schedule: Schedule, shape: Shape, machine: Machine
    ) -> None:
        layout = arguments(len(schedule.backward))
        super().__init__(module, "backward", layout, shape.lanes.element, machine)
        self.cell, self.schedule, self.shape = cell, schedule, shape
        self.kept = derivatives(cell, schedule)
        self.carries_h = any("h_prev" in phase.derivatives for phase in schedule.backward)

    def emit(self) -> None:
        """All of it."""
        f, a, part = self.f, self.a, self.f.args["part"]
        self.z_rows = f.at(a["rows"], f.mul(part, a["limit"]), "ptr")
        with self.groups() as number:
            q, t = f.variable("i64", number), f.variable("i64", 0)
            with f.while_() as ahead:
                ahead.leave_if(f.compare("sge", f.get(t), a["T"]))
                count = self.running(f.get(t))
                ahead.leave_if(f.compare("eq", count, 0))
                f.set(q, f.add(f.get(q), self.numbers(count)))
                f.set(t, f.add(f.get(t), 1))
            behind = f.variable("i64", 0)
            with f.while_() as steps:
                step, more = f.sub(f.get(t), 1), f.compare("sgt", f.get(t), 0)
                own = f.variable("i64", 0)
                with f.when(more):
                    f.set(own, self.running(step))
                rows, last = f.get(own), f.get(q)
                f.set(q, f.select(more, f.sub(last, self.numbers(rows)), last))
                here = _Here(self, step, f.get(q))
                self._gate_rows(f.get(behind), last, self.schedule.phases[0].stage.gates)
                with self.phase():
                    self._bring_back(f.get(t), f.get(behind))
                    with f.when(more):
                        self._begin(here, rows)
                steps.leave_if(f.compare("eq", f.get(t), 0))
                self._step(here, rows)
                f.set(t, step)
                f.set(behind, rows)

    def _gate_rows(self, count: Value, q: Value, gates: tuple[str, ...]) -> None:
        """The addresses of the rows' derivatives for neighbouring slots."""
        f, a = self.f, self.a
        first = min(self.kept.recurrent[gate] for gate in gates)
        base = f.at(a["dz"], f.mul(a["ld"], first), self.element)
        self.rows(self.z_rows, count, base, q, f.mul(a["ld"], a["d_slots"]))

    def _bring_back(self, step: Value, count: Value) -> None:
        """h's derivative from the step behind, for the rows that had it."""
        f, a = self.f, self.a
        gates = self.schedule.phases[0].stage.gates
        split = self.shape.products[0]
        factors = Factors(a["w_0"], a["zeros"], a["K_0"], step, len(gates), a["ld"], begins=False)
        for part in split.parts:
            lanes = part.lanes
            products = self.products(split, part, a["panels_0"], self.z_rows, count, factors)
            with products as (r, column, own):
                row = f.add(self.first, r)
                at = f.add(f.mul(row, a["ld_h"]), column)
                d = f.load(lanes.type, own, 4)
                if self.schedule.dropout:
                    mask = f.load(lanes.type, f.at(a["m"], at, self.element), 4)
                    d = f.fmul(d, mask)
                if self.carries_h:
                    apart = f.load(lanes.type, f.at(a["dh_apart"], at, self.element), 4)
                    d = f.fadd(d, apart)
                f.store(d, f.at(a["dh"], at, self.element), 4)

    def _step(self, here: _Here, count: Value) -> None:
        """The phases of one step, but for the first."""
        for k, phase in enumerate(self.schedule.backward):
            if phase.stage is None:
                continue
            self._sources(here, phase.stage, count)
            split, panels = self.shape.products[k], self.a[f"panels_{k}"]
            factors = self._factors(here, k, phase.stage)
            with self.phase():
                for part in split.parts:
                    products = self.products(split, part, panels, self.z_rows, count, factors)
                    with products as (r, column, own):
                        _Place(here, phase, k, part, r, column, own).compute()

    def _begin(self, here: _Here, count: Value) -> None:
        """The first phase, which has no product of its own."""
        f, phase, split = self.f, self.schedule.backward[0], self.shape.products[0]
        for part in split.parts:
            with (
                self.panels(split, part, self.a["panels_0"]) as panel,
                f.loop(0, count) as r,
                f.loop(0, part.columns, part.lanes.count) as shift,
            ):
                column = f.add(panel.column, shift)
                _Place(here, phase, 0, part, r, column, None).compute()

    def _sources(self, here: _Here, stage: Stage, count: Value) -> None:
        """The rows that undo a stage: the derivatives of what it gave."""
        a = self.a
        if stage.gates:
            self._gate_rows(count, here.q, stage.gates)
        else:
            self.rows(self.z_rows, count, a["projected"], here.q, a["ld_h"])

    def _factors(self, here: _Here, k: int, stage: Stage) -> Factors:
        a = self.a
        times = max(1, len(stage.gates))
        w, K = a[f"w_{k}"], a[f"K_{k}"]
        return Factors(w, a["zeros"], K, here.step, times, a["ld"], begins=False)


class _Here:
    """Where the states before a step are, and its first number in all steps."""

    def __init__(self, kernel: _Kernel, step: Value, q: Value) -> None:
        self.kernel, self.step, self.q = kernel, step, q
        f, a, element = kernel.f, kernel.a, kernel.element
        self.h = f.at(a["h"], f.mul(step, a["h_step"]), element)
        self.c = f.at(a["c"], f.mul(step, a["c_step"]), element)


class _Place:
    """One row and one vector of columns: where its numbers are, and the derivatives there."""

    def __init__(
        self,
        here: _Here,
        phase: BackwardPhase,
        k: int,
        part: Part,
        r: Value,
        column: Value,
        own: Value | None,
    ) -> None:
        self.here, self.phase, self.k, self.part, self.own = here, phase, k, part, own
        self.kernel, self.f, self.a = here.kernel, here.kernel.f, here.kernel.a
        self.column, self.row = column, self.f.add(self.kernel.first, r)
        self.number = self.f.add(here.q, r)

    def compute(self) -> None:
        """All derivatives that can be known in this phase."""
        f, slots = self.f, self.kernel.kept.slots
        own = dict(self.phase.derivatives)
        roots = {
            n: d for n, d in own.items() if n.partition("_")[0] not in ("x", "h") or "_prev" in n
        }
        roots |= {f"dz {s}": d for s, d in enumerate(slots) if self._falls_here(d, own)}
        names = symbols(roots.values())
        values = {name: self._load(name) for name in names}
        if self.k == 0 and self._later("d_h"):
            d_h = values.get("d_h") or self._load("d_h")
            f.store(d_h, self._at(self.a["dh"], self.row, "ld_h"), 4)
        for name, d in cell.emit(f, self.part.lanes, roots, values).items():
            self._store(name, d)

    def _falls_here(self, d: Expression, own: dict[str, Expression]) -> bool:
        """Whether a slot is filled in this phase; constants are in the last one."""
        last = self.k == len(self.kernel.schedule.backward) - 1
        return any(d is other for other in own.values()) or (last and d.op == "constant")

    def _later(self, name: str) -> bool:
        phases = self.kernel.schedule.backward[1:]
        return any(name in symbols(phase.derivatives.values()) for phase in phases)

    def _at(self, base: Value, row: Value, ld: str) -> Value:
        """The vector in a row of a buffer."""
        f = self.f
        return f.at(base, f.add(f.mul(row, self.a[ld]), self.column), self.kernel.element)

    def _slot(self, base: Value, row: Value, slots: Value | int, k: int) -> Value:
        return self._at(base, self.f.add(self.f.mul(row, slots), k), "ld")

    def _load(self, name: str) -> Value:
        """The value of a symbol."""
        here, a, f, lanes = self.here, self.a, self.f, self.part.lanes
        if name == "d_h" and self.k == 0:
            carried = f.load(lanes.type, self._at(a["dh"], self.row, "ld_h"), 4)
            start = f.load("i64", f.at(a["d_at"], self.row, "i64"))
            at = f.add(f.add(start, f.mul(here.step, a["d_step"])), self.column)
            count = f.sub(a["out_size"], self.column)
            place = f.at(a["d"], at, self.kernel.element)
            own = load_part(f, lanes, place, first_lanes(f, lanes, count))
            return f.fadd(carried, own)
        return f.load(lanes.type, self._address(name), 4)

    def _address(self, name: str) -> Value:
        """Where a symbol's value is kept."""
        here, a = self.here, self.a
        if self.own is not None and name == str(reads_symbol(self._product()).payload):
            return self.own
        if name.startswith("slot "):
            slot = int(name.removeprefix("slot "))
            return self._slot(a["record"], self.number, a["slots"], slot)
        if name.startswith("p_"):
            gates = self.kernel.cell.peephole_gates
            return self._slot(a["p"], Value("i64", "0"), 0, gates.index(name[2:]))
        buffer, row, ld = {
            "d_h": (a["dh"], self.row, "ld_h"),
            "d_c": (a["dc"], self.row, "ld"),
            "h_prev": (here.h, self.row, "ld_h"),
            "c_prev": (here.c, self.row, "ld"),
            MASK: (a["m"], self.row, "ld_h"),
        }[name]
        return self._at(buffer, row, ld)

    def _product(self) -> int:
        """The number of the stage that this phase undoes."""
        stages = [phase.stage for phase in self.kernel.schedule.phases]
        return stages.index(self.phase.stage)  # type: ignore[arg-type]

    def _store(self, name: str, d: Value) -> None:
        """A derivative to where it is kept."""
        f, a = self.f, self.a
        if name.startswith("dz "):
            slot = int(name.removeprefix("dz "))
            f.store(d, self._slot(a["dz"], self.number, a["d_slots"], slot), 4)
        elif name.startswith("p_"):
            # By row, for the sums over rows are not to depend on how these are grouped.
            gates = self.kernel.cell.peephole_gates
            at = self._slot(a["dp"], self.row, len(gates), gates.index(name[2:]))
            f.store(f.fadd(f.load(d.type, at, 4), d), at, 4)
        elif name == PROJECTED:
            f.store(d, self._at(a["projected"], self.number, "ld_h"), 4)
        elif name == "c_prev":
            f.store(d, self._at(a["dc"], self.row, "ld"), 4)
        else:
            f.store(d, self._at(a["dh_apart"], self.row, "ld_h"), 4)
