"""Why a recurrent layer's kernels use these vectors, tiles, threads and groups."""

from __future__ import annotations

from lstm_cli.engines.explanation import Explanation
from lstm_cli.engines.jit.batch import (
    MIN_BATCH_WORK,
    MIN_STEP_WORK,
    MIN_UNCACHED_ROWS,
    step_work,
    thread_sharing,
)
from lstm_cli.engines.jit.codegen.tile import max_tile_rows
from lstm_cli.engines.jit.weights import PackingPlan
from lstm_cli.engines.types import RecurrentSpec


def explain(plan: PackingPlan, spec: RecurrentSpec, N: int, T: int) -> Explanation:
    """Vectors, tiles, threads and groups that a layer's kernels use, with the reasons.

    Parameters
    ----------
    plan
        Packing of the first direction; the other direction has the same numbers.
    """
    machine, vector = plan.machine, plan.vector
    work, recurrent = step_work(spec, vector.bits // 8)
    fits = recurrent <= machine.cache // 2
    threads, groups = thread_sharing(N, T, work, plan.threads, fits=fits)
    shape = plan.products[0].columns.split.main
    rows = max_tile_rows(machine, shape.vectors)
    numbers: dict[str, str | int | float] = {
        "vector_bits": machine.vector_bits,
        "lanes": vector.count,
        "registers": machine.registers,
        "tile_rows": rows,
        "tile_gates": shape.gates,
        "tile_units": shape.columns,
        "threads": threads,
        "groups": groups,
        "multiply_adds": N * work,
        "recurrent_bytes": recurrent,
    }
    reasons: tuple[str, ...] = (
        f"{machine.vector_bits}-bit vectors, {machine.registers} registers: tiles of {rows} "
        f"sequence{'s' if rows != 1 else ''} × {shape.gates} gates × {shape.columns} units",
        _thread_reason(N, T, work, plan.threads, threads),
    )
    if threads > 1:
        reasons = (*reasons, *_group_reasons(N, recurrent, machine.cache, fits=fits))
    return Explanation(_summary(threads, groups), reasons, None, numbers)


def _summary(threads: int, groups: int) -> str:
    if threads == 1:
        return "1 thread"
    if groups:
        return f"{threads} threads, each with sequences of its own"
    return f"{threads} threads that share the units"


def _thread_reason(N: int, T: int, work: int, allowed: int, used: int) -> str:
    if allowed == 1:
        return "one thread was allowed"
    if N * work < MIN_STEP_WORK:
        return f"a step is {N * work:,} multiply-adds: below {MIN_STEP_WORK:,} one thread is faster"
    if used == 1:
        return (
            f"the batch is {N * work * T:,} multiply-adds: below {MIN_BATCH_WORK:,} one thread is "
            "faster"
        )
    return f"a step is {N * work:,} multiply-adds, enough for {used} threads"


def _group_reasons(N: int, recurrent: int, cache: int, *, fits: bool) -> tuple[str, str]:
    rows_per_thread = 2 if fits else MIN_UNCACHED_ROWS
    size, half = f"{recurrent / 1e6:.3g} MB", f"half of a {cache / 1e6:.3g} MB cache"
    return (
        f"{size} of recurrent weights {'fit' if fits else 'do not fit'} {half}",
        f"groups need {rows_per_thread} sequences per thread; the batch has {N}",
    )
