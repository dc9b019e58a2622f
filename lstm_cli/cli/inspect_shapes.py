"""Command ``lstm-cli inspect-shapes``: every shape of a network, and every misfit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lstm_cli.cli.display import units
from lstm_cli.cli.display.console import Console
from lstm_cli.cli.options import (
    ModelOptions,
    batch_option,
    check_order,
    data_options,
    external_option,
    model_options,
    output_options,
)
from lstm_cli.errors import counted

if TYPE_CHECKING:
    from lstm_cli.workflows.inspect_shapes import Inspection, LayerShapes

ITEM_BYTES = {"float64": 8, "bfloat16": 2, "float16": 2}

EPILOG = """\b
Examples:
  lstm-cli inspect-shapes configs/japanese-vowels.yaml
  lstm-cli inspect-shapes config.yaml data.h5 --weights old.safetensors
  lstm-cli inspect-shapes model.keras"""


@click.command(epilog=EPILOG)
@click.argument("config_path", metavar="CONFIG")
@click.argument("data_paths", metavar="[DATA]...", nargs=-1)
@batch_option("64", "64")
@output_options
@external_option
@model_options
def command(
    *,
    config_path: str,
    data_paths: tuple[str, ...],
    batch_size: int | None,
    as_json: bool,
    quiet: bool,
    allow_external: bool,
    options: ModelOptions,
) -> None:
    """Show every matrix and vector of every gate, and every misfit.

    Lists role, formula, shape, parameters, bytes and stored name of each. For each layer it lists
    the activations per step and per batch. With --weights or DATA it reports every misfit at
    once, with both shapes and their sources. Exits 4 if the weights do not fit, 3 if the data does
    not.
    """
    from lstm_cli.cli.display.tables import stored_table
    from lstm_cli.workflows.inspect_shapes import file_tensors, inspect

    console = Console(as_json=as_json, quiet=quiet)
    check_order(config_path, data_paths)
    source = options.reading.open(config_path)
    if not isinstance(source, str) and source.text is None and source.config is None:
        tensors = file_tensors(source)
        console.show(config_path, stored_table(tensors))
        console.note(f"note: {config_path} has no config, so these are its tensors as stored")
        console.document({"weights": config_path, "tensors": tensors})
        return
    config = options.config(source)
    inspection = inspect(
        config,
        options.weights_of(source) or config.weights,
        data_paths,
        data_options(config, allow_external, need_targets=False),
        itemsize=ITEM_BYTES.get(options.dtype, 4),
        batch=batch_size or 64,
        reading=options.reading.read_options,
    )
    for note in inspection.notes:
        console.note(f"note: {note}")
    console.show(*_report(inspection))
    console.document(inspection)
    error = inspection.error()
    if error is not None:
        raise error


def _report(inspection: Inspection) -> list[Any]:
    from lstm_cli.cli.display.tables import flow_table, heading, normalized_line

    nbytes = units.size(inspection.bytes)
    lines: list[Any] = [
        f"{inspection.name} · {counted(inspection.parameters, 'parameter', grouped=True)}, {nbytes}"
    ]
    title = "" if inspection.format is None else f" · {inspection.format}"
    lines += [f"weights {inspection.weights}{title}"] if inspection.weights is not None else []
    if inspection.normalization is not None:
        lines.append(normalized_line(inspection.weights))
    lines += [f"data {inspection.data}"] if inspection.data is not None else []
    for layer in inspection.layers:
        lines += ["", heading(layer)]
        for table in _tables(inspection, layer):
            lines += [table, ""]
        lines.append(flow_table(layer))
    return lines


def _tables(inspection: Inspection, layer: LayerShapes) -> list[Any]:
    """Tables of a layer's matrices, of a comparison with weights, and of another format's names."""
    from lstm_cli.cli.display.tables import block_tables, place_tables

    # A file that describes the layers itself is not compared with them.
    compared = inspection.weights not in (None, inspection.config)
    places = place_tables(layer) if inspection.format is not None else []
    if places and not compared:
        return places
    return [*block_tables(layer, compared=compared), *places]
