"""Command ``lstm-cli run``: forward pass over sequences."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lstm_cli.cli import units
from lstm_cli.cli.console import Console
from lstm_cli.cli.interrupts import interruptible
from lstm_cli.cli.options import (
    FILE,
    ModelOptions,
    batch_option,
    check_apart,
    check_order,
    data_options,
    external_option,
    force_option,
    machine_line,
    model_options,
    output_options,
)
from lstm_cli.errors import counted

if TYPE_CHECKING:
    from lstm_cli.data import SequenceData
    from lstm_cli.workflows import Model
    from lstm_cli.workflows.inspect_shapes import LayerShapes
    from lstm_cli.workflows.run import RunReport

EPILOG = """\b
Examples:
  lstm-cli run configs/japanese-vowels.yaml data/japanese-vowels.h5:/test
  lstm-cli run model.onnx events.h5 --output results.h5
  lstm-cli run config.yaml week1.h5 week2.h5 --dtype float64 --json"""

METRIC_NAMES = {"accuracy": "accuracy", "auc": "AUC", "mse": "MSE", "mae": "MAE"}
LOSS_NAMES = {
    "cross_entropy": "cross-entropy",
    "binary_cross_entropy": "binary cross-entropy",
    "huber": "Huber loss",
}


@click.command(epilog=EPILOG)
@click.argument("config_path", metavar="CONFIG")
@click.argument("data_paths", metavar="DATA...", nargs=-1, required=True)
@click.option("--output", type=FILE, help="Write outputs and final states to this HDF5 file.")
@click.option(
    "--gates", type=FILE, help="Write the values of every gate and step to this HDF5 file."
)
@click.option("--state", metavar="PATH", help="Initial states from an earlier results file.")
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
    force: bool,
    batch_size: int | None,
    as_json: bool,
    quiet: bool,
    allow_external: bool,
    options: ModelOptions,
) -> None:
    """Run a network over sequences.

    Builds the network and runs the forward pass over DATA. Shows the shapes of every gate, timings,
    and metrics if the data have targets. Several DATA form one dataset.
    """
    from lstm_cli.data import open_data
    from lstm_cli.output_files import check_output_path
    from lstm_cli.workflows.inspect_shapes import network_shapes
    from lstm_cli.workflows.run import RunFiles, automatic_batch_size, run_dataset
    from lstm_cli.workflows.shape_check import check_data

    console = Console(as_json=as_json, quiet=quiet)
    check_order(config_path, data_paths)
    source = options.reading.open(config_path)
    config = options.config(source)
    inputs = {
        "CONFIG": config_path,
        "--weights": options.weights,
        "the config's weights": config.weights,
        "--state": state,
    }
    check_apart(inputs, output=output, gates=gates)
    for option, path in (("--output", output), ("--gates", gates)):
        if path is not None:
            check_output_path(path, option=option, force=force, suffix=".h5")
    reading = data_options(config, allow_external, need_targets=False)
    with open_data(data_paths, reading) as data:
        check_apart(data=data.paths, output=output, gates=gates)
        check_data(config, data, learning=False)
        choice = options.choose_engine(console)
        model = options.model(source, config, choice.engine, console)
        shapes = network_shapes(config)
        console.show(*_head(model, data, shapes))
        size = batch_size or automatic_batch_size(model, data)
        bar = console.progress(data.count, "sequences")
        with bar as advance, interruptible("finishing the batch", quiet=quiet) as check:
            report = run_dataset(
                model,
                data,
                batch_size=size,
                halve=batch_size is None,
                files=RunFiles(output, gates, state, force),
                progress=lambda count: (advance(count), check())[0],
            )
        _notes(console, report)
        console.show(*_tail(report, output, gates))
        document = _document(model, data, shapes, report, output, gates)
        console.document({**document, "passed_over": choice.passed_over})


def _head(model: Model, data: SequenceData, shapes: tuple[LayerShapes, ...]) -> list[Any]:
    from lstm_cli.cli.tables import gate_tables, heading, normalized_line, other_layer

    engine = model.network.engine
    digest = f", sha256 {model.weights_sha256[:6]}…" if not model.weights_are_random else ""
    count = counted(model.network.parameter_count, "parameter", grouped=True)
    lines: list[Any] = [
        f"{model.config.name} · {data.description}",
        f"weights {model.weights_name} ({count}{digest})",
        machine_line(engine),
    ]
    if model.network.normalization is not None:
        lines.insert(2, normalized_line(model.weights_name))
    for layer in shapes:
        lines += ["", heading(layer), *(gate_tables(layer) or [other_layer(layer)])]
    return lines


def _notes(console: Console, report: RunReport) -> None:
    for note in report.notes:
        console.note(f"note: {note}")
    if report.not_finite is not None:
        bad = report.not_finite
        console.note(
            f"warning: the outputs of {bad.sequences} of {counted(report.sequences, 'sequence')} "
            f"hold NaN or infinity, first sequence {bad.first}; "
            "lstm-cli data shows whether the inputs do"
        )


def _tail(report: RunReport, output: Path | None, gates: Path | None) -> list[Any]:
    from lstm_cli.cli.tables import timing_table

    parts = [
        f"{METRIC_NAMES[name]} {value:.4g}"
        for name, value in report.metrics.items()
        if name in METRIC_NAMES
    ]
    if report.loss in LOSS_NAMES and report.metrics:
        parts.append(f"{LOSS_NAMES[report.loss]} {report.metrics['loss']:.4g}")
    written = f" → {output}" if output is not None else ""
    parts.append(f"outputs {units.shape(report.output_shape)}{written}")
    if gates is not None:
        parts.append(f"gates → {gates}")
    return ["", timing_table(report.timings), "", " · ".join(parts)]


def _document(
    model: Model,
    data: SequenceData,
    shapes: tuple[LayerShapes, ...],
    report: RunReport,
    output: Path | None,
    gates: Path | None,
) -> dict[str, Any]:
    engine, normalization = model.network.engine, model.network.normalization
    return {
        "model": {
            "name": model.config.name,
            "config": model.config.source,
            "parameters": model.network.parameter_count,
            "weights": model.weights_name,
            "weights_sha256": model.weights_sha256,
            "normalization": None if normalization is None else normalization.numbers,
        },
        "data": {
            "sequences": data.count,
            "steps": data.total_steps,
            "min_steps": data.min_steps,
            "max_steps": data.max_steps,
            "features": data.features,
            "layout": data.layout,
        },
        "layers": shapes,
        "timings": report.timings,
        "metrics": report.metrics,
        "notes": report.notes,
        "not_finite": report.not_finite,
        "device": engine.device,
        "engine": engine.name,
        "dtype": engine.dtype,
        "threads": engine.threads,
        "output": {
            "path": output,
            "shape": report.output_shape,
            "gates": gates,
        },
    }
