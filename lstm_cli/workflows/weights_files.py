"""Weights files of any format: reading, the config they carry, and the layers of their tensors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lstm_cli import config as configs
from lstm_cli.config import Config
from lstm_cli.engines.types import Array, Layers, lacks_bias, with_biases
from lstm_cli.errors import LstmCliError, WeightsError, quote
from lstm_cli.formats import registry
from lstm_cli.formats.detection import detect_format_name
from lstm_cli.formats.interchange import Imported, ReadOptions, TensorSource
from lstm_cli.network.normalization import first_layer
from lstm_cli.network.weights import make_immutable
from lstm_cli.workflows.config_differences import (
    contradiction_note,
    contradictions,
    unwritten_options,
)

CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
"""Suffixes of configs, which are never read as weights."""

_LAYER = re.compile(r"layers\.(\d{1,9})\.(.+)")
_SETTING = re.compile(r"--set ([\w.]+)=")


def is_hdf5(path: str | Path) -> bool:
    """Return True if a file is HDF5: Keras weights, or sequences."""
    try:
        if not Path(path).is_file():  # a pipe is read once
            return False
        with open(path, "rb") as file:
            zipped = file.read(2) == b"PK"
        return not zipped and detect_format_name(Path(path)) == "keras"
    except (OSError, ValueError):
        return False


def is_weights(path: str | Path) -> bool:
    """Return True if a CONFIG argument is a weights file, by its suffix or else its content."""
    name = Path(path).name.lower()
    if name.endswith(CONFIG_SUFFIXES):
        return False
    if registry.format_by_suffix(path) is not None:
        return True
    path = Path(path)
    try:
        # A pipe can be read only once: its content is left to the reader of configs.
        return path.is_file() and detect_format_name(path) is not None and not _is_text(path)
    except (OSError, ValueError):
        return False


def _is_text(path: Path) -> bool:
    """Return True if a file begins like a text other than XML: a config without a suffix."""
    with path.open("rb") as file:
        head = file.read(256)
    return min(head, default=0) >= 9 and not head.lstrip().startswith(b"<")


def read_weights(
    path: str | Path,
    options: ReadOptions | None = None,
    named_at: str | None = None,
    layers: Layers | None = None,
) -> Imported:
    """Read a weights file of any format.

    Parameters
    ----------
    named_at
        Place in a config that names the file; errors name it too.
    layers
        Layers of the config that the weights are read for; see `ReadOptions.layers`.

    Raises
    ------
    WeightsError
        The file cannot be read, or holds a layer or option that lstm-cli cannot represent.
    """
    try:
        imported = registry.read(path, replace(options or ReadOptions(), layers=layers))
    except WeightsError as error:
        if named_at is None:
            raise
        problems = [
            replace(
                p, where=(*p.where, named_at), hint=p.hint or "--set weights=null draws new ones"
            )
            for p in error.problems
        ]
        raise WeightsError(problems, headline=error.headline) from None
    make_immutable(imported.tensors)
    return imported


def config_of(
    imported: Imported,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    *,
    hint: str = "name a YAML config, and the weights with --weights",
) -> Config:
    """Return the config that a weights file carries, or that its tensors imply.

    Raises
    ------
    WeightsError
        The file has no config, and its tensors imply none.
    ConfigError
        The config is wrong, as stored or with the overrides.
    """
    name = str(imported.path)
    if imported.text is not None:
        return configs.from_text(imported.text, name, imported.path.parent, overrides, seed)
    if imported.config is not None:
        config = configs.from_mapping(imported.config, overrides, seed, name=name)
        return replace(config, name=_stem(imported.path))
    raise WeightsError(
        f"{name} carries no config",
        expected="a config in the file's metadata, as lstm-cli writes it"
        if imported.format == "native"
        else "a description of the layers, or tensors whose names and shapes imply them",
        hint=hint,
    )


def _stem(path: Path) -> str:
    """Return a file's name without the suffix of its format: ``out`` of ``out.weights.h5``."""
    for format in registry.FORMATS.values():
        for suffix in sorted(format.suffixes, key=len, reverse=True):
            if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
                return path.name[: -len(suffix)]
    return path.stem


def renumbered(imported: Imported, layers: Layers) -> Imported:
    """Return a file with the layer numbers of a config.

    Few formats store layers without weights, such as dropout. So a foreign file's layers are
    numbered in order, if the config has the same number of layers with weights.
    """
    of_file = sorted({int(m[1]) for name in imported.tensors if (m := _LAYER.fullmatch(name))})
    of_config = [spec.index for spec in layers if spec.parameters()]
    if imported.format == "native" or len(of_file) != len(of_config) or of_file == of_config:
        return imported
    numbers = dict(zip(of_file, of_config, strict=True))

    def native(name: str) -> str:
        match = _LAYER.fullmatch(name)
        if match is None or int(match[1]) not in numbers:
            return name
        return f"layers.{numbers[int(match[1])]}.{match[2]}"

    return replace(
        imported,
        tensors={native(name): value for name, value in imported.tensors.items()},
        split_biases={native(name): value for name, value in imported.split_biases.items()},
        sources=tuple(replace(s, native=native(s.native)) for s in imported.sources),
        zero_states={
            (numbers.get(k, k), letter): sides
            for (k, letter), sides in imported.zero_states.items()
        },
    )


def with_reading_bias(
    config: Config, tensors: Mapping[str, Array]
) -> tuple[Config, Mapping[str, Array]]:
    """Return the network with biases, 0 where it has none, in the layer that reads the inputs.

    Folding the normalization of the inputs into the weights needs these biases.
    """
    first = first_layer(config.specs)
    if first is None or not lacks_bias(first):
        return config, tensors
    return config.with_biases([first.index]), with_biases(first, tensors)[1]


def stored_places(imported: Imported) -> dict[tuple[str, str], tuple[TensorSource, ...]]:
    """Return the places in a foreign file of every block, by native tensor and gate.

    A block that is the sum of two tensors has two places.
    """
    places: dict[tuple[str, str], tuple[TensorSource, ...]] = {}
    for stored in imported.sources if imported.format != "native" else ():
        key = stored.native, stored.block
        places[key] = (*places.get(key, ()), stored)
    return places


def standing_notes(imported: Imported, config: Config, alone: str | None = None) -> tuple[str, ...]:
    """Return the reader's notes that still apply, and a note on options that contradict the file.

    A note that proposes an option with ``--set`` is dropped if the command line sets the option, or
    if a config beside the file does. It stays if the file describes its layers, and the config
    lacks the option or contradicts the file.

    Parameters
    ----------
    alone
        Command that uses the file's own options; None: ``lstm-cli run FILE DATA``.
    """
    if config.source == str(imported.path):
        return tuple(
            note
            for note in imported.notes
            if not (keys := _SETTING.findall(note)) or not all(_is_set(config, key) for key in keys)
        )
    certain = tuple(note for note in imported.notes if not _SETTING.search(note))
    file_config = described_config(imported)
    if file_config is None:
        return certain
    mismatches = contradictions(config, file_config, imported)
    places = {f"model.layers.{m.file_layer}.{m.key}" for m in mismatches}
    places |= unwritten_options(config, file_config)
    assumed = tuple(
        f"{imported.path.name} alone: {note}"
        for note in imported.notes
        if any(".".join(key.split(".")[:4]) in places for key in _SETTING.findall(note))
    )
    if not mismatches:
        return (*assumed, *certain)
    how = alone or f"lstm-cli run {_as_argument(imported)} DATA"
    note = contradiction_note(config, file_config, mismatches, imported.path, how)
    return (note, *assumed, *certain)


def described_config(imported: Imported) -> Config | None:
    """Return the config of a file that describes its layers; None without a valid description."""
    if not imported.describes_layers:
        return None
    try:
        return config_of(imported)
    except LstmCliError:
        return None


def _as_argument(imported: Imported) -> str:
    format, order = imported.read_options.format, imported.read_options.tmva_order
    options = [f"--from {format}"] * (format is not None)
    options += [f"--tmva-order {order}"] * (order is not None)
    return " ".join([quote(str(imported.path)), *options])


def _is_set(config: Config, dotted: str) -> bool:
    path = [int(key) if key.isdecimal() else key for key in dotted.split(".")]
    return config.where(*path).startswith("--set ")
