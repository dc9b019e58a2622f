"""Layout dense: inputs (N, T, D), with lengths (N,) or a mask (N, T) where sequences vary."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import DTypeLike

from lstm_cli.data.dataset_roles import (
    FoundTargets,
    Roles,
    find_targets,
    stored_names,
    turning,
)
from lstm_cli.data.layouts.base import Targets, cast_targets, misfit, target_info
from lstm_cli.data.lengths import (
    Lengths,
    agreed,
    check_count,
    check_lengths,
    clear_padding,
    misread_mask,
    only_lengths,
    padding_problem,
    rows_of_mask,
)
from lstm_cli.data.types import Array, DataOptions, TargetInfo
from lstm_cli.errors import DataError, Problem
from lstm_cli.hdf5.dataset import Stored, Turned
from lstm_cli.hdf5.group import Folder
from lstm_cli.hdf5.writing import Beside


@dataclass(frozen=True)
class Dense:
    """Sequences that stand padded in the file."""

    folder: Folder
    stored: Stored
    lengths: Lengths | None
    targets: Targets | None
    found: dict[str, str]
    name: str = "dense"
    padded: bool = True

    @property
    def inputs(self) -> str:
        return self.stored.where

    @property
    def count(self) -> int:
        return self.stored.shape[0]

    @property
    def features(self) -> int:
        return self.stored.shape[2]

    @property
    def steps(self) -> int:
        if self.lengths is None or self.stored.shape[1] == 0:
            return self.stored.shape[1]
        return int(self.lengths.max(initial=0))

    @property
    def width(self) -> int:
        return self.stored.shape[1]

    @property
    def dtype(self) -> str:
        return str(self.stored.dtype)

    def read(self, start: int, stop: int, out: Array) -> int:
        """The first T steps only: padding common to a batch is never read."""
        steps = min(out.shape[1], self.stored.shape[1])
        selection = slice(start, stop), slice(0, steps)
        nbytes = self.stored.read_into(selection, out[:, :steps])
        out[:, steps:] = 0
        if self.lengths is not None:
            clear_padding(out, self.lengths[start:stop])
        return nbytes

    def span(self, number: int, begin: int, end: int) -> Array:
        rows: Array = self.stored.read((slice(number, number + 1), slice(begin, end)))[0]
        return rows

    def place(self, number: int) -> str:
        return self.inputs

    def roles(self) -> dict[str, str]:
        return self.found

    def sequence_names(self) -> list[str] | None:
        return stored_names(self.folder, self.count)


def open_dense(folder: Folder, roles: Roles, inputs: Stored, options: DataOptions) -> Dense:
    """The dense layout of a group.

    Raises
    ------
    DataError
        Shapes, lengths, mask or targets do not fit together.
    """
    if inputs.rank == 2 and isinstance(inputs, Turned):
        inputs = inputs.widened()
    if inputs.rank != 3 or inputs.vlen:
        raise DataError(
            f"{inputs.where} has shape {inputs.shape}",
            expected="inputs (N, T, D) in the dense layout",
            found=str(inputs.shape),
            where=options.places(inputs.where),
            hint="--set data.layout=... names another layout",
        )
    N, T, _ = inputs.shape
    found = find_targets(folder, options)
    by_step = found.stored if found is not None and found.stored.shape[1:2] == (T,) else None
    lengths = _lengths(roles, Beside(folder.file, inputs, by_step), options)
    targets = None if found is None else DenseTargets.of(found, N, T, lengths, options)
    paths = roles.paths() | ({} if found is None else {found.stored.path: "targets"})
    return Dense(folder, inputs, lengths, targets, paths)


def padding_in_front(layout: Dense) -> Problem | None:
    """Padding that seems to stand in front, although lengths or a mask say that it does not."""
    if layout.lengths is None:
        return None
    parts = {role: layout.folder.dataset(path) for path, role in layout.found.items()}
    targets = parts.get("targets")
    by_step = targets if targets is not None and targets.shape[1:2] == (layout.width,) else None
    beside = Beside(layout.folder.file, layout.stored, by_step)
    return padding_problem(parts.get("mask"), parts.get("lengths"), beside, layout.lengths)


def _lengths(roles: Roles, beside: Beside, options: DataOptions) -> Lengths | None:
    N, T, D = beside.inputs.shape
    told: dict[str, Lengths] = {}
    if roles.lengths is not None:
        told[roles.lengths.where] = only_lengths(roles.lengths, options)
        beside = replace(beside, lengths=told[roles.lengths.where])
    if roles.offsets is not None and roles.lengths is None and roles.mask is None:
        raise DataError(
            f"{roles.offsets.where} does not go with inputs (N, T, D)",
            expected="lengths (N,) or mask (N, T) in the dense layout",
            found=f"offsets {roles.offsets.shape}",
            where=options.places(roles.offsets.where),
        )
    if roles.mask is not None:
        rows = rows_of_mask(roles.mask, N, T, beside.file, options)
        if not rows.usable and not (rows.in_order and beside.lengths is not None):
            raise misread_mask(rows, beside, options)
        told[roles.mask.where] = rows.sums
    for name, lengths in told.items():
        check_count(lengths, N, name, options, turning(options) if len(lengths) == D else None)
        check_lengths(lengths, name, options.places(name), T)
    return agreed(told, options)


@dataclass(frozen=True)
class DenseTargets:
    """(N,), (N, K), (N, T) or (N, T, K); what is one a step stands padded."""

    stored: Stored
    info: TargetInfo
    lengths: Lengths | None

    @classmethod
    def of(
        cls, found: FoundTargets, N: int, T: int, lengths: Lengths | None, options: DataOptions
    ) -> DenseTargets:
        """Raises DataError if the shape fits neither sequences nor steps."""
        stored = found.fitting(N)
        shape, rank = stored.shape, stored.rank
        expected = f"(N,), (N, K), (N, T) or (N, T, K) with N = {N}, T = {T}"
        if rank not in (1, 2, 3) or shape[0] != N or (rank == 3 and shape[1] != T) or stored.vlen:
            raise misfit(stored, expected, options)
        if rank == 3:
            return cls(stored, target_info(stored, shape[2:], True), lengths)
        # (N, T) may also be (N, K): what the network returns decides.
        per_step = None if rank == 2 and shape[1] == T else False
        return cls(stored, target_info(stored, shape[1:], per_step), lengths)

    def read(
        self, start: int, stop: int, steps: int, dtype: DTypeLike, per_step: bool | None
    ) -> tuple[Array, int]:
        info = self.info.placed(bool(per_step))
        if not info.per_step:
            values = self.stored.read(slice(start, stop))
            return cast_targets(values, info, dtype), values.nbytes
        values = self.stored.read((slice(start, stop), slice(0, steps)))
        y = cast_targets(values, info, dtype)
        if y.shape[1] < steps:
            y = np.zeros((len(y), steps, *y.shape[2:]), y.dtype)
        elif self.lengths is not None:
            y = clear_padding(y, self.lengths[start:stop])
        return y, values.nbytes

    def span(self, number: int, begin: int, end: int, stride: int) -> Array:
        rows: Array = self.stored.read((slice(number, number + 1), slice(begin, end, stride)))[0]
        return rows

    def place(self, number: int) -> str:
        return self.info.name
