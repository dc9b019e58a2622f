"""C"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lstm_cli.api.comparison.diagnosis import Diagnosis, diagnose
from lstm_cli.api.comparison.inputs import ComparedFile, ComparedLayer, without_normalization
from lstm_cli.api.comparison.metrics import ComparedBlock, block_metrics, compared_blocks
from lstm_cli.api.comparison.pairing import LayerPair, paired_layers
from lstm_cli.engines.types import (
    DIRECTIONS,
    Array,
    DenseSpec,
    FlattenSpec,
    LayerSpec,
    RecurrentSpec,
)
from lstm_cli.network.normalization import STORED, Normalization, Rounding

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
class FileSummary:
    """One of the two files, and what had to be assumed because it does not say it."""

    path: Path
    format: str
    title: str
    sha256: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class FileComparison:
    """What `compare` found.

    Attributes
    ----------
    equal
        Every number within the tolerance of its counterpart, and no layer or option that
        changes an output differs.
    tolerance
        Of an element's absolute difference.
    layers
        Differences of layers and sizes, a sentence each.
    options
        Differences of options.
    blocks
        Every gate's matrices side by side.
    titles
        A's layers, by index.
    diagnosis
        Why numbers differ; None where they do not.
    folded
        ``A`` or ``B``: the normalization of its inputs, which the other one does not have, was
        folded into its weights; None: there was nothing to fold.
    lost
        Features whose digits the weights with the fold do not hold.
    """

    equal: bool
    tolerance: float
    a: FileSummary
    b: FileSummary
    layers: tuple[str, ...]
    options: tuple[OptionDifference, ...]
    blocks: tuple[ComparedBlock, ...]
    titles: dict[int, str]
    diagnosis: Diagnosis | None
    folded: str | None = None
    lost: tuple[Rounding, ...] = ()


def compare(a: ComparedFile, b: ComparedFile, tolerance: float = 0.0) -> FileComparison:
    """Compare two files that were read."""
    pairs = paired_layers(a.layers, b.layers)
    blocks = tuple(_blocks(pairs, tolerance))
    a, b, folded, lost = _alike(a, b, all(block.equal for block in blocks))
    if folded is not None:
        pairs = paired_layers(a.layers, b.layers)
        blocks = tuple(_blocks(pairs, tolerance))
    layers = (*layer_differences(a, b, pairs), *_others(a, b, tolerance))
    options = tuple(option_differences(a, b, pairs))
    same = all(block.equal for block in blocks)
    return FileComparison(
        same and not layers and not any(option.counts for option in options),
        tolerance,
        _file(a),
        _file(b),
        layers,
        options,
        blocks,
        _titles(pairs),
        None if same else diagnose(pairs, blocks, tolerance),
        folded,
        lost,
    )


def _alike(
    a: ComparedFile, b: ComparedFile, same: bool
) -> tuple[ComparedFile, ComparedFile, str | None, tuple[Rounding, ...]]:
    """Both sides, and the label of the one whose normalization the other has in its weights.

    Last, the features whose digits these weights lose.
    Where the weights are the `same`, the other has lost it.
    """
    normalized = [side for side in (a, b) if set(STORED) & side.others.keys()]
    if len(normalized) != 1 or same:
        return a, b, None, ()
    other = b if normalized[0] is a else a
    wide = any(
        value.dtype == np.float64
        for layer in other.layers
        for direction in layer.directions
        for value in direction.tensors.values()
    )
    folded = without_normalization(normalized[0], wide)
    if folded is None:
        return a, b, None, ()
    scaling = Normalization.stored(normalized[0].others)
    dtype = "float64" if wide else "float32"
    lost = () if scaling is None else tuple(scaling.roundings(dtype))
    return (folded, b, "A", lost) if other is b else (a, folded, "B", lost)


def _file(side: ComparedFile) -> FileSummary:
    return FileSummary(side.path, side.imported.format, side.title, side.sha256, side.notes)


def _titles(pairs: Sequence[LayerPair]) -> dict[int, str]:
    first = (a if a is not None else b for a, b in pairs)
    return {layer.index: layer.title for layer in first if layer is not None}


def _blocks(pairs: Sequence[LayerPair], tolerance: float) -> Iterator[ComparedBlock]:
    for a, b in pairs:
        if a is None or b is None or a.kind != b.kind:
            continue
        for name in DIRECTIONS:
            one, other = (
                next((d for d in layer.directions if d.name == name), None) for layer in (a, b)
            )
            yield from compared_blocks(a, b, one, other, tolerance)


def _others(a: ComparedFile, b: ComparedFile, tolerance: float) -> Iterator[str]:
    """Tensors of no layer, by name."""
    for name in sorted({*a.others, *b.others}):
        said = name if name.isprintable() else repr(name)
        if name not in a.others or name not in b.others:
            yield f"{said} is in {'A' if name in a.others else 'B'} alone"
        elif a.others[name].shape != b.others[name].shape:
            yield f"{said} is {a.others[name].shape} in A, {b.others[name].shape} in B"
        elif (apart := _apart(a.others[name], b.others[name])) > tolerance:
            yield f"{said} differs by up to {apart:.3g}"


def _apart(a: Array, b: Array) -> float:
    return block_metrics(np.atleast_1d(a), np.atleast_1d(b)).difference


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


def layer_differences(
    a: ComparedFile, b: ComparedFile, pairs: Sequence[LayerPair]
) -> Iterator[str]:
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


def _count(layers: Sequence[ComparedLayer]) -> str:
    many = len(layers)
    return f"{many or 'no'} layer{'s' if many != 1 else ''} with weights"


def _index(a: ComparedLayer, b: ComparedLayer) -> str:
    return "" if a.index == b.index else f" (its layer {b.index})"


def _sizes(layer: ComparedLayer) -> tuple[object, ...]:
    """Kind, directions, and the shape of every tensor."""
    shapes = [
        (d.name, sorted((name, value.shape) for name, value in d.tensors.items()))
        for d in layer.directions
    ]
    return layer.kind, *shapes


def _between(side: ComparedFile) -> tuple[int, ...] | None:
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


def option_differences(
    a: ComparedFile, b: ComparedFile, pairs: Sequence[LayerPair]
) -> Iterator[OptionDifference]:
    """Options that differ, layer by layer; none where a side has no config."""
    if a.config is None or b.config is None:
        return
    ours = {spec.index: spec for spec in a.config.specs}
    theirs = {spec.index: spec for spec in b.config.specs}
    for one, other in pairs:
        if one is None or other is None or one.index not in ours or other.index not in theirs:
            continue
        yield from _differences(ours[one.index], theirs[other.index], a, b)


def _differences(
    one: LayerSpec, other: LayerSpec, a: ComparedFile, b: ComparedFile
) -> Iterator[OptionDifference]:
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


def _is_assumed(side: ComparedFile, spec: LayerSpec, option: str) -> bool:
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
