"""Layout concatenated: inputs (sum T, D) one after the other, with lengths or offsets."""

from __future__ import annotations

from dataclasses import dataclass

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
from lstm_cli.data.layouts.dense import DenseTargets
from lstm_cli.data.lengths import (
    Lengths,
    agreed,
    check_lengths,
    check_total,
    lengths_of_offsets,
    lengths_table,
    only_lengths,
    pad,
    pad_into,
    starts_of,
)
from lstm_cli.data.types import Array, DataOptions, TargetInfo
from lstm_cli.errors import DataError, counted
from lstm_cli.hdf5.dataset import Stored
from lstm_cli.hdf5.group import Folder


@dataclass(frozen=True)
class Concatenated:
    """Frames of all sequences in one dataset; RETURNN's and CURRENNT's files too."""

    folder: Folder
    stored: Stored
    lengths: Lengths
    starts: Lengths
    targets: Targets | None
    found: dict[str, str]
    name: str = "concatenated"
    padded: bool = False

    @property
    def inputs(self) -> str:
        return self.stored.where

    @property
    def count(self) -> int:
        return len(self.lengths)

    @property
    def features(self) -> int:
        return self.stored.shape[1] if self.stored.rank == 2 else 1

    @property
    def steps(self) -> int:
        return int(self.lengths.max(initial=0))

    @property
    def width(self) -> int:
        return self.steps

    @property
    def dtype(self) -> str:
        return str(self.stored.dtype)

    def read(self, start: int, stop: int, out: Array) -> int:
        rows = slice(int(self.starts[start]), int(self.starts[stop]))
        if rows.stop - rows.start == out.shape[0] * out.shape[1]:
            return self.stored.read_into(rows, out)
        values = self.stored.read(rows)
        pad_into(values, self.lengths[start:stop], out)
        return values.nbytes

    def span(self, number: int, begin: int, end: int) -> Array:
        first = int(self.starts[number])
        rows = self.stored.read(slice(first + begin, first + end))
        return rows.reshape(-1, self.features)

    def place(self, number: int) -> str:
        return self.inputs

    def roles(self) -> dict[str, str]:
        return self.found

    def sequence_names(self) -> list[str] | None:
        return stored_names(self.folder, self.count)


def open_concatenated(
    folder: Folder, roles: Roles, inputs: Stored, options: DataOptions
) -> Concatenated:
    """The concatenated layout of a group.

    Raises
    ------
    DataError
        Nothing divides the rows, or lengths, offsets or targets do not fit.
    """
    if inputs.rank not in (1, 2) or inputs.vlen:
        raise DataError(
            f"{inputs.where} has shape {inputs.shape}",
            expected="inputs (sum T, D) in the concatenated layout",
            found=str(inputs.shape),
            where=options.places(inputs.where),
        )
    lengths, table = _lengths(folder, roles, inputs, options)
    starts = starts_of(lengths)
    found = find_targets(folder, options)
    targets = None if found is None else FlatTargets.of(found, lengths, starts, table, options)
    paths = roles.paths() | ({} if found is None else {found.stored.path: "targets"})
    return Concatenated(folder, inputs, lengths, starts, targets, paths)


def _lengths(
    folder: Folder, roles: Roles, inputs: Stored, options: DataOptions
) -> tuple[Lengths, Lengths | None]:
    """The lengths (N,), and the whole table where the file has one."""
    told: dict[str, Lengths] = {}
    table = None
    if roles.lengths is not None:
        name, places = roles.lengths.where, options.places(roles.lengths.where, inputs.where)
        table = lengths_table(roles.lengths, options)
        if folder.folder("targets") is None:  # RETURNN's have a column each
            only_lengths(roles.lengths, options)
        told[name] = table[:, 0]
        check_lengths(told[name], name, places, None)
        fits = sum(told[name].tolist()) == inputs.shape[-1]
        hint = turning(options) if fits else None
        check_total(told[name], inputs.shape[0], name, inputs.where, places, hint)
    if roles.offsets is not None:
        told[roles.offsets.where] = lengths_of_offsets(roles.offsets, inputs.shape[0], options)
    lengths = agreed(told, options)
    if lengths is None:
        raise DataError(
            f"nothing says where the sequences of {inputs.where} begin",
            expected="lengths (N,) or offsets (N + 1,) beside inputs (sum T, D)",
            where=options.places(folder.where),
            hint="in a config, data.lengths names them",
        )
    return lengths, table


@dataclass(frozen=True)
class FlatTargets:
    """One a sequence, (N, ...), or one a step, (sum T, ...), beside concatenated inputs.

    Attributes
    ----------
    each
        Rows that one target a sequence takes.
    """

    stored: Stored
    info: TargetInfo
    lengths: Lengths
    starts: Lengths
    each: int = 1

    @classmethod
    def of(
        cls,
        found: FoundTargets,
        lengths: Lengths,
        starts: Lengths,
        table: Lengths | None,
        options: DataOptions,
    ) -> FlatTargets | DenseTargets:
        """Raises DataError if there are neither N nor sum T of them."""
        N, rows = len(lengths), int(starts[-1])
        stored = found.fitting(N, rows)
        if found.column is not None and table is not None and found.column < table.shape[1]:
            own = table[:, found.column]
            return cls(stored, *_by_own_lengths(found, own, lengths, options))
        T = int(lengths.max(initial=0))
        if rows != N and stored.rank in (2, 3) and stored.shape[:2] == (N, T) and not stored.vlen:
            return DenseTargets.of(found, N, T, lengths, options)
        expected = f"one a sequence ({N}, ...) or one a step ({rows}, ...)"
        if stored.rank not in (1, 2) or stored.shape[0] not in (N, rows) or stored.vlen:
            raise misfit(stored, expected, options)
        by_step, by_sequence = stored.shape[0] == rows, stored.shape[0] == N
        per_step = None if by_step and by_sequence else by_step
        rest = stored.shape[1:]
        return cls(stored, target_info(stored, rest, per_step, rest), lengths, starts)

    def read(
        self, start: int, stop: int, steps: int, dtype: DTypeLike, per_step: bool | None
    ) -> tuple[Array, int]:
        info = self.info.placed(bool(per_step))
        if not info.per_step:
            values = self.stored.read(slice(start * self.each, stop * self.each))
            values = values.reshape(stop - start, *info.shape)
            return cast_targets(values, info, dtype), values.nbytes
        values = self.stored.read(slice(int(self.starts[start]), int(self.starts[stop])))
        rows = cast_targets(values, info, dtype)
        return pad(rows, self.lengths[start:stop], steps, rows.dtype), values.nbytes

    def span(self, number: int, begin: int, end: int, stride: int) -> Array:
        first = int(self.starts[number])
        return self.stored.read(slice(first + begin, first + end, stride))

    def place(self, number: int) -> str:
        return self.info.name


def _by_own_lengths(
    found: FoundTargets, own: Lengths, lengths: Lengths, options: DataOptions
) -> tuple[TargetInfo, Lengths, Lengths, int]:
    """Facts, lengths, starts and `each` of targets that a column of seqLengths counts."""
    stored = found.fitting(sum(own.tolist()))
    if stored.rank not in (1, 2) or stored.vlen or stored.shape[0] != sum(own.tolist()):
        expected = f"({sum(own.tolist())}, ...), as its column of lengths adds up"
        raise misfit(stored, expected, options)
    by_step = bool((own == lengths).all())
    alike = len(own) and own[0] > 0 and (own == own[0]).all()
    each = int(own[0]) if alike and (by_step or own[0] == 1) else 0
    if not by_step and not each:
        raise _own_lengths(found, own, lengths, options)
    rest = stored.shape[1:]
    shape = rest if each == 1 else (each, *rest)
    per_step = None if by_step and each else by_step
    info = target_info(stored, rest if per_step else shape, per_step, rest)
    return info, lengths, starts_of(lengths), max(each, 1)


def _own_lengths(
    found: FoundTargets, own: Lengths, lengths: Lengths, options: DataOptions
) -> DataError:
    n = int(np.argmax(own != lengths))
    return DataError(
        f"targets {found.stored.where} have lengths of their own: sequence {n} has "
        f"{counted(lengths[n], 'step')} and {counted(own[n], 'target')}",
        expected="one target a step, or one a sequence",
        found=f"{own[n]} for {counted(lengths[n], 'step')}",
        where=options.places(found.stored.where),
    )
