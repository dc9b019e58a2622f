"""Command ``lstm-cli run``: forward pass over sequences."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lstm_cli.cli.console import Console
from lstm_cli.cli.interrupts import interruptible
from lstm_cli.cli.options import (
    FILE,
    ModelOptions,
    batch_option,
    external_option,
    force_option,
    model_options,
    output_options,
)
from lstm_cli.cli.run_report import document, head_lines, print_notes, tail_lines
from lstm_cli.cli.shares import Division, OpenRun, RunArguments, opened, shard_number

if TYPE_CHECKING:
    from lstm_cli.workflows.run import RunReport

EPILOG = """\b
Examples:
  lstm-cli run configs/japanese-vowels.yaml data/japanese-vowels.h5:/test
  lstm-cli run model.onnx events.h5 --output results.h5
  lstm-cli run config.yaml week1.h5 week2.h5 --dtype float64 --json"""


@click.command(epilog=EPILOG)
@click.argument("config_path", metavar="CONFIG")
@click.argument("data_paths", metavar="DATA...", nargs=-1, required=True)
@click.option("--output", type=FILE, help="Write outputs and final states to this HDF5 file.")
@click.option(
    "--gates", type=FILE, help="Write the values of every gate and step to this HDF5 file."
)
@click.option("--state", metavar="PATH", help="Initial states from an earlier results file.")
@click.option(
    "--shard",
    callback=shard_number,
    metavar="K/N",
    help="Run the K-th of N shares of the data, and write the shard OUTPUT.shard-K-of-N for "
    "lstm-cli join.",
)
@force_option
@batch_option
@output_options
@external_option
@model_options
def command(
    *,
    config_path: str,
    data_paths: tuple[str, ...],
    output: Path | None,
    gates: Path | None,
    state: str | None,
    shard: tuple[int, int] | None,
    force: bool,
    batch_size: int | None,
    as_json: bool,
    quiet: bool,
    allow_external: bool,
    options: ModelOptions,
) -> None:
    """Run a network over sequences.

    Builds the network and runs the forward pass over DATA. Shows the shapes of every gate, timings,
    and metrics if the data have targets. Several DATA form one dataset. DATA may also be a folder
    of HDF5 files, or a quoted pattern: 'days/*.h5'.
    """
    console = Console(as_json=as_json, quiet=quiet)
    division = Division(shard)
    division.check(output, gates)
    arguments = RunArguments(
        config_path,
        data_paths,
        output,
        gates,
        state,
        force,
        batch_size,
        allow_external,
        options,
    )
    with opened(arguments, console) as run:
        _run(run, division, console)


def _run(run: OpenRun, division: Division, console: Console) -> None:
    """Compute, and print the report."""
    from lstm_cli.workflows.inspect_shapes import network_shapes
    from lstm_cli.workflows.shards import shard_path

    arguments, output = run.arguments, run.arguments.output
    division.check_model(run.model)
    shapes = network_shapes(run.model.config)
    console.show(*head_lines(run.model, run.data, shapes))
    more: dict[str, Any] = {}
    if division.shard is not None and output is not None:
        report, more = _one_share(run, division.shard, console)
        output = shard_path(output, *division.shard)
    else:
        report = _whole(run, console)
    print_notes(console, report)
    console.show(*tail_lines(report, output, arguments.gates))
    values = document(run.model, run.data, shapes, report, output, arguments.gates)
    console.document({**values, **more, "passed_over": run.choice.passed_over})


def _whole(run: OpenRun, console: Console) -> RunReport:
    """Run over all sequences."""
    from lstm_cli.workflows.run import RunFiles, run_dataset

    one = run.arguments
    bar = console.progress(run.data.count, "sequences")
    with bar as advance, interruptible("finishing the batch", quiet=console.quiet) as check:
        return run_dataset(
            run.model,
            run.data,
            batch_size=run.batch_size,
            halve=one.batch_size is None,
            files=RunFiles(one.output, one.gates, one.state, one.force),
            progress=lambda count: (advance(count), check())[0],
        )


def _one_share(
    run: OpenRun, shard: tuple[int, int], console: Console
) -> tuple[RunReport, dict[str, Any]]:
    """Run one share, unless an earlier run has finished it."""
    from lstm_cli.workflows.shards import share_of

    share = share_of(run.data, *shard)
    bar = console.progress(share.stop - share.first, "sequences")
    with bar as advance, interruptible("finishing the batch", quiet=console.quiet) as check:
        report, note = run.compute_share(share, lambda count: (advance(count), check())[0])
    if note is not None:
        console.note(f"note: {note}")
    return report, {"share": share}
