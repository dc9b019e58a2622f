"""Masks and lengths that do not say valid steps first, then padding: what to do about them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lstm_cli.data.ragged import Lengths
from lstm_cli.data.rewriting import Beside, inverting_command, turning_command
from lstm_cli.data.storage import Stored
from lstm_cli.data.types import Array, DataOptions
from lstm_cli.errors import DataError, Problem, counted

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
