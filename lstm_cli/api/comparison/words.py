"""The words of a diagnosis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lstm_cli.api.comparison import mistakes, orders
from lstm_cli.api.comparison.biases import KEEPS_SUM, SHARES
from lstm_cli.api.comparison.changes import WHOLE_CHANGES
from lstm_cli.api.comparison.directions import Place

MISTAKES = {
    mistakes.LABELS_FOR_SLOTS: "W and U of B are A's as TMVA's elements give them when they are "
    "read by their labels",
    mistakes.SLOTS_FOR_LABELS: "W and U of B are A's as TMVA's elements give them when those of "
    "an older file are read by their slots",
    mistakes.OTHER_UNITS: "B is A with its units in another order, the same in every gate: the "
    "same layer, but for the order of its outputs",
    mistakes.OTHER_UNITS_AND_COLUMNS: "B is A with its units in another order, the same in every "
    "gate, and its inputs in another: the same layer, but for the order of what it reads and gives",
}
PLURAL = {"is": "are", "has": "have", "holds": "hold"}
TMVA_HINT = "read the XML file anew with --tmva-order slots, or labels where that was given"


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
        did, _, what = WHOLE_CHANGES[rest[0]].partition(" ")
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
    name = orders.named(kind, order)
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
            said = SHARES[share][0] if share in SHARES else "shared out otherwise, their sum kept"
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
        name = orders.named(*rest)
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
        named = [f"layer {layer}"] if all_of_it else [f"layer {layer} {p.direction}" for p in mine]
        said += named
    return tuple(said)


def listed(names: Sequence[str]) -> str:
    """``W, U and b``."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _gates(gates: tuple[str, ...]) -> str:
    return f"gate{'s' if len(gates) > 1 else ''} {listed(gates)}"
