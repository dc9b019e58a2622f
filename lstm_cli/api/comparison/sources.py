"""Which direction of which layer of A each one of B follows from: mostly the one in its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest

from lstm_cli.api.comparison.directions import Explanation, Place, explain
from lstm_cli.api.comparison.figures import norm
from lstm_cli.api.comparison.sides import Direction, Layer

MOST = 8
"""Other directions that are looked at for one that does not follow from its own."""
NEAR = 1e-3
"""By how much norms may differ, relatively, if one follows from the other."""
MATRICES = {"weight_ih", "weight_hh", "weight"}

Pair = tuple[Layer | None, Layer | None]
Candidate = tuple[Layer, Direction]


def paired(a: Sequence[Layer], b: Sequence[Layer]) -> tuple[Pair, ...]:
    """Layers that have weights, by position; None where one side has no more.

    A layer of a kind that cannot be told is taken for one of the other side's kind.
    """
    return tuple((_as(x, y), _as(y, x)) for x, y in zip_longest(a, b))


def _as(layer: Layer | None, other: Layer | None) -> Layer | None:
    if layer is None or other is None or layer.kind != "unknown":
        return layer
    return replace(layer, kind=other.kind)


def explanations(pairs: Sequence[Pair], tolerance: float) -> Iterator[Explanation]:
    """How every direction of B that has a counterpart follows from A."""
    for a, b in pairs:
        if a is None or b is None or a.kind != b.kind:
            continue
        for other in b.directions:
            own = next((d for d in a.directions if d.name == other.name), None)
            place = Place(a.index, other.name)
            if own is not None:
                found = explain(a, place, place, own, other, tolerance)
                yield _better(found, pairs, a, other, tolerance)


def _better(
    own: Explanation, pairs: Sequence[Pair], layer: Layer, b: Direction, tolerance: float
) -> Explanation:
    """The explanation from another place of A, where that explains what its own does not."""
    if not MATRICES & {name for name, _ in own.unexplained}:
        return own
    best = own
    for other, a in _candidates(pairs, layer, own.place, b):
        found = explain(other, own.place, Place(other.index, a.name), a, b, tolerance)
        if MATRICES & {name for name, _ in found.unexplained}:
            continue
        if len(found.unexplained) < len(best.unexplained):
            best = found
    return best


def _candidates(pairs: Sequence[Pair], layer: Layer, place: Place, b: Direction) -> list[Candidate]:
    """Directions of A with matrices of the same shapes and sizes, the nearest in norm first."""
    there = [
        (other, direction)
        for other, _ in pairs
        if other is not None and other.kind == layer.kind
        for direction in other.directions
        if (other.index, direction.name) != (place.layer, place.direction)
    ]
    name = "weight" if "weight" in b.tensors else "weight_hh"
    if name not in b.tensors:
        return []
    size = norm(b.tensors[name])
    near: list[tuple[float, int, Candidate]] = []
    for candidate in there:
        if not _alike(candidate[1], b):
            continue
        apart = abs(norm(candidate[1].tensors[name]) - size)
        if apart <= NEAR * size:
            near.append((apart, len(near), candidate))
    return [candidate for *_, candidate in sorted(near, key=lambda entry: entry[:2])[:MOST]]


def _alike(a: Direction, b: Direction) -> bool:
    return {name: x.shape for name, x in a.tensors.items()} == {
        name: x.shape for name, x in b.tensors.items()
    }
