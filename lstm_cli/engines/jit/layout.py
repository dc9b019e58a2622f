"""How weights are laid out for the kernels: panels, and the numbers of columns they cover.

A matrix product gives, for each gate, a row of columns: units, features, or projected features.
The columns are cut into panels. One panel holds `per` vectors of neighbouring columns of every
gate, so that all gates of a unit are at hand together; the last, narrower panel is the tail.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from lstm_cli.engines.jit.ir import Lanes
from lstm_cli.engines.jit.tiles import Part


@dataclass(frozen=True)
class Split:
    """A row of columns for each gate, cut into panels.

    Attributes
    ----------
    main, tail
        The shape of all panels but the last, and of a narrower last one.
    """

    main: Part
    tail: Part | None

    @property
    def parts(self) -> tuple[Part, ...]:
        return (self.main,) if self.tail is None else (self.main, self.tail)

    @property
    def name(self) -> str:
        """Equal for equal kernels."""
        return " + ".join(part.name for part in self.parts)

    @property
    def gates(self) -> int:
        return self.main.gates

    @property
    def paired(self) -> Split:
        """The same for pairs of bfloat16."""
        tail = None if self.tail is None else replace(self.tail, pairs=True)
        return Split(replace(self.main, pairs=True), tail)


@dataclass(frozen=True)
class Columns:
    """A split of `size` columns: `count` main panels, and the tail if there is one."""

    split: Split
    size: int
    count: int

    @property
    def padded(self) -> int:
        """Columns with those that only fill the last vector."""
        tail = self.split.tail
        return self.count * self.split.main.columns + (tail.columns if tail else 0)

    @property
    def stride(self) -> int:
        """Columns rounded up to whole vectors: how far apart rows of them are kept."""
        count = self.split.main.lanes.count
        return -(-self.size // count) * count

    @property
    def width(self) -> int:
        """Numbers for each k, all gates, padded."""
        return self.split.gates * self.padded


@lru_cache(maxsize=256)
def columns(size: int, gates: int, lanes: Lanes, per: int | None = None) -> Columns:
    """`size` columns of `gates` gates; by default about four vectors make a panel."""
    per = per or max(1, 4 // gates)
    main = Part(gates, per, lanes)
    count, rest = divmod(size, main.columns)
    half = lanes.count // 2
    tail = None
    if half and rest and rest <= half:
        tail = Part(gates, 1, Lanes(lanes.element, half))
    elif rest:
        vectors = -(-rest // lanes.count)
        if vectors == per:
            count += 1
        else:
            tail = Part(gates, vectors, lanes)
    return Columns(Split(main, tail), size, count)
