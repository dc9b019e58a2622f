"""How one direction of a layer of B follows from one of A, tensor by tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lstm_cli.api.comparison import biases, mistakes
from lstm_cli.api.comparison.biases import Sharing, sharing
from lstm_cli.api.comparison.matching import Reading, readings
from lstm_cli.api.comparison.rules import equality
from lstm_cli.api.comparison.sides import Direction, Layer
from lstm_cli.engines.types import Array
from lstm_cli.formats.gates import NATIVE_GATES

Order = tuple[str, ...]
INPUTS = ("weight_ih", "weight")
"""Tensors whose columns are the units of the layer before."""


@dataclass(frozen=True)
class Place:
    """A direction of a layer, by the layer's index."""

    layer: int
    direction: str


@dataclass(frozen=True)
class Explanation:
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
    readings: Mapping[str, Reading] = field(default_factory=dict)
    sharing: Sharing | None = None
    mistake: str = ""
    unexplained: tuple[tuple[str, str], ...] = ()

    @property
    def moved(self) -> bool:
        """Whether it follows from another direction or layer than the one in its place."""
        return self.place != self.source


def explain(
    layer: Layer, place: Place, source: Place, a: Direction, b: Direction, tolerance: float
) -> Explanation:
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
    gates = len(NATIVE_GATES.get(layer.kind, ()))
    mistake = mistakes.tmva_mistake(a.tensors, b.tensors, gates, tolerance) if gates else None
    if mistake is not None:
        rest = {name: r for name, r in chosen.items() if name not in mistakes.MATRICES}
        made = _explanation(layer, place, source, rest, b, mistakes.MATRICES)
        return replace(made, mistake=mistake)
    units = mistakes.other_units(a.tensors, b.tensors, gates, tolerance) if gates else None
    if units is not None:
        return Explanation(place, source, layer.kind, mistake=units)
    shared = _sharing(layer, a, b, chosen, tolerance)
    if shared is not None:
        chosen = {name: r for name, r in chosen.items() if name not in biases.PAIR}
        made = _explanation(layer, place, source, chosen, b, biases.PAIR)
        return replace(made, sharing=shared)
    return _explanation(layer, place, source, chosen, b)


def _readings(
    layer: Layer, name: str, a: Direction, b: Direction, tolerance: float
) -> list[Reading]:
    if name not in a.tensors or a.tensors[name].ndim == 0:
        return []
    one, other, letters = a.tensors[name], b.tensors[name], layer.gates(name)
    found = readings(one, other, letters, tolerance)
    if name == "bias" and not (found and found[0].complete):
        for part, value in a.biases.items():  # one of the two may have been left out
            alone = [r for r in readings(value, other, letters, tolerance) if r.complete]
            if alone:
                return [replace(reading, source=part) for reading in alone]
    open_ = name in INPUTS and not (found and found[0].complete)
    if open_ and mistakes.other_columns(one, other, tolerance):
        whole = letters or ("",)
        return [Reading(whole, whole, ("",) * len(whole), "columns", equality(tolerance))]
    return found


def _chosen(layer: Layer, found: Mapping[str, list[Reading]]) -> dict[str, Reading]:
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


def _common(found: Mapping[str, list[Reading]]) -> Order | None:
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
    layer: Layer, a: Direction, b: Direction, chosen: Mapping[str, Reading], tolerance: float
) -> Sharing | None:
    sides: tuple[Mapping[str, Array], ...] = (a.tensors, b.tensors)
    if layer.kind != "gru" or any(name not in side for side in sides for name in biases.PAIR):
        return None
    if len({side[name].shape for side in sides for name in biases.PAIR}) > 1:
        return None
    if all(name in chosen and chosen[name].complete for name in biases.PAIR):
        return None
    letters = NATIVE_GATES["gru"]
    if len(a.tensors["bias_ih"]) % len(letters):
        return None
    orders = [r.order for r in chosen.values() if r.complete and len(r.order) == len(letters)]
    return sharing(a.tensors, b.tensors, letters, orders, tolerance)


def _explanation(
    layer: Layer,
    place: Place,
    source: Place,
    chosen: Mapping[str, Reading],
    b: Direction,
    settled: tuple[str, ...] = (),
) -> Explanation:
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
    return Explanation(place, source, layer.kind, dict(chosen), unexplained=tuple(unexplained))
