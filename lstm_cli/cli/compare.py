"""Command ``lstm-cli compare``: two weights files, gate by gate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from lstm_cli.cli.display import units
from lstm_cli.cli.display.console import Console
from lstm_cli.cli.options import FILE, external_option, output_options, selecting_options
from lstm_cli.errors import counted

if TYPE_CHECKING:
    from rich.table import Table

    from lstm_cli.config import Config
    from lstm_cli.formats.interchange import ReadOptions
    from lstm_cli.workflows.compare.comparison import FileComparison, FileSummary
    from lstm_cli.workflows.compare.diagnosis import Diagnosis
    from lstm_cli.workflows.compare.first_difference import Divergence
    from lstm_cli.workflows.compare.inputs import ComparedBlock, ComparedFile

DIFFERENT = 1
"""Exit code of a difference, explained or unexplained."""

EPILOG = """\b
Examples:
  lstm-cli compare model.safetensors converted.onnx
  lstm-cli compare before.pt after.pt --tolerance 1e-6
  lstm-cli compare a.keras b.xml --tmva-order slots --data events.h5:/test"""


@click.command(epilog=EPILOG)
@click.argument("a_path", metavar="A", type=FILE)
@click.argument("b_path", metavar="B", type=FILE)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="X",
    help="Largest absolute difference of equal numbers.  [default: 0]",
)
@click.option(
    "--data",
    "data_paths",
    multiple=True,
    metavar="DATA",
    help="Run both networks on the first sequences, and show the first difference; repeatable.",
)
@click.option(
    "--config",
    "config_path",
    type=FILE,
    help="Config for a file without a complete description of its layers.",
)
@click.option("--from-a", metavar="FORMAT", help="Format of A, if its content is ambiguous.")
@click.option("--from-b", metavar="FORMAT", help="Format of B, if its content is ambiguous.")
@selecting_options
@click.option(
    "--tmva-order",
    type=click.Choice(["slots", "labels"]),
    help="Meaning of the elements in an ambiguous TMVA file.",
)
@external_option
@output_options
def command(
    *,
    a_path: Path,
    b_path: Path,
    tolerance: float,
    data_paths: tuple[str, ...],
    config_path: Path | None,
    from_a: str | None,
    from_b: str | None,
    prefix: str | None,
    only: tuple[str, ...],
    ignore: tuple[str, ...],
    tmva_order: str | None,
    allow_external: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Compare two weights files, gate by gate.

    For every matrix of every gate: largest absolute and relative difference, both norms, and
    correlation. If the files differ, known errors are tried: permuted gates, transposed blocks,
    summed or split biases, a shifted forget bias, exchanged directions or layers, and lost
    digits. Errors that explain the difference are named. Exits 0 if the files are equal. Exits 1
    if they differ, explained or not, or if outputs differ with --data.
    """
    from lstm_cli.formats.interchange import ReadOptions
    from lstm_cli.workflows.compare.comparison import compare

    console = Console(as_json=as_json, quiet=quiet)
    order = cast("Literal['slots', 'labels'] | None", tmva_order)
    config = _config(config_path)
    reading = ReadOptions(None, prefix, order, only=only, ignore=ignore)
    a_reading, b_reading = _readings(
        (a_path, replace(reading, format=from_a)), (b_path, replace(reading, format=from_b))
    )
    a, b = _side("A", a_path, a_reading, config), _side("B", b_path, b_reading, config)
    comparison = compare(a, b, tolerance)
    console.show(*report(comparison))
    _notes(console, (a, b), comparison)
    divergence = _divergence(console, a, b, data_paths, tolerance, allow_external)
    console.document({**_document(comparison), "divergence": divergence})
    outputs_differ = divergence is not None and divergence.outputs_differ
    return 0 if comparison.equal and not outputs_differ else DIFFERENT


def _readings(*sides: tuple[Path, ReadOptions]) -> list[ReadOptions]:
    """Options to read each side; if a side is a state dict, only state dicts get selections."""
    from lstm_cli.formats.registry import format_of

    if all(reading.selecting is None for _, reading in sides):
        return [reading for _, reading in sides]
    dicts = [format_of(path, reading).name == "pytorch" for path, reading in sides]
    return [
        reading if is_dict or not any(dicts) else replace(reading, prefix=None, only=(), ignore=())
        for is_dict, (_, reading) in zip(dicts, sides, strict=True)
    ]


def _config(path: Path | None) -> Config | None:
    from lstm_cli.workflows.model import read_config

    return None if path is None else read_config(path)


def _side(label: str, path: Path, options: ReadOptions, config: Config | None) -> ComparedFile:
    from lstm_cli.workflows.compare.inputs import read_compared_file

    return read_compared_file(label, path, options, config)


def _notes(console: Console, sides: Sequence[ComparedFile], comparison: FileComparison) -> None:
    """Print notes on assumptions, without notes that propose `--set`, which `compare` lacks."""
    for side in sides:
        for note in side.notes:
            if "--set " not in note:
                console.note(f"note: {side.label}: {note}")
    if any("does not say" in option.what for option in comparison.options):
        console.note("note: --config names a YAML config with options that a file does not store")


def _document(comparison: Any) -> dict[str, Any]:
    from dataclasses import fields

    return {field.name: getattr(comparison, field.name) for field in fields(comparison)}


def _divergence(
    console: Console,
    a: ComparedFile,
    b: ComparedFile,
    paths: tuple[str, ...],
    tolerance: float,
    allow_external: bool,
) -> Any:
    """Print and return the first difference of outputs; None without data."""
    if not paths:
        return None
    from lstm_cli.cli.options import data_options
    from lstm_cli.data import DataOptions, open_data
    from lstm_cli.workflows.compare.first_difference import find_divergence

    config = a.config if a.config is not None else b.config
    options = DataOptions()
    if config is not None:
        options = data_options(config, allow_external, need_targets=False)
    with open_data(paths, options) as data:
        divergence = find_divergence(a, b, data, tolerance)
    console.show(*divergence_report(divergence))
    return divergence


FEW = 4
"""Most equal blocks of a direction that are listed; more are only counted."""


def report(comparison: FileComparison) -> list[Any]:
    """Tables and lines on a comparison, without the comparison of outputs."""
    from lstm_cli.workflows.data_notes import itemize

    lines: list[Any] = [_file("A", comparison.a), _file("B", comparison.b), ""]
    for layer, group in groupby(comparison.blocks, key=lambda block: block.layer):
        shown = list(_layer(f"layer {layer}  {comparison.titles[layer]}", list(group)))
        if len(shown) > 1 and lines[-1] != "":
            lines.append("")
        lines += [*shown, *([""] if len(shown) > 1 else [])]
    if lines[-1] != "":
        lines.append("")
    if comparison.folded is not None:
        other = "B" if comparison.folded == "A" else "A"
        lines.append(
            f"note: {comparison.folded} normalizes its inputs (inputs.mean, inputs.scale), but "
            f"{other} does not: the normalization was folded into the weights to compare them"
        )
    if comparison.lost:
        lines.append(
            f"warning: the fold loses digits: {itemize(comparison.lost)}; equal weights then give "
            "different outputs, which --data shows"
        )
    lines += [f"differs: {what}" for what in comparison.layers]
    lines += [
        f"{'differs' if option.counts else 'note'}: {option.what}" for option in comparison.options
    ]
    if comparison.diagnosis is not None:
        lines += _diagnosis(comparison.diagnosis)
    return [*lines, _verdict(comparison), *_hints(comparison.diagnosis)]


def _file(label: str, file: FileSummary) -> str:
    return f"{label}  {file.path} · {file.title} · sha256 {file.sha256[:8]}…"


def _layer(title: str, blocks: Sequence[ComparedBlock]) -> Iterator[Any]:
    """A heading for each direction, the blocks that differ, and equal blocks if they are few."""
    from rich.text import Text

    if all(block.equal for block in blocks):
        yield Text.assemble((title, "bold"), f" · {_matrices(len(blocks))} equal")
        return
    directions = dict.fromkeys(block.direction for block in blocks)
    for k, direction in enumerate(directions):
        yield from [""] if k else []
        yield Text(title + (f" · {direction}" if len(directions) > 1 else ""), style="bold")
        yield from _rows([block for block in blocks if block.direction == direction])


def _rows(blocks: Sequence[ComparedBlock]) -> Iterator[Any]:
    equal = [block for block in blocks if block.equal]
    summarized = len(equal) > FEW
    shown = [block for block in blocks if not (summarized and block.equal)]
    if same_shape := [block for block in shown if block.figures is not None]:
        yield _table(same_shape)
    if other_shape := [block for block in shown if block.figures is None]:
        yield _shapes_table(other_shape)
    if summarized or len(equal) == len(blocks):
        others = "the other" if len(equal) < len(blocks) else "all"
        yield f"{others} {_matrices(len(equal))} are equal"


def _matrices(count: int) -> str:
    return f"{count} matrices and vectors" if count != 1 else "1 matrix"


def _table(blocks: Sequence[ComparedBlock]) -> Table:
    from lstm_cli.cli.display.tables import plain_table

    numbers = ("difference", "relative", "norm A", "norm B", "correlation")
    table = plain_table("gate", "", "shape", *numbers, numbers=numbers)
    for block in blocks:
        shape = units.shape(block.shape_a or ())
        cells = (block.gate, block.matrix, shape, *_numbers(block))
        table.add_row(*cells, style="dim" if block.equal else "")
    return table


def _numbers(block: ComparedBlock) -> tuple[str, ...]:
    figures = block.figures
    if figures is None:
        return ()
    return (
        _number(figures.difference),
        _number(figures.relative),
        _number(figures.norm_a),
        _number(figures.norm_b),
        "-" if figures.correlation is None else _correlation(figures.correlation),
    )


def _shapes_table(blocks: Sequence[ComparedBlock]) -> Table:
    """A table of blocks whose shapes differ, or that only one file has."""
    from lstm_cli.cli.display.tables import plain_table

    table = plain_table("gate", "", "shape in A", "shape in B")
    for block in blocks:
        shapes = ("none" if s is None else units.shape(s) for s in (block.shape_a, block.shape_b))
        table.add_row(block.gate, block.matrix, *shapes)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _correlation(value: float) -> str:
    # 0.99999 must not be shown as 1.
    text = f"{value:.4f}"
    return f"{value:.7f}" if text in ("1.0000", "-1.0000") and abs(value) < 1 - 1e-9 else text


def _diagnosis(diagnosis: Diagnosis) -> Iterator[str]:
    for finding in diagnosis.findings:
        where = f" ({', '.join(finding.where)})" if finding.where else ""
        yield f"explained: {finding.what}{where}"
    for blocks in diagnosis.unexplained:
        yield f"not explained: {blocks}"


def _hints(diagnosis: Diagnosis | None) -> list[str]:
    hints = [] if diagnosis is None else [finding.hint for finding in diagnosis.findings]
    return [f"hint: {hint}" for hint in dict.fromkeys(hints) if hint is not None]


def _verdict(comparison: FileComparison) -> str:
    blocks = comparison.blocks
    within = f" within {comparison.tolerance:g}" if comparison.tolerance else ""
    differing = [block for block in blocks if not block.equal]
    if comparison.equal:
        return f"equal{within}: {_matrices(len(blocks))}"
    if not differing:
        return f"{_matrices(len(blocks))} are equal{within}, but the networks differ"
    largest = max((b.figures.difference for b in differing if b.figures is not None), default=None)
    by = "" if largest is None else f", by up to {largest:.3g}"
    how = {"wholly": "explained", "partly": "explained in part", "not": "not explained"}
    explained = how[comparison.diagnosis.explained] if comparison.diagnosis is not None else ""
    beyond = f" beyond {comparison.tolerance:g}" if comparison.tolerance else ""
    return f"{len(differing)} of {_matrices(len(blocks))} differ{beyond}{by}: {explained}"


def divergence_report(divergence: Divergence) -> list[Any]:
    """The first and largest differences of outputs, layer by layer."""
    from lstm_cli.cli.display.tables import plain_table

    count, steps = divergence.of, divergence.steps
    which = "all" if divergence.sequences == count else f"the first {divergence.sequences} of"
    limit = "" if steps is None else f", at most {counted(steps, 'step')} of each"
    numbers = ("first step", "sequence", "largest", "at step", "in sequence")
    table = plain_table("layer", "", "value", *numbers, numbers=numbers)
    for part in divergence.parts:
        first = ("-", "-") if not part.exceeds else (part.first_step, part.first_sequence)
        largest = (_number(part.largest), part.step, part.sequence)
        cells = ["" if cell is None else str(cell) for cell in (*first, *largest)]
        style = "" if part.exceeds else "dim"
        table.add_row(str(part.layer), part.direction, part.value, *cells, style=style)
    lines: list[Any] = [
        "",
        f"run on {which} {counted(count, 'sequence')}{limit}, in float64",
        table,
    ]
    lines += [*(f"note: {note}" for note in divergence.notes), divergence.what]
    if divergence.outputs is not None:
        out = divergence.outputs
        step = "" if out.step is None else f", step {out.step}"
        where = f" (sequence {out.sequence}{step})" if out.largest > 0 else ""
        lines.append(f"the networks' outputs differ by up to {_number(out.largest)}{where}")
    return lines
