"""Weights into panels, at the speed of memory: they are packed anew at every step of training.

A panel, see `layout`, is filled a strip of one vector's columns at a time. Where neighbouring
columns lie side by side in the matrix, vectors are copied; where neighbouring k do, squares of
so many rows as a vector has numbers are transposed in registers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from struct import Struct

import numpy as np

from lstm_cli.engines.jit.codegen.ir import (
    Function,
    Lanes,
    Module,
    Value,
    first_lanes,
    load_part,
    vector,
)
from lstm_cli.engines.jit.codegen.tile import Columns
from lstm_cli.engines.jit.runtime.compiler import kernels
from lstm_cli.engines.jit.runtime.machine import Machine
from lstm_cli.engines.jit.runtime.memory import Arguments, Stock, address, aligned
from lstm_cli.engines.jit.runtime.thread_pool import run
from lstm_cli.engines.setup import PACKING, setting_up
from lstm_cli.engines.types import Array

_SHARE = 1 << 16
"""Numbers that are worth a thread."""

_COPIED, _TRANSPOSED = 16, 256
"""Steps of k that are done at once: few where every row is read through all panels before the
next; for transposing, some cache lines of every row."""

_STREAMED = 8
"""Second-level caches: what is larger goes past all caches, which would first read what is to be
overwritten, and then keep it in place of something that is needed sooner."""

_NUMBERS = ["gates", "times", "K", "column", "step", "size", "whole", "panels"]
_NUMBERS += ["wide", "narrow", "halved", "streamed", "chunk", "group"]
_ARGUMENTS = Arguments(_NUMBERS, ["starts", "matrix", "out"])
_Block = ctypes.c_char * (8 * len(_ARGUMENTS.names))
_PLACES, _LAST = Struct("2q"), 8 * (len(_ARGUMENTS.names) - 2)
"""What changes from matrix to matrix, the block's last entries, and where they are."""


@dataclass(frozen=True)
class Order:
    """How a matrix lies in memory, in numbers.

    Attributes
    ----------
    starts
        Where each gate begins, for the first run of k, then for the next.
    K
        Numbers of a run.
    column, step
        From a gate's column to the next, and from one k to the next; one of them is 1.
    """

    starts: tuple[tuple[int, ...], ...]
    K: int
    column: int
    step: int = 1

    @classmethod
    def of(cls, gates: int, size: int, K: int) -> Order:
        """A matrix (gates * size, K) without gaps."""
        return cls((tuple(gate * size * K for gate in range(gates)),), K, K)

    @classmethod
    def of_array(cls, matrix: Array) -> Order:
        """A matrix (size, K) of one gate, whose rows or columns have no gaps within them."""
        column, step = (stride // matrix.itemsize for stride in matrix.strides)
        return cls(((0,),), matrix.shape[1], column, step)

    @classmethod
    def row(cls, gates: int, size: int) -> Order:
        """A number for each column: (gates * size,)."""
        return cls((tuple(gate * size for gate in range(gates)),), 1, 1)

    @classmethod
    def transposed(cls, size: int, width: int, blocks: Sequence[int] = (0,)) -> Order:
        """A matrix of blocks (size, `width`), of which k runs through those of these numbers.

        Its columns are the matrix's.
        """
        return cls(tuple((block * size * width,) for block in blocks), size, 1, width)


@dataclass(frozen=True)
class Packed:
    """A matrix as panels, with what its sums begin from.

    Attributes
    ----------
    columns
        What it gives.
    K
        How many numbers of a vector it multiplies.
    """

    columns: Columns
    K: int
    panels: Array
    init: Array


class Packer:
    """Packs matrices of one shape.

    Parameters
    ----------
    columns
        What they are cut into.

    Raises
    ------
    ValueError
        Neither columns nor numbers of one are side by side.
    """

    def __init__(self, columns: Columns, order: Order, machine: Machine, threads: int) -> None:
        if 1 not in (order.column, order.step):
            raise ValueError(f"neither columns nor numbers of one are side by side in {order}")
        self.columns, self.K = columns, order.K * len(order.starts)
        lanes, split = columns.split.main.lanes, columns.split
        self.size = self.K * columns.width
        self.dtype = np.dtype(np.float32 if lanes.element == "float" else np.float64)
        panels = columns.count + (split.tail is not None)
        self._parts = max(1, min(threads, panels, self.size // _SHARE))
        self._run = packing_kernel(lanes, machine)
        self._starts = np.array(order.starts, np.int64)
        share = -(-panels // self._parts)
        copied = order.column == 1
        self._values = {
            "gates": split.gates,
            "times": len(order.starts),
            "K": order.K,
            "column": order.column,
            "step": order.step,
            "size": columns.size,
            "whole": columns.count,
            "panels": panels,
            "wide": split.main.columns,
            "narrow": split.tail.columns if split.tail else 0,
            "halved": split.tail is not None and split.tail.lanes != lanes,
            "streamed": self.size * self.dtype.itemsize > _STREAMED * machine.cache,
            "chunk": _COPIED if copied else _TRANSPOSED,
            "group": share if copied else 1,
            "starts": address(self._starts),
        }
        self._fixed = _ARGUMENTS.pack(self._values | {"matrix": 0, "out": 0})

    def __call__(self, matrix: Array, stock: Stock) -> Array:
        """The panels, 0 in the padding."""
        out = stock.array(self.size, self.dtype)
        self.fill(out, matrix)
        return out

    def fill(self, out: Array, matrix: Array) -> None:
        """The same, into an array of `size` numbers that begins on a cache line."""
        block = _Block.from_buffer_copy(self._fixed)
        _PLACES.pack_into(block, _LAST, address(matrix), address(out))
        run(self._run, ctypes.addressof(block), self._parts)


class Packing:
    """How matrices of one shape are packed with what their sums begin from.

    What they begin from is a number for each column of every gate, in the order of `columns`.
    """

    def __init__(self, columns: Columns, order: Order, machine: Machine, threads: int) -> None:
        self._panels = Packer(columns, order, machine, threads)
        row = Order.row(columns.split.gates, columns.size)
        self._row = Packer(columns, row, machine, 1)
        self.columns, self.K = columns, self._panels.K

    def __call__(self, matrix: Array, init: Array | None, stock: Stock) -> Packed:
        """A matrix, with `init`, None for zeros; both are read from where they begin."""
        with setting_up(PACKING):
            begin = self._zeros if init is None else self._row(init, stock)
            if self.columns.split.main.pairs:
                matrix = paired(matrix)
            return Packed(self.columns, self.K, self._panels(matrix, stock), begin)

    @cached_property
    def _zeros(self) -> Array:
        """Shared by all, for nobody writes to it."""
        found = aligned(self._row.size, self._row.dtype)
        found[:] = 0
        return found


@lru_cache(maxsize=256)
def packing(columns: Columns, order: Order, machine: Machine, threads: int) -> Packing:
    """What packs matrices of that shape."""
    return Packing(columns, order, machine, threads)


@lru_cache(maxsize=16)
def packing_kernel(lanes: Lanes, machine: Machine) -> int:
    """The address of the kernel for panels of such vectors."""
    return kernels(f"pack {lanes.suffix}", lambda: build(lanes, machine), machine)["pack"]


def build(lanes: Lanes, machine: Machine) -> Module:
    """A module with the function ``pack``."""
    module = Module()
    half = Lanes(lanes.element, max(1, lanes.count // 2))
    ways = [_Way(lanes), _Way(half), _Way(lanes, streamed=machine.x86)]
    made = {w: (_emit_copied(module, w), _emit_transposed(module, w)) for w in dict.fromkeys(ways)}
    strips = [made[way] for way in ways]
    kinds = {"given": "ptr", "part": "i64", "parts": "i64"}
    f = module.function("pack", kinds, exported=True)
    given, part, parts = f.args.values()
    a = _ARGUMENTS.read(f, given)
    start = f.div(f.mul(a["panels"], part), parts)
    stop = f.div(f.mul(a["panels"], f.add(part, 1)), parts)
    with (
        f.loop(start, stop, a["group"]) as first,
        f.loop(0, a["times"]) as turn,
        f.loop(0, a["K"], a["chunk"]) as k,
        f.loop(first, f.smaller(f.add(first, a["group"]), stop)) as number,
    ):
        _emit_panel(f, a, strips, lanes, number, turn, k)
    if machine.x86:  # others may not see what was streamed before this
        f.intrinsic("llvm.x86.sse.sfence", "void")
    f.done()
    return module


@dataclass(frozen=True)
class _Way:
    """Of filling a strip: how wide it is, and whether what is stored goes past the caches."""

    lanes: Lanes
    streamed: bool = False

    @property
    def name(self) -> str:
        return f"{self.lanes.suffix}{'_streamed' if self.streamed else ''}"

    def load(self, f: Function, source: Value) -> Value:
        return f.load(self.lanes.type, source, self.lanes.bits // 8)

    def store(self, f: Function, value: Value, target: Value) -> None:
        hint = ", !nontemporal !{i32 1}" if self.streamed else ""
        f.line(f"store {value}, {target}, align {self.lanes.bytes}{hint}")


def _emit_panel(
    f: Function,
    a: dict[str, Value],
    strips: list[tuple[Function, Function]],
    lanes: Lanes,
    number: Value,
    turn: Value,
    k: Value,
) -> None:
    """Some steps of k of one panel."""
    element, first = lanes.element, f.mul(number, a["wide"])
    tail = f.compare("sge", number, a["whole"])
    columns = f.select(tail, a["narrow"], a["wide"])
    halved = f.select(tail, a["halved"], 0)
    count = f.select(f.compare("ne", halved, 0), max(1, lanes.count // 2), lanes.count)
    width = f.mul(a["gates"], columns)
    begun = f.mul(f.mul(first, a["gates"]), f.mul(a["K"], a["times"]))
    begun = f.add(begun, f.mul(f.add(f.mul(turn, a["K"]), k), width))
    steps = f.smaller(a["chunk"], f.sub(a["K"], k))
    way = f.select(f.compare("ne", halved, 0), 1, f.mul(a["streamed"], 2))
    kind = f.add(f.mul(way, 2), f.select(f.compare("eq", a["column"], 1), 0, 1))
    with f.loop(0, a["gates"]) as gate:
        start = f.load("i64", f.at(a["starts"], f.add(f.mul(turn, a["gates"]), gate), "i64"), 8)
        start = f.add(start, f.mul(k, a["step"]))
        with f.loop(0, columns, count) as c:
            column = f.add(first, c)
            source = f.at(a["matrix"], f.add(start, f.mul(column, a["column"])), element)
            out = f.at(a["out"], f.add(f.add(begun, f.mul(gate, columns)), c), element)
            left = f.sub(a["size"], column)
            with f.switch(kind, range(6)) as cases:
                for which, case in cases.items():
                    copied = which % 2 == 0
                    apart = a["step"] if copied else a["column"]
                    with case:
                        strip = strips[which // 2][which % 2]
                        f.call(strip, source, apart, left, steps, out, width)


_STRIP = {"a": "ptr", "apart": "i64", "left": "i64", "steps": "i64", "out": "ptr", "width": "i64"}
"""Of a strip: where it begins; from one row of the matrix to the next; how many columns and
steps of k there are; and where it goes, `width` from one k to the next."""


def _emit_copied(module: Module, way: _Way) -> Function:
    """A strip whose rows are those of the matrix."""
    f = module.function(f"copied_{way.name}", _STRIP)
    a, apart, left, steps, out, width = f.args.values()
    lanes, element = way.lanes, way.lanes.element

    def place(k: Value) -> tuple[Value, Value]:
        return f.at(a, f.mul(k, apart), element), f.at(out, f.mul(k, width), element)

    whole = f.compare("sge", left, lanes.count)
    with f.when(whole), f.loop(0, steps) as k:
        source, target = place(k)
        way.store(f, way.load(f, source), target)
    with f.when(f.value("i1", f"xor {whole}, true")):
        mask = first_lanes(f, lanes, left)
        with f.loop(0, steps) as k:
            source, target = place(k)
            way.store(f, load_part(f, lanes, source, mask), target)
    f.done()
    return f


def _emit_transposed(module: Module, way: _Way) -> Function:
    """A strip whose columns are rows of the matrix."""
    whole_square, square = (_emit_square(module, way, whole=whole) for whole in (True, False))
    f = module.function(f"transposed_{way.name}", _STRIP)
    a, apart, left, steps, out, width = f.args.values()
    element, count = way.lanes.element, way.lanes.count
    whole = f.mul(f.div(steps, count), count)
    whole = f.select(f.compare("sge", left, count), whole, 0)

    def call(which: Function, k: Value, here: Value) -> None:
        begin = f.at(out, f.mul(k, width), element)
        f.call(which, f.at(a, k, element), apart, left, here, begin, width)

    with f.loop(0, whole, count) as k:
        call(whole_square, k, f.sub(steps, k))
    with f.loop(whole, steps, count) as k:
        call(square, k, f.sub(steps, k))
    f.done()
    return f


def _emit_square(module: Module, way: _Way, *, whole: bool) -> Function:
    """As many rows and steps of k as a vector has numbers, or what there is of them."""
    f = module.function(f"{'whole' if whole else 'part'}_{way.name}", _STRIP)
    a, apart, left, steps, out, width = f.args.values()
    lanes, element, count = way.lanes, way.lanes.element, way.lanes.count
    rows = []
    for r in range(count):
        source = f.at(a, f.mul(apart, r), element)
        if whole:
            rows.append(way.load(f, source))
        else:
            here = f.select(f.compare("sgt", left, r), steps, 0)
            rows.append(load_part(f, lanes, source, first_lanes(f, lanes, here)))
    for k, value in enumerate(_emit_transposition(f, lanes, rows)):
        target = f.at(out, f.mul(width, k), element)
        if whole:
            way.store(f, value, target)
        else:
            with f.when(f.compare("sgt", steps, k)):
                way.store(f, value, target)
    f.done()
    return f


def _emit_transposition(f: Function, lanes: Lanes, rows: list[Value]) -> list[Value]:
    """A square of vectors, transposed: its quarters first, then theirs."""
    count, rows = lanes.count, list(rows)
    apart = count // 2
    while apart:
        upper = [k if not k & apart else count + k - apart for k in range(count)]
        lower = [k + apart if not k & apart else count + k for k in range(count)]
        for r in (r for r in range(count) if not r & apart):
            a, b = rows[r], rows[r + apart]
            rows[r], rows[r + apart] = _shuffled(f, a, b, upper), _shuffled(f, a, b, lower)
        apart //= 2
    return rows


def _shuffled(f: Function, a: Value, b: Value, order: list[int]) -> Value:
    """The numbers of two vectors, counted through both, in that order."""
    places = ", ".join(f"i32 {k}" for k in order)
    mask = f"{vector(len(order), 'i32')} <{places}>"
    return f.value(a.type, f"shufflevector {a}, {b}, {mask}")


def rounded(values: Array) -> Array:
    """The upper 16 bits of float32 numbers, as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    up = bits + (0x7FFF + ((bits >> 16) & 1))
    return np.where(np.isnan(values), (bits >> 16) | 0x40, up >> 16).astype(np.uint16)


def paired(values: Array) -> Array:
    """Neighbours along the last axis in one uint32, the first in its lower half; 0 for none."""
    size = values.shape[-1]
    halves = np.zeros((*values.shape[:-1], size + size % 2), np.uint16)
    halves[..., :size] = rounded(values)
    pairs: Array = halves[..., ::2] | halves[..., 1::2].astype(np.uint32) << 16
    return pairs


def widened(values: Array) -> Array:
    """Upper halves as float32 again."""
    return (values.astype(np.uint32) << 16).view(np.float32)
