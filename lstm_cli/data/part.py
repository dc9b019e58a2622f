"""What one file adds to a dataset."""

from __future__ import annotations

from dataclasses import dataclass

from lstm_cli.data.files import Hdf5File
from lstm_cli.data.labels import class_labels
from lstm_cli.data.links import Folder
from lstm_cli.data.passed_over import passed_over
from lstm_cli.data.types import DataOptions, Layout
from lstm_cli.data.windows import Windows


@dataclass(frozen=True)
class Part:
    """What one file adds: its sequences, and the number of the first of them."""

    file: Hdf5File
    folder: Folder
    layout: Layout
    reason: str
    first: int
    options: DataOptions
    argument: str = ""

    @property
    def class_labels(self) -> list[str] | None:
        """Labels of the classes, if the file has them."""
        targets = self.layout.targets
        key = None if targets is None else targets.info.name.rpartition("/")[2]
        return class_labels(self.folder, self.file.root, key)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes on data in the file that are not read, and that windows leave out."""
        if isinstance(self.layout, Windows):
            base = passed_over(self.folder, self.layout.base, self.options)
            return base + self.layout.notes
        return passed_over(self.folder, self.layout, self.options)
