"""Matrix products beside the recurrence: any rows times packed weights, written as LLVM IR.

out[m] = f(init + a[m] W) for M rows. Work is cut into blocks of rows, which stay in the
second-level cache while every panel of weights passes by. Threads take equal runs of pairs of a
block and a panel: with many rows that splits the rows, with few the columns. An output is summed
over k in one register either way, so its bits depend on nothing but its row.
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
    Lanes,
    Module,
    Value,
    first_lanes,
    load_part,
    store_part,
)
from lstm_cli.engines.jit.codegen.packing import Order, Packed, packing
from lstm_cli.engines.jit.codegen.tile import Columns, Part, Split, Tiles, columns
from lstm_cli.engines.jit.runtime.compiler import kernels
from lstm_cli.engines.jit.runtime.machine import Machine, host
from lstm_cli.engines.jit.runtime.memory import Arguments, Stock, address
from lstm_cli.engines.jit.runtime.thread_pool import run
from lstm_cli.engines.types import Array

_ROWS = 24
"""Rows whose products are kept, at most, before they are stored where they belong."""

_SHARE = 1 << 17
"""Multiply-adds that are worth a thread: a few microseconds."""

_COSTS = {4: 1.0, 3: 1.02, 2: 1.04}
"""What a column costs in panels of so many vectors: fewer share what is read of a row."""

_TURNS = 8
"""Pairs of a block and a panel that each thread gets, at least, where there are rows enough."""


@dataclass(slots=True)
class Lines:
    """Rows of numbers in memory; the numbers of one are side by side.

    Attributes
    ----------
    base
        Address of the first row, or of what the offsets are counted from.
    step
        Numbers from one row to the next.
    offsets
        (M,) where each row begins, in numbers from `base`; instead of `step`.
    owner
        What the memory belongs to, kept alive.
    """

    base: int
    step: int = 0
    offsets: Array | None = None
    owner: Any = field(default=None, repr=False)

    @classmethod
    def of(cls, array: Array, offsets: Array | None = None) -> Lines:
        """The rows of an array (M, size), or those at `offsets` in an array of any shape."""
        if offsets is not None:
            return cls(address(array), offsets=offsets.astype(np.int64, copy=False), owner=array)
        return cls(address(array), array.strides[0] // array.itemsize, owner=array)

    def values(self, name: str) -> dict[str, int]:
        """The entries of a kernel's block that `line` reads."""
        return {name: self.base, f"{name}_at": address(self.offsets), f"{name}_step": self.step}


_NOWHERE = Lines(0)


@dataclass(frozen=True)
class ProductKernel:
    """A compiled product.

    Attributes
    ----------
    rows
        A number of rows that is good to compute together.
    cache
        Bytes of the cache that blocks of rows are to stay in.
    """

    address: int
    rows: int
    cache: int


@lru_cache(maxsize=256)
def product_kernel(
    split: Split, activation: Expression | None = None, machine: Machine | None = None
) -> ProductKernel:
    """The kernel for columns cut like that (of one gate), compiled if it has to be.

    Parameters
    ----------
    activation
        Of symbol ``a``, the sum; None for the sum itself.
    """
    machine = machine or host()
    name = f"product {split.name} {activation!r}"
    built = kernels(name, lambda: build(split, activation, machine), machine)
    rows = _tile_rows(Tiles(Module(), machine), split.main)
    return ProductKernel(built["product"], rows, machine.cache)


@dataclass(slots=True)
class Product:
    """What a product is computed of.

    Attributes
    ----------
    rows
        M.
    a
        What is multiplied: K numbers a row, or `times` runs of K / `times` numbers, `skip` from
        the beginning of one to the next. What lies between is not touched.
    weights
        W and what sums begin from; one gate.
    out
        Where the results go.
    before
        Where the sums go that an activation was applied to, if anywhere.
    add
        Add the results to what is in `out`.
    """

    rows: int
    a: Lines
    weights: Packed
    out: Lines
    before: Lines | None = None
    times: int = 1
    skip: int = 0
    add: bool = False


@lru_cache(maxsize=256)
def tight_columns(size: int, lanes: Lanes) -> Columns:
    """`size` columns of one gate, in panels of so many vectors that little of the last is empty."""

    def cost(per: int) -> float:
        return columns(size, 1, lanes, per).padded * _COSTS[per]

    return columns(size, 1, lanes, min(_COSTS, key=cost))


def packed(
    matrix: Array,
    init: Array | None,
    machine: Machine | None = None,
    threads: int = 1,
    stock: Stock | None = None,
) -> Packed:
    """A matrix (size, K) and what its sums begin from, for products with its rows.

    Parameters
    ----------
    matrix
        Its rows or columns without gaps within them; it may be a transposed one.
    init
        (size,), None for zeros.
    threads
        As many pack it together, at most.
    stock
        Where memory comes from.
    """
    machine = machine or host()
    element = "float" if matrix.dtype.itemsize == 4 else "double"
    cut = tight_columns(len(matrix), machine.lanes(element))
    how = packing(cut, Order.of_array(matrix), machine, threads)
    return how(matrix, init, stock or Stock())


def run_product(kernel: ProductKernel, given: Product, threads: int) -> None:
    """Compute a product on up to `threads` threads; the results do not depend on how many."""
    if given.rows == 0:
        return
    w, cut = given.weights, given.weights.columns
    threads = max(1, min(threads, given.rows * w.K * cut.padded // _SHARE))
    panels = cut.count + (cut.split.tail is not None)
    block = _block_rows(kernel, given, panels, threads)
    values = {
        "M": given.rows,
        "K": w.K // given.times,
        "times": given.times,
        "skip": given.skip,
        "add": given.add,
        "size": cut.size,
        "whole": cut.count,
        "panels": panels,
        "block": block,
        "blocks": -(-given.rows // block),
        "w": address(w.panels),
        "init": address(w.init),
        **given.a.values("a"),
        **given.out.values("out"),
        **(given.before or _NOWHERE).values("before"),
    }
    filled = _ARGUMENTS.block(values)
    run(kernel.address, address(filled), threads)


def _block_rows(kernel: ProductKernel, given: Product, panels: int, threads: int) -> int:
    """Rows of a block: what half the cache holds, and few enough for every thread to get some."""
    bytes_ = given.weights.panels.itemsize * max(1, given.weights.K)
    blocks = -(-given.rows // max(1, kernel.cache // 2 // bytes_))
    if threads > 1:
        blocks = max(blocks, -(-threads * _TURNS // panels))
    return -(-given.rows // blocks // kernel.rows) * kernel.rows


def _tile_rows(tiles: Tiles, part: Part) -> int:
    """Rows whose products are kept: whole tiles."""
    limit = tiles.rows(part)
    return max(1, _ROWS // limit) * limit


_NUMBERS = ["M", "K", "times", "skip", "add", "size", "whole", "panels", "block", "blocks"]
_LINES = ["a", "out", "before"]
_ARGUMENTS = Arguments(
    [*_NUMBERS, *(f"{name}_step" for name in _LINES)],
    ["w", "init", *_LINES, *(f"{name}_at" for name in _LINES)],
)


def line(f: Function, a: dict[str, Value], name: str, number: Value, element: str) -> Value:
    """The address of a row of `Lines`, whose entries of the block are in `a`."""
    shift = f.variable("i64", f.mul(number, a[f"{name}_step"]))
    offsets = a[f"{name}_at"]
    with f.when(f.value("i1", f"icmp ne {offsets}, null")):
        f.set(shift, f.load("i64", f.at(offsets, number, "i64"), 8))
    return f.at(a[name], f.get(shift), element)


def build(split: Split, activation: Expression | None, machine: Machine) -> Module:
    """A module with the function ``product``."""
    module = Module()
    tiles = Tiles(module, machine)
    panels = [_emit_panel(module, tiles, split, part, activation) for part in split.parts]
    kinds = {"given": "ptr", "part": "i64", "parts": "i64"}
    f = module.function("product", kinds, exported=True)
    given, part, parts = f.args.values()
    a = _ARGUMENTS.read(f, given)
    pairs = f.mul(a["blocks"], a["panels"])
    start = f.div(f.mul(pairs, part), parts)
    stop = f.div(f.mul(pairs, f.add(part, 1)), parts)
    with f.loop(start, stop) as pair:
        first = f.mul(f.div(pair, a["panels"]), a["block"])
        last = f.smaller(f.add(first, a["block"]), a["M"])
        number = f.rem(pair, a["panels"])
        for panel, how in zip(panels, ("slt", "sge"), strict=False):
            with f.when(f.compare(how, number, a["whole"])):
                f.call(panel, given, first, last, number)
    f.done()
    return module


def _emit_panel(
    module: Module, tiles: Tiles, split: Split, part: Part, activation: Expression | None
) -> Function:
    """Some rows times one panel."""
    kinds = {"given": "ptr", "first": "i64", "last": "i64", "number": "i64"}
    f = module.function(f"panel_{part.name}", kinds)
    given, first, last, number = f.args.values()
    a, element, product = _ARGUMENTS.read(f, given), part.lanes.element, tiles.product(part)
    column = f.mul(number, split.main.columns)
    w = f.at(a["w"], f.mul(column, f.mul(a["K"], a["times"])), element)
    init = f.at(a["init"], column, element)
    most = _tile_rows(tiles, part)
    starts, sums = f.array(most, "ptr"), f.array(most * part.width, element)
    with f.loop(first, last, most) as begun:
        rows = f.smaller(f.sub(last, begun), most)
        with f.loop(0, rows) as r:
            f.store(line(f, a, "a", f.add(begun, r), element), f.at(starts, r, "ptr"))
        extent = (a["K"], a["times"], a["skip"])
        f.call(product, starts, rows, w, *extent, init, sums, part.width, 0)
        with f.loop(0, rows) as r:
            own = f.at(sums, f.mul(r, part.width), element)
            _emit_results(f, a, part, own, f.add(begun, r), column, activation)
    f.done()
    return f


def _emit_results(
    f: Function,
    a: dict[str, Value],
    part: Part,
    sums: Value,
    row: Value,
    column: Value,
    activation: Expression | None,
) -> None:
    """Store what one row and one panel gave."""
    lanes, element = part.lanes, part.lanes.element
    left = f.sub(a["size"], column)
    shifts = range(0, part.width, lanes.count)
    found = {k: f.load(lanes.type, f.at(sums, k, element), 4) for k in shifts}

    def store(name: str, *, add: bool = False) -> None:
        begin = f.at(line(f, a, name, row, element), column, element)
        for k, value in found.items():
            place, here = f.at(begin, k, element), f.sub(left, k)
            if add:
                mask = first_lanes(f, lanes, here)
                value = f.fadd(value, load_part(f, lanes, place, mask))
            store_part(f, lanes, value, place, here)

    if activation is not None:
        with f.when(f.value("i1", f"icmp ne {a['before']}, null")):
            store("before")
        for k, value in found.items():
            found[k] = cell.emit(f, lanes, {"y": activation}, {"a": value})["y"]
    for add in (False, True):
        with f.when(f.compare("eq", a["add"], int(add))):
            store("out", add=add)
