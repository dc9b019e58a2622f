"""``lstm-cli data``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lstm_cli.cli import units
from lstm_cli.cli.console import Console
from lstm_cli.cli.options import external_option, output_options
from lstm_cli.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table

    from lstm_cli.data import FileReport
    from lstm_cli.data.report import GroupReport

EPILOG = """\b
Examples:
  lstm-cli data data/japanese-vowels.h5
  lstm-cli data events.h5:/run7 --json"""

SHOWN_CLASSES = 12


@click.command(epilog=EPILOG)
@click.argument("path", metavar="FILE")
@output_options
@external_option
def command(path: str, *, as_json: bool, quiet: bool, debug: bool, allow_external: bool) -> None:
    """Show what an HDF5 file holds, and what to put in the config.

    Every dataset and what it was taken for, every group of sequences with its layout, lengths
    and classes, all that is wrong, and the YAML to begin a config with. Exits 3 if the file
    holds no sequences that can be used.
    """
    from lstm_cli.data import DataOptions, describe

    console = Console(as_json=as_json, quiet=quiet)
    report = describe(path, DataOptions(allow_external=allow_external))
    console.show(*_lines(report))
    console.document(report)
    if report.problems and not report.groups:
        raise DataError(report.problems)
    if report.problems:
        _warn(console, report)


def _lines(report: FileReport) -> list[Any]:
    lines: list[Any] = [f"{report.path} · {report.format}, {units.size(report.size)}", ""]
    lines.append(_stored(report))
    for group in report.groups:
        lines += ["", *_group(group)]
    if report.suggestion:
        lines += ["", "to begin a config with:", ""]
        lines += [f"    {line}" if line else "" for line in report.suggestion.splitlines()]
    return lines


def _stored(report: FileReport) -> Table:
    from lstm_cli.cli.tables import plain_table

    table = plain_table("dataset", "shape", "dtype", "bytes", "stored", "taken for")
    for item in report.datasets:
        chunks = "contiguous" if item.chunks is None else f"chunks {units.shape(item.chunks)}"
        stored = chunks if item.compression is None else f"{chunks}, {item.compression}"
        shape = units.shape(item.shape) if item.shape else "()"
        nbytes = units.size(item.nbytes)
        table.add_row(item.path, shape, item.dtype, nbytes, stored, item.role)
    return table


def _group(group: GroupReport) -> list[str]:
    low, middle, high = group.steps
    steps = f"{low:,} each" if low == high else f"{low:,} to {high:,}, median {middle:,.0f}"
    lines = [
        f"{group.name}: {group.layout} ({group.reason})",
        f"  sequences  {group.count:,}",
        f"  steps      {steps}; {group.total_steps:,} in all",
        f"  features   {group.features:,} ({group.dtype})",
    ]
    if group.names:
        lines.append(f"  names      {', '.join(group.names)}, …")
    if group.targets is not None:
        lines.append(f"  targets    {_targets(group)}")
    if group.class_counts:
        lines.append(f"  classes    {_classes(group)}")
    return lines


def _targets(group: GroupReport) -> str:
    if group.targets is None:
        return ""
    unit = {True: "one a step", False: "one a sequence", None: "one a step or a sequence"}
    each = f", {units.shape(group.targets.shape)} each" if group.targets.shape else ""
    kind = {"class": "class indices", "values": "values"}[group.targets.kind]
    return f"{kind}{each}, {unit[group.targets.per_step]} ({group.targets.dtype})"


def _classes(group: GroupReport) -> str:
    counts = sorted(group.class_counts.items())
    labels = dict(enumerate(group.class_labels or ()))
    shown = [
        f"{index}{f' {labels[index]!r}' if index in labels else ''}: {count:,}"
        for index, count in counts[:SHOWN_CLASSES]
    ]
    more = f", … {len(counts)} classes" if len(counts) > SHOWN_CLASSES else ""
    return ", ".join(shown) + more


def _warn(console: Console, report: FileReport) -> None:
    count = len(report.problems)
    console.note(f"{count} thing{'s' if count > 1 else ''} to look at")
    for problem in report.problems:
        console.note("")
        for line in problem.lines():
            console.note(f"  {line}")
        if problem.hint is not None:
            console.note(f"  hint: {problem.hint}")
