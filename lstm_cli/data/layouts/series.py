"""Layout series: one (T, D) series, a single sequence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lstm_cli.data.dataset_roles import DatasetRoles, find_targets
from lstm_cli.data.layouts.base import DatasetLayout
from lstm_cli.data.layouts.concatenated import FlatTargets
from lstm_cli.data.lengths import Lengths, starts_of
from lstm_cli.data.types import Array, DataOptions
from lstm_cli.errors import DataError
from lstm_cli.hdf5.dataset import Dataset
from lstm_cli.hdf5.group import Group


@dataclass(frozen=True)
class Series(DatasetLayout):
    """One series, the only sequence of the file."""

    name: ClassVar[str] = "series"
    lengths: Lengths | None = None

    @property
    def count(self) -> int:
        return 1

    @property
    def features(self) -> int:
        return self.dataset.shape[1] if self.dataset.rank == 2 else 1

    @property
    def steps(self) -> int:
        return self.dataset.shape[0]

    def read(self, start: int, stop: int, out: Array) -> int:
        out[:, self.steps :] = 0
        return self.dataset.read_into(slice(0, self.steps), out[:, : self.steps])

    def read_steps(self, number: int, begin: int, end: int) -> Array:
        return self.dataset.read(slice(begin, end)).reshape(-1, self.features)


def open_series(group: Group, roles: DatasetRoles, inputs: Dataset, options: DataOptions) -> Series:
    """The series layout of a group.

    Raises
    ------
    DataError
        The inputs have another shape, or the targets do not fit.
    """
    if inputs.rank not in (1, 2) or inputs.vlen:
        raise DataError(
            f"{inputs.where} has shape {inputs.shape}",
            expected="inputs (T, D) or (T,) in the series layout",
            found=str(inputs.shape),
            where=options.places(inputs.where),
        )
    lengths = np.array([inputs.shape[0]], np.int64)
    target_dataset = find_targets(group, options)
    targets = None
    if target_dataset is not None:
        targets = FlatTargets.of(target_dataset, lengths, starts_of(lengths), None, options)
    return Series(group, inputs, targets, roles.paths(target_dataset))
