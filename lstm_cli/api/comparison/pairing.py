"""P"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest

from lstm_cli.api.comparison import known_errors
from lstm_cli.api.comparison.inputs import ComparedDirection, ComparedLayer
from lstm_cli.api.comparison.known_errors import BiasSplit, bias_split
from lstm_cli.api.comparison.matching import TensorMatch, equality, tensor_matches
from lstm_cli.api.comparison.metrics import norm
from lstm_cli.engines.types import Array
from lstm_cli.formats.gates import NATIVE

INPUTS = ("weight_ih", "weight")
"""Tensors whose columns are the units of the layer before."""

MOST = 8
"""Other directions that are looked at for one that does not follow from its own."""

NEAR = 1e-3
"""By how much norms may differ, relatively, if one follows from the other."""

MATRICES = {"weight_ih", "weight_hh", "weight"}


Order = tuple[str, ...]


@dataclass(frozen=True)
class Place:
    """A direction of a layer, by the layer's index."""

    layer: int
    direction: str


@dataclass(frozen=True)
class DirectionMatch:
    """How a direction of B follows from one of A.

    Attributes
    ----------
    place, source
        The direction of B's layer, counted as A's at the same position is, and that of A.
    kind
        Of the layer.
    readings
        By tensor; of one that is equal only where it goes along with the others' gate order.
    sharing
        Of a gru's two biases, where they were summed or shared out.
    mistake
        What happened to the whole direction: see `mistakes`; ``units`` is another order of units.
    unexplained
        Tensors and gates that do not follow.
    """

    place: Place
    source: Place
    kind: str
    tensor_matches: Mapping[str, TensorMatch] = field(default_factory=dict)
    bias_split: BiasSplit | None = None
    mistake: str = ""
    unexplained: tuple[tuple[str, str], ...] = ()

    @property
    def moved(self) -> bool:
        """Whether it follows from another direction or layer than the one in its place."""
        return self.place != self.source


def match_direction(
    layer: ComparedLayer,
    place: Place,
    source: Place,
    a: ComparedDirection,
    b: ComparedDirection,
    tolerance: float,
) -> DirectionMatch:
    """How B's direction follows from A's, as far as it does.

    Parameters
    ----------
    layer
        Of A, whose gates are meant.
    """
    found = {name: _readings(layer, name, a, b, tolerance) for name in b.tensors}
    chosen = _chosen(layer, found)
    if all(name in chosen and chosen[name].complete for name in found):
        return _explanation(layer, place, source, chosen, b)
    gates = len(NATIVE.get(layer.kind, ()))
    mistake = (
        known_errors.tmva_slot_error(a.tensors, b.tensors, gates, tolerance) if gates else None
    )
    if mistake is not None:
        rest = {name: r for name, r in chosen.items() if name not in known_errors.MATRICES}
        made = _explanation(layer, place, source, rest, b, known_errors.MATRICES)
        return replace(made, mistake=mistake)
    units = known_errors.permuted_units(a.tensors, b.tensors, gates, tolerance) if gates else None
    if units is not None:
        return DirectionMatch(place, source, layer.kind, mistake=units)
    shared = _sharing(layer, a, b, chosen, tolerance)
    if shared is not None:
        chosen = {name: r for name, r in chosen.items() if name not in known_errors.PAIR}
        made = _explanation(layer, place, source, chosen, b, known_errors.PAIR)
        return replace(made, sharing=shared)
    return _explanation(layer, place, source, chosen, b)


def _readings(
    layer: ComparedLayer, name: str, a: ComparedDirection, b: ComparedDirection, tolerance: float
) -> list[TensorMatch]:
    if name not in a.tensors or a.tensors[name].ndim == 0:
        return []
    one, other, letters = a.tensors[name], b.tensors[name], layer.gates(name)
    found = tensor_matches(one, other, letters, tolerance)
    if name == "bias" and not (found and found[0].complete):
        for part, value in a.biases.items():  # one of the two may have been left out
            alone = [r for r in tensor_matches(value, other, letters, tolerance) if r.complete]
            if alone:
                return [replace(reading, source=part) for reading in alone]
    open_ = name in INPUTS and not (found and found[0].complete)
    if open_ and known_errors.permuted_columns(one, other, tolerance):
        whole = letters or ("",)
        return [TensorMatch(whole, whole, ("",) * len(whole), "columns", equality(tolerance))]
    return found


def _chosen(layer: ComparedLayer, found: Mapping[str, list[TensorMatch]]) -> dict[str, TensorMatch]:
    """One reading a tensor; the gates in one order for all that allow it."""
    best = {name: options[0] for name, options in found.items() if options}
    by_gate = {name: options for name, options in found.items() if options and layer.gates(name)}
    wrong = {
        name: options
        for name, options in by_gate.items()
        if options[0].complete and not options[0].plain
    }
    order = _common(wrong)
    if order is None:
        return best
    for name, options in by_gate.items():
        fitting = [r for r in options if r.complete and r.order == _of(order, r.letters)]
        best[name] = fitting[0] if fitting else best[name]
    return best


def _common(found: Mapping[str, list[TensorMatch]]) -> Order | None:
    """The simplest order that explains most of these tensors, all of them if one does."""
    votes: Counter[Order] = Counter()
    orders = {r.order: r for options in found.values() for r in options if r.complete}
    full = max(map(len, orders), default=0)
    for order in orders:
        if len(order) == full:
            votes[order] = sum(
                any(r.order == _of(order, r.letters) for r in options) for options in found.values()
            )
    if not votes:
        return None
    most = max(votes.values())
    return min((o for o in votes if votes[o] == most), key=lambda o: orders[o].cost[2:])


def _of(order: Order, letters: Order) -> Order:
    """The order of some of the gates: a peephole has three of them."""
    return tuple(letter for letter in order if letter in letters)


def _sharing(
    layer: ComparedLayer,
    a: ComparedDirection,
    b: ComparedDirection,
    chosen: Mapping[str, TensorMatch],
    tolerance: float,
) -> BiasSplit | None:
    sides: tuple[Mapping[str, Array], ...] = (a.tensors, b.tensors)
    if layer.kind != "gru" or any(name not in side for side in sides for name in known_errors.PAIR):
        return None
    if len({side[name].shape for side in sides for name in known_errors.PAIR}) > 1:
        return None
    if all(name in chosen and chosen[name].complete for name in known_errors.PAIR):
        return None
    letters = NATIVE["gru"]
    if len(a.tensors["bias_ih"]) % len(letters):
        return None
    orders = [r.order for r in chosen.values() if r.complete and len(r.order) == len(letters)]
    return bias_split(a.tensors, b.tensors, letters, orders, tolerance)


def _explanation(
    layer: ComparedLayer,
    place: Place,
    source: Place,
    chosen: Mapping[str, TensorMatch],
    b: ComparedDirection,
    settled: tuple[str, ...] = (),
) -> DirectionMatch:
    """What the readings say; what they leave open is unexplained, but for the tensors settled."""
    unexplained = []
    for name in b.tensors:
        letters = layer.gates(name) or ("",)
        if name in settled:
            continue
        reading = chosen.get(name)
        changes = reading.changes if reading is not None else (None,) * len(letters)
        unexplained += [
            (name, letter)
            for letter, change in zip(letters, changes, strict=True)
            if change is None
        ]
    return DirectionMatch(place, source, layer.kind, dict(chosen), unexplained=tuple(unexplained))


LayerPair = tuple[ComparedLayer | None, ComparedLayer | None]


Candidate = tuple[ComparedLayer, ComparedDirection]


def paired_layers(a: Sequence[ComparedLayer], b: Sequence[ComparedLayer]) -> tuple[LayerPair, ...]:
    """Layers that have weights, by position; None where one side has no more.

    A layer of a kind that cannot be told is taken for one of the other side's kind.
    """
    return tuple((_as(x, y), _as(y, x)) for x, y in zip_longest(a, b))


def _as(layer: ComparedLayer | None, other: ComparedLayer | None) -> ComparedLayer | None:
    if layer is None or other is None or layer.kind != "unknown":
        return layer
    return replace(layer, kind=other.kind)


def direction_matches(pairs: Sequence[LayerPair], tolerance: float) -> Iterator[DirectionMatch]:
    """How every direction of B that has a counterpart follows from A."""
    for a, b in pairs:
        if a is None or b is None or a.kind != b.kind:
            continue
        for other in b.directions:
            own = next((d for d in a.directions if d.name == other.name), None)
            place = Place(a.index, other.name)
            if own is not None:
                found = match_direction(a, place, place, own, other, tolerance)
                yield _better(found, pairs, a, other, tolerance)


def _better(
    own: DirectionMatch,
    pairs: Sequence[LayerPair],
    layer: ComparedLayer,
    b: ComparedDirection,
    tolerance: float,
) -> DirectionMatch:
    """The explanation from another place of A, where that explains what its own does not."""
    if not MATRICES & {name for name, _ in own.unexplained}:
        return own
    best = own
    for other, a in _candidates(pairs, layer, own.place, b):
        found = match_direction(other, own.place, Place(other.index, a.name), a, b, tolerance)
        if MATRICES & {name for name, _ in found.unexplained}:
            continue
        if len(found.unexplained) < len(best.unexplained):
            best = found
    return best


def _candidates(
    pairs: Sequence[LayerPair], layer: ComparedLayer, place: Place, b: ComparedDirection
) -> list[Candidate]:
    """Directions of A with matrices of the same shapes and sizes, the nearest in norm first."""
    there = [
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
    near: list[tuple[float, int, Candidate]] = []
    for candidate in there:
        if not _alike(candidate[1], b):
            continue
        apart = abs(norm(candidate[1].tensors[name]) - size)
        if apart <= NEAR * size:
            near.append((apart, len(near), candidate))
    return [candidate for *_, candidate in sorted(near, key=lambda entry: entry[:2])[:MOST]]


def _alike(a: ComparedDirection, b: ComparedDirection) -> bool:
    return {name: x.shape for name, x in a.tensors.items()} == {
        name: x.shape for name, x in b.tensors.items()
    }
