"""Thread pool for kernels: starts the workers, and runs a kernel's parts on them.

A run costs under two microseconds while the workers are awake. A worker without work sleeps
after some 200 microseconds. `worker_ir` emits the native code of callers and workers;
``docs/thread-pool.md`` describes the protocol.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import lru_cache

from lstm_cli.engines.jit.runtime.compiler import load_kernels
from lstm_cli.engines.jit.runtime.machine import this_machine
from lstm_cli.engines.jit.runtime.worker_ir import (
    ACQUIRE,
    CORE_WORDS,
    CORES,
    IDLE_ROUNDS,
    MAX_PARTS,
    POOL_WORDS,
    RELEASE,
    SYSCALL,
    WORKER_COUNT,
    YIELD,
    emit_pool,
    futex_number,
    lock_word,
)

_IDLE_ROUNDS = 200
"""Number of times that an idle worker yields its core to other threads before it sleeps."""

_STACK_BYTES = 1 << 20
"""Bytes of a worker's stack. Kernels need little, and the system's default is 8 MB per thread."""

_START_SECONDS = 1.0
"""Largest number of seconds that a caller waits for new workers. Slower ones join a later run."""


def run(function: int, args: int, parts: int) -> int:
    """Run a kernel's parts on the process's pool; see `Pool.run`."""
    return process_pool().run(function, args, parts)


class Pool:
    """Worker threads, started at the first need and kept until the process ends."""

    def __init__(self) -> None:
        kernels = load_kernels("pool", lambda: emit_pool(this_machine()))
        address, word = ctypes.c_void_p, ctypes.c_int64
        self._run: Callable[[int, int, int, int], int]
        self._run = ctypes.CFUNCTYPE(word, address, address, address, word)(kernels["run"])
        self._serve = kernels["serve"]
        self._address = _immortal_zeros(POOL_WORDS)
        self._words = (word * POOL_WORDS).from_address(self._address)
        self._words[YIELD], self._words[SYSCALL] = _sched_yield_address(), syscall_address()
        self._words[IDLE_ROUNDS] = _IDLE_ROUNDS
        for k, bits in enumerate(_allowed_cores()):
            self._words[CORES + k] = bits
        self._words[ACQUIRE] = _address(ctypes.pythonapi.PyThread_acquire_lock)
        self._words[RELEASE] = _address(ctypes.pythonapi.PyThread_release_lock)
        self._growing = threading.Lock()
        self._started = 0
        self._requested = 1

    def run(self, function: int, args: int, parts: int) -> int:
        """Call ``function(args, part, parts)`` for every part, on the caller and on workers.

        The caller also runs the parts that no worker has started by the time its own part ends.

        Parameters
        ----------
        function
            Address of a native ``void (ptr, i64, i64)``. Its result must not depend on the number
            of parts, which may be smaller than requested. While another thread uses the pool, the
            number is 1, since a caller never waits for the pool.
        args
            Address of the function's argument block.
        parts
            Number of parts requested.

        Returns
        -------
        int
            Number of parts that were run. All are complete.
        """
        if parts > self._requested:
            self._grow(parts)
        return self._run(self._address, function, args, parts)

    def _grow(self, parts: int) -> None:
        """Start workers for `parts` parts, or as many as the system permits."""
        with self._growing:
            try:
                while self._started < min(parts, MAX_PARTS) - 1:
                    self._start()
            except (RuntimeError, MemoryError):
                pass  # fewer workers do the work; the next try is when more parts are requested
            self._await(self._started)
            self._requested = max(self._requested, parts)

    def _start(self) -> None:
        word = lock_word(self._started + 1)
        self._words[word] = self._words[word] or _locked_python_lock()
        _start_thread(self._serve, self._address)
        self._started += 1

    def _await(self, workers: int) -> None:
        """Wait until `workers` workers are ready, at most `_START_SECONDS`."""
        end = time.monotonic() + _START_SECONDS
        while self._words[WORKER_COUNT] < workers and time.monotonic() < end:
            time.sleep(0)


def _locked_python_lock() -> int:
    """Address of a new lock of Python's C interface, already locked."""
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
    """Call a native ``void (ptr)`` on a new thread, outside of Python where possible.

    Raises
    ------
    RuntimeError
        The system has no more threads, or no memory for one.
    """
    if sys.platform == "win32":
        serve = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(function)
        before = threading.stack_size(_STACK_BYTES)
        try:
            threading.Thread(target=serve, args=(argument,), daemon=True).start()
        finally:
            threading.stack_size(before)
        return
    system = ctypes.CDLL(None)
    thread, attributes = ctypes.c_void_p(), ctypes.create_string_buffer(256)
    system.pthread_attr_init(attributes)
    try:
        system.pthread_attr_setstacksize(attributes, ctypes.c_size_t(_STACK_BYTES))
        start, data = ctypes.c_void_p(function), ctypes.c_void_p(argument)
        if system.pthread_create(ctypes.byref(thread), attributes, start, data):
            raise RuntimeError("can't start new thread")
    finally:
        system.pthread_attr_destroy(attributes)
    system.pthread_detach(thread)


def _allowed_cores() -> list[int]:
    """Bit set of the cores that this process may use, 64 per word; 0 if unknown or only one."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    if len(allowed) < 2 or max(allowed) >= 64 * CORE_WORDS:
        return [0] * CORE_WORDS
    bits = sum(1 << core for core in allowed)
    words = [bits >> 64 * k & (1 << 64) - 1 for k in range(CORE_WORDS)]
    return [word - (1 << 64) if word >> 63 else word for word in words]


@lru_cache(maxsize=1)
def syscall_address() -> int:
    """Address of ``syscall`` on Linux, for futex calls; elsewhere that of the system's yield."""
    if futex_number(this_machine()):
        return _address(ctypes.CDLL(None).syscall)
    return _sched_yield_address()


def _sched_yield_address() -> int:
    """Address of the system's function ``int (void)`` that yields the core to another thread."""
    if sys.platform == "win32":
        return _address(ctypes.WinDLL("kernel32").SwitchToThread)
    return _address(ctypes.CDLL(None).sched_yield)


def _address(function: object) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0  # type: ignore[arg-type]


def _immortal_zeros(words: int) -> int:
    """Address of zeros that are never freed: workers read them until the process ends."""
    allocate = ctypes.pythonapi.PyMem_RawCalloc
    allocate.restype, allocate.argtypes = ctypes.c_void_p, (ctypes.c_size_t, ctypes.c_size_t)
    memory = allocate(words + 16, 8)
    if not memory:
        raise MemoryError
    return int(memory + -memory % 128)


def process_pool() -> Pool:
    """The process's only pool."""
    return _pool or _created_pool()


_pool: Pool | None = None
_creating = threading.Lock()


def _created_pool() -> Pool:
    global _pool
    with _creating:
        _pool = _pool or Pool()
        return _pool


def _forget_pool() -> None:
    """Drop the pool in a forked child, which has its parent's memory but not its threads."""
    global _pool, _creating
    _pool, _creating = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
