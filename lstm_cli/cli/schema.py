"""Command ``lstm-cli schema``: JSON Schema of the config."""

from __future__ import annotations

from pathlib import Path

import click

from lstm_cli.cli.display.console import plain, print_json
from lstm_cli.cli.options import FILE, debug_option, force_option

EPILOG = """\b
Example:
  lstm-cli schema --output lstm-cli.schema.json
then, in the first line of a config:
  # yaml-language-server: $schema=lstm-cli.schema.json"""


@click.command(epilog=EPILOG)
@click.option("--output", type=FILE, help="Write to this file instead of stdout.")
@force_option
@click.option("--json", is_flag=True, expose_value=False, help="The schema always is JSON.")
@click.option("--quiet", is_flag=True, expose_value=False, help="No progress and no messages.")
@debug_option
def command(*, output: Path | None, force: bool) -> None:
    """Print the JSON Schema of the config, with which editors complete and check keys."""
    import json

    from lstm_cli.config import json_schema
    from lstm_cli.output_files import check_output_path, write_atomically

    if output is None:
        print_json(json_schema())
        return
    check_output_path(output, option="--output", force=force, suffix=".json", streams=True)
    text = json.dumps(plain(json_schema()), indent=2) + "\n"
    write_atomically(output, text.encode(), "the schema", force=force)
