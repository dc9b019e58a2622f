"""The text of one matrix, turned to numbers as it comes, never more of them than were declared."""

from __future__ import annotations

import re

import numpy as np

from lstm_cli.engines.types import Array

CHUNK = 1 << 16
"""Characters that are gathered before they are turned to numbers."""
LONGEST_NUMBER = 400
SINGLE_DIGITS = 9
"""Significant digits that tell any two float32 apart; with more, a file was written in double."""

_MANTISSA = re.compile(r"[+-]?0*\.?0*([0-9]*\.?[0-9]*)")


class NumberError(ValueError):
    """Text that is not the numbers it should be; says what was found."""


class Numbers:
    """The numbers of one element, row by row.

    Parameters
    ----------
    rows, columns
        As declared.

    Attributes
    ----------
    digits
        Significant digits of the longest number so far.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.rows, self.columns = rows, columns
        self.digits = 0
        self._count = 0
        self._parts: list[Array] = []
        self._pending: list[str] = []
        self._length = 0

    def feed(self, text: str) -> None:
        """Take more of the text.

        Raises
        ------
        NumberError
            A word that is no number, or more numbers than were declared.
        """
        self._pending.append(text)
        self._length += len(text)
        if self._length >= CHUNK:
            whole = "".join(self._pending)
            cut = max(whole.rfind(space) for space in " \n\t") + 1
            self._convert(whole[:cut])
            self._keep(whole[cut:])

    def matrix(self) -> Array:
        """All of it, (rows, columns) in float64.

        Raises
        ------
        NumberError
            Fewer numbers than were declared, or what `feed` raises.
        """
        self._convert("".join(self._pending))
        self._keep("")
        if self._count != self.rows * self.columns:
            raise NumberError(f"{self._count:,} numbers")
        values = np.concatenate(self._parts) if self._parts else np.zeros(0)
        return values.reshape(self.rows, self.columns)

    def _keep(self, rest: str) -> None:
        if len(rest) > LONGEST_NUMBER:
            raise NumberError(f"a word of {len(rest):,} characters")
        self._pending, self._length = [rest], len(rest)

    def _convert(self, text: str) -> None:
        words = text.split()
        if not words:
            return
        self._count += len(words)
        if self._count > self.rows * self.columns:
            raise NumberError("more numbers")
        longest = max(words, key=len)
        if len(longest) > LONGEST_NUMBER:
            raise NumberError(f"a word of {len(longest):,} characters")
        self.digits = max(self.digits, _digits(longest))
        self._parts.append(np.array([_number(word) for word in words]))


def _number(word: str) -> float:
    try:
        if "_" in word:  # Python's own grouping of digits, which no other reader takes
            raise ValueError
        return float(word)
    except ValueError:
        raise NumberError(f"the word {word[:40]!r}") from None


def _digits(word: str) -> int:
    """Significant digits: all but leading zeros, point, sign and exponent."""
    found = _MANTISSA.match(word)
    return 0 if found is None else len(found[1].replace(".", ""))
