"""Every way in which one tensor of B follows from one of A, each verified on all its numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np

from lstm_cli.api.comparison.changes import BLOCK_CHANGES, changed, layouts, picked
from lstm_cli.api.comparison.figures import pieces
from lstm_cli.api.comparison.rules import SLACK, Rule, arithmetic, equality, rules
from lstm_cli.engines.types import Array

SAMPLE = 96
"""Numbers of a block that are compared before all of them are."""


@dataclass(frozen=True)
class Reading:
    """How a tensor of B follows from one of A.

    Attributes
    ----------
    letters
        The gates in their own order; ``("",)`` for a tensor that is not by gate.
    order
        The gates of A that stand in B's places.
    changes
        What was done to the block in each place; None: it does not follow.
    layout
        Of the whole tensor; see `WHOLE_CHANGES`.
    rule
        How the numbers agree.
    shift
        A gate of A, and how much more B has there.
    scale
        B is so many times A.
    source
        Which of A's two biases it follows from, where it is not their sum.
    """

    letters: tuple[str, ...]
    order: tuple[str, ...]
    changes: tuple[str | None, ...]
    layout: str
    rule: Rule
    shift: tuple[str, float] | None = None
    scale: float | None = None
    source: str = ""

    @property
    def complete(self) -> bool:
        """Whether every block follows."""
        return None not in self.changes

    @property
    def reordered(self) -> bool:
        return self.order != self.letters

    @property
    def plain(self) -> bool:
        """Whether nothing was done at all."""
        return not (self.cost[0] or self.cost[1])

    @property
    def cost(self) -> tuple[int, int, bool, int, tuple[int, ...]]:
        """What to prefer: all explained, by little, by moving few gates."""
        done = {change for change in self.changes if change}
        extra = [self.layout, self.shift, self.scale is not None, self.source]
        places = tuple(self.letters.index(letter) for letter in self.order)
        moved = sum(place != k for k, place in enumerate(places))
        amount = sum(map(bool, extra)) + self.reordered + len(done) + 2 * ("zero" in done)
        amount += bool(self.rule.name)
        return self.changes.count(None), amount, self.reordered, moved, places


def readings(a: Array, b: Array, letters: tuple[str, ...], tolerance: float) -> list[Reading]:
    """All complete readings under the strictest rule that gives any; else the best one.

    Parameters
    ----------
    letters
        Of the gates that the tensors stack; empty for none.
    """
    letters = letters or ("",)
    if a.size == 0 or len(a) % len(letters):
        return []
    if a.shape == b.shape:  # nearly always enough
        found = _complete(Candidates(a, b, letters, "").readings(equality(tolerance)))
        if found:
            return found
    pairs = [Candidates(a, own, letters, name) for name, own in layouts(b, a.shape, len(letters))]
    best: list[Reading] = []
    for rule in rules(tolerance):
        tried = [reading for pair in pairs for reading in pair.readings(rule)]
        if found := _complete(tried):
            return found
        best = sorted([*best, *tried], key=lambda reading: reading.cost)[:1]
    scaled = _scaled(a, b, letters, tolerance)
    return [scaled] if scaled is not None else best


def _complete(found: Iterable[Reading]) -> list[Reading]:
    return sorted((r for r in found if r.complete), key=lambda reading: reading.cost)


class Candidates:
    """The blocks of A and of B, and which of A's follow as which of B's.

    Parameters
    ----------
    a, b
        Of one shape, (G * H, ...): B's in A's layout.
    layout
        That B's was taken out of.
    """

    def __init__(self, a: Array, b: Array, letters: tuple[str, ...], layout: str) -> None:
        self.letters, self.layout = letters, layout
        self.a, self.b = np.split(a, len(letters)), np.split(b, len(letters))
        at = _places(self.a[0].size)
        made = [(c, q, picked(x, c, at)) for c in BLOCK_CHANGES for q, x in enumerate(self.a)]
        self._made = [(change, q) for change, q, sample in made if sample is not None]
        self._samples_a = np.stack([sample for *_, sample in made if sample is not None])
        self._samples_b = np.stack([cast(Array, picked(block, "", at)) for block in self.b])

    def readings(self, rule: Rule) -> Iterator[Reading]:
        """Readings under one rule, for every order of the gates that explains a block."""
        table, letters = self._table(rule), self.letters
        shifts = self._shifts(rule)
        for places in itertools.permutations(range(len(letters))):
            changes = [table.get((q, p)) for p, q in enumerate(places)]
            order, shift = tuple(letters[q] for q in places), None
            if changes.count(None) == 1:
                p = changes.index(None)
                if (more := shifts.get((places[p], p))) is not None:
                    changes[p], shift = "", (order[p], more)
            if changes.count(None) < len(letters):
                yield Reading(letters, order, tuple(changes), self.layout, rule, shift)

    def _table(self, rule: Rule) -> dict[tuple[int, int], str]:
        """By gate of A and place of B: the simplest change under which the blocks agree."""
        found: dict[tuple[int, int], str] = {}
        with np.errstate(all="ignore"):
            agree = rule.holds(self._samples_a[:, None], self._samples_b[None]).all(axis=-1)
        for k, p in np.argwhere(agree):
            change, q = self._made[k]
            key = (q, int(p))
            if change == "zero" and self.b[p].any():
                continue  # rounded to 0, perhaps; but then A's own numbers must be
            if key not in found and agrees(changed(self.a[q], change), self.b[p], rule):
                found[key] = change
        return found

    def _shifts(self, rule: Rule) -> dict[tuple[int, int], float]:
        """By gate of A and place of B: the constant that B has more."""
        if self.a[0].ndim > 1 or self.letters == ("",):
            return {}
        pairs = itertools.product(enumerate(self.a), enumerate(self.b))
        shifts = {(q, p): shift(a, b, rule) for (q, a), (p, b) in pairs}
        return {key: more for key, more in shifts.items() if more is not None}


def _places(size: int) -> Array:
    if size <= SAMPLE:
        return np.arange(size)
    return np.random.default_rng(size).integers(0, size, SAMPLE)


def agrees(a: Array, b: Array, rule: Rule) -> bool:
    """Whether a rule holds on every number."""
    with np.errstate(all="ignore"):
        return all(bool(rule.holds(x, y).all()) for x, y in pieces(a, b))


def shift(a: Array, b: Array, rule: Rule) -> float | None:
    """The constant by which a vector of B is larger; None if there is none."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    return next((more for more in _steps(a, b) if _is_shift(a, b, more, rule)), None)


def _steps(a: Array, b: Array) -> Iterable[float]:
    """Constants to try: 1 as a forget bias, its opposite, and what there is at all."""
    yield 1.0
    yield -1.0
    with np.errstate(all="ignore"):
        usual = float(np.median(b - a)) if len(a) > 2 else 0.0
    if np.isfinite(usual) and abs(usual) > 1e-3:
        yield float(f"{usual:.5g}")


def _is_shift(a: Array, b: Array, more: float, rule: Rule) -> bool:
    with np.errstate(all="ignore"):
        slack = SLACK * np.maximum(np.abs(a), np.maximum(np.abs(b), abs(more)))
        near = np.abs(a + more - b) <= slack
        return bool((near | rule.holds(a + more, b)).all())


def _scaled(a: Array, b: Array, letters: tuple[str, ...], tolerance: float) -> Reading | None:
    """B as a multiple of A, on the whole tensor."""
    if a.shape != b.shape or a.size < 3:
        return None
    with np.errstate(all="ignore"):
        size = sum(float((x * x).sum()) for x, _ in pieces(a, b))
        k = sum(float((x * y).sum()) for x, y in pieces(a, b)) / size if size else 0.0
        k = float(f"{k:.6g}")
        rule = arithmetic(tolerance)
        if k in (0.0, 1.0) or not np.isfinite(k):
            return None
        if not all(bool(rule.holds(k * x, y).all()) for x, y in pieces(a, b)):
            return None
    return Reading(letters, letters, ("",) * len(letters), "", rule, scale=k)
