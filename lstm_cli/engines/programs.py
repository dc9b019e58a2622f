"""Expressions on arrays, element by element, in NumPy: a piece that fits the cache at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

import numpy as np

from lstm_cli.cells.expression import Expression, Program
from lstm_cli.engines.arrays import Array, Values
from lstm_cli.engines.host import HostArrays

PIECE = 1 << 16
"""Numbers of each array that are worked on at once: what is between two operations then stays in
the cache."""


class Programs(HostArrays):
    """Computes expressions with NumPy; see `lstm_cli.engines.arrays.Elementwise`."""

    def evaluate(
        self, roots: Mapping[str, Expression], values: Values, out: Mapping[str, Array]
    ) -> None:
        """Every root, element by element, into its array of `out`."""
        program = _program(tuple(roots.items()))
        with np.errstate(all="ignore"):
            for given, kept in _pieces(values, out):
                found = program(given)
                for name, root in roots.items():
                    if root.op == "symbol":  # an input, which another root may overwrite
                        found[name] = np.array(found[name])
                for name, array in kept.items():
                    array[...] = found[name]

    def total(self, root: Expression, values: Values) -> float:
        """The sum of an expression over all elements, in double precision."""
        program = _program((("", root),))
        with np.errstate(all="ignore"):
            return float(sum(_sum(program, given) for given, _ in _pieces(values, {})))


def _sum(program: Program, given: Values) -> float:
    wide = {
        name: value.astype(np.float64) if isinstance(value, np.ndarray) else value
        for name, value in given.items()
    }
    found = program(wide)[""]
    if isinstance(found, np.ndarray):
        return float(found.sum())
    return float(found) * next(v.size for v in wide.values() if isinstance(v, np.ndarray))


@lru_cache(maxsize=256)
def _program(roots: tuple[tuple[str, Expression], ...]) -> Program:
    return Program(dict(roots))


def _pieces(
    values: Values, out: Mapping[str, Array]
) -> Iterator[tuple[Values, Mapping[str, Array]]]:
    """The arrays cut alike into rows of numbers; scalars as they are."""
    arrays = {name: v for name, v in values.items() if isinstance(v, np.ndarray)}
    checked([*arrays.values(), *out.values()])
    size = next(iter((arrays or out).values())).size
    if 0 < size <= PIECE:
        yield values, out
        return
    rows = {name: array.reshape(-1) for name, array in arrays.items()}
    kept = {name: array.reshape(-1) for name, array in out.items()}
    for first in range(0, size, PIECE):
        own = slice(first, first + PIECE)
        given = {name: row[own] for name, row in rows.items()}
        yield {**values, **given}, {name: row[own] for name, row in kept.items()}


def checked(arrays: Sequence[Array]) -> None:
    """Refuse arrays that are not cut alike.

    Raises
    ------
    ValueError
        None, or arrays of several shapes, or with gaps: a caller's mistake.
    """
    if not arrays:
        raise ValueError("at least one array is wanted")
    shape = arrays[0].shape
    for array in arrays:
        if array.shape != shape or not array.flags.c_contiguous:
            raise ValueError(f"arrays of one shape without gaps are wanted, not {array.shape}")


NUMPY = Programs()
"""What computes where no engine is at hand."""
