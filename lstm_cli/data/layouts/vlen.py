"""Layout vlen: inputs (N,) of rows of variable length, each T x D values one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from lstm_cli.data.dataset_roles import FoundTargets, Roles, find_targets, stored_names
from lstm_cli.data.layouts.base import Targets, cast_targets, misfit, target_info
from lstm_cli.data.layouts.concatenated import FlatTargets
from lstm_cli.data.lengths import (
    Lengths,
    check_count,
    check_lengths,
    only_lengths,
    pad,
    pad_into,
    starts_of,
)
from lstm_cli.data.types import Array, DataOptions, TargetInfo
from lstm_cli.errors import DataError, counted
from lstm_cli.hdf5.dataset import Stored
from lstm_cli.hdf5.group import Folder


class UnknownFeaturesError(DataError):
    """The rows can be read, but nothing says how many features a step has.

    Attributes
    ----------
    sizes
        (N,) values in each row.
    """

    def __init__(self, inputs: Stored, sizes: Lengths, options: DataOptions) -> None:
        self.sizes = sizes
        low, high = (int(sizes.min()), int(sizes.max())) if len(sizes) else (0, 0)
        super().__init__(
            f"nothing says how many features a step of {inputs.where} has",
            expected="an attribute `features` on the dataset, lengths beside it, "
            "or model.input_size in a config",
            found=f"rows of {low} to {counted(high, 'value')}, all multiples of {self.common}",
            where=options.places(inputs.where),
            hint=f"in a config, model.input_size says it: {self.common}, or what divides it",
        )

    @property
    def common(self) -> int:
        """The greatest common divisor of all row sizes: features D or a multiple of them."""
        return max(1, int(np.gcd.reduce(self.sizes)))


@dataclass(frozen=True)
class Vlen:
    """Rows of variable length; D is known from an attribute, the lengths or the config."""

    folder: Folder
    stored: Stored
    features: int
    lengths: Lengths
    targets: Targets | None
    found: dict[str, str]
    name: str = "vlen"
    padded: bool = False

    @property
    def inputs(self) -> str:
        return self.stored.where

    @property
    def count(self) -> int:
        return len(self.lengths)

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
        lengths = self.lengths[start:stop] * self.features
        rows = _joined(self.stored, self.stored.read(slice(start, stop)), lengths)
        pad_into(rows.reshape(-1, self.features), self.lengths[start:stop], out)
        return rows.nbytes

    def span(self, number: int, begin: int, end: int) -> Array:
        rows = self.stored.read(slice(number, number + 1))
        lengths = self.lengths[number : number + 1] * self.features
        return _joined(self.stored, rows, lengths).reshape(-1, self.features)[begin:end]

    def place(self, number: int) -> str:
        return self.inputs

    def roles(self) -> dict[str, str]:
        return self.found

    def sequence_names(self) -> list[str] | None:
        return stored_names(self.folder, self.count)


def open_vlen(folder: Folder, roles: Roles, inputs: Stored, options: DataOptions) -> Vlen:
    """The vlen layout of a group.

    Raises
    ------
    UnknownFeaturesError
        Nothing says how many features there are.
    DataError
        The rows are no multiple of the features.
    """
    if not inputs.vlen or inputs.rank != 1:
        raise DataError(
            f"{inputs.where} has shape {inputs.shape} and type {inputs.dtype}",
            expected="inputs (N,) of variable-length rows in the vlen layout",
            found=str(inputs.shape),
            where=options.places(inputs.where),
        )
    sizes = _sizes(inputs)
    told = None
    if roles.lengths is not None:
        told = only_lengths(roles.lengths, options)
        check_count(told, len(sizes), roles.lengths.where, options)
        check_lengths(told, roles.lengths.where, options.places(roles.lengths.where), None)
    D = _features(folder, inputs, sizes, told, options)
    lengths = _lengths(inputs, sizes, D, options)
    if told is not None and (told != lengths).any():
        raise _disagree(inputs, told, lengths, options)
    found = find_targets(folder, options)
    targets = None if found is None else _targets(found, lengths, options)
    paths = roles.paths() | ({} if found is None else {found.stored.path: "targets"})
    return Vlen(folder, inputs, D, lengths, targets, paths)


def _sizes(stored: Stored) -> Lengths:
    """(N,) values in each row; DataError if together they are more than the file holds."""
    lengths = stored.value_lengths()
    if lengths is None:
        return stored.read_sizes() // stored.dtype.itemsize
    stored.need_held(int(lengths.sum()))
    return lengths // stored.dtype.itemsize


def _features(
    folder: Folder, inputs: Stored, sizes: Lengths, told: Lengths | None, options: DataOptions
) -> int:
    """D: from an attribute, from lengths beside the rows, or from the config."""
    for name in ("features", "input_size"):
        for value in (inputs.attribute(name), folder.attribute(name)):
            D = _positive(value)
            if D is not None:
                return D
    if told is not None and (told > 0).any():
        n = int(np.argmax(told > 0))
        return max(1, int(sizes[n]) // int(told[n]))
    if options.features is not None:
        return options.features
    raise UnknownFeaturesError(inputs, sizes, options)


def _positive(value: Any) -> int | None:
    """A whole number above 0 that stands in an attribute, or None."""
    if value is None or np.size(value) != 1:
        return None
    number = np.asarray(value).reshape(-1)[0]
    return int(number) if isinstance(number, np.integer) and number > 0 else None


def _lengths(inputs: Stored, sizes: Lengths, D: int, options: DataOptions) -> Lengths:
    if (sizes % D).any():
        n = int(np.argmax(sizes % D != 0))
        raise DataError(
            f"row {n} of {inputs.where} has {counted(sizes[n], 'value')}, "
            f"no multiple of {counted(D, 'feature')}",
            expected=f"T × {D} values",
            found=str(sizes[n]),
            where=options.places(inputs.where),
        )
    return sizes // D


def _disagree(inputs: Stored, told: Lengths, lengths: Lengths, options: DataOptions) -> DataError:
    n = int(np.argmax(told != lengths))
    return DataError(
        f"sequence {n} has length {told[n]}, but its row holds {counted(lengths[n], 'step')}",
        expected=f"{counted(told[n], 'step')}",
        found=f"{lengths[n]} in {inputs.where}",
        where=options.places(inputs.where),
    )


def _joined(stored: Stored, rows: Array, sizes: Lengths) -> Array:
    """Rows of variable length as one flat array; DataError if they have not the sizes known."""
    if [np.size(row) for row in rows] != sizes.tolist():
        raise DataError(
            f"{stored.where} has changed since it was opened",
            expected=f"{int(sizes.sum())} values in {len(sizes)} rows",
            found=str(sum(np.size(row) for row in rows)),
            where=stored.where,
            hint="the file may be damaged: copy or make it again",
        )
    return np.concatenate([np.empty(0, stored.dtype), *(np.ravel(row) for row in rows)])


def _targets(found: FoundTargets, lengths: Lengths, options: DataOptions) -> Targets:
    """One a sequence, or one a step: in rows of variable length, or padded as (N, T, ...)."""
    stored, N = found.fitting(), len(lengths)
    if not stored.vlen:
        return FlatTargets.of(found, lengths, starts_of(lengths), None, options)
    if stored.rank != 1 or stored.shape[0] != N:
        raise misfit(stored, f"({N},) rows", options)
    sizes = _sizes(stored)
    K = int(sizes.sum()) // max(1, int(lengths.sum()))
    by_step = K > 0 and bool((sizes == lengths * K).all())
    alike = bool(len(sizes) and sizes[0] > 0 and (sizes == sizes[0]).all())
    if not by_step and not alike:
        n = int(np.argmax(sizes != lengths * max(1, K)))
        raise DataError(
            f"sequence {n} has {counted(lengths[n], 'step')} and {sizes[n]} target values",
            expected="T × K values in each row, or as many in every row",
            found=f"{sizes[n]} in {stored.where}",
            where=options.places(stored.where),
        )
    step_shape = () if K == 1 else (K,)
    shape = (int(sizes[0]),) if alike else ()
    per_step = None if by_step and alike else by_step
    info = target_info(stored, step_shape if per_step else shape, per_step, step_shape)
    return VlenTargets(stored, info, lengths, sizes)


@dataclass(frozen=True)
class VlenTargets:
    """One a step, or as many in every sequence, in rows of variable length."""

    stored: Stored
    info: TargetInfo
    lengths: Lengths
    sizes: Lengths

    def read(
        self, start: int, stop: int, steps: int, dtype: DTypeLike, per_step: bool | None
    ) -> tuple[Array, int]:
        info = self.info.placed(bool(per_step))
        rows = _joined(self.stored, self.stored.read(slice(start, stop)), self.sizes[start:stop])
        values = cast_targets(rows, info, dtype).reshape(-1, *info.shape)
        if not info.per_step:
            return values, rows.nbytes
        return pad(values, self.lengths[start:stop], steps, values.dtype), rows.nbytes

    def span(self, number: int, begin: int, end: int, stride: int) -> Array:
        sizes = self.sizes[number : number + 1]
        rows = _joined(self.stored, self.stored.read(slice(number, number + 1)), sizes)
        return rows.reshape(-1, *self.info.placed(True).shape)[begin:end:stride]

    def place(self, number: int) -> str:
        return self.info.name
