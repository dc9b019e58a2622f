"""Command ``lstm-cli join``: the results of one run, from the shards of its shares."""

from __future__ import annotations

from pathlib import Path

import click

from lstm_cli.cli.display.console import Console
from lstm_cli.cli.display.run_report import metrics_line, print_notes
from lstm_cli.cli.options import FILE, force_option, output_options
from lstm_cli.errors import counted

EPILOG = """\b
Examples:
  lstm-cli run CONFIG DATA --output results.h5 --shard 1/2
  lstm-cli run CONFIG DATA --output results.h5 --shard 2/2
  lstm-cli join results.h5"""


@click.command(epilog=EPILOG)
@click.argument("output", metavar="OUT", type=FILE)
@force_option
@output_options
def command(*, output: Path, force: bool, as_json: bool, quiet: bool) -> None:
    """Join the shards of a run.

    Reads the shards OUT.shard-K-of-N, which lstm-cli run --shard K/N has written beside OUT. Writes
    OUT as one run would, prints the metrics of one run, and removes the shards. A missing shard, or
    one of another model or of other data, is an error.
    """
    from lstm_cli.workflows.shards import find_shards, join_shards

    console = Console(as_json=as_json, quiet=quiet)
    with console.progress(len(find_shards(output)), "shards") as advance:
        report, count = join_shards(output, force=force, progress=advance)
    print_notes(console, report)
    console.show(f"joined {counted(count, 'shard')}", metrics_line(report, output))
    console.document(
        {
            "data": {"sequences": report.sequences, "steps": report.steps},
            "metrics": report.metrics,
            "notes": report.notes,
            "not_finite": report.not_finite,
            "shards": count,
            "output": {"path": output, "shape": report.output_shape, "gates": None},
        }
    )
