"""Datasets whose axes stand reversed: MATLAB and others write an (N, T, D) array as (D, T, N)."""

from __future__ import annotations

from copy import copy
from itertools import zip_longest
from types import EllipsisType
from typing import Any

import numpy as np

from lstm_cli.data.guard import Guard
from lstm_cli.data.storage import Selection, Stored
from lstm_cli.data.types import Array, DataOptions
from lstm_cli.errors import DataError

HEADERS = {
    b"MATLAB 7.3 MAT-file": "MATLAB",
    b"HDF5-based Julia Data Format": "Julia",
    b"Julia data file (HDF5)": "Julia",
}
"""How the block in front of an HDF5 file begins, and what wrote it."""
MARKS = {"MATLAB_class": "MATLAB", "rhdf5-NA.OK": "R (rhdf5)"}
"""Attributes of datasets, and what wrote them."""


class ReversedAxesError(DataError):
    """The file says that its axes are reversed, and the config does not say what to do."""


class Turned(Stored):
    """A dataset read with its axes reversed.

    Parameters
    ----------
    dataset, path, where, guard
        As for `Stored`.
    """

    def __init__(self, dataset: Any, path: str, where: str, guard: Guard) -> None:
        super().__init__(dataset, path, where, guard)
        self._stored_rank = len(self.shape)
        self.shape = self.shape[::-1]
        self._axes: tuple[int | None, ...] = tuple(reversed(range(len(self.shape))))
        """The stored axis that each axis is read from; None: a new one of size 1."""

    def vector(self) -> Stored:
        """A vector of the values, if they are a row or a column."""
        if self.rank != 2 or 1 not in self.shape:
            return self
        axis = int(np.argmax(self.shape))
        return self._with((self.shape[axis],), (self._axes[axis],))

    def widened(self) -> Stored:
        """These values with a last axis of size 1, which MATLAB leaves out."""
        return self._with((*self.shape, 1), (*self._axes, None))

    def read(self, selection: Selection = ...) -> Array:
        """The values selected, in the stored dtype."""
        parts = self._parts(selection)
        chosen = dict(zip(self._axes, parts, strict=True))
        every = range(self._stored_rank)
        values = super().read(tuple(chosen.get(axis, slice(None)) for axis in every))
        kept = [axis for axis in self._axes if axis is not None]
        order = kept + [axis for axis in every if axis not in kept]
        return np.ascontiguousarray(values.transpose(order)).reshape(self._selected(selection))

    def read_into(self, selection: Selection, out: Array) -> int:
        """Read the values selected into an array of as many; the bytes read."""
        values = self.read(selection)
        with np.errstate(all="ignore"):  # what a smaller type cannot hold becomes infinite
            out[...] = values.reshape(out.shape)
        return values.nbytes

    def _parts(self, selection: Selection) -> list[slice]:
        """A slice for each axis."""
        given: tuple[slice, ...] = ()
        if not isinstance(selection, EllipsisType):
            given = (selection,) if isinstance(selection, slice) else selection
        every = zip_longest(given, self.shape)
        return [slice(None) if part is None else part for part, _ in every]

    def _with(self, shape: tuple[int, ...], axes: tuple[int | None, ...]) -> Turned:
        other = copy(self)
        other.shape, other._axes = shape, axes
        return other


def turning(options: DataOptions) -> str | None:
    """A hint for a file whose sizes fit in reversed order; None if they are reversed already."""
    if options.transpose:
        return None
    return "--set data.transpose=true, if MATLAB, Julia, Fortran or R wrote the file"


def need_known_axes(inputs: Stored, options: DataOptions) -> None:
    """Raise `ReversedAxesError` if the file says that axes are reversed, and no option does."""
    writer = None if options.transpose is not None or inputs.rank < 2 else inputs.writer(MARKS)
    if writer is None:
        return
    raise ReversedAxesError(
        f"{inputs.where} was written by {writer}, which stores the axes in reversed order",
        expected="data.transpose: true to reverse them, or false to take them as they stand",
        found=f"{inputs.shape} as stored, {inputs.shape[::-1]} reversed",
        where=options.places(inputs.where),
        hint="--set data.transpose=true",
    )
