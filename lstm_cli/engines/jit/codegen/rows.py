"""Kernels over the rows of a matrix: softmax, copies and zeros.

Each kernel has the same arguments as all others: the address of its argument block, the number of
its part, and the number of parts. Rows are shared out among the parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from lstm_cli.cells.expression import exp, symbol
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
from lstm_cli.engines.jit.runtime.compiler import Kernels, load_kernels
from lstm_cli.engines.jit.runtime.machine import Machine
from lstm_cli.engines.jit.runtime.memory import Arguments, address
from lstm_cli.engines.jit.runtime.thread_pool import run
from lstm_cli.engines.types import Array

_MIN_THREAD_NUMBERS = 1 << 13
"""Least numbers of a softmax per thread, a few microseconds of work."""

ROWS = Arguments(["rows", "size", "from_step", "to_step"], ["from", "to"])
"""Argument block of the kernels: number of rows, numbers of a row, strides in numbers, and the
addresses of the first rows. `zeros` reads no rows."""


def softmax(logits: Array, machine: Machine, threads: int = 1) -> Array:
    """Softmax over the last axis of logits (M, F), contiguous; the same bits for any threads."""
    y, (M, F) = np.empty_like(logits), logits.shape
    if logits.size:
        entries = {"rows": M, "size": F, "from_step": F, "to_step": F}
        block = ROWS.block(entries | {"from": address(logits), "to": address(y)})
        kernel = row_kernels("float" if logits.itemsize == 4 else "double", machine)["softmax"]
        run(kernel, address(block), max(1, min(threads, logits.size // _MIN_THREAD_NUMBERS)))
    return y


@lru_cache(maxsize=8)
def row_kernels(element: str, machine: Machine) -> Kernels:
    """Addresses of the kernels ``softmax``, ``copy`` and ``zeros`` for ``float`` or ``double``."""
    return load_kernels(f"rows {element}", lambda: build(element, machine), machine)


def build(element: str, machine: Machine) -> Module:
    """A module with the kernels."""
    module, vector = Module(), machine.vector(element)
    _emit_softmax(module, vector)
    for name in ("copy", "zeros"):
        with _rows(module, name, element) as row, row.f.loop(0, row.size, vector.count) as k:
            count, value = row.f.sub(row.size, k), vector.number(0.0)
            if name == "copy":
                mask = lane_mask(row.f, vector, count)
                value = load_masked(row.f, vector, row.f.at(row.source, k, element), mask)
            store_first(row.f, vector, value, row.f.at(row.target, k, element), count)
    return module


class _Row(NamedTuple):
    """A row in a kernel's code: addresses of its source and target, and its numbers."""

    f: Function
    source: Value
    target: Value
    size: Value


@contextmanager
def _rows(module: Module, name: str, element: str) -> Iterator[_Row]:
    """Code for each row of a part."""
    kinds = {"block": "ptr", "part": "i64", "parts": "i64"}
    f = module.function(name, kinds, exported=True)
    block, part, parts = f.args.values()
    a = ROWS.read(f, block)
    start = f.div(f.mul(a["rows"], part), parts)
    stop = f.div(f.mul(a["rows"], f.add(part, 1)), parts)
    with f.loop(start, stop) as row:
        source = f.at(a["from"], f.mul(row, a["from_step"]), element)
        target = f.at(a["to"], f.mul(row, a["to_step"]), element)
        yield _Row(f, source, target, a["size"])
    f.ret()


def _emit_softmax(module: Module, vector: VectorType) -> None:
    """Emit exp(x - m) / sum over each row, with m its largest number.

    Lanes beyond the row repeat its first number in the maximum and add 0 to the sum. So a row's
    bits depend on its numbers alone. A NaN, or infinity as the maximum, makes the whole row NaN.
    """
    element = vector.element
    with _rows(module, "softmax", element) as (f, source, target, size):
        first = f.splat(f.load(element, source), vector)
        largest, total = f.variable(vector.type, first), f.variable(vector.type, vector.number(0.0))
        with f.loop(0, size, vector.count) as k:
            mask = lane_mask(f, vector, f.sub(size, k))
            x = f.select(mask, load_masked(f, vector, f.at(source, k, element), mask), first)
            f.set(largest, f.select(f.fcompare("ogt", x, f.get(largest)), x, f.get(largest)))
        m = f.splat(_folded(f, f.get(largest), vector, largest=True), vector)
        root = {"y": exp(symbol("a"))}
        with f.loop(0, size, vector.count) as k:
            count = f.sub(size, k)
            mask = lane_mask(f, vector, count)
            x = load_masked(f, vector, f.at(source, k, element), mask)
            y = cell.emit(f, vector, root, {"a": f.fsub(x, m)})["y"]
            f.set(total, f.fadd(f.get(total), f.select(mask, y, vector.number(0.0))))
            store_first(f, vector, y, f.at(target, k, element), count)
        divisor = f.splat(_folded(f, f.get(total), vector, largest=False), vector)
        with f.loop(0, size, vector.count) as k:
            count = f.sub(size, k)
            place = f.at(target, k, element)
            y = load_masked(f, vector, place, lane_mask(f, vector, count))
            store_first(f, vector, f.fdiv(y, divisor), place, count)


def _folded(f: Function, value: Value, vector: VectorType, *, largest: bool) -> Value:
    """The largest lane of a vector, or the sum of its lanes in order."""
    element = vector.element
    stored = f.array(vector.count, element)
    f.store(value, stored)
    result = f.variable(element, f.load(element, stored))
    with f.loop(1, vector.count) as k:
        lane = f.load(element, f.at(stored, k, element))
        if largest:
            greater = f.value("i1", f"fcmp ogt {lane}, {f.get(result).name}")
            f.set(result, f.select(greater, lane, f.get(result)))
        else:
            f.set(result, f.fadd(f.get(result), lane))
    return f.get(result)
