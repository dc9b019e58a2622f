"""Native code of the thread pool, as LLVM IR: handing out parts, sharing phases, waiting, sleeping.

A pool is one piece of memory: a header, then one mailbox per worker, each on cache lines of its
own. A started worker stays in the function ``serve`` and never returns to Python. So no part waits
for Python's lock, and the interpreter can end at any time. A worker sleeps on a lock of Python's C
interface, which needs no thread state and exists on every system.

``docs/thread-pool.md`` explains the states of a mailbox and the memory order of each word.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lstm_cli.engines.jit.codegen.ir import (
    Function,
    Module,
    Operand,
    StackSlot,
    Value,
    WhileLoop,
    i64,
)
from lstm_cli.engines.jit.runtime.machine import Machine

MAX_PARTS = 256
"""Largest number of parts of one run."""

BUSY, WORKER_COUNT, YIELD, ACQUIRE, RELEASE, IDLE_ROUNDS, SYSCALL = 0, 8, 16, 18, 19, 20, 21
"""Words of the header, in this order: 1 during a run, else 0; number of workers; addresses of the
system's yield, and of Python's functions that acquire and release a lock; number of times that an
idle worker yields its core before it sleeps; and `thread_pool.syscall_address`."""

_SLEEPERS = 2
"""Word of a pool's header, and of a `SharedPhases` memory, that counts the sleeping waiters."""

POOL_WORDS = 32 + (MAX_PARTS - 1) * 16
"""Words of a pool: its header, and mailboxes of 128 bytes, since cache lines are fetched in
pairs."""

CORES, CORE_WORDS = 24, 8
"""First word and number of words of a bit set: the cores that this process may use. All bits are 0
if the cores are unknown, or if there is only one core."""

_STATE, _FUNCTION, _ARGS, _PART, _PARTS, _LOCK, _CORE = range(7)
"""Words of a mailbox."""


def lock_word(worker: int) -> int:
    """Word of the pool for the address of a worker's lock, counted from worker 1.

    The thread that starts a worker creates the lock. A worker allocates no memory, so the system's
    allocator reserves no arena of 64 MB of addresses for the worker.
    """
    return 16 + 16 * worker + _LOCK


_FREE, _POSTED, _ASLEEP, _TAKEN = range(4)
"""States of a mailbox. In the odd states, a part is not complete."""

_SPIN_LIMIT, _PAUSES_PER_YIELD = 8192, 256
"""Number of pauses before a waiting thread sleeps, about 200 us; and number of pauses before it
yields its core to others. A sleeper wakes up late, and often on the wrong core."""

_WAKEUP_SLEEPS = 4
"""Largest number of sleeps of 50 us, in which a caller waits until a woken worker has started."""

_IDLE_PAUSES_PER_YIELD = 32
"""Number of pauses before an idle worker yields its core to others."""


def emit_pool(machine: Machine) -> Module:
    """A module with ``run`` for callers and ``serve`` for workers."""
    module = Module()
    _emit_run(module, _emit_run_shared(module, machine))
    _emit_serve(module, machine)
    return module


def _emit_run(module: Module, run_shared: Function) -> None:
    """``i64 run(ptr pool, ptr function, ptr args, i64 parts)``: see `thread_pool.Pool.run`."""
    f = module.function("run", _RUN, returns="i64", exported=True, noalias=False)
    pool, function, args, parts = f.args.values()
    with f.when(f.compare("sgt", parts, 1)), f.when(compare_exchange(f, pool, 0, 1)):
        used = f.call(run_shared, pool, function, args, parts)
        _store_release(f, 0, pool)
        f.ret(used)
    _run_part(f, function, args, i64(0), i64(1))
    f.ret(1)


def _emit_run_shared(module: Module, machine: Machine) -> Function:
    """Emit the run of a caller that has set `BUSY`."""
    f = module.function("run_shared", _RUN, returns="i64", noalias=False)
    pool, function, args, requested = f.args.values()
    workers = f.minimum(load_acquire(f, f.at(pool, WORKER_COUNT, "i64")), MAX_PARTS - 1)
    parts = f.minimum(requested, f.add(workers, 1))
    woken = f.variable("i64", 0)
    with f.loop(1, parts) as part:
        job = {_FUNCTION: function, _ARGS: args, _PART: part, _PARTS: parts}
        with f.when(_submit(f, machine, pool, part, job)):
            f.set(woken, part)
    _await_wakeup(f, machine, pool, f.get(woken))
    _run_part(f, function, args, i64(0), parts)
    # The caller runs each part that no worker has started: that worker is waking up, or has lost
    # its core. Parts that share phases do not need the worker, since any thread may take any share.
    with f.loop(1, parts) as part:
        state = _mailbox(f, pool, part)
        with (
            f.when(f.compare("eq", load_acquire(f, state), _POSTED)),
            f.when(compare_exchange(f, state, _POSTED, _FREE)),
        ):
            _run_part(f, function, args, part, parts)
    syscall_fn = _constant_word(f, pool, SYSCALL)
    with f.loop(1, parts) as part:
        box = _mailbox(f, pool, part)
        with waiting_loop(f, machine, box, syscall_fn, pool) as (wait, state):
            wait.leave_if(f.compare("eq", f.binary("and", state, 1), 0))
    f.ret(parts)
    return f


def _await_wakeup(f: Function, machine: Machine, pool: Value, part: Value) -> None:
    """Sleep briefly until the woken worker has started, at most `_WAKEUP_SLEEPS` times.

    The system tends to wake a worker on the caller's core. The worker stays there for milliseconds
    if the caller keeps working, even while another core is free.
    """
    tries = f.variable("i64", 0)
    with f.when(f.compare("ne", part, 0)), f.while_() as loop:
        loop.leave_if(f.compare("ne", load_acquire(f, _mailbox(f, pool, part)), _POSTED))
        loop.leave_if(f.compare("sge", f.get(tries), _WAKEUP_SLEEPS))
        f.set(tries, f.add(f.get(tries), 1))
        _sleep_50us(f, machine, _constant_word(f, pool, SYSCALL))


def _submit(
    f: Function, machine: Machine, pool: Value, part: Value, job: dict[int, Value]
) -> Value:
    """Post a part in its worker's mailbox, and wake the worker. Returns true if it slept."""
    state = _mailbox(f, pool, part)
    for word, value in job.items():
        f.store(value, f.at(state, word, "i64"))
    old = f.value("i64", f"atomicrmw xchg {state}, i64 {_POSTED} acq_rel, align 8")
    slept = f.compare("eq", old, _ASLEEP)
    with f.when(slept):
        core = _current_core(f, machine, _constant_word(f, pool, SYSCALL))
        f.store(core, f.at(state, _CORE, "i64"))
        lock = _constant_word(f, state, _LOCK)
        f.line(f"call void {_constant_word(f, pool, RELEASE).name}({lock})")
    return slept


def _emit_serve(module: Module, machine: Machine) -> None:
    """``void serve(ptr pool)``: become a worker. It returns only if the pool is full."""
    f = module.function("serve", {"pool": "ptr"}, exported=True, noalias=False)
    pool = f.args["pool"]
    acquire = _constant_word(f, pool, ACQUIRE)
    rounds = _constant_word(f, pool, IDLE_ROUNDS, "i64")
    count = f.at(pool, WORKER_COUNT, "i64")
    before = f.value("i64", f"atomicrmw add {count}, i64 1 acq_rel, align 8")
    with f.when(f.compare("sge", before, MAX_PARTS - 1)):
        f.ret()
    state = _mailbox(f, pool, f.add(before, 1))
    lock = _constant_word(f, state, _LOCK)
    yield_fn = _constant_word(f, pool, YIELD)
    with f.while_():
        with _idle_loop(f, machine, yield_fn) as (wait, offers):
            idle_too_long = f.compare("sge", offers, rounds)
            wait.leave_if(f.compare("eq", load_acquire(f, state), _POSTED))
            wait.leave_if(idle_too_long)
        with f.when(idle_too_long), f.when(compare_exchange(f, state, _FREE, _ASLEEP)):
            _acquire_lock(f, acquire, lock)
            _move_off_core(f, machine, pool, _constant_word(f, state, _CORE, "i64"))
        with f.when(compare_exchange(f, state, _POSTED, _TAKEN)):
            function = _constant_word(f, state, _FUNCTION)
            args = _constant_word(f, state, _ARGS)
            part = _constant_word(f, state, _PART, "i64")
            parts = _constant_word(f, state, _PARTS, "i64")
            _run_part(f, function, args, part, parts)
            store_and_wake(f, machine, i64(_FREE), state, _constant_word(f, pool, SYSCALL), pool)
    f.ret()


_RUN = {"pool": "ptr", "function": "ptr", "args": "ptr", "parts": "i64"}


def _run_part(f: Function, function: Value, args: Value, part: Value, parts: Value) -> None:
    f.line(f"call void {function.name}({args}, {part}, {parts})")


def _acquire_lock(f: Function, acquire: Value, lock: Value) -> None:
    """Acquire a lock of Python's C interface; 1 means to wait without limit."""
    f.line(f"call i32 {acquire.name}({lock}, i32 1)")


def _mailbox(f: Function, pool: Value, part: Operand) -> Value:
    """Address of a part's mailbox, whose first word is its state."""
    return f.at(f.at(pool, 16, "i64"), part, "[16 x i64]")


def _constant_word(f: Function, base: Value, index: int, type_: str = "ptr") -> Value:
    """Load a word that no other thread writes at this time."""
    return f.load(type_, f.at(base, index, "i64"))


# Work sharing within a kernel

_COMPLETE, _CLAIMS, _LINE_WORDS = 8, 16, 8
"""Words of a `SharedPhases` memory. Word 0 is the number of complete phases. `_SLEEPERS` counts
sleeping waiters, and `_COMPLETE` counts complete shares of all phases. From `_CLAIMS` on, each
share has the number of the next phase in which a thread may claim it. Word 0 and `_SLEEPERS` are
on one cache line of `_LINE_WORDS` words; each other word has its own."""

_PAUSES_BEFORE_STEALING = 24
"""Number of pauses, about half a microsecond, before a waiting thread tries to steal shares."""


def shared_phase_words(parts: int) -> int:
    """Number of words of a `SharedPhases` memory, which is zero when a kernel starts."""
    return _CLAIMS + parts * _LINE_WORDS


class SharedPhases:
    """Phases of a kernel whose shares are stolen: an idle thread takes any share not yet started.

    A phase has as many shares as there are threads. Each thread first takes its own share, whose
    weights are in its cache. While it waits for the others, it takes shares whose thread sleeps or
    has lost its core. A late thread skips the phases that are complete. So two threads are hardly
    slower than one on busy cores. No result depends on the thread that took a share.

    Parameters
    ----------
    memory
        Address of `shared_phase_words` words, on a cache line of its own.
    workers, me
        Number of threads, and the number of this one. With one worker there is no barrier.
    syscall_fn
        See `thread_pool.syscall_address`.
    """

    def __init__(
        self,
        f: Function,
        machine: Machine,
        memory: Value,
        workers: Value,
        me: Value,
        syscall_fn: Value,
    ) -> None:
        self.f, self.machine, self.memory, self.syscall_fn = f, machine, memory, syscall_fn
        self.workers, self.me = workers, me
        self._number = f.variable("i64", 0)
        self._single = f.compare("eq", workers, 1)

    @contextmanager
    def phase(self) -> Iterator[Value]:
        """Emit the next phase. Code inside the context runs once per share; yields its number.

        After the phase, all shares are complete, and this thread sees what they wrote.
        """
        f, number = self.f, self.f.get(self._number)
        share, claimed = f.variable("i64", self.me), f.variable("i1")
        with f.while_() as turns:
            f.set(claimed, Value("i1", "true"))
            with f.when(f.compare("eq", self._single, Value("i1", "false"))):
                claim = self._claim(f.get(share))
                f.set(claimed, compare_exchange(f, claim, number, f.add(number, 1)))
            with f.when(f.get(claimed)):
                yield f.get(share)
                with f.when(f.compare("eq", self._single, Value("i1", "false"))):
                    self._complete_share(number)
            turns.leave_if(self._single)
            f.set(claimed, Value("i1", "false"))
            self._wait(number, share, claimed)
            turns.leave_if(f.compare("eq", f.get(claimed), Value("i1", "false")))
        f.set(self._number, f.add(number, 1))

    def _claim(self, share: Value) -> Value:
        f = self.f
        return f.at(self.memory, f.add(f.mul(share, _LINE_WORDS), _CLAIMS), "i64")

    def _complete_share(self, number: Value) -> None:
        """Count a complete share; the last one of a phase completes the phase."""
        f, complete = self.f, self.f.at(self.memory, _COMPLETE, "i64")
        before = f.value("i64", f"atomicrmw add {complete}, i64 1 acq_rel, align 8")
        after = f.add(number, 1)
        with f.when(f.compare("eq", f.add(before, 1), f.mul(after, self.workers))):
            store_and_wake(f, self.machine, after, self.memory, self.syscall_fn, self.memory)

    def _wait(self, number: Value, share: StackSlot, claimed: StackSlot) -> None:
        """Wait until the phase is complete, or store an unclaimed share's number in `share`."""
        f, pauses = self.f, self.f.variable("i64", 0)
        wait_for_phase = waiting_loop(f, self.machine, self.memory, self.syscall_fn, self.memory)
        with wait_for_phase as (wait, complete):
            wait.leave_if(f.compare("sgt", complete, number))
            f.set(pauses, f.add(f.get(pauses), 1))
            with (
                f.when(f.compare("sge", f.get(pauses), _PAUSES_BEFORE_STEALING)),
                f.loop(0, self.workers) as other,
                f.when(f.compare("eq", load_acquire(f, self._claim(other)), number)),
            ):
                f.set(share, other)
                f.set(claimed, Value("i1", "true"))
            wait.leave_if(f.get(claimed))


# Words that several threads read and write


def load_acquire(f: Function, address: Value) -> Value:
    """Load a word that other threads write, and see all that they wrote before it."""
    return f.value("i64", _atomic_load(address, "acquire"))


def _atomic_load(address: Value, order: str) -> str:
    return f"load atomic i64, {address} {order}, align 8"


def _store_release(f: Function, value: Operand, address: Value) -> None:
    """Store a word; a thread that sees it sees all that was written before it."""
    f.line(f"store atomic {i64(value)}, {address} release, align 8")


def compare_exchange(f: Function, address: Value, old: Operand, new: Operand) -> Value:
    """Change a word from `old` to `new`; false if it was not `old`."""
    pair = "{ i64, i1 }"
    orders = "acq_rel acquire, align 8"
    result = f.value(pair, f"cmpxchg {address}, {i64(old)}, {i64(new)} {orders}")
    return f.value("i1", f"extractvalue {result}, 1")


# Waiting and sleeping


@contextmanager
def _idle_loop(f: Function, machine: Machine, yield_fn: Value) -> Iterator[tuple[WhileLoop, Value]]:
    """A loop of an idle worker, which yields its core to other threads.

    The context's value is the loop, and the number of times that the core was yielded so far.
    """
    pauses = f.variable("i64", 0)
    with f.while_() as loop:
        yield loop, f.div(f.get(pauses), _IDLE_PAUSES_PER_YIELD)
        _pause(f, machine)
        f.set(pauses, f.add(f.get(pauses), 1))
        with f.when(f.compare("eq", f.rem(f.get(pauses), _IDLE_PAUSES_PER_YIELD), 0)):
            f.line(f"call i32 {yield_fn.name}()")


@contextmanager
def waiting_loop(
    f: Function, machine: Machine, word: Value, syscall_fn: Value, header: Value
) -> Iterator[tuple[WhileLoop, Value]]:
    """A loop that waits for a word which `store_and_wake` changes, until the loop is left.

    The context's value is the loop, and the value of the word that was read last.

    Parameters
    ----------
    header
        Memory whose word `_SLEEPERS` counts the sleeping waiters.
    """
    sleepers, pauses = f.at(header, _SLEEPERS, "i64"), f.variable("i64", 0)
    with f.while_() as loop:
        value = load_acquire(f, word)
        yield loop, value
        _pause(f, machine)
        count = f.add(f.get(pauses), 1)
        f.set(pauses, count)
        with f.when(f.compare("eq", f.rem(count, _PAUSES_PER_YIELD), 0)):
            _yield_core(f, machine, syscall_fn)
        with f.when(f.compare("sge", count, _SPIN_LIMIT)):
            f.value("i64", f"atomicrmw add {sleepers}, i64 1 seq_cst, align 8")
            _futex_wait(f, machine, syscall_fn, word, value)
            f.value("i64", f"atomicrmw sub {sleepers}, i64 1 seq_cst, align 8")
            f.set(pauses, 0)


def store_and_wake(
    f: Function, machine: Machine, value: Value, word: Value, syscall_fn: Value, header: Value
) -> None:
    """Store a word that `waiting_loop` waits for, and wake its sleepers."""
    # Both sides are sequentially consistent: this thread sees the count of sleepers, or the
    # sleeper sees the new word.
    f.value("i64", f"atomicrmw xchg {word}, {value} seq_cst, align 8")
    sleepers = f.at(header, _SLEEPERS, "i64")
    with f.when(f.compare("ne", f.value("i64", _atomic_load(sleepers, "seq_cst")), 0)):
        _futex_wake(f, machine, syscall_fn, word)


def _futex_wait(
    f: Function, machine: Machine, syscall_fn: Value, word: Value, value: Value
) -> None:
    """Sleep until woken, if the word still has this value; without a futex, yield once."""
    if futex_number(machine):
        low = f.convert("trunc", value, "i32")
        args = f"i64 {futex_number(machine)}, {word}, i64 128, {low}, ptr null"
        f.line(f"call i64 (i64, ...) {syscall_fn.name}({args})")
    else:
        f.line(f"call i32 {syscall_fn.name}()")


def _futex_wake(f: Function, machine: Machine, syscall_fn: Value, word: Value) -> None:
    """Wake all threads that sleep on a word."""
    if futex_number(machine):
        args = f"i64 {futex_number(machine)}, {word}, i64 129, i32 2147483647"
        f.line(f"call i64 (i64, ...) {syscall_fn.name}({args})")


def futex_number(machine: Machine) -> int:
    """Number of Linux's system call futex; 0 for other systems."""
    if "linux" not in machine.triple:
        return 0
    return 202 if machine.x86 else 98


def _yield_core(f: Function, machine: Machine, syscall_fn: Value) -> None:
    if futex_number(machine):
        f.line(f"call i64 (i64, ...) {syscall_fn.name}(i64 {24 if machine.x86 else 124})")
    else:
        f.line(f"call i32 {syscall_fn.name}()")


def _sleep_50us(f: Function, machine: Machine, syscall_fn: Value) -> None:
    """Sleep for the shortest time that the system offers, about 50 us."""
    if futex_number(machine):
        time = f.array(2, "i64", 16)
        f.store(0, time)
        f.store(1, f.at(time, 1, "i64"))
        number = 35 if machine.x86 else 101  # nanosleep
        f.line(f"call i64 (i64, ...) {syscall_fn.name}(i64 {number}, {time}, ptr null)")
    else:
        f.line(f"call i32 {syscall_fn.name}()")


def _current_core(f: Function, machine: Machine, syscall_fn: Value) -> Value:
    """Number of the core that this thread runs on; -1 if it is unknown."""
    if not futex_number(machine):
        return i64(-1)
    core = f.variable("i64", 0)
    number = 309 if machine.x86 else 168  # getcpu
    args = f"i64 {number}, {core.address}, ptr null, ptr null"
    f.line(f"call i64 (i64, ...) {syscall_fn.name}({args})")
    return f.get(core)


def _move_off_core(f: Function, machine: Machine, pool: Value, core: Value) -> None:
    """Leave the caller's core: exclude it from this thread's affinity, then restore that."""
    if not futex_number(machine):
        return
    syscall_fn, others = _constant_word(f, pool, SYSCALL), f.array(CORE_WORDS, "i64")
    any_other = f.variable("i64", 0)
    with f.loop(0, CORE_WORDS) as k:
        bits = f.load("i64", f.at(f.at(pool, CORES, "i64"), k, "i64"))
        same_word = f.compare("eq", f.binary("lshr", core, 6), k)
        bit = f.binary("shl", 1, f.binary("and", core, 63))
        other_bits = f.binary("and", bits, f.binary("xor", f.select(same_word, bit, 0), -1))
        f.store(other_bits, f.at(others, k, "i64"))
        f.set(any_other, f.binary("or", f.get(any_other), other_bits))
    same_core = f.compare("eq", _current_core(f, machine, syscall_fn), core)
    with f.when(same_core), f.when(f.compare("ne", f.get(any_other), 0)):
        for cores in (others, f.at(pool, CORES, "i64")):
            number = 203 if machine.x86 else 122  # sched_setaffinity, of this thread
            size = 8 * CORE_WORDS
            args = f"i64 {number}, i64 0, i64 {size}, {cores}"
            f.line(f"call i64 (i64, ...) {syscall_fn.name}({args})")


def _pause(f: Function, machine: Machine) -> None:
    """Pause about ten nanoseconds, which leaves the core to its other hardware thread."""
    if machine.x86:
        f.intrinsic("llvm.x86.sse2.pause", "void")
    else:
        # The instruction named yield does nothing on most of these processors.
        f.intrinsic("llvm.aarch64.isb", "void", Value("i32", "15"))
