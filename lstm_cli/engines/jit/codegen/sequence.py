"""What the forward and the backward kernel share: groups of rows, panels, meetings, time.

Rows are sequences, sorted so that those still running at any step are the first ones. Threads
either take groups of rows each and never meet, or share the columns of one group, and then meet
whenever one reads what another wrote.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lstm_cli.engines.jit.codegen.ir import Module, Operand, Value
from lstm_cli.engines.jit.codegen.tile import Part, Split, Tiles
from lstm_cli.engines.jit.runtime.machine import Machine
from lstm_cli.engines.jit.runtime.memory import Arguments
from lstm_cli.engines.jit.runtime.worker_ir import Team

CHUNK = 24
"""Rows whose products are kept, at most, before something is made of them."""

NUMBERS = ("T", "groups", "apart")
ADDRESSES = ("active", "starts", "firsts", "meeting", "yield")
"""What every such kernel is given; see `batch.Rows` and `teams.Team`."""


@dataclass(frozen=True)
class PanelHere:
    """One panel, of those that fall to this thread.

    Attributes
    ----------
    column
        Its first column.
    """

    kernel: SequenceKernel
    split: Split
    part: Part
    number: Value
    column: Value

    def data(self, base: Value, K: Operand) -> Value:
        """Where it begins in what was packed with so many k."""
        f = self.kernel.f
        size = f.mul(self.number, self.split.main.width)
        return f.at(base, f.mul(size, K), self.kernel.element)


@dataclass(frozen=True)
class Factors:
    """A packed matrix and the rows it multiplies.

    Attributes
    ----------
    w, init
        Panels, and what their sums begin from: a number for each, or the same for each panel.
    K, times, skip
        A row is `times` runs of K numbers, `skip` from one to the next.
    begins
        Whether each panel has its own numbers in `init`.
    turn
        Which time it is that they are multiplied.
    """

    w: Value
    init: Value
    K: Value
    turn: Value
    times: int = 1
    skip: Operand = 0
    begins: bool = True


class SequenceKernel:
    """The emission of a kernel over sequences.

    Attributes
    ----------
    f, a
        The function, and its block's entries.
    workers, me
        How many shares a group's columns have, and which of them is being computed.
    group, first, active
        The group of rows, its first row, and its counts of running rows by step.
    """

    def __init__(
        self, module: Module, name: str, layout: Arguments, element: str, machine: Machine
    ) -> None:
        self.machine, self.layout, self.element = machine, layout, element
        self.tiles = Tiles(module, machine)
        kinds = {"block": "ptr", "part": "i64", "parts": "i64"}
        self.f = f = module.function(name, kinds, exported=True)
        self.a = layout.read(f, f.args["block"])

    @contextmanager
    def groups(self) -> Iterator[Value]:
        """For each group of rows that this thread computes: its first number in all steps."""
        f, a, (_, part, parts) = self.f, self.a, self.f.args.values()
        alone = f.compare("sgt", a["groups"], 0)
        self.workers, self.me = f.select(alone, 1, parts), f.select(alone, 0, part)
        with f.loop(part, f.select(alone, a["groups"], f.add(part, 1)), parts) as turn:
            self.group = group = f.select(alone, turn, 0)
            self.first = f.load("i64", f.at(a["starts"], group, "i64"))
            self.active = f.at(a["active"], f.mul(group, a["T"]), "i64")
            self.team = Team(f, self.machine, a["meeting"], self.workers, self.me, a["yield"])
            yield f.load("i64", f.at(a["firsts"], group, "i64"))
        f.done()

    def running(self, step: Value) -> Value:
        """How many of the group's rows have this step."""
        return self.f.load("i64", self.f.at(self.active, step, "i64"), 8)

    def numbers(self, count: Value) -> Value:
        """From a step's first number to the next one's, where so many of the group's rows run."""
        apart = self.a["apart"]
        return self.f.select(self.f.compare("sgt", apart, 0), apart, count)

    def share(self, split: Split, part: Part, count: Value) -> tuple[Value, Value]:
        """The first panel of one shape that falls to this thread, and the one behind its last."""
        f = self.f
        if part is split.main:
            start = f.div(f.mul(count, self.me), self.workers)
            return start, f.div(f.mul(count, f.add(self.me, 1)), self.workers)
        last = f.compare("eq", f.add(self.me, 1), self.workers)
        return count, f.add(count, f.select(last, 1, 0))

    @contextmanager
    def panels(self, split: Split, part: Part, count: Value) -> Iterator[PanelHere]:
        """This thread's share of the panels of one shape, one after another."""
        with self.f.loop(*self.share(split, part, count)) as number:
            yield self._panel(split, part, number)

    def _panel(self, split: Split, part: Part, number: Value) -> PanelHere:
        column = self.f.mul(number, split.main.columns)
        return PanelHere(self, split, part, number, column)

    @contextmanager
    def products(
        self, split: Split, part: Part, panels: Value, rows: Value, count: Value, factors: Factors
    ) -> Iterator[tuple[Value, Value, Value]]:
        """This thread's panels of one shape times `count` rows, and then, for each row and vector
        of columns: the row, the column, and the address of what the first gate has there.

        With few rows, several panels come before what is made of them, which then overlaps.
        """
        f, product = self.f, self.tiles.products(part)
        found = f.array(CHUNK * part.width, self.element)
        start, stop = self.share(split, part, panels)
        together = f.select(
            f.compare("slt", count, CHUNK // 2), f.div(CHUNK, f.larger(count, 1)), 1
        )
        K, times, skip = factors.K, factors.times, factors.skip
        run = f.mul(K, times)
        back = f.compare("ne", f.binary("and", factors.turn, 1), 0)
        with f.loop(start, stop, together) as first, f.loop(0, count, CHUNK) as begun:
            some, at = f.smaller(f.sub(count, begun), CHUNK), f.at(rows, begun, "ptr")
            here = f.smaller(f.sub(stop, first), together)
            size = f.mul(some, part.width)
            # Every other time from the last panel to the first: what was read last is still in
            # a near cache then.
            turned = f.select(back, f.sub(here, 1), 0)
            panel = self._panel(split, part, f.add(first, turned))
            w, b = panel.data(factors.w, run), factors.init
            b = panel.data(b, 1) if factors.begins else b
            sign = f.select(back, -1, 1)
            f.call(
                *(product, at, some, w, K, times, skip, b),
                *(f.at(found, f.mul(turned, size), self.element), part.width, part.columns),
                *(here, f.mul(sign, f.mul(run, part.width))),
                *(f.mul(sign, part.width if factors.begins else 0), f.mul(sign, size)),
            )
            with (
                f.loop(0, here) as p,
                f.loop(0, some) as r,
                f.loop(0, part.columns, part.lanes.count) as shift,
            ):
                place = f.add(f.add(f.mul(p, size), f.mul(r, part.width)), shift)
                panel = self._panel(split, part, f.add(first, p))
                column = f.add(panel.column, shift)
                yield f.add(begun, r), column, f.at(found, place, self.element)

    def rows(self, into: Value, count: Value, base: Value, first: Value, ld: Value) -> None:
        """The addresses of `count` rows of a buffer, from row `first` on."""
        f = self.f
        with f.loop(0, count) as r:
            row = f.at(base, f.mul(f.add(first, r), ld), self.element)
            f.store(row, f.at(into, r, "ptr"))

    @contextmanager
    def phase(self) -> Iterator[None]:
        """What the threads of a group do together, each a share of the columns."""
        own = self.me
        with self.team.phase() as self.me:
            yield
        self.me = own

    def clock(self) -> Value:
        """The processor's count of time."""
        name = "llvm.readcyclecounter" if self.machine.x86 else "llvm.readsteadycounter"
        return self.f.intrinsic(name, "i64")

    def spent(self, entry: str, since: Value) -> Value:
        """Add what passed since `since` to an entry, on the first thread; the time now."""
        f = self.f
        now = self.clock()
        with f.when(f.compare("eq", f.args["part"], 0)):
            place = self.layout.place(f, f.args["block"], entry)
            f.store(f.add(f.load("i64", place), f.sub(now, since)), place)
        return now
