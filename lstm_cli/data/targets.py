"""Targets of a group: finding them, what they are, and reading them by sequence or by step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from lstm_cli.data.links import Folder
from lstm_cli.data.ragged import Lengths, cast, clear_padding, holding, pad, starts_of
from lstm_cli.data.roles import TARGETS, missing
from lstm_cli.data.storage import Stored, need_numeric
from lstm_cli.data.types import Array, DataOptions, TargetInfo
from lstm_cli.errors import DataError, counted


@dataclass(frozen=True)
class FoundTargets:
    """The dataset of the targets.

    Attributes
    ----------
    key
        Its name under RETURNN's ``targets/data``.
    column
        Its column in RETURNN's ``seqLengths``.
    """

    stored: Stored
    key: str | None = None
    column: int | None = None

    def fitting(self, *counts: int) -> Stored:
        """The dataset; a row or column of MATLAB's as a vector, unless it has `counts` rows."""
        rows, columns = (*self.stored.shape, 1, 1)[:2]
        return self.stored if columns > 1 and rows in counts else self.stored.vector()


def find_targets(folder: Folder, options: DataOptions) -> FoundTargets | None:
    """The targets as configured, or under a usual name; None if the group has none.

    Raises
    ------
    DataError
        The configured dataset is missing or not numeric, or several could be meant.
    """
    if options.targets is not None:
        return _configured(folder, options.targets, options)
    found = (usable(folder.find(name), options) for name in TARGETS)
    return next((one for one in found if one is not None), None)


def usable(found: Folder | Stored | None, options: DataOptions) -> FoundTargets | None:
    """What stands under a usual name, if it can be targets."""
    if isinstance(found, Folder):
        return _returnn(found, options)
    if found is None or found.text or found.is_cell:  # texts are noted, and left out
        return None
    need_numeric(found, "targets", options.places(found.where))
    return FoundTargets(found)


def _configured(folder: Folder, name: str, options: DataOptions) -> FoundTargets | None:
    found = folder.find(name)
    if isinstance(found, Folder):
        keyed = _returnn(found, options)
        if keyed is not None:
            return keyed
    if not isinstance(found, Stored):
        if found is None and not options.need_targets:
            return None
        raise missing(folder, name, "targets", options)
    need_numeric(found, "targets", options.places(found.where))
    path, _, key = name.strip("/").rpartition("/")
    if path.endswith("targets/data"):
        group = folder.folder(path.removesuffix("/data"))
        keys = [] if group is None else _keys(group)
        column = 1 + keys.index(key) if key in keys else None
        return FoundTargets(found, key, column)
    return FoundTargets(found)


def _returnn(group: Folder, options: DataOptions) -> FoundTargets | None:
    """RETURNN's targets: ``classes``, or the only one under ``data``."""
    data = group.folder("data")
    keys = _keys(group)
    if data is None or not keys:
        return None
    key = "classes" if "classes" in keys else keys[0]
    if len(keys) > 1 and key != "classes":
        raise DataError(
            f"{data.where} holds several targets",
            expected="one, or one called classes",
            found=", ".join(keys),
            where=options.places(data.where),
            hint=f"in a config, data.targets names one: targets/data/{keys[0]}",
        )
    stored = data.dataset(key)
    if stored is None:
        return None
    need_numeric(stored, "targets", options.places(stored.where))
    return FoundTargets(stored, key, 1 + keys.index(key))


def _keys(group: Folder) -> list[str]:
    """Names under ``data``, sorted as the further columns of seqLengths are."""
    data = group.folder("data")
    return [] if data is None else sorted(data.names())


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
