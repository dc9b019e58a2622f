"""What all layouts share: reading sequences and their targets by number."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lstm_cli.data.types import Array, DataOptions, TargetInfo, cast, holding
from lstm_cli.errors import DataError
from lstm_cli.hdf5.dataset import Stored


class Layout(Protocol):
    """The sequences of one file, in whichever form it holds them."""

    @property
    def name(self) -> str:
        """One of `LAYOUTS`."""

    @property
    def inputs(self) -> str:
        """Where the inputs stand, such as ``words.h5:/test/inputs``."""

    @property
    def count(self) -> int:
        """Sequences N."""

    @property
    def features(self) -> int:
        """Features D."""

    @property
    def steps(self) -> int:
        """Steps of the longest sequence."""

    @property
    def width(self) -> int:
        """Steps T of the inputs as they stand in the file, padding included."""

    @property
    def lengths(self) -> NDArray[np.int64] | None:
        """(N,); None if every sequence has `steps`."""

    @property
    def dtype(self) -> str:
        """Of the inputs, as stored."""

    @property
    def targets(self) -> Targets | None:
        """What belongs to the sequences, if anything does."""

    @property
    def padded(self) -> bool:
        """Results are written as (N, T, F)."""

    def read(self, start: int, stop: int, out: Array) -> int:
        """Read the inputs of sequences start to stop; the bytes read.

        Parameters
        ----------
        out
            (n, T, D) to fill, padding with 0; T at least the longest one's steps.
        """

    def span(self, number: int, begin: int, end: int) -> Array:
        """Steps begin to end of a sequence, (steps, D), as stored."""

    def place(self, number: int) -> str:
        """Where the inputs of a sequence stand."""

    def roles(self) -> dict[str, str]:
        """Path in the file of every dataset used, and what it was taken for."""

    def sequence_names(self) -> list[str] | None:
        """Names the file gives its sequences."""


class Targets(Protocol):
    """Targets of one file."""

    @property
    def info(self) -> TargetInfo:
        """What they are."""

    def read(
        self, start: int, stop: int, steps: int, dtype: DTypeLike, per_step: bool | None
    ) -> tuple[Array, int]:
        """Targets of sequences start to stop, steps padded to `steps`, and the bytes read.

        `per_step` decides where the shape allows both.
        """

    def span(self, number: int, begin: int, end: int, stride: int) -> Array:
        """Targets of every `stride`-th step of a sequence, begin to end, as stored.

        Only where targets may be one a step.
        """

    def place(self, number: int) -> str:
        """Where the targets of a sequence stand."""


def target_info(
    stored: Stored,
    shape: tuple[int, ...],
    per_step: bool | None,
    step_shape: tuple[int, ...] = (),
) -> TargetInfo:
    """Facts about the targets in a dataset; `shape` and `step_shape` as in `TargetInfo`."""
    return TargetInfo.of(stored.where, str(stored.dtype), shape, per_step, step_shape)


def cast_targets(values: Array, info: TargetInfo, dtype: DTypeLike) -> Array:
    """As int64 if they may be class indices, else as `dtype` or what holds them as stored."""
    return cast(values, np.int64 if info.kind == "class" else holding(dtype, values.dtype))


def misfit(stored: Stored, expected: str, options: DataOptions) -> DataError:
    """The error for targets whose shape fits neither sequences nor steps."""
    return DataError(
        f"targets {stored.where} have shape {stored.shape}, which does not fit the inputs",
        expected=expected,
        found=str(stored.shape),
        where=options.places(stored.where),
        hint="in a config, data.targets names another dataset",
    )
