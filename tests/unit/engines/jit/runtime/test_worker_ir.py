"""Phases with work stealing: each share runs once, and each phase after the previous one."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from compiled_ir import usable_machine

from lstm_cli.engines.jit.codegen.ir import Module
from lstm_cli.engines.jit.runtime.compiler import load_kernels
from lstm_cli.engines.jit.runtime.machine import this_machine
from lstm_cli.engines.jit.runtime.memory import aligned
from lstm_cli.engines.jit.runtime.thread_pool import Pool, run, syscall_address
from lstm_cli.engines.jit.runtime.worker_ir import SharedPhases, shared_phase_words

PHASES, MAX_SHARES = 3000, 8
FAILURES, PHASE_MEMORY = 3 + MAX_SHARES, 24
"""Words of a test's memory. Words 0 to 2: number of phases, address of the system call, number of
shares. Then one word per share, which counts its runs; the number of failures; and from
`PHASE_MEMORY` on the memory of `SharedPhases`."""


@pytest.fixture(autouse=True)
def _usable() -> None:
    usable_machine()


def build() -> Module:
    """``march``: in each phase, each share checks how far all shares are."""
    module = Module()
    kinds = {"words": "ptr", "part": "i64", "parts": "i64"}
    f = module.function("march", kinds, exported=True, noalias=False)
    words, part = f.args["words"], f.args["part"]
    phases, syscall = f.load("i64", words), f.load("ptr", f.at(words, 1, "i64"))
    shares = f.load("i64", f.at(words, 2, "i64"))
    memory_ = f.at(words, PHASE_MEMORY, "i64")
    shared = SharedPhases(f, this_machine(), memory_, shares, part, syscall)
    with f.loop(0, phases) as number, shared.phase() as share:
        counter = f.at(words, f.add(share, 3), "i64")
        runs = f.load("i64", counter)
        with f.when(f.compare("ne", runs, number)):
            failures = f.at(words, FAILURES, "i64")
            f.value("i64", f"atomicrmw add {failures}, i64 1 monotonic, align 8")
        with f.loop(0, shares) as other:
            other_runs = f.load("i64", f.at(words, f.add(other, 3), "i64"))
            behind = f.compare("slt", other_runs, number)
            ahead = f.compare("sgt", other_runs, f.add(number, 1))
            with f.when(f.binary("or", behind, ahead)):
                failures = f.at(words, FAILURES, "i64")
                f.value("i64", f"atomicrmw add {failures}, i64 1 monotonic, align 8")
        f.store(f.add(runs, 1), counter)
    f.ret()
    return module


def memory(shares: int, phases: int = PHASES) -> np.ndarray:
    """The words of a run; all counters are zero."""
    words = aligned(PHASE_MEMORY + shared_phase_words(MAX_SHARES), np.int64)
    words[:] = 0
    words[:3] = phases, syscall_address(), shares
    return words


def march() -> int:
    """Address of the compiled kernel."""
    return load_kernels("tests of shared phases", build)["march"]


@pytest.mark.parametrize("shares", [2, 3, 5])
def test_every_share_runs_once_in_every_phase(shares: int) -> None:
    for _ in range(5):
        words = memory(shares)
        used = run(march(), words.ctypes.data, shares)
        assert used in (1, shares)
        assert words[FAILURES] == 0
        assert (words[3 : 3 + shares] == PHASES).all()


def test_one_thread_runs_all_shares() -> None:
    """The pool is in use, or the system grants no thread: no other thread ever comes."""
    pool, words = Pool(), memory(3, phases=50)
    assert pool.run(march(), words.ctypes.data, 1) == 1
    assert words[FAILURES] == 0
    assert (words[3:6] == 50).all()


def test_a_late_thread_finds_all_phases_complete() -> None:
    kernel, pool, words = march(), Pool(), memory(2)
    first = threading.Thread(target=pool.run, args=(kernel, words.ctypes.data, 1))
    first.start()
    first.join()
    assert run(kernel, words.ctypes.data, 2) in (1, 2)  # a second run, after all phases
    assert words[FAILURES] == 0
    assert (words[3:5] == PHASES).all()


def test_a_single_worker_uses_no_barrier() -> None:
    words = memory(1)
    assert run(march(), words.ctypes.data, 1) == 1
    assert words[3] == PHASES
    assert not words[PHASE_MEMORY:].any()
