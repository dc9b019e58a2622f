"""Small kernels for tests of the jit runtime; processes that these tests start import them too."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np

from lstm_cli.engines.jit.codegen.ir import Function, Module, Value
from lstm_cli.engines.jit.runtime import worker_ir
from lstm_cli.engines.jit.runtime.compiler import Kernels, load_kernels
from lstm_cli.engines.jit.runtime.machine import Machine, this_machine
from lstm_cli.engines.jit.runtime.thread_pool import Pool, syscall_address

SLOTS = 320
"""Words of a `Notes` for parts, one word each."""

PART = {"args": "ptr", "part": "i64", "parts": "i64"}


def emit_barrier(module: Module, machine: Machine) -> Function:
    """``barrier(ptr memory, i64 parts, ptr syscall)``: returns when all parts have called it.

    `memory` is 8 words, zero before its first use: arrived parts, complete barriers, sleepers.
    """
    parameters = {"memory": "ptr", "parts": "i64", "syscall": "ptr"}
    f = module.function("barrier", parameters, noalias=False)
    memory, parts, syscall = f.args.values()
    with f.when(f.compare("sgt", parts, 1)):
        complete = f.at(memory, 1, "i64")
        # No barrier completes before this part arrives.
        before = worker_ir.load_acquire(f, complete)
        others = f.value("i64", f"atomicrmw add {memory}, i64 1 acq_rel, align 8")
        with f.when(f.compare("eq", f.add(others, 1), parts)):
            worker_ir._store_release(f, 0, memory)
            after = f.add(before, 1)
            worker_ir.store_and_wake(f, machine, after, complete, syscall, memory)
        with worker_ir.waiting_loop(f, machine, complete, syscall, memory) as (wait, value):
            wait.leave_if(f.compare("ne", value, before))
    f.ret()
    return f


class Notes:
    """Memory of the test kernels: a barrier's words, a few more, and one word per part."""

    def __init__(self) -> None:
        memory = np.zeros(8 + 16 + SLOTS, np.int64)
        skipped = -memory.ctypes.data % 64 // 8
        self.words = memory[skipped:][: 16 + SLOTS]
        self.words[8] = syscall_address()
        self.address = self.words.ctypes.data

    @property
    def parts(self) -> np.ndarray:
        return self.words[16:]

    @property
    def failures(self) -> int:
        return int(self.words[9])

    @property
    def used(self) -> int:
        """The number of parts that part 0 of the last run got as an argument."""
        return int(self.words[11])


def pool_kernels() -> Kernels:
    """Address of ``count`` and of ``march``, kernels that a `Notes` is the argument of."""

    def build() -> Module:
        module = Module()
        _emit_count(module.function("count", PART, exported=True, noalias=False))
        barrier = emit_barrier(module, this_machine())
        emit_march(module, barrier)
        return module

    return load_kernels("tests of the pool", build)


def _slot(f: Function, part: Value) -> Value:
    return f.at(f.at(f.args["args"], 16, "i64"), part, "i64")


def _emit_count(f: Function) -> None:
    slot = _slot(f, f.args["part"])
    f.value("i64", f"atomicrmw add {slot}, i64 1 seq_cst")
    with f.when(f.compare("eq", f.args["part"], 0)):
        f.store(f.args["parts"], f.at(f.args["args"], 11, "i64"))
    f.ret()


def emit_march(module: Module, barrier: Function) -> None:
    """``march``: takes the steps that word 10 counts: store, wait, check the neighbor, wait.

    These loads and stores are plain; only the barriers order them.
    """
    f = module.function("march", PART, exported=True, noalias=False)
    args, part, parts = f.args.values()
    syscall, steps = f.load("ptr", f.at(args, 8, "i64")), f.load("i64", f.at(args, 10, "i64"))
    neighbor = f.rem(f.add(part, 1), parts)
    with f.loop(1, f.add(steps, 1)) as step:
        f.store(step, _slot(f, part))
        f.call(barrier, args, parts, syscall)
        differs = f.compare("ne", f.load("i64", _slot(f, neighbor)), step)
        with f.when(differs):
            f.value("i64", f"atomicrmw add {f.at(args, 9, 'i64')}, i64 1 seq_cst")
        f.call(barrier, args, parts, syscall)
    f.ret()


def counted(pool: Pool, parts: int, notes: Notes) -> int:
    """Run `count` once and check its words."""
    notes.parts[:] = 0
    used = pool.run(pool_kernels()["count"], notes.address, parts)
    assert notes.used == used
    assert list(np.flatnonzero(notes.parts)) == list(range(used))
    assert notes.parts.max() == 1
    return used


def march(pool: Pool, parts: int, steps: int, notes: Notes) -> int:
    """Run `march` once and check that all parts made all steps."""
    notes.words[10] = steps
    used = pool.run(pool_kernels()["march"], notes.address, parts)
    assert notes.failures == 0
    assert (notes.parts[:used] == steps).all()
    return used


def affine(machine: Machine, factor: float = 1.7, offset: float = -0.3) -> Module:
    """``affine(x, y, n)``: y = factor x + offset, a vector at a time and then one by one."""
    module = Module()
    vector = machine.vector("double")
    one = module.function("one", {"x": "ptr", "y": "ptr", "k": "i64"})
    x = one.load("double", one.at(one.args["x"], one.args["k"], "double"))
    product = one.fmul(x, _number(one.value, factor))
    total = one.fadd(product, _number(one.value, offset))
    one.store(total, one.at(one.args["y"], one.args["k"], "double"))
    one.ret()
    f = module.function("affine", {"x": "ptr", "y": "ptr", "n": "i64"}, exported=True)
    x, y, n = f.args.values()
    whole = f.sub(n, f.rem(n, vector.count))
    with f.loop(0, whole, vector.count) as k:
        row = f.load(vector.type, f.at(x, k, "double"), 8)
        total = f.fadd(f.fmul(row, vector.number(factor)), vector.number(offset))
        f.store(total, f.at(y, k, "double"), 8)
    with f.loop(whole, n) as k:
        f.call(one, x, y, k)
    f.ret()
    return module


def _number(value: Callable[[str, str], object], number: float) -> object:
    return value("double", f"fadd double -0.0, {number!r}")


class CountedBuild:
    """An emitter that counts its calls."""

    def __init__(self, machine: Machine, *numbers: float) -> None:
        self.machine, self.numbers, self.calls = machine, numbers, 0

    def __call__(self) -> Module:
        self.calls += 1
        return affine(self.machine, *self.numbers)


def computed(address: int, x: np.ndarray) -> np.ndarray:
    """Results of ``affine`` at this address."""
    y = np.full_like(x, np.nan)
    signature = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    signature(address)(x.ctypes.data, y.ctypes.data, len(x))
    return y
