"""Threads that do the parts of a kernel's work, at once or not at all.

A run costs well under two microseconds where the last one was a moment ago; workers that have had
nothing to do for some 200 microseconds sleep, and cost nothing. `serving` says how.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import lru_cache

from lstm_cli.engines.jit.runtime.compiler import kernels
from lstm_cli.engines.jit.runtime.machine import host
from lstm_cli.engines.jit.runtime.worker_ir import (
    ACQUIRE,
    CORES,
    CORES_WORDS,
    COUNT,
    MOST_PARTS,
    POOL_WORDS,
    RELEASE,
    REST,
    ROUNDS,
    YIELD,
    emit_pool,
    futex,
    lock_word,
)

_ROUNDS = 200
"""How often a worker without work offers its core to others before it sleeps."""

_STACK = 1 << 20
"""Bytes of a worker's stack: kernels keep little there, and the system's 8 MB count for many."""

_START = 1.0
"""Seconds that workers are given to start; later ones join later."""


def run(function: int, args: int, parts: int) -> int:
    """Do a kernel's work on the process's pool; see `Pool.run`."""
    return shared().run(function, args, parts)


class Pool:
    """Worker threads, started as they are first needed and kept until the process ends."""

    def __init__(self) -> None:
        made = kernels("pool", lambda: emit_pool(host()))
        address, word = ctypes.c_void_p, ctypes.c_int64
        self._run: Callable[[int, int, int, int], int]
        self._run = ctypes.CFUNCTYPE(word, address, address, address, word)(made["run"])
        self._serve = made["serve"]
        self._address = _memory(POOL_WORDS)
        self._words = (word * POOL_WORDS).from_address(self._address)
        self._words[YIELD], self._words[REST] = _yield_address(), yield_address()
        self._words[ROUNDS] = _ROUNDS
        for k, bits in enumerate(_cores()):
            self._words[CORES + k] = bits
        self._words[ACQUIRE] = _address(ctypes.pythonapi.PyThread_acquire_lock)
        self._words[RELEASE] = _address(ctypes.pythonapi.PyThread_release_lock)
        self._growing = threading.Lock()
        self._started = 0
        self._asked = 1

    def run(self, function: int, args: int, parts: int) -> int:
        """Call ``function(args, part, parts)`` for every part, each on a thread of its own.

        Parameters
        ----------
        function
            Address of a native ``void (ptr, i64, i64)``. Its result may not depend on the number
            of parts, for that can be smaller than what is asked for: 1 if another thread is in
            the midst of a run, for nobody waits for the pool.
        args
            Address of what it works on.
        parts
            As many as are wanted.

        Returns
        -------
        int
            How many parts there were. All are done.
        """
        if parts > self._asked:
            self._grow(parts)
        return self._run(self._address, function, args, parts)

    def _grow(self, parts: int) -> None:
        """Start workers for as many parts, or as many as the system lets us have."""
        with self._growing:
            try:
                while self._started < min(parts, MOST_PARTS) - 1:
                    self._start()
            except (RuntimeError, MemoryError):
                pass  # those there are do the work; the next try is when more are asked for
            self._await(self._started)
            self._asked = max(self._asked, parts)

    def _start(self) -> None:
        word = lock_word(self._started + 1)
        self._words[word] = self._words[word] or _taken_lock()
        _start_thread(self._serve, self._address)
        self._started += 1

    def _await(self, workers: int) -> None:
        """Return when as many are ready, or have had time enough."""
        end = time.monotonic() + _START
        while self._words[COUNT] < workers and time.monotonic() < end:
            time.sleep(0)


def _taken_lock() -> int:
    """A lock of Python's that is held."""
    allocate, acquire = (
        getattr(ctypes.pythonapi, f"PyThread_{verb}_lock") for verb in ("allocate", "acquire")
    )
    allocate.restype, acquire.argtypes = ctypes.c_void_p, (ctypes.c_void_p, ctypes.c_int)
    lock = allocate()
    if not lock:
        raise MemoryError
    acquire(lock, 1)
    return int(lock)


def _start_thread(function: int, argument: int) -> None:
    """Call a native ``void (ptr)`` on a thread that knows nothing of Python.

    Raises
    ------
    RuntimeError
        The system has no more threads, or no memory for one.
    """
    if sys.platform == "win32":
        serve = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)
        before = threading.stack_size(_STACK)
        try:
            threading.Thread(target=serve, args=(argument,), daemon=True).start()
        finally:
            threading.stack_size(before)
        return
    system = ctypes.CDLL(None)
    thread, attributes = ctypes.c_void_p(), ctypes.create_string_buffer(256)
    system.pthread_attr_init(attributes)
    try:
        system.pthread_attr_setstacksize(attributes, ctypes.c_size_t(_STACK))
        how = (ctypes.byref(thread), attributes, ctypes.c_void_p(function))
        if system.pthread_create(*how, ctypes.c_void_p(argument)):
            raise RuntimeError("can't start new thread")
    finally:
        system.pthread_attr_destroy(attributes)
    system.pthread_detach(thread)


def _cores() -> list[int]:
    """A bit for every core this process may use, 64 in a word; 0 if there is no choice."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if len(allowed) < 2 or max(allowed) >= 64 * CORES_WORDS:
        return [0] * CORES_WORDS
    bits = sum(1 << core for core in allowed)
    words = [bits >> 64 * k & (1 << 64) - 1 for k in range(CORES_WORDS)]
    return [word - (1 << 64) if word >> 63 else word for word in words]


@lru_cache(maxsize=1)
def yield_address() -> int:
    """What a barrier needs of the system: how a thread that waits for long lets others run."""
    if futex(host()):
        return _address(ctypes.CDLL(None).syscall)
    return _yield_address()


def _yield_address() -> int:
    """The system's function that offers the core to another thread, ``int (void)``."""
    if sys.platform == "win32":
        return _address(ctypes.WinDLL("kernel32").SwitchToThread)
    return _address(ctypes.CDLL(None).sched_yield)


def _address(function: object) -> int:
    """Where a function of a shared library is."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]


def _memory(words: int) -> int:
    """Zeros that are never given back, since workers look at them until the process ends."""
    allocate = ctypes.pythonapi.PyMem_RawCalloc
    allocate.restype, allocate.argtypes = ctypes.c_void_p, (ctypes.c_size_t, ctypes.c_size_t)
    found = allocate(words + 16, 8)
    if not found:
        raise MemoryError
    return int(found + -found % 128)


def shared() -> Pool:
    """The process's pool."""
    return _pool or _shared()


_pool: Pool | None = None
_making = threading.Lock()


def _shared() -> Pool:
    global _pool
    with _making:
        _pool = _pool or Pool()
        return _pool


def _forget() -> None:
    """A child process has the memory of its parent's threads, but not the threads."""
    global _pool, _making
    _pool, _making = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
