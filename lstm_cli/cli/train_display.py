"""What a training run shows while it runs: one live line, or a plain one for each epoch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from time import perf_counter
from typing import TYPE_CHECKING, Any

from lstm_cli.cli import units
from lstm_cli.cli.console import Console

if TYPE_CHECKING:
    from lstm_cli.training.checkpoint import Progress
    from lstm_cli.training.interfaces import EpochRow, Reporter

METRICS = ("loss", "accuracy", "auc", "mse", "mae")
BAR = 12
"""Columns of the bar."""
DROPPED = ("accuracy", "val", "best", "rate", "loss")
"""What the moving line leaves out in a narrow terminal, the first one first."""


class PlainReporter:
    """A line on stderr for each epoch."""

    def __init__(self, console: Console, epochs: int, loss: str) -> None:
        self.console, self.epochs, self.loss = console, epochs, loss

    def on_batch_end(self, progress: Progress, batches: int, loss: float | None) -> None:
        """Nothing: a line a batch would be too many."""

    def on_epoch_end(self, progress: Progress, row: EpochRow, improved: bool) -> None:
        """The epoch's line."""
        self.console.note(epoch_line(progress, row, self.epochs, self.loss))


class LiveReporter:
    """One line that moves: epoch, step, loss, rate, what is best, time left.

    Parameters
    ----------
    bar
        The line, as `Console.live_bar` gives it.
    epochs
        Of the run.
    width
        Columns beside the bar; what matters least is left out where there are too few.
    """

    def __init__(self, bar: Any, epochs: int, width: int) -> None:
        self.bar, self.epochs, self.width = bar, epochs, width
        self.task: Any = None
        self._begun, self._first = perf_counter(), 0.0
        self._last: EpochRow = {}

    def on_batch_end(self, progress: Progress, batches: int, loss: float | None) -> None:
        """Move the line."""
        head = f"epoch {progress.epoch + 1}/{self.epochs}"
        if self.task is None:
            self.task = self.bar.add_task("", total=batches, head=head, tail="")
            self._first = progress.epoch + (progress.batch - 1) / batches
        done = progress.epoch + progress.batch / batches
        parts = {
            "step": f"{progress.batch}/{batches}",
            "loss": "" if loss is None else f"loss {loss:.3g}",
            **_measured(self._last),
            "rate": f"rate {progress.rate:.3g}",
            "best": best(progress),
            "left": f"{duration(self._left(done))} left",
        }
        tail = fitting(parts, self.width - len(head))
        self.bar.update(self.task, completed=progress.batch, total=batches, head=head, tail=tail)

    def on_epoch_end(self, progress: Progress, row: EpochRow, improved: bool) -> None:
        """Remember what the next line shows."""
        self._last = row

    def _left(self, done: float) -> float:
        """Seconds until the last epoch ends, at the pace so far; `done` counts epochs."""
        spent = perf_counter() - self._begun
        return spent / (done - self._first) * max(self.epochs - done, 0.0)


class SilentReporter:
    """Nobody is told."""

    def on_batch_end(self, progress: Progress, batches: int, loss: float | None) -> None:
        """Nothing."""

    def on_epoch_end(self, progress: Progress, row: EpochRow, improved: bool) -> None:
        """Nothing."""


@contextmanager
def display(console: Console, epochs: int, loss: str) -> Iterator[Reporter]:
    """The reporter that suits where stderr goes."""
    if console.quiet:
        yield SilentReporter()
    elif not console.watched:
        yield PlainReporter(console, epochs, loss)
    else:
        with console.live_bar(BAR) as bar:
            yield LiveReporter(bar, epochs, console.width - BAR - 2)


def shown_metrics(row: EpochRow, loss: str) -> list[str]:
    """Names of metrics in a row, each figure once: the loss stands for the metric that it is."""
    names = [name.removeprefix("val_") for name in row]
    return [name for name in METRICS if name in names and name != loss]


def epoch_line(progress: Progress, row: EpochRow, epochs: int, loss: str) -> str:
    """``epoch 14/50  loss 0.214  …  rate 0.001  best 0.967 (12)  1.3 s``."""
    every = shown_metrics(row, loss)
    names = [name for name in row if name.removeprefix("val_") in every]
    figures = "".join(f"  {name} {row[name]:.4g}" for name in names)
    rate = f"  rate {row['rate']:.3g}"
    spent = units.seconds(row["seconds"])
    return f"epoch {row['epoch']}/{epochs}{figures}{rate}  {best(progress)}  {spent}"


def fitting(parts: Mapping[str, str], width: int) -> str:
    """The parts in their order, two spaces apart, as many as fit; `DROPPED` go first."""
    left = {name: text for name, text in parts.items() if text}
    for name in DROPPED:
        if sum(map(len, left.values())) + 2 * len(left) > width:
            left.pop(name, None)
    return "  ".join(left.values())


def duration(seconds: float) -> str:
    """``2.1 s``, ``3:05``, ``1:02:03``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def best(progress: Progress) -> str:
    """``best 0.967 (12)``; nothing before the first epoch has ended."""
    if progress.best is None:
        return ""
    return f"best {progress.best:.4g} ({progress.best_epoch})"


def _measured(row: EpochRow) -> dict[str, str]:
    """What the last epoch gave: ``val 0.301``, ``accuracy 0.963``."""
    found = {}
    if "val_loss" in row:
        found["val"] = f"val {row['val_loss']:.3g}"
    accuracy = row.get("val_accuracy", row.get("accuracy"))
    if accuracy is not None:
        found["accuracy"] = f"accuracy {accuracy:.3g}"
    return found
