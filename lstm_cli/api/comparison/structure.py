"""What differs between two networks besides their numbers: layers, sizes, options."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lstm_cli.api.comparison.sides import Layer, Side
from lstm_cli.api.comparison.sources import Pair
from lstm_cli.engines.types import DenseSpec, FlattenSpec, LayerSpec, RecurrentSpec

TRAINING = ("dropout", "recurrent_dropout", "forget_bias")
"""Options that change no output."""
NAMES = {"use_forget_gate": "forget_gate"}
RELATED = {"recurrent_activation": "activation", "cell_activation": "activation"}
"""Options that a file says, or does not, together with another."""
CELL = (
    "recurrent_activation",
    "activation",
    "cell_activation",
    "clip",
    "bias",
    "peepholes",
    "coupled_input_forget",
    "use_forget_gate",
    "reset_after",
)


@dataclass(frozen=True)
class OptionDifference:
    """An option of a layer that the two sides do not share.

    Attributes
    ----------
    what
        ``layer 0: recurrent_activation sigmoid in A, hard_sigmoid in B``.
    counts
        It changes outputs, and both sides say it.
    """

    layer: int
    option: str
    a: str
    b: str
    what: str
    counts: bool


def layer_differences(a: Side, b: Side, pairs: Sequence[Pair]) -> Iterator[str]:
    """Layers that one side does not have, or has otherwise, a sentence each."""
    if len(a.layers) != len(b.layers):
        yield f"A has {_count(a.layers)}, B has {len(b.layers) or 'none'}"
    for one, other in pairs:
        if one is None or other is None:
            side, layer = ("A", one) if one is not None else ("B", other)
            if layer is not None:
                yield f"layer {layer.index} of {side}, {layer.title}, has no counterpart"
        elif _sizes(one) != _sizes(other):
            yield f"layer {one.index}: {one.title} in A; {other.title} in B{_index(one, other)}"
    shapes = [_between(side) for side in (a, b)]
    if None not in shapes and shapes[0] != shapes[1]:
        yield f"flatten stands before {_before(shapes[0])} in A, before {_before(shapes[1])} in B"


def _count(layers: Sequence[Layer]) -> str:
    many = len(layers)
    return f"{many or 'no'} layer{'s' if many != 1 else ''} with weights"


def _index(a: Layer, b: Layer) -> str:
    return "" if a.index == b.index else f" (its layer {b.index})"


def _sizes(layer: Layer) -> tuple[object, ...]:
    """Kind, directions, and the shape of every tensor."""
    shapes = [
        (d.name, sorted((name, value.shape) for name, value in d.tensors.items()))
        for d in layer.directions
    ]
    return layer.kind, *shapes


def _between(side: Side) -> tuple[int, ...] | None:
    """How many layers with weights stand before every flatten."""
    if side.config is None:
        return None
    found, before = [], 0
    for spec in side.config.specs:
        if isinstance(spec, FlattenSpec):
            found.append(before)
        before += bool(spec.parameters())
    return tuple(found)


def _before(places: tuple[int, ...] | None) -> str:
    if not places:
        return "no layer"
    return ", ".join(f"layer {place} of those with weights" for place in places)


def option_differences(a: Side, b: Side, pairs: Sequence[Pair]) -> Iterator[OptionDifference]:
    """Options that differ, layer by layer; none where a side has no config."""
    if a.config is None or b.config is None:
        return
    ours = {spec.index: spec for spec in a.config.specs}
    theirs = {spec.index: spec for spec in b.config.specs}
    for one, other in pairs:
        if one is None or other is None or one.index not in ours or other.index not in theirs:
            continue
        yield from _differences(ours[one.index], theirs[other.index], a, b)


def _differences(one: LayerSpec, other: LayerSpec, a: Side, b: Side) -> Iterator[OptionDifference]:
    if one.kind != other.kind:
        return
    mine, their = _options(one), _options(other)
    for key in mine:
        if mine[key] == their[key]:
            continue
        guesses = [
            f"{side.label} does not say which"
            for side, spec in ((a, one), (b, other))
            if _is_assumed(side, spec, key)
        ]
        idle = "; it changes no output" if key in TRAINING else ""
        assumed = f"; {' and '.join(guesses)}" if guesses else ""
        yield OptionDifference(
            one.index,
            key,
            mine[key],
            their[key],
            f"layer {one.index}: {key} {mine[key]} in A, {their[key]} in B{assumed}{idle}",
            not guesses and not idle,
        )


def _is_assumed(side: Side, spec: LayerSpec, option: str) -> bool:
    """Whether a file does not say an option of a layer.

    What it does not say of one recurrent layer, or one dense one, it says of none: its notes
    need not name them all.
    """
    specs = () if side.config is None else side.config.specs
    kinds = {other.index: isinstance(other, RecurrentSpec) for other in specs}
    mine = isinstance(spec, RecurrentSpec)
    keys = {key for index, key in side.assumed if kinds.get(index, mine) == mine}
    return RELATED.get(option, option) in keys or option in keys


def _options(spec: LayerSpec) -> dict[str, str]:
    """Options by the YAML's names, as text."""
    if isinstance(spec, DenseSpec):
        return {"activation": spec.activation_name, "bias": _said(spec.bias)}
    if not isinstance(spec, RecurrentSpec):
        return {}
    found = {}
    for name in CELL:
        values = [getattr(cell, name) for cell in spec.cells if hasattr(cell, name)]
        if values:
            said = list(dict.fromkeys(_said(value) for value in values))
            found[NAMES.get(name, name)] = ", ".join(said)
    for name in ("return_sequences", "stateful", *TRAINING):
        found[name] = _said(getattr(spec, name))
    return found


def _said(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
