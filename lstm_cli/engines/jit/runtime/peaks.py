"""The limits of this machine: how fast it multiplies and adds, and how fast it reads.

Both are measured with the instructions that the kernels consist of, on as many threads as they get.
Whatever else runs on the machine can only slow a try down, so the best of a few counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from time import perf_counter

from lstm_cli.engines.jit.codegen.ir import Function, Lanes, Module, Value, fma, vector
from lstm_cli.engines.jit.runtime import thread_pool
from lstm_cli.engines.jit.runtime.compiler import kernels
from lstm_cli.engines.jit.runtime.machine import Machine
from lstm_cli.engines.jit.runtime.memory import ALIGNMENT, Arguments, address, aligned
from lstm_cli.engines.limits import Limits, Reads

TRY_SECONDS = 5e-4
"""A try is at least about this long, so that waking the threads does not show in it."""

TRIES = 5

SPARE = 4
"""Registers that hold no chain: two operands, and some for the compiler."""

SIDE_BY_SIDE = 8
"""Vectors read in one turn, each into a register of its own."""

_BLOCK = Arguments(["times", "vectors"], ["data", "left"])


def measure(machine: Machine, threads: int, element: str, sizes: Sequence[int] = ()) -> Limits:
    """Multiply-adds a second, and reads a second of memory of each size.

    Parameters
    ----------
    threads
        All at work at once.
    element
        ``float``, ``double``, or ``bfloat``: two products at once, where the machine has such.
    sizes
        As `lstm_cli.engines.limits.Measurable.limits` has them.
    """
    sizes = sizes or standard_sizes(machine, threads)
    flops = _flops(machine, threads, element)
    reads = tuple(Reads(size, _reads(machine, threads, element, size) / 1e9) for size in sizes)
    return Limits(flops / 1e9, reads)


def standard_sizes(machine: Machine, threads: int) -> tuple[int, int]:
    """What each core's own cache holds easily, and what only the one behind it holds."""
    return threads * machine.cache // 2, threads * machine.cache * 4


def _flops(machine: Machine, threads: int, element: str) -> float:
    """Floating-point operations a second."""
    each = 2.0 * _lanes(machine, element).count * chains(machine)
    if _paired(machine, element):
        each *= 2

    def work(times: int) -> float:
        return each * times * _call(machine, threads, element, "multiply", times)

    return _rate(work)


def _reads(machine: Machine, threads: int, element: str, size: int) -> float:
    """Bytes a second."""
    width = _lanes(machine, element).bytes
    turn = width * SIDE_BY_SIDE
    share = max(turn, size // threads // turn * turn)
    # Written, for pages that nobody has written yet are all the same one.
    data = aligned(share * threads, "uint8")
    data[:] = 1
    vectors = share // width

    def work(times: int) -> float:
        at = address(data)
        parts = _call(machine, threads, element, "read", times, vectors=vectors, data=at)
        return float(share) * times * parts

    return _rate(work)


def _rate(work: Callable[[int], float]) -> float:
    """What `work`, called with a number of turns, says it did a second, at its best."""
    times, seconds = 1, 0.0
    work(times)  # compiles, and wakes the threads
    while seconds < TRY_SECONDS:
        begun = perf_counter()
        work(times)
        seconds = perf_counter() - begun
        if seconds < TRY_SECONDS:
            times = max(2 * times, math.ceil(times * TRY_SECONDS / max(seconds, 1e-5)))
    best = 0.0
    for _ in range(TRIES):
        begun = perf_counter()
        done = work(times)
        best = max(best, done / (perf_counter() - begun))
    return best


def _call(
    machine: Machine, threads: int, element: str, kernel: str, times: int, **entries: int
) -> int:
    """Run a kernel on all threads; how many there were."""
    made = kernels(f"limits {element}", lambda: build(machine, element), machine)
    left = aligned(threads * ALIGNMENT, "uint8")
    given = {"vectors": 0, "data": 0, "times": times, "left": address(left), **entries}
    block = _BLOCK.block(given)  # held here, for its address does not keep it
    return thread_pool.run(made[kernel], address(block), threads)


def _lanes(machine: Machine, element: str) -> Lanes:
    return machine.lanes("double" if element == "double" else "float")


def _paired(machine: Machine, element: str) -> bool:
    return element == "bfloat" and machine.dot_bfloat16


def chains(machine: Machine) -> int:
    """Multiply-adds under way at once: one a register, which is more than any unit needs."""
    return machine.registers - SPARE


def build(machine: Machine, element: str) -> Module:
    """A module with the functions ``multiply`` and ``read``."""
    module = Module()
    _emit_multiply(module, machine, element)
    _emit_read(module, machine, element)
    return module


def _begin(module: Module, name: str) -> tuple[Function, dict[str, Value]]:
    kinds = {"block": "ptr", "part": "i64", "parts": "i64"}
    f = module.function(name, kinds, exported=True)
    return f, _BLOCK.read(f, f.args["block"])


def _finish(f: Function, a: dict[str, Value], op: str, values: Sequence[Value]) -> None:
    """Store all values as one, lest what nobody reads is never computed."""
    total = values[0]
    for value in values[1:]:
        total = f.binary(op, total, value)
    own = f.mul(f.args["part"], ALIGNMENT)
    f.store(total, f.at(a["left"], own, "i8"), ALIGNMENT)
    f.done()


def _emit_multiply(module: Module, machine: Machine, element: str) -> None:
    """Multiply and add to every register, `times` times; each waits for its own last result."""
    f, a = _begin(module, "multiply")
    lanes = _lanes(machine, element)
    sums = [f.variable(lanes.type, lanes.number(2.0 + k)) for k in range(chains(machine))]
    with f.loop(0, a["times"]):
        for x in sums:
            f.set(x, _step(f, lanes, f.get(x), paired=_paired(machine, element)))
    _finish(f, a, "fadd", [f.get(x) for x in sums])


def _step(f: Function, lanes: Lanes, x: Value, *, paired: bool) -> Value:
    """x / 2 + 1; or x + 1 * 1 + 1 * 1, from two pairs of bfloat16."""
    if not paired:
        return fma(f, lanes, x, lanes.number(0.5), lanes.number(1.0))
    ones = f.convert("bitcast", lanes.integer(0x3F803F80), vector(2 * lanes.count, "bfloat"))
    name = f"llvm.x86.avx512bf16.dpbf16ps.{lanes.bytes * 8}"
    return f.intrinsic(name, lanes.type, x, ones, ones)


def _emit_read(module: Module, machine: Machine, element: str) -> None:
    """Read a share of `vectors` vectors from its beginning to its end, `times` times."""
    f, a = _begin(module, "read")
    lanes = _lanes(machine, element)
    first = f.mul(f.args["part"], f.mul(a["vectors"], lanes.bytes))
    begin = f.at(a["data"], first, "i8")
    seen = [f.variable(lanes.integers, lanes.integer(k)) for k in range(SIDE_BY_SIDE)]
    with f.loop(0, a["times"]), f.loop(0, a["vectors"], SIDE_BY_SIDE) as k:
        for j, own in enumerate(seen):
            place = f.at(begin, f.mul(f.add(k, j), lanes.bytes), "i8")
            f.set(own, f.binary("or", f.get(own), f.load(lanes.integers, place, lanes.bytes)))
    _finish(f, a, "or", [f.get(own) for own in seen])
