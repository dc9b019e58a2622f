"""Diagnosis of two files that differ: verified explanations, merged and written as sentences.

`diagnose` takes facts from the matches of directions and tensors. Equal facts of several places
become one finding. `SENTENCES` has the sentence for each kind of finding, `_hint` the advice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lstm_cli.formats.gates import NATIVE_GATES
from lstm_cli.workflows.compare.inputs import SYMBOLS, ComparedBlock
from lstm_cli.workflows.compare.matching import LAYOUT_PHRASES, TensorMatch
from lstm_cli.workflows.compare.pairing import (
    BIAS_PAIR,
    BIAS_SPLITS,
    LABELS_FOR_SLOTS,
    OTHER_SPLIT,
    PERMUTED_UNITS,
    PERMUTED_UNITS_AND_COLUMNS,
    SLOTS_FOR_LABELS,
    SPLITS_THAT_KEEP_SUM,
    DirectionMatch,
    LayerPair,
    Place,
    direction_matches,
)

FRAMEWORK_ORDERS: dict[str, dict[tuple[str, ...], str]] = {
    "lstm": {
        ("i", "o", "f", "g"): "ONNX",
        ("i", "g", "f", "o"): "TF1 and CNTK",
        ("i", "f", "o", "g"): "Core ML",
        ("i", "o", "f"): "ONNX",  # of peepholes
    },
    "gru": {("z", "r", "n"): "ONNX and Keras"},
}
"""Frameworks by kind of layer and order of the gates, in native letters.

The native order of an lstm is PyTorch's, Keras' and MXNet's, that of a gru PyTorch's. TF1 calls
the candidate j, Keras and ONNX c.
"""

EXACT = ("block", "change", "shift")
"""Kinds of facts that name their gates."""


@dataclass(frozen=True)
class Finding:
    """One explanation of a difference, verified on every number that it names.

    Attributes
    ----------
    what
        Sentence: ``B is A with gates in ONNX order i, o, f, g``.
    kind
        ``order``, ``layout``, ``change``, ``shift``, ``scale``, ``bias``, ``sharing``,
        ``rounding``, ``source``, ``block``, ``mistake`` or ``absent``.
    where
        Layers and directions: ``layer 0``, ``layer 1 reverse``; empty for all of them.
    matrices
        Letters of the tensors that it holds on: ``W``, ``U``.
    order, framework
        Order of the gates and the framework that has it, for a finding on an order.
    hint
        Advice to the user.
    """

    what: str
    kind: str
    where: tuple[str, ...]
    matrices: tuple[str, ...]
    order: tuple[str, ...] | None = None
    framework: str | None = None
    hint: str | None = None


@dataclass(frozen=True)
class Diagnosis:
    """Explanations of all differences, and the blocks that they leave unexplained.

    Attributes
    ----------
    explained
        ``wholly``, ``partly`` or ``not``.
    findings
        Explanations.
    unexplained
        Matrices of gates that no finding explains: ``layer 0: U_f, b_f``.
    """

    explained: Literal["wholly", "partly", "not"]
    findings: tuple[Finding, ...]
    unexplained: tuple[str, ...]


def diagnose(
    pairs: Sequence[LayerPair], blocks: Sequence[ComparedBlock], tolerance: float
) -> Diagnosis:
    """Look for the changes that turned A into B.

    Parameters
    ----------
    blocks
        Blocks with their metrics. No finding explains a block without a counterpart, or with
        another shape.
    """
    matches = list(direction_matches(pairs, tolerance))
    tensors = {
        Place(a.index, direction.name): direction.tensors
        for a, b in pairs
        if a is not None and b is not None
        for direction in b.directions
    }
    zero_biases = list(_zero_biases(pairs))
    settled = {(place, name) for _, place, names in zero_biases for name in names}
    findings = merged_findings(matches, tensors) + tuple(_zero_findings(zero_biases, pairs))
    unmatched = {
        (match.place, name, gate)
        for match in matches
        for name, gate in match.unexplained
        if (match.place, name) not in settled
    }
    covered = {(match.place, name) for match in matches for name in tensors[match.place]} | settled
    unexplained = _unexplained(blocks, unmatched, covered)
    explained: Literal["wholly", "partly", "not"] = "wholly"
    if unexplained:
        explained = "partly" if findings else "not"
    return Diagnosis(explained, findings, unexplained)


def _zero_biases(pairs: Sequence[LayerPair]) -> Iterator[tuple[str, Place, tuple[str, ...]]]:
    """Find directions without biases on one side, and with biases of 0 on the other.

    Yields the label of the side without biases, the place, and the other side's names of them.
    """
    for a, b in pairs:
        if a is None or b is None:
            continue
        for one in a.directions:
            other = next((d for d in b.directions if d.name == one.name), one)
            biases = [[n for n in side.tensors if n.startswith("bias")] for side in (one, other)]
            if bool(biases[0]) == bool(biases[1]):
                continue
            label, biased = ("B", one) if biases[0] else ("A", other)
            names = tuple(biases[0] or biases[1])
            if not any(biased.tensors[name].any() for name in names):
                yield label, Place(a.index, one.name), names


def _zero_findings(
    zero_biases: Sequence[tuple[str, Place, tuple[str, ...]]], pairs: Sequence[LayerPair]
) -> Iterator[Finding]:
    all_places = [Place(a.index, d.name) for a, _ in pairs if a is not None for d in a.directions]
    for label, other in (("A", "B"), ("B", "A")):
        places = [place for side, place, _ in zero_biases if side == label]
        if places:
            symbols = dict.fromkeys(
                SYMBOLS[n] for s, _, names in zero_biases if s == label for n in names
            )
            what = f"{label} has no biases where {other}'s are 0: both compute the same"
            where = () if set(places) == set(all_places) else _place_names(places, all_places)
            yield Finding(what, "absent", where, tuple(symbols))


def _unexplained(
    blocks: Sequence[ComparedBlock],
    unmatched: set[tuple[Place, str, str]],
    covered: set[tuple[Place, str]],
) -> tuple[str, ...]:
    """Name the blocks that differ and follow from nothing, by layer and direction."""
    all_places = list(dict.fromkeys(Place(b.layer, b.direction or "forward") for b in blocks))
    by_place: dict[Place, list[ComparedBlock]] = {}
    for block in blocks:
        place = Place(block.layer, block.direction or "forward")
        known = (place, block.tensor) in covered
        gates = {gate for where, name, gate in unmatched if (where, name) == (place, block.tensor)}
        if not block.equal and (not known or block.gate in gates or (gates and not block.gates)):
            by_place.setdefault(place, []).append(block)
    return tuple(
        f"{', '.join(_place_names([place], all_places))}: {', '.join(_block_names(group))}"
        for place, group in by_place.items()
    )


def _block_names(blocks: Sequence[ComparedBlock]) -> list[str]:
    """Name blocks; a tensor's letter alone means all of its gates."""
    by_tensor: dict[str, list[ComparedBlock]] = {}
    for block in blocks:
        by_tensor.setdefault(block.tensor, []).append(block)
    names = []
    for tensor, group in by_tensor.items():
        whole = group[0].gate and len(group) == group[0].gates
        names += [SYMBOLS.get(tensor, tensor)] if whole else [block.name for block in group]
    return names


@dataclass(frozen=True)
class Fact:
    """One change of one tensor.

    Facts with equal keys make one finding, where they hold on the same tensors.

    Attributes
    ----------
    key
        Kind of the finding, and the details that its sentence needs.
    except_gates
        Gates that the change does not explain.
    """

    key: tuple[Any, ...]
    place: Place
    tensor: str
    except_gates: tuple[str, ...] = ()


def merged_findings(
    matches: Sequence[DirectionMatch], tensors: Mapping[Place, Iterable[str]]
) -> tuple[Finding, ...]:
    """Return the facts of all matches as findings, equal ones merged.

    Parameters
    ----------
    tensors
        Tensors of every direction of B, to tell all of them from a part.
    """
    kinds = {match.place: match.kind for match in matches}
    grouped: dict[tuple[Any, ...], list[Fact]] = {}
    for match in matches:
        by_key: dict[tuple[Any, ...], list[Fact]] = {}
        for fact in _facts(match):
            by_key.setdefault(fact.key, []).append(fact)
        for key, facts in by_key.items():
            whole = _is_whole(key, facts, tensors[match.place])
            extent = "all" if whole else tuple((f.tensor, f.except_gates) for f in facts)
            grouped.setdefault((key, extent), []).extend(facts)
    return tuple(
        _finding(key, facts, kinds, whole=extent == "all")
        for (key, extent), facts in grouped.items()
    )


def _facts(match: DirectionMatch) -> Iterator[Fact]:
    def fact(tensor: str, *key: Any, except_gates: tuple[str, ...] = ()) -> Fact:
        return Fact(key, match.place, tensor, except_gates)

    if match.moved:
        yield fact("", "source", match.place, match.source)
    if match.error:
        yield fact("", "mistake", match.error)
    if match.biases is not None:
        order = match.biases.order
        if order != tuple(match.biases.splits):
            for name in BIAS_PAIR:
                yield fact(name, "order", match.kind, order)
        yield fact("", "sharing", tuple(match.biases.splits.items()))
        if (rule := match.biases.rule).name:
            for name in BIAS_PAIR:
                yield fact(name, "rounding", rule.what, rule.rounded)
    order = _common_order(match)
    for name, tensor in match.tensors.items():
        pairs = zip(tensor.letters, tensor.changes, strict=True)
        unmatched = tuple(letter for letter, change in pairs if change is None)
        for key in _tensor_keys(match.kind, tensor, order):
            yield fact(name, *key, except_gates=() if key[0] in EXACT else unmatched)


def _common_order(match: DirectionMatch) -> tuple[str, ...]:
    """Return the order of all gates, which a tensor with fewer gates, a peephole, may follow."""
    orders = [tensor.order for tensor in match.tensors.values() if _has_sure_order(tensor)]
    return max(orders, key=len, default=())


def _has_sure_order(match: TensorMatch) -> bool:
    """Return True if at most one block does not follow: then no other order is possible."""
    return match.reordered and match.changes.count(None) <= (len(match.changes) > 2)


def _tensor_keys(
    kind: str, match: TensorMatch, order: tuple[str, ...]
) -> Iterator[tuple[Any, ...]]:
    """Yield a key for each change of a tensor; `order` is that of all gates."""
    follows = len(match.order) < len(order) and match.order == tuple(
        letter for letter in order if letter in match.letters
    )
    if follows and match.complete:  # a peephole, which has no gate g
        yield "order", kind, order
    elif _has_sure_order(match):
        yield "order", kind, match.order
    elif match.reordered:
        for p, letter in enumerate(match.letters):
            if match.changes[p] is not None and match.order[p] != letter:
                yield "block", letter, match.order[p]
    if match.layout:
        yield "layout", match.layout
    for change in dict.fromkeys(c for c in match.changes if c):
        gates = tuple(g for g, c in zip(match.order, match.changes, strict=True) if c == change)
        if len(gates) == len(match.order):
            gates = ()
        yield "change", kind, change, tuple(sorted(gates, key=match.letters.index))
    if match.shift is not None:
        yield "shift", *match.shift
    if match.source:
        yield "bias", match.source
    if match.scale is not None:
        yield "scale", match.scale
    elif match.rule.name:
        yield "rounding", match.rule.what, match.rule.rounded


def _finding(
    key: tuple[Any, ...], facts: Sequence[Fact], kinds: Mapping[Place, str], *, whole: bool
) -> Finding:
    kind, *details = key
    places = list(dict.fromkeys(fact.place for fact in facts))
    all_places = [place for place, layer in kinds.items() if kind != "order" or layer != "dense"]
    symbols = {SYMBOLS.get(f.tensor, f.tensor) for f in facts if f.tensor}
    known = [symbol for symbol in dict.fromkeys(SYMBOLS.values()) if symbol in symbols]
    matrices = (*known, *sorted(symbols - set(known)))
    exceptions = [
        f"{SYMBOLS.get(f.tensor, f.tensor)}_{gate}" for f in facts for gate in f.except_gates
    ]
    rest = f", but for {listed(list(dict.fromkeys(exceptions)))}" if any(exceptions) else ""
    everywhere = set(places) == set(all_places) or kind == "source"
    return Finding(
        SENTENCES[kind](_Subject(matrices, whole), *details) + rest,
        kind,
        () if everywhere else _place_names(places, list(kinds)),
        matrices,
        details[1] if kind == "order" else None,
        order_name(*details).framework if kind == "order" else None,
        _hint(kind, details),
    )


def _is_whole(key: tuple[Any, ...], facts: Sequence[Fact], names: Iterable[str]) -> bool:
    exempt = {"weight_hr"} if key[0] == "order" else set()
    covered = {fact.tensor for fact in facts}
    return covered >= set(names) - exempt and not any(fact.except_gates for fact in facts)


@dataclass(frozen=True)
class OrderName:
    """Name of an order of gates.

    Attributes
    ----------
    framework
        Framework that has the order; None: no known one.
    undone
        Framework for whose order native gates were taken to get this order; None: unknown.
    text
        Such as ``ONNX order i, o, f, g`` or ``the order o, i, f, g``.
    """

    framework: str | None
    undone: str | None
    text: str


def order_name(kind: str, order: Sequence[str]) -> OrderName:
    """Return the name of an order of a layer's gates, in native letters."""
    frameworks, letters = FRAMEWORK_ORDERS.get(kind, {}), ", ".join(order)
    framework = frameworks.get(tuple(order))
    if framework is not None:
        return OrderName(framework, None, f"{framework} order {letters}")
    undone = frameworks.get(inverse_order(kind, order))
    return OrderName(None, undone, f"the order {letters}")


def inverse_order(kind: str, order: Sequence[str]) -> tuple[str, ...]:
    """Return the order that undoes this one: native gates taken for this order become it."""
    native = tuple(letter for letter in NATIVE_GATES[kind] if letter in order)
    return tuple(native[tuple(order).index(letter)] for letter in native)


@dataclass(frozen=True)
class _Subject:
    """Subject of a sentence: tensors by letter; `whole` if these are all tensors."""

    matrices: tuple[str, ...]
    whole: bool

    @property
    def names(self) -> str:
        return listed(self.matrices)

    @property
    def verb(self) -> str:
        return "is" if len(self.matrices) == 1 else "are"

    def __str__(self) -> str:
        return "B is A" if self.whole else f"{self.names} of B {self.verb} A's"


PLURAL = {"is": "are", "has": "have", "holds": "hold"}
ERROR_PHRASES = {
    LABELS_FOR_SLOTS: "W and U of B are A's as TMVA's elements give them when they "
    "are read by their labels",
    SLOTS_FOR_LABELS: "W and U of B are A's as TMVA's elements give them when those "
    "of an older file are read by their slots",
    PERMUTED_UNITS: "B is A with its units in another order, the same in every gate: "
    "the same layer, but for the order of its outputs",
    PERMUTED_UNITS_AND_COLUMNS: "B is A with its units in another order, the same in "
    "every gate, and its inputs in another: the same layer, but for the order of what it reads "
    "and gives",
}


def _order(subject: _Subject, kind: str, order: tuple[str, ...]) -> str:
    name = order_name(kind, order)
    text = f"{subject} with gates in {name.text}"
    if name.undone is not None:
        text += f", which is what native gates become if they are taken for {name.undone} order"
    return text


def _layout(subject: _Subject, layout: str) -> str:
    verb, _, what = LAYOUT_PHRASES[layout].partition(" ")
    verb = verb if len(subject.matrices) == 1 else PLURAL[verb]
    return f"{subject.names} of B {verb} {what}"


def _change(subject: _Subject, kind: str, change: str, gates: tuple[str, ...]) -> str:
    verb = subject.verb
    blocks = f"{subject.names} of {_gates(gates)} of B" if gates else f"{subject.names} of B"
    what = {
        "transposed": f"{verb} transposed" + ("" if gates else ", each gate's block by itself"),
        "by columns": f"{'hold' if verb == 'are' else 'holds'} the numbers in column order",
        "zero": f"{verb} zero",
    }.get(change, f"{verb} {change}")
    if change == "negated" and kind == "gru" and gates == ("z",):
        what += ": z is exchanged with 1 - z, as in h = (1 - z) h_prev + z n"
    return f"{blocks} {what}"


def _shift(subject: _Subject, gate: str, constant: float) -> str:
    bias = f"the {'forget ' if gate == 'f' else ''}bias {subject.names}_{gate}"
    change = f"{abs(constant):g} {'larger' if constant > 0 else 'smaller'} in every unit"
    return f"{bias} of B is A's shifted by {constant:+g}: {change}"


def _scale(subject: _Subject, factor: float) -> str:
    doubled = subject.matrices == ("b",) and factor == 2
    cause = ": as if both biases had been given the sum of the two" if doubled else ""
    return f"{subject} times {factor:g}{cause}"


def _bias(_: _Subject, name: str) -> str:
    other = "bias_hh" if name == "bias_ih" else "bias_ih"
    return f"b of B is A's {name} alone: {other} was left out of the sum"


def _swapped_block(subject: _Subject, place: str, gate: str) -> str:
    mine, other = (listed([f"{m}_{letter}" for m in subject.matrices]) for letter in (place, gate))
    return f"{mine} of B {subject.verb} A's {other}"


def _sharing(_: _Subject, splits: tuple[tuple[str, str], ...]) -> str:
    """Name the gates of each split of the biases, and those whose outputs do not change."""
    by_split: dict[str, list[str]] = {}
    for gate, split in splits:
        by_split.setdefault(split, []).append(gate)
    phrases = {split: phrase for split, (phrase, _) in BIAS_SPLITS.items()}
    phrases[OTHER_SPLIT] = "shared out otherwise, their sum kept"
    parts = [
        f"of {_gates(gates)} are {phrases[split]}" for split, gates in by_split.items() if split
    ]
    neutral = [g for g, split in splits if split and split in SPLITS_THAT_KEEP_SUM and g != "n"]
    text = "the two biases b and b_h " + "; ".join(parts)
    if neutral:
        text += f"; of {_gates(neutral)} that changes no output"
    if dict(splits).get("n"):
        text += "; of gate n it does where reset_after is true"
    return text


def _source(_: _Subject, place: Place, source: Place) -> str:
    name = f"layer {place.layer} {place.direction}"
    if place.layer == source.layer:
        return f"the directions are exchanged: {name} of B is A's {source.direction} one"
    other = f"layer {source.layer} {source.direction}"
    return f"{name} of B is {other} of A: the layers are in another order"


def _rounding(subject: _Subject, what: str, side: str) -> str:
    if side == "A":
        names = f"{subject.names} of A {subject.verb} B's"
        return f"A is B {what}" if subject.whole else f"{names} {what}"
    if side == "B":
        return f"{subject} {what}"
    return f"{'B and A' if subject.whole else subject.names + ' of B and A'} are {what}"


SENTENCES: Mapping[str, Callable[..., str]] = {
    "order": _order,
    "layout": _layout,
    "change": _change,
    "shift": _shift,
    "scale": _scale,
    "bias": _bias,
    "block": _swapped_block,
    "sharing": _sharing,
    "source": _source,
    "mistake": lambda _, error: ERROR_PHRASES[error],
    "rounding": _rounding,
}
"""Functions from the subject and the details of a fact's key to a sentence, by kind."""


def _hint(kind: str, details: Sequence[Any]) -> str | None:
    """Return advice on a finding, if there is any."""
    if kind == "order":
        name = order_name(*details)
        if (framework := name.framework or name.undone) is not None:
            return (
                f"one of the two was written with gates in {framework} order and read as if they "
                "were in its own; lstm-cli convert, from the original file, puts them in order"
            )
        return "one of the two must have its gates put in order: i, f, g, o or r, z, n natively"
    if kind == "mistake" and "TMVA" in details[0]:
        return "read the XML file anew with --tmva-order slots, or labels where that was given"
    if kind == "shift" and details[0] == "f" and abs(details[1]) == 1:
        return (
            "TF1's BasicLSTMCell adds 1 to b_f at run time; elsewhere what is stored is all there "
            "is, and `forget_bias` of a config is for fresh weights only"
        )
    if kind in ("layout", "change") and "transposed" in str(details):
        return "Keras and TF1 store a kernel as (inputs, gates), natively it is (gates, inputs)"
    return None


def _place_names(places: Sequence[Place], all_places: Sequence[Place]) -> tuple[str, ...]:
    """Name layers, with the directions where only some of a layer's are meant."""
    names = []
    for layer in dict.fromkeys(place.layer for place in places):
        group = [place for place in places if place.layer == layer]
        if len(group) == sum(place.layer == layer for place in all_places):
            names.append(f"layer {layer}")
        else:
            names += [f"layer {layer} {place.direction}" for place in group]
    return tuple(names)


def listed(names: Sequence[str]) -> str:
    """Join names: ``W, U and b``."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _gates(gates: Sequence[str]) -> str:
    return f"gate{'s' if len(gates) > 1 else ''} {listed(gates)}"
