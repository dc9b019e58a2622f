"""Expressions on whole arrays, element by element, in one pass: an optimizer's update, a loss.

The arrays are cut into chunks, and each thread gets whole chunks. The kernel reads a vector from
each input, computes, and stores the results. It pads the remaining elements to a vector, so an
element's bits do not depend on its place. A sum adds one partial sum per chunk, in order. So the
bits of a sum do not depend on the number of threads.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeAlias

import numpy as np

from lstm_cli.cells.expression import Expression, topological
from lstm_cli.engines.jit.codegen import cell
from lstm_cli.engines.jit.codegen.ir import Function, Module, StackSlot, Value, VectorType
from lstm_cli.engines.jit.runtime import thread_pool
from lstm_cli.engines.jit.runtime.compiler import load_kernels
from lstm_cli.engines.jit.runtime.machine import Machine
from lstm_cli.engines.jit.runtime.memory import Arguments, address
from lstm_cli.engines.reference.arrays import check_same_layout
from lstm_cli.engines.types import Array, Values

CHUNK = 1 << 12
"""Elements of a chunk; a multiple of all vectors."""

MIN_THREAD_CHUNKS = 8
"""Least number of chunks per thread for which a wake-up pays."""

PARALLEL_SUMS = 4
"""Number of independent partial sums, about the latency of an addition in cycles."""

_ELEMENTS = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}

Roots: TypeAlias = tuple[tuple[str, Expression], ...]


@dataclass(frozen=True)
class ElementwiseTask:
    """Expressions that a kernel computes.

    Attributes
    ----------
    roots
        Expressions by name; a sum has one.
    arrays
        Symbols that stand for arrays; the others stand for scalars.
    element
        Type of the arrays' elements: ``float`` or ``double``.
    summed
        True: the result is the sum of the elements in double precision, not an array.
    """

    roots: Roots
    arrays: tuple[str, ...]
    element: str
    summed: bool = False

    @cached_property
    def scalars(self) -> tuple[str, ...]:
        """Symbols that stand for scalars."""
        nodes = topological(root for _, root in self.roots)
        names = {str(node.payload) for node in nodes if node.op == "symbol"}
        return tuple(sorted(names - set(self.arrays)))

    @cached_property
    def arguments(self) -> Arguments:
        """Layout of the kernel's argument block: inputs, results, and scalars."""
        results = ["partial"] if self.summed else [f"out {name}" for name, _ in self.roots]
        return Arguments(["count"], [f"in {name}" for name in self.arrays] + results, self.scalars)

    @cached_property
    def name(self) -> str:
        """Text that is equal for equal kernels: each node once, with its arguments' places."""
        order = topological(root for _, root in self.roots)
        place = {node: k for k, node in enumerate(order)}
        nodes = [f"{n.op} {n.payload} {[place[arg] for arg in n.args]}" for n in order]
        roots = [(name, place[root]) for name, root in self.roots]
        kind = "sum" if self.summed else "map"
        return f"{kind} {self.element} {self.arrays} {roots} of {'; '.join(nodes)}"


def evaluate_elementwise(
    roots: Mapping[str, Expression],
    values: Values,
    out: Mapping[str, Array],
    machine: Machine,
    threads: int = 1,
) -> None:
    """Evaluate each root into its array of `out`; see `lstm_cli.engines.protocols.ArrayOperations`.

    Raises
    ------
    ValueError
        Arrays differ in shape or dtype, or are not contiguous.
    """
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    ordered = [*arrays.values(), *(out[name] for name in roots)]
    element = _element(ordered)
    compiled = _compiled_task(tuple(roots.items()), tuple(arrays), element, False, machine)
    _run(compiled, ordered[0].size, [address(array) for array in ordered], values, threads)


def sum_elementwise(root: Expression, values: Values, machine: Machine, threads: int = 1) -> float:
    """The sum of an expression over all elements; see `lstm_cli.engines.protocols.ArrayOperations`.

    Raises
    ------
    ValueError
        Arrays differ in shape or dtype, or are not contiguous.
    """
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    ordered = list(arrays.values())
    element = _element(ordered)
    compiled = _compiled_task((("", root),), tuple(arrays), element, True, machine)
    size = ordered[0].size
    partial = np.empty(-(-size // CHUNK))
    _run(compiled, size, [address(array) for array in (*ordered, partial)], values, threads)
    return float(sum(partial.tolist()))


def _element(arrays: Sequence[Array]) -> str:
    """Type of the elements, which all arrays share."""
    check_same_layout(arrays)
    dtype = arrays[0].dtype
    wrong = dtype not in _ELEMENTS
    for array in arrays:
        wrong = wrong or array.dtype != dtype
    if wrong:
        raise ValueError(f"arrays of one dtype, float32 or float64, are needed, not {dtype}")
    return _ELEMENTS[dtype]


@dataclass(frozen=True)
class _CompiledTask:
    """A compiled task: its argument block, and the names of the scalars at its end."""

    address: int
    block: struct.Struct
    scalars: tuple[str, ...]


def _run(task: _CompiledTask, size: int, places: list[int], values: Values, threads: int) -> None:
    if not size:
        return
    block = ctypes.create_string_buffer(task.block.size)
    scalars = [values[name] for name in task.scalars]
    task.block.pack_into(block, 0, size, *places, *scalars)
    parts = max(1, min(threads, size // (CHUNK * MIN_THREAD_CHUNKS)))
    thread_pool.run(task.address, ctypes.addressof(block), parts)


@lru_cache(maxsize=256)
def _compiled_task(
    roots: Roots, arrays: tuple[str, ...], element: str, summed: bool, machine: Machine
) -> _CompiledTask:
    task = ElementwiseTask(roots, arrays, element, summed)
    kernels = load_kernels(task.name, lambda: build(task, machine), machine)
    scalars = len(task.scalars)
    block = struct.Struct(f"{len(task.arguments.names) - scalars}q{scalars}d")
    return _CompiledTask(kernels["map"], block, task.scalars)


def build(task: ElementwiseTask, machine: Machine) -> Module:
    """A module with the function ``map``."""
    module = Module()
    kinds = {"block": "ptr", "part": "i64", "parts": "i64"}
    (_SumEmitter if task.summed else _MapEmitter)(
        module.function("map", kinds, exported=True), task, machine
    )
    return module


class _MapEmitter:
    """Emitter of a kernel that stores every root."""

    def __init__(self, f: Function, task: ElementwiseTask, machine: Machine) -> None:
        self.f, self.task = f, task
        self.vector = machine.vector("double" if task.summed else task.element)
        block, part, parts = f.args.values()
        self.a = a = task.arguments.read(f, block)
        self.scalars = {name: self._broadcast(a[name]) for name in task.scalars}
        self.inputs = {name: a[f"in {name}"] for name in task.arrays}
        self.count = a["count"]
        chunks = f.div(f.add(self.count, CHUNK - 1), CHUNK)
        self.emit(f.div(f.mul(chunks, part), parts), f.div(f.mul(chunks, f.add(part, 1)), parts))
        f.ret()

    def emit(self, begin: Value, end: Value) -> None:
        """Emit the chunks from `begin` to before `end`."""
        f, count = self.f, self.vector.count
        start, stop = f.mul(begin, CHUNK), f.minimum(f.mul(end, CHUNK), self.count)
        rest = f.rem(stop, count)
        whole = f.sub(stop, rest)
        outputs = {name: self.a[f"out {name}"] for name, _ in self.task.roots}
        with f.loop(start, whole, count) as k:
            for name, value in self.computed(self.inputs, k).items():
                f.store(value, f.at(outputs[name], k, self.task.element), self._alignment)
        with self.remainder(whole, rest) as computed:
            stored = {name: f.array(count, self.task.element) for name in computed}
            for name, value in computed.items():
                f.store(value, stored[name])
            with f.loop(0, rest) as k:
                for name, source in stored.items():
                    self._copy(
                        f.at(source, k, self.task.element),
                        f.at(outputs[name], f.add(whole, k), self.task.element),
                    )

    def computed(self, inputs: Mapping[str, Value], k: Value | int) -> dict[str, Value]:
        """The roots for one vector of every input, from element `k` on."""
        f, vector, element = self.f, self.vector, self.task.element
        values = dict(self.scalars)
        for name, begin in inputs.items():
            stored = VectorType(element, vector.count)
            value = f.load(stored.type, f.at(begin, k, element), self._alignment)
            narrow = element != vector.element
            values[name] = f.convert("fpext", value, vector.type) if narrow else value
        return cell.emit(f, vector, dict(self.task.roots), values)

    @contextmanager
    def remainder(self, first: Value, rest: Value) -> Iterator[dict[str, Value]]:
        """Code for fewer elements than a vector has. Yields the roots of vectors padded with 0."""
        f, element, count = self.f, self.task.element, self.vector.count
        stored = VectorType(element, count)
        with f.when(f.compare("sgt", rest, 0)):
            padded = {name: f.array(count, element) for name in self.inputs}
            for place in padded.values():
                f.store(stored.number(0.0), place)
            with f.loop(0, rest) as k:
                for name, place in padded.items():
                    source = f.at(self.inputs[name], f.add(first, k), element)
                    self._copy(source, f.at(place, k, element))
            yield self.computed(padded, 0)

    @property
    def _alignment(self) -> int:
        return 4 if self.task.element == "float" else 8

    def _copy(self, source: Value, target: Value) -> None:
        self.f.store(self.f.load(self.task.element, source), target)

    def _broadcast(self, scalar: Value) -> Value:
        if self.vector.element == "float":
            scalar = self.f.convert("fptrunc", scalar, "float")
        return self.f.splat(scalar, self.vector)


class _SumEmitter(_MapEmitter):
    """Emitter of a kernel that sums its only root, one partial sum per chunk."""

    def emit(self, begin: Value, end: Value) -> None:
        """Emit the chunks from `begin` to before `end`."""
        f, vector = self.f, self.vector
        with f.loop(begin, end) as chunk:
            start = f.mul(chunk, CHUNK)
            stop = f.minimum(f.add(start, CHUNK), self.count)
            rest = f.rem(stop, vector.count)
            whole = f.sub(stop, rest)
            several = f.sub(whole, f.rem(whole, vector.count * PARALLEL_SUMS))
            sums = [f.variable(vector.type, vector.number(0.0)) for _ in range(PARALLEL_SUMS)]
            with f.loop(start, several, vector.count * PARALLEL_SUMS) as k:
                for j, sum_ in enumerate(sums):
                    self._add(sum_, self.computed(self.inputs, f.add(k, j * vector.count)))
            with f.loop(several, whole, vector.count) as k:
                self._add(sums[0], self.computed(self.inputs, k))
            total = f.variable(vector.element, Value(vector.element, "0.0"))
            for sum_ in sums:
                self._fold(total, f.get(sum_), vector.count)
            with self.remainder(whole, rest) as computed:
                self._fold(total, computed[""], rest)
            f.store(f.get(total), f.at(self.a["partial"], chunk, vector.element))

    def _add(self, sum_: StackSlot, computed: Mapping[str, Value]) -> None:
        self.f.set(sum_, self.f.fadd(self.f.get(sum_), computed[""]))

    def _fold(self, total: StackSlot, value: Value, count: Value | int) -> None:
        """Add the first `count` numbers of a vector, in order."""
        f, element = self.f, self.vector.element
        stored = f.array(self.vector.count, element)
        f.store(value, stored)
        with f.loop(0, count) as k:
            f.set(total, f.fadd(f.get(total), f.load(element, f.at(stored, k, element))))
