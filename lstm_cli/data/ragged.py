"""Sequences of different lengths: padding flat rows, and checking the lengths themselves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lstm_cli.data.types import Array
from lstm_cli.errors import DataError, counted

Lengths = NDArray[np.int64]


def cast(values: Array, dtype: DTypeLike) -> Array:
    """`values` as C-contiguous `dtype`; what a smaller type cannot hold becomes infinite."""
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(values, dtype=dtype)


def holding(*dtypes: DTypeLike) -> np.dtype[Any]:
    """The narrowest real type that holds the numbers of all these, at most float64."""
    wide = np.result_type(np.float32, *(np.dtype(dtype) for dtype in dtypes))
    return min(wide, np.dtype(np.float64), key=lambda dtype: dtype.itemsize)


def valid_steps(lengths: Lengths, steps: int) -> NDArray[np.bool_]:
    """(N, T) true where a step belongs to its sequence."""
    return np.arange(steps) < lengths[:, None]


def pad(rows: Array, lengths: Lengths, steps: int, dtype: DTypeLike) -> Array:
    """Rows (sum T, ...) laid out as (N, steps, ...), padding 0."""
    shape = (len(lengths), steps, *rows.shape[1:])
    if len(rows) == len(lengths) * steps:
        return cast(rows.reshape(shape), dtype)
    padded = np.zeros(shape, dtype)
    with np.errstate(all="ignore"):
        padded[valid_steps(lengths, steps)] = rows
    return padded


def pad_into(rows: Array, lengths: Lengths, out: Array) -> None:
    """Rows (sum T, D) laid out in `out` (N, T, D), padding 0."""
    N, T, D = out.shape
    with np.errstate(all="ignore"):
        if len(rows) == N * T:
            out[...] = rows.reshape(out.shape)
            return
        out[...] = 0
        out[valid_steps(lengths, T)] = rows.reshape(-1, D)


def clear_padding(padded: Array, lengths: Lengths) -> Array:
    """Set the steps past each sequence's end to 0, in place; (N, T, ...)."""
    padded[~valid_steps(lengths, padded.shape[1])] = 0
    return padded


def starts_of(lengths: Lengths) -> Lengths:
    """(N+1,) the row at which each sequence starts, and the end of the last."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def whole_numbers(values: Array, name: str, places: Sequence[str]) -> Lengths:
    """`values` as int64; DataError if any is not a whole number."""
    if values.dtype.kind == "f":
        exact = 2.0 ** (np.finfo(values.dtype).nmant + 1)  # above, neighbours round to one number
        wrong = ~np.isfinite(values) | (values != np.floor(values)) | (np.abs(values) >= exact)
    else:
        wrong = values > np.iinfo(np.int64).max
    if wrong.any():
        place = tuple(int(k) for k in np.argwhere(wrong)[0])
        raise DataError(
            f"{name} holds {values[place]}",
            expected="whole numbers",
            found=f"{values[place]} at {place[0] if len(place) == 1 else place}",
            where=places,
        )
    return values.astype(np.int64)


def check_lengths(lengths: Lengths, name: str, places: Sequence[str], most: int | None) -> None:
    """Raise DataError if a length is negative or above `most`."""
    if (lengths < 0).any():
        n = int(np.argmax(lengths < 0))
        raise DataError(
            f"sequence {n} has length {lengths[n]}",
            expected="0 or more steps",
            found=f"{lengths[n]} in {name}",
            where=places,
        )
    if most is not None and (lengths > most).any():
        n = int(np.argmax(lengths > most))
        raise DataError(
            f"sequence {n} has length {lengths[n]}, but there are {counted(most, 'step')}",
            expected=f"at most {most}",
            found=f"{lengths[n]} in {name}",
            where=places,
        )


def check_total(
    lengths: Lengths,
    rows: int,
    name: str,
    inputs: str,
    places: Sequence[str],
    hint: str | None = None,
) -> None:
    """Raise DataError unless the lengths add up to the rows of the inputs."""
    # Python's integers: a forged file may hold lengths whose sum wraps round to the right one.
    total = sum(lengths.tolist())
    if total == rows:
        return
    # As floating point the running sum cannot wrap, and is exact up to 2^53 rows.
    past = np.cumsum(lengths, dtype=np.float64) > rows
    n = int(np.argmax(past)) if past.any() else len(lengths) - 1
    end = sum(lengths[: n + 1].tolist())
    raise DataError(
        f"the lengths add up to {counted(total, 'step')}, but {inputs} has {counted(rows, 'row')}: "
        f"sequence {n} would end at row {end}",
        expected=f"{counted(rows, 'step')} in all",
        found=f"{total} in {name}",
        where=places,
        hint=hint,
    )
