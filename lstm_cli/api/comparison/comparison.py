"""Two weights files side by side: every figure, what differs besides, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lstm_cli.api.comparison.blocks import Block, compared_blocks
from lstm_cli.api.comparison.diagnosis import Diagnosis, diagnose
from lstm_cli.api.comparison.figures import figures
from lstm_cli.api.comparison.sides import Side, without_normalization
from lstm_cli.api.comparison.sources import Pair, paired
from lstm_cli.api.comparison.structure import (
    OptionDifference,
    layer_differences,
    option_differences,
)
from lstm_cli.engines.types import DIRECTIONS, Array
from lstm_cli.network.normalization import TENSOR_NAMES, Normalization, Rounding


@dataclass(frozen=True)
class File:
    """One of the two files, and what had to be assumed because it does not say it."""

    path: Path
    format: str
    title: str
    sha256: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
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
    a: File
    b: File
    layers: tuple[str, ...]
    options: tuple[OptionDifference, ...]
    blocks: tuple[Block, ...]
    titles: dict[int, str]
    diagnosis: Diagnosis | None
    folded: str | None = None
    lost: tuple[Rounding, ...] = ()


def compare(a: Side, b: Side, tolerance: float = 0.0) -> Comparison:
    """Compare two files that were read."""
    pairs = paired(a.layers, b.layers)
    blocks = tuple(_blocks(pairs, tolerance))
    a, b, folded, lost = _alike(a, b, all(block.equal for block in blocks))
    if folded is not None:
        pairs = paired(a.layers, b.layers)
        blocks = tuple(_blocks(pairs, tolerance))
    layers = (*layer_differences(a, b, pairs), *_others(a, b, tolerance))
    options = tuple(option_differences(a, b, pairs))
    same = all(block.equal for block in blocks)
    return Comparison(
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


def _alike(a: Side, b: Side, same: bool) -> tuple[Side, Side, str | None, tuple[Rounding, ...]]:
    """Both sides, and the label of the one whose normalization the other has in its weights.

    Last, the features whose digits these weights lose.
    Where the weights are the `same`, the other has lost it.
    """
    normalized = [side for side in (a, b) if set(TENSOR_NAMES) & side.others.keys()]
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
    scaling = Normalization.from_tensors(normalized[0].others)
    dtype = "float64" if wide else "float32"
    lost = () if scaling is None else tuple(scaling.roundings(dtype))
    return (folded, b, "A", lost) if other is b else (a, folded, "B", lost)


def _file(side: Side) -> File:
    return File(side.path, side.imported.format, side.title, side.sha256, side.notes)


def _titles(pairs: Sequence[Pair]) -> dict[int, str]:
    first = (a if a is not None else b for a, b in pairs)
    return {layer.index: layer.title for layer in first if layer is not None}


def _blocks(pairs: Sequence[Pair], tolerance: float) -> Iterator[Block]:
    for a, b in pairs:
        if a is None or b is None or a.kind != b.kind:
            continue
        for name in DIRECTIONS:
            one, other = (
                next((d for d in layer.directions if d.name == name), None) for layer in (a, b)
            )
            yield from compared_blocks(a, b, one, other, tolerance)


def _others(a: Side, b: Side, tolerance: float) -> Iterator[str]:
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
    return figures(np.atleast_1d(a), np.atleast_1d(b)).difference
