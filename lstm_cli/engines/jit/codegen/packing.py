"""Packing of weights into panels; training packs the weights again in every step.

A panel (see `tile`) is filled in strips that are one vector of columns wide. If neighboring columns
are contiguous in the matrix, a strip is copied. If neighboring k are contiguous, square blocks with
sides of one vector are transposed in registers.

bfloat16 is a float32 without its lower 16 bits. Numbers are rounded to nearest, ties to even; NaN
stays NaN. Two bfloat16 numbers take the place of one float32.
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
    Module,
    Value,
    VectorType,
    lane_mask,
    load_masked,
    vector_text,
)
from lstm_cli.engines.jit.codegen.tile import Columns
from lstm_cli.engines.jit.runtime.compiler import load_kernels
from lstm_cli.engines.jit.runtime.machine import Machine
from lstm_cli.engines.jit.runtime.memory import Arguments, ArrayPool, address, aligned
from lstm_cli.engines.jit.runtime.thread_pool import run
from lstm_cli.engines.setup_time import PACKING, setup_timer
from lstm_cli.engines.types import Array

_MIN_THREAD_NUMBERS = 1 << 16
"""Least count of numbers per thread for which a wake-up pays."""

_COPY_STEPS, _TRANSPOSE_STEPS = 16, 256
"""Number of steps of k in one pass over the panels, for copied and for transposed strips. Copying
takes few steps, since it reads each matrix row for all panels. Transposing takes some cache lines
of every row."""

_STREAM_CACHES = 8
"""Size, in second-level caches, above which a packed matrix is stored past all caches. An ordinary
store first reads the memory into the caches, where it displaces data that is needed sooner."""

_NUMBERS = ["gates", "times", "K", "column", "step", "size", "whole", "panels"]
_NUMBERS += ["wide", "narrow", "halved", "streamed", "chunk", "group"]
_ARGUMENTS = Arguments(_NUMBERS, ["starts", "matrix", "out"])
_Block = ctypes.c_char * (8 * len(_ARGUMENTS.names))
_PLACES, _LAST = Struct("2q"), 8 * (len(_ARGUMENTS.names) - 2)
"""Format of the block's last two entries, which change from matrix to matrix, and their offset in
bytes."""


@dataclass(frozen=True)
class MatrixLayout:
    """Layout of a matrix in memory; all fields count numbers, not bytes.

    Attributes
    ----------
    starts
        By run of k and by gate: offset of the gate's first number.
    K
        Numbers per run.
    column, step
        Strides from a gate's column to the next, and from one k to the next. One stride is 1.
    """

    starts: tuple[tuple[int, ...], ...]
    K: int
    column: int
    step: int = 1

    @classmethod
    def of(cls, gates: int, size: int, K: int) -> MatrixLayout:
        """A contiguous matrix (gates * size, K)."""
        return cls((tuple(gate * size * K for gate in range(gates)),), K, K)

    @classmethod
    def of_array(cls, matrix: Array) -> MatrixLayout:
        """A matrix (size, K) of one gate with contiguous rows or columns."""
        column, step = (stride // matrix.itemsize for stride in matrix.strides)
        return cls(((0,),), matrix.shape[1], column, step)

    @classmethod
    def row(cls, gates: int, size: int) -> MatrixLayout:
        """A vector with one number for each column: (gates * size,)."""
        return cls((tuple(gate * size for gate in range(gates)),), 1, 1)

    @classmethod
    def transposed(cls, size: int, width: int, blocks: Sequence[int] = (0,)) -> MatrixLayout:
        """Blocks (size, width) of a matrix, transposed: k runs through these blocks in order."""
        return cls(tuple((block * size * width,) for block in blocks), size, 1, width)


@dataclass(frozen=True)
class PackedMatrix:
    """A matrix as panels.

    Attributes
    ----------
    columns
        Columns of its products.
    K
        Numbers of a row that the matrix multiplies.
    panels
        Packed weights.
    init
        Initial values of the sums, in the order of the columns.
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
        Panels to fill.

    Raises
    ------
    ValueError
        Neither rows nor columns are contiguous.
    """

    def __init__(
        self, columns: Columns, layout: MatrixLayout, machine: Machine, threads: int
    ) -> None:
        if 1 not in (layout.column, layout.step):
            raise ValueError(f"neither rows nor columns are contiguous in {layout}")
        self.columns, self.K = columns, layout.K * len(layout.starts)
        vector, split = columns.split.main.vector, columns.split
        self.size = self.K * columns.width
        self.dtype = np.dtype(np.float32 if vector.element == "float" else np.float64)
        panels = columns.count + (split.tail is not None)
        self._parts = max(1, min(threads, panels, self.size // _MIN_THREAD_NUMBERS))
        self._run = packing_kernel(vector, machine)
        self._starts = np.array(layout.starts, np.int64)
        share = -(-panels // self._parts)
        copied = layout.column == 1
        self._values = {
            "gates": split.gates,
            "times": len(layout.starts),
            "K": layout.K,
            "column": layout.column,
            "step": layout.step,
            "size": columns.size,
            "whole": columns.count,
            "panels": panels,
            "wide": split.main.columns,
            "narrow": split.tail.columns if split.tail else 0,
            "halved": split.tail is not None and split.tail.vector != vector,
            "streamed": self.size * self.dtype.itemsize > _STREAM_CACHES * machine.cache,
            "chunk": _COPY_STEPS if copied else _TRANSPOSE_STEPS,
            "group": share if copied else 1,
            "starts": address(self._starts),
        }
        self._block = _ARGUMENTS.pack(self._values | {"matrix": 0, "out": 0})

    def __call__(self, matrix: Array, array_pool: ArrayPool) -> Array:
        """The panels, with 0 in the padding."""
        out = array_pool.array(self.size, self.dtype)
        self.fill(out, matrix)
        return out

    def fill(self, out: Array, matrix: Array) -> None:
        """Write the panels to `out`, an array of `size` numbers that starts on a cache line."""
        block = _Block.from_buffer_copy(self._block)
        _PLACES.pack_into(block, _LAST, address(matrix), address(out))
        run(self._run, ctypes.addressof(block), self._parts)


class PanelPacking:
    """Packs matrices of one shape together with the initial values of their sums.

    Initial values are one number for each column of every gate, in the order of `columns`.
    """

    def __init__(
        self, columns: Columns, layout: MatrixLayout, machine: Machine, threads: int
    ) -> None:
        self._panels = Packer(columns, layout, machine, threads)
        row = MatrixLayout.row(columns.split.gates, columns.size)
        self._row = Packer(columns, row, machine, 1)
        self.columns, self.K = columns, self._panels.K

    def __call__(self, matrix: Array, init: Array | None, array_pool: ArrayPool) -> PackedMatrix:
        """Pack a matrix with initial values `init`, None for zeros.

        The packing's layout describes both arrays, from their first numbers on.
        """
        with setup_timer(PACKING):
            sums = self._zeros if init is None else self._row(init, array_pool)
            if self.columns.split.main.bf16:
                matrix = bfloat16_pairs(matrix)
            return PackedMatrix(self.columns, self.K, self._panels(matrix, array_pool), sums)

    @cached_property
    def _zeros(self) -> Array:
        """Zeros that all matrices share, since kernels only read them."""
        zeros = aligned(self._row.size, self._row.dtype)
        zeros[:] = 0
        return zeros


@lru_cache(maxsize=256)
def packing(columns: Columns, layout: MatrixLayout, machine: Machine, threads: int) -> PanelPacking:
    """The cached packing for matrices of one layout."""
    return PanelPacking(columns, layout, machine, threads)


def to_bfloat16(values: Array) -> Array:
    """The upper 16 bits of rounded float32 numbers, as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    up = bits + (0x7FFF + ((bits >> 16) & 1))
    return np.where(np.isnan(values), (bits >> 16) | 0x40, up >> 16).astype(np.uint16)


def bfloat16_pairs(values: Array) -> Array:
    """Neighbors along the last axis in one uint32, the first in its lower half; padded with 0."""
    size = values.shape[-1]
    numbers = np.zeros((*values.shape[:-1], size + size % 2), np.uint16)
    numbers[..., :size] = to_bfloat16(values)
    pairs: Array = numbers[..., ::2] | numbers[..., 1::2].astype(np.uint32) << 16
    return pairs


def from_bfloat16(values: Array) -> Array:
    """Numbers in bfloat16, given as uint16, as float32."""
    return (values.astype(np.uint32) << 16).view(np.float32)


@lru_cache(maxsize=16)
def packing_kernel(vector: VectorType, machine: Machine) -> int:
    """Address of the kernel for panels of vectors of type `vector`."""
    return load_kernels(f"pack {vector.suffix}", lambda: build(vector, machine), machine)["pack"]


def build(vector: VectorType, machine: Machine) -> Module:
    """A module with the function ``pack``."""
    module = Module()
    half = VectorType(vector.element, max(1, vector.count // 2))
    kinds_of_strips = [_StripKind(vector), _StripKind(half)]
    kinds_of_strips.append(_StripKind(vector, streamed=machine.x86))
    functions = {
        kind: (_emit_copied(module, kind), _emit_transposed(module, kind))
        for kind in dict.fromkeys(kinds_of_strips)
    }
    strips = [functions[kind] for kind in kinds_of_strips]
    kinds = {"block": "ptr", "part": "i64", "parts": "i64"}
    f = module.function("pack", kinds, exported=True)
    block, part, parts = f.args.values()
    a = _ARGUMENTS.read(f, block)
    start = f.div(f.mul(a["panels"], part), parts)
    stop = f.div(f.mul(a["panels"], f.add(part, 1)), parts)
    with (
        f.loop(start, stop, a["group"]) as first,
        f.loop(0, a["times"]) as run_number,
        f.loop(0, a["K"], a["chunk"]) as k,
        f.loop(first, f.minimum(f.add(first, a["group"]), stop)) as number,
    ):
        _emit_panel(f, a, strips, vector, number, run_number, k)
    if machine.x86:  # other threads may not see streamed stores before this fence
        f.intrinsic("llvm.x86.sse.sfence", "void")
    f.ret()
    return module


@dataclass(frozen=True)
class _StripKind:
    """Vector of a strip, and whether its stores go past the caches."""

    vector: VectorType
    streamed: bool = False

    @property
    def name(self) -> str:
        return f"{self.vector.suffix}{'_streamed' if self.streamed else ''}"

    def load(self, f: Function, source: Value) -> Value:
        return f.load(self.vector.type, source, self.vector.bits // 8)

    def store(self, f: Function, value: Value, target: Value) -> None:
        hint = ", !nontemporal !{i32 1}" if self.streamed else ""
        f.line(f"store {value}, {target}, align {self.vector.bytes}{hint}")


def _emit_panel(
    f: Function,
    a: dict[str, Value],
    strips: list[tuple[Function, Function]],
    vector: VectorType,
    number: Value,
    run_number: Value,
    k: Value,
) -> None:
    """Emit the packing of one panel for steps of k from `k` on."""
    element, first = vector.element, f.mul(number, a["wide"])
    tail = f.compare("sge", number, a["whole"])
    columns = f.select(tail, a["narrow"], a["wide"])
    halved = f.select(tail, a["halved"], 0)
    half_count = max(1, vector.count // 2)
    count = f.select(f.compare("ne", halved, 0), half_count, vector.count)
    width = f.mul(a["gates"], columns)
    begin = f.mul(f.mul(first, a["gates"]), f.mul(a["K"], a["times"]))
    begin = f.add(begin, f.mul(f.add(f.mul(run_number, a["K"]), k), width))
    steps = f.minimum(a["chunk"], f.sub(a["K"], k))
    pair = f.select(f.compare("ne", halved, 0), 1, f.mul(a["streamed"], 2))
    kind = f.add(f.mul(pair, 2), f.select(f.compare("eq", a["column"], 1), 0, 1))
    with f.loop(0, a["gates"]) as gate:
        place = f.add(f.mul(run_number, a["gates"]), gate)
        start = f.load("i64", f.at(a["starts"], place, "i64"), 8)
        start = f.add(start, f.mul(k, a["step"]))
        with f.loop(0, columns, count) as c:
            column = f.add(first, c)
            source = f.at(a["matrix"], f.add(start, f.mul(column, a["column"])), element)
            out = f.at(a["out"], f.add(f.add(begin, f.mul(gate, columns)), c), element)
            remaining = f.sub(a["size"], column)
            with f.switch(kind, range(6)) as cases:
                for number_of_case, case in cases.items():
                    copied = number_of_case % 2 == 0
                    stride = a["step"] if copied else a["column"]
                    with case:
                        strip = strips[number_of_case // 2][number_of_case % 2]
                        f.call(strip, source, stride, remaining, steps, out, width)


_STRIP = {
    "a": "ptr",
    "stride": "i64",
    "remaining": "i64",
    "steps": "i64",
    "out": "ptr",
    "width": "i64",
}
"""Parameters of a strip. `a` and `stride`: its address in the matrix, and the stride of matrix
rows. `remaining` and `steps`: numbers of remaining columns, and of steps of k. `out` and `width`:
its address in the panel, and the panel's stride from one k to the next."""


def _emit_copied(module: Module, kind: _StripKind) -> Function:
    """Emit a strip whose steps of k are rows of the matrix."""
    f = module.function(f"copied_{kind.name}", _STRIP)
    a, stride, remaining, steps, out, width = f.args.values()
    vector, element = kind.vector, kind.vector.element

    def places(k: Value) -> tuple[Value, Value]:
        return f.at(a, f.mul(k, stride), element), f.at(out, f.mul(k, width), element)

    whole = f.compare("sge", remaining, vector.count)
    with f.when(whole), f.loop(0, steps) as k:
        source, target = places(k)
        kind.store(f, kind.load(f, source), target)
    with f.when(f.value("i1", f"xor {whole}, true")):
        mask = lane_mask(f, vector, remaining)
        with f.loop(0, steps) as k:
            source, target = places(k)
            kind.store(f, load_masked(f, vector, source, mask), target)
    f.ret()
    return f


def _emit_transposed(module: Module, kind: _StripKind) -> Function:
    """Emit a strip whose columns are rows of the matrix."""
    whole_square, square = (_emit_square(module, kind, whole=whole) for whole in (True, False))
    f = module.function(f"transposed_{kind.name}", _STRIP)
    a, stride, remaining, steps, out, width = f.args.values()
    element, count = kind.vector.element, kind.vector.count
    whole = f.mul(f.div(steps, count), count)
    whole = f.select(f.compare("sge", remaining, count), whole, 0)

    def call(function: Function, k: Value, square_steps: Value) -> None:
        begin = f.at(out, f.mul(k, width), element)
        f.call(function, f.at(a, k, element), stride, remaining, square_steps, begin, width)

    with f.loop(0, whole, count) as k:
        call(whole_square, k, f.sub(steps, k))
    with f.loop(whole, steps, count) as k:
        call(square, k, f.sub(steps, k))
    f.ret()
    return f


def _emit_square(module: Module, kind: _StripKind, *, whole: bool) -> Function:
    """Emit the transposition of a square, whose sides have as many numbers as a vector."""
    f = module.function(f"{'whole' if whole else 'part'}_{kind.name}", _STRIP)
    a, stride, remaining, steps, out, width = f.args.values()
    vector, element, count = kind.vector, kind.vector.element, kind.vector.count
    rows = []
    for r in range(count):
        source = f.at(a, f.mul(stride, r), element)
        if whole:
            rows.append(kind.load(f, source))
        else:
            row_steps = f.select(f.compare("sgt", remaining, r), steps, 0)
            rows.append(load_masked(f, vector, source, lane_mask(f, vector, row_steps)))
    for k, value in enumerate(_emit_transposition(f, vector, rows)):
        target = f.at(out, f.mul(width, k), element)
        if whole:
            kind.store(f, value, target)
        else:
            with f.when(f.compare("sgt", steps, k)):
                kind.store(f, value, target)
    f.ret()
    return f


def _emit_transposition(f: Function, vector: VectorType, rows: list[Value]) -> list[Value]:
    """Transpose a square of vectors: swap its quarters, then the quarters of each quarter."""
    count, rows = vector.count, list(rows)
    distance = count // 2
    while distance:
        upper = [k if not k & distance else count + k - distance for k in range(count)]
        lower = [k + distance if not k & distance else count + k for k in range(count)]
        for r in (r for r in range(count) if not r & distance):
            a, b = rows[r], rows[r + distance]
            rows[r], rows[r + distance] = _shuffled(f, a, b, upper), _shuffled(f, a, b, lower)
        distance //= 2
    return rows


def _shuffled(f: Function, a: Value, b: Value, order: list[int]) -> Value:
    """Numbers of two vectors in `order`, whose indices count through `a` and then `b`."""
    places = ", ".join(f"i32 {k}" for k in order)
    mask = f"{vector_text(len(order), 'i32')} <{places}>"
    return f.value(a.type, f"shufflevector {a}, {b}, {mask}")
