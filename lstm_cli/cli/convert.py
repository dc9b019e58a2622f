"""Command ``lstm-cli convert``: weights from one format to another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lstm_cli.cli.display import units
from lstm_cli.cli.display.console import Console
from lstm_cli.cli.options import (
    FILE,
    ReadingOptions,
    check_apart,
    force_option,
    output_options,
    reading_options,
    set_option,
)
from lstm_cli.errors import counted

if TYPE_CHECKING:
    from lstm_cli.workflows.convert.conversion import Conversion
    from lstm_cli.workflows.convert.equivalence import Equivalence
    from lstm_cli.workflows.convert.reference_check import ReferenceCheck

EPILOG = """\b
Examples:
  lstm-cli convert model.pt model.safetensors --set model.layers.1.activation=softmax
  lstm-cli convert model.keras model.onnx --check reference.npz
  lstm-cli convert state.pt weights.xml --config net.yaml --prefix encoder.rnn
  lstm-cli convert model.safetensors model.onnx --lengths --states"""


@click.command(epilog=EPILOG)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST", type=FILE)
@click.option(
    "--to",
    metavar="native|pytorch|keras|onnx|tmva",
    help="Format to write; default: by the suffix of DST.",
)
@click.option("--config", metavar="CONFIG", help="Config with the layers, if SRC lacks them.")
@set_option
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float64"]),
    help="Number type to store; default: that of SRC.",
)
@click.option("--lengths", is_flag=True, help="ONNX: add an input with lengths (N,).")
@click.option(
    "--states", is_flag=True, help="ONNX: add initial states as inputs and final ones as outputs."
)
@click.option(
    "--check",
    metavar="FILE",
    help="Reference inputs and outputs of the other framework, .npz or HDF5.",
)
@click.option(
    "--tolerance",
    type=click.FloatRange(min=0),
    default=2e-5,
    metavar="X",
    help="Largest difference from the outputs of --check.  [default: 2e-5]",
)
@force_option
@reading_options
@output_options
def command(
    *,
    source: str,
    destination: Path,
    to: str | None,
    config: str | None,
    overrides: tuple[str, ...],
    dtype: str | None,
    lengths: bool,
    states: bool,
    check: str | None,
    tolerance: float,
    force: bool,
    reading: ReadingOptions,
    as_json: bool,
    quiet: bool,
) -> None:
    """Convert weights between lstm-cli, PyTorch, Keras, ONNX and TMVA.

    The format of SRC is recognized from its content, that of DST from its suffix. The converted
    file is read back, and both networks run on random sequences in float64. DST is created only
    if their outputs are equal. --check also compares SRC with results of the other framework. The
    reference FILE has inputs (N, T, D) and outputs (N, T, F) or (N, F). Lengths (N,) and initial
    states state.0.h and state.0.c, (N, directions, H), are optional.
    """
    from lstm_cli.formats.interchange import WriteOptions
    from lstm_cli.workflows.convert.conversion import ConversionRequest, convert

    console = Console(as_json=as_json, quiet=quiet)
    check_apart({"--config": config, "--check": check}, destination=destination)
    request = ConversionRequest(
        reading=reading.read_options,
        to=to,
        config=config,
        overrides=overrides,
        writing=WriteOptions(lengths, states),
        dtype=dtype,
        check=check,
        tolerance=tolerance,
        force=force,
    )
    conversion = convert(source, destination, request)
    console.show(*_report(conversion))
    for note in conversion.notes:
        console.note(f"note: {note}")
    for warning in conversion.warnings:
        console.note(f"warning: {warning}")
    console.document(conversion)


def _report(conversion: Conversion) -> list[Any]:
    from lstm_cli.cli.display.tables import plain_table

    files = plain_table("", "file", "format", "gates", "size", numbers=("size",))
    for label, side in (("from", conversion.source), ("to", conversion.destination)):
        gates = "\n".join(f"{kind} {order}" for kind, order in side.gates.items())
        files.add_row(label, side.path, side.title, gates, units.size(side.bytes))
    layers = plain_table("layer", "", "parameters", numbers=("parameters",))
    for layer in conversion.layers:
        layers.add_row(str(layer.index), layer.title, f"{layer.parameters:,}")
    layers.add_row("all", conversion.dtype, f"{conversion.parameters:,}", style="bold")
    lines = [files, "", layers, "", *_proof(conversion.proof)]
    return lines if conversion.check is None else [*lines, *_check(conversion.check)]


def _proof(proof: Equivalence) -> list[str]:
    steps = ("1 to " if proof.ragged else "") + counted(proof.steps, "step")
    states = ", random states" if proof.states else ""
    difference = "largest difference 0"
    if proof.largest_difference:
        difference = f"largest difference {proof.largest_difference:.2g}"
        difference += f", relative {proof.relative_difference:.2g}"
    bits = "; all weights have the same bits" if proof.same_bits else ""
    return [
        f"proof  both run on {proof.sequences} random sequences of {steps}{states}, float64",
        f"       {difference} (at most {proof.tolerance:.2g}){bits}",
    ]


def _check(check: ReferenceCheck) -> list[str]:
    states = ", from their states" if check.states else ""
    difference = f"{check.largest_difference:.2g} (at most {check.tolerance:.2g})"
    return [
        f"check  {counted(check.sequences, 'sequence')} of {check.path}{states}",
        f"       largest difference {difference}, at {check.place}",
    ]
