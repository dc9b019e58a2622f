"""When one number counts as another: equal, or what rounding made of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lstm_cli.engines.types import Array

EPS = float(np.finfo(np.float32).eps)
SLACK = 4 * EPS
"""Of an addition or two in float32, relative to the summands."""


@dataclass(frozen=True)
class Rule:
    """A way in which B's numbers follow from A's.

    Attributes
    ----------
    name
        Such as ``bfloat16``; empty for equality.
    what
        What was done to the numbers: ``rounded to bfloat16``; empty for equality.
    rounded
        The side that holds fewer digits, ``A`` or ``B``; empty where neither does.
    holds
        Elementwise, for float64 arrays that broadcast.
    """

    name: str
    what: str
    rounded: str
    holds: Callable[[Array, Array], Array]


def equality(tolerance: float) -> Rule:
    """Equal within a tolerance; NaN equals NaN."""

    def holds(a: Array, b: Array) -> Array:
        return np.asarray(
            (np.abs(a - b) <= tolerance) | (a == b) | (np.isnan(a) & np.isnan(b)), bool
        )

    return Rule("", "", "", holds)


def arithmetic(tolerance: float) -> Rule:
    """Equal but for the last digit of float32, as after an addition or a scaling."""

    def holds(a: Array, b: Array) -> Array:
        size = np.maximum(np.abs(a), np.abs(b))
        return np.asarray(np.abs(a - b) <= np.maximum(tolerance, SLACK * size), bool)

    return Rule("last digit", "equal to about 7 digits, as float32 has them", "", holds)


def rules(tolerance: float) -> Iterator[Rule]:
    """Equality first, then what loses ever more digits."""
    yield equality(tolerance)
    for side in ("B", "A"):
        yield _rounding("float32", _to_float32, side, 2.0**-24)
    yield arithmetic(tolerance)
    for side in ("B", "A"):
        yield _rounding("float16", _to_float16, side, 2.0**-11, 2.0**-25)
        yield _rounding("bfloat16", _to_bfloat16, side, 2.0**-7)  # cut, or rounded
        for digits in range(7, 2, -1):
            yield _digits(digits, side)
        for decimals in range(8, 2, -1):
            yield _decimals(decimals, side)


def _rounding(
    name: str, rounded: Callable[[Array], Array], side: str, half: float, smallest: float = 0.0
) -> Rule:
    """On the grid of a type, and nearest to the other side's number there."""

    def holds(a: Array, b: Array) -> Array:
        full, few = (a, b) if side == "B" else (b, a)
        near = np.abs(full - few) <= np.maximum(half * 1.001 * np.abs(full), smallest)
        return np.asarray((rounded(few) == few) & near, bool)

    return Rule(name, f"rounded to {name}", side, holds)


def _to_float32(values: Array) -> Array:
    return values.astype(np.float32).astype(np.float64)


def _to_float16(values: Array) -> Array:
    return values.astype(np.float16).astype(np.float64)


def _to_bfloat16(values: Array) -> Array:
    """Cut to the upper 16 bits of float32: exact for what is a bfloat16 already."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(np.float64)


def _digits(digits: int, side: str) -> Rule:
    def holds(a: Array, b: Array) -> Array:
        full, few = (a, b) if side == "B" else (b, a)
        exponent = np.floor(np.log10(np.where(few == 0, 1.0, np.abs(few))))
        grid = _on_grid(full, few, 10.0 ** (exponent - digits + 1))
        return np.asarray(grid & ((few != 0) | (full == 0)), bool)

    return Rule(
        f"{digits} digits", f"rounded to {digits} significant digits, as text has them", side, holds
    )


def _decimals(decimals: int, side: str) -> Rule:
    def holds(a: Array, b: Array) -> Array:
        full, few = (a, b) if side == "B" else (b, a)
        return _on_grid(full, few, np.full(np.shape(few), 10.0**-decimals))

    return Rule(
        f"{decimals} decimals", f"rounded to {decimals} decimals, as text has them", side, holds
    )


def _on_grid(full: Array, few: Array, unit: Array) -> Array:
    """Whether `few` is a multiple of the unit, as near as float32 has it, and `full` rounded."""
    slack = 0.6 * EPS * np.abs(few)
    on_grid = np.abs(few - np.round(few / unit) * unit) <= slack
    return np.asarray(on_grid & (np.abs(full - few) <= 0.5001 * unit + slack), bool)
