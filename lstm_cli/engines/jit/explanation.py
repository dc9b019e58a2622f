"""What the jit engine chose for a layer: vectors, tiles, threads and how they share the batch."""

from __future__ import annotations

from lstm_cli.engines.explanation import Explanation
from lstm_cli.engines.jit.layers import SHORT, SMALL, TALL, shared, work_of
from lstm_cli.engines.jit.tiles import row_limit
from lstm_cli.engines.jit.weights import Plan
from lstm_cli.engines.types import RecurrentSpec


def explain(plan: Plan, spec: RecurrentSpec, N: int, T: int) -> Explanation:
    """How the kernels of a layer cut its columns and its batch.

    Parameters
    ----------
    plan
        Of the first direction's weights; the other's differs in nothing that is told here.
    """
    machine, lanes = plan.machine, plan.lanes
    work, recurrent = work_of(spec, lanes.bits // 8)
    fits = recurrent <= machine.cache // 2
    threads, groups = shared(N, T, work, plan.threads, fits=fits)
    part = plan.products[0].columns.split.main
    rows = row_limit(machine, part.vectors)
    numbers: dict[str, str | int | float] = {
        "vector_bits": machine.vector_bits,
        "lanes": lanes.count,
        "registers": machine.registers,
        "tile_rows": rows,
        "tile_gates": part.gates,
        "tile_units": part.columns,
        "threads": threads,
        "groups": groups,
        "multiply_adds": N * work,
        "recurrent_bytes": recurrent,
    }
    reasons: tuple[str, ...] = (
        f"{machine.vector_bits}-bit vectors, {machine.registers} registers: tiles of {rows} "
        f"sequence{'s' if rows != 1 else ''} × {part.gates} gates × {part.columns} units",
        _threads(N, T, work, plan.threads, threads),
    )
    if threads > 1:
        reasons = (*reasons, *_groups(N, recurrent, machine.cache, fits=fits))
    return Explanation(_way(threads, groups), reasons, None, numbers)


def _way(threads: int, groups: int) -> str:
    if threads == 1:
        return "1 thread"
    if groups:
        return f"{threads} threads, each with sequences of its own"
    return f"{threads} threads that share the units"


def _threads(N: int, T: int, work: int, allowed: int, used: int) -> str:
    """Why so many."""
    if allowed == 1:
        return "one thread was allowed"
    if N * work < SMALL:
        return f"a step is {N * work:,} multiply-adds: below {SMALL:,} one thread is faster"
    if used == 1:
        return f"the batch is {N * work * T:,} multiply-adds: below {SHORT:,} one is faster"
    return f"a step is {N * work:,} multiply-adds, enough for {used} threads"


def _groups(N: int, recurrent: int, cache: int, *, fits: bool) -> tuple[str, str]:
    """Why threads share units or sequences."""
    least = 2 if fits else TALL
    size, half = f"{recurrent / 1e6:.3g} MB", f"half of a {cache / 1e6:.3g} MB cache"
    return (
        f"{size} of recurrent weights {'fit' if fits else 'do not fit'} {half}",
        f"so {least} sequences a thread are enough to part them; there are {N}",
    )
