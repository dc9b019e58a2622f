"""Why two files differ: explanations that were verified, and what they leave open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lstm_cli.api.comparison.blocks import Block
from lstm_cli.api.comparison.directions import Place
from lstm_cli.api.comparison.findings import Finding, findings
from lstm_cli.api.comparison.sides import SYMBOLS
from lstm_cli.api.comparison.sources import Pair, explanations
from lstm_cli.api.comparison.words import places


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
    told = findings(found, tensors)
    open_ = {(e.place, name, gate) for e in found for name, gate in e.unexplained}
    covered = {(e.place, name) for e in found for name in tensors[e.place]}
    left = _left(blocks, open_, covered)
    explained: Literal["wholly", "partly", "not"] = "wholly"
    if left:
        explained = "partly" if told else "not"
    return Diagnosis(explained, told, left)


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
        f"{', '.join(places([place], every))}: {', '.join(_names(found))}"
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
