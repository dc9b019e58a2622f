"""Inputs of a comparison: two weights files, as layers and directions of tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from lstm_cli.config import Config
from lstm_cli.engines.types import DIRECTIONS, Array, DenseSpec, RecurrentSpec
from lstm_cli.formats.gates import KIND_OF_GATES, NATIVE_GATES, PEEPHOLE_GATES
from lstm_cli.formats.interchange import Imported, ReadOptions
from lstm_cli.network.normalization import TENSOR_NAMES, Normalization, fold, fold_obstacle
from lstm_cli.network.weights import merge_biases, misfits
from lstm_cli.workflows.config_differences import contradiction_note, contradictions
from lstm_cli.workflows.shape_check import layer_title
from lstm_cli.workflows.weights_files import (
    config_of,
    described_config,
    read_weights,
    tensors_for,
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
    """

    label: str
    path: Path
    title: str
    sha256: str
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
        notes += _contradictions(requested, imported, used=config is requested)
    tensors, halves = _renumbered(imported, config)
    grouped, others = _grouped(tensors)
    if config is requested and requested is not None:
        config = _with_stored_biases(requested, grouped)
    pairs, _ = _grouped(halves)
    return ComparedFile(
        label,
        Path(path),
        imported.title,
        imported.sha256,
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


def _contradictions(config: Config, imported: Imported, *, used: bool) -> tuple[str, ...]:
    """Return a note if the file describes other layers than the config that was given.

    Parameters
    ----------
    used
        The comparison uses the config, and not the file's own.
    """
    file_config = described_config(imported)
    mismatches = [] if file_config is None else contradictions(config, file_config, imported)
    if file_config is None or not mismatches:
        return ()
    alone = "leave out --config" if used else None
    path = imported.path
    note = contradiction_note(config, file_config, mismatches, path, alone, settings=False)
    return (note,)


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
    tensors = merge_biases(config.specs, tensors_for(config.specs, side.imported))
    shapes = {name: value.shape for name, value in tensors.items()}
    if misfits(config.specs, shapes):
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


def _renumbered(
    imported: Imported, config: Config | None
) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
    """Return tensors and the two parts of biases, under the layer numbers of the config."""
    if config is None:
        return imported.tensors, imported.split_biases
    both = {**imported.tensors, **imported.split_biases}
    names = tensors_for(config.specs, replace(imported, tensors=both))
    renamed = dict(zip(both, names, strict=True))
    return (
        {renamed[name]: value for name, value in imported.tensors.items()},
        {renamed[name]: value for name, value in imported.split_biases.items()},
    )


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
    name: str, tensors: Mapping[str, Array], kind: str, halves: Mapping[str, Array]
) -> ComparedDirection:
    """Return one direction; `halves` are the two biases whose sum is among the tensors."""
    if halves:
        return ComparedDirection(name, _in_order(tensors), halves)
    pair = {key: tensors[key] for key in ("bias_ih", "bias_hh") if key in tensors}
    if kind not in ("lstm", "rnn") or len(pair) < 2 or "bias" in tensors:
        return ComparedDirection(name, _in_order(tensors))
    first, second = pair.values()
    if first.shape != second.shape:
        return ComparedDirection(name, _in_order(tensors))
    wide = np.result_type(first, second, np.float32)
    total = (first.astype(np.float64) + second).astype(wide)
    rest = {key: value for key, value in tensors.items() if key not in pair}
    return ComparedDirection(name, _in_order({**rest, "bias": total}), pair)


def _in_order(tensors: Mapping[str, Array]) -> dict[str, Array]:
    known = [name for name in SYMBOLS if name in tensors]
    return {name: tensors[name] for name in [*known, *(n for n in tensors if n not in SYMBOLS)]}


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
