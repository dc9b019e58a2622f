"""What the data folder takes and gives: options, windows, batches, facts about targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array: TypeAlias = NDArray[Any]

TargetKind: TypeAlias = Literal["class", "values"]

Room: TypeAlias = Callable[[tuple[int, ...], np.dtype[Any]], Array]
"""Makes the array (C-contiguous, of this shape and dtype) that inputs are read into; its values
may be anything. ``numpy.empty``, or a device's page-locked memory."""

LAYOUTS = ("dense", "concatenated", "vlen", "groups", "series")

MAX_BATCH_BYTES = 256 << 20
"""Padded inputs of one batch take no more than this, unless rows must be kept together."""


@dataclass(frozen=True)
class Window:
    """How sequences are cut.

    Attributes
    ----------
    length, stride
        Steps in a window, and from one window's start to the next one's.
    horizon
        A window's first target stands this many steps after its last step.
    predict
        Consecutive steps that a window's targets cover.
    """

    length: int
    stride: int = 1
    horizon: int = 1
    predict: int = 1

    @property
    def reach(self) -> int:
        """Steps from a window's last step to the last step of its targets."""
        return self.horizon + self.predict - 1


@dataclass(frozen=True)
class DataOptions:
    """What the config and the command line say about the data; None is found out.

    Attributes
    ----------
    inputs, targets, lengths, offsets, mask
        Names of datasets, relative to the group (in the groups layout: to each child group).
    layout
        One of `LAYOUTS`.
    window
        Cut every sequence into windows.
    transpose
        The axes are reversed as stored, or are not; None: refuse a file that says they are.
    need_targets
        A configured dataset of targets that is missing is an error; else a note.
    features
        The config's input size: how many features a flat row of the vlen layout holds, where
        the file does not say it.
    where
        Where names and layout were set, such as ``configs/mine.yaml line 12``, for errors.
    allow_external
        Follow external links, virtual datasets and external storage, and believe any shape.
    """

    inputs: str | None = None
    targets: str | None = None
    lengths: str | None = None
    offsets: str | None = None
    mask: str | None = None
    layout: str | None = None
    window: Window | None = None
    transpose: bool | None = None
    need_targets: bool = True
    features: int | None = None
    where: str | None = None
    allow_external: bool = False

    def places(self, *more: str) -> tuple[str, ...]:
        """Places to name in an error: those given, then where options were set, if any was."""
        told = (self.inputs, self.targets, self.lengths, self.offsets, self.mask, self.layout)
        unset = self.window is None and self.transpose is None
        if self.where is None or (unset and not any(told)):
            return more
        return (*more, self.where)


@dataclass(frozen=True)
class TargetInfo:
    """What the targets are, as far as the file tells.

    Attributes
    ----------
    name
        Such as ``words.h5:/test/targets``.
    kind
        ``class``: integers without a further axis, which may be class indices. Else ``values``.
    shape
        Shape of one target: ``()`` or ``(K,)``.
    per_step
        One a step, one a sequence, or None where the shape allows both: the network decides.
    dtype
        Type as stored.
    step_shape
        Shape of one target a step, where `per_step` is None; `shape` is that of one a sequence.
    """

    name: str
    kind: TargetKind
    shape: tuple[int, ...]
    per_step: bool | None
    dtype: str
    step_shape: tuple[int, ...] = ()

    @classmethod
    def of(
        cls,
        name: str,
        dtype: str,
        shape: tuple[int, ...],
        per_step: bool | None,
        step_shape: tuple[int, ...] = (),
    ) -> TargetInfo:
        """Facts about targets, with the kind that type and shape tell."""
        integral = np.dtype(dtype).kind in "iub"
        kind: TargetKind = "class" if integral and shape == () else "values"
        return cls(name, kind, shape, per_step, dtype, step_shape)

    def placed(self, per_step: bool | None) -> TargetInfo:
        """Facts once it is known whether targets are one a step, where the shape allows both."""
        if self.per_step is not None or per_step is None:
            return self
        shape = self.step_shape if per_step else self.shape
        return TargetInfo.of(self.name, self.dtype, shape, per_step)


@dataclass(frozen=True)
class Batch:
    """Some sequences: consecutive ones of one file, or any, in any order, from `Dataset.take`.

    Attributes
    ----------
    x
        (N, T, D), C-contiguous; T is at least 1, padding is 0.
    lengths
        (N,) int64 valid steps; None if all T are.
    targets
        (N,), (N, K), (N, T) or (N, T, K), or None; int64 if they may be class indices, else of
        the dtype of `x`, or a wider one that holds what is stored. Padded steps hold 0.
    known
        (N,) true for sequences that have a target; None if all have. Others hold 0.
    first
        Number of the first sequence in the whole dataset.
    file
        Number of the file that holds the first sequence.
    nbytes
        Bytes the file's own types take for what was read; 0 if it was in memory already.
    """

    x: Array
    lengths: NDArray[np.int64] | None
    targets: Array | None
    first: int
    file: int
    nbytes: int
    known: NDArray[np.bool_] | None = None

    @property
    def count(self) -> int:
        """Sequences N."""
        return int(self.x.shape[0])


def cast(values: Array, dtype: DTypeLike) -> Array:
    """`values` as C-contiguous `dtype`; what a smaller type cannot hold becomes infinite."""
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(values, dtype=dtype)


def holding(*dtypes: DTypeLike) -> np.dtype[Any]:
    """The narrowest real type that holds the numbers of all these, at most float64."""
    wide = np.result_type(np.float32, *(np.dtype(dtype) for dtype in dtypes))
    return min(wide, np.dtype(np.float64), key=lambda dtype: dtype.itemsize)
