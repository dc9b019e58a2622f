"""Vectors put together, taken apart and compared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.formats.onnx.values import (
    ALL,
    MOST_FEATURES,
    REVERSED,
    Atom,
    Joined,
    RefusedError,
    Step,
    Vector,
)


def counted(n: int) -> Array:
    """0, 1, ..., n - 1."""
    return np.arange(n)


def bounded(count: int) -> int:
    """So many features.

    Raises
    ------
    RefusedError
        They are more than any network has.
    """
    if count > MOST_FEATURES:
        raise RefusedError(f"it makes {count:,} features of one value")
    return count


def whole(atom: Atom) -> Vector:
    """All of an atom."""
    return Vector(atom, ALL if atom.timed else None, counted(atom.size))


def composed(inner: Step, outer: Step) -> Step:
    """The step of a source, for a step of what reads it at `inner`."""
    if inner is None or isinstance(inner, int):
        return inner
    if inner == ALL:
        return outer
    if outer == ALL:
        return REVERSED
    if outer == REVERSED:
        return ALL
    return None if outer is None else -1 - int(outer)


def at(vector: Vector, step: Step) -> Vector:
    """What `vector` is for step `step` of something that reads it at all of its own steps."""
    if isinstance(vector.atom, Joined) and not vector.atom.timed:
        return vector
    return Vector(vector.atom, composed(vector.step, step), vector.pick)


def pieces(vector: Vector) -> Iterator[Vector]:
    """The vector as stretches, none of them of a `Joined`."""
    if not isinstance(vector.atom, Joined):
        yield vector
        return
    parts = vector.atom.parts
    ends = np.cumsum([part.pick.size for part in parts])
    which = np.searchsorted(ends, vector.pick, side="right")
    breaks = np.flatnonzero(np.diff(which)) + 1
    for own, chosen in zip(
        np.split(which, breaks), np.split(np.asarray(vector.pick), breaks), strict=True
    ):
        if own.size:
            part = parts[own[0]]
            start = ends[own[0]] - part.pick.size
            step = composed(part.step, vector.step) if vector.atom.timed else part.step
            yield Vector(part.atom, step, part.pick[chosen - start])


def joined(vectors: Sequence[Vector], where: str) -> Vector:
    """Vectors side by side as one."""
    bounded(sum(vector.pick.size for vector in vectors))
    every = (piece for vector in vectors for piece in pieces(vector))
    groups = [list(own) for _, own in groupby(every, lambda piece: (id(piece.atom), piece.step))]
    parts = [
        Vector(own[0].atom, own[0].step, np.concatenate([piece.pick for piece in own]))
        for own in groups
    ]
    if len(parts) == 1:
        return parts[0]
    timed = any(part.step in (ALL, REVERSED) for part in parts)
    return whole(Joined(sum(part.pick.size for part in parts), timed, where, tuple(parts)))


def same_vector(one: Vector, other: Vector) -> bool:
    """Whether both are the same features of the same atoms at the same steps."""
    pairs = zip(pieces(one), pieces(other), strict=False)
    return one.pick.size == other.pick.size and all(
        a.atom is b.atom and a.step == b.step and np.array_equal(a.pick, b.pick) for a, b in pairs
    )


def same_array(one: Array, other: Array) -> bool:
    """Whether both hold the same numbers; the same memory is not read."""
    if one.shape != other.shape:
        return False
    if one.strides == other.strides and one.ctypes.data == other.ctypes.data:
        return True
    return bool(np.array_equal(one, other))


def complete(vector: Vector) -> bool:
    """Whether it is all of its atom, in order."""
    pick = vector.pick
    return bool(pick.size == vector.atom.size and (pick == counted(pick.size)).all())
