"""Two weights files as layers, directions and blocks, and metrics of each pair of blocks."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lstm_cli.config import Config
from lstm_cli.engines.types import DIRECTIONS, Array, DenseSpec, RecurrentSpec
from lstm_cli.formats.gates import KIND_OF_GATES, NATIVE_GATES, PEEPHOLE_GATES
from lstm_cli.formats.interchange import Imported, ReadOptions
from lstm_cli.network.difference import absolute_difference, float64_chunks, largest
from lstm_cli.network.normalization import TENSOR_NAMES, Normalization, fold, fold_obstacle
from lstm_cli.network.weights import merge_biases, misfits
from lstm_cli.workflows.config_differences import contradiction_note, contradictions
from lstm_cli.workflows.shape_check import layer_title
from lstm_cli.workflows.weights_files import (
    config_of,
    described_config,
    read_weights,
    renumbered,
    with_reading_bias,
)

SYMBOLS = {
    "weight": "W",
    "weight_ih": "W",
    "weight_hh": "U",
    "bias": "b",
    "bias_ih": "b",
    "bias_hh": "b_h",
    "peephole": "p",
    "weight_hr": "W_hr",
}
"""Symbol in the equations, by a tensor's name within its layer."""

_NAME = re.compile(r"layers\.(\d{1,9})\.(reverse\.)?(\w+)")
_SETTING = re.compile(r"--set model\.layers\.(\d{1,9})\.(\w+)=")


@dataclass(frozen=True)
class ComparedDirection:
    """Tensors of one direction of a recurrent layer, or of a dense layer.

    Attributes
    ----------
    name
        ``forward`` or ``reverse``.
    tensors
        Tensors by name within the layer; the two biases of an lstm or rnn are added.
    biases
        The two biases before they were added, if the file had two.
    """

    name: str
    tensors: Mapping[str, Array]
    biases: Mapping[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class ComparedLayer:
    """A layer that has weights.

    Attributes
    ----------
    index
        The ``<k>`` of its tensors' names.
    kind
        ``lstm``, ``gru``, ``rnn``, ``dense``, or ``unknown``.
    title
        Title such as ``lstm 12 → 100``.
    """

    index: int
    kind: str
    title: str
    directions: tuple[ComparedDirection, ...]

    def direction(self, name: str) -> ComparedDirection | None:
        """Return a direction; None if the layer does not have it."""
        return next((d for d in self.directions if d.name == name), None)

    def gates(self, tensor: str) -> tuple[str, ...]:
        """Return the letters of the gates that a tensor stacks; empty if it stacks none."""
        if (
            self.kind not in NATIVE_GATES
            or tensor not in SYMBOLS
            or tensor in ("weight_hr", "weight")
        ):
            return ()
        return PEEPHOLE_GATES if tensor == "peephole" else NATIVE_GATES[self.kind]


@dataclass(frozen=True)
class ComparedFile:
    """One of the two weights files.

    Attributes
    ----------
    label
        ``A`` or ``B``.
    config
        Config of the file, implied by its tensors, or from ``--config``; None: no config.
    layers
        Layers with weights, in order.
    others
        Tensors whose names belong to no layer.
    assumed
        Options that the file does not state, as pairs of layer and key.
    imported
        The file, with the layer numbers of the config.
    """

    label: str
    config: Config | None
    layers: tuple[ComparedLayer, ...]
    others: Mapping[str, Array]
    assumed: frozenset[tuple[int, str]]
    notes: tuple[str, ...]
    imported: Imported


def read_compared_file(
    label: str, path: str | Path, options: ReadOptions, config: Config | None = None
) -> ComparedFile:
    """Read one weights file.

    Parameters
    ----------
    config
        Config for a file that does not describe its layers completely.

    Raises
    ------
    WeightsError, ConfigError
        The file cannot be read, or the config that it carries is wrong.
    """
    imported = read_weights(path, options, layers=None if config is None else config.specs)
    settings = [setting for note in imported.notes for setting in _SETTING.findall(note)]
    has_config = imported.text is not None or imported.config is not None
    notes, requested = imported.notes, config
    if has_config and not (settings and config is not None):
        config = config_of(imported)
    elif config is not None:
        settings = []
    if requested is not None:
        notes += _contradiction_notes(requested, imported, used=config is requested)
    if config is not None:
        imported = renumbered(imported, config.specs)
    grouped, others = _grouped(imported.tensors)
    if config is requested and requested is not None:
        config = _with_stored_biases(requested, grouped)
    pairs, _ = _grouped(imported.split_biases)
    return ComparedFile(
        label,
        config,
        tuple(_layer(k, grouped[k], config, pairs.get(k, {})) for k in sorted(grouped)),
        others,
        frozenset((int(k), key) for k, key in settings),
        notes,
        imported,
    )


def _with_stored_biases(
    config: Config, grouped: Mapping[int, Mapping[str, Mapping[str, Array]]]
) -> Config:
    """Set `bias` of a config's layers as the file's tensors have it."""
    for bias in (True, False):
        indices = [
            spec.index
            for spec in config.specs
            if isinstance(spec, RecurrentSpec | DenseSpec)
            and spec.bias != bias
            and spec.index in grouped
            and bias == any("bias" in n for names in grouped[spec.index].values() for n in names)
        ]
        config = config.with_biases(indices, bias)
    return config


def _contradiction_notes(config: Config, imported: Imported, *, used: bool) -> tuple[str, ...]:
    """Return a note if the file describes other layers than the config that was given.

    Parameters
    ----------
    used
        The comparison uses the config, and not the file's own.
    """
    file_config = described_config(imported)
    if file_config is None or not (found := contradictions(config, file_config, imported)):
        return ()
    alone, path = "leave out --config" if used else None, imported.path
    return (contradiction_note(config, file_config, found, path, alone, settings=False),)


def without_normalization(side: ComparedFile, wide: bool) -> ComparedFile | None:
    """Fold the normalization of a file's inputs into its weights.

    Parameters
    ----------
    wide
        Fold in float64, as the other file stores it, even if this one has float32.

    Returns
    -------
    None if there is no normalization, if no weights can include it, or if the tensors do not
    fit the config.
    """
    config = side.config
    if config is None or not set(TENSOR_NAMES) <= side.others.keys():
        return None
    tensors = merge_biases(config.specs, side.imported.tensors)
    if misfits(config.specs, {name: value.shape for name, value in tensors.items()}):
        return None
    config, whole = with_reading_bias(config, tensors)
    if fold_obstacle(config.specs) is not None:
        return None
    weights = {
        name: value.astype(np.float64) if wide else value
        for name, value in whole.items()
        if name not in TENSOR_NAMES
    }
    grouped, _ = _grouped(fold(config.specs, weights, Normalization.from_tensors(tensors)))
    layers = tuple(_layer(k, grouped[k], config, {}) for k in sorted(grouped))
    return replace(side, config=config, layers=layers, others={})


def _grouped(
    tensors: Mapping[str, Array],
) -> tuple[dict[int, dict[str, dict[str, Array]]], dict[str, Array]]:
    """Return tensors by layer, direction and name within it, and the tensors of no layer."""
    layers: dict[int, dict[str, dict[str, Array]]] = {}
    others = {}
    for name, value in tensors.items():
        value, match = np.atleast_1d(value), _NAME.fullmatch(name)
        if match is None:
            others[name] = value
            continue
        direction = DIRECTIONS[1 if match[2] else 0]
        layers.setdefault(int(match[1]), {}).setdefault(direction, {})[match[3]] = value
    return layers, others


def _layer(
    index: int,
    parts: Mapping[str, dict[str, Array]],
    config: Config | None,
    halves: Mapping[str, dict[str, Array]],
) -> ComparedLayer:
    specs = {} if config is None else {spec.index: spec for spec in config.specs}
    first = next(iter(parts.values()))
    kind = specs[index].kind if index in specs else _kind(first)
    directions = tuple(
        _direction(name, parts[name], kind, halves.get(name, {}))
        for name in DIRECTIONS
        if name in parts
    )
    title = layer_title(specs[index]) if index in specs else _title(kind, first, len(directions))
    return ComparedLayer(index, kind, title, directions)


def _direction(
    name: str, tensors: dict[str, Array], kind: str, halves: Mapping[str, Array]
) -> ComparedDirection:
    """Return one direction; `halves` are the two biases whose sum is among the tensors."""
    if not halves and kind in ("lstm", "rnn") and "bias" not in tensors:
        pair: dict[str, Array] = {k: v for k, v in tensors.items() if k in ("bias_ih", "bias_hh")}
        if len(pair) == 2 and len({value.shape for value in pair.values()}) == 1:
            wide = np.result_type(*pair.values(), np.float32)
            total = np.add(*pair.values(), dtype=np.float64).astype(wide)
            halves = pair
            tensors = {k: value for k, value in tensors.items() if k not in pair} | {"bias": total}
    known = [name for name in SYMBOLS if name in tensors]
    others = [name for name in tensors if name not in SYMBOLS]
    return ComparedDirection(name, {key: tensors[key] for key in [*known, *others]}, halves)


def _kind(tensors: Mapping[str, Array]) -> str:
    """Return the kind of a layer without a config, by the ratio of its rows to its columns."""
    if "weight" in tensors:
        return "dense"
    recurrent = tensors.get("weight_hh")
    if recurrent is None or recurrent.ndim != 2:
        return "unknown"
    wide = tensors.get("weight_hr", recurrent)
    H = wide.shape[1] if wide.ndim == 2 else 0
    gates = recurrent.shape[0] // H if H and recurrent.shape[0] % H == 0 else 0
    return KIND_OF_GATES.get(gates, "unknown")


def _title(kind: str, tensors: Mapping[str, Array], directions: int) -> str:
    matrix = tensors.get("weight_ih", tensors.get("weight"))
    if kind == "unknown" or matrix is None or matrix.ndim != 2:
        return f"of {kind} kind"
    last = tensors.get("weight_hr", tensors.get("weight_hh", matrix))
    size = last.shape[0] if kind == "dense" or "weight_hr" in tensors else last.shape[1]
    both = ", both directions" if directions == 2 else ""
    return f"{kind} {matrix.shape[1]} → {size * directions}{both}"


@dataclass(frozen=True)
class BlockMetrics:
    """Metrics of two blocks of one shape.

    Attributes
    ----------
    difference
        Largest absolute difference of two elements; infinite where one is NaN.
    relative
        That difference over the largest absolute element of A; None where that is 0.
    norm_a, norm_b
        Square roots of the sums of squares.
    correlation
        Pearson's correlation over the elements; None where one side is constant.
    """

    difference: float
    relative: float | None
    norm_a: float
    norm_b: float
    correlation: float | None


@dataclass(frozen=True)
class ComparedBlock:
    """One gate's matrix or vector on both sides: a row of the table of a comparison.

    Attributes
    ----------
    layer
        Index of the layer in A; in B where A has no such layer.
    kind, direction, gate, matrix
        Such as ``lstm``, ``reverse``, ``f``, ``U``; `gate` is empty for a tensor without gates.
    tensor
        Name of the tensor within its layer.
    shape_a, shape_b
        Shapes of the block; None: the file has no such block.
    figures
        Metrics; None: the shapes differ.
    equal
        Every element is within the tolerance.
    gates
        Number of gates that the tensor stacks; 0 if it stacks none.
    """

    layer: int
    kind: str
    direction: str
    gate: str
    matrix: str
    tensor: str
    shape_a: tuple[int, ...] | None
    shape_b: tuple[int, ...] | None
    figures: BlockMetrics | None
    equal: bool
    gates: int = 0

    @property
    def name(self) -> str:
        """Name in the equations: ``U_f``."""
        return f"{self.matrix}_{self.gate}" if self.gate else self.matrix


def block_metrics(a: Array, b: Array) -> BlockMetrics:
    """Return the metrics of two arrays of one shape, of at least one axis."""
    difference = size_a = 0.0
    sums = np.zeros(5)
    with np.errstate(all="ignore"):
        for x, y in float64_chunks(a, b):
            difference = max(difference, largest(absolute_difference(x, y)).value)
            size_a = max(size_a, float(np.abs(x).max(initial=0.0)))
            x, y = x.ravel(), y.ravel()
            sums += [x.sum(), y.sum(), x @ x, y @ y, x @ y]
        relative = difference / size_a if size_a > 0 else None
        norms = np.sqrt(sums[2:4])
        correlation = _correlation(sums, a.size)
        return BlockMetrics(difference, relative, float(norms[0]), float(norms[1]), correlation)


def _correlation(sums: Array, count: int) -> float | None:
    a, b, aa, bb, ab = (float(value) for value in sums)
    variances = (aa - a * a / count, bb - b * b / count) if count else (0.0, 0.0)
    # Equal numbers have a variance of some rounding, not of 0.
    if not (variances[0] > 1e-12 * aa and variances[1] > 1e-12 * bb):
        return None
    value = (ab - a * b / count) / math.sqrt(variances[0]) / math.sqrt(variances[1])
    return max(-1.0, min(1.0, value)) if math.isfinite(value) else None


def norm(values: Array) -> float:
    """Return the square root of the sum of squares."""
    with np.errstate(all="ignore"):
        squares = sum(float((x * x).sum()) for x, _ in float64_chunks(values, values[:0]))
    return math.sqrt(squares) if math.isfinite(squares) else math.inf


def compared_blocks(
    a: ComparedLayer, b: ComparedLayer, direction: str, tolerance: float
) -> Iterator[ComparedBlock]:
    """Yield the blocks of one direction of two layers; one side may lack the direction."""
    one, other = a.direction(direction), b.direction(direction)
    tensors_a = {} if one is None else one.tensors
    tensors_b = {} if other is None else other.tensors
    for tensor in dict.fromkeys([*tensors_a, *tensors_b]):
        x, y = tensors_a.get(tensor), tensors_b.get(tensor)
        layer = a if tensor in tensors_a else b
        gates = layer.gates(tensor)
        if x is not None and y is not None and x.shape != y.shape and x.shape == y.shape[::-1]:
            gates = ()  # the rows of a transposed tensor are not gates
        for k, gate in enumerate(gates or ("",)):
            rows_a, rows_b = (_gate_rows(value, k, len(gates)) for value in (x, y))
            metrics = None
            if rows_a is not None and rows_b is not None and rows_a.shape == rows_b.shape:
                metrics = block_metrics(rows_a, rows_b)
            yield ComparedBlock(
                a.index,
                a.kind,
                "" if a.kind == "dense" else direction,
                gate,
                SYMBOLS.get(tensor, tensor),
                tensor,
                None if rows_a is None else rows_a.shape,
                None if rows_b is None else rows_b.shape,
                metrics,
                metrics is not None and metrics.difference <= tolerance,
                len(gates),
            )


def _gate_rows(value: Array | None, k: int, gates: int) -> Array | None:
    """Return the rows of the k-th gate; all rows if their number is no multiple of the gates."""
    if value is None:
        return None
    value = np.atleast_1d(value)
    if gates < 2 or len(value) % gates:
        return value
    rows = len(value) // gates
    return value[k * rows : (k + 1) * rows]
