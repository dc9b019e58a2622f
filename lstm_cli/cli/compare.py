"""``lstm-cli compare``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import click

from lstm_cli.cli.console import Console
from lstm_cli.cli.options import FILE, external_option, output_options, selecting_options

if TYPE_CHECKING:
    from lstm_cli.api.comparison.comparison import FileComparison
    from lstm_cli.api.comparison.inputs import ComparedFile
    from lstm_cli.config import Config
    from lstm_cli.formats.interchange import ReadOptions

DIFFERENT = 1
"""Exit code of a difference, explained or not."""

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
    help="Absolute difference up to which two numbers count as equal.  [default: 0]",
)
@click.option(
    "--data",
    "data_paths",
    multiple=True,
    metavar="DATA",
    help="Run both on the first sequences, and show where they part; repeatable.",
)
@click.option(
    "--config",
    "config_path",
    type=FILE,
    help="Config of a file that has none, or does not say all of it.",
)
@click.option("--from-a", metavar="FORMAT", help="Format of A, where its content does not say it.")
@click.option("--from-b", metavar="FORMAT", help="Format of B, likewise.")
@selecting_options
@click.option(
    "--tmva-order",
    type=click.Choice(["slots", "labels"]),
    help="What the elements of an ambiguous TMVA file hold.",
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
    debug: bool,
) -> int:
    """Compare two weights files, gate by gate.

    Every matrix of every gate: largest difference, that over A's largest number, both norms,
    correlation. Where they differ, known mistakes are tried: the gates in any other order,
    transposed blocks, biases summed or shared out, a shifted forget bias, exchanged directions
    or layers, fewer digits; what explains the difference is named. Exits 0 if they are equal, 1
    if they are not, explained or not, or if outputs part with --data.
    """
    from lstm_cli.api.comparison.comparison import compare
    from lstm_cli.cli.compare_tables import report
    from lstm_cli.formats.interchange import ReadOptions

    console = Console(as_json=as_json, quiet=quiet)
    order = cast("Literal['slots', 'labels'] | None", tmva_order)
    given = _config(config_path)
    reading = ReadOptions(None, prefix, order, only=only, ignore=ignore)
    a_reading, b_reading = _readings(
        (a_path, replace(reading, format=from_a)), (b_path, replace(reading, format=from_b))
    )
    a, b = _side("A", a_path, a_reading, given), _side("B", b_path, b_reading, given)
    comparison = compare(a, b, tolerance)
    console.show(*report(comparison))
    _notes(console, (a, b), comparison)
    divergence = _divergence(console, a, b, data_paths, tolerance, allow_external)
    console.document({**_document(comparison), "divergence": divergence})
    parted = divergence is not None and divergence.outputs_differ
    return 0 if comparison.equal and not parted else DIFFERENT


def _readings(*sides: tuple[Path, ReadOptions]) -> list[ReadOptions]:
    """How to read each side: what selects tensors is for state dicts, if one of them is one."""
    from lstm_cli.formats.registry import format_of

    if all(reading.selecting is None for _, reading in sides):
        return [reading for _, reading in sides]
    dicts = [format_of(path, reading).name == "pytorch" for path, reading in sides]
    return [
        reading if is_dict or not any(dicts) else replace(reading, prefix=None, only=(), ignore=())
        for is_dict, (_, reading) in zip(dicts, sides, strict=True)
    ]


def _config(path: Path | None) -> Config | None:
    from lstm_cli.api.model import read_config

    return None if path is None else read_config(path)


def _side(label: str, path: Path, options: ReadOptions, config: Config | None) -> ComparedFile:
    from lstm_cli.api.comparison.inputs import read_compared_file

    return read_compared_file(label, path, options, config)


def _notes(console: Console, sides: Sequence[ComparedFile], comparison: FileComparison) -> None:
    """What was assumed of the files; what `--set` would answer elsewhere, options tell."""
    for side in sides:
        for note in side.notes:
            if "--set " not in note:
                console.note(f"note: {side.label}: {note}")
    if any("does not say" in option.what for option in comparison.options):
        console.note("note: --config names a YAML config for what a file does not say")


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
    """Where the outputs part, shown and handed back; None without data."""
    if not paths:
        return None
    from lstm_cli.api.comparison.first_difference import find_divergence
    from lstm_cli.cli.compare_tables import divergence_report
    from lstm_cli.cli.options import data_options
    from lstm_cli.data import DataOptions, open_data

    config = a.config if a.config is not None else b.config
    options = DataOptions()
    if config is not None:
        options = data_options(config, allow_external, need_targets=False)
    with open_data(paths, options) as data:
        found = find_divergence(a, b, data, tolerance)
    console.show(*divergence_report(found))
    return found
