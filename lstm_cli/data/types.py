"""Types of the data folder: options, windows, batches, facts about targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

Array: TypeAlias = NDArray[Any]

TargetKind: TypeAlias = Literal["class", "values"]

Allocator: TypeAlias = Callable[[tuple[int, ...], np.dtype[Any]], Array]
"""Function that makes the array for the inputs of a batch, from shape and dtype.

The array is C-contiguous and its values are arbitrary: ``numpy.empty``, or page-locked memory.
"""

LAYOUTS = ("dense", "concatenated", "vlen", "groups", "series")

MAX_BATCH_BYTES = 256 << 20
"""Largest number of bytes of a batch's padded inputs, unless rows must stay together."""


@dataclass(frozen=True)
class Window:
    """Windows into which sequences are cut.

    Attributes
    ----------
    length
        Steps in a window.
    stride
        Steps between the starts of two neighboring windows.
    horizon
        Steps between the last step of a window and its first target.
    predict
        Consecutive steps that the targets of a window cover.
    """

    length: int
    stride: int = 1
    horizon: int = 1
    predict: int = 1

    @property
    def reach(self) -> int:
        """Steps between the last step of a window and its last target."""
        return self.horizon + self.predict - 1


@dataclass(frozen=True)
class DataOptions:
    """Options of the config and the command line about the data. None means to detect.

    Attributes
    ----------
    inputs, targets, lengths, offsets, mask
        Names of datasets, relative to the group (in the groups layout: to each child group).
    layout
        One of `LAYOUTS`.
    window
        Cut every sequence into windows.
    transpose
        The axes in the file are reversed (True) or not (False). With None, a file that declares
        reversed axes is refused.
    need_targets
        A missing dataset of configured targets is an error; else it is a note.
    features
        Input size of the config: features in a step of the vlen layout, if the file does not
        say it.
    where
        Place where names and layout were set, such as ``configs/mine.yaml line 12``, for errors.
    allow_external
        Follow external links, virtual datasets and external storage, and accept any shape.
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
        """Places that an error names: those in `more`, then `where` if any option is set."""
        names = (self.inputs, self.targets, self.lengths, self.offsets, self.mask, self.layout)
        unset = self.window is None and self.transpose is None
        if self.where is None or (unset and not any(names)):
            return more
        return (*more, self.where)


@dataclass(frozen=True)
class TargetInfo:
    """Facts about targets that the file tells.

    Attributes
    ----------
    name
        File and path, such as ``words.h5:/test/targets``.
    kind
        ``class`` for integers without a further axis, which may be class indices; else
        ``values``.
    shape
        Shape of one target: ``()`` or ``(K,)``.
    per_step
        True for one target per step, False for one per sequence. None if the shape allows both
        and the network decides.
    dtype
        Type in the file.
    step_shape
        Shape of one target per step if `per_step` is None; then `shape` is the shape of one
        target per sequence.
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
        """Facts about targets, with the kind that follows from type and shape."""
        integral = np.dtype(dtype).kind in "iub"
        kind: TargetKind = "class" if integral and shape == () else "values"
        return cls(name, kind, shape, per_step, dtype, step_shape)

    def resolve(self, per_step: bool | None) -> TargetInfo:
        """The facts with `per_step` decided, if the shape allows both."""
        if self.per_step is not None or per_step is None:
            return self
        shape = self.step_shape if per_step else self.shape
        return TargetInfo.of(self.name, self.dtype, shape, per_step)


@dataclass(frozen=True)
class Batch:
    """Some sequences: consecutive ones of one file, or any, from `SequenceData.take`.

    Attributes
    ----------
    x
        (N, T, D), C-contiguous; T is at least 1, padding is 0.
    lengths
        (N,) int64 valid steps; None if all T are.
    targets
        (N,), (N, K), (N, T) or (N, T, K), or None. They are int64 if they may be class indices,
        else the dtype of `x`, or a wider dtype that holds the values in the file. Padded steps
        hold 0.
    has_target
        (N,) true for sequences with a target; None if all have one. Other targets hold 0.
    first
        Number of the first sequence in the whole dataset.
    file
        Number of the file that holds the first sequence.
    nbytes
        Bytes read, in the types of the file; 0 if the sequences were in memory.
    """

    x: Array
    lengths: NDArray[np.int64] | None
    targets: Array | None
    first: int
    file: int
    nbytes: int
    has_target: NDArray[np.bool_] | None = None

    @property
    def count(self) -> int:
        """Sequences N."""
        return int(self.x.shape[0])


def cast_to(values: Array, dtype: DTypeLike) -> Array:
    """`values` as C-contiguous `dtype`. Values outside the range of `dtype` become infinite."""
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(values, dtype=dtype)


def common_dtype(*dtypes: DTypeLike) -> np.dtype[Any]:
    """The narrowest floating-point type that holds the numbers of all types, at most float64."""
    wide = np.result_type(np.float32, *(np.dtype(dtype) for dtype in dtypes))
    return min(wide, np.dtype(np.float64), key=lambda dtype: dtype.itemsize)
