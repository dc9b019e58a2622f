"""Lengths of sequences: read from lengths, offsets or a mask, checked, and used to pad rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lstm_cli.data.dataset_roles import require_length_type
from lstm_cli.data.types import Array, DataOptions, cast_to
from lstm_cli.errors import DataError, Problem, counted
from lstm_cli.hdf5.dataset import Dataset
from lstm_cli.hdf5.writer import PaddedArrays, inverted_mask_command, padding_last_command

Lengths = NDArray[np.int64]


def valid_steps(lengths: Lengths, steps: int) -> NDArray[np.bool_]:
    """(N, T) true at valid steps, false at padding."""
    return np.arange(steps) < lengths[:, None]


def pad(rows: Array, lengths: Lengths, steps: int, dtype: DTypeLike) -> Array:
    """Rows (sum T, ...) padded with 0 to (N, steps, ...)."""
    shape = (len(lengths), steps, *rows.shape[1:])
    if len(rows) == len(lengths) * steps:
        return cast_to(rows.reshape(shape), dtype)
    padded = np.zeros(shape, dtype)
    with np.errstate(all="ignore"):
        padded[valid_steps(lengths, steps)] = rows
    return padded


def pad_into(rows: Array, lengths: Lengths, out: Array) -> None:
    """Write rows (sum T, D) to `out` (N, T, D), padded with 0."""
    N, T, D = out.shape
    with np.errstate(all="ignore"):
        if len(rows) == N * T:
            out[...] = rows.reshape(out.shape)
            return
        out[...] = 0
        out[valid_steps(lengths, T)] = rows.reshape(-1, D)


def clear_padding(padded: Array, lengths: Lengths) -> Array:
    """Set the padding of (N, T, ...) to 0 in place."""
    padded[~valid_steps(lengths, padded.shape[1])] = 0
    return padded


def starts_of(lengths: Lengths) -> Lengths:
    """(N + 1,) row at which each sequence starts, and the end of the last."""
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


def whole_numbers(values: Array, name: str, places: Sequence[str]) -> Lengths:
    """`values` as int64; DataError if a value is not a whole number."""
    if values.dtype.kind == "f":
        # Above this limit, neighboring integers round to the same number.
        exact = 2.0 ** (np.finfo(values.dtype).nmant + 1)
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


def check_lengths(lengths: Lengths, name: str, places: Sequence[str], maximum: int | None) -> None:
    """Raise DataError if a length is negative or above `maximum`."""
    if (lengths < 0).any():
        n = int(np.argmax(lengths < 0))
        raise DataError(
            f"sequence {n} has length {lengths[n]}",
            expected="0 or more steps",
            found=f"{lengths[n]} in {name}",
            where=places,
        )
    if maximum is not None and (lengths > maximum).any():
        n = int(np.argmax(lengths > maximum))
        raise DataError(
            f"sequence {n} has length {lengths[n]}, but there are {counted(maximum, 'step')}",
            expected=f"at most {maximum}",
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
    # Python integers cannot overflow: forged lengths may wrap around to the expected sum.
    total = sum(lengths.tolist())
    if total == rows:
        return
    # Floating-point sums cannot wrap around, and are exact up to 2^53 rows.
    exceeds = np.cumsum(lengths, dtype=np.float64) > rows
    n = int(np.argmax(exceeds)) if exceeds.any() else len(lengths) - 1
    end = sum(lengths[: n + 1].tolist())
    raise DataError(
        f"the lengths add up to {counted(total, 'step')}, but {inputs} has {counted(rows, 'row')}: "
        f"sequence {n} would end at row {end}",
        expected=f"{counted(rows, 'step')} in all",
        found=f"{total} in {name}",
        where=places,
        hint=hint,
    )


MASK_BLOCK_BYTES = 16 << 20
"""Approximate bytes of a mask that are read together."""


def lengths_table(dataset: Dataset, options: DataOptions) -> Lengths:
    """(N, columns) lengths. Column 0 is for the inputs, further columns for RETURNN's targets."""
    places = options.places(dataset.where)
    require_length_type(dataset, "lengths", places)
    if dataset.rank not in (1, 2) or (dataset.rank == 2 and dataset.shape[1] == 0):
        raise DataError(
            f"{dataset.where} has shape {dataset.shape}",
            expected="lengths (N,), or (N, 1 + targets)",
            found=str(dataset.shape),
            where=places,
        )
    table = whole_numbers(dataset.read(), dataset.where, places)
    return table.reshape(len(table), -1) if table.size else np.zeros((0, 1), np.int64)


def single_lengths(dataset: Dataset, options: DataOptions) -> Lengths:
    """(N,) lengths; DataError if there are further columns that differ."""
    table = lengths_table(dataset, options)
    if (table != table[:, :1]).any():
        n = int(np.argmax((table != table[:, :1]).any(axis=1)))
        raise DataError(
            f"{dataset.where} has {counted(table.shape[1], 'column')}, "
            f"which differ in sequence {n}",
            expected=f"one length each, ({len(table)},)",
            found=", ".join(map(str, table[n].tolist())),
            where=options.places(dataset.where),
        )
    return table[:, 0]


def lengths_of_offsets(dataset: Dataset, rows: int, options: DataOptions) -> Lengths:
    """(N,) lengths from offsets (N + 1,), which begin at 0 and end at `rows`."""
    places = options.places(dataset.where)
    require_length_type(dataset, "offsets", places)
    if dataset.rank != 1 or dataset.shape[0] == 0:
        raise DataError(
            f"{dataset.where} has shape {dataset.shape}",
            expected="offsets (N + 1,)",
            found=str(dataset.shape),
            where=places,
        )
    offsets = whole_numbers(dataset.read(), dataset.where, places)
    if offsets[0] != 0 or offsets[-1] != rows:
        raise DataError(
            f"the offsets run from {offsets[0]} to {offsets[-1]}",
            expected=f"0 to {rows}, the rows of the inputs",
            found=f"{offsets[0]} to {offsets[-1]} in {dataset.where}",
            where=places,
        )
    lengths = np.diff(offsets)
    check_lengths(lengths, dataset.where, places, rows)
    return lengths


def read_mask(dataset: Dataset, N: int, T: int, file: str, options: DataOptions) -> ValidSteps:
    """Valid steps of a mask (N, T), which is read in blocks.

    Raises
    ------
    DataError
        The mask has another shape, or holds other values than 0 and 1.
    """
    places = options.places(dataset.where)
    require_length_type(dataset, "mask", places)
    shape = (*dataset.shape[:2], *(size for size in dataset.shape[2:] if size != 1))
    if shape != (N, T):
        raise DataError(
            f"{dataset.where} has shape {dataset.shape}",
            expected=f"mask (N, T) = {(N, T)}",
            found=str(dataset.shape),
            where=places,
        )
    sums, first, last = np.zeros((3, N), np.int64)
    block = max(1, MASK_BLOCK_BYTES // max(1, T * dataset.dtype.itemsize))
    for start in range(0, N if T else 0, block):
        values = dataset.read(slice(start, start + block)).reshape(-1, T)
        check_mask_values(values, start, dataset, file, options)
        valid, rows = values != 0, slice(start, start + block)
        sums[rows] = valid.sum(axis=1)
        first[rows] = valid.argmax(axis=1)
        last[rows] = np.where(valid.any(axis=1), T - valid[:, ::-1].argmax(axis=1), 0)
    return ValidSteps(dataset, sums, first, last, T)


def check_count(
    lengths: Lengths, N: int, name: str, options: DataOptions, hint: str | None = None
) -> None:
    """Raise DataError unless there is one length per sequence."""
    if len(lengths) != N:
        raise DataError(
            f"{name} has {counted(len(lengths), 'length')} for {counted(N, 'sequence')}",
            expected=f"({N},)",
            found=f"({len(lengths)},)",
            where=options.places(name),
            hint=hint,
        )


def matching_lengths(lengths_by_name: dict[str, Lengths], options: DataOptions) -> Lengths | None:
    """The lengths that all datasets agree on, by dataset name; DataError if two differ."""
    names = list(lengths_by_name)
    for other in names[1:]:
        a, b = lengths_by_name[names[0]], lengths_by_name[other]
        if len(a) != len(b):
            raise DataError(
                f"{names[0]} and {other} disagree",
                expected=f"{counted(len(a), 'sequence')}, as {names[0]} says",
                found=f"{len(b)} in {other}",
                where=options.places(names[0], other),
            )
        if (a != b).any():
            n = int(np.argmax(a != b))
            raise DataError(
                f"{names[0]} and {other} disagree on sequence {n}",
                expected=f"{counted(a[n], 'step')}, as {names[0]} says",
                found=f"{b[n]} in {other}",
                where=options.places(names[0], other),
            )
    return lengths_by_name[names[0]] if names else None


SAMPLE_SEQUENCES = 32
"""Number of sequences that are read to find out where the padding is."""

SAMPLE_BYTES = 16 << 20
"""Bytes of inputs that are read to find out where the padding is."""

INVERTED_MASK = "1 at padding, as PyTorch's key_padding_mask is"

ORDER = "valid steps first, then padding"


@dataclass(frozen=True)
class ValidSteps:
    """Positions of the valid steps in a mask.

    Attributes
    ----------
    dataset
        The mask.
    sums
        (N,) number of valid steps.
    first, last
        (N,) first valid step, and the step after the last valid one; both 0 without valid steps.
    steps
        Number of steps T.
    """

    dataset: Dataset
    sums: Lengths
    first: Lengths
    last: Lengths
    steps: int

    @property
    def holes(self) -> NDArray[np.bool_]:
        """(N,) true if there is padding between valid steps."""
        return self.last - self.first > self.sums

    @property
    def in_order(self) -> bool:
        """Whether valid steps come first in every sequence."""
        return not self.first.any() and not self.holes.any()

    @property
    def usable(self) -> bool:
        """Whether valid steps are `in_order`, and some sequence has one."""
        return self.in_order and bool(self.sums.any() or not self.sums.size or not self.steps)

    @property
    def may_be_inverted(self) -> bool:
        """Whether the inverted mask would be `in_order`."""
        return bool(((self.last == self.steps) | (self.sums == 0)).all()) and not self.holes.any()


def mask_error(mask_steps: ValidSteps, arrays: PaddedArrays, options: DataOptions) -> DataError:
    """The error for a mask that is not `usable`: holes, leading padding, or an inverted mask."""
    if mask_steps.holes.any():
        return _holes_error(mask_steps, arrays, options)
    padding = mask_steps.first > 0
    n, where = int(np.argmax(padding)), mask_steps.dataset.where
    inverted, why = _is_inverted(mask_steps, arrays)
    move_padding = padding_last_command(mask_steps.dataset, arrays)
    invert = inverted_mask_command(mask_steps.dataset, arrays)
    if not padding.any():
        what = f"{where} is 0 at every step of every sequence"
        contents, hint = f"a mask that may be {INVERTED_MASK}", invert
    elif inverted is None:
        what = f"{where} begins with 0 in {_share(padding)}"
        contents = f"padding in front, or a mask that is {INVERTED_MASK}; {why}"
        hint = f"for padding in front, {move_padding}; for a mask that is 1 at padding, {invert}"
    elif inverted:
        what = f"{where} is {INVERTED_MASK}"
        contents, hint = why, invert
    else:
        what = f"the padding is in front of the valid steps in {_share(padding)}"
        count = counted(int(mask_steps.first[n]), "step")
        contents = f"{count} of padding in front of sequence {n}, {where}"
        hint = move_padding
    expected = f"1 at valid steps, 0 at padding; {ORDER}"
    return DataError(
        what, expected=expected, found=contents, where=options.places(where), hint=hint
    )


def _holes_error(mask_steps: ValidSteps, arrays: PaddedArrays, options: DataOptions) -> DataError:
    n = int(np.argmax(mask_steps.holes))
    valid = mask_steps.dataset.read((slice(n, n + 1),)).reshape(mask_steps.steps) != 0
    begin = int(mask_steps.first[n])
    step = begin + int(np.argmin(valid[begin:]))
    front = (
        f"; padding is in front in {_share(mask_steps.first > 0)}" if mask_steps.first.any() else ""
    )
    return DataError(
        f"the mask of sequence {n} has a hole at step {step}",
        expected=f"{ORDER}; every step between valid steps is valid too",
        found=f"{_share(mask_steps.holes)} with steps left out between valid ones{front}",
        where=options.places(mask_steps.dataset.where),
        hint=f"fill in the missing steps and set the mask to 1 there; or, if the steps around "
        f"them may become neighbors, {padding_last_command(mask_steps.dataset, arrays)}",
    )


def check_mask_values(
    values: Array, start: int, mask: Dataset, file: str, options: DataOptions
) -> None:
    """Raise DataError unless a mask holds 0 and 1, or 0 and one other whole number.

    Parameters
    ----------
    values
        (n, T) values of the mask.
    start
        Number of the first sequence.
    mask, file
        The mask and the path of its file, for the error.
    """
    real = values.dtype.kind == "f"
    # Whole numbers may be 0 and 255. Several numbers may be segment numbers.
    wrong = ~np.isin(values, (0, 1 if real else values.max(initial=0)))
    if not wrong.any():
        return
    n, t = np.argwhere(wrong)[0].tolist()
    value = values[n, t]
    additive = real and value < 0  # added to attention scores: 0 keeps a step
    other = f"{value:g}" if real else f"{value} and {values.max()}: segment numbers, for example"
    raise DataError(
        f"the mask holds {value:g} at sequence {start + n}, step {t}",
        expected="1 at valid steps, 0 at padding",
        found="a mask that is added to scores: 0 at valid steps" if additive else other,
        where=options.places(mask.where),
        hint=inverted_mask_command(mask, PaddedArrays(file, mask)) if additive else None,
    )


def padding_problem(
    mask: Dataset | None, lengths: Dataset | None, arrays: PaddedArrays, sums: Lengths
) -> Problem | None:
    """Problem if padding seems to precede steps that lengths, or a mask, declare valid.

    The signs are blank steps in the place of values, and values in the place of padding.
    """
    N, T = arrays.inputs.shape[:2]
    padded = np.flatnonzero((sums > 0) & (sums < T))
    if not padded.size:
        return None
    begin, x = _sample(arrays.inputs, int(padded[0]))
    numbers = padded[(padded >= begin) & (padded < begin + len(x))]
    rows, steps = x[numbers - begin], np.arange(T)
    valid = steps < sums[numbers, None]
    if mask is not None:
        if not _differs_from_blank(rows[valid], rows[~valid]):
            return None
        return Problem(
            f"the inputs are blank at the valid steps and not at the others: "
            f"{mask.where} may be {INVERTED_MASK}",
            expected="1 at valid steps, 0 at padding",
            where=(arrays.inputs.where,),
            hint=inverted_mask_command(mask, arrays),
        )
    front = steps < T - sums[numbers, None]
    if lengths is None or not _differs_from_blank(rows[front], rows[~valid]):
        return None
    return Problem(
        f"the padding seems to be in front in {counted(len(padded), 'sequence')} of {N}: the "
        f"first steps are blank, and steps after the length are not",
        expected=ORDER,
        where=(arrays.inputs.where, lengths.where),
        hint=padding_last_command(lengths, arrays),
    )


def _is_inverted(mask_steps: ValidSteps, arrays: PaddedArrays) -> tuple[bool | None, str]:
    """Whether a mask is 1 at padding, or None if that is unknown; and the reason."""
    if not mask_steps.may_be_inverted:
        return False, ""
    T, lengths = mask_steps.steps, arrays.lengths
    if lengths is not None and len(lengths) == len(mask_steps.sums):
        right = bool((mask_steps.sums == lengths).all())
        inverted = bool((T - mask_steps.sums == lengths).all())
        if right != inverted:
            return inverted, "the lengths count the steps at which it is 0"
    begin, x = _sample(arrays.inputs, int(np.argmax(mask_steps.first > 0)))
    rows = slice(begin, begin + len(x))
    ones = (np.arange(T) >= mask_steps.first[rows, None]) & (mask_steps.sums[rows, None] > 0)
    for is_blank in (_all_zero, _all_equal):
        blank_at_ones, blank_at_zeros = is_blank(x[ones]), is_blank(x[~ones])
        if blank_at_ones != blank_at_zeros:
            reason = "the inputs are blank where it is 1, and hold values where it is 0"
            return blank_at_ones, reason
    full, empty = bool((mask_steps.sums == T).any()), bool((mask_steps.sums == 0).any())
    if full != empty:
        return empty, "no sequence is 1 at every step, and some are 0 at every step"
    return None, "the inputs do not tell which"


def _sample(inputs: Dataset, begin: int) -> tuple[int, Array]:
    """Number of the first, and inputs (n, T, D), of a few sequences; n = 0 if one is too large."""
    _, T, D = inputs.shape
    n = min(SAMPLE_SEQUENCES, SAMPLE_BYTES // max(1, T * D * inputs.dtype.itemsize))
    return begin, inputs.read((slice(begin, begin + n),))


def _differs_from_blank(blank: Array, values: Array) -> bool:
    """Whether the first values are all equal, and the second ones differ from them."""
    return (
        _all_equal(blank)
        and not _all_zero(values)
        and not _all_equal(np.concatenate([blank, values]))
    )


def _all_zero(values: Array) -> bool:
    return bool(values.size) and not np.any(values[np.isfinite(values)])


def _all_equal(values: Array) -> bool:
    if not values.size:
        return False
    unknown = ~np.isfinite(values)
    return bool(unknown.all() or (values == values.flat[0]).all())


def _share(which: NDArray[np.bool_]) -> str:
    return f"{int(which.sum())} of {counted(len(which), 'sequence')}"
