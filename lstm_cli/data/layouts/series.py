"""Layout series: one (T, D) series, a single sequence."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lstm_cli.data.dataset_roles import Roles, find_targets, stored_names
from lstm_cli.data.layouts.base import Targets
from lstm_cli.data.layouts.concatenated import FlatTargets
from lstm_cli.data.lengths import Lengths, starts_of
from lstm_cli.data.types import Array, DataOptions
from lstm_cli.errors import DataError
from lstm_cli.hdf5.dataset import Stored
from lstm_cli.hdf5.group import Folder


@dataclass(frozen=True)
class Series:
    """A series, the only sequence of its file."""

    folder: Folder
    stored: Stored
    targets: Targets | None
    found: dict[str, str]
    name: str = "series"
    padded: bool = False
    count: int = 1
    lengths: Lengths | None = None

    @property
    def inputs(self) -> str:
        return self.stored.where

    @property
    def features(self) -> int:
        return self.stored.shape[1] if self.stored.rank == 2 else 1

    @property
    def steps(self) -> int:
        return self.stored.shape[0]

    @property
    def width(self) -> int:
        return self.steps

    @property
    def dtype(self) -> str:
        return str(self.stored.dtype)

    def read(self, start: int, stop: int, out: Array) -> int:
        out[:, self.steps :] = 0
        return self.stored.read_into(slice(0, self.steps), out[:, : self.steps])

    def span(self, number: int, begin: int, end: int) -> Array:
        return self.stored.read(slice(begin, end)).reshape(-1, self.features)

    def place(self, number: int) -> str:
        return self.inputs

    def roles(self) -> dict[str, str]:
        return self.found

    def sequence_names(self) -> list[str] | None:
        return stored_names(self.folder, self.count)


def open_series(folder: Folder, roles: Roles, inputs: Stored, options: DataOptions) -> Series:
    """The series layout of a group.

    Raises
    ------
    DataError
        Another shape, or targets that do not fit.
    """
    if inputs.rank not in (1, 2) or inputs.vlen:
        raise DataError(
            f"{inputs.where} has shape {inputs.shape}",
            expected="inputs (T, D) or (T,) in the series layout",
            found=str(inputs.shape),
            where=options.places(inputs.where),
        )
    lengths = np.array([inputs.shape[0]], np.int64)
    found = find_targets(folder, options)
    targets = None
    if found is not None:
        targets = FlatTargets.of(found, lengths, starts_of(lengths), None, options)
    paths = roles.paths() | ({} if found is None else {found.stored.path: "targets"})
    return Series(folder, inputs, targets, paths)
