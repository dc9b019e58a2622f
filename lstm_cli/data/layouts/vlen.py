"""Layout vlen: inputs (N,) of variable-length rows, each of T x D values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike

from lstm_cli.data.dataset_roles import (
    DatasetRoles,
    TargetDataset,
    find_targets,
)
from lstm_cli.data.layouts.base import (
    DatasetLayout,
    UncutTargets,
    cast_targets,
    misfit_error,
    target_info,
)
from lstm_cli.data.layouts.concatenated import FlatTargets
from lstm_cli.data.lengths import (
    Lengths,
    check_count,
    check_lengths,
    pad,
    pad_into,
    single_lengths,
    starts_of,
)
from lstm_cli.data.types import Array, DataOptions, TargetInfo
from lstm_cli.errors import DataError, counted
from lstm_cli.hdf5.dataset import Dataset
from lstm_cli.hdf5.group import Group


class UnknownFeaturesError(DataError):
    """The rows can be read, but their number of features D is unknown.

    Attributes
    ----------
    sizes
        (N,) values in each row.
    """

    def __init__(self, inputs: Dataset, sizes: Lengths, options: DataOptions) -> None:
        self.sizes = sizes
        common = self.common_divisor
        low, high = (int(sizes.min()), int(sizes.max())) if len(sizes) else (0, 0)
        super().__init__(
            f"nothing says how many features a step of {inputs.where} has",
            expected="an attribute `features` on the dataset, a dataset of lengths, "
            "or model.input_size in a config",
            found=f"rows of {low} to {counted(high, 'value')}, all multiples of {common}",
            where=options.places(inputs.where),
            hint=f"in a config, model.input_size sets D: {common}, or one of its divisors",
        )

    @property
    def common_divisor(self) -> int:
        """Greatest common divisor of all row sizes: the number of features D, or a multiple."""
        return max(1, int(np.gcd.reduce(self.sizes)))


@dataclass(frozen=True)
class Vlen(DatasetLayout):
    """Rows of variable length. An attribute, the lengths or the config tell D."""

    features: int
    lengths: Lengths
    name: ClassVar[str] = "vlen"

    @property
    def count(self) -> int:
        return len(self.lengths)

    @property
    def steps(self) -> int:
        return int(self.lengths.max(initial=0))

    def read(self, start: int, stop: int, out: Array) -> int:
        lengths = self.lengths[start:stop] * self.features
        rows = _join_rows(self.dataset, self.dataset.read(slice(start, stop)), lengths)
        pad_into(rows.reshape(-1, self.features), self.lengths[start:stop], out)
        return rows.nbytes

    def read_steps(self, number: int, begin: int, end: int) -> Array:
        rows = self.dataset.read(slice(number, number + 1))
        lengths = self.lengths[number : number + 1] * self.features
        return _join_rows(self.dataset, rows, lengths).reshape(-1, self.features)[begin:end]


def open_vlen(group: Group, roles: DatasetRoles, inputs: Dataset, options: DataOptions) -> Vlen:
    """The vlen layout of a group.

    Raises
    ------
    UnknownFeaturesError
        The number of features is unknown.
    DataError
        The size of a row is not a multiple of the features.
    """
    if not inputs.vlen or inputs.rank != 1:
        raise DataError(
            f"{inputs.where} has shape {inputs.shape} and type {inputs.dtype}",
            expected="inputs (N,) of variable-length rows in the vlen layout",
            found=str(inputs.shape),
            where=options.places(inputs.where),
        )
    sizes = _row_sizes(inputs)
    file_lengths = None
    if roles.lengths is not None:
        file_lengths = single_lengths(roles.lengths, options)
        check_count(file_lengths, len(sizes), roles.lengths.where, options)
        check_lengths(file_lengths, roles.lengths.where, options.places(roles.lengths.where), None)
    D = _features(group, inputs, sizes, file_lengths, options)
    lengths = _lengths(inputs, sizes, D, options)
    if file_lengths is not None and (file_lengths != lengths).any():
        raise _lengths_error(inputs, file_lengths, lengths, options)
    target_dataset = find_targets(group, options)
    targets = None if target_dataset is None else _targets(target_dataset, lengths, options)
    return Vlen(group, inputs, targets, roles.paths(target_dataset), D, lengths)


def _row_sizes(dataset: Dataset) -> Lengths:
    """(N,) values in each row; DataError if the sum exceeds the values in the file."""
    lengths = dataset.value_lengths()
    if lengths is None:
        return dataset.read_sizes() // dataset.dtype.itemsize
    dataset.require_stored(int(lengths.sum()))
    return lengths // dataset.dtype.itemsize


def _features(
    group: Group,
    inputs: Dataset,
    sizes: Lengths,
    file_lengths: Lengths | None,
    options: DataOptions,
) -> int:
    """Number of features D, from an attribute, from the lengths, or from the config."""
    for name in ("features", "input_size"):
        for value in (inputs.attribute(name), group.attribute(name)):
            D = _positive_integer(value)
            if D is not None:
                return D
    if file_lengths is not None and (file_lengths > 0).any():
        n = int(np.argmax(file_lengths > 0))
        return max(1, int(sizes[n]) // int(file_lengths[n]))
    if options.features is not None:
        return options.features
    raise UnknownFeaturesError(inputs, sizes, options)


def _positive_integer(value: Any) -> int | None:
    if value is None or np.size(value) != 1:
        return None
    number = np.asarray(value).reshape(-1)[0]
    return int(number) if isinstance(number, np.integer) and number > 0 else None


def _lengths(inputs: Dataset, sizes: Lengths, D: int, options: DataOptions) -> Lengths:
    if (sizes % D).any():
        n = int(np.argmax(sizes % D != 0))
        raise DataError(
            f"row {n} of {inputs.where} has {counted(sizes[n], 'value')}, "
            f"which is not a multiple of {counted(D, 'feature')}",
            expected=f"T × {D} values",
            found=str(sizes[n]),
            where=options.places(inputs.where),
        )
    return sizes // D


def _lengths_error(
    inputs: Dataset, file_lengths: Lengths, lengths: Lengths, options: DataOptions
) -> DataError:
    n = int(np.argmax(file_lengths != lengths))
    return DataError(
        f"sequence {n} has length {file_lengths[n]}, "
        f"but its row holds {counted(lengths[n], 'step')}",
        expected=f"{counted(file_lengths[n], 'step')}",
        found=f"{lengths[n]} in {inputs.where}",
        where=options.places(inputs.where),
    )


def _join_rows(dataset: Dataset, rows: Array, sizes: Lengths) -> Array:
    """Variable-length rows as one flat array; DataError if their sizes have changed."""
    if [np.size(row) for row in rows] != sizes.tolist():
        raise DataError(
            f"{dataset.where} has changed since it was opened",
            expected=f"{int(sizes.sum())} values in {len(sizes)} rows",
            found=str(sum(np.size(row) for row in rows)),
            where=dataset.where,
            hint="the file may be damaged: copy or make it again",
        )
    return np.concatenate([np.empty(0, dataset.dtype), *(np.ravel(row) for row in rows)])


def _targets(target_dataset: TargetDataset, lengths: Lengths, options: DataOptions) -> UncutTargets:
    """Targets per sequence or per step, in variable-length rows or padded as (N, T, ...)."""
    dataset, N = target_dataset.for_counts(), len(lengths)
    if not dataset.vlen:
        return FlatTargets.of(target_dataset, lengths, starts_of(lengths), None, options)
    if dataset.rank != 1 or dataset.shape[0] != N:
        raise misfit_error(dataset, f"({N},) rows", options)
    sizes = _row_sizes(dataset)
    K = int(sizes.sum()) // max(1, int(lengths.sum()))
    by_step = K > 0 and bool((sizes == lengths * K).all())
    same_size = bool(len(sizes) and sizes[0] > 0 and (sizes == sizes[0]).all())
    if not by_step and not same_size:
        n = int(np.argmax(sizes != lengths * max(1, K)))
        raise DataError(
            f"sequence {n} has {counted(lengths[n], 'step')} and {sizes[n]} target values",
            expected="T × K values in each row, or as many in every row",
            found=f"{sizes[n]} in {dataset.where}",
            where=options.places(dataset.where),
        )
    step_shape = () if K == 1 else (K,)
    shape = (int(sizes[0]),) if same_size else ()
    per_step = None if by_step and same_size else by_step
    info = target_info(dataset, step_shape if per_step else shape, per_step, step_shape)
    return VlenTargets(dataset, info, lengths, sizes)


@dataclass(frozen=True)
class VlenTargets:
    """Targets per step or per sequence in variable-length rows."""

    dataset: Dataset
    info: TargetInfo
    lengths: Lengths
    sizes: Lengths

    def read(
        self, start: int, stop: int, steps: int, dtype: DTypeLike, per_step: bool | None
    ) -> tuple[Array, int]:
        info = self.info.resolve(bool(per_step))
        rows = _join_rows(
            self.dataset, self.dataset.read(slice(start, stop)), self.sizes[start:stop]
        )
        values = cast_targets(rows, info, dtype).reshape(-1, *info.shape)
        if not info.per_step:
            return values, rows.nbytes
        return pad(values, self.lengths[start:stop], steps, values.dtype), rows.nbytes

    def read_steps(self, number: int, begin: int, end: int, stride: int) -> Array:
        sizes = self.sizes[number : number + 1]
        rows = _join_rows(self.dataset, self.dataset.read(slice(number, number + 1)), sizes)
        return rows.reshape(-1, *self.info.resolve(True).shape)[begin:end:stride]

    def place(self, number: int) -> str:
        return self.info.name
