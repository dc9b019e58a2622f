"""Sizes that a graph leaves open: polynomials in the names of its free axes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.formats.onnx.values import RefusedError

MOST_TERMS = 16

Number: TypeAlias = "int | Size"
"""A size, known or not."""


class OpenSizeError(RefusedError):
    """A calculation needs a size that the file leaves open."""


@dataclass(frozen=True)
class Size:
    """A sum of products: coefficient by the sorted names that are multiplied, () for a constant."""

    terms: tuple[tuple[tuple[str, ...], int], ...]

    @classmethod
    def of(cls, name: str) -> Size:
        """The size of a free axis."""
        return cls((((name,), 1),))

    def __add__(self, other: object) -> Number:
        found = dict(self.terms)
        for names, count in _terms(other):
            found[names] = found.get(names, 0) + count
        return _made(found)

    def __mul__(self, other: object) -> Number:
        found: dict[tuple[str, ...], int] = {}
        for names, count in self.terms:
            for more, times in _terms(other):
                key = tuple(sorted(names + more))
                found[key] = found.get(key, 0) + count * times
        return _made(found)

    def __neg__(self) -> Number:
        return self * -1

    def __sub__(self, other: object) -> Number:
        return self + Size(tuple(_terms(other))) * -1

    def __rsub__(self, other: object) -> Number:
        return Size(tuple(_terms(self * -1))) + other

    __radd__ = __add__
    __rmul__ = __mul__

    def divided(self, by: Number) -> Number:
        """The quotient, if it is exact."""
        if by == self:
            return 1
        if isinstance(by, int) and by and all(count % by == 0 for _, count in self.terms):
            return _made({names: count // by for names, count in self.terms})
        if isinstance(by, Size) and len(by.terms) == 1:
            ((names, count),) = by.terms
            if all(not n % count and _less(k, names) is not None for k, n in self.terms):
                return _made({_less(k, names) or (): n // count for k, n in self.terms})
        raise OpenSizeError("a size that the file leaves open is divided")

    @property
    def names(self) -> frozenset[str]:
        """Free axes whose sizes it is made of."""
        return frozenset(name for names, _ in self.terms for name in names)

    @property
    def offset(self) -> tuple[str, int] | None:
        """Name and k where this is the size of one axis plus k, else None."""
        terms = dict(self.terms)
        k = terms.pop((), 0)
        if len(terms) != 1:
            return None
        ((names, count),) = terms.items()
        return (names[0], k) if count == 1 and len(names) == 1 else None


def product(sizes: Iterable[Number]) -> Number:
    """All of them multiplied."""
    found: Number = 1
    for size in sizes:
        found = found * size
    return found


def exceeds(one: Number, other: Number) -> bool:
    """Whether `one` is larger, where every open size is at least 1.

    Raises
    ------
    OpenSizeError
        It depends on the sizes.
    """
    difference = one - other
    if isinstance(difference, int):
        return difference > 0
    counts = [count for names, count in difference.terms if names]
    constant = dict(difference.terms).get((), 0)
    least = sum(counts) + constant
    if all(count > 0 for count in counts) and least > 0:
        return True
    if all(count < 0 for count in counts) and least <= 0:
        return False
    raise OpenSizeError("a comparison depends on a size that the file leaves open")


def same(one: Number, other: Number) -> bool:
    """Whether both are equal whatever the open sizes are; never, where that is impossible.

    Raises
    ------
    OpenSizeError
        It depends on the sizes.
    """
    if one == other:
        return True
    difference = one - other
    if isinstance(difference, int):
        return False
    counts = [count for names, count in difference.terms if names]
    constant = dict(difference.terms).get((), 0)
    if all(count > 0 for count in counts) and sum(counts) + constant > 0:
        return False
    if all(count < 0 for count in counts) and sum(counts) + constant < 0:
        return False
    raise OpenSizeError("a comparison depends on a size that the file leaves open")


def whole(number: object) -> int:
    """The size as an int.

    Raises
    ------
    OpenSizeError
        The file leaves it open.
    """
    if isinstance(number, Size):
        raise OpenSizeError("a size that the file leaves open is needed")
    value = float(number)  # type: ignore[arg-type]
    if not math.isfinite(value) or value != int(value):
        raise RefusedError(f"{value} is no size")
    return int(number)  # type: ignore[call-overload, no-any-return]


def sized(numbers: Sequence[Any]) -> Array:
    """Sizes as a tensor, open ones among them."""
    if any(isinstance(number, Size) for number in numbers):
        found = np.empty(len(numbers), object)
        found[:] = numbers
        return found
    return np.array(numbers, np.int64)


def _terms(value: object) -> tuple[tuple[tuple[str, ...], int], ...]:
    return value.terms if isinstance(value, Size) else (((), whole(value)),)


def _made(terms: dict[tuple[str, ...], int]) -> Number:
    kept = {names: count for names, count in terms.items() if count}
    large = any(abs(count) >> 63 for count in kept.values())
    if large or len(kept) > MOST_TERMS or any(len(names) > MOST_TERMS for names in kept):
        raise OpenSizeError("sizes are calculated in a way that is out of proportion")
    if not any(kept):
        return kept.get((), 0)
    return Size(tuple(sorted(kept.items())))


def _less(names: tuple[str, ...], without: tuple[str, ...]) -> tuple[str, ...] | None:
    left = list(names)
    for name in without:
        if name not in left:
            return None
        left.remove(name)
    return tuple(left)
