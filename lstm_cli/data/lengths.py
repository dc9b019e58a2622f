"""Lengths of sequences: read from lengths, offsets or a mask, checked, and used to pad rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from lstm_cli.data.dataset_roles import need_lengths
from lstm_cli.data.types import Array, DataOptions, cast
from lstm_cli.errors import DataError, Problem, counted
from lstm_cli.hdf5.dataset import Stored
from lstm_cli.hdf5.writing import Beside, inverting_command, turning_command

Lengths = NDArray[np.int64]


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


MASK_BLOCK_BYTES = 16 << 20
"""A mask is turned into lengths in blocks of about this size."""


def lengths_table(stored: Stored, options: DataOptions) -> Lengths:
    """(N, columns) lengths: column 0 the inputs', further ones RETURNN's targets'."""
    places = options.places(stored.where)
    need_lengths(stored, "lengths", places)
    if stored.rank not in (1, 2) or (stored.rank == 2 and stored.shape[1] == 0):
        raise DataError(
            f"{stored.where} has shape {stored.shape}",
            expected="lengths (N,), or (N, 1 + targets)",
            found=str(stored.shape),
            where=places,
        )
    table = whole_numbers(stored.read(), stored.where, places)
    return table.reshape(len(table), -1) if table.size else np.zeros((0, 1), np.int64)


def only_lengths(stored: Stored, options: DataOptions) -> Lengths:
    """(N,) lengths; DataError if there are further columns that say something else."""
    table = lengths_table(stored, options)
    if (table != table[:, :1]).any():
        n = int(np.argmax((table != table[:, :1]).any(axis=1)))
        raise DataError(
            f"{stored.where} has {counted(table.shape[1], 'column')}, which differ in sequence {n}",
            expected=f"one length each, ({len(table)},)",
            found=", ".join(map(str, table[n].tolist())),
            where=options.places(stored.where),
        )
    return table[:, 0]


def lengths_of_offsets(stored: Stored, rows: int, options: DataOptions) -> Lengths:
    """(N,) lengths from offsets (N+1,), which begin at 0 and end at `rows`."""
    places = options.places(stored.where)
    need_lengths(stored, "offsets", places)
    if stored.rank != 1 or stored.shape[0] == 0:
        raise DataError(
            f"{stored.where} has shape {stored.shape}",
            expected="offsets (N + 1,)",
            found=str(stored.shape),
            where=places,
        )
    offsets = whole_numbers(stored.read(), stored.where, places)
    if offsets[0] != 0 or offsets[-1] != rows:
        raise DataError(
            f"the offsets run from {offsets[0]} to {offsets[-1]}",
            expected=f"0 to {rows}, the rows of the inputs",
            found=f"{offsets[0]} to {offsets[-1]} in {stored.where}",
            where=places,
        )
    lengths = np.diff(offsets)
    check_lengths(lengths, stored.where, places, rows)
    return lengths


def rows_of_mask(stored: Stored, N: int, T: int, file: str, options: DataOptions) -> MaskRows:
    """How the valid steps lie in a mask (N, T), which is read in blocks.

    Raises
    ------
    DataError
        It has another shape, or holds more than 0 and 1.
    """
    places = options.places(stored.where)
    need_lengths(stored, "mask", places)
    shape = (*stored.shape[:2], *(size for size in stored.shape[2:] if size != 1))
    if shape != (N, T):
        raise DataError(
            f"{stored.where} has shape {stored.shape}",
            expected=f"mask (N, T) = {(N, T)}",
            found=str(stored.shape),
            where=places,
        )
    sums, first, last = np.zeros((3, N), np.int64)
    block = max(1, MASK_BLOCK_BYTES // max(1, T * stored.dtype.itemsize))
    for start in range(0, N if T else 0, block):
        values = stored.read(slice(start, start + block)).reshape(-1, T)
        refuse_values(values, start, stored, file, options)
        kept, own = values != 0, slice(start, start + block)
        sums[own] = kept.sum(axis=1)
        first[own] = kept.argmax(axis=1)
        last[own] = np.where(kept.any(axis=1), T - kept[:, ::-1].argmax(axis=1), 0)
    return MaskRows(stored, sums, first, last, T)


def check_count(
    lengths: Lengths, N: int, name: str, options: DataOptions, hint: str | None = None
) -> None:
    """Raise DataError unless there is one length a sequence."""
    if len(lengths) != N:
        raise DataError(
            f"{name} has {counted(len(lengths), 'length')} for {counted(N, 'sequence')}",
            expected=f"({N},)",
            found=f"({len(lengths)},)",
            where=options.places(name),
            hint=hint,
        )


def agreed(told: dict[str, Lengths], options: DataOptions) -> Lengths | None:
    """The lengths that all sources tell; DataError if two differ."""
    names = list(told)
    for other in names[1:]:
        a, b = told[names[0]], told[other]
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
    return told[names[0]] if names else None


SAMPLE = 32
"""Sequences that are looked at to tell where padding stands."""

SAMPLE_BYTES = 16 << 20

INVERTED = "1 where padding stands, as PyTorch's key_padding_mask is"

ORDER = "valid steps first, then padding"


@dataclass(frozen=True)
class MaskRows:
    """How the valid steps lie in each sequence of a mask.

    Attributes
    ----------
    stored
        The mask.
    sums
        (N,) number of valid steps.
    first, last
        (N,) the first valid step, and the one after the last; both 0 where there is none.
    steps
        Steps T.
    """

    stored: Stored
    sums: Lengths
    first: Lengths
    last: Lengths
    steps: int

    @property
    def holes(self) -> NDArray[np.bool_]:
        """(N,) whether steps between valid ones are left out."""
        return self.last - self.first > self.sums

    @property
    def in_order(self) -> bool:
        """Whether valid steps come first in every sequence."""
        return not self.first.any() and not self.holes.any()

    @property
    def usable(self) -> bool:
        """Whether they are `in_order`, and some sequence has one."""
        return self.in_order and bool(self.sums.any() or not self.sums.size or not self.steps)

    @property
    def may_be_inverted(self) -> bool:
        """Whether all would be right if the mask held 1 where padding stands."""
        return bool(((self.last == self.steps) | (self.sums == 0)).all()) and not self.holes.any()


def misread_mask(rows: MaskRows, beside: Beside, options: DataOptions) -> DataError:
    """The error for a mask that is not `usable`: holes, padding in front, or a mask inverted."""
    if rows.holes.any():
        return _holes(rows, beside, options)
    padding = rows.first > 0
    n, where = int(np.argmax(padding)), rows.stored.where
    inverted, why = _is_inverted(rows, beside)
    turn, invert = turning_command(rows.stored, beside), inverting_command(rows.stored, beside)
    if not padding.any():
        what = f"{where} is 0 at every step of every sequence"
        found, hint = f"a mask that may be {INVERTED}", invert
    elif inverted is None:
        what = f"{where} begins with 0 in {_of(padding)}"
        found = f"padding in front, or a mask that is {INVERTED}; {why}"
        hint = f"for padding in front, {turn}; for a mask that is 1 at padding, {invert}"
    elif inverted:
        what = f"{where} is {INVERTED}"
        found, hint = why, invert
    else:
        what = f"the padding stands in front of the valid steps in {_of(padding)}"
        found = (
            f"{counted(int(rows.first[n]), 'step')} of padding in front of sequence {n}, {where}"
        )
        hint = turn
    expected = f"1 at valid steps, 0 at padding; {ORDER}"
    return DataError(what, expected=expected, found=found, where=options.places(where), hint=hint)


def _holes(rows: MaskRows, beside: Beside, options: DataOptions) -> DataError:
    n = int(np.argmax(rows.holes))
    kept = rows.stored.read((slice(n, n + 1),)).reshape(rows.steps) != 0
    begin = int(rows.first[n])
    step = begin + int(np.argmin(kept[begin:]))
    front = f"; padding stands in front in {_of(rows.first > 0)}" if rows.first.any() else ""
    return DataError(
        f"the mask of sequence {n} has a hole at step {step}",
        expected=f"{ORDER}; a step between valid ones is valid too",
        found=f"{_of(rows.holes)} with steps left out between valid ones{front}",
        where=options.places(rows.stored.where),
        hint=f"fill those steps in and set the mask to 1 there; or, if the steps around them may "
        f"become neighbors, {turning_command(rows.stored, beside)}",
    )


def refuse_values(values: Array, start: int, mask: Stored, file: str, options: DataOptions) -> None:
    """Raise DataError where a mask holds more than 0 and 1, or 0 and another whole number.

    Parameters
    ----------
    values
        (n, T) of the sequences from `start` on.
    """
    real = values.dtype.kind == "f"
    # Whole numbers may be 0 and 255; several of them number the pieces of a row, say.
    wrong = ~np.isin(values, (0, 1 if real else values.max(initial=0)))
    if not wrong.any():
        return
    n, t = np.argwhere(wrong)[0].tolist()
    value = values[n, t]
    added = real and value < 0  # what attention adds to its scores: 0 keeps a step
    other = f"{value:g}" if real else f"{value} beside {values.max()}: numbers of pieces, say"
    raise DataError(
        f"the mask holds {value:g} at sequence {start + n}, step {t}",
        expected="1 at valid steps, 0 at padding",
        found="a mask that is added to scores: 0 at valid steps" if added else other,
        where=options.places(mask.where),
        hint=inverting_command(mask, Beside(file, mask)) if added else None,
    )


def padding_problem(
    mask: Stored | None, lengths: Stored | None, beside: Beside, sums: Lengths
) -> Problem | None:
    """Padding that seems to stand in front of steps that lengths, or a mask, declare valid.

    Told by blank steps where values should be, and values where padding should be.
    """
    N, T = beside.inputs.shape[:2]
    ragged = np.flatnonzero((sums > 0) & (sums < T))
    if not ragged.size:
        return None
    begin, x = _sample(beside.inputs, int(ragged[0]))
    own = ragged[(ragged >= begin) & (ragged < begin + len(x))]
    rows, steps = x[own - begin], np.arange(T)
    valid = steps < sums[own, None]
    if mask is not None:
        if not _differs(rows[valid], rows[~valid]):
            return None
        return Problem(
            f"the inputs are blank at the valid steps and not at the others: "
            f"{mask.where} may be {INVERTED}",
            expected="1 at valid steps, 0 at padding",
            where=(beside.inputs.where,),
            hint=inverting_command(mask, beside),
        )
    front = steps < T - sums[own, None]
    if lengths is None or not _differs(rows[front], rows[~valid]):
        return None
    return Problem(
        f"the padding seems to stand in front in {counted(len(ragged), 'sequence')} of {N}: the "
        f"first steps are blank, and steps past the length are not",
        expected=ORDER,
        where=(beside.inputs.where, lengths.where),
        hint=turning_command(lengths, beside),
    )


def _is_inverted(rows: MaskRows, beside: Beside) -> tuple[bool | None, str]:
    """Whether a mask is 1 at padding, None if nothing tells; and what tells it."""
    if not rows.may_be_inverted:
        return False, ""
    T, lengths = rows.steps, beside.lengths
    if lengths is not None and len(lengths) == len(rows.sums):
        right, turned = (bool((sums == lengths).all()) for sums in (rows.sums, T - rows.sums))
        if right != turned:
            return turned, "the lengths count the steps at which it is 0"
    begin, x = _sample(beside.inputs, int(np.argmax(rows.first > 0)))
    own = slice(begin, begin + len(x))
    valid = (np.arange(T) >= rows.first[own, None]) & (rows.sums[own, None] > 0)
    for blank in (_zero, _blank):
        kept, left = blank(x[valid]), blank(x[~valid])
        if kept != left:
            return kept, "the inputs are blank where it is 1, and hold values where it is 0"
    full, empty = bool((rows.sums == T).any()), bool((rows.sums == 0).any())
    if full != empty:
        return empty, "no sequence is 1 at every step, and some are 0 at every step"
    return None, "the inputs do not tell which"


def _sample(inputs: Stored, begin: int) -> tuple[int, Array]:
    """Some sequences (n, T, D) from `begin` on; none if a single one is large."""
    _, T, D = inputs.shape
    n = min(SAMPLE, SAMPLE_BYTES // max(1, T * D * inputs.dtype.itemsize))
    return begin, inputs.read((slice(begin, begin + n),))


def _differs(blank: Array, values: Array) -> bool:
    """Whether the first values are all the same, and the second ones are not that one too."""
    return _blank(blank) and not _zero(values) and not _blank(np.concatenate([blank, values]))


def _zero(values: Array) -> bool:
    """Whether there are values, and all are 0, NaN or infinite."""
    return bool(values.size) and not np.any(values[np.isfinite(values)])


def _blank(values: Array) -> bool:
    """Whether there are values, and all are the same, NaN or infinite."""
    if not values.size:
        return False
    unknown = ~np.isfinite(values)
    return bool(unknown.all() or (values == values.flat[0]).all())


def _of(which: NDArray[np.bool_]) -> str:
    """``3 of 5 sequences``."""
    return f"{int(which.sum())} of {counted(len(which), 'sequence')}"
