"""Comparison of two weights files: blocks, layers, options, and causes of differences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lstm_cli.engines.types import (
    DIRECTIONS,
    DenseSpec,
    FlattenSpec,
    LayerSpec,
    RecurrentSpec,
)
from lstm_cli.errors import counted
from lstm_cli.network.difference import largest_difference
from lstm_cli.network.normalization import TENSOR_NAMES, Normalization, Rounding
from lstm_cli.workflows.compare.diagnosis import Diagnosis, diagnose
from lstm_cli.workflows.compare.inputs import (
    ComparedBlock,
    ComparedFile,
    ComparedLayer,
    compared_blocks,
    without_normalization,
)
from lstm_cli.workflows.compare.pairing import LayerPair, common_pairs, paired_layers
from lstm_cli.workflows.config_differences import TRAINING_OPTIONS

YAML_NAMES = {"use_forget_gate": "forget_gate"}
"""Name of an option in YAML, by the cell's name where that differs."""
STATED_TOGETHER = {"recurrent_activation": "activation", "cell_activation": "activation"}
"""Other option that a file states together with this one, or not at all."""
CELL_OPTIONS = (
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
    """One of the two files; `notes` are assumptions about options that the file does not state."""

    path: Path
    format: str
    title: str
    sha256: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class OptionDifference:
    """An option of a layer that differs between the two files.

    Attributes
    ----------
    what
        Sentence: ``layer 0: recurrent_activation sigmoid in A, hard_sigmoid in B``.
    counts
        The option changes outputs, and both files state it.
    """

    layer: int
    option: str
    a: str
    b: str
    what: str
    counts: bool


@dataclass(frozen=True)
class FileComparison:
    """Result of `compare`.

    Attributes
    ----------
    equal
        Every number is within the tolerance of its counterpart, and no layer or option that
        changes an output differs.
    tolerance
        Largest absolute difference of equal elements.
    a, b
        The two files.
    layers
        Differences of layers and sizes, a sentence each.
    options
        Differences of options.
    blocks
        Every gate's matrices side by side.
    titles
        Titles of A's layers, by index.
    diagnosis
        Causes of different numbers; None where no number differs.
    folded
        Label of the file, ``A`` or ``B``, whose normalization of the inputs was folded into its
        weights, since the other file has none; None: there was nothing to fold.
    lost
        Features whose digits the folded weights do not hold.
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
    a, b, folded, lost = _fold_one(a, b, all(block.equal for block in blocks))
    if folded is not None:
        pairs = paired_layers(a.layers, b.layers)
        blocks = tuple(_blocks(pairs, tolerance))
    layers = (*layer_differences(a, b, pairs), *_other_tensors(a, b, tolerance))
    options = tuple(option_differences(a, b, pairs))
    same = all(block.equal for block in blocks)
    return FileComparison(
        same and not layers and not any(option.counts for option in options),
        tolerance,
        _summary(a),
        _summary(b),
        layers,
        options,
        blocks,
        _titles(pairs),
        None if same else diagnose(pairs, blocks, tolerance),
        folded,
        lost,
    )


def _fold_one(
    a: ComparedFile, b: ComparedFile, same: bool
) -> tuple[ComparedFile, ComparedFile, str | None, tuple[Rounding, ...]]:
    """Fold the normalization of one file into its weights, if the other file has none.

    Parameters
    ----------
    same
        True if the weights are equal; then one file has lost its normalization.

    Returns
    -------
    Both files, the label of the folded one, and the features whose digits its weights lose.
    """
    normalized = [bool(set(TENSOR_NAMES) & file.others.keys()) for file in (a, b)]
    if normalized[0] == normalized[1] or same:
        return a, b, None, ()
    one, other = (a, b) if normalized[0] else (b, a)
    wide = any(
        value.dtype == np.float64
        for layer in other.layers
        for direction in layer.directions
        for value in direction.tensors.values()
    )
    folded = without_normalization(one, wide)
    if folded is None:
        return a, b, None, ()
    scaling = Normalization.from_tensors(one.others)
    lost = () if scaling is None else tuple(scaling.roundings("float64" if wide else "float32"))
    return (folded, b, "A", lost) if one is a else (a, folded, "B", lost)


def _summary(file: ComparedFile) -> FileSummary:
    one = file.imported
    return FileSummary(one.path, one.format, one.title, one.sha256, file.notes)


def _titles(pairs: Sequence[LayerPair]) -> dict[int, str]:
    layers = (a if a is not None else b for a, b in pairs)
    return {layer.index: layer.title for layer in layers if layer is not None}


def _blocks(pairs: Sequence[LayerPair], tolerance: float) -> Iterator[ComparedBlock]:
    for a, b in common_pairs(pairs):
        for direction in DIRECTIONS:
            yield from compared_blocks(a, b, direction, tolerance)


def _other_tensors(a: ComparedFile, b: ComparedFile, tolerance: float) -> Iterator[str]:
    """Yield differences of tensors that belong to no layer, a sentence each."""
    for name in sorted({*a.others, *b.others}):
        label = name if name.isprintable() else repr(name)
        if name not in a.others or name not in b.others:
            yield f"{label} is in {'A' if name in a.others else 'B'} alone"
            continue
        one, other = a.others[name], b.others[name]
        if one.shape != other.shape:
            yield f"{label} is {one.shape} in A, {other.shape} in B"
            continue
        difference = largest_difference(one, other).value
        if difference > tolerance:
            yield f"{label} differs by up to {difference:.3g}"


def layer_differences(
    a: ComparedFile, b: ComparedFile, pairs: Sequence[LayerPair]
) -> Iterator[str]:
    """Yield differences of layers and sizes, a sentence each."""
    if len(a.layers) != len(b.layers):
        count = counted(len(a.layers), "layer") if a.layers else "no layers"
        yield f"A has {count} with weights, B has {len(b.layers) or 'none'}"
    for one, other in pairs:
        if one is None or other is None:
            label, layer = ("A", one) if one is not None else ("B", other)
            if layer is not None:
                yield f"layer {layer.index} of {label}, {layer.title}, has no counterpart"
        elif _sizes(one) != _sizes(other):
            index = "" if one.index == other.index else f" (its layer {other.index})"
            yield f"layer {one.index}: {one.title} in A; {other.title} in B{index}"
    flattens = [_flatten_places(file) for file in (a, b)]
    if None not in flattens and flattens[0] != flattens[1]:
        in_a, in_b = (_places_text(places) for places in flattens)
        yield f"flatten stands before {in_a} in A, before {in_b} in B"


def _sizes(layer: ComparedLayer) -> tuple[object, ...]:
    shapes = [
        (d.name, sorted((name, value.shape) for name, value in d.tensors.items()))
        for d in layer.directions
    ]
    return layer.kind, *shapes


def _flatten_places(file: ComparedFile) -> tuple[int, ...] | None:
    """Return the number of layers with weights before each flatten; None without a config."""
    if file.config is None:
        return None
    places, before = [], 0
    for spec in file.config.specs:
        if isinstance(spec, FlattenSpec):
            places.append(before)
        before += bool(spec.parameters())
    return tuple(places)


def _places_text(places: tuple[int, ...] | None) -> str:
    if not places:
        return "no layer"
    return ", ".join(f"layer {place} of those with weights" for place in places)


def option_differences(
    a: ComparedFile, b: ComparedFile, pairs: Sequence[LayerPair]
) -> Iterator[OptionDifference]:
    """Yield options that differ, layer by layer; none where a file has no config."""
    if a.config is None or b.config is None:
        return
    specs_a = {spec.index: spec for spec in a.config.specs}
    specs_b = {spec.index: spec for spec in b.config.specs}
    for layer_a, layer_b in pairs:
        one = None if layer_a is None else specs_a.get(layer_a.index)
        other = None if layer_b is None else specs_b.get(layer_b.index)
        if one is not None and other is not None and one.kind == other.kind:
            yield from _layer_options(one, other, a, b)


def _layer_options(
    one: LayerSpec, other: LayerSpec, a: ComparedFile, b: ComparedFile
) -> Iterator[OptionDifference]:
    options_b = _options(other)
    for key, value in _options(one).items():
        if value == options_b[key]:
            continue
        guesses = [
            f"{file.label} does not say which"
            for file, spec in ((a, one), (b, other))
            if _is_assumed(file, spec, key)
        ]
        idle = "; it changes no output" if key in TRAINING_OPTIONS else ""
        assumed = f"; {' and '.join(guesses)}" if guesses else ""
        yield OptionDifference(
            one.index,
            key,
            value,
            options_b[key],
            f"layer {one.index}: {key} {value} in A, {options_b[key]} in B{assumed}{idle}",
            not guesses and not idle,
        )


def _is_assumed(file: ComparedFile, spec: LayerSpec, option: str) -> bool:
    """Return True if a file does not state an option of a layer.

    A file that does not state an option of one recurrent (or dense) layer states it for none, so
    the file's notes need not name all layers.
    """
    specs = () if file.config is None else file.config.specs
    recurrent = {other.index: isinstance(other, RecurrentSpec) for other in specs}
    is_recurrent = isinstance(spec, RecurrentSpec)
    keys = {
        key for index, key in file.assumed if recurrent.get(index, is_recurrent) == is_recurrent
    }
    return STATED_TOGETHER.get(option, option) in keys or option in keys


def _options(spec: LayerSpec) -> dict[str, str]:
    """Return options as text, by their names in YAML."""
    if isinstance(spec, DenseSpec):
        return {"activation": spec.activation_name, "bias": _text(spec.bias)}
    if not isinstance(spec, RecurrentSpec):
        return {}
    options = {}
    for name in CELL_OPTIONS:
        values = [getattr(cell, name) for cell in spec.cells if hasattr(cell, name)]
        if values:
            texts = list(dict.fromkeys(_text(value) for value in values))
            options[YAML_NAMES.get(name, name)] = ", ".join(texts)
    for name in ("return_sequences", "stateful", *TRAINING_OPTIONS):
        options[name] = _text(getattr(spec, name))
    return options


def _text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
