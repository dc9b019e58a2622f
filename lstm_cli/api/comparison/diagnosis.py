"""Why two files differ: explanations that were verified, and what they leave open."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from lstm_cli.api.comparison import words
from lstm_cli.api.comparison.blocks import Block
from lstm_cli.api.comparison.directions import Place
from lstm_cli.api.comparison.findings import Finding, findings
from lstm_cli.api.comparison.sides import SYMBOLS
from lstm_cli.api.comparison.sources import Pair, explanations


@dataclass(frozen=True)
class Diagnosis:
    """Why numbers differ.

    Attributes
    ----------
    explained
        ``wholly``, ``partly`` or ``not``.
    findings
        Each verified on every number that it is about.
    unexplained
        Gates' matrices that no finding explains: ``layer 0: U_f, b_f``.
    """

    explained: Literal["wholly", "partly", "not"]
    findings: tuple[Finding, ...]
    unexplained: tuple[str, ...]


def diagnose(pairs: Sequence[Pair], blocks: Sequence[Block], tolerance: float) -> Diagnosis:
    """Look for what made B of A.

    Parameters
    ----------
    blocks
        The figures: what has no counterpart, or no shape in common, no finding explains.
    """
    found = list(explanations(pairs, tolerance))
    tensors = {
        Place(a.index, direction.name): direction.tensors
        for a, b in pairs
        if a is not None and b is not None
        for direction in b.directions
    }
    absent = list(_biases_of_zeros(pairs))
    settled = {(place, name) for _, place, names in absent for name in names}
    told = findings(found, tensors) + tuple(_said_of_zeros(absent, pairs))
    open_ = {
        (e.place, name, gate)
        for e in found
        for name, gate in e.unexplained
        if (e.place, name) not in settled
    }
    covered = {(e.place, name) for e in found for name in tensors[e.place]} | settled
    left = _left(blocks, open_, covered)
    explained: Literal["wholly", "partly", "not"] = "wholly"
    if left:
        explained = "partly" if told else "not"
    return Diagnosis(explained, told, left)


def _biases_of_zeros(pairs: Sequence[Pair]) -> Iterator[tuple[str, Place, tuple[str, ...]]]:
    """Directions that have no biases on one side, and biases of 0 on the other.

    Yields the label of the side that has none, and the other one's names of them.
    """
    for a, b in pairs:
        if a is None or b is None:
            continue
        for one in a.directions:
            other = next((d for d in b.directions if d.name == one.name), one)
            biased = [[n for n in side.tensors if n.startswith("bias")] for side in (one, other)]
            if bool(biased[0]) == bool(biased[1]):
                continue
            label, has = ("B", one) if biased[0] else ("A", other)
            names = tuple(biased[0] or biased[1])
            if not any(has.tensors[name].any() for name in names):
                yield label, Place(a.index, one.name), names


def _said_of_zeros(
    absent: Sequence[tuple[str, Place, tuple[str, ...]]], pairs: Sequence[Pair]
) -> Iterator[Finding]:
    every = [Place(a.index, d.name) for a, _ in pairs if a is not None for d in a.directions]
    for label, other in (("A", "B"), ("B", "A")):
        found = [place for side, place, _ in absent if side == label]
        if found:
            symbols = dict.fromkeys(
                SYMBOLS[n] for s, _, names in absent if s == label for n in names
            )
            what = f"{label} has no biases where {other}'s are 0: both compute the same"
            where = () if set(found) == set(every) else words.places(found, every)
            yield Finding(what, "absent", where, tuple(symbols))


def _left(
    blocks: Sequence[Block],
    open_: set[tuple[Place, str, str]],
    covered: set[tuple[Place, str]],
) -> tuple[str, ...]:
    """Blocks that differ and follow from nothing, by layer and direction."""
    every = list(dict.fromkeys(Place(b.layer, b.direction or "forward") for b in blocks))
    left: dict[Place, list[Block]] = {}
    for block in blocks:
        place = Place(block.layer, block.direction or "forward")
        known = (place, block.tensor) in covered
        gates = {gate for where, name, gate in open_ if (where, name) == (place, block.tensor)}
        if not block.equal and (not known or block.gate in gates or (gates and not block.gates)):
            left.setdefault(place, []).append(block)
    return tuple(
        f"{', '.join(words.places([place], every))}: {', '.join(_names(found))}"
        for place, found in left.items()
    )


def _names(blocks: Sequence[Block]) -> list[str]:
    """Names of blocks; a tensor whose gates are all meant by its own letter."""
    named: dict[str, list[Block]] = {}
    for block in blocks:
        named.setdefault(block.tensor, []).append(block)
    names = []
    for tensor, own in named.items():
        whole = own[0].gate and len(own) == own[0].gates
        names += [SYMBOLS.get(tensor, tensor)] if whole else [block.name for block in own]
    return names
