"""Printed report of a run: model, gates, timings and metrics, as text and as JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lstm_cli.cli.display import units
from lstm_cli.cli.display.console import Console
from lstm_cli.cli.options import machine_line
from lstm_cli.errors import counted

if TYPE_CHECKING:
    from lstm_cli.data import SequenceData
    from lstm_cli.workflows import Model
    from lstm_cli.workflows.inspect_shapes import LayerShapes
    from lstm_cli.workflows.run import RunReport

METRIC_NAMES = {"accuracy": "accuracy", "auc": "AUC", "mse": "MSE", "mae": "MAE"}
LOSS_NAMES = {
    "cross_entropy": "cross-entropy",
    "binary_cross_entropy": "binary cross-entropy",
    "huber": "Huber loss",
}


def head_lines(
    model: Model, data: SequenceData, shapes: tuple[LayerShapes, ...], processes: str = ""
) -> list[Any]:
    """Lines on the model, the data and the machine, and the tables of all gates.

    Parameters
    ----------
    processes
        End of the line on the machine, for several processes: ``, on 2 workers``.
    """
    from lstm_cli.cli.display.tables import gate_tables, heading, normalized_line, other_layer

    engine = model.network.engine
    digest = f", sha256 {model.weights_sha256[:6]}…" if not model.weights_are_random else ""
    count = counted(model.network.parameter_count, "parameter", grouped=True)
    lines: list[Any] = [
        f"{model.config.name} · {data.description}",
        f"weights {model.weights_name} ({count}{digest})",
        machine_line(engine) + processes,
    ]
    if model.network.normalization is not None:
        lines.insert(2, normalized_line(model.weights_name))
    for layer in shapes:
        lines += ["", heading(layer), *(gate_tables(layer) or [other_layer(layer)])]
    return lines


def print_notes(console: Console, report: RunReport) -> None:
    """Print the notes of a run, and a warning about outputs that are not finite."""
    for note in report.notes:
        console.note(f"note: {note}")
    if report.not_finite is not None:
        bad = report.not_finite
        console.note(
            f"warning: the outputs of {bad.sequences} of {counted(report.sequences, 'sequence')} "
            f"hold NaN or infinity, first sequence {bad.first}; "
            "lstm-cli data shows whether the inputs do"
        )


def metrics_line(report: RunReport, output: Path | None) -> str:
    """The metrics, the shape of the outputs, and the file that holds them."""
    parts = [
        f"{METRIC_NAMES[name]} {value:.4g}"
        for name, value in report.metrics.items()
        if name in METRIC_NAMES
    ]
    if report.loss in LOSS_NAMES and report.metrics:
        parts.append(f"{LOSS_NAMES[report.loss]} {report.metrics['loss']:.4g}")
    written = f" → {output}" if output is not None else ""
    return " · ".join([*parts, f"outputs {units.shape(report.output_shape)}{written}"])


def tail_lines(report: RunReport, output: Path | None, gates: Path | None) -> list[Any]:
    """The table of timings, and the line of metrics. Runs of several processes have no timings."""
    from lstm_cli.cli.display.tables import timing_table

    line = metrics_line(report, output) + (f" · gates → {gates}" if gates is not None else "")
    return ["", *([timing_table(report.timings), ""] if report.timings else []), line]


def document(
    model: Model,
    data: SequenceData,
    shapes: tuple[LayerShapes, ...],
    report: RunReport,
    output: Path | None,
    gates: Path | None,
) -> dict[str, Any]:
    """The JSON document of a run."""
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
