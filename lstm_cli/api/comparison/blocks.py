"""The table of a comparison: every matrix of every gate of both sides."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from lstm_cli.api.comparison.figures import Figures, figures
from lstm_cli.api.comparison.sides import SYMBOLS, Direction, Layer
from lstm_cli.engines.types import Array


@dataclass(frozen=True)
class Block:
    """One gate's matrix or vector on both sides.

    Attributes
    ----------
    layer
        Index in A, or in B where A has none.
    kind, direction, gate, matrix
        Such as ``lstm``, ``reverse``, ``f``, ``U``; `gate` is empty for a tensor not by gate.
    tensor
        Name within its layer.
    shape_a, shape_b
        None: not there.
    figures
        None: the shapes differ.
    equal
        Within the tolerance, on every element.
    gates
        How many gates the tensor stacks; 0 if it is not by gate.
    """

    layer: int
    kind: str
    direction: str
    gate: str
    matrix: str
    tensor: str
    shape_a: tuple[int, ...] | None
    shape_b: tuple[int, ...] | None
    figures: Figures | None
    equal: bool
    gates: int = 0

    @property
    def name(self) -> str:
        """As it is written in the equations: ``U_f``."""
        return f"{self.matrix}_{self.gate}" if self.gate else self.matrix


def compared_blocks(
    a: Layer, b: Layer, one: Direction | None, other: Direction | None, tolerance: float
) -> Iterator[Block]:
    """Blocks of one direction of two layers; one side may lack it."""
    mine = {} if one is None else one.tensors
    theirs = {} if other is None else other.tensors
    direction = one or other
    place = "" if direction is None or a.kind == "dense" else direction.name
    for tensor in dict.fromkeys([*mine, *theirs]):
        x, y = mine.get(tensor), theirs.get(tensor)
        gates = () if _turned(x, y) else (a if tensor in mine else b).gates(tensor)
        for k, gate in enumerate(gates or ("",)):
            pair = [_part(value, k, len(gates)) for value in (x, y)]
            block = _block(a, place, gate, tensor, pair, tolerance)
            yield replace(block, gates=len(gates))


def _turned(a: Array | None, b: Array | None) -> bool:
    """Whether one is as wide as the other is long: its rows are no gates then."""
    return a is not None and b is not None and a.shape != b.shape and a.shape == b.shape[::-1]


def _part(value: Array | None, k: int, gates: int) -> Array | None:
    """The k-th gate's rows; the whole where the rows are no multiple of the gates."""
    if value is None:
        return None
    value = np.atleast_1d(value)
    if gates < 2 or len(value) % gates:
        return value
    rows = len(value) // gates
    return value[k * rows : (k + 1) * rows]


def _block(
    layer: Layer,
    direction: str,
    gate: str,
    tensor: str,
    pair: list[Array | None],
    tolerance: float,
) -> Block:
    a, b = pair
    found = None
    if a is not None and b is not None and a.shape == b.shape:
        found = figures(a, b)
    return Block(
        layer.index,
        layer.kind,
        direction,
        gate,
        SYMBOLS.get(tensor, tensor),
        tensor,
        None if a is None else a.shape,
        None if b is None else b.shape,
        found,
        found is not None and found.difference <= tolerance,
    )
