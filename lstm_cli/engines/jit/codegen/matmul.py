"""Matrix products outside of the recurrence: rows times packed weights, written as LLVM IR.

out[m] = f(init + a[m] W) for M rows. Rows are cut into blocks that stay in the second-level cache
while every panel of weights is read. A pair is one block times one panel; threads take equal runs
of pairs. This splits the rows if there are many, else the columns. One register always sums an
output over k. So the bits of an output depend on its row and its column of weights alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from lstm_cli.cells.expression import Expression
from lstm_cli.engines.jit.codegen import cell
from lstm_cli.engines.jit.codegen.ir import (
    Function,
    Module,
    Value,
    VectorType,
    lane_mask,
    load_masked,
    store_first,
)
from lstm_cli.engines.jit.codegen.packing import MatrixLayout, PackedMatrix, packing
from lstm_cli.engines.jit.codegen.tile import (
    Columns,
    PanelShape,
    PanelSplit,
    TileEmitter,
    split_columns,
)
from lstm_cli.engines.jit.runtime.compiler import load_kernels
from lstm_cli.engines.jit.runtime.machine import Machine, this_machine
from lstm_cli.engines.jit.runtime.memory import Arguments, ArrayPool, address
from lstm_cli.engines.jit.runtime.thread_pool import run
from lstm_cli.engines.types import Array

_MAX_CHUNK_ROWS = 24
"""Largest number of rows whose products are computed before they are stored."""

_MIN_THREAD_WORK = 1 << 17
"""Least number of multiply-adds per thread, a few microseconds of work."""

_COLUMN_COSTS = {4: 1.0, 3: 1.02, 2: 1.04}
"""Relative time per column, by vectors per panel: narrow panels load a row's numbers more often."""

_MIN_THREAD_PAIRS = 8
"""Least number of pairs of a block and a panel per thread, if there are enough rows."""


@dataclass(slots=True)
class MemoryRows:
    """Rows of numbers in memory; the numbers of a row are contiguous.

    Attributes
    ----------
    base
        Address of the first row, or with `offsets` the address to which they are added.
    step
        Stride from one row to the next, in numbers.
    offsets
        (M,) offset of each row from `base`, in numbers. None: `step` locates the rows.
    owner
        Object that owns the memory, kept alive.
    """

    base: int
    step: int = 0
    offsets: Array | None = None
    owner: Any = field(default=None, repr=False)

    @classmethod
    def of(cls, array: Array, offsets: Array | None = None) -> MemoryRows:
        """The rows of an array (M, size), or those at `offsets` in an array of any shape."""
        if offsets is not None:
            return cls(address(array), offsets=offsets.astype(np.int64, copy=False), owner=array)
        return cls(address(array), array.strides[0] // array.itemsize, owner=array)

    def entries(self, name: str) -> dict[str, int]:
        """Argument entries, by name, that `row_address` reads."""
        return {name: self.base, f"{name}_at": address(self.offsets), f"{name}_step": self.step}


_NO_ROWS = MemoryRows(0)


@dataclass(frozen=True)
class MatmulKernel:
    """A compiled matrix product.

    Attributes
    ----------
    address
        Address of the kernel.
    rows
        Number of rows that full tiles compute together.
    cache
        Bytes of the cache that blocks of rows stay in.
    """

    address: int
    rows: int
    cache: int


@lru_cache(maxsize=256)
def matmul_kernel(
    split: PanelSplit, activation: Expression | None = None, machine: Machine | None = None
) -> MatmulKernel:
    """The kernel for columns of one gate in these panels.

    Parameters
    ----------
    activation
        Expression of the symbol ``a``, which is the sum; None for the sum itself.
    """
    machine = machine or this_machine()
    name = f"product {split.name} {activation!r}"
    kernels = load_kernels(name, lambda: build(split, activation, machine), machine)
    rows = _chunk_rows(TileEmitter(Module(), machine), split.main)
    return MatmulKernel(kernels["product"], rows, machine.cache)


@dataclass(slots=True)
class Matmul:
    """Operands of one matrix product.

    Attributes
    ----------
    rows
        Number of rows M.
    a
        Left operand, with K numbers per row.
    weights
        Packed W of one gate, and the initial values of the sums.
    out
        Rows of the results.
    sums
        Rows for the values before the activation; None if they are not needed.
    times, skip
        A row of `a` is `times` runs of K / `times` numbers, with `skip` numbers from the start of
        one run to the start of the next. The kernel does not read the numbers between the runs.
    add
        True: add the results to `out` instead of overwriting it.
    """

    rows: int
    a: MemoryRows
    weights: PackedMatrix
    out: MemoryRows
    sums: MemoryRows | None = None
    times: int = 1
    skip: int = 0
    add: bool = False


@lru_cache(maxsize=256)
def least_padded_columns(size: int, vector: VectorType) -> Columns:
    """`size` columns of one gate, in panels whose width leaves little padding."""

    def cost(vectors: int) -> float:
        return split_columns(size, 1, vector, vectors).padded * _COLUMN_COSTS[vectors]

    return split_columns(size, 1, vector, min(_COLUMN_COSTS, key=cost))


def pack_matrix(
    matrix: Array,
    init: Array | None,
    machine: Machine | None = None,
    threads: int = 1,
    array_pool: ArrayPool | None = None,
) -> PackedMatrix:
    """Pack a matrix (size, K) and the initial values of its sums.

    Parameters
    ----------
    matrix
        A matrix with contiguous rows or columns, such as a transposed one.
    init
        (size,) initial values; None for zeros.
    threads
        Largest number of threads that pack the matrix.
    array_pool
        Source of the memory.
    """
    machine = machine or this_machine()
    element = "float" if matrix.dtype.itemsize == 4 else "double"
    columns = least_padded_columns(len(matrix), machine.vector(element))
    pack = packing(columns, MatrixLayout.of_array(matrix), machine, threads)
    return pack(matrix, init, array_pool or ArrayPool())


def run_matmul(kernel: MatmulKernel, matmul: Matmul, threads: int) -> None:
    """Compute a product on up to `threads` threads; the results do not depend on their number."""
    if matmul.rows == 0:
        return
    w, columns = matmul.weights, matmul.weights.columns
    threads = max(1, min(threads, matmul.rows * w.K * columns.padded // _MIN_THREAD_WORK))
    block = product_block(kernel, matmul, threads)  # the name keeps it while the kernel runs
    run(kernel.address, address(block), threads)


def product_block(kernel: MatmulKernel, matmul: Matmul, threads: int) -> Array:
    """Argument block of a product on this number of threads."""
    w, columns = matmul.weights, matmul.weights.columns
    panels = columns.count + (columns.split.tail is not None)
    block = _block_rows(kernel, matmul, panels, threads)
    return _ARGUMENTS.block(
        {
            "M": matmul.rows,
            "K": w.K // matmul.times,
            "times": matmul.times,
            "skip": matmul.skip,
            "add": matmul.add,
            "size": columns.size,
            "whole": columns.count,
            "panels": panels,
            "block": block,
            "blocks": -(-matmul.rows // block),
            "w": address(w.panels),
            "init": address(w.init),
            **matmul.a.entries("a"),
            **matmul.out.entries("out"),
            **(matmul.sums or _NO_ROWS).entries("sums"),
        }
    )


def _block_rows(kernel: MatmulKernel, matmul: Matmul, panels: int, threads: int) -> int:
    """Number of rows of a block: at most half of the cache, and few enough for all threads."""
    row_bytes = matmul.weights.panels.itemsize * max(1, matmul.weights.K)
    blocks = -(-matmul.rows // max(1, kernel.cache // 2 // row_bytes))
    if threads > 1:
        blocks = max(blocks, -(-threads * _MIN_THREAD_PAIRS // panels))
    return -(-matmul.rows // blocks // kernel.rows) * kernel.rows


def _chunk_rows(tiles: TileEmitter, shape: PanelShape) -> int:
    """Number of rows whose products are computed before they are stored: whole tiles of rows."""
    limit = tiles.rows(shape)
    return max(1, _MAX_CHUNK_ROWS // limit) * limit


_NUMBERS = ["M", "K", "times", "skip", "add", "size", "whole", "panels", "block", "blocks"]
_ROWS = ["a", "out", "sums"]
_ARGUMENTS = Arguments(
    [*_NUMBERS, *(f"{name}_step" for name in _ROWS)],
    ["w", "init", *_ROWS, *(f"{name}_at" for name in _ROWS)],
)


def row_address(f: Function, a: dict[str, Value], name: str, number: Value, element: str) -> Value:
    """Address of a row of `MemoryRows`, whose argument entries are in `a`."""
    shift = f.variable("i64", f.mul(number, a[f"{name}_step"]))
    offsets = a[f"{name}_at"]
    with f.when(f.value("i1", f"icmp ne {offsets}, null")):
        f.set(shift, f.load("i64", f.at(offsets, number, "i64"), 8))
    return f.at(a[name], f.get(shift), element)


def build(split: PanelSplit, activation: Expression | None, machine: Machine) -> Module:
    """A module with the function ``product``."""
    module = Module()
    tiles = TileEmitter(module, machine)
    panels = [_emit_panel(module, tiles, split, shape, activation) for shape in split.shapes]
    kinds = {"block": "ptr", "part": "i64", "parts": "i64"}
    f = module.function("product", kinds, exported=True)
    block, part, parts = f.args.values()
    a = _ARGUMENTS.read(f, block)
    pairs = f.mul(a["blocks"], a["panels"])
    start = f.div(f.mul(pairs, part), parts)
    stop = f.div(f.mul(pairs, f.add(part, 1)), parts)
    with f.loop(start, stop) as pair:
        first = f.mul(f.div(pair, a["panels"]), a["block"])
        last = f.minimum(f.add(first, a["block"]), a["M"])
        number = f.rem(pair, a["panels"])
        for panel, comparison in zip(panels, ("slt", "sge"), strict=False):
            with f.when(f.compare(comparison, number, a["whole"])):
                f.call(panel, block, first, last, number)
    f.ret()
    return module


def _emit_panel(
    module: Module,
    tiles: TileEmitter,
    split: PanelSplit,
    shape: PanelShape,
    activation: Expression | None,
) -> Function:
    """Emit a function for some rows times one panel."""
    kinds = {"block": "ptr", "first": "i64", "last": "i64", "number": "i64"}
    f = module.function(f"panel_{shape.name}", kinds)
    block, first, last, number = f.args.values()
    a, element, product = _ARGUMENTS.read(f, block), shape.vector.element, tiles.product(shape)
    column = f.mul(number, split.main.columns)
    w = f.at(a["w"], f.mul(column, f.mul(a["K"], a["times"])), element)
    init = f.at(a["init"], column, element)
    most = _chunk_rows(tiles, shape)
    starts, sums = f.array(most, "ptr"), f.array(most * shape.width, element)
    with f.loop(first, last, most) as chunk:
        rows = f.minimum(f.sub(last, chunk), most)
        with f.loop(0, rows) as r:
            row = row_address(f, a, "a", f.add(chunk, r), element)
            f.store(row, f.at(starts, r, "ptr"))
        K, times, skip = a["K"], a["times"], a["skip"]
        f.call(product, starts, rows, w, K, times, skip, init, sums, shape.width, 0)
        with f.loop(0, rows) as r:
            row_sums = f.at(sums, f.mul(r, shape.width), element)
            _emit_results(f, a, shape, row_sums, f.add(chunk, r), column, activation)
    f.ret()
    return f


def _emit_results(
    f: Function,
    a: dict[str, Value],
    shape: PanelShape,
    sums: Value,
    row: Value,
    column: Value,
    activation: Expression | None,
) -> None:
    """Emit the storing of one row's results in one panel."""
    vector, element = shape.vector, shape.vector.element
    remaining = f.sub(a["size"], column)
    shifts = range(0, shape.width, vector.count)
    results = {k: f.load(vector.type, f.at(sums, k, element), 4) for k in shifts}

    def store(name: str, *, add: bool = False) -> None:
        begin = f.at(row_address(f, a, name, row, element), column, element)
        for k, value in results.items():
            place, count = f.at(begin, k, element), f.sub(remaining, k)
            if add:
                mask = lane_mask(f, vector, count)
                value = f.fadd(value, load_masked(f, vector, place, mask))
            store_first(f, vector, value, place, count)

    if activation is not None:
        with f.when(f.value("i1", f"icmp ne {a['sums']}, null")):
            store("sums")
        for k, value in results.items():
            results[k] = cell.emit(f, vector, {"y": activation}, {"a": value})["y"]
    for add in (False, True):
        with f.when(f.compare("eq", a["add"], int(add))):
            store("out", add=add)
