"""Layout concatenated: inputs (sum T, D) one after the other, with lengths or offsets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import DTypeLike

from lstm_cli.data.dataset_roles import (
    DatasetRoles,
    TargetDataset,
    find_targets,
    transpose_hint,
)
from lstm_cli.data.layouts.base import (
    DatasetLayout,
    cast_targets,
    misfit_error,
    target_info,
)
from lstm_cli.data.layouts.dense import DenseTargets
from lstm_cli.data.lengths import (
    Lengths,
    check_lengths,
    check_total,
    lengths_of_offsets,
    lengths_table,
    matching_lengths,
    pad,
    pad_into,
    single_lengths,
    starts_of,
)
from lstm_cli.data.types import Array, DataOptions, TargetInfo
from lstm_cli.errors import DataError, counted
from lstm_cli.hdf5.dataset import Dataset
from lstm_cli.hdf5.group import Group


@dataclass(frozen=True)
class Concatenated(DatasetLayout):
    """Frames of all sequences in one dataset, as also in files of RETURNN and CURRENNT.

    Attributes
    ----------
    lengths
        (N,) valid steps.
    starts
        (N + 1,) row at which each sequence starts, and the end of the last.
    """

    lengths: Lengths
    starts: Lengths
    name: ClassVar[str] = "concatenated"

    @property
    def count(self) -> int:
        return len(self.lengths)

    @property
    def features(self) -> int:
        return self.dataset.shape[1] if self.dataset.rank == 2 else 1

    @property
    def steps(self) -> int:
        return int(self.lengths.max(initial=0))

    def read(self, start: int, stop: int, out: Array) -> int:
        rows = slice(int(self.starts[start]), int(self.starts[stop]))
        if rows.stop - rows.start == out.shape[0] * out.shape[1]:
            return self.dataset.read_into(rows, out)
        values = self.dataset.read(rows)
        pad_into(values, self.lengths[start:stop], out)
        return values.nbytes

    def read_steps(self, number: int, begin: int, end: int) -> Array:
        first = int(self.starts[number])
        rows = self.dataset.read(slice(first + begin, first + end))
        return rows.reshape(-1, self.features)


def open_concatenated(
    group: Group, roles: DatasetRoles, inputs: Dataset, options: DataOptions
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
    lengths, table = _lengths(group, roles, inputs, options)
    starts = starts_of(lengths)
    target_dataset = find_targets(group, options)
    targets = (
        None
        if target_dataset is None
        else FlatTargets.of(target_dataset, lengths, starts, table, options)
    )
    return Concatenated(group, inputs, targets, roles.paths(target_dataset), lengths, starts)


def _lengths(
    group: Group, roles: DatasetRoles, inputs: Dataset, options: DataOptions
) -> tuple[Lengths, Lengths | None]:
    """The lengths (N,), and the whole table if the file has one."""
    lengths_by_name: dict[str, Lengths] = {}
    table = None
    if roles.lengths is not None:
        name, places = roles.lengths.where, options.places(roles.lengths.where, inputs.where)
        table = lengths_table(roles.lengths, options)
        if group.group("targets") is None:  # RETURNN has one column for each dataset
            single_lengths(roles.lengths, options)
        lengths_by_name[name] = table[:, 0]
        check_lengths(lengths_by_name[name], name, places, None)
        fits = sum(lengths_by_name[name].tolist()) == inputs.shape[-1]
        hint = transpose_hint(options) if fits else None
        check_total(lengths_by_name[name], inputs.shape[0], name, inputs.where, places, hint)
    if roles.offsets is not None:
        lengths_by_name[roles.offsets.where] = lengths_of_offsets(
            roles.offsets, inputs.shape[0], options
        )
    lengths = matching_lengths(lengths_by_name, options)
    if lengths is None:
        raise DataError(
            f"nothing says where the sequences of {inputs.where} begin",
            expected="lengths (N,) or offsets (N + 1,) for inputs (sum T, D)",
            where=options.places(group.where),
            hint="in a config, data.lengths names the lengths",
        )
    return lengths, table


@dataclass(frozen=True)
class FlatTargets:
    """Targets of concatenated inputs: one per sequence (N, ...) or one per step (sum T, ...).

    Attributes
    ----------
    rows_per_target
        Rows of each target per sequence.
    """

    dataset: Dataset
    info: TargetInfo
    lengths: Lengths
    starts: Lengths
    rows_per_target: int = 1

    @classmethod
    def of(
        cls,
        target_dataset: TargetDataset,
        lengths: Lengths,
        starts: Lengths,
        table: Lengths | None,
        options: DataOptions,
    ) -> FlatTargets | DenseTargets:
        """Targets in a dataset; DataError if there are neither N nor sum T rows."""
        N, rows = len(lengths), int(starts[-1])
        dataset = target_dataset.for_counts(N, rows)
        if (
            target_dataset.column is not None
            and table is not None
            and target_dataset.column < table.shape[1]
        ):
            target_lengths = table[:, target_dataset.column]
            info, rows_per_target = _counted_info(target_dataset, target_lengths, lengths, options)
            return cls(dataset, info, lengths, starts, rows_per_target)
        T = int(lengths.max(initial=0))
        if (
            rows != N
            and dataset.rank in (2, 3)
            and dataset.shape[:2] == (N, T)
            and not dataset.vlen
        ):
            return DenseTargets.of(target_dataset, N, T, lengths, options)
        expected = f"one per sequence ({N}, ...) or one per step ({rows}, ...)"
        if dataset.rank not in (1, 2) or dataset.shape[0] not in (N, rows) or dataset.vlen:
            raise misfit_error(dataset, expected, options)
        by_step, by_sequence = dataset.shape[0] == rows, dataset.shape[0] == N
        per_step = None if by_step and by_sequence else by_step
        rest = dataset.shape[1:]
        return cls(dataset, target_info(dataset, rest, per_step, rest), lengths, starts)

    def read(
        self, start: int, stop: int, steps: int, dtype: DTypeLike, per_step: bool | None
    ) -> tuple[Array, int]:
        info = self.info.resolve(bool(per_step))
        if not info.per_step:
            values = self.dataset.read(
                slice(start * self.rows_per_target, stop * self.rows_per_target)
            )
            values = values.reshape(stop - start, *info.shape)
            return cast_targets(values, info, dtype), values.nbytes
        values = self.dataset.read(slice(int(self.starts[start]), int(self.starts[stop])))
        rows = cast_targets(values, info, dtype)
        return pad(rows, self.lengths[start:stop], steps, rows.dtype), values.nbytes

    def read_steps(self, number: int, begin: int, end: int, stride: int) -> Array:
        first = int(self.starts[number])
        return self.dataset.read(slice(first + begin, first + end, stride))

    def place(self, number: int) -> str:
        return self.info.name


def _counted_info(
    target_dataset: TargetDataset, target_lengths: Lengths, lengths: Lengths, options: DataOptions
) -> tuple[TargetInfo, int]:
    """Facts and rows per target of targets that a column of ``seqLengths`` counts."""
    dataset = target_dataset.for_counts(sum(target_lengths.tolist()))
    if (
        dataset.rank not in (1, 2)
        or dataset.vlen
        or dataset.shape[0] != sum(target_lengths.tolist())
    ):
        expected = f"({sum(target_lengths.tolist())}, ...), the sum of the column of lengths"
        raise misfit_error(dataset, expected, options)
    by_step = bool((target_lengths == lengths).all())
    alike = (
        len(target_lengths)
        and target_lengths[0] > 0
        and (target_lengths == target_lengths[0]).all()
    )
    rows_per_target = int(target_lengths[0]) if alike and (by_step or target_lengths[0] == 1) else 0
    if not by_step and not rows_per_target:
        raise _target_lengths_error(target_dataset, target_lengths, lengths, options)
    rest = dataset.shape[1:]
    shape = rest if rows_per_target == 1 else (rows_per_target, *rest)
    per_step = None if by_step and rows_per_target else by_step
    info = target_info(dataset, rest if per_step else shape, per_step, rest)
    return info, max(rows_per_target, 1)


def _target_lengths_error(
    target_dataset: TargetDataset, target_lengths: Lengths, lengths: Lengths, options: DataOptions
) -> DataError:
    n = int(np.argmax(target_lengths != lengths))
    return DataError(
        f"targets {target_dataset.dataset.where} have lengths of their own: sequence {n} has "
        f"{counted(lengths[n], 'step')} and {counted(target_lengths[n], 'target')}",
        expected="one target per step, or one per sequence",
        found=f"{target_lengths[n]} for {counted(lengths[n], 'step')}",
        where=options.places(target_dataset.dataset.where),
    )
