"""Command ``lstm-cli data``: contents of an HDF5 file."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

import click

from lstm_cli.cli.display import units
from lstm_cli.cli.display.console import Console
from lstm_cli.cli.options import external_option, output_options
from lstm_cli.errors import DataError, counted, printable

if TYPE_CHECKING:
    from lstm_cli.cli.display.tables import NamesTable
    from lstm_cli.data import FileReport
    from lstm_cli.data.inspection import DatasetReport, GroupReport, Spread

EPILOG = """\b
Examples:
  lstm-cli data data/japanese-vowels.h5
  lstm-cli data events.h5:/run7 --json"""

SHOWN_CLASSES = 12
SHOWN_CANDIDATES = 12
"""Most classes, and most possible numbers of features, that are shown."""
NARROWEST = 80
"""Columns of the narrowest supported terminal."""
SHOWN_ALIKE = 20
"""Most datasets of one kind, groups and problems that are shown; JSON has all."""


@click.command(epilog=EPILOG)
@click.argument("path", metavar="FILE")
@output_options
@external_option
def command(path: str, *, as_json: bool, quiet: bool, allow_external: bool) -> None:
    """Show what an HDF5 file holds, and what to put in the config.

    Lists every dataset with its role, and every group of sequences with layout, lengths and
    classes. Then lists all problems, and YAML to begin a config with. Exits 3 if the file has no
    usable sequences.
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
    head = f"{printable(report.path)} · {report.format}, {units.size(report.size)}"
    lines: list[Any] = [head, "", _stored(report)]
    for group in report.groups[:SHOWN_ALIKE]:
        lines += ["", *_group(group)]
    if (more := len(report.groups) - SHOWN_ALIKE) > 0:
        lines += ["", f"… {counted(more, 'more group')} of sequences"]
    if report.suggestion:
        lines += ["", "to begin a config with:", ""]
        lines += [f"    {line}" if line else "" for line in report.suggestion.splitlines()]
    return lines


def _stored(report: FileReport) -> NamesTable:
    from lstm_cli.cli.display.tables import NamesTable

    columns = ("dataset", "shape", "dtype", "bytes", "stored", "taken for")
    table = NamesTable(columns, range(1))
    alike: Counter[Hashable] = Counter()
    for item in report.datasets:
        kind = _kind(item)
        alike[kind] += 1
        if alike[kind] <= SHOWN_ALIKE:
            table.add_row(printable(item.path), *_cells(item))
    for kind, count in alike.items():
        if count > SHOWN_ALIKE:
            first = next(item for item in report.datasets if _kind(item) == kind)
            table.add_row(f"… {count - SHOWN_ALIKE:,} more like {printable(first.path)}")
    return table


def _kind(item: DatasetReport) -> Hashable:
    """A value that is equal for datasets which differ only in name and size."""
    rank = None if item.shape is None else len(item.shape)
    return item.role, item.dtype, item.storage, item.compression, rank


def _cells(item: DatasetReport) -> tuple[str, ...]:
    chunks = item.storage if item.chunks is None else f"chunks {units.shape(item.chunks)}"
    stored = chunks if item.compression is None else f"{chunks}, {item.compression}"
    shape = "?" if item.shape is None else units.shape(item.shape) if item.shape else "()"
    nbytes = "?" if item.nbytes is None else units.size(item.nbytes)
    return shape, item.dtype, f"{nbytes} + values" if item.in_heap else nbytes, stored, item.role


def _group(group: GroupReport) -> list[str]:
    lines = [
        f"{printable(group.name)}: {group.layout} ({printable(group.reason)})",
        f"  sequences  {group.count:,}",
        *_extent(group),
    ]
    if group.names:
        more = ", …" if group.count > len(group.names) else ""
        lines.append(f"  names      {', '.join(map(printable, group.names))}{more}")
    if group.targets is not None:
        lines.append(f"  targets    {_targets(group)}")
    if group.class_counts:
        lines.append(f"  classes    {_classes(group)}")
    return [part for line in lines for part in _wrapped(line)]


def _wrapped(line: str) -> list[str]:
    """A line wrapped for the narrowest terminal, with indented continuation lines."""
    parts = textwrap.wrap(
        line, NARROWEST, subsequent_indent=" " * 13, break_long_words=False, break_on_hyphens=False
    )
    return [part.replace("\0", " ") for part in parts]


def _extent(group: GroupReport) -> list[str]:
    """Lines on steps and features, or on values per row if the number of features is unknown."""
    if group.values is not None:
        shown = [f"{k:,}" for k in group.candidates[-SHOWN_CANDIDATES:]]
        return [
            f"  values     {_spread(group.values)} in a row",
            f"  features   one of {', '.join(shown)} ({group.dtype})",
        ]
    if group.steps is None:
        return []
    return [
        f"  steps      {_spread(group.steps)}; {group.total_steps:,} in all",
        f"  features   {group.features:,} ({group.dtype})",
    ]


def _spread(values: Spread) -> str:
    low, middle, high = values
    return f"{low:,} each" if low == high else f"{low:,} to {high:,}, median {middle:,.0f}"


def _targets(group: GroupReport) -> str:
    if group.targets is None:
        return ""
    unit = {True: "one per step", False: "one per sequence", None: "one per step or sequence"}
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
    shown = [entry.replace(" ", "\0") for entry in shown]  # no line break within an entry
    more = f", … {counted(len(counts), 'class')}" if len(counts) > SHOWN_CLASSES else ""
    return ", ".join(shown) + more


def _warn(console: Console, report: FileReport) -> None:
    count = len(report.problems)
    console.note(f"{counted(count, 'problem')} to look at")
    for problem in report.problems[:SHOWN_ALIKE]:
        console.note("")
        for line in problem.lines():
            console.note(f"  {line}")
        if problem.hint is not None:
            console.note(f"  hint: {problem.hint}")
    if count > SHOWN_ALIKE:
        console.note(f"\n  … {count - SHOWN_ALIKE:,} more")
