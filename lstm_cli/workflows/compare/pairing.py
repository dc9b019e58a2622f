"""Pairs of layers and directions, and matches: how each direction of B follows from A.

`direction_matches` matches every direction of B with the direction in the same place of A. Another
direction of A is used if it explains B's direction better.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.formats.gates import NATIVE_GATES
from lstm_cli.workflows.compare.inputs import ComparedDirection, ComparedLayer, norm
from lstm_cli.workflows.compare.matching import (
    ADDITION_SLACK,
    AgreementRule,
    TensorMatch,
    agreement_rules,
    agrees,
    equality,
    tensor_matches,
)

CANDIDATES = 8
"""Most other directions of A that are tried for a direction of B."""
NORM_TOLERANCE = 1e-3
"""Largest relative difference of norms between two directions that may match."""
MATRICES = ("weight_ih", "weight_hh")
LABELS_FOR_SLOTS = "TMVA's labels"
SLOTS_FOR_LABELS = "TMVA's slots"
PERMUTED_UNITS = "units"
PERMUTED_UNITS_AND_COLUMNS = "units and columns"

BIAS_PAIR = ("bias_ih", "bias_hh")

BIAS_SPLITS: Mapping[str, tuple[str, Callable[[Array, Array], tuple[Array, Array]]]] = {
    "": ("as in A", lambda b, b_h: (b, b_h)),
    "summed into b": ("summed into b, and b_h is 0", lambda b, b_h: (b + b_h, 0 * b)),
    "summed into b_h": ("summed into b_h, and b is 0", lambda b, b_h: (0 * b, b + b_h)),
    "halved": ("summed, and b and b_h hold half each", lambda b, b_h: ((b + b_h) / 2,) * 2),
    "doubled": ("summed, and b and b_h both hold the sum", lambda b, b_h: (b + b_h,) * 2),
    "exchanged": ("exchanged: b is A's b_h, and b_h is A's b", lambda b, b_h: (b_h, b)),
}
"""Phrase, and the function from A's two biases b and b_h to B's, by name of the split."""
OTHER_SPLIT = "shared out"
"""Name of any other split that keeps the sum."""
SPLITS_THAT_KEEP_SUM = {"", "summed into b", "summed into b_h", "halved", "exchanged", OTHER_SPLIT}
ALL_MATRICES = {*MATRICES, "weight"}
INPUTS = ("weight_ih", "weight")
"""Tensors whose columns are the units of the layer before."""

Order = tuple[str, ...]
LayerPair = tuple[ComparedLayer | None, ComparedLayer | None]


@dataclass(frozen=True)
class Place:
    """A direction of a layer, by the layer's index."""

    layer: int
    direction: str


@dataclass(frozen=True)
class BiasSplit:
    """Split of A's two biases over B's two.

    Attributes
    ----------
    order
        The gate of A in each place of B.
    splits
        A key of `BIAS_SPLITS`, or `OTHER_SPLIT`, by gate of A.
    rule
        Rule under which the numbers agree.
    """

    order: tuple[str, ...]
    splits: Mapping[str, str]
    rule: AgreementRule


@dataclass(frozen=True)
class DirectionMatch:
    """Match of a direction of B with one of A.

    Attributes
    ----------
    place, source
        Place of the direction of B, with the index of A's layer at the same position, and place
        of the direction of A.
    kind
        Kind of the layer.
    tensors
        Matches by tensor. An equal tensor has one only if its gate order is that of the others.
    biases
        Split of a gru's two biases, if they were summed or shared.
    error
        Error of the whole direction: one of the names such as `PERMUTED_UNITS`.
    unexplained
        Pairs of tensor and gate that do not follow.
    """

    place: Place
    source: Place
    kind: str
    tensors: Mapping[str, TensorMatch] = field(default_factory=dict)
    biases: BiasSplit | None = None
    error: str = ""
    unexplained: tuple[tuple[str, str], ...] = ()

    @property
    def moved(self) -> bool:
        """True if the direction follows from another place of A."""
        return self.place != self.source


def paired_layers(a: Sequence[ComparedLayer], b: Sequence[ComparedLayer]) -> tuple[LayerPair, ...]:
    """Pair the layers with weights by position; None where one file has fewer layers.

    A layer of unknown kind gets the kind of its counterpart.
    """
    return tuple((_with_kind(x, y), _with_kind(y, x)) for x, y in itertools.zip_longest(a, b))


def _with_kind(layer: ComparedLayer | None, other: ComparedLayer | None) -> ComparedLayer | None:
    if layer is None or other is None or layer.kind != "unknown":
        return layer
    return replace(layer, kind=other.kind)


def common_pairs(pairs: Sequence[LayerPair]) -> Iterator[tuple[ComparedLayer, ComparedLayer]]:
    """Yield the pairs of two layers of one kind."""
    for a, b in pairs:
        if a is not None and b is not None and a.kind == b.kind:
            yield a, b


def direction_matches(pairs: Sequence[LayerPair], tolerance: float) -> Iterator[DirectionMatch]:
    """Yield the match of every direction of B that has a counterpart in A."""
    for a, b in common_pairs(pairs):
        for other in b.directions:
            counterpart = a.direction(other.name)
            place = Place(a.index, other.name)
            if counterpart is not None:
                match = match_direction(a, place, place, counterpart, other, tolerance)
                yield _best_match(match, pairs, a, other, tolerance)


def _best_match(
    match: DirectionMatch,
    pairs: Sequence[LayerPair],
    layer: ComparedLayer,
    b: ComparedDirection,
    tolerance: float,
) -> DirectionMatch:
    """Return the match with another place of A if it explains more than the one in place."""
    if not ALL_MATRICES & {name for name, _ in match.unexplained}:
        return match
    best = match
    for other, a in _candidates(pairs, layer, match.place, b):
        candidate = match_direction(other, match.place, Place(other.index, a.name), a, b, tolerance)
        if ALL_MATRICES & {name for name, _ in candidate.unexplained}:
            continue
        if len(candidate.unexplained) < len(best.unexplained):
            best = candidate
    return best


def _candidates(
    pairs: Sequence[LayerPair], layer: ComparedLayer, place: Place, b: ComparedDirection
) -> list[tuple[ComparedLayer, ComparedDirection]]:
    """Return directions of A with matrices of equal shapes and sizes, the nearest norm first."""
    others = [
        (other, direction)
        for other, _ in pairs
        if other is not None and other.kind == layer.kind
        for direction in other.directions
        if (other.index, direction.name) != (place.layer, place.direction)
    ]
    name = "weight" if "weight" in b.tensors else "weight_hh"
    if name not in b.tensors:
        return []
    size = norm(b.tensors[name])
    near: list[tuple[float, int, tuple[ComparedLayer, ComparedDirection]]] = []
    for candidate in others:
        if _shapes(candidate[1]) != _shapes(b):
            continue
        difference = abs(norm(candidate[1].tensors[name]) - size)
        if difference <= NORM_TOLERANCE * size:
            near.append((difference, len(near), candidate))
    nearest = sorted(near, key=lambda entry: entry[:2])[:CANDIDATES]
    return [candidate for *_, candidate in nearest]


def _shapes(direction: ComparedDirection) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in direction.tensors.items()}


def match_direction(
    layer: ComparedLayer,
    place: Place,
    source: Place,
    a: ComparedDirection,
    b: ComparedDirection,
    tolerance: float,
) -> DirectionMatch:
    """Match a direction of B with one of A, as far as it follows.

    Parameters
    ----------
    layer
        Layer of A, whose gates the match names.
    """
    options = {name: _tensor_options(layer, name, a, b, tolerance) for name in b.tensors}
    chosen = _choose(layer, options)
    if all(name in chosen and chosen[name].complete for name in options):
        return _direction_match(layer, place, source, chosen, b)
    gates = len(NATIVE_GATES.get(layer.kind, ()))
    error = tmva_slot_error(a.tensors, b.tensors, gates, tolerance) if gates else None
    if error is not None:
        others = {name: match for name, match in chosen.items() if name not in MATRICES}
        match = _direction_match(layer, place, source, others, b, MATRICES)
        return replace(match, error=error)
    error = permuted_units(a.tensors, b.tensors, gates, tolerance) if gates else None
    if error is not None:
        return DirectionMatch(place, source, layer.kind, error=error)
    split = _bias_split(layer, a, b, chosen, tolerance)
    if split is not None:
        chosen = {name: match for name, match in chosen.items() if name not in BIAS_PAIR}
        match = _direction_match(layer, place, source, chosen, b, BIAS_PAIR)
        return replace(match, biases=split)
    return _direction_match(layer, place, source, chosen, b)


def _tensor_options(
    layer: ComparedLayer,
    name: str,
    a: ComparedDirection,
    b: ComparedDirection,
    tolerance: float,
) -> list[TensorMatch]:
    """Return the matches of one tensor, the simplest first."""
    if name not in a.tensors or a.tensors[name].ndim == 0:
        return []
    one, other, letters = a.tensors[name], b.tensors[name], layer.gates(name)
    options = tensor_matches(one, other, letters, tolerance)
    if options and options[0].complete:
        return options
    if name == "bias":
        for part, value in a.biases.items():  # one of the two may have been left out
            matches = tensor_matches(value, other, letters, tolerance)
            complete = [replace(match, source=part) for match in matches if match.complete]
            if complete:
                return complete
    if name in INPUTS and permuted_columns(one, other, tolerance):
        gates = letters or ("",)
        rule = equality(tolerance)
        return [TensorMatch(gates, gates, ("",) * len(gates), "columns", rule)]
    return options


def _choose(
    layer: ComparedLayer, options: Mapping[str, list[TensorMatch]]
) -> dict[str, TensorMatch]:
    """Choose one match for each tensor, with one order of gates for all that allow it."""
    best = {name: matches[0] for name, matches in options.items() if matches}
    by_gate = {name: matches for name, matches in options.items() if matches and layer.gates(name)}
    changed = {
        name: matches
        for name, matches in by_gate.items()
        if matches[0].complete and not matches[0].plain
    }
    order = _common_order(changed)
    if order is None:
        return best
    for name, matches in by_gate.items():
        fitting = [m for m in matches if m.complete and m.order == _suborder(order, m.letters)]
        best[name] = fitting[0] if fitting else best[name]
    return best


def _common_order(options: Mapping[str, list[TensorMatch]]) -> Order | None:
    """Return the simplest order that explains most of these tensors, all of them if one does."""
    votes: Counter[Order] = Counter()
    orders = {m.order: m for matches in options.values() for m in matches if m.complete}
    longest = max(map(len, orders), default=0)
    for order in orders:
        if len(order) == longest:
            votes[order] = sum(
                any(m.order == _suborder(order, m.letters) for m in matches)
                for matches in options.values()
            )
    if not votes:
        return None
    most = max(votes.values())
    return min((o for o in votes if votes[o] == most), key=lambda o: orders[o].cost[2:])


def _suborder(order: Order, letters: Order) -> Order:
    return tuple(letter for letter in order if letter in letters)  # a peephole has 3 of 4 gates


def _bias_split(
    layer: ComparedLayer,
    a: ComparedDirection,
    b: ComparedDirection,
    chosen: Mapping[str, TensorMatch],
    tolerance: float,
) -> BiasSplit | None:
    sides: tuple[Mapping[str, Array], ...] = (a.tensors, b.tensors)
    if layer.kind != "gru" or any(name not in tensors for tensors in sides for name in BIAS_PAIR):
        return None
    if len({tensors[name].shape for tensors in sides for name in BIAS_PAIR}) > 1:
        return None
    if all(name in chosen and chosen[name].complete for name in BIAS_PAIR):
        return None
    letters = NATIVE_GATES["gru"]
    if len(a.tensors["bias_ih"]) % len(letters):
        return None
    orders = [m.order for m in chosen.values() if m.complete and len(m.order) == len(letters)]
    return bias_split(a.tensors, b.tensors, letters, orders, tolerance)


def _direction_match(
    layer: ComparedLayer,
    place: Place,
    source: Place,
    chosen: Mapping[str, TensorMatch],
    b: ComparedDirection,
    settled: tuple[str, ...] = (),
) -> DirectionMatch:
    """Combine tensor matches; blocks without a match are unexplained, but for `settled` tensors."""
    unexplained = []
    for name in b.tensors:
        letters = layer.gates(name) or ("",)
        if name in settled:
            continue
        match = chosen.get(name)
        changes = match.changes if match is not None else (None,) * len(letters)
        unexplained += [
            (name, letter)
            for letter, change in zip(letters, changes, strict=True)
            if change is None
        ]
    return DirectionMatch(place, source, layer.kind, dict(chosen), unexplained=tuple(unexplained))


def tmva_slot_error(
    a: Mapping[str, Array], b: Mapping[str, Array], gates: int, tolerance: float
) -> str | None:
    """Return the error if B's W and U are A's with TMVA's slots and labels confused."""
    if gates < 3 or any(name not in tensors for name in MATRICES for tensors in (a, b)):
        return None
    if len({tensors[name].shape for name in MATRICES for tensors in (a, b)}) > 1:
        return None
    blocks_a, blocks_b = (
        [block for name in MATRICES for block in np.split(tensors[name], gates)]
        for tensors in (a, b)
    )
    # The file stores all W, then all U. Its labels alternate: W and U of one gate, then the next.
    by_label = [blocks_a[2 * (k % gates) + k // gates] for k in range(2 * gates)]
    by_slot = [blocks_a[(k % 2) * gates + k // 2] for k in range(2 * gates)]
    rule = equality(tolerance)
    for name, blocks in ((LABELS_FOR_SLOTS, by_label), (SLOTS_FOR_LABELS, by_slot)):
        if all(agrees(x, y, rule) for x, y in zip(blocks, blocks_b, strict=True)):
            return name
    return None


def permuted_units(
    a: Mapping[str, Array], b: Mapping[str, Array], gates: int, tolerance: float
) -> str | None:
    """Return the error if B is A with its units permuted, and perhaps W's columns too."""
    names = [name for name in a if name in b]
    if not {*MATRICES} <= set(names) or "weight_hr" in a or set(a) != set(b):
        return None
    bias = "bias" if "bias" in a else "bias_ih"
    H = a["weight_hh"].shape[-1]
    if bias not in a or len(a["weight_hh"]) != gates * H or gates * H == 0:
        return None
    if any(a[name].shape != b[name].shape or len(a[name]) % H for name in names):
        return None
    order = np.empty(H, np.int64)
    order[_unit_order(b[bias], H)] = _unit_order(a[bias], H)
    if (order == np.arange(H)).all():
        return None
    rule, W = equality(tolerance), "weight_ih"
    others = [name for name in names if name != W]
    if not all(agrees(_permute(name, a[name], order), b[name], rule) for name in others):
        return None
    permuted = _permute(W, a[W], order)
    if agrees(permuted, b[W], rule):
        return PERMUTED_UNITS
    return PERMUTED_UNITS_AND_COLUMNS if permuted_columns(permuted, b[W], tolerance) else None


def permuted_columns(a: Array, b: Array, tolerance: float) -> bool:
    """Return True if B is A with its columns permuted."""
    if a.shape != b.shape or a.ndim != 2 or a.size == 0:
        return False
    one, other = (np.lexsort(matrix[:8]) for matrix in (a, b))
    return agrees(a[:, one], b[:, other], equality(tolerance))


def _unit_order(bias: Array, H: int) -> Array:
    return np.lexsort(bias.reshape(-1, H))  # units in the order of their biases


def _permute(name: str, tensor: Array, order: Array) -> Array:
    """Permute the units of every gate; for U, which reads h, the columns too."""
    blocks = tensor.reshape(-1, len(order), *tensor.shape[1:])[:, order]
    blocks = blocks[:, :, order] if name == "weight_hh" else blocks
    return blocks.reshape(tensor.shape)


def bias_split(
    a: Mapping[str, Array],
    b: Mapping[str, Array],
    letters: tuple[str, ...],
    orders: Sequence[tuple[str, ...]],
    tolerance: float,
) -> BiasSplit | None:
    """Return the split under which B's two biases follow from A's; None if they do not.

    Parameters
    ----------
    orders
        Orders of the gates to try first.
    """
    (a_b, a_h), (b_b, b_h) = (
        [np.split(tensors[name].astype(np.float64), len(letters)) for name in BIAS_PAIR]
        for tensors in (a, b)
    )
    candidates = list(dict.fromkeys([*orders, letters, *itertools.permutations(letters)]))
    for rule, order in itertools.product(agreement_rules(tolerance), candidates):
        splits = {}
        for p, gate in enumerate(order):
            q = letters.index(gate)
            split = _gate_split((a_b[q], a_h[q]), (b_b[p], b_h[p]), rule)
            if split is None:
                break
            splits[gate] = split
        else:
            return BiasSplit(order, {gate: splits[gate] for gate in letters}, rule)
    return None


@np.errstate(all="ignore")
def _gate_split(a: tuple[Array, Array], b: tuple[Array, Array], rule: AgreementRule) -> str | None:
    slack = ADDITION_SLACK * np.max(np.abs([*a, *b]), axis=0)
    for name, (_, split) in BIAS_SPLITS.items():
        if _are_near(split(*a), b, slack if name else 0 * slack, rule):
            return name
    if rule.name == "" and _are_near([a[0] + a[1]], [b[0] + b[1]], slack, rule):
        return OTHER_SPLIT
    return None


def _are_near(a: Iterable[Array], b: Iterable[Array], slack: Array, rule: AgreementRule) -> bool:
    return all(
        bool(((np.abs(x - y) <= slack) | rule.holds(x, y)).all()) for x, y in zip(a, b, strict=True)
    )
