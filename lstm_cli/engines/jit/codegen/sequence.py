"""Loops that the forward and the backward kernel share: groups of rows, panels, phases, time.

Rows are sequences, longest first, so that at any step the running ones are the first rows. Threads
either take whole groups of rows and never wait for each other, or share the columns of one group.
In the second case they wait at the end of each phase, since the next phase reads what all wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lstm_cli.engines.jit.codegen.ir import Function, Module, Operand, Value
from lstm_cli.engines.jit.codegen.tile import PanelShape, PanelSplit, TileEmitter
from lstm_cli.engines.jit.runtime.machine import Machine
from lstm_cli.engines.jit.runtime.memory import Arguments
from lstm_cli.engines.jit.runtime.worker_ir import SharedPhases

MAX_CHUNK_ROWS = 24
"""Largest number of rows whose products are computed before the cell's equations use them."""

NUMBERS = ("T", "groups", "step_stride")
ADDRESSES = ("active", "starts", "first_records", "phase_memory", "syscall")
"""Argument entries of every sequence kernel; see `batch.RowGroups` and `worker_ir.SharedPhases`."""


@dataclass(frozen=True)
class Panel:
    """One panel of this thread's share.

    Attributes
    ----------
    number
        Number of the panel among all panels.
    column
        First column of the panel.
    """

    kernel: SequenceKernel
    split: PanelSplit
    shape: PanelShape
    number: Value
    column: Value

    def data(self, base: Value, K: Operand) -> Value:
        """Address of the panel in a matrix packed with K numbers per column."""
        f = self.kernel.f
        size = f.mul(self.number, self.split.main.width)
        return f.at(base, f.mul(size, K), self.kernel.element)


@dataclass(frozen=True)
class MatmulOperand:
    """A packed matrix, and the layout of the rows it multiplies.

    Attributes
    ----------
    w, init
        Panels, and initial values of their sums.
    K, times, skip
        A row is `times` runs of K numbers, with `skip` numbers from the start of one run to the
        start of the next.
    parity
        Number whose lowest bit alternates from one product to the next.
    init_per_panel
        True: each panel has its own initial values. False: all panels share them.
    """

    w: Value
    init: Value
    K: Value
    parity: Value
    times: int = 1
    skip: Operand = 0
    init_per_panel: bool = True


def cycle_counter(f: Function, machine: Machine) -> Value:
    """The processor's cycle counter."""
    name = "llvm.readcyclecounter" if machine.x86 else "llvm.readsteadycounter"
    return f.intrinsic(name, "i64")


class SequenceKernel:
    """Emitter of a kernel over sequences.

    Attributes
    ----------
    f, a
        The function, and the values of its argument block by name.
    workers, me
        Number of shares of a group's columns, and the share being computed.
    group, first, active
        The group of rows, its first row, and the address of its running rows by step.
    """

    def __init__(
        self, module: Module, name: str, layout: Arguments, element: str, machine: Machine
    ) -> None:
        self.machine, self.layout, self.element = machine, layout, element
        self.tiles = TileEmitter(module, machine)
        kinds = {"block": "ptr", "part": "i64", "parts": "i64"}
        self.f = f = module.function(name, kinds, exported=True)
        self.a = layout.read(f, f.args["block"])

    @contextmanager
    def groups(self) -> Iterator[Value]:
        """Loop over this thread's groups of rows. Yields the number of a group's first record."""
        f, a, (_, part, parts) = self.f, self.a, self.f.args.values()
        owns_groups = f.compare("sgt", a["groups"], 0)
        self.workers, self.me = f.select(owns_groups, 1, parts), f.select(owns_groups, 0, part)
        stop = f.select(owns_groups, a["groups"], f.add(part, 1))
        with f.loop(part, stop, parts) as number:
            self.group = group = f.select(owns_groups, number, 0)
            self.first = f.load("i64", f.at(a["starts"], group, "i64"))
            self.active = f.at(a["active"], f.mul(group, a["T"]), "i64")
            self.phases = SharedPhases(
                f, self.machine, a["phase_memory"], self.workers, self.me, a["syscall"]
            )
            yield f.load("i64", f.at(a["first_records"], group, "i64"))
        f.ret()

    def running(self, step: Value) -> Value:
        """Number of the group's rows that have this step."""
        return self.f.load("i64", self.f.at(self.active, step, "i64"), 8)

    def records(self, count: Value) -> Value:
        """Number of step records from one step to the next, where `count` rows of a group run."""
        stride = self.a["step_stride"]
        return self.f.select(self.f.compare("sgt", stride, 0), stride, count)

    def share(self, split: PanelSplit, shape: PanelShape, count: Value) -> tuple[Value, Value]:
        """First panel of one shape in this thread's share, and the panel after the last one."""
        f = self.f
        if shape is split.main:
            start = f.div(f.mul(count, self.me), self.workers)
            return start, f.div(f.mul(count, f.add(self.me, 1)), self.workers)
        last = f.compare("eq", f.add(self.me, 1), self.workers)
        return count, f.add(count, f.select(last, 1, 0))

    @contextmanager
    def panels(self, split: PanelSplit, shape: PanelShape, count: Value) -> Iterator[Panel]:
        """Loop over this thread's share of the panels of one shape."""
        start, stop = self.share(split, shape, count)
        with self.f.loop(start, stop) as number:
            yield self._panel(split, shape, number)

    def _panel(self, split: PanelSplit, shape: PanelShape, number: Value) -> Panel:
        column = self.f.mul(number, split.main.columns)
        return Panel(self, split, shape, number, column)

    @contextmanager
    def products(
        self,
        split: PanelSplit,
        shape: PanelShape,
        panels: Value,
        rows: Value,
        count: Value,
        operand: MatmulOperand,
    ) -> Iterator[tuple[Value, Value, Value]]:
        """Multiply `count` rows with this thread's panels, then loop over the results.

        Yields a row, the first column of a vector, and the address of the first gate's result.
        With few rows, several panels are multiplied before the loop over their results. Then the
        processor overlaps the loop with the products.
        """
        f, product = self.f, self.tiles.products(shape)
        results = f.array(MAX_CHUNK_ROWS * shape.width, self.element)
        start, stop = self.share(split, shape, panels)
        batch = f.select(
            f.compare("slt", count, MAX_CHUNK_ROWS // 2),
            f.div(MAX_CHUNK_ROWS, f.maximum(count, 1)),
            1,
        )
        K, times, skip = operand.K, operand.times, operand.skip
        run = f.mul(K, times)
        backwards = f.compare("ne", f.binary("and", operand.parity, 1), 0)
        with (
            f.loop(start, stop, batch) as first,
            f.loop(0, count, MAX_CHUNK_ROWS) as first_row,
        ):
            some = f.minimum(f.sub(count, first_row), MAX_CHUNK_ROWS)
            at = f.at(rows, first_row, "ptr")
            here = f.minimum(f.sub(stop, first), batch)
            size = f.mul(some, shape.width)
            # Every second step runs from the last panel to the first, since the panels that were
            # read last are still in a near cache.
            begin = f.select(backwards, f.sub(here, 1), 0)
            panel = self._panel(split, shape, f.add(first, begin))
            w, init = panel.data(operand.w, run), operand.init
            init = panel.data(init, 1) if operand.init_per_panel else init
            sign = f.select(backwards, -1, 1)
            out = f.at(results, f.mul(begin, size), self.element)
            w_step = f.mul(sign, f.mul(run, shape.width))
            init_step = f.mul(sign, shape.width if operand.init_per_panel else 0)
            out_step, width, columns = f.mul(sign, size), shape.width, shape.columns
            f.call(
                product,
                at,
                some,
                w,
                K,
                times,
                skip,
                init,
                out,
                width,
                columns,
                here,
                w_step,
                init_step,
                out_step,
            )
            with (
                f.loop(0, here) as p,
                f.loop(0, some) as r,
                f.loop(0, shape.columns, shape.vector.count) as shift,
            ):
                place = f.add(f.add(f.mul(p, size), f.mul(r, shape.width)), shift)
                panel = self._panel(split, shape, f.add(first, p))
                column = f.add(panel.column, shift)
                yield f.add(first_row, r), column, f.at(results, place, self.element)

    def rows(self, target: Value, count: Value, base: Value, first: Value, ld: Value) -> None:
        """Write the addresses of `count` rows of a buffer, from row `first` on, to `target`."""
        f = self.f
        with f.loop(0, count) as r:
            row = f.at(base, f.mul(f.add(first, r), ld), self.element)
            f.store(row, f.at(target, r, "ptr"))

    @contextmanager
    def phase(self) -> Iterator[None]:
        """Context of code that the threads of a group share: each computes some columns."""
        me = self.me
        with self.phases.phase() as self.me:
            yield
        self.me = me

    def clock(self) -> Value:
        """The processor's cycle counter."""
        return cycle_counter(self.f, self.machine)

    def add_cycles(self, entry: str, since: Value) -> Value:
        """Add the cycles since `since` to an argument entry, on the first thread.

        Returns the cycle counter now.
        """
        f = self.f
        now = self.clock()
        with f.when(f.compare("eq", f.args["part"], 0)):
            place = self.layout.place(f, f.args["block"], entry)
            f.store(f.add(f.load("i64", place), f.sub(now, since)), place)
        return now
