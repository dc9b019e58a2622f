"""Table of all formats: detecting, reading and writing weights files."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lstm_cli.engines.types import Layers, LayerSpec, RecurrentSpec, lacks_bias
from lstm_cli.errors import UsageError, WeightsError, nearest, quote
from lstm_cli.formats import unsupported_files
from lstm_cli.formats.capabilities import check_cells
from lstm_cli.formats.detection import detect_format_name
from lstm_cli.formats.gates import lacks_forget_gate
from lstm_cli.formats.interchange import Export, Imported, ReadOptions, WriteOptions
from lstm_cli.formats.limits import check_regular
from lstm_cli.output_files import error_reason


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes
    ----------
    name, title
        Value of the options that name the format, and its name in words.
    suffixes
        Suffixes of its files; the first is the usual one.
    reader, writer
        Functions ``(path, options)`` and ``(path, export)``, as ``module:function``.
    writes_options
        Whether the writer also takes a `WriteOptions`.
    """

    name: str
    title: str
    suffixes: tuple[str, ...]
    reader: str
    writer: str
    writes_options: bool = False

    def read(self, path: Path, options: ReadOptions) -> Imported:
        """Read a file of this format; see `read`."""
        with np.errstate(all="ignore"):  # values that are not finite are refused later
            imported: Imported = _load(self.reader)(path, options)
        return imported

    def write(
        self, path: Path, export: Export, options: WriteOptions | None = None
    ) -> tuple[str, ...]:
        """Write a file of this format; see `write`."""
        writer = _load(self.writer)
        notes: tuple[str, ...] = (
            writer(path, export, options) if self.writes_options else writer(path, export)
        )
        return notes


def _load(function: str) -> Any:
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)


def _package_format(
    name: str, title: str, suffixes: tuple[str, ...], *, writes_options: bool = False
) -> Format:
    package = f"lstm_cli.formats.{'torch' if name == 'pytorch' else name}"
    return Format(
        name, title, suffixes, f"{package}.reader:read", f"{package}.writer:write", writes_options
    )


FORMATS = {
    format.name: format
    for format in (
        Format(
            "native",
            "lstm-cli's own",
            (".safetensors",),
            reader="lstm_cli.formats.native:read_network",
            writer="lstm_cli.formats.native:write_network",
        ),
        _package_format("pytorch", "PyTorch", (".pt", ".pth", ".bin")),
        _package_format("keras", "Keras", (".keras", ".weights.h5", ".h5")),
        _package_format("onnx", "ONNX", (".onnx",), writes_options=True),
        _package_format("tmva", "TMVA", (".xml",)),
    )
}
"""All formats by name; a new one is a package with `reader.read` and `writer.write`, and a row."""
SYNONYMS = {"torch": "pytorch", "safetensors": "native"}


def format_named(name: str) -> Format:
    """Format of a name, such as ``keras`` or the synonym ``torch``.

    Raises
    ------
    UsageError
        No format has this name.
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


def format_by_suffix(path: str | Path) -> Format | None:
    """Format of a file's suffix; None if no format has it."""
    name = Path(path).name.lower()
    for format in FORMATS.values():
        if any(name.endswith(suffix) for suffix in format.suffixes):
            return format
    return None


def read(path: str | Path, options: ReadOptions | None = None) -> Imported:
    """Read a weights file of any format, detected from its content.

    Raises
    ------
    WeightsError
        The file is missing, of no known format, malformed or hostile. Or it holds a network that
        lstm-cli cannot represent; the error names the layer or node and the option.
    UsageError
        ``options.format`` is not a format, or options select tensors and the file holds no
        state dict.
    """
    path, options = Path(path), options or ReadOptions()
    format = format_of(path, options)
    if options.selecting is not None and format.name != "pytorch":
        raise UsageError(
            f"--{options.selecting} selects tensors of a state dict only",
            expected="a state dict (PyTorch)",
            found=f"{path}: {format.title}",
            hint=f"leave --{options.selecting} out: {format.title} files are read whole",
        )
    return replace(format.read(path, options), read_options=options)


def format_of(path: Path, options: ReadOptions) -> Format:
    """Format that `options` name, otherwise the format of the file's content."""
    if options.format is None:
        return detect_format(path)
    check_regular(path)
    return format_named(options.format)


def detect_format(path: Path) -> Format:
    """Format of a file's content.

    Raises
    ------
    WeightsError
        The file is missing, unreadable, or of no known format.
    """
    unsupported_files.refuse_unsupported_file(path)
    check_regular(path)
    try:
        name = detect_format_name(path)
    except (OSError, ValueError) as error:
        raise WeightsError(
            f"the weights file {path} cannot be read", found=error_reason(error)
        ) from None
    if name is None and path.stat().st_size == 0:
        raise WeightsError(f"the weights file {path} is empty", found="0 bytes")
    titles = ", ".join(f"{f.title} ({', '.join(f.suffixes)})" for f in FORMATS.values())
    if name is None and path.suffix.lower() in (".yaml", ".yml"):
        raise WeightsError(
            f"{path} is by its name a config, not a weights file",
            expected=f"one of {titles}",
            hint=f"convert and compare take a config as --config {quote(path)}",
        )
    if name is None:
        raise WeightsError(
            f"{path} is not a weights file of a known format",
            expected=f"one of {titles}",
            hint="if the file has one of these formats, --from FORMAT names the format",
        )
    return FORMATS[name]


def write(
    path: str | Path, format: str, export: Export, options: WriteOptions | None = None
) -> tuple[str, ...]:
    """Write a network in a format; the notes name parts left out that change no output.

    Parameters
    ----------
    options
        Inputs and outputs of the model; formats without a choice ignore it.

    Raises
    ------
    WeightsError
        The format cannot represent the network; the error names the layer and the option.
    LstmCliError
        The file cannot be written. An older file is kept.
    """
    chosen = format_named(format)
    if chosen.name != "native":
        check_cells(chosen.title, export.layers)
    needed = layers_needing_biases(format, export.layers)
    notes = tuple(
        f"layer {k} has no biases: written with biases of 0, which the format needs" for k in needed
    )
    return notes + chosen.write(Path(path), export.with_biases(needed), options)


def layers_needing_biases(format: str, layers: Layers) -> tuple[int, ...]:
    """Indices of layers without biases that a format can only hold with biases.

    TMVA has biases in every layer. In other formats a layer without a forget gate is written
    with a gate that its bias keeps at 1.
    """
    name = format_named(format).name
    return tuple(
        spec.index
        for spec in layers
        if lacks_bias(spec) and (name == "tmva" or (name != "native" and _lacks_forget_gate(spec)))
    )


def _lacks_forget_gate(spec: LayerSpec) -> bool:
    return isinstance(spec, RecurrentSpec) and any(map(lacks_forget_gate, spec.cells))
