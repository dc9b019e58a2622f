"""How threads share the columns of a step: whoever comes first does what nobody has begun.

A step is a few phases, and a phase as many shares as there are threads. Each thread does its own
share, whose weights are in its cache. Then it waits for the others; but a share that nobody has
begun, because its thread is asleep or has lost its core to somebody else, it does too. A
thread that comes late finds its phases done and catches up. So two threads are hardly slower than
one where the cores are wanted by others, and nothing depends on who did what.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lstm_cli.engines.jit.ir import Function, Value, Variable
from lstm_cli.engines.jit.machine import Machine
from lstm_cli.engines.jit.serving import announce, awaiting, swap, watch

_DONE, _CLAIMS, _LINE = 8, 16, 8
"""Words of a team's memory: the number of phases done and the notes of those who wait; how many
shares are done; then for each share the phase that it is next to be begun for. A line each."""

_PATIENCE = 24
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
                f.when(f.compare("sge", f.get(pauses), _PATIENCE)),
                f.loop(0, self.workers) as other,
                f.when(f.compare("eq", watch(f, self._claim(other)), number)),
            ):
                f.set(share, other)
                f.set(mine, Value("i1", "true"))
            wait.leave_if(f.get(mine))
