"""The native side of the worker threads: how parts are handed out, awaited and slept between.

A pool is a piece of memory: a header, then one mailbox a worker, each with cache lines of its own.
Once started, a worker stays in `serve` for ever and never goes back to Python; so no part ever
waits for Python's lock, and nothing is left to do when the interpreter ends. It sleeps on a lock
of Python's C interface, which needs no thread state and is the same on every system.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lstm_cli.engines.jit.codegen.ir import Function, Loop, Module, Operand, Value, Variable, i64
from lstm_cli.engines.jit.runtime.machine import Machine

MOST_PARTS = 256
"""More than this are never used."""

BUSY, COUNT, YIELD, ACQUIRE, RELEASE, ROUNDS, REST = 0, 8, 16, 18, 19, 20, 21
"""Words of the header: whether a run is on; how many workers there are; the addresses of the
system's functions; how often a worker offers its core to others before it sleeps. `REST` is what
those who wait are given, see `pool.yield_address`."""

_SLEEPERS = 2
"""A word behind `BUSY`, as in a team's memory: how many wait asleep."""

POOL_WORDS = 32 + (MOST_PARTS - 1) * 16
"""Size of a pool: the header, and mailboxes of 128 bytes, for lines are fetched in pairs."""

CORES, CORES_WORDS = 24, 8
"""Words of the header that have a bit for every core this process may use; all 0 if that is not
known, or only one."""

_STATE, _FUNCTION, _ARGS, _PART, _PARTS, _LOCK, _CORE = range(7)
"""Words of a mailbox."""


def lock_word(worker: int) -> int:
    """The word of a pool for a worker's lock, taken: whoever starts a worker puts it there.

    A worker that never allocates memory needs no arena of the allocator's, 64 MB of addresses.
    """
    return 16 + 16 * worker + _LOCK


_FREE, _POSTED, _ASLEEP, _TAKEN = range(4)
"""States of a mailbox; the odd ones are those in which its part is not done."""

_PATIENCE, _POLITE = 8192, 256
"""Pauses before one who waits for work that is under way sleeps, some 200 microseconds: one who
sleeps wakes up late, and often on the wrong core. Every so many it lets others have the core."""

_DOZES = 4
"""How often one waits for a worker to wake up, before it begins by itself."""

_COURTESY = 32
"""Pauses before one who waits for work to come offers the core to others."""


def emit_pool(machine: Machine) -> Module:
    """``run`` for callers and ``serve`` for workers."""
    module = Module()
    _emit_run(module, _emit_together(module, machine))
    _emit_serve(module, machine)
    return module


def _emit_run(module: Module, together: Function) -> None:
    """``i64 run(ptr pool, ptr function, ptr args, i64 parts)``: see `Pool.run`."""
    f = module.function("run", _RUN, returns="i64", exported=True, noalias=False)
    pool = f.args["pool"]
    with f.when(f.compare("sgt", f.args["parts"], 1)), f.when(swap(f, pool, 0, 1)):
        used = f.call(together, *f.args.values())
        _publish(f, 0, pool)
        f.done(used)
    _perform(f, f.args["function"], f.args["args"], i64(0), i64(1))
    f.done(1)


def _emit_together(module: Module, machine: Machine) -> Function:
    """The run of one who has the pool."""
    f = module.function("together", _RUN, returns="i64", noalias=False)
    pool, function, args = (f.args[key] for key in ("pool", "function", "args"))
    workers = f.smaller(watch(f, f.at(pool, COUNT, "i64")), MOST_PARTS - 1)
    parts = f.smaller(f.args["parts"], f.add(workers, 1))
    asleep = f.variable("i64", 0)
    with f.loop(1, parts) as part:
        job = {_FUNCTION: function, _ARGS: args, _PART: part, _PARTS: parts}
        with f.when(_post(f, machine, pool, part, job)):
            f.set(asleep, part)
    _rouse(f, machine, pool, f.get(asleep))
    _perform(f, function, args, i64(0), parts)
    # What no worker has begun by now (it is waking up, or has lost its core) is sooner done here.
    # Parts that meet at barriers have all begun, or part 0 would not have come to its end.
    with f.loop(1, parts) as part:
        state = _mailbox(f, pool, part)
        with (
            f.when(f.compare("eq", watch(f, state), _POSTED)),
            f.when(swap(f, state, _POSTED, _FREE)),
        ):
            _perform(f, function, args, part, parts)
    rest = _word(f, pool, REST)
    with f.loop(1, parts) as part:
        box = _mailbox(f, pool, part)
        with awaiting(f, machine, box, rest, pool) as (wait, state):
            wait.leave_if(f.compare("eq", f.binary("and", state, 1), 0))
    f.done(parts)
    return f


def _rouse(f: Function, machine: Machine, pool: Value, part: Value) -> None:
    """Doze until a worker that slept is at work, or has had time enough.

    The system likes to wake it on the core of the one who wakes it, and leaves it there for
    milliseconds, though another is free, if that one goes on working.
    """
    tries = f.variable("i64", 0)
    with f.when(f.compare("ne", part, 0)), f.while_() as loop:
        loop.leave_if(f.compare("ne", watch(f, _mailbox(f, pool, part)), _POSTED))
        loop.leave_if(f.compare("sge", f.get(tries), _DOZES))
        f.set(tries, f.add(f.get(tries), 1))
        _doze(f, machine, _word(f, pool, REST))


def _post(f: Function, machine: Machine, pool: Value, part: Value, job: dict[int, Value]) -> Value:
    """Hand a part to its worker, and wake it where it sleeps; whether it did."""
    state = _mailbox(f, pool, part)
    for word, value in job.items():
        f.store(value, f.at(state, word, "i64"))
    old = f.value("i64", f"atomicrmw xchg {state}, i64 {_POSTED} acq_rel, align 8")
    slept = f.compare("eq", old, _ASLEEP)
    with f.when(slept):
        f.store(_core(f, machine, _word(f, pool, REST)), f.at(state, _CORE, "i64"))
        lock = _word(f, state, _LOCK)
        f.line(f"call void {_word(f, pool, RELEASE).name}({lock})")
    return slept


def _emit_serve(module: Module, machine: Machine) -> None:
    """``void serve(ptr pool)``: become a worker; returns only where that is not possible."""
    f = module.function("serve", {"pool": "ptr"}, exported=True, noalias=False)
    pool = f.args["pool"]
    acquire, rounds = _word(f, pool, ACQUIRE), _word(f, pool, ROUNDS, "i64")
    count = f.at(pool, COUNT, "i64")
    before = f.value("i64", f"atomicrmw add {count}, i64 1 acq_rel, align 8")
    with f.when(f.compare("sge", before, MOST_PARTS - 1)):
        f.done()
    state = _mailbox(f, pool, f.add(before, 1))
    lock = _word(f, state, _LOCK)
    yield_ = _word(f, pool, YIELD)
    with f.while_():
        with _waiting(f, machine, yield_) as (wait, waited):
            bored = f.compare("sge", waited, rounds)
            wait.leave_if(f.compare("eq", watch(f, state), _POSTED))
            wait.leave_if(bored)
        with f.when(bored), f.when(swap(f, state, _FREE, _ASLEEP)):
            _lock(f, acquire, lock)
            _part_company(f, machine, pool, _word(f, state, _CORE, "i64"))
        with f.when(swap(f, state, _POSTED, _TAKEN)):
            function, args = _word(f, state, _FUNCTION), _word(f, state, _ARGS)
            part, parts = _word(f, state, _PART, "i64"), _word(f, state, _PARTS, "i64")
            _perform(f, function, args, part, parts)
            announce(f, machine, i64(_FREE), state, _word(f, pool, REST), pool)
    f.done()


_RUN = {"pool": "ptr", "function": "ptr", "args": "ptr", "parts": "i64"}


def _perform(f: Function, function: Value, args: Value, part: Value, parts: Value) -> None:
    f.line(f"call void {function.name}({args}, {part}, {parts})")


def _lock(f: Function, acquire: Value, lock: Value) -> None:
    """Take a lock of Python's, however long that takes."""
    f.line(f"call i32 {acquire.name}({lock}, i32 1)")


def _mailbox(f: Function, pool: Value, part: Operand) -> Value:
    """The address of a part's mailbox, whose first word is its state."""
    return f.at(f.at(pool, 16, "i64"), part, "[16 x i64]")


def _word(f: Function, base: Value, index: int, type_: str = "ptr") -> Value:
    """A word that does not change meanwhile."""
    return f.load(type_, f.at(base, index, "i64"))


def watch(f: Function, address: Value) -> Value:
    """A word that others change, and with it all that they wrote before they changed it."""
    return f.value("i64", _atomic(address, "acquire"))


def _atomic(address: Value, order: str) -> str:
    return f"load atomic i64, {address} {order}, align 8"


def _publish(f: Function, value: Operand, address: Value) -> None:
    """Let a word be seen, and before it all that was written."""
    f.line(f"store atomic {i64(value)}, {address} release, align 8")


def swap(f: Function, address: Value, old: Operand, new: Operand) -> Value:
    """Change a word from `old` to `new`; false if it was not `old`."""
    pair = "{ i64, i1 }"
    how = "acq_rel acquire, align 8"
    done = f.value(pair, f"cmpxchg {address}, {i64(old)}, {i64(new)} {how}")
    return f.value("i1", f"extractvalue {done}, 1")


@contextmanager
def _waiting(f: Function, machine: Machine, yield_: Value) -> Iterator[tuple[Loop, Value]]:
    """A loop that waits for work until it is left, at no cost to whoever can use the core.

    Gives the loop, and how often the core has been offered to others.
    """
    pauses = f.variable("i64", 0)
    with f.while_() as loop:
        yield loop, f.div(f.get(pauses), _COURTESY)
        _pause(f, machine)
        f.set(pauses, f.add(f.get(pauses), 1))
        with f.when(f.compare("eq", f.rem(f.get(pauses), _COURTESY), 0)):
            f.line(f"call i32 {yield_.name}()")


@contextmanager
def awaiting(
    f: Function, machine: Machine, word: Value, rest: Value, notes: Value
) -> Iterator[tuple[Loop, Value]]:
    """A loop that waits until it is left for a word that `announce` changes.

    Gives the loop, and what the word was when last looked at.
    """
    sleepers, pauses = f.at(notes, _SLEEPERS, "i64"), f.variable("i64", 0)
    with f.while_() as loop:
        now = watch(f, word)
        yield loop, now
        _pause(f, machine)
        count = f.add(f.get(pauses), 1)
        f.set(pauses, count)
        with f.when(f.compare("eq", f.rem(count, _POLITE), 0)):
            _yield(f, machine, rest)
        with f.when(f.compare("sge", count, _PATIENCE)):
            f.value("i64", f"atomicrmw add {sleepers}, i64 1 seq_cst, align 8")
            _rest(f, machine, rest, word, now)
            f.value("i64", f"atomicrmw sub {sleepers}, i64 1 seq_cst, align 8")
            f.set(pauses, 0)


def announce(
    f: Function, machine: Machine, value: Value, word: Value, rest: Value, notes: Value
) -> None:
    """Change a word that is waited for with `awaiting`."""
    # Either this sees the sleeper's note, or the sleeper sees the change: both are of one order.
    f.value("i64", f"atomicrmw xchg {word}, {value} seq_cst, align 8")
    sleepers = f.at(notes, _SLEEPERS, "i64")
    with f.when(f.compare("ne", f.value("i64", _atomic(sleepers, "seq_cst")), 0)):
        _wake(f, machine, rest, word)


def _rest(f: Function, machine: Machine, rest: Value, word: Value, seen: Value) -> None:
    """Sleep until woken, but not if the word has changed; or let others have the core a while."""
    if futex(machine):
        low = f.convert("trunc", seen, "i32")
        how = f"i64 {futex(machine)}, {word}, i64 128, {low}, ptr null"
        f.line(f"call i64 (i64, ...) {rest.name}({how})")
    else:
        f.line(f"call i32 {rest.name}()")


def _yield(f: Function, machine: Machine, rest: Value) -> None:
    """Let others have the core."""
    if futex(machine):
        f.line(f"call i64 (i64, ...) {rest.name}(i64 {24 if machine.x86 else 124})")
    else:
        f.line(f"call i32 {rest.name}()")


def _core(f: Function, machine: Machine, rest: Value) -> Value:
    """The core that this thread runs on; -1 where that cannot be known."""
    if not futex(machine):
        return i64(-1)
    found = f.variable("i64", 0)
    number = 309 if machine.x86 else 168  # getcpu
    f.line(f"call i64 (i64, ...) {rest.name}(i64 {number}, {found.address}, ptr null, ptr null)")
    return f.get(found)


def _part_company(f: Function, machine: Machine, pool: Value, core: Value) -> None:
    """Go to another core, if this thread woke up on the one of whom it is to help.

    It is kept from that core for a moment only, and free to be moved again then.
    """
    if not futex(machine):
        return
    rest, others = _word(f, pool, REST), f.array(CORES_WORDS, "i64")
    any_ = f.variable("i64", 0)
    with f.loop(0, CORES_WORDS) as k:
        bits = f.load("i64", f.at(f.at(pool, CORES, "i64"), k, "i64"))
        own = f.compare("eq", f.binary("lshr", core, 6), k)
        bit = f.binary("shl", 1, f.binary("and", core, 63))
        left = f.binary("and", bits, f.binary("xor", f.select(own, bit, 0), -1))
        f.store(left, f.at(others, k, "i64"))
        f.set(any_, f.binary("or", f.get(any_), left))
    together = f.compare("eq", _core(f, machine, rest), core)
    with f.when(together), f.when(f.compare("ne", f.get(any_), 0)):
        for cores in (others, f.at(pool, CORES, "i64")):
            number = 203 if machine.x86 else 122  # sched_setaffinity, of this thread
            size = 8 * CORES_WORDS
            f.line(f"call i64 (i64, ...) {rest.name}(i64 {number}, i64 0, i64 {size}, {cores})")


def _doze(f: Function, machine: Machine, rest: Value) -> None:
    """Sleep for as short a time as the system knows, some 50 microseconds."""
    if futex(machine):
        time = f.array(2, "i64", 16)
        f.store(0, time)
        f.store(1, f.at(time, 1, "i64"))
        number = 35 if machine.x86 else 101  # nanosleep
        f.line(f"call i64 (i64, ...) {rest.name}(i64 {number}, {time}, ptr null)")
    else:
        f.line(f"call i32 {rest.name}()")


def _wake(f: Function, machine: Machine, rest: Value, word: Value) -> None:
    """Wake all that sleep until this word changes."""
    if futex(machine):
        how = f"i64 {futex(machine)}, {word}, i64 129, i32 2147483647"
        f.line(f"call i64 (i64, ...) {rest.name}({how})")


def futex(machine: Machine) -> int:
    """The number of Linux's system call for sleeping on a word; 0 for other systems."""
    if "linux" not in machine.triple:
        return 0
    return 202 if machine.x86 else 98


def _pause(f: Function, machine: Machine) -> None:
    """Some ten nanoseconds in which the core's other thread has it for itself."""
    if machine.x86:
        f.intrinsic("llvm.x86.sse2.pause", "void")
    else:
        # The instruction named yield does nothing on most of these processors.
        f.intrinsic("llvm.aarch64.isb", "void", Value("i32", "15"))


_DONE, _CLAIMS, _LINE = 8, 16, 8
"""Words of a team's memory: the number of phases done and the notes of those who wait; how many
shares are done; then for each share the phase that it is next to be begun for. A line each."""

_PAUSES_BEFORE_STEALING = 24
"""Pauses, some half a microsecond, before one looks for shares of others."""


def team_words(parts: int) -> int:
    """The memory of a team in words, to be zero when a kernel begins."""
    return _CLAIMS + parts * _LINE


class Team:
    """The threads of one group, in the kernel that is being emitted.

    Parameters
    ----------
    memory
        Address of `team_words`, on a line of its own.
    workers, own
        How many threads they are, and which of them this one is. One alone meets nobody.
    rest
        See `pool.yield_address`.
    """

    def __init__(
        self, f: Function, machine: Machine, memory: Value, workers: Value, own: Value, rest: Value
    ) -> None:
        self.f, self.machine, self.memory, self.rest = f, machine, memory, rest
        self.workers, self.own = workers, own
        self._number = f.variable("i64", 0)
        self._alone = f.compare("eq", workers, 1)

    @contextmanager
    def phase(self) -> Iterator[Value]:
        """What is written inside is done once for each share, whose number this gives.

        Behind it all shares are done, and what was written by them is seen.
        """
        f, number = self.f, self.f.get(self._number)
        share, mine = f.variable("i64", self.own), f.variable("i1")
        with f.while_() as turns:
            f.set(mine, Value("i1", "true"))
            with f.when(f.compare("eq", self._alone, Value("i1", "false"))):
                claim = self._claim(f.get(share))
                f.set(mine, swap(f, claim, number, f.add(number, 1)))
            with f.when(f.get(mine)):
                yield f.get(share)
                with f.when(f.compare("eq", self._alone, Value("i1", "false"))):
                    self._finish(number)
            turns.leave_if(self._alone)
            f.set(mine, Value("i1", "false"))
            self._wait(number, share, mine)
            turns.leave_if(f.compare("eq", f.get(mine), Value("i1", "false")))
        f.set(self._number, f.add(number, 1))

    def _claim(self, share: Value) -> Value:
        f = self.f
        return f.at(self.memory, f.add(f.mul(share, _LINE), _CLAIMS), "i64")

    def _finish(self, number: Value) -> None:
        """Count a share; the last one of a phase ends it."""
        f, done = self.f, self.f.at(self.memory, _DONE, "i64")
        before = f.value("i64", f"atomicrmw add {done}, i64 1 acq_rel, align 8")
        after = f.add(number, 1)
        with f.when(f.compare("eq", f.add(before, 1), f.mul(after, self.workers))):
            announce(f, self.machine, after, self.memory, self.rest, self.memory)

    def _wait(self, number: Value, share: Variable, mine: Variable) -> None:
        """Wait for the end of the phase, or for a share that nobody has begun."""
        f, pauses = self.f, self.f.variable("i64", 0)
        with awaiting(f, self.machine, self.memory, self.rest, self.memory) as (wait, passed):
            wait.leave_if(f.compare("sgt", passed, number))
            f.set(pauses, f.add(f.get(pauses), 1))
            with (
                f.when(f.compare("sge", f.get(pauses), _PAUSES_BEFORE_STEALING)),
                f.loop(0, self.workers) as other,
                f.when(f.compare("eq", watch(f, self._claim(other)), number)),
            ):
                f.set(share, other)
                f.set(mine, Value("i1", "true"))
            wait.leave_if(f.get(mine))
