"""What a diagnosis found, in sentences: each holds on all that it names, as was verified."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lstm_cli.api.comparison import biases, orders, words
from lstm_cli.api.comparison.directions import Explanation, Place
from lstm_cli.api.comparison.matching import Reading
from lstm_cli.api.comparison.sides import SYMBOLS

EXACT = ("block", "change", "shift")
"""Kinds of facts that name the gates that they hold on."""


@dataclass(frozen=True)
class Finding:
    """One explanation.

    Attributes
    ----------
    what
        The sentence: ``B is A with gates in ONNX order i, o, f, g``.
    kind
        ``order``, ``layout``, ``change``, ``shift``, ``scale``, ``bias``, ``sharing``,
        ``rounding``, ``source``, ``block``, ``mistake`` or ``absent``.
    where
        Layers and directions: ``layer 0``, ``layer 1 reverse``; empty for all there are.
    matrices
        Letters of the tensors that it holds on: ``W``, ``U``.
    order, framework
        Of gates, and whose order it is, where it is about that.
    hint
        What to do about it.
    """

    what: str
    kind: str
    where: tuple[str, ...]
    matrices: tuple[str, ...]
    order: tuple[str, ...] | None = None
    framework: str | None = None
    hint: str | None = None


@dataclass(frozen=True)
class Fact:
    """One thing that was done to one tensor, `but` for some of its gates.

    Equal keys make one finding, where they hold on the same tensors.
    """

    key: tuple[Any, ...]
    place: Place
    tensor: str
    but: tuple[str, ...] = ()


def findings(
    explanations: Sequence[Explanation], tensors: Mapping[Place, Iterable[str]]
) -> tuple[Finding, ...]:
    """Everything that was done to A, the same thing said once.

    Parameters
    ----------
    tensors
        Of every direction of B, for telling all of it from a part.
    """
    kinds = {e.place: e.kind for e in explanations}
    grouped: dict[tuple[Any, ...], list[Fact]] = {}
    for explanation in explanations:
        own: dict[tuple[Any, ...], list[Fact]] = {}
        for fact in _facts(explanation):
            own.setdefault(fact.key, []).append(fact)
        for key, facts in own.items():
            whole = _is_whole(key, facts, tensors[explanation.place])
            held = "all" if whole else tuple((f.tensor, f.but) for f in facts)
            grouped.setdefault((key, held), []).extend(facts)
    return tuple(
        _finding(key, facts, kinds, whole=held == "all") for (key, held), facts in grouped.items()
    )


def _facts(found: Explanation) -> Iterator[Fact]:
    def fact(tensor: str, *key: Any, but: tuple[str, ...] = ()) -> Fact:
        return Fact(key, found.place, tensor, but)

    if found.moved:
        yield fact("", "source", found.place, found.source)
    if found.mistake:
        yield fact("", "mistake", found.mistake)
    if found.sharing is not None:
        order = found.sharing.order
        if order != tuple(found.sharing.shares):
            for name in biases.PAIR:
                yield fact(name, "order", found.kind, order)
        yield fact("", "sharing", tuple(found.sharing.shares.items()))
        if (rule := found.sharing.rule).name:
            for name in biases.PAIR:
                yield fact(name, "rounding", rule.what, rule.rounded)
    order = _order_of(found)
    for name, reading in found.readings.items():
        for key in _keys(found.kind, reading, order):
            yield fact(name, *key, but=() if key[0] in EXACT else _but(reading))


def _but(reading: Reading) -> tuple[str, ...]:
    """Gates of B whose blocks do not follow."""
    pairs = zip(reading.letters, reading.changes, strict=True)
    return tuple(letter for letter, change in pairs if change is None)


def _order_of(found: Explanation) -> tuple[str, ...]:
    """The order of all gates that the direction's tensors have, for a peephole to go along."""
    full = [r.order for r in found.readings.values() if _says_order(r)]
    return max(full, key=len, default=())


def _says_order(reading: Reading) -> bool:
    """An order is claimed if at most one block does not follow: then no other order can be."""
    return reading.reordered and reading.changes.count(None) <= (len(reading.changes) > 2)


def _keys(kind: str, reading: Reading, order: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
    """What a reading says, a key for each part."""
    along = len(reading.order) < len(order) and reading.order == tuple(
        letter for letter in order if letter in reading.letters
    )
    if along and reading.complete:  # a peephole, which has no gate g
        yield "order", kind, order
    elif _says_order(reading):
        yield "order", kind, reading.order
    elif reading.reordered:
        for p, letter in enumerate(reading.letters):
            if reading.changes[p] is not None and reading.order[p] != letter:
                yield "block", letter, reading.order[p]
    if reading.layout:
        yield "layout", reading.layout
    for change in dict.fromkeys(c for c in reading.changes if c):
        gates = tuple(g for g, c in zip(reading.order, reading.changes, strict=True) if c == change)
        whole = len(gates) == len(reading.order)
        yield (
            "change",
            kind,
            change,
            () if whole else tuple(sorted(gates, key=reading.letters.index)),
        )
    if reading.shift is not None:
        yield "shift", *reading.shift
    if reading.source:
        yield "bias", reading.source
    if reading.scale is not None:
        yield "scale", reading.scale
    elif reading.rule.name:
        yield "rounding", reading.rule.what, reading.rule.rounded


def _finding(
    key: tuple[Any, ...], facts: Sequence[Fact], kinds: Mapping[Place, str], *, whole: bool
) -> Finding:
    found = list(dict.fromkeys(fact.place for fact in facts))
    every = [place for place, kind in kinds.items() if key[0] != "order" or kind != "dense"]
    symbols = {SYMBOLS.get(f.tensor, f.tensor) for f in facts if f.tensor}
    known = [symbol for symbol in dict.fromkeys(SYMBOLS.values()) if symbol in symbols]
    matrices = (*known, *sorted(symbols - set(known)))
    but = [f"{SYMBOLS.get(f.tensor, f.tensor)}_{gate}" for f in facts for gate in f.but]
    rest = f", but for {words.listed(list(dict.fromkeys(but)))}" if any(but) else ""
    name = orders.named(key[1], key[2]) if key[0] == "order" else None
    return Finding(
        words.sentence(key, matrices, whole) + rest,
        key[0],
        () if set(found) == set(every) or key[0] == "source" else words.places(found, list(kinds)),
        matrices,
        key[2] if key[0] == "order" else None,
        None if name is None else name.framework,
        words.hint(key),
    )


def _is_whole(key: tuple[Any, ...], facts: Sequence[Fact], there: Iterable[str]) -> bool:
    """Whether it holds on all tensors that it could be about, and on all gates."""
    apart = {"weight_hr"} if key[0] == "order" else set()
    found = {fact.tensor for fact in facts}
    return found >= set(there) - apart and not any(fact.but for fact in facts)
