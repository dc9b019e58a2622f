"""Layout groups: one child group, or one child dataset, for each sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from lstm_cli.data.dataset_roles import (
    INPUTS,
    OTHER_ROLES,
    find_targets,
    group_contents,
    require_known_axes,
    require_numeric,
)
from lstm_cli.data.layouts.base import UncutTargets, cast_targets
from lstm_cli.data.lengths import Lengths, pad
from lstm_cli.data.types import Array, DataOptions, TargetInfo, common_dtype
from lstm_cli.errors import DataError
from lstm_cli.hdf5.dataset import Dataset
from lstm_cli.hdf5.group import Group
from lstm_cli.hdf5.limits import BOMB_BYTES, BOMB_RATIO


@dataclass(frozen=True)
class Groups:
    """One child group or dataset for each sequence. Results have one group for each sequence.

    Attributes
    ----------
    group
        The parent of the sequences.
    names
        Names of the children, in natural order.
    paths
        Paths of the inputs of each sequence, relative to the group.
    other_names
        Names of members that are not sequences.
    """

    group: Group
    names: list[str]
    paths: list[str]
    features: int
    lengths: Lengths
    dtype: str
    targets: UncutTargets | None
    other_names: tuple[str, ...] = ()
    name: str = "groups"
    padded: bool = False

    @property
    def inputs(self) -> str:
        return self.place(0)

    @property
    def count(self) -> int:
        return len(self.names)

    @property
    def steps(self) -> int:
        return int(self.lengths.max(initial=0))

    @property
    def width(self) -> int:
        return self.steps

    def read(self, start: int, stop: int, out: Array) -> int:
        nbytes = 0
        for row, path in zip(out, self.paths[start:stop], strict=True):
            values = self.group.read_unchecked(path)
            values = values.reshape(-1, self.features)
            nbytes += values.nbytes
            with np.errstate(all="ignore"):
                row[: len(values)] = values
            row[len(values) :] = 0
        return nbytes

    def read_steps(self, number: int, begin: int, end: int) -> Array:
        rows = self.group.read_unchecked(self.paths[number], slice(begin, end))
        return rows.reshape(-1, self.features)

    def roles(self) -> dict[str, str]:
        base = self.group.path.rstrip("/")
        roles = {f"{base}/{path}": "inputs" for path in self.paths}
        if isinstance(self.targets, GroupTargets):
            roles |= {f"{base}/{path}": "targets" for path in self.targets.paths}
        return roles

    def sequence_names(self) -> list[str] | None:
        return self.names

    def place(self, number: int) -> str:
        return f"{self.group.where.rstrip('/')}/{self.paths[number]}"


@dataclass(frozen=True)
class GroupTargets:
    """Targets next to the inputs of each sequence: one per sequence or one per step."""

    group: Group
    paths: list[str]
    info: TargetInfo
    lengths: Lengths

    def read(
        self, start: int, stop: int, steps: int, dtype: DTypeLike, per_step: bool | None
    ) -> tuple[Array, int]:
        values = [self.group.read_unchecked(path) for path in self.paths[start:stop]]
        nbytes = sum(value.nbytes for value in values)
        info = self.info.resolve(bool(per_step))
        shape = (-1, *info.shape) if info.per_step else info.shape
        values = [value.reshape(shape) for value in values]
        if not info.per_step:
            return cast_targets(np.stack(values), info, dtype), nbytes
        rows = cast_targets(np.concatenate(values), info, dtype)
        return pad(rows, self.lengths[start:stop], steps, rows.dtype), nbytes

    def read_steps(self, number: int, begin: int, end: int, stride: int) -> Array:
        values = self.group.read_unchecked(self.paths[number])
        return values.reshape(-1, *self.info.resolve(True).shape)[begin:end:stride]

    def place(self, number: int) -> str:
        return f"{self.group.where.rstrip('/')}/{self.paths[number]}"


@dataclass(frozen=True)
class ChildDataset:
    """Facts about the dataset of one sequence, so that the dataset need not stay open.

    Attributes
    ----------
    path
        Path relative to the parent group.
    where
        File and path, for errors.
    vector_shape
        Shape with a single row or column of a MATLAB matrix as a vector.
    """

    path: str
    where: str
    shape: tuple[int, ...]
    vector_shape: tuple[int, ...]
    dtype: str
    integral: bool
    vlen: bool
    nbytes: int
    stored_bytes: int
    identity: tuple[int, int]

    @classmethod
    def of(cls, dataset: Dataset, path: str) -> ChildDataset:
        """Facts about an open dataset."""
        return cls(
            path,
            dataset.where,
            dataset.shape,
            dataset.as_vector().shape,
            str(dataset.dtype),
            dataset.integral,
            dataset.vlen,
            dataset.nbytes,
            dataset.stored_bytes,
            dataset.identity,
        )


def open_groups(group: Group, options: DataOptions) -> Groups:
    """The groups layout of a group.

    Raises
    ------
    DataError
        A child holds no (T, D) inputs, or the children differ in features or targets.
    """
    names, inputs, target_children = _open_children(group, options)
    if not options.allow_external:
        _require_stored(inputs, group, options)
        _require_stored([one for one in target_children if one is not None], group, options)
    others = tuple(name for name in group.names() if name not in set(names))
    first = inputs[0]
    for other in inputs:
        if other.shape[1:] != first.shape[1:]:
            raise _features_error(first, other, options)
    lengths = np.array([child.shape[0] for child in inputs], np.int64)
    features = first.shape[1] if len(first.shape) == 2 else 1
    targets = _group_targets(group, target_children, lengths, options)
    paths = [child.path for child in inputs]
    return Groups(group, names, paths, features, lengths, _widest_dtype(inputs), targets, others)


def _widest_dtype(children: Sequence[ChildDataset]) -> str:
    dtypes = list(dict.fromkeys(child.dtype for child in children))
    if len(dtypes) > 1 and all(child.integral for child in children):
        return max(dtypes, key=lambda dtype: np.dtype(dtype).itemsize)  # they may be classes
    return dtypes[0] if len(dtypes) == 1 else common_dtype(*dtypes).name


def _open_children(
    group: Group, options: DataOptions
) -> tuple[list[str], list[ChildDataset], list[ChildDataset | None]]:
    """Names, inputs and targets of the sequences; each child is opened once."""
    names: list[str] = []
    inputs: list[ChildDataset] = []
    targets: list[ChildDataset | None] = []
    usual = list(INPUTS) if options.inputs is None else [options.inputs]
    for name in group.names():
        child = None if name[:1] == "#" else group.group(name)  # MATLAB's own
        if child is None:
            continue
        names.append(name)
        inputs.append(_child_inputs(child, name, usual, options))
        target = find_targets(child, options)
        path = "" if target is None else target.dataset.path.removeprefix(f"{child.path}/")
        targets.append(
            None if target is None else ChildDataset.of(target.dataset, f"{name}/{path}")
        )
    if names:
        return names, inputs, targets
    members = {name: group.dataset(name) for name in group.names() if name not in OTHER_ROLES}
    datasets = {name: one for name, one in members.items() if one is not None}
    if not datasets:
        raise DataError(
            f"{group.where} holds no sequences",
            expected="a group or a dataset for each sequence in the groups layout",
            found=group_contents(group),
            where=options.places(group.where),
        )
    if options.targets is not None and options.need_targets:
        raise DataError(
            f"data.targets is {options.targets}, but each dataset of {group.where} is a sequence",
            expected="a group for each sequence, with its inputs and targets",
            found=group_contents(group),
            where=options.places(group.where),
        )
    wide = {name: one for name, one in datasets.items() if one.rank > 1 or one.vlen}
    datasets = wide or datasets  # lists next to matrices are not sequences; a note names them
    inputs = [_checked_child(one, name, options) for name, one in datasets.items()]
    return list(datasets), inputs, [None] * len(datasets)


def _child_inputs(child: Group, name: str, usual: list[str], options: DataOptions) -> ChildDataset:
    """Inputs of a child group. A matching name moves to the front, for the next child."""
    text = None
    for candidate in usual:
        dataset = child.dataset(candidate)
        if dataset is not None and dataset.numeric:
            usual.insert(0, usual.pop(usual.index(candidate)))
            return _checked_child(dataset, f"{name}/{candidate}", options)
        text = text or dataset
    if text is not None:
        require_numeric(text, "inputs", options.places(text.where))
    raise DataError(
        f"{child.where} holds no inputs",
        expected=f"a dataset {' or '.join(usual[:3])} in each group",
        found=group_contents(child),
        where=options.places(child.where),
    )


def _checked_child(dataset: Dataset, path: str, options: DataOptions) -> ChildDataset:
    require_numeric(dataset, "inputs", options.places(dataset.where))
    require_known_axes(dataset, options)
    if dataset.rank not in (1, 2) or dataset.vlen:
        raise DataError(
            f"{dataset.where} has shape {dataset.shape}",
            expected="inputs (T, D) for each sequence in the groups layout",
            found=str(dataset.shape),
            where=options.places(dataset.where),
        )
    return ChildDataset.of(dataset, path)


def _require_stored(children: Sequence[ChildDataset], group: Group, options: DataOptions) -> None:
    """Raise DataError if the sequences together declare far more than the file stores.

    One dataset may be linked as several sequences, and some datasets may never have been
    written. Both are accepted as long as the surplus is small.
    """
    distinct = {child.identity: child for child in children}
    declared = sum(child.nbytes for child in children)
    unique = sum(child.nbytes for child in distinct.values())
    stored = sum(child.stored_bytes for child in distinct.values())
    if declared - unique > max(BOMB_BYTES, unique):
        contents = f"{len(distinct)} datasets of {unique:,} bytes, linked {len(children)} times"
    elif unique > BOMB_BYTES and stored * BOMB_RATIO < unique:
        contents = f"{stored:,} of {unique:,} bytes"
    else:
        return
    raise DataError(
        f"the sequences of {group.where} declare far more than the file stores",
        expected=f"storage for {len(children)} sequences, {declared:,} bytes",
        found=contents,
        where=options.places(group.where),
        hint="--allow-external reads them, if you trust the file",
    )


def _features_error(first: ChildDataset, other: ChildDataset, options: DataOptions) -> DataError:
    return DataError(
        f"sequences differ in features: {first.where} has shape {first.shape}, "
        f"{other.where} has shape {other.shape}",
        expected=f"(T, {', '.join(map(str, first.shape[1:]))})",
        found=str(other.shape),
        where=options.places(first.where, other.where),
    )


def _group_targets(
    group: Group, datasets: list[ChildDataset | None], lengths: Lengths, options: DataOptions
) -> GroupTargets | None:
    """Targets of all children, with common shape and type; None if no child has targets.

    Raises
    ------
    DataError
        Some children have no targets, or the targets differ.
    """
    children = [child for child in datasets if child is not None]
    if not children:
        return None
    if len(children) < len(datasets):
        raise DataError(
            f"{len(datasets) - len(children)} of {len(datasets)} sequences have no targets",
            expected="targets in every group, or in none",
            found=f"{children[0].where}, but none in sequence {datasets.index(None)}",
            where=options.places(group.where),
        )
    vector_shapes = [child.vector_shape for child in children]
    shapes = [child.shape for child in children]
    # A row may also be the values of the only step of a sequence.
    if _are_per_step(vector_shapes, lengths) or not _are_per_step(shapes, lengths):
        shapes = vector_shapes
    first, rest, by_step = children[0], shapes[0][1:], _are_per_step(shapes, lengths)
    by_sequence = len(vector_shapes[0]) <= 1 and len(set(vector_shapes)) == 1
    for child, T in zip(children, lengths.tolist(), strict=True):
        fits = (by_step or by_sequence) and len(rest) <= 1 and not child.vlen
        if not fits or child.integral != first.integral:
            raise _targets_error(first, child, T, options)
    # (T,) may also be (K,): the outputs of the network decide.
    per_step = None if by_step and by_sequence else by_step
    shape = rest if per_step else vector_shapes[0]
    info = TargetInfo.of(first.where, _widest_dtype(children), shape, per_step, rest)
    return GroupTargets(group, [child.path for child in children], info, lengths)


def _are_per_step(shapes: Sequence[tuple[int, ...]], lengths: Lengths) -> bool:
    pairs = zip(shapes, lengths.tolist(), strict=True)
    return all(shape[:1] == (T,) and shape[1:] == shapes[0][1:] for shape, T in pairs)


def _targets_error(
    first: ChildDataset, child: ChildDataset, T: int, options: DataOptions
) -> DataError:
    return DataError(
        f"targets {child.where} have shape {child.shape} and type {child.dtype}, "
        f"{first.where} shape {first.shape} and type {first.dtype}",
        expected=f"one per step ({T}, ...) in every group, or one shape and type in all",
        found=str(child.shape),
        where=options.places(first.where, child.where),
        hint="in a config, data.targets names another dataset",
    )
