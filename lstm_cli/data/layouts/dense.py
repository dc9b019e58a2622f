"""Layout dense: inputs (N, T, D), with lengths (N,) or a mask (N, T) if the lengths vary."""

from __future__ import annotations

from dataclasses import dataclass, replace
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
from lstm_cli.data.lengths import (
    Lengths,
    check_count,
    check_lengths,
    clear_padding,
    mask_error,
    matching_lengths,
    padding_problem,
    read_mask,
    single_lengths,
)
from lstm_cli.data.types import Array, DataOptions, TargetInfo
from lstm_cli.errors import DataError, Problem
from lstm_cli.hdf5.dataset import Dataset, ReversedDataset
from lstm_cli.hdf5.group import Group
from lstm_cli.hdf5.writer import PaddedArrays


@dataclass(frozen=True)
class DenseLayout(DatasetLayout):
    """Sequences that are padded in the file."""

    lengths: Lengths | None
    name: ClassVar[str] = "dense"
    padded: ClassVar[bool] = True

    @property
    def count(self) -> int:
        return self.dataset.shape[0]

    @property
    def features(self) -> int:
        return self.dataset.shape[2]

    @property
    def steps(self) -> int:
        if self.lengths is None or self.dataset.shape[1] == 0:
            return self.dataset.shape[1]
        return int(self.lengths.max(initial=0))

    @property
    def width(self) -> int:
        return self.dataset.shape[1]

    def read(self, start: int, stop: int, out: Array) -> int:
        """Read the first T steps only: padding common to a batch is never read."""
        steps = min(out.shape[1], self.dataset.shape[1])
        selection = slice(start, stop), slice(0, steps)
        nbytes = self.dataset.read_into(selection, out[:, :steps])
        out[:, steps:] = 0
        if self.lengths is not None:
            clear_padding(out, self.lengths[start:stop])
        return nbytes

    def read_steps(self, number: int, begin: int, end: int) -> Array:
        rows: Array = self.dataset.read((slice(number, number + 1), slice(begin, end)))[0]
        return rows


def open_dense(
    group: Group, roles: DatasetRoles, inputs: Dataset, options: DataOptions
) -> DenseLayout:
    """The dense layout of a group.

    Raises
    ------
    DataError
        Shapes, lengths, mask or targets do not fit together.
    """
    if inputs.rank == 2 and isinstance(inputs, ReversedDataset):
        inputs = inputs.with_feature_axis()
    if inputs.rank != 3 or inputs.vlen:
        raise DataError(
            f"{inputs.where} has shape {inputs.shape}",
            expected="inputs (N, T, D) in the dense layout",
            found=str(inputs.shape),
            where=options.places(inputs.where),
            hint="--set data.layout=... names another layout",
        )
    N, T, _ = inputs.shape
    target_dataset = find_targets(group, options)
    by_step = (
        target_dataset.dataset
        if target_dataset is not None and target_dataset.dataset.shape[1:2] == (T,)
        else None
    )
    lengths = _lengths(roles, PaddedArrays(group.file, inputs, by_step), options)
    targets = (
        None if target_dataset is None else DenseTargets.of(target_dataset, N, T, lengths, options)
    )
    return DenseLayout(group, inputs, targets, roles.paths(target_dataset), lengths)


def padding_in_front(layout: DenseLayout) -> Problem | None:
    """Problem if sequences seem to begin with padding, although lengths or a mask differ."""
    if layout.lengths is None:
        return None
    datasets = {role: layout.group.dataset(path) for path, role in layout.path_roles.items()}
    targets = datasets.get("targets")
    by_step = targets if targets is not None and targets.shape[1:2] == (layout.width,) else None
    arrays = PaddedArrays(layout.group.file, layout.dataset, by_step)
    return padding_problem(datasets.get("mask"), datasets.get("lengths"), arrays, layout.lengths)


def _lengths(roles: DatasetRoles, arrays: PaddedArrays, options: DataOptions) -> Lengths | None:
    N, T, D = arrays.inputs.shape
    lengths_by_name: dict[str, Lengths] = {}
    if roles.lengths is not None:
        lengths_by_name[roles.lengths.where] = single_lengths(roles.lengths, options)
        arrays = replace(arrays, lengths=lengths_by_name[roles.lengths.where])
    if roles.offsets is not None and roles.lengths is None and roles.mask is None:
        raise DataError(
            f"{roles.offsets.where} does not go with inputs (N, T, D)",
            expected="lengths (N,) or mask (N, T) in the dense layout",
            found=f"offsets {roles.offsets.shape}",
            where=options.places(roles.offsets.where),
        )
    if roles.mask is not None:
        mask = read_mask(roles.mask, N, T, arrays.file, options)
        if not mask.usable and not (mask.in_order and arrays.lengths is not None):
            raise mask_error(mask, arrays, options)
        lengths_by_name[roles.mask.where] = mask.sums
    for name, lengths in lengths_by_name.items():
        hint = transpose_hint(options) if len(lengths) == D else None
        check_count(lengths, N, name, options, hint)
        check_lengths(lengths, name, options.places(name), T)
    return matching_lengths(lengths_by_name, options)


@dataclass(frozen=True)
class DenseTargets:
    """Targets (N,), (N, K), (N, T) or (N, T, K). Targets per step are padded."""

    dataset: Dataset
    info: TargetInfo
    lengths: Lengths | None

    @classmethod
    def of(
        cls,
        target_dataset: TargetDataset,
        N: int,
        T: int,
        lengths: Lengths | None,
        options: DataOptions,
    ) -> DenseTargets:
        """Targets in a dataset; DataError if the shape fits neither sequences nor steps."""
        dataset = target_dataset.for_counts(N)
        shape, rank = dataset.shape, dataset.rank
        expected = f"(N,), (N, K), (N, T) or (N, T, K) with N = {N}, T = {T}"
        if rank not in (1, 2, 3) or shape[0] != N or (rank == 3 and shape[1] != T) or dataset.vlen:
            raise misfit_error(dataset, expected, options)
        if rank == 3:
            return cls(dataset, target_info(dataset, shape[2:], True), lengths)
        # (N, T) may also be (N, K): the outputs of the network decide.
        per_step = None if rank == 2 and shape[1] == T else False
        return cls(dataset, target_info(dataset, shape[1:], per_step), lengths)

    def read(
        self, start: int, stop: int, steps: int, dtype: DTypeLike, per_step: bool | None
    ) -> tuple[Array, int]:
        info = self.info.resolve(bool(per_step))
        if not info.per_step:
            values = self.dataset.read(slice(start, stop))
            return cast_targets(values, info, dtype), values.nbytes
        values = self.dataset.read((slice(start, stop), slice(0, steps)))
        y = cast_targets(values, info, dtype)
        if y.shape[1] < steps:
            y = np.zeros((len(y), steps, *y.shape[2:]), y.dtype)
        elif self.lengths is not None:
            y = clear_padding(y, self.lengths[start:stop])
        return y, values.nbytes

    def read_steps(self, number: int, begin: int, end: int, stride: int) -> Array:
        rows: Array = self.dataset.read((slice(number, number + 1), slice(begin, end, stride)))[0]
        return rows

    def place(self, number: int) -> str:
        return self.info.name
