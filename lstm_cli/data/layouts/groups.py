"""Layout groups: one child group, or one child dataset, for each sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from lstm_cli.data.dataset_roles import (
    INPUTS,
    OTHER_ROLES,
    contents,
    find_targets,
    need_known_axes,
    need_numeric,
)
from lstm_cli.data.layouts.base import Targets, cast_targets
from lstm_cli.data.lengths import Lengths, pad
from lstm_cli.data.types import Array, DataOptions, TargetInfo, holding
from lstm_cli.errors import DataError
from lstm_cli.hdf5.dataset import Stored
from lstm_cli.hdf5.group import Folder
from lstm_cli.hdf5.limits import BOMB_BYTES, BOMB_RATIO


@dataclass(frozen=True)
class Groups:
    """A group each: results are written back a group each.

    Attributes
    ----------
    names
        Of the children, in natural order.
    paths
        Of each one's inputs, relative to the folder.
    beside
        Names of members that are no sequences.
    """

    folder: Folder
    names: list[str]
    paths: list[str]
    features: int
    lengths: Lengths
    dtype: str
    targets: Targets | None
    beside: tuple[str, ...] = ()
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
            values = self.folder.again(path)
            values = values.reshape(-1, self.features)
            nbytes += values.nbytes
            with np.errstate(all="ignore"):
                row[: len(values)] = values
            row[len(values) :] = 0
        return nbytes

    def span(self, number: int, begin: int, end: int) -> Array:
        rows = self.folder.again(self.paths[number], slice(begin, end))
        return rows.reshape(-1, self.features)

    def roles(self) -> dict[str, str]:
        base = self.folder.path.rstrip("/")
        roles = {f"{base}/{path}": "inputs" for path in self.paths}
        if isinstance(self.targets, GroupTargets):
            roles |= {f"{base}/{path}": "targets" for path in self.targets.paths}
        return roles

    def sequence_names(self) -> list[str] | None:
        return self.names

    def place(self, number: int) -> str:
        """Where the inputs of one sequence stand."""
        return f"{self.folder.where.rstrip('/')}/{self.paths[number]}"


@dataclass(frozen=True)
class GroupTargets:
    """Beside each sequence's inputs: one a sequence or one a step."""

    folder: Folder
    paths: list[str]
    info: TargetInfo
    lengths: Lengths

    def read(
        self, start: int, stop: int, steps: int, dtype: DTypeLike, per_step: bool | None
    ) -> tuple[Array, int]:
        values = [self.folder.again(path) for path in self.paths[start:stop]]
        nbytes = sum(value.nbytes for value in values)
        info = self.info.placed(bool(per_step))
        shape = (-1, *info.shape) if info.per_step else info.shape
        values = [value.reshape(shape) for value in values]
        if not info.per_step:
            return cast_targets(np.stack(values), info, dtype), nbytes
        rows = cast_targets(np.concatenate(values), info, dtype)
        return pad(rows, self.lengths[start:stop], steps, rows.dtype), nbytes

    def span(self, number: int, begin: int, end: int, stride: int) -> Array:
        values = self.folder.again(self.paths[number])
        return values.reshape(-1, *self.info.placed(True).shape)[begin:end:stride]

    def place(self, number: int) -> str:
        return f"{self.folder.where.rstrip('/')}/{self.paths[number]}"


@dataclass(frozen=True)
class Child:
    """What opening needs to know of one sequence's dataset, without holding it open.

    `flat` is its shape once a row or column of MATLAB's is a vector.
    """

    path: str
    where: str
    shape: tuple[int, ...]
    flat: tuple[int, ...]
    dtype: str
    integral: bool
    vlen: bool
    nbytes: int
    held_bytes: int
    identity: tuple[int, int]

    @classmethod
    def of(cls, stored: Stored, path: str) -> Child:
        """Facts about an open dataset, at `path` in the folder of all sequences."""
        return cls(
            path,
            stored.where,
            stored.shape,
            stored.vector().shape,
            str(stored.dtype),
            stored.integral,
            stored.vlen,
            stored.nbytes,
            stored.held_bytes,
            stored.identity,
        )


def open_groups(folder: Folder, options: DataOptions) -> Groups:
    """The groups layout of a group.

    Raises
    ------
    DataError
        A child holds no (T, D) inputs, or the children differ in features or targets.
    """
    names, inputs, found = _children(folder, options)
    if not options.allow_external:
        _need_held(inputs, folder, options)
        _need_held([child for child in found if child is not None], folder, options)
    own = set(names)
    beside = tuple(name for name in folder.names() if name not in own)
    first = inputs[0]
    for other in inputs:
        if other.shape[1:] != first.shape[1:]:
            raise _mixed(first, other, options)
    lengths = np.array([child.shape[0] for child in inputs], np.int64)
    features = first.shape[1] if len(first.shape) == 2 else 1
    targets = group_targets(folder, found, lengths, options)
    paths = [child.path for child in inputs]
    return Groups(folder, names, paths, features, lengths, _held_by(inputs), targets, beside)


def _held_by(children: Sequence[Child]) -> str:
    """The type of all these, or one that holds them where they differ."""
    dtypes = list(dict.fromkeys(child.dtype for child in children))
    if len(dtypes) > 1 and all(child.integral for child in children):
        return max(dtypes, key=lambda dtype: np.dtype(dtype).itemsize)  # they may be classes
    return dtypes[0] if len(dtypes) == 1 else holding(*dtypes).name


def _children(
    folder: Folder, options: DataOptions
) -> tuple[list[str], list[Child], list[Child | None]]:
    """Names, inputs and targets of the sequences; each child is opened once."""
    names: list[str] = []
    inputs: list[Child] = []
    targets: list[Child | None] = []
    usual = list(INPUTS) if options.inputs is None else [options.inputs]
    for name in folder.names():
        child = None if name[:1] == "#" else folder.folder(name)  # MATLAB's own
        if child is None:
            continue
        names.append(name)
        inputs.append(_inputs_of(child, name, usual, options))
        found = find_targets(child, options)
        path = "" if found is None else found.stored.path.removeprefix(f"{child.path}/")
        targets.append(None if found is None else Child.of(found.stored, f"{name}/{path}"))
    if names:
        return names, inputs, targets
    stored = {name: folder.dataset(name) for name in folder.names() if name not in OTHER_ROLES}
    plain = {name: found for name, found in stored.items() if found is not None}
    if not plain:
        raise DataError(
            f"{folder.where} holds no sequences",
            expected="a group or a dataset for each sequence in the groups layout",
            found=contents(folder),
            where=options.places(folder.where),
        )
    if options.targets is not None and options.need_targets:
        raise DataError(
            f"data.targets is {options.targets}, but each dataset of {folder.where} is a sequence",
            expected="a group for each sequence, with its inputs and targets",
            found=contents(folder),
            where=options.places(folder.where),
        )
    wide = {name: found for name, found in plain.items() if found.rank > 1 or found.vlen}
    plain = wide or plain  # lists beside matrices are no sequences, and are noted
    inputs = [_child(found, name, options) for name, found in plain.items()]
    return list(plain), inputs, [None] * len(plain)


def _inputs_of(child: Folder, name: str, usual: list[str], options: DataOptions) -> Child:
    """A child group's inputs. The name that hits is moved to the front, for the next child."""
    text = None
    for own in usual:
        found = child.dataset(own)
        if found is not None and found.numeric:
            usual.insert(0, usual.pop(usual.index(own)))
            return _child(found, f"{name}/{own}", options)
        text = text or found
    if text is not None:
        need_numeric(text, "inputs", options.places(text.where))
    raise DataError(
        f"{child.where} holds no inputs",
        expected=f"a dataset {' or '.join(usual[:3])} in each group",
        found=contents(child),
        where=options.places(child.where),
    )


def _child(stored: Stored, path: str, options: DataOptions) -> Child:
    need_numeric(stored, "inputs", options.places(stored.where))
    need_known_axes(stored, options)
    if stored.rank not in (1, 2) or stored.vlen:
        raise DataError(
            f"{stored.where} has shape {stored.shape}",
            expected="inputs (T, D) for each sequence in the groups layout",
            found=str(stored.shape),
            where=options.places(stored.where),
        )
    return Child.of(stored, path)


def _need_held(children: Sequence[Child], folder: Folder, options: DataOptions) -> None:
    """Raise DataError if the sequences together are far more than the file stores.

    One dataset may stand for several sequences, and some may never have been written, while that
    stays small or is no more than the rest.
    """
    distinct = {child.identity: child for child in children}
    declared = sum(child.nbytes for child in children)
    once = sum(child.nbytes for child in distinct.values())
    held = sum(child.held_bytes for child in distinct.values())
    if declared - once > max(BOMB_BYTES, once):
        found = f"{len(distinct)} datasets of {once:,} bytes, linked {len(children)} times"
    elif once > BOMB_BYTES and held * BOMB_RATIO < once:
        found = f"{held:,} of {once:,} bytes"
    else:
        return
    raise DataError(
        f"the sequences of {folder.where} declare far more than the file stores",
        expected=f"storage for {len(children)} sequences, {declared:,} bytes",
        found=found,
        where=options.places(folder.where),
        hint="--allow-external reads them, if you trust the file",
    )


def _mixed(first: Child, other: Child, options: DataOptions) -> DataError:
    return DataError(
        f"sequences differ in features: {first.where} has shape {first.shape}, "
        f"{other.where} has shape {other.shape}",
        expected=f"(T, {', '.join(map(str, first.shape[1:]))})",
        found=str(other.shape),
        where=options.places(first.where, other.where),
    )


def group_targets(
    folder: Folder, found: list[Child | None], lengths: Lengths, options: DataOptions
) -> GroupTargets | None:
    """Targets of all children, alike in shape and type; None if none has any.

    Raises
    ------
    DataError
        Some have none, or they differ.
    """
    children = [child for child in found if child is not None]
    if not children:
        return None
    if len(children) < len(found):
        raise DataError(
            f"{len(found) - len(children)} of {len(found)} sequences have no targets",
            expected="targets in every group, or in none",
            found=f"{children[0].where}, but none in sequence {found.index(None)}",
            where=options.places(folder.where),
        )
    flat = [child.flat for child in children]
    shapes = [child.shape for child in children]
    # A row may also be the values of a sequence's only step.
    if _one_a_step(flat, lengths) or not _one_a_step(shapes, lengths):
        shapes = flat
    first, rest, by_step = children[0], shapes[0][1:], _one_a_step(shapes, lengths)
    by_sequence = len(flat[0]) <= 1 and len(set(flat)) == 1
    for child, T in zip(children, lengths.tolist(), strict=True):
        fits = (by_step or by_sequence) and len(rest) <= 1 and not child.vlen
        if not fits or child.integral != first.integral:
            raise _unlike(first, child, T, options)
    # (T,) may also be (K,): what the network returns decides.
    per_step = None if by_step and by_sequence else by_step
    shape = rest if per_step else flat[0]
    info = TargetInfo.of(first.where, _held_by(children), shape, per_step, rest)
    return GroupTargets(folder, [child.path for child in children], info, lengths)


def _one_a_step(shapes: Sequence[tuple[int, ...]], lengths: Lengths) -> bool:
    """Whether each has as many rows as its sequence has steps, all of one shape."""
    pairs = zip(shapes, lengths.tolist(), strict=True)
    return all(shape[:1] == (T,) and shape[1:] == shapes[0][1:] for shape, T in pairs)


def _unlike(first: Child, child: Child, T: int, options: DataOptions) -> DataError:
    return DataError(
        f"targets {child.where} have shape {child.shape} and type {child.dtype}, "
        f"{first.where} shape {first.shape} and type {first.dtype}",
        expected=f"one a step ({T}, ...) in every group, or one shape and type in all",
        found=str(child.shape),
        where=options.places(first.where, child.where),
        hint="in a config, data.targets names another dataset",
    )
