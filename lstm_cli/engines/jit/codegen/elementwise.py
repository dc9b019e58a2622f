"""Expressions on whole arrays, element by element, in one pass: an optimiser's update, a loss.

The arrays are cut into chunks, whole ones for each thread; a vector at a time is read from all
inputs, computed and stored. What is left at the end goes through a vector of its own, so
that an element's bits do not depend on where it stands. A sum has a partial sum for each
chunk, added in order, and so does not depend on the number of threads either.
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
from lstm_cli.engines.arrays import Array, Values
from lstm_cli.engines.jit.codegen import cell
from lstm_cli.engines.jit.codegen.ir import Function, Lanes, Module, Value, Variable
from lstm_cli.engines.jit.runtime import thread_pool
from lstm_cli.engines.jit.runtime.compiler import kernels
from lstm_cli.engines.jit.runtime.machine import Machine
from lstm_cli.engines.jit.runtime.memory import Arguments, address
from lstm_cli.engines.programs import checked

CHUNK = 1 << 12
"""Numbers of one array that one thread does at once; a multiple of all vectors."""

OWN = 8
"""Chunks below which a thread is not worth waking."""

SUMS = 4
"""Partial sums side by side: an addition takes about as many cycles until its result is known."""

_ELEMENTS = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}

Roots: TypeAlias = tuple[tuple[str, Expression], ...]


@dataclass(frozen=True)
class Task:
    """What a kernel computes.

    Attributes
    ----------
    roots
        By name; for a sum one, which is added up.
    arrays
        Symbols that are arrays; the others are numbers.
    element
        Of the arrays: ``float`` or ``double``.
    summed
        Add up, in double precision.
    """

    roots: Roots
    arrays: tuple[str, ...]
    element: str
    summed: bool = False

    @cached_property
    def reals(self) -> tuple[str, ...]:
        """Symbols that are numbers."""
        nodes = topological(root for _, root in self.roots)
        names = {str(node.payload) for node in nodes if node.op == "symbol"}
        return tuple(sorted(names - set(self.arrays)))

    @cached_property
    def arguments(self) -> Arguments:
        """The kernel's block: the arrays, where results go, and the numbers."""
        into = ["partial"] if self.summed else [f"out {name}" for name, _ in self.roots]
        return Arguments(["count"], [f"in {name}" for name in self.arrays] + into, self.reals)

    @cached_property
    def name(self) -> str:
        """Equal for equal kernels: every node once, by the places of those that it reads."""
        order = topological(root for _, root in self.roots)
        place = {node: k for k, node in enumerate(order)}
        nodes = [f"{n.op} {n.payload} {[place[arg] for arg in n.args]}" for n in order]
        roots = [(name, place[root]) for name, root in self.roots]
        how = "sum" if self.summed else "map"
        return f"{how} {self.element} {self.arrays} {roots} of {'; '.join(nodes)}"


def run_map(
    roots: Mapping[str, Expression],
    values: Values,
    out: Mapping[str, Array],
    machine: Machine,
    threads: int = 1,
) -> None:
    """Every root into its array of `out`; see `lstm_cli.engines.types.Elementwise`.

    Raises
    ------
    ValueError
        Arrays that differ in shape or dtype, or have gaps.
    """
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    ordered = [*arrays.values(), *(out[name] for name in roots)]
    element = _element(ordered)
    made = _made(tuple(roots.items()), tuple(arrays), element, False, machine)
    _run(made, ordered[0].size, [address(array) for array in ordered], values, threads)


def run_total(root: Expression, values: Values, machine: Machine, threads: int = 1) -> float:
    """The sum of an expression over all elements; see `lstm_cli.engines.types.Elementwise`.

    Raises
    ------
    ValueError
        As `run_map`.
    """
    arrays = {name: value for name, value in values.items() if isinstance(value, np.ndarray)}
    ordered = list(arrays.values())
    element = _element(ordered)
    made = _made((("", root),), tuple(arrays), element, True, machine)
    size = ordered[0].size
    partial = np.empty(-(-size // CHUNK))
    _run(made, size, [address(array) for array in (*ordered, partial)], values, threads)
    return float(sum(partial.tolist()))


def _element(arrays: Sequence[Array]) -> str:
    """What the arrays hold, which is the same for all of them."""
    checked(arrays)
    dtype = arrays[0].dtype
    wrong = dtype not in _ELEMENTS
    for array in arrays:
        wrong = wrong or array.dtype != dtype
    if wrong:
        raise ValueError(f"arrays of one dtype, float32 or float64, are wanted, not {dtype}")
    return _ELEMENTS[dtype]


@dataclass(frozen=True)
class _Made:
    """A compiled task: its block in memory, and the numbers that end it."""

    address: int
    block: struct.Struct
    reals: tuple[str, ...]


def _run(made: _Made, size: int, places: list[int], values: Values, threads: int) -> None:
    if not size:
        return
    block = ctypes.create_string_buffer(made.block.size)
    made.block.pack_into(block, 0, size, *places, *[values[name] for name in made.reals])
    parts = max(1, min(threads, size // (CHUNK * OWN)))
    thread_pool.run(made.address, ctypes.addressof(block), parts)


@lru_cache(maxsize=256)
def _made(
    roots: Roots, arrays: tuple[str, ...], element: str, summed: bool, machine: Machine
) -> _Made:
    task = Task(roots, arrays, element, summed)
    found = kernels(task.name, lambda: build(task, machine), machine)
    reals = len(task.reals)
    block = struct.Struct(f"{len(task.arguments.names) - reals}q{reals}d")
    return _Made(found["map"], block, task.reals)


def build(task: Task, machine: Machine) -> Module:
    """A module with the function ``map``."""
    module = Module()
    kinds = {"block": "ptr", "part": "i64", "parts": "i64"}
    (_Sum if task.summed else _Map)(module.function("map", kinds, exported=True), task, machine)
    return module


class _Map:
    """The emission of a kernel that stores every root."""

    def __init__(self, f: Function, task: Task, machine: Machine) -> None:
        self.f, self.task = f, task
        self.lanes = machine.lanes("double" if task.summed else task.element)
        block, part, parts = f.args.values()
        self.a = a = task.arguments.read(f, block)
        self.numbers = {name: self._wide(a[name]) for name in task.reals}
        self.inputs = {name: a[f"in {name}"] for name in task.arrays}
        self.count = a["count"]
        chunks = f.div(f.add(self.count, CHUNK - 1), CHUNK)
        self.emit(f.div(f.mul(chunks, part), parts), f.div(f.mul(chunks, f.add(part, 1)), parts))
        f.done()

    def emit(self, begin: Value, end: Value) -> None:
        """The chunks from `begin` to before `end`."""
        f, count = self.f, self.lanes.count
        start, stop = f.mul(begin, CHUNK), f.smaller(f.mul(end, CHUNK), self.count)
        rest = f.rem(stop, count)
        whole = f.sub(stop, rest)
        outputs = {name: self.a[f"out {name}"] for name, _ in self.task.roots}
        with f.loop(start, whole, count) as k:
            for name, value in self.computed(self.inputs, k).items():
                f.store(value, f.at(outputs[name], k, self.task.element), self._alignment)
        with self.spare(whole, rest) as found:
            kept = {name: f.array(count, self.task.element) for name in found}
            for name, value in found.items():
                f.store(value, kept[name])
            with f.loop(0, rest) as k:
                for name, source in kept.items():
                    self._copy(
                        f.at(source, k, self.task.element),
                        f.at(outputs[name], f.add(whole, k), self.task.element),
                    )

    def computed(self, inputs: Mapping[str, Value], k: Value | int) -> dict[str, Value]:
        """The roots for one vector of every input, from number `k` on."""
        f, lanes, element = self.f, self.lanes, self.task.element
        values = dict(self.numbers)
        for name, begin in inputs.items():
            stored = Lanes(element, lanes.count)
            value = f.load(stored.type, f.at(begin, k, element), self._alignment)
            narrow = element != lanes.element
            values[name] = f.convert("fpext", value, lanes.type) if narrow else value
        return cell.emit(f, lanes, dict(self.task.roots), values)

    @contextmanager
    def spare(self, first: Value, rest: Value) -> Iterator[dict[str, Value]]:
        """Where fewer numbers than a vector are left: the roots, from vectors filled up with 0."""
        f, element, count = self.f, self.task.element, self.lanes.count
        stored = Lanes(element, count)
        with f.when(f.compare("sgt", rest, 0)):
            spare = {name: f.array(count, element) for name in self.inputs}
            for place in spare.values():
                f.store(stored.number(0.0), place)
            with f.loop(0, rest) as k:
                for name, place in spare.items():
                    source = f.at(self.inputs[name], f.add(first, k), element)
                    self._copy(source, f.at(place, k, element))
            yield self.computed(spare, 0)

    @property
    def _alignment(self) -> int:
        return 4 if self.task.element == "float" else 8

    def _copy(self, source: Value, target: Value) -> None:
        self.f.store(self.f.load(self.task.element, source), target)

    def _wide(self, real: Value) -> Value:
        """A number in every lane."""
        if self.lanes.element == "float":
            real = self.f.convert("fptrunc", real, "float")
        return self.f.splat(real, self.lanes)


class _Sum(_Map):
    """The emission of a kernel that adds up its one root, a partial sum for each chunk."""

    def emit(self, begin: Value, end: Value) -> None:
        """The chunks from `begin` to before `end`."""
        f, lanes = self.f, self.lanes
        with f.loop(begin, end) as chunk:
            start = f.mul(chunk, CHUNK)
            stop = f.smaller(f.add(start, CHUNK), self.count)
            rest = f.rem(stop, lanes.count)
            whole = f.sub(stop, rest)
            several = f.sub(whole, f.rem(whole, lanes.count * SUMS))
            sums = [f.variable(lanes.type, lanes.number(0.0)) for _ in range(SUMS)]
            with f.loop(start, several, lanes.count * SUMS) as k:
                for j, sum_ in enumerate(sums):
                    self._add(sum_, self.computed(self.inputs, f.add(k, j * lanes.count)))
            with f.loop(several, whole, lanes.count) as k:
                self._add(sums[0], self.computed(self.inputs, k))
            total = f.variable(lanes.element, Value(lanes.element, "0.0"))
            for sum_ in sums:
                self._fold(total, f.get(sum_), lanes.count)
            with self.spare(whole, rest) as found:
                self._fold(total, found[""], rest)
            f.store(f.get(total), f.at(self.a["partial"], chunk, lanes.element))

    def _add(self, sum_: Variable, found: Mapping[str, Value]) -> None:
        self.f.set(sum_, self.f.fadd(self.f.get(sum_), found[""]))

    def _fold(self, total: Variable, value: Value, count: Value | int) -> None:
        """Add the first `count` numbers of a vector, in order."""
        f, element = self.f, self.lanes.element
        spare = f.array(self.lanes.count, element)
        f.store(value, spare)
        with f.loop(0, count) as k:
            f.set(total, f.fadd(f.get(total), f.load(element, f.at(spare, k, element))))
