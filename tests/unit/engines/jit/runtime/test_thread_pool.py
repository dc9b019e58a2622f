"""The thread pool: every part runs exactly once, for any caller and with sleeping threads."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from compiled_ir import usable_machine
from jit_kernels import SLOTS, Notes, counted, emit_barrier, emit_march, march, pool_kernels
from repository import ROOT

from lstm_cli.engines.jit.codegen.ir import Module
from lstm_cli.engines.jit.runtime import thread_pool, worker_ir
from lstm_cli.engines.jit.runtime.compiler import compile_object, load_kernels
from lstm_cli.engines.jit.runtime.machine import Machine, this_machine
from lstm_cli.engines.jit.runtime.thread_pool import Pool, process_pool, run
from lstm_cli.engines.jit.runtime.worker_ir import MAX_PARTS, emit_pool


@pytest.fixture(autouse=True)
def _no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LSTM_CLI_CACHE_DIR", "")
    usable_machine()


def test_every_part_runs_once() -> None:
    pool, notes, count = process_pool(), Notes(), pool_kernels()["count"]
    expected = np.zeros(SLOTS, np.int64)
    rng = np.random.default_rng(3)
    for parts in rng.integers(1, 6, 20_000).tolist():
        used = pool.run(count, notes.address, parts)
        assert used == parts == notes.used
        expected[:used] += 1
    assert np.array_equal(notes.parts, expected)


def test_no_part_runs_ahead() -> None:
    pool, notes = process_pool(), Notes()
    for parts, steps in (2, 4000), (3, 60), (1, 100), (5, 40), (2, 1), (2, 300), (4, 7):
        assert march(pool, parts, steps, notes) == parts


def test_one_part_starts_no_thread() -> None:
    pool, notes = Pool(), Notes()
    assert counted(pool, 1, notes) == counted(pool, 0, notes) == counted(pool, -3, notes) == 1
    assert pool._started == 0


def test_the_pool_grows_as_far_as_requested() -> None:
    pool, notes = Pool(), Notes()
    for parts, workers in (3, 2), (2, 2), (70, 69), (5, 69):
        assert counted(pool, parts, notes) == parts
        assert pool._started == pool._words[worker_ir.WORKER_COUNT] == workers


def test_more_parts_than_there_can_be() -> None:
    pool, notes = Pool(), Notes()
    assert counted(pool, MAX_PARTS + 40, notes) == MAX_PARTS
    assert counted(pool, MAX_PARTS + 50, notes) == MAX_PARTS


@pytest.mark.parametrize("granted", [0, 1, 3])
@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_the_system_grants_few_threads(
    granted: int, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, notes, tried = Pool(), Notes(), []
    start = thread_pool._start_thread

    def reluctant(function: int, argument: int) -> None:
        tried.append(function)
        if len(tried) > granted:
            raise error
        start(function, argument)

    monkeypatch.setattr(thread_pool, "_start_thread", reluctant)
    assert counted(pool, 6, notes) == granted + 1
    assert march(pool, 6, 20, notes) == granted + 1
    assert len(tried) == granted + 1  # no new try after a refusal


def test_a_worker_that_starts_late_joins_late(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_pool, "_START_SECONDS", 0.0)
    pool, notes, go = Pool(), Notes(), threading.Event()
    start = thread_pool._start_thread

    def late(function: int, argument: int) -> None:
        threading.Thread(target=lambda: (go.wait(), start(function, argument))).start()

    monkeypatch.setattr(thread_pool, "_start_thread", late)
    assert counted(pool, 2, notes) == 1
    go.set()
    pool._await(1)
    while counted(pool, 2, notes) == 1:
        time.sleep(0.001)
    assert march(pool, 2, 20, notes) == 2


@pytest.mark.parametrize("gap", [0.0003, 0.004])
def test_after_a_while_without_work(gap: float) -> None:
    pool, notes = process_pool(), Notes()
    for _ in range(30):
        time.sleep(gap)
        assert counted(pool, 3, notes) == 3
        time.sleep(gap)
        assert march(pool, 3, 3, notes) == 3


def test_workers_without_work_sleep() -> None:
    pool, notes = process_pool(), Notes()
    march(pool, 4, 5, notes)
    states = [pool._words[32 + 16 * worker] for worker in range(3)]
    end = time.monotonic() + 30
    while states != [worker_ir._ASLEEP] * 3 and time.monotonic() < end:
        time.sleep(0.01)
        states = [pool._words[32 + 16 * worker] for worker in range(3)]
    assert states == [worker_ir._ASLEEP] * 3
    used = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - used < 0.1


def test_several_threads_ask_at_once() -> None:
    pool, failed, used = Pool(), [], set()
    start = threading.Barrier(4)

    def ask(seed: int) -> None:
        try:
            notes, rng = Notes(), np.random.default_rng(seed)
            start.wait()
            for parts in rng.integers(1, 4, 400).tolist():
                used.add((parts, counted(pool, parts, notes)))
                march(pool, parts, 5, notes)
        except BaseException as error:
            failed.append(error)
            raise

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert all(got in (1, parts) for parts, got in used)
    assert (3, 3) in used


def test_a_caller_that_finds_the_pool_in_use_runs_all_parts_itself() -> None:
    pool, notes = Pool(), Notes()
    assert counted(pool, 2, notes) == 2
    pool._words[worker_ir.BUSY] = 1
    assert counted(pool, 2, notes) == 1
    assert march(pool, 2, 4, notes) == 1
    pool._words[worker_ir.BUSY] = 0
    assert march(pool, 2, 4, notes) == 2


def test_a_sleeping_thread_at_the_barrier_is_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a spin limit of 1, nearly every wait ends in sleep."""
    monkeypatch.setattr(worker_ir, "_SPIN_LIMIT", 1)
    machine, notes = this_machine(), Notes()

    def build() -> Module:
        module = Module()
        emit_march(module, emit_barrier(module, machine))
        return module

    compiled = load_kernels("tests of the pool with sleeping barriers", build)
    notes.words[10] = 500
    for parts in 2, 3, 2, 5:
        assert run(compiled["march"], notes.address, parts) == parts
        assert notes.failures == 0
        assert (notes.parts[:parts] == 500).all()
        assert notes.words[worker_ir._SLEEPERS] == 0


def test_the_process_has_one_pool() -> None:
    assert process_pool() is process_pool()
    notes = Notes()
    assert run(pool_kernels()["count"], notes.address, 2) == 2


OTHER = [
    Machine("x86_64-unknown-linux-gnu", "haswell", "+avx2,+fma", 256, 16),
    Machine("aarch64-unknown-linux-gnu", "neoverse-n1", "", 128, 32),
    Machine("arm64-apple-darwin", "apple-m1", "", 128, 32),
    Machine("x86_64-pc-windows-msvc", "haswell", "+avx2,+fma", 256, 16),
]


@pytest.mark.parametrize("machine", OTHER, ids=lambda machine: machine.triple)
def test_other_machines_code(machine: Machine) -> None:
    module = emit_pool(machine)
    emit_barrier(module, machine)
    assert compile_object(module, machine)


# The end of the interpreter, forks and interrupts, in a process of their own

HEAD = """
import ctypes, os, sys, threading, time
sys.path.insert(0, {folder!r})
from jit_kernels import Notes, counted, march, pool_kernels
from lstm_cli.engines.jit.runtime.thread_pool import Pool, process_pool, run
notes = Notes()
march(process_pool(), 3, 50, notes)
"""

ENDINGS = {
    "workers spin": "",
    "workers sleep": "time.sleep(0.05)",
    "an exit code": "sys.exit(7)",
    "an exception": "raise KeyError(7)",
    "from a thread that works": """
        def work():
            while True:
                march(process_pool(), 3, 200, notes)
        threading.Thread(target=work, daemon=True).start()
        time.sleep(0.02)
    """,
    "at the very end": """
        import atexit
        atexit.register(lambda: march(process_pool(), 2, 50, notes))
        atexit.register(lambda: counted(Pool(), 3, notes))
    """,
    "several pools": "[counted(Pool(), 4, Notes()) for _ in range(5)]",
}


def _child(body: str) -> subprocess.CompletedProcess[str]:
    code = HEAD.format(folder=str(ROOT / "tests/support")) + textwrap.dedent(body)
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_interpreter_ends(ending: str) -> None:
    code = {"an exit code": 7, "an exception": 1}.get(ending, 0)
    ended = _child(ENDINGS[ending])
    assert ended.returncode == code, ended.stderr
    assert ("KeyError: 7" in ended.stderr) if ending == "an exception" else not ended.stderr


FORKED = """
import warnings
warnings.simplefilter("ignore")  # newer Pythons warn of a fork beside threads
for pause in 0, 0.01:
    time.sleep(pause)
    process_pool().run(pool_kernels()["count"], notes.address, 3)
    child = os.fork()
    if not child:
        assert march(process_pool(), 3, 30, notes) == 3
        assert counted(process_pool(), 2, notes) == 2
        os._exit(5)
    assert march(process_pool(), 3, 30, Notes()) == 3
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
"""

FORKED_BUSY = """
import warnings
warnings.simplefilter("ignore")
def work():
    own_notes = Notes()
    while True:
        march(process_pool(), 3, 100, own_notes)
threading.Thread(target=work, daemon=True).start()
for _ in range(5):
    child = os.fork()
    if not child:
        assert march(process_pool(), 3, 30, notes) == 3
        os._exit(5)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("body", [FORKED, FORKED_BUSY], ids=["between runs", "in a run"])
def test_a_child_process_has_threads_of_its_own(body: str) -> None:
    ended = _child(body)
    assert ended.returncode == 0, ended.stderr


INTERRUPTED = """
import signal
signal.signal(signal.SIGALRM, signal.default_int_handler)
hit = 0
end = time.monotonic() + 0.4
while time.monotonic() < end:
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005)
        while True:
            run(pool_kernels()["march"], notes.address, 3)
    except KeyboardInterrupt:
        hit += 1
assert hit
assert march(process_pool(), 3, 50, notes) == 3
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no timer signals on this system")
def test_an_interrupt_leaves_the_pool_whole() -> None:
    ended = _child(INTERRUPTED)
    assert ended.returncode == 0, ended.stderr
