"""Interface of all layouts: sequences and their targets, read by number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import DTypeLike

from lstm_cli.data.dataset_roles import read_sequence_names
from lstm_cli.data.lengths import Lengths
from lstm_cli.data.types import Array, DataOptions, TargetInfo, cast_to, common_dtype
from lstm_cli.errors import DataError
from lstm_cli.hdf5.dataset import Dataset
from lstm_cli.hdf5.group import Group


class SequenceLayout(Protocol):
    """The sequences of one file, in any layout.

    Attributes
    ----------
    name
        One of `LAYOUTS`.
    inputs
        File and path of the inputs, such as ``words.h5:/test/inputs``.
    count
        Number of sequences N.
    features
        Number of features D.
    steps
        Steps of the longest sequence.
    width
        Steps T of the inputs in the file, padding included.
    lengths
        (N,) valid steps; None if every sequence has `steps`.
    dtype
        Type of the inputs in the file.
    targets
        Targets of the sequences, or None.
    padded
        Results are written as (N, T, F).
    """

    @property
    def name(self) -> str: ...
    @property
    def inputs(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def features(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def width(self) -> int: ...
    @property
    def lengths(self) -> Lengths | None: ...
    @property
    def dtype(self) -> str: ...
    @property
    def targets(self) -> LayoutTargets | None: ...
    @property
    def padded(self) -> bool: ...

    def read(self, start: int, stop: int, out: Array) -> int:
        """Read the inputs of sequences start to stop, and return the bytes read.

        Parameters
        ----------
        out
            (n, T, D) array to fill; padding is 0. T is at least the steps of the longest
            sequence.
        """

    def place(self, number: int) -> str:
        """File and path of the inputs of a sequence."""

    def roles(self) -> dict[str, str]:
        """Role of every dataset in use, by its path in the file."""

    def sequence_names(self) -> list[str] | None:
        """Names of the sequences, or None."""


class LayoutTargets(Protocol):
    """Targets of the sequences of one file."""

    @property
    def info(self) -> TargetInfo:
        """Kind, shape and type."""

    def read(
        self, start: int, stop: int, steps: int, dtype: DTypeLike, per_step: bool | None
    ) -> tuple[Array, int]:
        """Targets of sequences start to stop, and the bytes read.

        Targets per step are padded to `steps`. `per_step` decides if the shape allows both.
        """

    def place(self, number: int) -> str:
        """File and path of the targets of a sequence."""


class UncutTargets(LayoutTargets, Protocol):
    """Targets of sequences from which windows can be cut."""

    def read_steps(self, number: int, begin: int, end: int, stride: int) -> Array:
        """Targets of every `stride`-th step of a sequence, begin to end, in the file's type.

        Only for targets that may be one per step.
        """


class UncutLayout(SequenceLayout, Protocol):
    """Sequences from which windows can be cut: any layout but windows."""

    @property
    def targets(self) -> UncutTargets | None: ...

    def read_steps(self, number: int, begin: int, end: int) -> Array:
        """Steps begin to end of a sequence, (steps, D), in the type of the file."""


@dataclass(frozen=True)
class DatasetLayout(ABC):
    """Base of the layouts with all inputs in one dataset.

    Attributes
    ----------
    group
        The group that holds the sequences.
    dataset
        The inputs.
    targets
        Targets of the sequences, or None.
    path_roles
        Role of every dataset in use, by its path in the file.
    """

    group: Group
    dataset: Dataset
    targets: UncutTargets | None
    path_roles: dict[str, str]
    name: ClassVar[str]
    padded: ClassVar[bool] = False

    @property
    @abstractmethod
    def count(self) -> int:
        """Number of sequences N."""

    @property
    @abstractmethod
    def steps(self) -> int:
        """Steps of the longest sequence."""

    @property
    def width(self) -> int:
        """Steps T of the inputs in the file, padding included."""
        return self.steps

    @property
    def inputs(self) -> str:
        """File and path of the inputs."""
        return self.dataset.where

    @property
    def dtype(self) -> str:
        """Type of the inputs in the file."""
        return str(self.dataset.dtype)

    def place(self, number: int) -> str:
        """See `SequenceLayout`."""
        return self.inputs

    def roles(self) -> dict[str, str]:
        """See `SequenceLayout`."""
        return self.path_roles

    def sequence_names(self) -> list[str] | None:
        """See `SequenceLayout`."""
        return read_sequence_names(self.group, self.count)


def target_info(
    dataset: Dataset,
    shape: tuple[int, ...],
    per_step: bool | None,
    step_shape: tuple[int, ...] = (),
) -> TargetInfo:
    """Facts about the targets in a dataset. See `TargetInfo` for the shapes."""
    return TargetInfo.of(dataset.where, str(dataset.dtype), shape, per_step, step_shape)


def cast_targets(values: Array, info: TargetInfo, dtype: DTypeLike) -> Array:
    """Targets as int64 if they may be class indices, else as `dtype` or a wider type."""
    return cast_to(values, np.int64 if info.kind == "class" else common_dtype(dtype, values.dtype))


def misfit_error(dataset: Dataset, expected: str, options: DataOptions) -> DataError:
    """The error for targets whose shape fits neither sequences nor steps."""
    return DataError(
        f"targets {dataset.where} have shape {dataset.shape}, which does not fit the inputs",
        expected=expected,
        found=str(dataset.shape),
        where=options.places(dataset.where),
        hint="in a config, data.targets names another dataset",
    )
