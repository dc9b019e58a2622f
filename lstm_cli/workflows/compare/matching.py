"""Matches of one tensor of B with one of A, each verified on all numbers.

`tensor_matches` tries orders of the gates, and layouts of the tensor (`candidate_layouts`). It also
tries transforms of each gate's block (`transformed`) and losses of digits (`agreement_rules`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import cast

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.network.difference import float64_chunks

EPS = float(np.finfo(np.float32).eps)
ADDITION_SLACK = 4 * EPS
"""Error of one or two additions in float32, relative to the summands."""
SAMPLE = 96
"""Number of a block's numbers that are compared first, before all are."""

BLOCK_TRANSFORMS = ("", "transposed", "negated", "negated and transposed", "by columns", "zero")
"""Transforms of one gate's block, the simplest first; ``by columns`` is its column order."""

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
"""Phrases for the layouts of a whole tensor, by name of the layout."""


@dataclass(frozen=True)
class AgreementRule:
    """Rule under which a number of B counts as a number of A.

    Attributes
    ----------
    name
        Name such as ``bfloat16``; empty for equality.
    what
        Phrase for the loss of digits: ``rounded to bfloat16``; empty for equality.
    rounded
        Side that holds fewer digits, ``A`` or ``B``; empty where neither does.
    holds
        Elementwise test, for float64 arrays that broadcast.
    """

    name: str
    what: str
    rounded: str
    holds: Callable[[Array, Array], Array]


def equality(tolerance: float) -> AgreementRule:
    """Return the rule of equality within a tolerance; NaN equals NaN."""

    def holds(a: Array, b: Array) -> Array:
        return np.asarray(
            (np.abs(a - b) <= tolerance) | (a == b) | (np.isnan(a) & np.isnan(b)), bool
        )

    return AgreementRule("", "", "", holds)


def arithmetic(tolerance: float) -> AgreementRule:
    """Return the rule of equality but for float32's last digit, as after an addition."""

    def holds(a: Array, b: Array) -> Array:
        size = np.maximum(np.abs(a), np.abs(b))
        return np.asarray(np.abs(a - b) <= np.maximum(tolerance, ADDITION_SLACK * size), bool)

    return AgreementRule("last digit", "equal to about 7 digits, as float32 has them", "", holds)


def agreement_rules(tolerance: float) -> Iterator[AgreementRule]:
    """Yield the rules: equality first, then ever larger losses of digits."""
    yield equality(tolerance)
    for side in ("B", "A"):
        yield _loss("float32", "rounded to float32", side, _rounding(_to_float32, 2.0**-24))
    yield arithmetic(tolerance)
    for side in ("B", "A"):
        half = _rounding(_to_float16, 2.0**-11, 2.0**-25)
        yield _loss("float16", "rounded to float16", side, half)
        # bfloat16 is cut, or rounded.
        yield _loss("bfloat16", "rounded to bfloat16", side, _rounding(_to_bfloat16, 2.0**-7))
        for digits in range(7, 2, -1):
            what = f"rounded to {digits} significant digits, as text has them"
            yield _loss(f"{digits} digits", what, side, partial(_has_digits, digits))
        for decimals in range(8, 2, -1):
            what = f"rounded to {decimals} decimals, as text has them"
            yield _loss(f"{decimals} decimals", what, side, partial(_has_decimals, decimals))


Test = Callable[[Array, Array], Array]
"""Elementwise test of full numbers and of numbers with fewer digits."""


def _loss(name: str, what: str, side: str, test: Test) -> AgreementRule:
    """Return the rule that one side holds the other side's numbers with fewer digits."""

    def holds(a: Array, b: Array) -> Array:
        return np.asarray(test(a, b) if side == "B" else test(b, a), bool)

    return AgreementRule(name, what, side, holds)


def _rounding(rounded: Callable[[Array], Array], half: float, smallest: float = 0.0) -> Test:
    """Return the test for the nearest numbers of a dtype."""

    def holds(full: Array, few: Array) -> Array:
        near = np.abs(full - few) <= np.maximum(half * 1.001 * np.abs(full), smallest)
        return np.asarray((rounded(few) == few) & near)

    return holds


def _to_float32(values: Array) -> Array:
    return values.astype(np.float32).astype(np.float64)


def _to_float16(values: Array) -> Array:
    return values.astype(np.float16).astype(np.float64)


def _to_bfloat16(values: Array) -> Array:
    """Cut to the upper 16 bits of float32: exact for numbers that bfloat16 holds."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(np.float64)


def _has_digits(digits: int, full: Array, few: Array) -> Array:
    exponent = np.floor(np.log10(np.where(few == 0, 1.0, np.abs(few))))
    grid = _on_grid(full, few, 10.0 ** (exponent - digits + 1))
    return np.asarray(grid & ((few != 0) | (full == 0)))


def _has_decimals(decimals: int, full: Array, few: Array) -> Array:
    return _on_grid(full, few, np.full(np.shape(few), 10.0**-decimals))


def _on_grid(full: Array, few: Array, unit: Array) -> Array:
    """Return True where `few` is `full` rounded to a multiple of the unit, as float32 holds it."""
    slack = 0.6 * EPS * np.abs(few)
    on_grid = np.abs(few - np.round(few / unit) * unit) <= slack
    return np.asarray(on_grid & (np.abs(full - few) <= 0.5001 * unit + slack))


def transformed(block: Array, transform: str) -> Array:
    """Return a gate's block under a transform that is possible for it; see `sample`."""
    if transform == "zero":
        return np.zeros_like(block)
    if transform == "by columns":
        return block.T.reshape(block.shape)
    block = -block if transform.startswith("negated") else block
    return block.T if transform.endswith("transposed") else block


def sample(block: Array, transform: str, at: Array) -> Array | None:
    """Return some numbers of a transformed block in float64, without transforming all of it.

    Parameters
    ----------
    at
        Flat indices into the transformed block.

    Returns
    -------
    None where the transform is impossible for this block, or the identity.
    """
    if transform == "zero":
        return np.zeros(len(at)) if block.any() else None
    exchanges_axes = "transposed" in transform or transform == "by columns"
    if exchanges_axes and (block.ndim != 2 or min(block.shape) < 2):
        return None
    if exchanges_axes and (block.shape[0] == block.shape[1]) == (transform == "by columns"):
        return None
    shape = block.shape[::-1] if exchanges_axes else block.shape
    places = np.unravel_index(at, shape)
    values = np.asarray(block[places[::-1] if exchanges_axes else places], np.float64)
    return -values if transform.startswith("negated") else values


def candidate_layouts(b: Array, shape: tuple[int, ...], gates: int) -> Iterator[tuple[str, Array]]:
    """Yield names of layouts in which B may be stored, and B's tensor in A's layout."""
    if b.shape == shape:
        yield "", b
    if b.ndim != 2 or b.size == 0 or b.size != shape[0] * shape[-1] or len(shape) != 2:
        if b.shape == shape:
            yield from _by_unit_and_gate(b, gates)
        return
    if b.shape == shape[::-1] and min(shape) > 1:
        yield "transposed", b.T
        if b.shape != shape:
            yield "reshaped", b.reshape(shape)
    if b.shape == shape:
        if min(shape) > 1 and shape[0] != shape[1]:
            yield "by columns", b.reshape(shape[::-1]).T
            yield "by columns", b.T.reshape(shape)
        yield from _by_unit_and_gate(b, gates)
        if shape[1] % 2 == 0:
            yield "halves", np.roll(b, shape[1] // 2, axis=1)


def _by_unit_and_gate(b: Array, gates: int) -> Iterator[tuple[str, Array]]:
    """Yield layouts with rows ordered by unit, then gate, and the reverse."""
    if gates < 2 or len(b) % gates or len(b) == gates:
        return
    units = len(b) // gates
    yield "interleaved", b.reshape(units, gates, *b.shape[1:]).swapaxes(0, 1).reshape(b.shape)
    if units != gates:
        yield "apart", b.reshape(gates, units, *b.shape[1:]).swapaxes(0, 1).reshape(b.shape)


@dataclass(frozen=True)
class TensorMatch:
    """One match of a tensor of B with one of A.

    Attributes
    ----------
    letters
        Gates in native order; ``("",)`` for a tensor that is not by gate.
    order
        The gate of A in each place of B.
    changes
        Transform of the block in each place; None: the block does not follow.
    layout
        Layout of the whole tensor; see `LAYOUT_PHRASES`.
    rule
        Rule under which the numbers agree.
    shift
        A gate of A, and the constant that B adds to it.
    scale
        Factor from A to B.
    source
        Name of A's bias that B's bias equals, if it is not the sum of A's two biases.
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
        """True if every block follows."""
        return None not in self.changes

    @property
    def reordered(self) -> bool:
        """True if the gates are in another order."""
        return self.order != self.letters

    @property
    def plain(self) -> bool:
        """True if the tensors are equal."""
        return not (self.cost[0] or self.cost[1])

    @property
    def cost(self) -> tuple[int, int, bool, int, tuple[int, ...]]:
        """Sort key: complete matches first, then few changes, then few moved gates."""
        transforms = {change for change in self.changes if change}
        extra = [self.layout, self.shift, self.scale is not None, self.source]
        places = tuple(self.letters.index(letter) for letter in self.order)
        moved = sum(place != k for k, place in enumerate(places))
        amount = sum(map(bool, extra)) + self.reordered
        amount += len(transforms) + 2 * ("zero" in transforms) + bool(self.rule.name)
        return self.changes.count(None), amount, self.reordered, moved, places


def tensor_matches(
    a: Array, b: Array, letters: tuple[str, ...], tolerance: float
) -> list[TensorMatch]:
    """Return all complete matches under the strictest rule that gives any, else the best match.

    Parameters
    ----------
    letters
        Letters of the gates that the tensors stack; empty for none.
    """
    letters = letters or ("",)
    if a.size == 0 or len(a) % len(letters):
        return []
    if a.shape == b.shape:  # equal tensors, the usual case
        matches = _complete(BlockMatcher(a, b, letters, "").matches(equality(tolerance)))
        if matches:
            return matches
    matchers = [
        BlockMatcher(a, tensor, letters, layout)
        for layout, tensor in candidate_layouts(b, a.shape, len(letters))
    ]
    best: list[TensorMatch] = []
    for rule in agreement_rules(tolerance):
        candidates = [match for matcher in matchers for match in matcher.matches(rule)]
        if matches := _complete(candidates):
            return matches
        best = sorted([*best, *candidates], key=lambda match: match.cost)[:1]
    scaled = _scaled(a, b, letters, tolerance)
    return [scaled] if scaled is not None else best


def _complete(matches: Iterable[TensorMatch]) -> list[TensorMatch]:
    return sorted((m for m in matches if m.complete), key=lambda match: match.cost)


class BlockMatcher:
    """Finds the blocks of B that follow from blocks of A.

    Parameters
    ----------
    a, b
        Tensors of one shape (G * H, ...), with B's in A's layout.
    layout
        Name of the layout in which B's tensor is stored.
    """

    def __init__(self, a: Array, b: Array, letters: tuple[str, ...], layout: str) -> None:
        self.letters, self.layout = letters, layout
        self.a, self.b = np.split(a, len(letters)), np.split(b, len(letters))
        at = _sample_indices(self.a[0].size)
        samples = [
            (transform, q, values)
            for transform in BLOCK_TRANSFORMS
            for q, block in enumerate(self.a)
            if (values := sample(block, transform, at)) is not None
        ]
        self._transforms = [(transform, q) for transform, q, _ in samples]
        self._samples_a = np.stack([values for *_, values in samples])
        self._samples_b = np.stack([cast(Array, sample(block, "", at)) for block in self.b])

    def matches(self, rule: AgreementRule) -> Iterator[TensorMatch]:
        """Yield matches under one rule, for every order of the gates that explains a block."""
        table, letters = self._table(rule), self.letters
        shifts = self._shifts(rule)
        for places in itertools.permutations(range(len(letters))):
            changes = [table.get((q, p)) for p, q in enumerate(places)]
            order, shift = tuple(letters[q] for q in places), None
            if changes.count(None) == 1:
                p = changes.index(None)
                if (constant := shifts.get((places[p], p))) is not None:
                    changes[p], shift = "", (order[p], constant)
            if changes.count(None) < len(letters):
                yield TensorMatch(letters, order, tuple(changes), self.layout, rule, shift)

    def _table(self, rule: AgreementRule) -> dict[tuple[int, int], str]:
        """Map gate of A and place of B to the simplest transform under which blocks agree."""
        table: dict[tuple[int, int], str] = {}
        with np.errstate(all="ignore"):
            agree = rule.holds(self._samples_a[:, None], self._samples_b[None]).all(axis=-1)
        for k, p in np.argwhere(agree):
            transform, q = self._transforms[k]
            key = (q, int(p))
            if transform == "zero" and self.b[p].any():
                continue  # B is not zero itself, although the rule accepts it as rounded
            if key not in table and agrees(transformed(self.a[q], transform), self.b[p], rule):
                table[key] = transform
        return table

    def _shifts(self, rule: AgreementRule) -> dict[tuple[int, int], float]:
        if self.a[0].ndim > 1 or self.letters == ("",):
            return {}
        pairs = itertools.product(enumerate(self.a), enumerate(self.b))
        shifts = {(q, p): _shift(a, b, rule) for (q, a), (p, b) in pairs}
        return {key: constant for key, constant in shifts.items() if constant is not None}


def _sample_indices(size: int) -> Array:
    if size <= SAMPLE:
        return np.arange(size)
    return np.random.default_rng(size).integers(0, size, SAMPLE)


def agrees(a: Array, b: Array, rule: AgreementRule) -> bool:
    """Return True if a rule holds on every number."""
    with np.errstate(all="ignore"):
        return all(bool(rule.holds(x, y).all()) for x, y in float64_chunks(a, b))


def _shift(a: Array, b: Array, rule: AgreementRule) -> float | None:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return next((constant for constant in _constants(a, b) if _holds(a, b, constant, rule)), None)


def _constants(a: Array, b: Array) -> Iterable[float]:
    """Yield constants to try: 1 as a forget bias, its opposite, and the median difference."""
    yield 1.0
    yield -1.0
    with np.errstate(all="ignore"):
        median = float(np.median(b - a)) if len(a) > 2 else 0.0
    if np.isfinite(median) and abs(median) > 1e-3:
        yield float(f"{median:.5g}")


def _holds(a: Array, b: Array, constant: float, rule: AgreementRule) -> bool:
    with np.errstate(all="ignore"):
        slack = ADDITION_SLACK * np.maximum(np.abs(a), np.maximum(np.abs(b), abs(constant)))
        near = np.abs(a + constant - b) <= slack
        return bool((near | rule.holds(a + constant, b)).all())


def _scaled(a: Array, b: Array, letters: tuple[str, ...], tolerance: float) -> TensorMatch | None:
    """Return the match of B as a multiple of A, on the whole tensor."""
    if a.shape != b.shape or a.size < 3:
        return None
    with np.errstate(all="ignore"):
        squares = sum(float((x * x).sum()) for x, _ in float64_chunks(a, b))
        products = sum(float((x * y).sum()) for x, y in float64_chunks(a, b))
        k = float(f"{products / squares if squares else 0.0:.6g}")
        rule = arithmetic(tolerance)
        if k in (0.0, 1.0) or not np.isfinite(k):
            return None
        if not all(bool(rule.holds(k * x, y).all()) for x, y in float64_chunks(a, b)):
            return None
    return TensorMatch(letters, letters, ("",) * len(letters), "", rule, scale=k)
