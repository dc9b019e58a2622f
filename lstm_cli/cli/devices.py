"""``lstm-cli devices``."""

from __future__ import annotations

import click

from lstm_cli.cli.console import Console
from lstm_cli.cli.options import output_options

EPILOG = """\b
Example:
  lstm-cli devices --json"""


@click.command(epilog=EPILOG)
@output_options
def command(*, as_json: bool, quiet: bool, debug: bool) -> None:
    """Engines and devices that can be used here, and why the others cannot.

    Where --engine and --device are auto, the first usable one in this list computes.
    """
    from lstm_cli.cli.tables import engines_table
    from lstm_cli.engines.selection import engine_statuses

    console = Console(as_json=as_json, quiet=quiet)
    statuses = engine_statuses()
    chosen = next(status.engine for status in statuses if status.usable)
    console.show(engines_table(statuses))
    console.document({"engines": statuses, "auto": chosen})
