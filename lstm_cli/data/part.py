"""What one file adds to a dataset."""

from __future__ import annotations

from dataclasses import dataclass

from lstm_cli.data.files import Hdf5File
from lstm_cli.data.labels import class_labels
from lstm_cli.data.links import Folder
from lstm_cli.data.origin import netcdf_notes
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
        own = self.layout.notes if isinstance(self.layout, Windows) else ()
        base = self.layout.base if isinstance(self.layout, Windows) else self.layout
        path = next((path for path, role in base.roles().items() if role == "inputs"), "")
        inputs = self.folder.dataset(path)
        told = () if inputs is None else netcdf_notes(self.folder, inputs)
        return (*passed_over(self.folder, base, self.options), *told, *own)
