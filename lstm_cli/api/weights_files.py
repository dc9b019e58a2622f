"""Weights files of any format: read once, their config, and which layers their tensors fit."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lstm_cli import config as configs
from lstm_cli.api.differences import contradiction_note, contradictions, left_out
from lstm_cli.config import Config
from lstm_cli.engines.types import Array, Layers, ZeroStates, lacks_bias, with_biases
from lstm_cli.errors import LstmCliError, WeightsError, quote
from lstm_cli.formats import registry
from lstm_cli.formats.detect import detect_format_name
from lstm_cli.formats.interchange import Imported, ReadOptions, TensorSource
from lstm_cli.network.normalization import reading_layer

TEXTS = (".yaml", ".yml", ".json")
"""Suffixes of configs, which are never taken for weights."""

_LAYER = re.compile(r"layers\.(\d{1,9})\.(.+)")
_SETTING = re.compile(r"--set ([\w.]+)=")


def is_hdf5(path: str | Path) -> bool:
    """Whether a file is HDF5, which sequences are too."""
    try:
        if not Path(path).is_file():  # a pipe is read once
            return False
        with open(path, "rb") as file:
            zipped = file.read(2) == b"PK"
        return not zipped and detect_format_name(Path(path)) == "keras"
    except (OSError, ValueError):
        return False


def is_weights(path: str | Path) -> bool:
    """Whether a CONFIG is a weights file: its suffix says so, or else what it holds."""
    name = Path(path).name.lower()
    if name.endswith(TEXTS):
        return False
    if registry.format_by_suffix(path) is not None:
        return True
    path = Path(path)
    try:
        # What is no regular file, such as a pipe, can be read only once: by what it is meant for.
        return path.is_file() and detect_format_name(path) is not None and not _is_text(path)
    except (OSError, ValueError):
        return False


def _is_text(path: Path) -> bool:
    """Whether a file begins like a text that is no XML: a config without a suffix."""
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
        The line that names it, for errors.
    layers
        Layers of the config that it is read for; see `ReadOptions.layers`.

    Raises
    ------
    WeightsError
        It cannot be read, or holds what lstm-cli cannot represent.
    """
    try:
        return registry.read(path, replace(options or ReadOptions(), layers=layers))
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


def config_of(
    imported: Imported,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    *,
    hint: str = "name a YAML config, and the weights with --weights",
) -> Config:
    """The config that a weights file carries, or that its tensors tell.

    Raises
    ------
    WeightsError
        There is none.
    ConfigError
        It is wrong, or what overrides make of it.
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
        else "a description of the layers, or tensors whose names and shapes tell them",
        hint=hint,
    )


def _stem(path: Path) -> str:
    """The file's name without the suffix that says its format: ``out`` of ``out.weights.h5``."""
    for format in registry.FORMATS.values():
        for suffix in sorted(format.suffixes, key=len, reverse=True):
            if path.name.lower().endswith(suffix) and len(path.name) > len(suffix):
                return path.name[: -len(suffix)]
    return path.stem


def tensors_for(layers: Layers, imported: Imported) -> Mapping[str, Array]:
    """A file's tensors under the numbers that the layers have in a config.

    Layers without weights, such as dropout, stand in few formats: so a foreign file's layers
    are taken in order, as long as there are as many of them as the config has with weights.
    """
    numbers = _numbers(layers, imported)
    return {_renumbered(name, numbers): value for name, value in imported.tensors.items()}


def with_reading_bias(
    config: Config, tensors: Mapping[str, Array]
) -> tuple[Config, Mapping[str, Array]]:
    """The network with biases, of 0 if it has none, in the layer that reads the inputs.

    These take the normalization of the inputs in where it is folded.
    """
    first = reading_layer(config.specs)
    if first is None or not lacks_bias(first):
        return config, tensors
    return config.with_biases([first.index]), with_biases(first, tensors)[1]


def stored_places(
    layers: Layers, imported: Imported
) -> dict[tuple[str, str], tuple[TensorSource, ...]]:
    """Native tensor and gate to where a foreign file has it: two places where these are added.

    Layers are numbered as in a config; see `tensors_for`.
    """
    if imported.format == "native":
        return {}
    numbers = _numbers(layers, imported)
    places: dict[tuple[str, str], tuple[TensorSource, ...]] = {}
    for stored in imported.sources:
        native = _renumbered(stored.native, numbers)
        key = native, stored.block
        places[key] = (*places.get(key, ()), replace(stored, native=native))
    return places


def zero_states_for(layers: Layers, imported: Imported) -> ZeroStates:
    """The initial states that a file's model holds at 0, layers numbered as in a config."""
    numbers = _numbers(layers, imported)
    return {(numbers.get(k, k), letter): v for (k, letter), v in imported.zero_states.items()}


def _numbers(layers: Layers, imported: Imported) -> dict[int, int]:
    """A file's number of each layer with weights, and the config's."""
    there = sorted({int(m[1]) for name in imported.tensors if (m := _LAYER.fullmatch(name))})
    wanted = [spec.index for spec in layers if spec.parameters()]
    if imported.format == "native" or len(there) != len(wanted):
        wanted = there
    return dict(zip(there, wanted, strict=True))


def _renumbered(name: str, numbers: Mapping[int, int]) -> str:
    found = _LAYER.fullmatch(name)
    if found is None or int(found[1]) not in numbers:
        return name
    return f"layers.{numbers[int(found[1])]}.{found[2]}"


def standing_notes(imported: Imported, config: Config, alone: str | None = None) -> tuple[str, ...]:
    """What a file's reader assumed that no option answers, and where a config contradicts the file.

    A note that proposes a ``--set`` is answered by that option. A config beside the file answers
    it too, unless the file describes its layers, and the config leaves the option out or has
    another value.

    Parameters
    ----------
    alone
        How to take what the file says; None: ``lstm-cli run FILE DATA``.
    """
    if config.source == str(imported.path):
        return tuple(
            note
            for note in imported.notes
            if not (keys := _SETTING.findall(note)) or not all(_is_set(config, key) for key in keys)
        )
    certain = tuple(note for note in imported.notes if not _SETTING.search(note))
    own = description(imported)
    if own is None:
        return certain
    found = contradictions(config, own, imported)
    places = {f"model.layers.{gap.number}.{gap.key}" for gap in found} | left_out(config, own)
    assumed = tuple(
        f"{imported.path.name} alone: {note}"
        for note in imported.notes
        if any(".".join(key.split(".")[:4]) in places for key in _SETTING.findall(note))
    )
    if not found:
        return (*assumed, *certain)
    how = alone or f"lstm-cli run {_command(imported)} DATA"
    return (contradiction_note(config, own, found, imported.path, how), *assumed, *certain)


def description(imported: Imported) -> Config | None:
    """The config of a file that describes its layers; None: it does not, or not validly."""
    if not imported.describes_layers:
        return None
    try:
        return config_of(imported)
    except LstmCliError:
        return None


def _command(imported: Imported) -> str:
    """A file as CONFIG of a command, with the options that read it."""
    format, order = imported.read_options.format, imported.read_options.tmva_order
    options = [f"--from {format}"] * (format is not None)
    options += [f"--tmva-order {order}"] * (order is not None)
    return " ".join([quote(str(imported.path)), *options])


def _is_set(config: Config, dotted: str) -> bool:
    path = [int(key) if key.isdecimal() else key for key in dotted.split(".")]
    return config.where(*path).startswith("--set ")
