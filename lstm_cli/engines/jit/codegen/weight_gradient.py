"""The kernel for derivatives of weights, written as LLVM IR: sums of outer products.

out[u][d] = sum over q of dz[q][u] a[q][d]. Steps q are taken in blocks, as Goto and van de Geijn do
(Anatomy of high-performance matrix multiplication, 2008): of each block, `a` is packed into
panels of a few vectors; `dz` is taken in strips of a few units, in groups that share lines of
memory. Each pair of a strip and a panel is one tile, whose sums stay in registers for the whole
block. Vectors lie along d: the result has the layout in which weights are stored.

Threads share out the result, never the sum.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from lstm_cli.engines.jit.codegen.ir import (
    Function,
    Module,
    Operand,
    Value,
    first_lanes,
    load_part,
    store_part,
    vector,
)
from lstm_cli.engines.jit.codegen.matmul import Lines, line, tight_columns
from lstm_cli.engines.jit.codegen.tile import UNROLL, Columns, Part, Split, add_products, row_limit
from lstm_cli.engines.jit.runtime.compiler import kernels
from lstm_cli.engines.jit.runtime.machine import Machine, host
from lstm_cli.engines.jit.runtime.memory import Arguments, Workspace, address
from lstm_cli.engines.jit.runtime.thread_pool import run
from lstm_cli.engines.types import Array

GROUP = 16
"""Strips that are taken together, so that a line of memory they share is still at hand."""


_NUMBERS = ["steps", "gates", "units", "size", "whole", "panels", "per_gate", "rows", "across"]
_NUMBERS += ["block", "own", "a_size", "dz_step", "a_step"]
_ADDRESSES = ["places", "out", "bias", "space", "dz", "dz_at", "a", "a_at"]
ARGUMENTS = Arguments(_NUMBERS, _ADDRESSES)
"""`places` is where in a row of `dz` each gate begins; `rows` and `across` cut the result into
rectangles, whole strips times whole panels; `own` is a thread's workspace, which begins with
`a_size` numbers for panels."""


def strip_units(split: Split, machine: Machine) -> int:
    """Units of a strip: as many as a tile of the widest panel has room for."""
    return row_limit(machine, split.main.vectors)


def build(split: Split, machine: Machine) -> Module:
    """A module with the function ``weight_gradient``."""
    module = Module()
    _Kernel(module, split, machine).emit()
    return module


class _Kernel:
    """The emission of one kernel, whose functions call each other in the order they stand in.

    Each is given the block of arguments, `own`, the thread's part of the workspace, and
    what it is to work on: `q` and `n`, the first step of a block and how many it has; `panel` and
    `panels`, the first panel and the one behind the last; `gate`; `strip` and `strips` of a gate.
    """

    def __init__(self, module: Module, split: Split, machine: Machine) -> None:
        self.module, self.split, self.machine = module, split, machine
        self.lanes, self.element = split.main.lanes, split.main.lanes.element
        self.strip = strip_units(split, machine)

    def emit(self) -> None:
        """All of it."""
        cell = self._emit_cell()
        kinds = {"given": "ptr", "part": "i64", "parts": "i64"}
        f = self.module.function("weight_gradient", kinds, exported=True)
        given, part, parts = f.args.values()
        a = ARGUMENTS.read(f, given)
        own = f.at(a["space"], f.mul(a["own"], part), self.element)
        strips = f.mul(a["gates"], a["per_gate"])

        def share(count: Value, number: Value, of: Value) -> Value:
            return f.div(f.mul(count, number), of)

        with f.loop(part, f.mul(a["rows"], a["across"]), parts) as number:
            i, j = f.div(number, a["across"]), f.rem(number, a["across"])
            high = [share(strips, k, a["rows"]) for k in (i, f.add(i, 1))]
            wide = [share(a["panels"], k, a["across"]) for k in (j, f.add(j, 1))]
            f.call(cell, given, own, *high, *wide)
        f.done()

    def _function(self, name: str, *numbers: str) -> tuple[Function, dict[str, Value]]:
        """A function that is given the block, the workspace and some numbers."""
        kinds = {"given": "ptr", "own": "ptr"} | dict.fromkeys(numbers, "i64")
        f = self.module.function(name, kinds)
        return f, ARGUMENTS.read(f, f.args["given"])

    def _emit_cell(self) -> Function:
        """A rectangle of the result, one block of steps after another."""
        pack, group = self._emit_pack_a(), self._emit_group()
        f, a = self._function("cell", "strip", "strips", "panel", "panels")
        given, own, strip, strips, panel, panels = f.args.values()
        with f.loop(0, a["steps"], a["block"]) as q:
            n = f.smaller(f.sub(a["steps"], q), a["block"])
            f.call(pack, given, own, q, n, panel, panels)
            with f.loop(0, a["gates"]) as gate:
                before = f.mul(gate, a["per_gate"])
                first, last = f.sub(strip, before), f.sub(strips, before)
                first = f.select(f.compare("sgt", first, 0), first, 0)
                last = f.smaller(last, a["per_gate"])
                with f.loop(first, last, GROUP) as begun:
                    ended = f.smaller(f.add(begun, GROUP), last)
                    f.call(group, given, own, q, n, gate, begun, ended, panel, panels)
        f.done()
        return f

    def _emit_pack_a(self) -> Function:
        """A block of `a` into the workspace, each panel [step][column], 0 behind the last."""
        f, a = self._function("pack_a", "q", "n", "panel", "panels")
        _, _, q, n, panel, panels = f.args.values()
        main, tail = self.split.main, self.split.tail
        with f.loop(0, n) as k:
            row = line(f, a, "a", f.add(q, k), self.element)
            with f.loop(panel, f.smaller(panels, a["whole"])) as number:
                self._copy(f, a, main, row, number, k)
            if tail is not None:
                with f.when(f.compare("sgt", panels, a["whole"])):
                    self._copy(f, a, tail, row, a["whole"], k)
        f.done()
        return f

    def _panel(self, f: Function, number: Value) -> Value:
        """Where a panel of `a` is packed."""
        before = f.mul(f.sub(number, f.args["panel"]), f.args["n"])
        return f.at(f.args["own"], f.mul(before, self.split.main.width), self.element)

    def _copy(
        self, f: Function, a: dict[str, Value], part: Part, row: Value, number: Value, k: Value
    ) -> None:
        """One step of one panel."""
        lanes, column = part.lanes, f.mul(number, self.split.main.columns)
        source, left = f.at(row, column, self.element), f.sub(a["size"], column)
        into = f.at(self._panel(f, number), f.mul(k, part.width), self.element)
        whole = f.compare("sge", left, part.width)

        def copy(load: Callable[[Value, int], Value]) -> None:
            for v in range(0, part.width, lanes.count):
                value = load(f.at(source, v, self.element), v)
                f.store(value, f.at(into, v, self.element), lanes.bytes)

        with f.when(whole):
            copy(lambda at, _: f.load(lanes.type, at, 4))
        with f.when(f.value("i1", f"xor {whole}, true")):
            copy(lambda at, v: load_part(f, lanes, at, first_lanes(f, lanes, f.sub(left, v))))

    def _emit_group(self) -> Function:
        """Some strips of one gate, and every panel of a block."""
        sums, pack = self._emit_sums(), self._emit_pack_dz()
        tiles = [self._emit_tiles(part) for part in self.split.parts]
        names = ("q", "n", "gate", "strip", "strips", "panel", "panels")
        f, a = self._function("group", *names)
        given, own, q, n, gate, strip, strips, panel, panels = f.args.values()
        some = (given, own, q, n, gate, strip, strips)
        direct = f.value("i1", f"icmp eq {a['dz_at']}, null")
        with f.when(f.value("i1", f"xor {direct}, true")):
            f.call(pack, *some)
        dz = f.select(
            direct, self._dz(f, a, q, self._first(f, a)), f.at(own, a["a_size"], self.element)
        )
        stride = f.select(direct, a["dz_step"], self.strip)
        apart = f.select(direct, self.strip, f.mul(n, self.strip))
        with f.loop(panel, panels) as number:
            for call, how in zip(tiles, ("slt", "sge"), strict=False):
                with f.when(f.compare(how, number, a["whole"])):
                    where = self._panel(f, number)
                    f.call(call, given, where, *some[2:], number, dz, stride, apart)
        # By now the group is in a cache.
        wanted = f.value("i1", f"icmp ne {a['bias']}, null")
        with f.when(wanted), f.when(f.compare("eq", panel, 0)):
            f.call(sums, *some)
        f.done()
        return f

    def _first(self, f: Function, a: dict[str, Value]) -> Value:
        """Where in a row of `dz` the gate's first strip asked for begins."""
        begin = f.load("i64", f.at(a["places"], f.args["gate"], "i64"), 8)
        return f.add(begin, f.mul(f.args["strip"], self.strip))

    def _dz(self, f: Function, a: dict[str, Value], q: Value, shift: Value) -> Value:
        """A place in the row of a step's derivatives."""
        return f.at(line(f, a, "dz", q, self.element), shift, self.element)

    def _units(self, f: Function, a: dict[str, Value]) -> Value:
        """How many units the strips have."""
        last = f.smaller(f.mul(f.args["strips"], self.strip), a["units"])
        return f.sub(last, f.mul(f.args["strip"], self.strip))

    def _emit_pack_dz(self) -> Function:
        """Strips of a block of `dz` into the workspace, each [step][unit]."""
        f, a = self._function("pack_dz", "q", "n", "gate", "strip", "strips")
        R, kind = self.strip, vector(self.strip, self.element)
        into = f.at(f.args["own"], a["a_size"], self.element)
        units, n = self._units(f, a), f.args["n"]
        whole, first = f.mul(f.div(units, R), R), self._first(f, a)
        with f.loop(0, n) as k:
            row = self._dz(f, a, f.add(f.args["q"], k), first)
            own = f.at(into, f.mul(k, R), self.element)
            with f.loop(0, whole, R) as unit:
                value = f.load(kind, f.at(row, unit, self.element), 4)
                f.store(value, f.at(own, f.mul(unit, n), self.element), 4)
            with f.loop(whole, units) as unit:
                value = f.load(self.element, f.at(row, unit, self.element))
                place = f.add(f.mul(whole, n), f.sub(unit, whole))
                f.store(value, f.at(own, place, self.element))
        f.done()
        return f

    def _emit_sums(self) -> Function:
        """The sums of a block of `dz` over its steps, added to the bias's derivatives."""
        f, a = self._function("sums", "q", "n", "gate", "strip", "strips")
        lanes, q, units = self.lanes, f.args["q"], self._units(f, a)
        here = f.add(f.mul(f.args["gate"], a["units"]), f.mul(f.args["strip"], self.strip))
        bias, first = f.at(a["bias"], here, self.element), self._first(f, a)
        begun = f.compare("eq", q, 0)

        def add(unit: Value, vectors: int) -> None:
            """Vectors of neighbouring units; a single one may have fewer units."""
            left = f.sub(units, unit)
            mask = first_lanes(f, lanes, left)

            def load(at: Value) -> Value:
                return f.load(lanes.type, at, 4) if vectors > 1 else load_part(f, lanes, at, mask)

            totals = [f.variable(lanes.type, lanes.number(0.0)) for _ in range(vectors)]
            shift = f.add(first, unit)
            with f.loop(0, f.args["n"]) as k:
                row = self._dz(f, a, f.add(q, k), shift)
                for v, total in enumerate(totals):
                    value = load(f.at(row, v * lanes.count, self.element))
                    f.set(total, f.fadd(f.get(total), value))
            for v, total in enumerate(totals):
                at = f.at(f.at(bias, unit, self.element), v * lanes.count, self.element)
                earlier = f.select(begun, lanes.number(0.0), load(at))
                here = f.sub(left, v * lanes.count)
                store_part(f, lanes, f.fadd(earlier, f.get(total)), at, here)

        done: Operand = 0
        for vectors in (4, 2):
            step = vectors * lanes.count
            whole = f.mul(f.div(units, step), step)
            with f.loop(done, whole, step) as unit:
                add(unit, vectors)
            done = whole
        with f.loop(done, units, lanes.count) as unit:
            add(unit, 1)
        f.done()
        return f

    def _emit_tiles(self, part: Part) -> Function:
        """Some strips and one panel."""
        tiles = {rows: self._emit_tile(rows, part) for rows in range(1, self.strip + 1)}
        merge = self._emit_merge(part)
        kinds = {"given": "ptr", "panel": "ptr"}
        kinds |= dict.fromkeys(("q", "n", "gate", "strip", "strips", "number"), "i64")
        kinds |= {"dz": "ptr", "stride": "i64", "apart": "i64"}
        f = self.module.function(f"tiles_{part.name}", kinds)
        a, R = ARGUMENTS.read(f, f.args["given"]), self.strip
        column = f.mul(f.args["number"], self.split.main.columns)
        left = f.sub(a["size"], column)
        sums = f.array(R * part.width, self.element)
        with f.loop(f.args["strip"], f.args["strips"]) as strip:
            ahead = f.mul(f.sub(strip, f.args["strip"]), f.args["apart"])
            dz = f.at(f.args["dz"], ahead, self.element)
            unit = f.mul(strip, R)
            rows = f.smaller(f.sub(a["units"], unit), R)
            with f.switch(rows, list(tiles)) as cases:
                for count, case in cases.items():
                    with case:
                        given = (f.args["panel"], dz, f.args["stride"], f.args["n"], sums)
                        f.call(tiles[count], *given)
            row = f.add(f.mul(f.args["gate"], a["units"]), unit)
            out = f.at(f.at(a["out"], f.mul(row, a["size"]), self.element), column, self.element)
            f.call(merge, sums, rows, out, a["size"], left, f.args["q"])
        f.done()
        return f

    def _emit_merge(self, part: Part) -> Function:
        """A tile's sums, added to the result if it has any of earlier blocks."""
        kinds = {
            "sums": "ptr",
            "rows": "i64",
            "out": "ptr",
            "size": "i64",
            "left": "i64",
            "q": "i64",
        }
        f = self.module.function(f"merge_{part.name}", kinds)
        sums, rows, out, size, left, q = f.args.values()
        lanes, begun = part.lanes, f.compare("eq", q, 0)
        whole = f.compare("sge", left, part.width)

        def add(load: Callable[[Value, Value], Value]) -> None:
            with f.loop(0, rows) as r:
                source, into = f.mul(r, part.width), f.at(out, f.mul(r, size), self.element)
                for v in range(0, part.width, lanes.count):
                    at, here = f.at(into, v, self.element), f.sub(left, v)
                    earlier = f.select(begun, lanes.number(0.0), load(at, here))
                    place = f.at(f.at(sums, source, self.element), v, self.element)
                    value = f.load(lanes.type, place, lanes.bytes)
                    store_part(f, lanes, f.fadd(earlier, value), at, here)

        with f.when(whole):
            add(lambda at, _: f.load(lanes.type, at, 4))
        with f.when(f.value("i1", f"xor {whole}, true")):
            add(lambda at, here: load_part(f, lanes, at, first_lanes(f, lanes, here)))
        f.done()
        return f

    def _emit_tile(self, rows: int, part: Part) -> Function:
        """sums[r][column] of a block."""
        kinds = {"a": "ptr", "dz": "ptr", "stride": "i64", "n": "i64", "sums": "ptr"}
        f = self.module.function(f"outer_{rows}_{part.name}", kinds)
        a, dz, stride, n, sums = f.args.values()
        lanes, count = part.lanes, part.lanes.count
        zero = lanes.number(0.0)
        totals = [[f.variable(lanes.type, zero) for _ in range(part.per)] for _ in range(rows)]

        def step(k: Value, offset: int) -> None:
            begin = f.at(a, f.mul(f.add(k, offset), part.width), self.element)
            here = f.at(dz, f.mul(f.add(k, offset), stride), self.element)
            columns = [f.at(begin, v * count, self.element) for v in range(part.per)]
            numbers = [f.at(here, r, self.element) for r in range(rows)]
            by_column = [[row[v] for row in totals] for v in range(part.per)]
            add_products(f, lanes, self.machine, columns, numbers, by_column)

        whole = f.mul(f.div(n, UNROLL), UNROLL)
        with f.loop(0, whole, UNROLL) as k:
            for offset in range(UNROLL):
                step(k, offset)
        with f.loop(whole, n) as k:
            step(k, 0)
        for r, row in enumerate(totals):
            for v, total in enumerate(row):
                place = f.at(sums, r * part.width + v * count, self.element)
                f.store(f.get(total), place, lanes.bytes)
        f.done()
        return f


_FEWEST, _MOST = 128, 512
"""Steps in a block: so many that a tile's sums pay for being added to the result."""

_SHARE = 1 << 17
"""Multiply-adds that are worth a thread: a few microseconds."""

_PACKING = 0.5
"""What packing a panel costs, of what a tile of it does."""


@dataclass(frozen=True)
class GradientKernel:
    """A compiled kernel, for results with rows of as many numbers as `columns` says.

    Attributes
    ----------
    dtype
        NumPy's name of it.
    panels
        Into how many panels a row is cut.
    strip
        Units of a tile.
    block
        Steps in a block.
    machine
        What it was made for.
    """

    address: int
    columns: Columns
    dtype: str
    panels: int
    strip: int
    block: int
    machine: Machine


@lru_cache(maxsize=256)
def gradient_kernel(size: int, element: str, machine: Machine | None = None) -> GradientKernel:
    """The kernel for rows `a` of `size` numbers, ``float`` or ``double``."""
    machine = machine or host()
    cut = tight_columns(size, machine.lanes(element))
    if cut.count == 0 and cut.split.tail is not None:
        cut = Columns(Split(cut.split.tail, None), size, 1)
    split = cut.split
    built = kernels(f"weight gradient {split.name}", lambda: build(split, machine), machine)
    return GradientKernel(
        address=built["weight_gradient"],
        columns=cut,
        dtype="float32" if element == "float" else "float64",
        panels=cut.count + (split.tail is not None),
        strip=strip_units(split, machine),
        block=_block(split, machine),
        machine=machine,
    )


def _block(split: Split, machine: Machine) -> int:
    """Steps in a block: as many as a panel has in an eighth of the cache."""
    fit = machine.cache // 8 // (split.main.per * split.main.lanes.bytes)
    return max(_FEWEST, min(_MOST, fit))


@dataclass(slots=True)
class WeightGradient:
    """What a weight's derivatives are computed of.

    Attributes
    ----------
    steps
        Q.
    dz
        Rows of derivatives, `units` numbers for each gate; what lies elsewhere is not used.
    gates
        (gates,) int64: where in a row of `dz` each gate begins.
    units
        H.
    a
        Rows of what the weights were multiplied with, D numbers each.
    out
        (gates * H, D), overwritten.
    bias
        (gates * H,) to be overwritten with the sums of `dz`; None: not wanted.
    """

    steps: int
    dz: Lines
    gates: Array
    units: int
    a: Lines
    out: Array
    bias: Array | None = None


def run_gradient(
    kernel: GradientKernel, given: WeightGradient, space: Workspace, threads: int
) -> None:
    """Compute derivatives on up to `threads` threads; the results do not depend on how many."""
    if given.steps == 0:
        given.out[...] = 0
        if given.bias is not None:
            given.bias[...] = 0
    elif _narrow(kernel, given):
        _run_transposed(kernel, given, space, threads)
    else:
        _run(kernel, given, space, threads, kernel.columns.size, kernel.panels)


def _narrow(kernel: GradientKernel, given: WeightGradient) -> bool:
    """Whether D fills so little of a vector that vectors had better lie along the units."""
    lanes = kernel.machine.lanes(kernel.columns.split.main.lanes.element).count
    return 2 * kernel.columns.size <= lanes <= given.units


def _run_transposed(
    kernel: GradientKernel, given: WeightGradient, space: Workspace, threads: int
) -> None:
    """The same with both factors exchanged, all gates' units at once."""
    D, H = kernel.columns.size, given.units
    first = int(given.gates.min())
    size = int(given.gates.max()) - first + H
    wide = gradient_kernel(size, kernel.columns.split.main.lanes.element, kernel.machine)
    found = space.shaped("transposed gradients", (D, size), kernel.dtype)
    base = given.dz.base + first * given.out.itemsize
    rows = Lines(base, given.dz.step, given.dz.offsets)
    swapped = WeightGradient(given.steps, given.a, np.zeros(1, np.int64), D, rows, found)
    _run(wide, swapped, space, threads, size, wide.panels)
    for gate, place in enumerate(given.gates - first):
        given.out[gate * H : (gate + 1) * H] = found[:, place : place + H].T
    if given.bias is not None:
        _run(kernel, given, space, threads, 0, 0)


def _run(
    kernel: GradientKernel,
    given: WeightGradient,
    space: Workspace,
    threads: int,
    size: int,
    panels: int,
) -> None:
    """Call the kernel; a result of no panels leaves the bias."""
    cut, gates = kernel.columns, len(given.gates)
    per_gate = -(-given.units // kernel.strip)
    work = given.steps * given.units * gates * cut.padded
    threads = max(1, min(threads, work // _SHARE))
    rows, across = _grid(gates * per_gate, panels, threads)
    block = min(given.steps, kernel.block)
    a_size = block * -(-panels // across) * cut.split.main.width
    own = a_size + (block * GROUP * kernel.strip if given.dz.offsets is not None else 0)
    values = {
        "steps": given.steps,
        "gates": gates,
        "units": given.units,
        "size": size,
        "whole": min(cut.count, panels),
        "panels": panels,
        "per_gate": per_gate,
        "rows": rows,
        "across": across,
        "block": block,
        "own": own,
        "a_size": a_size,
        "places": address(given.gates),
        "out": address(given.out),
        "bias": address(given.bias),
        "space": address(space.get("gradients", threads * own, kernel.dtype)),
        **given.dz.values("dz"),
        **given.a.values("a"),
    }
    filled = ARGUMENTS.block(values)
    run(kernel.address, address(filled), threads)


@lru_cache(maxsize=256)
def _grid(strips: int, panels: int, threads: int) -> tuple[int, int]:
    """Into how many runs of strips, and of panels, the result is cut for that many threads."""

    def cost(cut: tuple[int, int]) -> float:
        high, wide = -(-strips // cut[0]), -(-panels // cut[1])
        return max(wide, 1) * (high + _PACKING)

    # Never more runs of panels than panels: whoever has the first one sums the bias.
    cuts = [(k, min(threads // k, max(panels, 1))) for k in range(1, threads + 1)]
    return min(cuts, key=cost)
