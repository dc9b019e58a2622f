"""Pictures of a run: learning curves with Matplotlib, events for TensorBoard, if installed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from typing import Any

from lstm_cli.api.run_folder import RunFolder
from lstm_cli.output_files import write_atomically
from lstm_cli.training.surroundings import Row

NO_CURVES = "curves.png is drawn with the plot extra: pip install 'lstm-cli[plot]'"
NOT_CURVES = ("epoch", "updates", "rate", "seconds")


class Observers:
    """Those who look at every epoch; a context manager, at whose end the curves are drawn.

    Both pictures follow from the rows of metrics alone. None of them can stop a run: what they
    cannot do becomes a note.

    Parameters
    ----------
    folder
        Of the run.
    rows
        Epochs that have ended already; grows with those that end.
    """

    def __init__(self, folder: RunFolder, rows: list[Row]) -> None:
        self.folder, self.rows = folder, rows
        self.notes: list[str] = []
        self._writer: Any = None
        self._watched = find_spec("tensorboard") is not None

    def __enter__(self) -> Observers:
        for row in self.rows:
            self._write(row)
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            with suppress(Exception):
                self._writer.close()
        if find_spec("matplotlib") is None:
            self.notes.append(
                "curves.png is drawn with the plot extra: pip install 'lstm-cli[plot]'"
            )
        elif self.rows:
            try:
                write_atomically(self.folder.curves, draw_curves(self.rows), "the curves")
            except Exception as error:
                self.notes.append(f"no learning curves: {error}")

    def epoch_ended(self, row: Row) -> None:
        """Take in an epoch."""
        self.rows.append(row)
        self._write(row)

    def _write(self, row: Row) -> None:
        if not self._watched:
            return
        try:
            if self._writer is None:
                self._writer = _events(self.folder)
            for name, value in row.items():
                if name not in ("epoch", "seconds"):
                    self._writer.add_scalar(name, value, int(row["epoch"]))
            self._writer.flush()
        except Exception as error:  # whatever a package does: a picture stops no run
            self.notes.append(f"TensorBoard events end before epoch {row['epoch']}: {error}")
            self._watched = False


def _events(folder: RunFolder) -> Any:
    """A fresh file of events: those of a run that is resumed are written again from its rows."""
    folder.events.mkdir(exist_ok=True)
    for path in folder.events.glob("events.out.tfevents.*"):
        path.unlink()
    return import_module("tensorboard.summary").Writer(str(folder.events))


def draw_curves(rows: Sequence[Row]) -> bytes:
    """The metrics over the epochs, a panel each, training and validation together, as PNG."""
    figure_type = import_module("matplotlib.figure").Figure
    found = dict.fromkeys(name for row in rows for name in row if name not in NOT_CURVES)
    metrics = list(dict.fromkeys(name.removeprefix("val_") for name in found))
    figure = figure_type(figsize=(4.2 * len(metrics), 3.2), layout="constrained")
    for axes, metric in zip(
        figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True
    ):
        for name, label in ((metric, "training"), (f"val_{metric}", "validation")):
            points = [(row["epoch"], row[name]) for row in rows if name in row]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, marker=".", markersize=3)
        axes.set_title(metric)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=120)
    return picture.getvalue()
