"""``lstm-cli train``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lstm_cli.cli.console import Console
from lstm_cli.cli.options import (
    FILE,
    ModelOptions,
    check_order,
    data_options,
    external_option,
    machine_line,
    model_options,
    output_options,
)
from lstm_cli.cli.options import batch_size as parsed_batch_size
from lstm_cli.errors import counted, quote

if TYPE_CHECKING:
    from lstm_cli.api.training_run import TrainingRun, TrainReport

EPILOG = """\b
Examples:
  lstm-cli train configs/japanese-vowels.yaml data/japanese-vowels.h5:/train --output vowels
  lstm-cli train configs/sunspots.yaml data/sunspots.h5 --output sunspots --resume
  lstm-cli train config.yaml week1.h5 week2.h5 --output weeks --set train.validation=0.1"""

ENDS = {
    "epochs": "all epochs are done",
    "patience": "none was better for as long as train.patience waits",
}


@click.command(epilog=EPILOG)
@click.argument("config_path", metavar="CONFIG")
@click.argument("data_paths", metavar="DATA...", nargs=-1, required=True)
@click.option(
    "--output", type=FILE, required=True, help="Folder of the run; made with the first checkpoint."
)
@click.option(
    "--resume",
    is_flag=True,
    help="Go on with the run in the folder, if there is one, to the same bits.",
)
@click.option(
    "--checkpoint-every",
    type=click.FloatRange(min=0),
    default=10.0,
    metavar="SECONDS",
    help="Save within an epoch after so long; after each epoch anyway.  [default: 10]",
)
@click.option(
    "--batch-size",
    callback=lambda *given: None if given[-1] is None else parsed_batch_size(*given),
    metavar="N|auto",
    help="Sequences in a batch; auto, the default: train.batch_size.",
)
@output_options
@external_option
@model_options
def command(
    *,
    config_path: str,
    data_paths: tuple[str, ...],
    output: Path,
    resume: bool,
    checkpoint_every: float,
    batch_size: int | None,
    as_json: bool,
    quiet: bool,
    debug: bool,
    allow_external: bool,
    options: ModelOptions,
) -> int:
    """Train a network on sequences with targets.

    Learns from DATA as the config's section `train` says and writes to --output: the best
    weights, which run alone, the metrics of every epoch, and checkpoints. Killed at any moment
    and resumed, a run ends in the same bits. Ctrl-C finishes the step, saves and exits 130.
    """
    from lstm_cli.api.run_folder import RunFolder
    from lstm_cli.api.shape_check import check_data
    from lstm_cli.api.trainer import train_section
    from lstm_cli.api.training_run import TrainingRun, open_validation
    from lstm_cli.data import open_data

    console = Console(as_json=as_json, quiet=quiet)
    if batch_size is not None:
        chosen = (*options.overrides, f"train.batch_size={batch_size}")
        options = replace(options, overrides=chosen)
    check_order(config_path, data_paths)
    source = options.reading.open(config_path)
    config = options.config(source)
    train_section(config)
    reading = data_options(config, allow_external)
    with open_data(data_paths, reading) as data, open_validation(config, reading) as held:
        check_data(config, data)
        with RunFolder(output, resume=resume) as folder:
            choice = options.choose_engine(console, folder.threads)
            run = TrainingRun(
                folder,
                config,
                data,
                held,
                choice.engine,
                weights=options.weights_of(source),
                reading=options.reading.options,
                checkpoint_every=checkpoint_every,
            )
            report = _train(console, run)
            _show(console, run, report, (config.validation,) if held else data_paths)
            console.document({**_document(run, report), "passed_over": choice.passed_over})
            return 130 if report.end == "interrupted" else 0


def _train(console: Console, run: TrainingRun) -> TrainReport:
    """Run unless the run has ended before, and say how it ended."""
    from lstm_cli.cli.interrupts import interrupts
    from lstm_cli.cli.train_display import display

    for note in run.notes:
        console.note(f"note: {note}")
    if run.ended is not None:
        report = run.report()
        console.note(f"the run in {run.folder.path} has ended: {_how(report)}")
        return report
    console.show(*_head(run))
    shown = len(run.notes)
    with (
        interrupts(quiet=console.quiet) as stop,
        display(console, run.plan.epochs, run.setup.train.loss) as reporter,
    ):
        report = _run(run, reporter, stop)
    for note in report.notes[shown:]:
        console.note(f"note: {note}")
    if report.end == "interrupted":
        if report.files:
            console.note(f"stopped in epoch {report.epoch + 1}; {_resume_line()} goes on")
        else:
            console.note("stopped before the first batch; nothing was saved")
    return report


def _run(run: TrainingRun, reporter: Any, stop: Any) -> TrainReport:
    """The run; where the device's memory is too small, what batch may fit."""
    from lstm_cli.errors import DeviceMemoryError

    try:
        return run.run(reporter, stop)
    except DeviceMemoryError as error:
        size = run.setup.train.batch_size
        hint = f"--batch-size {size // 2} needs about half"
        if size < 2:
            hint = "shorter sequences, a smaller network, or --device cpu"
        raise DeviceMemoryError(
            error.needed,
            error.free,
            error.total,
            purpose=f"an array of a training step on {counted(size, 'sequence')}",
            hint=hint,
        ) from None


def _head(run: TrainingRun) -> list[Any]:
    task, engine = run.setup, run.model.network.engine
    held = f", {task.validation_count:,} to measure on" if task.validation_count else ""
    begin = f"weights {run.model.weights_name}"
    if run.epochs_before is not None:
        begin = f"goes on after epoch {run.epochs_before}"
    return [
        f"{run.model.config.name} · {task.data.description}",
        f"{task.training_count:,} to learn from{held} · loss {task.train.loss}, "
        f"{task.train.optimizer.type}, batches of {task.train.batch_size}",
        f"{begin} ({counted(run.model.network.parameter_count, 'parameter', grouped=True)})",
        machine_line(engine),
    ]


def _how(report: TrainReport) -> str:
    return f"{ENDS.get(report.end, report.end)} after epoch {report.epoch}"


def _resume_line() -> str:
    """The command that goes on with the run."""
    given = [str(word) for word in click.get_current_context().obj or ()]
    more = [] if "--resume" in given else ["--resume"]
    return " ".join(map(quote, ["lstm-cli", *given, *more]))


def _show(
    console: Console, run: TrainingRun, report: TrainReport, data_paths: Sequence[object]
) -> None:
    from lstm_cli.cli.tables import plain_table
    from lstm_cli.cli.train_display import shown_metrics

    row = report.metrics
    if report.best_epoch is not None:
        names = shown_metrics(row, run.setup.train.loss)
        table = plain_table(f"epoch {report.best_epoch}, the best", *names, numbers=names)
        for label, prefix in (("training", ""), ("validation", "val_")):
            figures = [row.get(prefix + name) for name in names]
            if any(value is not None for value in figures):
                table.add_row(label, *("" if v is None else f"{v:.4g}" for v in figures))
        best = f"{report.monitor} {report.best:.4g}"
        console.show("", f"best {best} in epoch {report.best_epoch} of {report.epoch}", "", table)
    if report.files:
        console.show("", f"files in {run.folder.path}: {', '.join(report.files)}")
    if "model.safetensors" in report.files:
        data = " ".join(quote(str(path)) for path in data_paths)
        console.show(f"lstm-cli run {quote(report.files['model.safetensors'])} {data}")


def _document(run: TrainingRun, report: TrainReport) -> dict[str, Any]:
    engine, task = run.model.network.engine, run.setup
    return {
        "model": {
            "name": run.model.config.name,
            "config": run.model.config.source,
            "parameters": run.model.network.parameter_count,
        },
        "data": {"sequences": task.training_count, "held_out": task.validation_count},
        "end": report.end,
        "epochs": report.epoch,
        "best_epoch": report.best_epoch,
        "monitor": report.monitor,
        "best": report.best,
        "metrics": report.metrics,
        "notes": report.notes,
        "device": engine.device,
        "engine": engine.name,
        "dtype": engine.dtype,
        "threads": engine.threads,
        "output": report.files,
    }
