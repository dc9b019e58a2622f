"""Benchmark results as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lstm_cli.bench import geometric_mean
from lstm_cli.cli import units
from lstm_cli.cli.tables import plain_table

if TYPE_CHECKING:
    from rich.table import Table

    from lstm_cli.bench import Comparison, GateCost, Machine, SizeResult
    from lstm_cli.engines.types import Engine


def bench_report(
    results: Sequence[SizeResult],
    gates: Sequence[GateCost],
    machine: Machine,
    engine: Engine,
    comparison: Comparison | None,
) -> list[Any]:
    """Everything that a benchmark shows."""
    threads = f"{machine.threads} of {machine.cores} cores"
    head = f"{machine.processor}, {threads} · {engine.device}, {engine.name}, {engine.dtype}"
    parts: list[Any] = [head, results[0].layers if _alike(results) else "", size_table(results)]
    parts += [line for line in (_mean(results), *_skipped(results)) if line]
    if comparison is not None:
        parts += ["", comparison_table(comparison)]
    if gates:
        parts += ["", gate_table(gates, str(results[-1].size))]
    return [part for k, part in enumerate(parts) if part != "" or k > 1]


def _alike(results: Sequence[SizeResult]) -> bool:
    return len({result.layers for result in results}) == 1


def size_table(results: Sequence[SizeResult]) -> Table:
    """Median, p95 and rate of every size, and how far ahead of each peer."""
    peers = dict.fromkeys(name for r in results for name in (*r.agreements, *r.skipped))
    titles = {t.name: t.title for r in results for t in r.timings}
    rivals = [titles.get(name, name) for name in peers]
    columns = ["median", "p95", "GFLOP/s", *rivals]
    if peers:
        columns.append("ahead of best")
    table = plain_table("H × N × T", *columns, numbers=columns)
    for result in results:
        own = result.ours
        row = [units.seconds(own.median), units.seconds(own.p95), units.significant(own.gflops)]
        row += [_rival(result, name) for name in peers]
        if peers:
            ahead = result.ahead_of_best
            row.append("" if ahead is None else f"{ahead:.2f}×")
        table.add_row(str(result.size), *row)
    return table


def _rival(result: SizeResult, name: str) -> str:
    if name in result.skipped:
        return "not measured"
    if not result.agreements[name].ok:
        return f"differs by {result.agreements[name].difference:.1g}"
    timing = next(t for t in result.timings if t.name == name)
    return f"{units.seconds(timing.median)}  {result.ratios[name]:.2f}×"


def _mean(results: Sequence[SizeResult]) -> str:
    mean = geometric_mean(results)
    if mean is None:
        return ""
    agreed = [a.difference for r in results for a in r.agreements.values() if a.ok]
    counted = sum(result.ahead_of_best is not None for result in results)
    sizes = f"{counted} size{'s' if counted != 1 else ''}"
    equal = f"outputs equal within {max(agreed):.0e}"
    return f"geometric mean over {sizes} {mean:.2f}× the best peer, {equal}"


def _skipped(results: Sequence[SizeResult]) -> list[str]:
    reasons = dict.fromkeys(
        f"{name}: {reason}" for result in results for name, reason in result.skipped.items()
    )
    return [f"not measured, {reason}" for reason in reasons]


def gate_table(costs: Sequence[GateCost], size: str) -> Table:
    """Where a step's time goes, gate by gate."""
    title = f"by gate, reference engine, {size}"
    table = plain_table(title, "layer", "part", "time", "share", numbers=("time", "share"))
    for cost in costs:
        name = f"{cost.name} {cost.gate}" if cost.gate else "all gates"
        share = f"{cost.share * 100:.0f} %"
        table.add_row(name, str(cost.layer), cost.part, units.seconds(cost.seconds), share)
    return table


def comparison_table(comparison: Comparison) -> Table:
    """A saved baseline beside this run; above 1 is faster than before."""
    numbers = ("before", "now", "before / now")
    table = plain_table("against the baseline", *numbers, numbers=numbers)
    for change in comparison.changes:
        before, now = units.seconds(change.before), units.seconds(change.now)
        table.add_row(str(change.size), before, now, f"{change.ratio:.2f}×")
    return table
