"""Measured peaks of this machine: multiply-adds per second, and bytes read per second.

A trial runs the instructions that kernels consist of, on an engine's number of threads. Other work
on the machine can only slow a trial down, so the best of `TRIALS` trials counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from time import perf_counter

from lstm_cli.engines.jit.codegen.ir import Function, Module, Value, VectorType, fma, vector_text
from lstm_cli.engines.jit.runtime import thread_pool
from lstm_cli.engines.jit.runtime.compiler import load_kernels
from lstm_cli.engines.jit.runtime.machine import Machine
from lstm_cli.engines.jit.runtime.memory import ALIGNMENT, Arguments, address, aligned
from lstm_cli.engines.types import MachinePeaks, ReadBandwidth

TRIAL_SECONDS = 5e-4
"""Least seconds of a trial, so that the wake-up of the threads does not matter."""

TRIALS = 5
"""Number of trials per rate."""


SPARE_REGISTERS = 4
"""Number of registers without a multiply-add chain: two for operands, two for the compiler."""

PARALLEL_READS = 8
"""Number of vectors read in one iteration, each into a register of its own."""

_ARGUMENTS = Arguments(["times", "vectors"], ["data", "results"])


def measure(
    machine: Machine, threads: int, element: str, sizes: Sequence[int] = ()
) -> MachinePeaks:
    """Measure the rate of multiply-adds, and the read bandwidth of memory of each size.

    Parameters
    ----------
    threads
        Threads that work at the same time.
    element
        ``float``, ``double`` or ``bfloat``. An instruction computes two ``bfloat`` products per
        lane, if the machine has such an instruction.
    sizes
        Sizes in bytes of the memory that all threads together read repeatedly. Empty:
        `standard_sizes`.
    """
    sizes = sizes or standard_sizes(machine, threads)
    flops = _flops(machine, threads, element)
    reads = tuple(
        ReadBandwidth(size, _reads(machine, threads, element, size) / 1e9) for size in sizes
    )
    return MachinePeaks(flops / 1e9, reads)


def standard_sizes(machine: Machine, threads: int) -> tuple[int, int]:
    """Bytes that fit in half of each core's cache, and bytes that fit only in the next cache."""
    return threads * machine.cache // 2, threads * machine.cache * 4


def _flops(machine: Machine, threads: int, element: str) -> float:
    """Floating-point operations per second."""
    operations = 2.0 * _full_vector(machine, element).count * chains(machine)
    if _paired(machine, element):
        operations *= 2

    def work(times: int) -> float:
        return operations * times * _call(machine, threads, element, "multiply", times)

    return _rate(work)


def _reads(machine: Machine, threads: int, element: str, size: int) -> float:
    """Bytes read per second."""
    width = _full_vector(machine, element).bytes
    step = width * PARALLEL_READS
    share = max(step, size // threads // step * step)
    # Pages that have never been written are all the same page of zeros.
    data = aligned(share * threads, "uint8")
    data[:] = 1
    vectors = share // width

    def work(times: int) -> float:
        at = address(data)
        parts = _call(machine, threads, element, "read", times, vectors=vectors, data=at)
        return float(share) * times * parts

    return _rate(work)


def _rate(work: Callable[[int], float]) -> float:
    """Best rate of `work`, which maps a number of iterations to the amount of work done."""
    times, seconds = 1, 0.0
    work(times)  # compile, and wake the threads
    while seconds < TRIAL_SECONDS:
        start = perf_counter()
        work(times)
        seconds = perf_counter() - start
        if seconds < TRIAL_SECONDS:
            times = max(2 * times, math.ceil(times * TRIAL_SECONDS / max(seconds, 1e-5)))
    best = 0.0
    for _ in range(TRIALS):
        start = perf_counter()
        amount = work(times)
        best = max(best, amount / (perf_counter() - start))
    return best


def _call(
    machine: Machine, threads: int, element: str, kernel: str, times: int, **entries: int
) -> int:
    """Run a kernel on all threads. Returns the number of threads that took part."""
    kernels = load_kernels(f"limits {element}", lambda: build(machine, element), machine)
    results = aligned(threads * ALIGNMENT, "uint8")
    values = {"vectors": 0, "data": 0, "times": times, "results": address(results), **entries}
    block = _ARGUMENTS.block(values)  # this variable keeps the block alive; its address does not
    return thread_pool.run(kernels[kernel], address(block), threads)


def _full_vector(machine: Machine, element: str) -> VectorType:
    return machine.vector("double" if element == "double" else "float")


def _paired(machine: Machine, element: str) -> bool:
    return element == "bfloat" and machine.dot_bfloat16


def chains(machine: Machine) -> int:
    """Number of independent multiply-adds: one per register, enough to fill execution units."""
    return machine.registers - SPARE_REGISTERS


def build(machine: Machine, element: str) -> Module:
    """A module with the functions ``multiply`` and ``read``."""
    module = Module()
    _emit_multiply(module, machine, element)
    _emit_read(module, machine, element)
    return module


def _begin(module: Module, name: str) -> tuple[Function, dict[str, Value]]:
    kinds = {"block": "ptr", "part": "i64", "parts": "i64"}
    f = module.function(name, kinds, exported=True)
    return f, _ARGUMENTS.read(f, f.args["block"])


def _finish(f: Function, a: dict[str, Value], op: str, values: Sequence[Value]) -> None:
    """Combine all values and store the result, so that the compiler keeps their computation."""
    total = values[0]
    for value in values[1:]:
        total = f.binary(op, total, value)
    place = f.mul(f.args["part"], ALIGNMENT)
    f.store(total, f.at(a["results"], place, "i8"), ALIGNMENT)
    f.ret()


def _emit_multiply(module: Module, machine: Machine, element: str) -> None:
    """Emit `times` multiply-adds of every register, each of which depends on the one before."""
    f, a = _begin(module, "multiply")
    vector = _full_vector(machine, element)
    sums = [f.variable(vector.type, vector.number(2.0 + k)) for k in range(chains(machine))]
    with f.loop(0, a["times"]):
        for x in sums:
            f.set(x, _step(f, vector, f.get(x), paired=_paired(machine, element)))
    _finish(f, a, "fadd", [f.get(x) for x in sums])


def _step(f: Function, vector: VectorType, x: Value, *, paired: bool) -> Value:
    """x / 2 + 1; or x + 1 * 1 + 1 * 1, from two pairs of bfloat16."""
    if not paired:
        return fma(f, vector, x, vector.number(0.5), vector.number(1.0))
    ones = f.convert("bitcast", vector.integer(0x3F803F80), vector_text(2 * vector.count, "bfloat"))
    name = f"llvm.x86.avx512bf16.dpbf16ps.{vector.bytes * 8}"
    return f.intrinsic(name, vector.type, x, ones, ones)


def _emit_read(module: Module, machine: Machine, element: str) -> None:
    """Emit reads of a share of `vectors` vectors from first to last, `times` times."""
    f, a = _begin(module, "read")
    vector = _full_vector(machine, element)
    first = f.mul(f.args["part"], f.mul(a["vectors"], vector.bytes))
    begin = f.at(a["data"], first, "i8")
    read = [f.variable(vector.integers, vector.integer(k)) for k in range(PARALLEL_READS)]
    with f.loop(0, a["times"]), f.loop(0, a["vectors"], PARALLEL_READS) as k:
        for j, bits in enumerate(read):
            place = f.at(begin, f.mul(f.add(k, j), vector.bytes), "i8")
            value = f.get(bits)
            value = f.binary("or", value, f.load(vector.integers, place, vector.bytes))
            f.set(bits, value)
    _finish(f, a, "or", [f.get(bits) for bits in read])
