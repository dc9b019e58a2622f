"""Benchmark results as tables and lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lstm_cli.cli.display import units
from lstm_cli.cli.display.tables import plain_table
from lstm_cli.errors import counted
from lstm_cli.workflows.bench import WORK, geometric_mean

if TYPE_CHECKING:
    from rich.table import Table

    from lstm_cli.engines.protocols import Engine
    from lstm_cli.workflows.bench import (
        BaselineComparison,
        GateCost,
        MachineInfo,
        MemoryUse,
        SizeExplanation,
        SizeResult,
    )


def bench_report(
    results: Sequence[SizeResult],
    gates: Sequence[GateCost],
    machine: MachineInfo,
    engine: Engine,
    comparison: BaselineComparison | None,
    memory: MemoryUse,
    explained: Sequence[SizeExplanation] = (),
) -> list[Any]:
    """All tables and lines of a benchmark."""
    parts: list[Any] = [*head_lines(machine, engine), _workload_line(results), size_table(results)]
    lines = [_mean(results), *_differing(results), *_skipped(results)]
    lines += [_limits(results), _memory(results, memory)]
    parts += [line for line in lines if line]
    if comparison is not None and comparison.changes:
        parts += ["", comparison_table(comparison, results[0].mode)]
    parts += explanation_lines(explained)
    if gates:
        parts += ["", f"by gate, reference engine, {results[-1].size}", gate_table(gates)]
    return parts


def head_lines(machine: MachineInfo, engine: Engine) -> list[str]:
    """Lines on the hardware: the CPU, or the GPU and its driver."""
    engine_text = f"{engine.device}, {engine.name}, {engine.dtype}"
    if not machine.accelerator:
        threads = f"{machine.threads} of {counted(machine.cores, 'core')}"
        return [f"{machine.processor}, {threads} · {engine_text}"]
    versions = ", ".join(
        f"{name} {version}"
        for name, version in machine.versions.items()
        if name not in ("lstm-cli", "python", "numpy")
    )
    return [f"{machine.accelerator} · {engine_text}", versions or machine.processor]


def explanation_lines(explained: Sequence[SizeExplanation]) -> list[str]:
    """Lines on how each size was computed and why, with measured and modeled time per step."""
    lines: list[str] = ["", "how each size was computed, and why"] if explained else []
    for explanation in explained:
        step = f"{_micro(explanation.step)} per step"
        if explanation.floor is not None:
            step += f", at least {_micro(explanation.floor)} by the model"
        lines.append(f"{explanation.size}: {step}")
        if not explanation.layers:
            lines.append("  the engine has only one algorithm")
        for layer in explanation.layers:
            lines.append(f"  layer {layer.layer}: {layer.explanation.way}")
            lines += [f"    {reason}" for reason in layer.explanation.reasons]
    return lines


def _micro(seconds: float) -> str:
    return f"{units.significant(seconds * 1e6)} µs"


def _limits(results: Sequence[SizeResult]) -> str:
    """The machine's limits: the highest multiply-add peak, and the range of read speeds."""
    shares = [result.shares for result in results if result.shares is not None]
    if not shares:
        return ""
    peak = units.significant(max(share.peak_gflops for share in shares))
    line = f"measured limits {peak} GFLOP/s of multiply-adds"
    speeds = [share.read_gbytes for share in shares if share.read_bytes]
    if not speeds:
        return line
    range_ = dict.fromkeys(f"{speed:.0f}" for speed in (min(speeds), max(speeds)))
    return f"{line}, recurrent weights read at {' to '.join(range_)} GB/s"


def _workload_line(results: Sequence[SizeResult]) -> str:
    layers, work = {result.layers for result in results}, WORK[results[0].mode]
    if len(layers) == 1:
        return f"{work} of {results[0].layers}"
    return work + (", ragged" if results[0].padded is not None else "")


def size_table(results: Sequence[SizeResult]) -> Table:
    """Median, p95, rate and share of the nearer limit of every size, and ratios to peers."""
    columns: dict[str, list[str]] = {
        "median": [units.seconds(r.lstm_cli_timing.median) for r in results],
        "p95": [units.seconds(r.lstm_cli_timing.p95) for r in results],
        "GFLOP/s": [units.significant(r.lstm_cli_timing.gflops) for r in results],
    }
    if any(r.shares for r in results):
        columns["of limit"] = [_share(r) for r in results]
    if any(r.padded for r in results):
        columns["a step"] = ["" if r.padded is None else _times(r.padded.per_step) for r in results]
    peers = dict.fromkeys(name for r in results for name in (*r.agreements, *r.skipped))
    titles = {t.name: t.title for r in results for t in r.timings}
    for name in peers:
        title = "\n".join(titles.get(name, name).rsplit(" ", 1))  # the version below
        columns[title] = [_peer_cell(r, name) for r in results]
    if peers:
        columns["ahead\nof best"] = [_times(r.ahead_of_best) for r in results]
    table = plain_table("H × N × T", *columns, numbers=columns)
    for column in table.columns:
        column.vertical = "bottom"
    for column in table.columns[1:4]:
        column.no_wrap = True  # in a narrow terminal only peers' columns wrap
    for result, *row in zip(results, *columns.values(), strict=True):
        table.add_row(str(result.size), *row)
    return table


def _share(result: SizeResult) -> str:
    shares = result.shares
    return "" if shares is None else f"{shares.largest * 100:.0f} % {shares.bound}"


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}×"


def _peer_cell(result: SizeResult, name: str) -> str:
    if name in result.skipped:
        return "not measured"
    if not result.agreements[name].ok:
        return f"differs by {result.agreements[name].difference:.1g}"
    timing = next(t for t in result.timings if t.name == name)
    return f"{units.seconds(timing.median)} {result.ratios[name]:.2f}×"


def _mean(results: Sequence[SizeResult]) -> str:
    mean = geometric_mean(results)
    if mean is None:
        return ""
    agreed = [a.difference for r in results for a in r.agreements.values() if a.ok]
    count = sum(result.ahead_of_best is not None for result in results)
    sizes = counted(count, "size")
    compared = "outputs" if results[0].mode == "forward" else "gradients"
    equal = f"{compared} equal within {max(agreed):.0e}"
    return f"geometric mean over {sizes} {mean:.2f}× the best peer, {equal}"


def _differing(results: Sequence[SizeResult]) -> list[str]:
    """Lines on peers whose results differ: the first size for each kind of result."""
    lines: dict[tuple[str, str], str] = {}
    for result in results:
        for name, agreement in result.agreements.items():
            if agreement.ok:
                continue
            difference = f"difference {agreement.difference:.1g}"
            tolerance = f"tolerance {agreement.tolerance:.0e}"
            what = agreement.what
            line = f"no ratio, {name} at {result.size}: {what}, {difference}, {tolerance}"
            lines.setdefault((name, what), line)
    return list(lines.values())


def _memory(results: Sequence[SizeResult], memory: MemoryUse) -> str:
    parts = []
    if memory.peak is not None:
        peers = any(result.agreements or result.skipped for result in results)
        parts.append(f"peak memory {units.size(memory.peak)}" + ", peers included" * peers)
    if memory.workspace is not None:
        parts.append(f"the engine's workspace takes {units.size(memory.workspace)}")
    return "; ".join(parts)


def _skipped(results: Sequence[SizeResult]) -> list[str]:
    reasons = dict.fromkeys(
        f"{name}: {reason}" for result in results for name, reason in result.skipped.items()
    )
    return [f"not measured, {reason}" for reason in reasons]


def gate_table(costs: Sequence[GateCost]) -> Table:
    """Time of a pass by gate: a row for each gate, and rows for parts outside gates."""
    parts = tuple(dict.fromkeys(cost.part for cost in costs if cost.gate))
    columns = ("layer", *parts, "time", "share")
    table = plain_table("gate", *columns, numbers=columns)
    rows: dict[tuple[int, str], list[GateCost]] = {}
    for cost in costs:
        name = f"{cost.name} {cost.gate}" if cost.gate else cost.part
        rows.setdefault((cost.layer, name), []).append(cost)
    for (layer, name), row in rows.items():
        times = {cost.part: units.seconds(cost.seconds) for cost in row}
        total, share = sum(c.seconds for c in row), sum(c.share for c in row)
        cells = [times.get(part, "") for part in parts]
        table.add_row(name, str(layer), *cells, units.seconds(total), f"{share * 100:.0f} %")
    return table


def comparison_table(comparison: BaselineComparison, mode: str) -> Table:
    """A saved baseline next to this run; a ratio above 1 is faster than before."""
    numbers = ("before", "now", "before / now")
    table = plain_table(f"{WORK[mode]} against the baseline", *numbers, numbers=numbers)
    for change in comparison.changes:
        before, now = units.seconds(change.before), units.seconds(change.now)
        table.add_row(str(change.size), before, now, f"{change.ratio:.2f}×")
    return table
