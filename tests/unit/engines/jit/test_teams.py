"""Threads that share a step's columns: every share once, every phase after the one before it."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from lstm_cli.engines.jit.codegen.ir import Module
from lstm_cli.engines.jit.runtime.compiler import kernels
from lstm_cli.engines.jit.runtime.machine import Unusable, host
from lstm_cli.engines.jit.runtime.memory import aligned
from lstm_cli.engines.jit.runtime.thread_pool import Pool, run, yield_address
from lstm_cli.engines.jit.runtime.worker_ir import Team, team_words

PHASES, SHARES = 3000, 8
FAILURES, TEAM = 3 + SHARES, 24
"""Words of a test's memory: phases, the address for waiting, how many shares, then how often each
was done, and how often one was out of order; then the team's own."""


@pytest.fixture(autouse=True)
def _usable() -> None:
    try:
        host()
    except Unusable as why:
        pytest.skip(str(why))


def build() -> Module:
    """``march``: in every phase, each share checks that all are as far as they should be."""
    module = Module()
    kinds = {"notes": "ptr", "part": "i64", "parts": "i64"}
    f = module.function("march", kinds, exported=True, noalias=False)
    notes, part = f.args["notes"], f.args["part"]
    phases = f.load("i64", notes)
    rest, shares = f.load("ptr", f.at(notes, 1, "i64")), f.load("i64", f.at(notes, 2, "i64"))
    team = Team(f, host(), f.at(notes, TEAM, "i64"), shares, part, rest)
    with f.loop(0, phases) as number, team.phase() as share:
        own = f.at(notes, f.add(share, 3), "i64")
        done = f.load("i64", own)
        with f.when(f.compare("ne", done, number)):
            failed = f.at(notes, FAILURES, "i64")
            f.value("i64", f"atomicrmw add {failed}, i64 1 monotonic, align 8")
        with f.loop(0, shares) as other:
            ahead = f.load("i64", f.at(notes, f.add(other, 3), "i64"))
            gone = f.binary(
                "or", f.compare("slt", ahead, number), f.compare("sgt", ahead, f.add(number, 1))
            )
            with f.when(gone):
                failed = f.at(notes, FAILURES, "i64")
                f.value("i64", f"atomicrmw add {failed}, i64 1 monotonic, align 8")
        f.store(f.add(done, 1), own)
    f.done()
    return module


def memory(shares: int, phases: int = PHASES) -> np.ndarray:
    """Zeroed, but for what a kernel is told."""
    words = aligned(TEAM + team_words(SHARES), np.int64)
    words[:] = 0
    words[:3] = phases, yield_address(), shares
    return words


@pytest.mark.parametrize("shares", [2, 3, 5])
def test_every_share_is_done_once_in_every_phase(shares: int) -> None:
    march = kernels("tests of teams", build)["march"]
    for _ in range(5):
        words = memory(shares)
        used = run(march, words.ctypes.data, shares)
        assert used in (1, shares)
        assert words[FAILURES] == 0
        assert (words[3 : 3 + shares] == PHASES).all()


def test_one_thread_does_the_shares_of_all() -> None:
    """The pool is in use, or no thread can be had: nobody else ever comes."""
    march, pool = kernels("tests of teams", build)["march"], Pool()
    words = memory(3, phases=50)
    assert pool.run(march, words.ctypes.data, 1) == 1
    assert words[FAILURES] == 0
    assert (words[3:6] == 50).all()


def test_one_who_comes_late_finds_it_done() -> None:
    march, pool = kernels("tests of teams", build)["march"], Pool()
    words = memory(2)
    alone = threading.Thread(target=pool.run, args=(march, words.ctypes.data, 1))
    alone.start()
    alone.join()
    assert run(march, words.ctypes.data, 2) in (1, 2)  # again, when all phases are over
    assert words[FAILURES] == 0
    assert (words[3:5] == PHASES).all()


def test_a_team_of_one_meets_nobody() -> None:
    words = memory(1)
    assert run(kernels("tests of teams", build)["march"], words.ctypes.data, 1) == 1
    assert words[3] == PHASES
    assert not words[TEAM:].any()
