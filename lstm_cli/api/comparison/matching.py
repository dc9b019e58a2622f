"""M"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import cast

import numpy as np

from lstm_cli.api.comparison.metrics import float64_chunks
from lstm_cli.engines.types import Array

EPS = float(np.finfo(np.float32).eps)

SLACK = 4 * EPS
"""Of an addition or two in float32, relative to the summands."""

BLOCK_TRANSFORMS = ("", "transposed", "negated", "negated and transposed", "by columns", "zero")
"""Of one gate's block, the simplest first. ``by columns``: its numbers in another order."""

LAYOUT_PHRASES = {
    "transposed": "is stored transposed",
    "by columns": "holds the numbers in column order, as if a transposed kernel had been reshaped",
    "reshaped": "has rows and columns exchanged but the numbers in the old order",
    "interleaved": "has the gates of one unit next to each other, not the units of one gate",
    "apart": "has the units of one gate next to each other where A has the gates of one unit",
    "columns": "has its columns in another order, as if the layer before had its units in another",
    "halves": "has the two halves of its columns exchanged, as if the layer before had forward "
    "and reverse exchanged",
}
"""Layouts of a whole tensor, and how each is said."""

SAMPLE = 96
"""Numbers of a block that are compared before all of them are."""


@dataclass(frozen=True)
class AgreementRule:
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


def equality(tolerance: float) -> AgreementRule:
    """Equal within a tolerance; NaN equals NaN."""

    def holds(a: Array, b: Array) -> Array:
        return np.asarray(
            (np.abs(a - b) <= tolerance) | (a == b) | (np.isnan(a) & np.isnan(b)), bool
        )

    return AgreementRule("", "", "", holds)


def arithmetic(tolerance: float) -> AgreementRule:
    """Equal but for the last digit of float32, as after an addition or a scaling."""

    def holds(a: Array, b: Array) -> Array:
        size = np.maximum(np.abs(a), np.abs(b))
        return np.asarray(np.abs(a - b) <= np.maximum(tolerance, SLACK * size), bool)

    return AgreementRule("last digit", "equal to about 7 digits, as float32 has them", "", holds)


def agreement_rules(tolerance: float) -> Iterator[AgreementRule]:
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
) -> AgreementRule:
    """On the grid of a type, and nearest to the other side's number there."""

    def holds(a: Array, b: Array) -> Array:
        full, few = (a, b) if side == "B" else (b, a)
        near = np.abs(full - few) <= np.maximum(half * 1.001 * np.abs(full), smallest)
        return np.asarray((rounded(few) == few) & near, bool)

    return AgreementRule(name, f"rounded to {name}", side, holds)


def _to_float32(values: Array) -> Array:
    return values.astype(np.float32).astype(np.float64)


def _to_float16(values: Array) -> Array:
    return values.astype(np.float16).astype(np.float64)


def _to_bfloat16(values: Array) -> Array:
    """Cut to the upper 16 bits of float32: exact for what is a bfloat16 already."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(np.float64)


def _digits(digits: int, side: str) -> AgreementRule:
    def holds(a: Array, b: Array) -> Array:
        full, few = (a, b) if side == "B" else (b, a)
        exponent = np.floor(np.log10(np.where(few == 0, 1.0, np.abs(few))))
        grid = _on_grid(full, few, 10.0 ** (exponent - digits + 1))
        return np.asarray(grid & ((few != 0) | (full == 0)), bool)

    return AgreementRule(
        f"{digits} digits", f"rounded to {digits} significant digits, as text has them", side, holds
    )


def _decimals(decimals: int, side: str) -> AgreementRule:
    def holds(a: Array, b: Array) -> Array:
        full, few = (a, b) if side == "B" else (b, a)
        return _on_grid(full, few, np.full(np.shape(few), 10.0**-decimals))

    return AgreementRule(
        f"{decimals} decimals", f"rounded to {decimals} decimals, as text has them", side, holds
    )


def _on_grid(full: Array, few: Array, unit: Array) -> Array:
    """Whether `few` is a multiple of the unit, as near as float32 has it, and `full` rounded."""
    slack = 0.6 * EPS * np.abs(few)
    on_grid = np.abs(few - np.round(few / unit) * unit) <= slack
    return np.asarray(on_grid & (np.abs(full - few) <= 0.5001 * unit + slack), bool)


def transformed(block: Array, change: str) -> Array:
    """A gate's block with a change that is possible for it; see `sample`."""
    if change == "zero":
        return np.zeros_like(block)
    if change == "by columns":
        return block.T.reshape(block.shape)
    block = -block if change.startswith("negated") else block
    return block.T if change.endswith("transposed") else block


def sample(block: Array, change: str, at: Array) -> Array | None:
    """Numbers of a changed block, by flat index, in float64, without changing all of it.

    None where the change is impossible for this block, or the identity.
    """
    if change == "zero":
        return np.zeros(len(at)) if block.any() else None
    turned = "transposed" in change or change == "by columns"
    if turned and (block.ndim != 2 or min(block.shape) < 2):
        return None
    if turned and (block.shape[0] == block.shape[1]) == (change == "by columns"):
        return None
    shape = block.shape[::-1] if turned else block.shape
    places = np.unravel_index(at, shape)
    values = np.asarray(block[places[::-1] if turned else places], np.float64)
    return -values if change.startswith("negated") else values


def candidate_layouts(b: Array, shape: tuple[int, ...], gates: int) -> Iterator[tuple[str, Array]]:
    """B's tensor in A's layout, if it was stored in another: name of the layout, and tensor."""
    if b.shape == shape:
        yield "", b
    if b.ndim != 2 or b.size == 0 or b.size != shape[0] * shape[-1] or len(shape) != 2:
        if b.shape == shape:
            yield from _between_gates(b, gates)
        return
    if b.shape == shape[::-1] and min(shape) > 1:
        yield "transposed", b.T
        if b.shape != shape:
            yield "reshaped", b.reshape(shape)
    if b.shape == shape:
        if min(shape) > 1 and shape[0] != shape[1]:
            yield "by columns", b.reshape(shape[::-1]).T
            yield "by columns", b.T.reshape(shape)
        yield from _between_gates(b, gates)
        if shape[1] % 2 == 0:
            yield "halves", np.roll(b, shape[1] // 2, axis=1)


def _between_gates(b: Array, gates: int) -> Iterator[tuple[str, Array]]:
    """Rows ordered by unit, then gate, and the other way about."""
    if gates < 2 or len(b) % gates or len(b) == gates:
        return
    units = len(b) // gates
    yield "interleaved", b.reshape(units, gates, *b.shape[1:]).swapaxes(0, 1).reshape(b.shape)
    if units != gates:
        yield "apart", b.reshape(gates, units, *b.shape[1:]).swapaxes(0, 1).reshape(b.shape)


@dataclass(frozen=True)
class TensorMatch:
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
        Of the whole tensor; see `LAYOUT_PHRASES`.
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
    rule: AgreementRule
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


def tensor_matches(
    a: Array, b: Array, letters: tuple[str, ...], tolerance: float
) -> list[TensorMatch]:
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
    pairs = [
        Candidates(a, own, letters, name)
        for name, own in candidate_layouts(b, a.shape, len(letters))
    ]
    best: list[TensorMatch] = []
    for rule in agreement_rules(tolerance):
        tried = [reading for pair in pairs for reading in pair.readings(rule)]
        if found := _complete(tried):
            return found
        best = sorted([*best, *tried], key=lambda reading: reading.cost)[:1]
    scaled = _scaled(a, b, letters, tolerance)
    return [scaled] if scaled is not None else best


def _complete(found: Iterable[TensorMatch]) -> list[TensorMatch]:
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
        made = [(c, q, sample(x, c, at)) for c in BLOCK_TRANSFORMS for q, x in enumerate(self.a)]
        self._made = [(change, q) for change, q, sample in made if sample is not None]
        self._samples_a = np.stack([sample for *_, sample in made if sample is not None])
        self._samples_b = np.stack([cast(Array, sample(block, "", at)) for block in self.b])

    def tensor_matches(self, rule: AgreementRule) -> Iterator[TensorMatch]:
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
                yield TensorMatch(letters, order, tuple(changes), self.layout, rule, shift)

    def _table(self, rule: AgreementRule) -> dict[tuple[int, int], str]:
        """By gate of A and place of B: the simplest change under which the blocks agree."""
        found: dict[tuple[int, int], str] = {}
        with np.errstate(all="ignore"):
            agree = rule.holds(self._samples_a[:, None], self._samples_b[None]).all(axis=-1)
        for k, p in np.argwhere(agree):
            change, q = self._made[k]
            key = (q, int(p))
            if change == "zero" and self.b[p].any():
                continue  # rounded to 0, perhaps; but then A's own numbers must be
            if key not in found and agrees(transformed(self.a[q], change), self.b[p], rule):
                found[key] = change
        return found

    def _shifts(self, rule: AgreementRule) -> dict[tuple[int, int], float]:
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


def agrees(a: Array, b: Array, rule: AgreementRule) -> bool:
    """Whether a rule holds on every number."""
    with np.errstate(all="ignore"):
        return all(bool(rule.holds(x, y).all()) for x, y in float64_chunks(a, b))


def shift(a: Array, b: Array, rule: AgreementRule) -> float | None:
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


def _is_shift(a: Array, b: Array, more: float, rule: AgreementRule) -> bool:
    with np.errstate(all="ignore"):
        slack = SLACK * np.maximum(np.abs(a), np.maximum(np.abs(b), abs(more)))
        near = np.abs(a + more - b) <= slack
        return bool((near | rule.holds(a + more, b)).all())


def _scaled(a: Array, b: Array, letters: tuple[str, ...], tolerance: float) -> TensorMatch | None:
    """B as a multiple of A, on the whole tensor."""
    if a.shape != b.shape or a.size < 3:
        return None
    with np.errstate(all="ignore"):
        size = sum(float((x * x).sum()) for x, _ in float64_chunks(a, b))
        k = sum(float((x * y).sum()) for x, y in float64_chunks(a, b)) / size if size else 0.0
        k = float(f"{k:.6g}")
        rule = arithmetic(tolerance)
        if k in (0.0, 1.0) or not np.isfinite(k):
            return None
        if not all(bool(rule.holds(k * x, y).all()) for x, y in float64_chunks(a, b)):
            return None
    return TensorMatch(letters, letters, ("",) * len(letters), "", rule, scale=k)
