"""D"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lstm_cli.api.comparison import diagnosis, known_errors
from lstm_cli.api.comparison.inputs import SYMBOLS
from lstm_cli.api.comparison.known_errors import BIAS_SPLITS, KEEPS_SUM
from lstm_cli.api.comparison.matching import LAYOUT_PHRASES, TensorMatch
from lstm_cli.api.comparison.metrics import ComparedBlock
from lstm_cli.api.comparison.pairing import DirectionMatch, LayerPair, Place, direction_matches
from lstm_cli.formats.gates import NATIVE

EXACT = ("block", "change", "shift")
"""Kinds of facts that name the gates that they hold on."""

MISTAKES = {
    known_errors.LABELS_FOR_SLOTS: "W and U of B are A's as TMVA's elements give them when they are "
    "read by their labels",
    known_errors.SLOTS_FOR_LABELS: "W and U of B are A's as TMVA's elements give them when those of "
    "an older file are read by their slots",
    known_errors.OTHER_UNITS: "B is A with its units in another order, the same in every gate: the "
    "same layer, but for the order of its outputs",
    known_errors.OTHER_UNITS_AND_COLUMNS: "B is A with its units in another order, the same in every "
    "gate, and its inputs in another: the same layer, but for the order of what it reads and gives",
}

PLURAL = {"is": "are", "has": "have", "holds": "hold"}

TMVA_HINT = "read the XML file anew with --tmva-order slots, or labels where that was given"

FRAMEWORKS: dict[str, dict[tuple[str, ...], str]] = {
    "lstm": {
        ("i", "o", "f", "g"): "ONNX",
        ("i", "g", "f", "o"): "TF1 and CNTK",
        ("i", "f", "o", "g"): "Core ML",
        ("i", "o", "f"): "ONNX",  # of peepholes
    },
    "gru": {("z", "r", "n"): "ONNX and Keras"},
}
"""By kind of layer: orders in native letters. PyTorch, Keras and MXNet have an lstm's as here,
PyTorch a gru's. TF1 calls the candidate j, Keras and ONNX c."""


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
    merged_findings: tuple[Finding, ...]
    unexplained: tuple[str, ...]


def diagnose(
    pairs: Sequence[LayerPair], blocks: Sequence[ComparedBlock], tolerance: float
) -> Diagnosis:
    """Look for what made B of A.

    Parameters
    ----------
    blocks
        The figures: what has no counterpart, or no shape in common, no finding explains.
    """
    found = list(direction_matches(pairs, tolerance))
    tensors = {
        Place(a.index, direction.name): direction.tensors
        for a, b in pairs
        if a is not None and b is not None
        for direction in b.directions
    }
    absent = list(_biases_of_zeros(pairs))
    settled = {(place, name) for _, place, names in absent for name in names}
    told = merged_findings(found, tensors) + tuple(_said_of_zeros(absent, pairs))
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


def _biases_of_zeros(pairs: Sequence[LayerPair]) -> Iterator[tuple[str, Place, tuple[str, ...]]]:
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
    absent: Sequence[tuple[str, Place, tuple[str, ...]]], pairs: Sequence[LayerPair]
) -> Iterator[Finding]:
    every = [Place(a.index, d.name) for a, _ in pairs if a is not None for d in a.directions]
    for label, other in (("A", "B"), ("B", "A")):
        found = [place for side, place, _ in absent if side == label]
        if found:
            symbols = dict.fromkeys(
                SYMBOLS[n] for s, _, names in absent if s == label for n in names
            )
            what = f"{label} has no biases where {other}'s are 0: both compute the same"
            where = () if set(found) == set(every) else diagnosis.places(found, every)
            yield Finding(what, "absent", where, tuple(symbols))


def _left(
    blocks: Sequence[ComparedBlock],
    open_: set[tuple[Place, str, str]],
    covered: set[tuple[Place, str]],
) -> tuple[str, ...]:
    """Blocks that differ and follow from nothing, by layer and direction."""
    every = list(dict.fromkeys(Place(b.layer, b.direction or "forward") for b in blocks))
    left: dict[Place, list[ComparedBlock]] = {}
    for block in blocks:
        place = Place(block.layer, block.direction or "forward")
        known = (place, block.tensor) in covered
        gates = {gate for where, name, gate in open_ if (where, name) == (place, block.tensor)}
        if not block.equal and (not known or block.gate in gates or (gates and not block.gates)):
            left.setdefault(place, []).append(block)
    return tuple(
        f"{', '.join(diagnosis.places([place], every))}: {', '.join(_names(found))}"
        for place, found in left.items()
    )


def _names(blocks: Sequence[ComparedBlock]) -> list[str]:
    """Names of blocks; a tensor whose gates are all meant by its own letter."""
    order_name: dict[str, list[ComparedBlock]] = {}
    for block in blocks:
        order_name.setdefault(block.tensor, []).append(block)
    names = []
    for tensor, own in order_name.items():
        whole = own[0].gate and len(own) == own[0].gates
        names += [SYMBOLS.get(tensor, tensor)] if whole else [block.name for block in own]
    return names


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


def merged_findings(
    direction_matches: Sequence[DirectionMatch], tensors: Mapping[Place, Iterable[str]]
) -> tuple[Finding, ...]:
    """Everything that was done to A, the same thing said once.

    Parameters
    ----------
    tensors
        Of every direction of B, for telling all of it from a part.
    """
    kinds = {e.place: e.kind for e in direction_matches}
    grouped: dict[tuple[Any, ...], list[Fact]] = {}
    for explanation in direction_matches:
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


def _facts(found: DirectionMatch) -> Iterator[Fact]:
    def fact(tensor: str, *key: Any, but: tuple[str, ...] = ()) -> Fact:
        return Fact(key, found.place, tensor, but)

    if found.moved:
        yield fact("", "source", found.place, found.source)
    if found.mistake:
        yield fact("", "mistake", found.mistake)
    if found.sharing is not None:
        order = found.sharing.order
        if order != tuple(found.sharing.shares):
            for name in known_errors.PAIR:
                yield fact(name, "order", found.kind, order)
        yield fact("", "sharing", tuple(found.sharing.shares.items()))
        if (rule := found.sharing.rule).name:
            for name in known_errors.PAIR:
                yield fact(name, "rounding", rule.what, rule.rounded)
    order = _order_of(found)
    for name, reading in found.readings.items():
        for key in _keys(found.kind, reading, order):
            yield fact(name, *key, but=() if key[0] in EXACT else _but(reading))


def _but(reading: TensorMatch) -> tuple[str, ...]:
    """Gates of B whose blocks do not follow."""
    pairs = zip(reading.letters, reading.changes, strict=True)
    return tuple(letter for letter, change in pairs if change is None)


def _order_of(found: DirectionMatch) -> tuple[str, ...]:
    """The order of all gates that the direction's tensors have, for a peephole to go along."""
    full = [r.order for r in found.readings.values() if _says_order(r)]
    return max(full, key=len, default=())


def _says_order(reading: TensorMatch) -> bool:
    """An order is claimed if at most one block does not follow: then no other order can be."""
    return reading.reordered and reading.changes.count(None) <= (len(reading.changes) > 2)


def _keys(kind: str, reading: TensorMatch, order: tuple[str, ...]) -> Iterator[tuple[Any, ...]]:
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
    rest = f", but for {diagnosis.listed(list(dict.fromkeys(but)))}" if any(but) else ""
    name = diagnosis.order_name(key[1], key[2]) if key[0] == "order" else None
    return Finding(
        diagnosis.sentence(key, matrices, whole) + rest,
        key[0],
        ()
        if set(found) == set(every) or key[0] == "source"
        else diagnosis.places(found, list(kinds)),
        matrices,
        key[2] if key[0] == "order" else None,
        None if name is None else name.framework,
        diagnosis.hint(key),
    )


def _is_whole(key: tuple[Any, ...], facts: Sequence[Fact], there: Iterable[str]) -> bool:
    """Whether it holds on all tensors that it could be about, and on all gates."""
    apart = {"weight_hr"} if key[0] == "order" else set()
    found = {fact.tensor for fact in facts}
    return found >= set(there) - apart and not any(fact.but for fact in facts)


def sentence(key: tuple[Any, ...], matrices: Sequence[str], whole: bool) -> str:
    """What a finding says.

    Parameters
    ----------
    key
        Its kind, and what that needs.
    matrices, whole
        Letters of the tensors it holds on, and whether these are all there are.
    """
    kind, *rest = key
    names = listed(matrices)
    verb = "is" if len(matrices) == 1 else "are"
    subject = "B is A" if whole else f"{names} of B {verb} A's"
    if kind == "order":
        return _order(subject, *rest)
    if kind == "layout":
        did, _, what = LAYOUT_PHRASES[rest[0]].partition(" ")
        return f"{names} of B {did if len(matrices) == 1 else PLURAL[did]} {what}"
    if kind == "change":
        return _change(names, verb, *rest)
    if kind == "shift":
        return _shift(names, *rest)
    if kind == "scale":
        return f"{subject} times {rest[0]:g}" + _twice(matrices, rest[0])
    if kind == "bias":
        other = "bias_hh" if rest[0] == "bias_ih" else "bias_ih"
        return f"b of B is A's {rest[0]} alone: {other} was left out of the sum"
    if kind == "block":
        letters = [f"{symbol}_{letter}" for letter in rest for symbol in matrices]
        half = len(matrices)
        return f"{listed(letters[:half])} of B {verb} A's {listed(letters[half:])}"
    return _other(kind, subject, verb, rest, whole, names)


def _other(kind: str, subject: str, verb: str, rest: Sequence[Any], whole: bool, names: str) -> str:
    if kind == "sharing":
        return _sharing(dict(rest[0]))
    if kind == "source":
        return _source(*rest)
    if kind == "mistake":
        return MISTAKES[rest[0]]
    what, side = rest
    if side == "A":
        return f"A is B {what}" if whole else f"{names} of A {verb} B's {what}"
    return (
        f"{subject} {what}"
        if side
        else f"{'B and A' if whole else names + ' of B and A'} are {what}"
    )


def _order(subject: str, kind: str, order: tuple[str, ...]) -> str:
    name = diagnosis.order_name(kind, order)
    text = f"{subject} with gates in {name.text}"
    if name.undone is not None:
        text += f", which is what native gates become if they are taken for {name.undone} order"
    return text


def _change(names: str, verb: str, kind: str, change: str, gates: tuple[str, ...]) -> str:
    which = f"{names} of B" if not gates else f"{names} of {_gates(gates)} of B"
    done = {
        "transposed": f"{verb} transposed, each gate's block by itself"
        if not gates
        else f"{verb} transposed",
        "by columns": f"{'hold' if verb == 'are' else 'holds'} the numbers in column order",
        "zero": f"{verb} zero",
    }.get(change, f"{verb} {change}")
    if change == "negated" and kind == "gru" and gates == ("z",):
        done += ": z is exchanged with 1 - z, as in h = (1 - z) h_prev + z n"
    return f"{which} {done}"


def _shift(names: str, gate: str, more: float) -> str:
    which = {"f": "the forget bias"}.get(gate, "the bias")
    change = f"{abs(more):g} {'larger' if more > 0 else 'smaller'}"
    return f"{which} {names}_{gate} of B is A's shifted by {more:+g}: {change} in every unit"


def _twice(matrices: Sequence[str], factor: float) -> str:
    if tuple(matrices) == ("b",) and factor == 2:
        return ": as if both biases had been given the sum of the two"
    return ""


def _source(place: Place, source: Place) -> str:
    def said(which: Place) -> str:
        return f"layer {which.layer} {which.direction}"

    if place.layer == source.layer:
        return f"the directions are exchanged: {said(place)} of B is A's {source.direction} one"
    return f"{said(place)} of B is {said(source)} of A: the layers are in another order"


def _sharing(shares: dict[str, str]) -> str:
    """Per way of sharing, which gates; and whether that changes what the layer computes."""
    by_share: dict[str, list[str]] = {}
    for gate, share in shares.items():
        by_share.setdefault(share, []).append(gate)
    parts = []
    for share, gates in by_share.items():
        if share:
            said = (
                BIAS_SPLITS[share][0]
                if share in BIAS_SPLITS
                else "shared out otherwise, their sum kept"
            )
            parts.append(f"of {_gates(tuple(gates))} are {said}")
    kept = [gate for gate, share in shares.items() if share and share in KEEPS_SUM and gate != "n"]
    text = "the two biases b and b_h " + "; ".join(parts)
    if kept:
        text += f"; of {_gates(tuple(kept))} that changes no output"
    if shares.get("n"):
        text += "; of gate n it does where reset_after is true"
    return text


def hint(key: tuple[Any, ...]) -> str | None:
    """What to do about a finding, if anything."""
    kind, *rest = key
    if kind == "order":
        name = diagnosis.order_name(*rest)
        if (whose := name.framework or name.undone) is not None:
            return (
                f"one of the two was written with gates in {whose} order and read as if they were "
                "in its own; lstm-cli convert, from the original file, puts them in order"
            )
        return "one of the two must have its gates put in order: i, f, g, o or r, z, n natively"
    if kind == "mistake" and "TMVA" in rest[0]:
        return TMVA_HINT
    if kind == "shift" and rest[0] == "f" and abs(rest[1]) == 1:
        return (
            "TF1's BasicLSTMCell adds 1 to b_f at run time; elsewhere what is stored is all there "
            "is, and `forget_bias` of a config is for fresh weights only"
        )
    if kind in ("layout", "change") and "transposed" in str(rest):
        return "Keras and TF1 store a kernel as (inputs, gates), natively it is (gates, inputs)"
    return None


def places(found: Sequence[Place], every: Sequence[Place]) -> tuple[str, ...]:
    """Layers, and directions where not all of a layer's are meant."""
    said = []
    for layer in dict.fromkeys(place.layer for place in found):
        mine = [place for place in found if place.layer == layer]
        all_of_it = len(mine) == sum(place.layer == layer for place in every)
        order_name = (
            [f"layer {layer}"] if all_of_it else [f"layer {layer} {p.direction}" for p in mine]
        )
        said += order_name
    return tuple(said)


def listed(names: Sequence[str]) -> str:
    """``W, U and b``."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _gates(gates: tuple[str, ...]) -> str:
    return f"gate{'s' if len(gates) > 1 else ''} {listed(gates)}"


@dataclass(frozen=True)
class OrderName:
    """What an order is called.

    Attributes
    ----------
    framework
        Whose it is; None if nobody's.
    undone
        The framework whose order, taken for granted where it was not, gives this one.
    text
        Such as ``ONNX order i, o, f, g`` or ``the order o, i, f, g``.
    """

    framework: str | None
    undone: str | None
    text: str


def order_name(kind: str, order: Sequence[str]) -> OrderName:
    """The name of an order of a layer's gates, in native letters."""
    known, letters = FRAMEWORKS.get(kind, {}), ", ".join(order)
    framework = known.get(tuple(order))
    if framework is not None:
        return OrderName(framework, None, f"{framework} order {letters}")
    undone = known.get(inverse_order(kind, order))
    return OrderName(None, undone, f"the order {letters}")


def inverse_order(kind: str, order: Sequence[str]) -> tuple[str, ...]:
    """The order that undoes this one: what native gates become if they are taken for it."""
    native = tuple(letter for letter in NATIVE[kind] if letter in order)
    return tuple(native[tuple(order).index(letter)] for letter in native)
