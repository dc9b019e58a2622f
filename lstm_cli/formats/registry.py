"""All formats: which one a file is, how to read it, how to write it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lstm_cli.cells import LSTM
from lstm_cli.engines.types import Layers, LayerSpec, RecurrentSpec, lacks_bias
from lstm_cli.errors import UsageError, WeightsError, nearest, quote
from lstm_cli.formats import foreign
from lstm_cli.formats.model import Export, Imported, ReadOptions, WriteOptions
from lstm_cli.formats.safety import check_regular
from lstm_cli.formats.sniffing import sniff
from lstm_cli.output_files import error_reason


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes
    ----------
    name, title
        As an option's value, and in words.
    suffixes
        File names that say it; the first is the usual one.
    module
        Of the codec, which has ``read(path, options)`` and ``write(path, export)``.
    writes_options
        Whether its ``write`` also takes a `WriteOptions`.
    """

    name: str
    title: str
    suffixes: tuple[str, ...]
    module: str
    writes_options: bool = False

    def read(self, path: Path, options: ReadOptions) -> Imported:
        """Read a file of this format; see `read`."""
        with np.errstate(all="ignore"):  # what is not finite is refused later
            imported: Imported = self._codec().read(path, options)
        return imported

    def write(
        self, path: Path, export: Export, options: WriteOptions | None = None
    ) -> tuple[str, ...]:
        """Write a file of this format; see `write`."""
        more = (options,) if self.writes_options else ()
        notes: tuple[str, ...] = self._codec().write(path, export, *more)
        return notes

    def _codec(self) -> Any:
        return importlib.import_module(self.module)


FORMATS = {
    format.name: format
    for format in (
        Format("native", "lstm-cli's own", (".safetensors",), "lstm_cli.formats.native_codec"),
        Format("pytorch", "PyTorch", (".pt", ".pth", ".bin"), "lstm_cli.formats.torch"),
        Format("keras", "Keras", (".keras", ".weights.h5", ".h5"), "lstm_cli.formats.keras"),
        Format("onnx", "ONNX", (".onnx",), "lstm_cli.formats.onnx", writes_options=True),
        Format("tmva", "TMVA", (".xml",), "lstm_cli.formats.tmva"),
    )
}
SYNONYMS = {"torch": "pytorch", "safetensors": "native"}


def named(name: str) -> Format:
    """The format of this name.

    Raises
    ------
    UsageError
        There is none.
    """
    key = SYNONYMS.get(name.lower(), name.lower())
    if key not in FORMATS:
        guess = nearest(key, [*FORMATS, *SYNONYMS])
        raise UsageError(
            f"{name!r} is not a format",
            expected="one of " + ", ".join(FORMATS),
            hint=f"did you mean `{guess}`?" if guess else None,
        )
    return FORMATS[key]


def by_suffix(path: str | Path) -> Format | None:
    """The format that the file's name says, or None."""
    name = Path(path).name.lower()
    for format in FORMATS.values():
        if any(name.endswith(suffix) for suffix in format.suffixes):
            return format
    return None


def read(path: str | Path, options: ReadOptions | None = None) -> Imported:
    """Read a weights file of any format, recognised by what it holds.

    Raises
    ------
    WeightsError
        Missing, of no known format, malformed, hostile, or a network that lstm-cli cannot
        represent: names the layer or node, and what about it.
    UsageError
        ``options.format`` is not a format, or options select tensors of what is no state dict.
    """
    path, options = Path(path), options or ReadOptions()
    format = format_of(path, options)
    if options.selecting is not None and format.name != "pytorch":
        raise UsageError(
            f"--{options.selecting} is for state dicts, whose tensors have names of their own",
            expected="a state dict (PyTorch)",
            found=f"{path}: {format.title}",
            hint=f"leave --{options.selecting} out: {format.title} files are read whole",
        )
    return replace(format.read(path, options), reading=options)


def format_of(path: Path, options: ReadOptions) -> Format:
    """The format that `options` name, else the one that the file holds."""
    if options.format is None:
        return recognise(path)
    check_regular(path)
    return named(options.format)


def recognise(path: Path) -> Format:
    """The format of a file, by what it holds.

    Raises
    ------
    WeightsError
        Missing, unreadable, or of no known format.
    """
    foreign.refuse(path)
    check_regular(path)
    try:
        name = sniff(path)
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"the weights file {path} cannot be read", found=error_reason(error)
        ) from None
    if name is None and path.stat().st_size == 0:
        raise WeightsError(f"the weights file {path} is empty", found="0 bytes")
    titles = ", ".join(f"{f.title} ({', '.join(f.suffixes)})" for f in FORMATS.values())
    if name is None and path.suffix.lower() in (".yaml", ".yml"):
        raise WeightsError(
            f"{path} is a config by its name, and a weights file is needed",
            expected=f"one of {titles}",
            hint=f"convert and compare take it beside the weights, as --config {quote(path)}",
        )
    if name is None:
        raise WeightsError(
            f"{path} is no weights file of a known format",
            expected=f"one of {titles}",
            hint="--from says which it is, where it is one",
        )
    return FORMATS[name]


def write(
    path: str | Path, format: str, export: Export, options: WriteOptions | None = None
) -> tuple[str, ...]:
    """Write a network in a format; what was left out because it changes no output, as notes.

    Parameters
    ----------
    options
        For a format that has a choice; others pass over it.

    Raises
    ------
    WeightsError
        The format cannot represent it: names the layer, and what about it.
    LstmCliError
        The file cannot be written. An older file stays as it was.
    """
    needed = layers_in_need_of_biases(format, export.layers)
    notes = tuple(
        f"layer {k} has no biases: written with biases of 0, which the format needs" for k in needed
    )
    return notes + named(format).write(Path(path), export.with_biases(needed), options)


def layers_in_need_of_biases(format: str, layers: Layers) -> tuple[int, ...]:
    """Layers without biases that a format holds with biases only: their indices.

    TMVA has no layer without. Elsewhere a forget gate that is always 1, by its bias, stands in
    for none.
    """
    name = named(format).name
    return tuple(
        spec.index
        for spec in layers
        if lacks_bias(spec) and (name == "tmva" or (name != "native" and _is_held_open(spec)))
    )


def _is_held_open(spec: LayerSpec) -> bool:
    cells = spec.cells if isinstance(spec, RecurrentSpec) else ()
    return any(isinstance(cell, LSTM) and not cell.use_forget_gate for cell in cells)
