"""Command ``lstm-cli train``, with its progress display: a live line, or a line per epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import click

from lstm_cli.cli.display import units
from lstm_cli.cli.display.console import Console
from lstm_cli.cli.interrupts import interrupts
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
from lstm_cli.cli.ranks import ending_together, rank_device, rank_threads
from lstm_cli.errors import LstmCliError, counted, quote

if TYPE_CHECKING:
    from lstm_cli.training.checkpoint import Progress
    from lstm_cli.training.interfaces import EpochRow, Exchange, Reporter
    from lstm_cli.workflows.train.training_folder import TrainingFolder
    from lstm_cli.workflows.train.training_run import TrainingRun, TrainReport

EPILOG = """\b
Examples:
  lstm-cli train configs/japanese-vowels.yaml data/japanese-vowels.h5:/train --output vowels
  lstm-cli train configs/sunspots.yaml data/sunspots.h5 --output sunspots --resume
  lstm-cli train config.yaml week1.h5 week2.h5 --output weeks --set train.validation=0.1"""

ENDS = {
    "epochs": "all epochs are done",
    "patience": "train.patience epochs brought no improvement",
}


@click.command(epilog=EPILOG)
@click.argument("config_path", metavar="CONFIG")
@click.argument("data_paths", metavar="DATA...", nargs=-1, required=True)
@click.option(
    "--output",
    type=FILE,
    required=True,
    help="Folder of the run; created with the first checkpoint.",
)
@click.option(
    "--resume",
    is_flag=True,
    help="Continue the run in the folder, if it holds one; results keep the same bits.",
)
@click.option(
    "--checkpoint-every",
    type=click.FloatRange(min=0),
    default=10.0,
    metavar="SECONDS",
    help="Seconds between checkpoints within an epoch; each epoch ends with one.  [default: 10]",
)
@click.option(
    "--batch-size",
    callback=lambda ctx, parameter, value: (
        None if value is None else parsed_batch_size(ctx, parameter, value)
    ),
    metavar="N|auto",
    help="Number of sequences per batch; auto, the default: train.batch_size.",
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
    allow_external: bool,
    options: ModelOptions,
) -> int:
    """Train a network on sequences with targets.

    Trains on DATA by the config's section `train`. --output gets the best weights, which can be
    run alone, the metrics of every epoch, and checkpoints. A run that is killed and resumed ends
    in the same bits. Ctrl-C finishes the step, saves and exits 130. Under mpiexec or srun,
    processes share the `train.micro_batches` of each batch.
    """
    from lstm_cli.data import open_data
    from lstm_cli.workflows.cluster import open_exchange
    from lstm_cli.workflows.shape_check import check_data
    from lstm_cli.workflows.train.trainer import train_section
    from lstm_cli.workflows.train.training_run import TrainingRun, open_validation

    exchange = open_exchange()
    with ending_together(exchange):
        console = Console(as_json=as_json, quiet=quiet)
        if batch_size is not None:
            overrides = (*options.overrides, f"train.batch_size={batch_size}")
            options = replace(options, overrides=overrides)
        options = replace(options, device=rank_device(options, exchange))
        check_order(config_path, data_paths)
        source = options.reading.open(config_path)
        config = options.config(source)
        train_section(config)
        reading = data_options(config, allow_external)
        with open_data(data_paths, reading) as data, open_validation(config, reading) as validation:
            check_data(config, data)
            with training_folder(output, resume, exchange) as folder:
                choice = options.choose_engine(console, rank_threads(exchange) or folder.threads)
                run = TrainingRun(
                    folder,
                    config,
                    data,
                    validation,
                    choice.engine,
                    weights=options.weights_of(source),
                    reading=options.reading.read_options,
                    checkpoint_every=checkpoint_every,
                    exchange=exchange,
                )
                report = _train(console, run)
                _show(console, run, report, (config.validation,) if validation else data_paths)
                console.document({**_document(run, report), "passed_over": choice.passed_over})
                return 130 if report.end == "interrupted" else 0


@contextmanager
def training_folder(path: Path, resume: bool, exchange: Exchange) -> Iterator[TrainingFolder]:
    """The run's folder. Rank 0 locks it, before the other ranks read it."""
    from lstm_cli.workflows.train.training_folder import TrainingFolder

    if exchange.rank:
        code = exchange.gather(None)[0]
        if code:
            raise click.exceptions.Exit(code)
    try:
        folder = TrainingFolder(path, resume=resume, writes=exchange.rank == 0)
    except LstmCliError as error:
        if exchange.rank == 0:
            exchange.gather(error.exit_code)
        raise
    with folder:
        if exchange.rank == 0:
            exchange.gather(0)
        yield folder


def _train(console: Console, run: TrainingRun) -> TrainReport:
    """Train unless the run in the folder has ended, and print how the run ended."""
    for note in run.notes:
        console.note(f"note: {note}")
    if run.ended is not None:
        report = run.report()
        console.note(f"the run in {run.folder.path} has ended {_end(report)}")
        return report
    console.show(*_head(run))
    printed = len(run.notes)
    with (
        interrupts(quiet=console.quiet, more=("SIGUSR1",)) as stop,
        display(console, run.plan.epochs, run.setup.train.loss) as reporter,
    ):
        report = _run(run, reporter, stop)
    for note in report.notes[printed:]:
        console.note(f"note: {note}")
    if report.end == "interrupted":
        if report.files:
            console.note(f"stopped in epoch {report.epoch + 1}; {_resume_command()} continues")
        else:
            console.note("stopped before the first batch; nothing was saved")
    return report


def _run(run: TrainingRun, reporter: Any, stop: Any) -> TrainReport:
    """Train; if the device's memory is too small, the error suggests a batch size."""
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
    setup, engine = run.setup, run.model.network.engine
    training = counted(setup.training_count, setup.data.noun, grouped=True)
    validation = f", {setup.validation_count:,} for validation" if setup.validation_count else ""
    start = f"weights {run.model.weights_name}"
    if run.epochs_before is not None:
        start = f"continues after epoch {run.epochs_before}"
    ranks = f", on {run.exchange.size} ranks" if run.exchange.size > 1 else ""
    return [
        f"{run.model.config.name} · {setup.data.description}",
        f"{training} for training{validation} · loss {setup.train.loss}, "
        f"{setup.train.optimizer.type}, batches of {setup.train.batch_size}",
        f"{start} ({counted(run.model.network.parameter_count, 'parameter', grouped=True)})",
        machine_line(engine) + ranks,
    ]


def _end(report: TrainReport) -> str:
    return f"after epoch {report.epoch}: {ENDS.get(report.end, report.end)}"


def _resume_command() -> str:
    words = [str(word) for word in click.get_current_context().obj or ()]
    more = [] if "--resume" in words else ["--resume"]
    return " ".join(map(quote, ["lstm-cli", *words, *more]))


def _show(
    console: Console, run: TrainingRun, report: TrainReport, data_paths: Sequence[object]
) -> None:
    from lstm_cli.cli.display.tables import plain_table

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
    engine, setup = run.model.network.engine, run.setup
    return {
        "model": {
            "name": run.model.config.name,
            "config": run.model.config.source,
            "parameters": run.model.network.parameter_count,
        },
        "data": {"sequences": setup.training_count, "held_out": setup.validation_count},
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
        "ranks": run.exchange.size,
        "output": report.files,
    }


BAR = 12
"""Width of the progress bar in columns."""
DROPPED = ("accuracy", "val", "best", "rate", "loss")
"""Parts that the live line leaves out in a narrow terminal, the first one first."""


class PlainReporter:
    """A line on stderr for each epoch."""

    def __init__(self, console: Console, epochs: int, loss: str) -> None:
        self.console, self.epochs, self.loss = console, epochs, loss

    def on_batch_end(self, progress: Progress, batches: int, loss: float | None) -> None:
        """Do nothing, since a line per batch would be too many."""

    def on_epoch_end(self, progress: Progress, row: EpochRow, improved: bool) -> None:
        """Print the epoch's line."""
        self.console.note(epoch_line(progress, row, self.epochs, self.loss))


class LiveReporter:
    """One live line: epoch, step, loss, learning rate, best metric, remaining time.

    Parameters
    ----------
    bar
        The line from `Console.live_bar`.
    epochs
        Number of epochs of the run.
    width
        Columns next to the bar; in a narrow terminal, parts in `DROPPED` are left out.
    """

    def __init__(self, bar: Any, epochs: int, width: int) -> None:
        self.bar, self.epochs, self.width = bar, epochs, width
        self._task: Any = None
        self._start, self._first = perf_counter(), 0.0
        self._last: EpochRow = {}

    def on_batch_end(self, progress: Progress, batches: int, loss: float | None) -> None:
        """Update the line."""
        head = f"epoch {progress.epoch + 1}/{self.epochs}"
        if self._task is None:
            self._task = self.bar.add_task("", total=batches, head=head, tail="")
            self._first = progress.epoch + (progress.batch - 1) / batches
        epochs = progress.epoch + progress.batch / batches
        parts = {
            "step": f"{progress.batch}/{batches}",
            "loss": "" if loss is None else f"loss {loss:.3g}",
            **_validation(self._last),
            "rate": f"rate {progress.rate:.3g}",
            "best": best(progress),
            "left": f"{duration(self._remaining(epochs))} left",
        }
        tail = fitting(parts, self.width - len(head))
        self.bar.update(self._task, completed=progress.batch, total=batches, head=head, tail=tail)

    def on_epoch_end(self, progress: Progress, row: EpochRow, improved: bool) -> None:
        """Store the metrics that the next line shows."""
        self._last = row

    def _remaining(self, epochs: float) -> float:
        """Seconds until the last epoch ends, from the time of the `epochs` so far."""
        spent = perf_counter() - self._start
        return spent / (epochs - self._first) * max(self.epochs - epochs, 0.0)


class SilentReporter:
    """A reporter that prints nothing."""

    def on_batch_end(self, progress: Progress, batches: int, loss: float | None) -> None:
        """Print nothing."""

    def on_epoch_end(self, progress: Progress, row: EpochRow, improved: bool) -> None:
        """Print nothing."""


@contextmanager
def display(console: Console, epochs: int, loss: str) -> Iterator[Reporter]:
    """The reporter for ``--quiet``, a terminal, or a file."""
    if console.quiet:
        yield SilentReporter()
    elif not console.is_interactive:
        yield PlainReporter(console, epochs, loss)
    else:
        with console.live_bar(BAR) as bar:
            yield LiveReporter(bar, epochs, console.width - BAR - 2)


def shown_metrics(row: EpochRow, loss: str) -> list[str]:
    """Names of the metrics in a row, without the metric that equals the loss."""
    from lstm_cli.training.losses import METRICS

    names = [name.removeprefix("val_") for name in row]
    return [name for name in METRICS if name in names and name != loss]


def epoch_line(progress: Progress, row: EpochRow, epochs: int, loss: str) -> str:
    """The line of an epoch: ``epoch 14/50  loss 0.214  …  rate 0.001  best 0.967 (12)  1.3 s``."""
    metrics = shown_metrics(row, loss)
    names = [name for name in row if name.removeprefix("val_") in metrics]
    figures = "".join(f"  {name} {row[name]:.4g}" for name in names)
    rate = f"  rate {row['rate']:.3g}"
    spent = units.seconds(row["seconds"])
    return f"epoch {row['epoch']}/{epochs}{figures}{rate}  {best(progress)}  {spent}"


def fitting(parts: Mapping[str, str], width: int) -> str:
    """The parts that fit into `width`, two spaces apart; parts in `DROPPED` are left out first."""
    fit = {name: text for name, text in parts.items() if text}
    for name in DROPPED:
        if sum(map(len, fit.values())) + 2 * len(fit) > width:
            fit.pop(name, None)
    return "  ".join(fit.values())


def duration(seconds: float) -> str:
    """A duration as text: ``2.1 s``, ``3:05``, ``1:02:03``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def best(progress: Progress) -> str:
    """The best metric and its epoch, ``best 0.967 (12)``; empty in the first epoch."""
    if progress.best is None:
        return ""
    return f"best {progress.best:.4g} ({progress.best_epoch})"


def _validation(row: EpochRow) -> dict[str, str]:
    """Parts of the live line from the last epoch: ``val 0.301``, ``accuracy 0.963``."""
    parts = {}
    if "val_loss" in row:
        parts["val"] = f"val {row['val_loss']:.3g}"
    accuracy = row.get("val_accuracy", row.get("accuracy"))
    if accuracy is not None:
        parts["accuracy"] = f"accuracy {accuracy:.3g}"
    return parts
