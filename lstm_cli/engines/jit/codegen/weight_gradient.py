"""Derivatives of weights: out[u][d] = sum over q of dz[q][u] a[q][d], over all steps q.

Steps are taken in blocks, as Goto and van de Geijn do (Anatomy of high-performance matrix
multiplication, 2008). In each block, `a` is packed into panels of a few vectors. `dz` is cut into
strips of a few units, in groups that share cache lines. Each pair of a strip and a panel is one
tile, whose sums stay in registers for the whole block. Vectors run along d, so the result has the
layout of the stored weights.

Threads share the result, never a sum. Blocks are the same for any number of threads, so the bits of
the result are the same too. Start at `run_weight_gradient`.
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
    lane_mask,
    load_masked,
    store_first,
    vector_text,
)
from lstm_cli.engines.jit.codegen.matmul import MemoryRows, least_padded_columns, row_address
from lstm_cli.engines.jit.codegen.tile import (
    UNROLL,
    Columns,
    PanelShape,
    PanelSplit,
    accumulate_products,
    max_tile_rows,
)
from lstm_cli.engines.jit.runtime.compiler import load_kernels
from lstm_cli.engines.jit.runtime.machine import Machine, this_machine
from lstm_cli.engines.jit.runtime.memory import Arguments, Workspace, address
from lstm_cli.engines.jit.runtime.thread_pool import run
from lstm_cli.engines.types import Array

_MIN_BLOCK_STEPS, _MAX_BLOCK_STEPS = 128, 512
"""Least and largest number of steps in a block. With fewer steps, adding a tile's sums to the
result would cost too much."""

_MIN_THREAD_WORK = 1 << 17
"""Least number of multiply-adds per thread, a few microseconds of work."""

_PACKING_COST = 0.5
"""Time of packing a panel, relative to the time of one of its tiles."""

_GROUP_STRIPS = 16
"""Number of strips computed together, so that their shared cache lines stay in a near cache."""


@dataclass(frozen=True)
class WeightGradientKernel:
    """A compiled kernel for results with rows of `columns.size` numbers.

    Attributes
    ----------
    address
        Address of the kernel.
    columns
        Split of a row of the result into panels.
    dtype
        NumPy's name of the dtype.
    panels
        Number of panels of a row.
    strip
        Number of units of a strip.
    block
        Number of steps in a block.
    machine
        Machine that the kernel is made for.
    """

    address: int
    columns: Columns
    dtype: str
    panels: int
    strip: int
    block: int
    machine: Machine


@lru_cache(maxsize=256)
def weight_gradient_kernel(
    size: int, element: str, machine: Machine | None = None
) -> WeightGradientKernel:
    """The kernel for rows `a` of `size` numbers of type ``float`` or ``double``."""
    machine = machine or this_machine()
    columns = least_padded_columns(size, machine.vector(element))
    if columns.count == 0 and columns.split.tail is not None:
        columns = Columns(PanelSplit(columns.split.tail, None), size, 1)
    split = columns.split
    kernels = load_kernels(f"weight gradient {split.name}", lambda: build(split, machine), machine)
    return WeightGradientKernel(
        address=kernels["weight_gradient"],
        columns=columns,
        dtype="float32" if element == "float" else "float64",
        panels=columns.count + (split.tail is not None),
        strip=strip_units(split, machine),
        block=_block_steps(split, machine),
        machine=machine,
    )


def strip_units(split: PanelSplit, machine: Machine) -> int:
    """Number of units of a strip: as many as fit in a tile of the widest panel."""
    return max_tile_rows(machine, split.main.vectors)


def _block_steps(split: PanelSplit, machine: Machine) -> int:
    """Number of steps in a block, so that a panel of a block fills an eighth of the cache."""
    fit = machine.cache // 8 // (split.main.gate_vectors * split.main.vector.bytes)
    return max(_MIN_BLOCK_STEPS, min(_MAX_BLOCK_STEPS, fit))


@dataclass(slots=True)
class WeightGradient:
    """Operands and results of one weight gradient.

    Attributes
    ----------
    steps
        Number of steps Q.
    dz
        Rows of derivatives, `units` numbers for each gate; other numbers of a row are not read.
    gates
        (gates,) int64 offset of each gate in a row of `dz`, in numbers.
    units
        Number of units H.
    a
        Rows that the weights multiplied in the forward pass, D numbers each.
    out
        (gates * H, D), overwritten.
    bias
        (gates * H,) overwritten with the sums of `dz`; None if they are not needed.
    """

    steps: int
    dz: MemoryRows
    gates: Array
    units: int
    a: MemoryRows
    out: Array
    bias: Array | None = None


def run_weight_gradient(
    kernel: WeightGradientKernel, gradient: WeightGradient, workspace: Workspace, threads: int
) -> None:
    """Compute derivatives on up to `threads` threads; results do not depend on their number."""
    if gradient.steps == 0:
        gradient.out[...] = 0
        if gradient.bias is not None:
            gradient.bias[...] = 0
    elif _is_narrow(kernel, gradient):
        _run_transposed(kernel, gradient, workspace, threads)
    else:
        _run(kernel, gradient, workspace, threads, kernel.columns.size, kernel.panels)


def _is_narrow(kernel: WeightGradientKernel, gradient: WeightGradient) -> bool:
    """True if D fills so little of a vector that vectors along the units are faster."""
    lanes = kernel.machine.vector(kernel.columns.split.main.vector.element).count
    return 2 * kernel.columns.size <= lanes <= gradient.units


def _run_transposed(
    kernel: WeightGradientKernel, gradient: WeightGradient, workspace: Workspace, threads: int
) -> None:
    """Compute the transposed result for the units of all gates at once, and copy it."""
    D, H = kernel.columns.size, gradient.units
    first = int(gradient.gates.min())
    size = int(gradient.gates.max()) - first + H
    element = kernel.columns.split.main.vector.element
    wide = weight_gradient_kernel(size, element, kernel.machine)
    result = workspace.shaped("transposed gradients", (D, size), kernel.dtype)
    base = gradient.dz.base + first * gradient.out.itemsize
    rows = MemoryRows(base, gradient.dz.step, gradient.dz.offsets)
    start = np.zeros(1, np.int64)
    transposed = WeightGradient(gradient.steps, gradient.a, start, D, rows, result)
    _run(wide, transposed, workspace, threads, size, wide.panels)
    for gate, place in enumerate(gradient.gates - first):
        gradient.out[gate * H : (gate + 1) * H] = result[:, place : place + H].T
    if gradient.bias is not None:
        _run(kernel, gradient, workspace, threads, 0, 0)


def _run(
    kernel: WeightGradientKernel,
    gradient: WeightGradient,
    workspace: Workspace,
    threads: int,
    size: int,
    panels: int,
) -> None:
    """Call the kernel; with no panels it computes the bias only."""
    columns, gates = kernel.columns, len(gradient.gates)
    strips_per_gate = -(-gradient.units // kernel.strip)
    work = gradient.steps * gradient.units * gates * columns.padded
    threads = max(1, min(threads, work // _MIN_THREAD_WORK))
    rows, across = _grid(gates * strips_per_gate, panels, threads)
    block = min(gradient.steps, kernel.block)
    a_size = block * -(-panels // across) * columns.split.main.width
    dz_size = block * _GROUP_STRIPS * kernel.strip if gradient.dz.offsets is not None else 0
    thread_size = a_size + dz_size
    memory = workspace.get("gradients", threads * thread_size, kernel.dtype)
    arguments = _ARGUMENTS.block(
        {
            "steps": gradient.steps,
            "gates": gates,
            "units": gradient.units,
            "size": size,
            "whole": min(columns.count, panels),
            "panels": panels,
            "strips_per_gate": strips_per_gate,
            "rows": rows,
            "across": across,
            "block": block,
            "thread_size": thread_size,
            "a_size": a_size,
            "places": address(gradient.gates),
            "out": address(gradient.out),
            "bias": address(gradient.bias),
            "memory": address(memory),
            **gradient.dz.entries("dz"),
            **gradient.a.entries("a"),
        }
    )
    run(kernel.address, address(arguments), threads)


@lru_cache(maxsize=256)
def _grid(strips: int, panels: int, threads: int) -> tuple[int, int]:
    """Numbers of runs of strips and of runs of panels into which the result is cut."""

    def cost(cut: tuple[int, int]) -> float:
        high, wide = -(-strips // cut[0]), -(-panels // cut[1])
        return max(wide, 1) * (high + _PACKING_COST)

    # At most as many runs as panels, since the thread that has the first panel sums the bias.
    cuts = [(k, min(threads // k, max(panels, 1))) for k in range(1, threads + 1)]
    return min(cuts, key=cost)


_NUMBERS = ["steps", "gates", "units", "size", "whole", "panels", "strips_per_gate", "rows"]
_NUMBERS += ["across", "block", "thread_size", "a_size", "dz_step", "a_step"]
_ADDRESSES = ["places", "out", "bias", "memory", "dz", "dz_at", "a", "a_at"]
_ARGUMENTS = Arguments(_NUMBERS, _ADDRESSES)
"""Entries of the argument block. `places`: offset of each gate in a row of `dz`. `rows`, `across`:
runs of strips and of panels, which cut the result into rectangles. `thread_size`: numbers in a
thread's workspace, of which the first `a_size` are for panels."""


def build(split: PanelSplit, machine: Machine) -> Module:
    """A module with the function ``weight_gradient``."""
    module = Module()
    _WeightGradientEmitter(module, split, machine).emit()
    return module


class _WeightGradientEmitter:
    """Emitter of one kernel, whose functions call each other in the order of the methods.

    Parameters of the functions: `block`, the argument block; `memory`, the thread's workspace;
    `q` and `n`, the first step of a block of steps and their number; `panel` and `panels`, the
    first panel and the one after the last; `gate`, the gate's number; `strip` and `strips`, the
    first strip of a gate and the one after the last.
    """

    def __init__(self, module: Module, split: PanelSplit, machine: Machine) -> None:
        self.module, self.split, self.machine = module, split, machine
        self.vector, self.element = split.main.vector, split.main.vector.element
        self.strip = strip_units(split, machine)

    def emit(self) -> None:
        """Write the whole kernel."""
        rectangle = self._emit_rectangle()
        kinds = {"block": "ptr", "part": "i64", "parts": "i64"}
        f = self.module.function("weight_gradient", kinds, exported=True)
        block, part, parts = f.args.values()
        a = _ARGUMENTS.read(f, block)
        memory = f.at(a["memory"], f.mul(a["thread_size"], part), self.element)
        strips = f.mul(a["gates"], a["strips_per_gate"])

        def share(count: Value, number: Value, of: Value) -> Value:
            return f.div(f.mul(count, number), of)

        with f.loop(part, f.mul(a["rows"], a["across"]), parts) as number:
            i, j = f.div(number, a["across"]), f.rem(number, a["across"])
            strip, strip_end = (share(strips, k, a["rows"]) for k in (i, f.add(i, 1)))
            panel, panel_end = (share(a["panels"], k, a["across"]) for k in (j, f.add(j, 1)))
            f.call(rectangle, block, memory, strip, strip_end, panel, panel_end)
        f.ret()

    def _function(self, name: str, *numbers: str) -> tuple[Function, dict[str, Value]]:
        """A function with the argument block, the workspace and some numbers as parameters."""
        kinds = {"block": "ptr", "memory": "ptr"} | dict.fromkeys(numbers, "i64")
        f = self.module.function(name, kinds)
        return f, _ARGUMENTS.read(f, f.args["block"])

    def _emit_rectangle(self) -> Function:
        """Emit a rectangle of the result, one block of steps after another."""
        pack, group = self._emit_pack_a(), self._emit_group()
        f, a = self._function("rectangle", "strip", "strips", "panel", "panels")
        block, memory, strip, strips, panel, panels = f.args.values()
        with f.loop(0, a["steps"], a["block"]) as q:
            n = f.minimum(f.sub(a["steps"], q), a["block"])
            f.call(pack, block, memory, q, n, panel, panels)
            with f.loop(0, a["gates"]) as gate:
                before = f.mul(gate, a["strips_per_gate"])
                first, last = f.sub(strip, before), f.sub(strips, before)
                first = f.select(f.compare("sgt", first, 0), first, 0)
                last = f.minimum(last, a["strips_per_gate"])
                with f.loop(first, last, _GROUP_STRIPS) as start:
                    stop = f.minimum(f.add(start, _GROUP_STRIPS), last)
                    f.call(group, block, memory, q, n, gate, start, stop, panel, panels)
        f.ret()
        return f

    def _emit_pack_a(self) -> Function:
        """Emit the packing of a block of `a`: panels [step][column], 0 after the last column."""
        f, a = self._function("pack_a", "q", "n", "panel", "panels")
        _, _, q, n, panel, panels = f.args.values()
        main, tail = self.split.main, self.split.tail
        with f.loop(0, n) as k:
            row = row_address(f, a, "a", f.add(q, k), self.element)
            with f.loop(panel, f.minimum(panels, a["whole"])) as number:
                self._copy(f, a, main, row, number, k)
            if tail is not None:
                with f.when(f.compare("sgt", panels, a["whole"])):
                    self._copy(f, a, tail, row, a["whole"], k)
        f.ret()
        return f

    def _panel(self, f: Function, number: Value) -> Value:
        """Address of a packed panel of `a`."""
        before = f.mul(f.sub(number, f.args["panel"]), f.args["n"])
        return f.at(f.args["memory"], f.mul(before, self.split.main.width), self.element)

    def _copy(
        self,
        f: Function,
        a: dict[str, Value],
        shape: PanelShape,
        row: Value,
        number: Value,
        k: Value,
    ) -> None:
        """Emit the copy of one step of one panel."""
        vector, column = shape.vector, f.mul(number, self.split.main.columns)
        source, remaining = f.at(row, column, self.element), f.sub(a["size"], column)
        target = f.at(self._panel(f, number), f.mul(k, shape.width), self.element)
        whole = f.compare("sge", remaining, shape.width)

        def copy(load: Callable[[Value, int], Value]) -> None:
            for v in range(0, shape.width, vector.count):
                value = load(f.at(source, v, self.element), v)
                f.store(value, f.at(target, v, self.element), vector.bytes)

        def load_part(at: Value, v: int) -> Value:
            return load_masked(f, vector, at, lane_mask(f, vector, f.sub(remaining, v)))

        with f.when(whole):
            copy(lambda at, _: f.load(vector.type, at, 4))
        with f.when(f.value("i1", f"xor {whole}, true")):
            copy(load_part)

    def _emit_group(self) -> Function:
        """Emit the product of some strips of one gate with every panel of a block."""
        sums, pack = self._emit_sums(), self._emit_pack_dz()
        tiles = [self._emit_tiles(shape) for shape in self.split.shapes]
        names = ("q", "n", "gate", "strip", "strips", "panel", "panels")
        f, a = self._function("group", *names)
        block, memory, q, n, gate, strip, strips, panel, panels = f.args.values()
        direct = f.value("i1", f"icmp eq {a['dz_at']}, null")
        with f.when(f.value("i1", f"xor {direct}, true")):
            f.call(pack, block, memory, q, n, gate, strip, strips)
        in_place = self._dz(f, a, q, self._first_unit(f, a))
        dz = f.select(direct, in_place, f.at(memory, a["a_size"], self.element))
        stride = f.select(direct, a["dz_step"], self.strip)
        strip_step = f.select(direct, self.strip, f.mul(n, self.strip))
        with f.loop(panel, panels) as number:
            for call, comparison in zip(tiles, ("slt", "sge"), strict=False):
                with f.when(f.compare(comparison, number, a["whole"])):
                    packed = self._panel(f, number)
                    f.call(
                        call,
                        block,
                        packed,
                        q,
                        n,
                        gate,
                        strip,
                        strips,
                        number,
                        dz,
                        stride,
                        strip_step,
                    )
        # The bias comes last, since the strips of `dz` are in a near cache by then.
        has_bias = f.value("i1", f"icmp ne {a['bias']}, null")
        with f.when(has_bias), f.when(f.compare("eq", panel, 0)):
            f.call(sums, block, memory, q, n, gate, strip, strips)
        f.ret()
        return f

    def _first_unit(self, f: Function, a: dict[str, Value]) -> Value:
        """Offset of the first strip's first unit in a row of `dz`, in numbers."""
        begin = f.load("i64", f.at(a["places"], f.args["gate"], "i64"), 8)
        return f.add(begin, f.mul(f.args["strip"], self.strip))

    def _dz(self, f: Function, a: dict[str, Value], q: Value, shift: Value) -> Value:
        """Address of number `shift` of a step's row of `dz`."""
        return f.at(row_address(f, a, "dz", q, self.element), shift, self.element)

    def _units(self, f: Function, a: dict[str, Value]) -> Value:
        last = f.minimum(f.mul(f.args["strips"], self.strip), a["units"])
        return f.sub(last, f.mul(f.args["strip"], self.strip))

    def _emit_pack_dz(self) -> Function:
        """Emit the packing of strips of a block of `dz`, each [step][unit]."""
        f, a = self._function("pack_dz", "q", "n", "gate", "strip", "strips")
        R, kind = self.strip, vector_text(self.strip, self.element)
        target = f.at(f.args["memory"], a["a_size"], self.element)
        units, n = self._units(f, a), f.args["n"]
        whole, first = f.mul(f.div(units, R), R), self._first_unit(f, a)
        with f.loop(0, n) as k:
            row = self._dz(f, a, f.add(f.args["q"], k), first)
            step = f.at(target, f.mul(k, R), self.element)
            with f.loop(0, whole, R) as unit:
                value = f.load(kind, f.at(row, unit, self.element), 4)
                f.store(value, f.at(step, f.mul(unit, n), self.element), 4)
            with f.loop(whole, units) as unit:
                value = f.load(self.element, f.at(row, unit, self.element))
                place = f.add(f.mul(whole, n), f.sub(unit, whole))
                f.store(value, f.at(step, place, self.element))
        f.ret()
        return f

    def _emit_sums(self) -> Function:
        """Emit the sums of a block of `dz` over its steps, added to the bias's derivatives."""
        f, a = self._function("sums", "q", "n", "gate", "strip", "strips")
        vector, q, units = self.vector, f.args["q"], self._units(f, a)
        place = f.add(f.mul(f.args["gate"], a["units"]), f.mul(f.args["strip"], self.strip))
        bias, first = f.at(a["bias"], place, self.element), self._first_unit(f, a)
        first_block = f.compare("eq", q, 0)

        def add(unit: Value, vectors: int) -> None:
            """Sum vectors of neighboring units; a single vector may have fewer units."""
            remaining = f.sub(units, unit)
            mask = lane_mask(f, vector, remaining)

            def load(at: Value) -> Value:
                full = vectors > 1
                return f.load(vector.type, at, 4) if full else load_masked(f, vector, at, mask)

            totals = [f.variable(vector.type, vector.number(0.0)) for _ in range(vectors)]
            shift = f.add(first, unit)
            with f.loop(0, f.args["n"]) as k:
                row = self._dz(f, a, f.add(q, k), shift)
                for v, total in enumerate(totals):
                    value = load(f.at(row, v * vector.count, self.element))
                    f.set(total, f.fadd(f.get(total), value))
            for v, total in enumerate(totals):
                at = f.at(f.at(bias, unit, self.element), v * vector.count, self.element)
                earlier = f.select(first_block, vector.number(0.0), load(at))
                count = f.sub(remaining, v * vector.count)
                store_first(f, vector, f.fadd(earlier, f.get(total)), at, count)

        start: Operand = 0
        for vectors in (4, 2):
            step = vectors * vector.count
            whole = f.mul(f.div(units, step), step)
            with f.loop(start, whole, step) as unit:
                add(unit, vectors)
            start = whole
        with f.loop(start, units, vector.count) as unit:
            add(unit, 1)
        f.ret()
        return f

    def _emit_tiles(self, shape: PanelShape) -> Function:
        """Emit the product of some strips with one panel."""
        tiles = {rows: self._emit_tile(rows, shape) for rows in range(1, self.strip + 1)}
        merge = self._emit_merge(shape)
        kinds = {"block": "ptr", "panel": "ptr"}
        kinds |= dict.fromkeys(("q", "n", "gate", "strip", "strips", "number"), "i64")
        kinds |= {"dz": "ptr", "stride": "i64", "strip_step": "i64"}
        f = self.module.function(f"tiles_{shape.name}", kinds)
        a, R = _ARGUMENTS.read(f, f.args["block"]), self.strip
        column = f.mul(f.args["number"], self.split.main.columns)
        remaining = f.sub(a["size"], column)
        sums = f.array(R * shape.width, self.element)
        with f.loop(f.args["strip"], f.args["strips"]) as strip:
            before = f.mul(f.sub(strip, f.args["strip"]), f.args["strip_step"])
            dz = f.at(f.args["dz"], before, self.element)
            unit = f.mul(strip, R)
            rows = f.minimum(f.sub(a["units"], unit), R)
            with f.switch(rows, list(tiles)) as cases:
                for count, case in cases.items():
                    with case:
                        panel, stride, n = (f.args[key] for key in ("panel", "stride", "n"))
                        f.call(tiles[count], panel, dz, stride, n, sums)
            row = f.add(f.mul(f.args["gate"], a["units"]), unit)
            out = f.at(f.at(a["out"], f.mul(row, a["size"]), self.element), column, self.element)
            f.call(merge, sums, rows, out, a["size"], remaining, f.args["q"])
        f.ret()
        return f

    def _emit_merge(self, shape: PanelShape) -> Function:
        """Emit the addition of a tile's sums to the result of earlier blocks."""
        kinds = {
            "sums": "ptr",
            "rows": "i64",
            "out": "ptr",
            "size": "i64",
            "remaining": "i64",
            "q": "i64",
        }
        f = self.module.function(f"merge_{shape.name}", kinds)
        sums, rows, out, size, remaining, q = f.args.values()
        vector, first_block = shape.vector, f.compare("eq", q, 0)
        whole = f.compare("sge", remaining, shape.width)

        def add(load: Callable[[Value, Value], Value]) -> None:
            with f.loop(0, rows) as r:
                source, target = f.mul(r, shape.width), f.at(out, f.mul(r, size), self.element)
                for v in range(0, shape.width, vector.count):
                    at, count = f.at(target, v, self.element), f.sub(remaining, v)
                    earlier = f.select(first_block, vector.number(0.0), load(at, count))
                    place = f.at(f.at(sums, source, self.element), v, self.element)
                    value = f.load(vector.type, place, vector.bytes)
                    store_first(f, vector, f.fadd(earlier, value), at, count)

        with f.when(whole):
            add(lambda at, _: f.load(vector.type, at, 4))
        with f.when(f.value("i1", f"xor {whole}, true")):
            add(lambda at, count: load_masked(f, vector, at, lane_mask(f, vector, count)))
        f.ret()
        return f

    def _emit_tile(self, rows: int, shape: PanelShape) -> Function:
        """Emit one tile of a block: sums[r][column]."""
        kinds = {"a": "ptr", "dz": "ptr", "stride": "i64", "n": "i64", "sums": "ptr"}
        f = self.module.function(f"outer_{rows}_{shape.name}", kinds)
        a, dz, stride, n, sums = f.args.values()
        vector, count = shape.vector, shape.vector.count
        zero = vector.number(0.0)
        totals = [
            [f.variable(vector.type, zero) for _ in range(shape.gate_vectors)] for _ in range(rows)
        ]

        def step(k: Value, offset: int) -> None:
            begin = f.at(a, f.mul(f.add(k, offset), shape.width), self.element)
            row = f.at(dz, f.mul(f.add(k, offset), stride), self.element)
            columns = [f.at(begin, v * count, self.element) for v in range(shape.gate_vectors)]
            numbers = [f.at(row, r, self.element) for r in range(rows)]
            by_column = [
                [totals_of_row[v] for totals_of_row in totals] for v in range(shape.gate_vectors)
            ]
            accumulate_products(f, vector, self.machine, columns, numbers, by_column)

        whole = f.mul(f.div(n, UNROLL), UNROLL)
        with f.loop(0, whole, UNROLL) as k:
            for offset in range(UNROLL):
                step(k, offset)
        with f.loop(whole, n) as k:
            step(k, 0)
        for r, row_totals in enumerate(totals):
            for v, total in enumerate(row_totals):
                place = f.at(sums, r * shape.width + v * count, self.element)
                f.store(f.get(total), place, vector.bytes)
        f.ret()
        return f
