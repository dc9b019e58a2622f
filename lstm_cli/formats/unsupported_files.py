"""Files of unsupported kinds: recognition by content, and a hint that helps for each kind.

Most kinds have a signature in their first bytes. Archives are recognized by their members, JSON
texts by their keys, and folders by the names in them.
"""

from __future__ import annotations

import gzip
import json
import re
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lstm_cli.errors import WeightsError, quote
from lstm_cli.formats.torch.archive import LEGACY_MAGIC
from lstm_cli.formats.torch.refused_objects import weights_file_name

MAX_JSON_BYTES = 16 << 20
MAX_FOLDER_ENTRIES = 10_000

_SAVE_KERAS = "save the original Keras model: model.save('model.keras')"
_SAVE_ANY = (
    "save the original model: in Keras with model.save('model.keras'), in PyTorch with "
    "torch.save(model.state_dict(), 'model.pt'), or as ONNX"
)
_DATA_HINT = "the config comes first, then the data, which are HDF5: lstm-cli run CONFIG DATA.h5"
_UNPACK = "unpack the archive, and name the file with the weights"
_DOWNLOAD = "download the weights file itself: this file is only a page or a pointer"


@dataclass(frozen=True)
class FileKind:
    """Kind of an unsupported file, in words, and what to do instead."""

    name: str
    hint: str | None = None


_SIGNATURES: tuple[tuple[int, bytes, FileKind], ...] = (
    (4, b"TFL3", FileKind("a TensorFlow Lite model", _SAVE_KERAS)),
    (0, b"GGUF", FileKind("a GGUF file, as llama.cpp reads it", _SAVE_ANY)),
    (0, b"\x7fELF", FileKind("a program or library of Linux (ELF)", _SAVE_ANY)),
    (0, b"MZ", FileKind("a program or library of Windows", _SAVE_ANY)),
    (0, b"\xcf\xfa\xed\xfe", FileKind("a program or library of macOS", _SAVE_ANY)),
    (
        0,
        b"\xca\xfe\xba\xbe",
        FileKind("a program or library of macOS, or a class of Java", _SAVE_ANY),
    ),
    (0, b"\0asm", FileKind("a WebAssembly module", _SAVE_ANY)),
    (0, b"!<arch>\n", FileKind("a static library", _SAVE_ANY)),
    (0, b"\x93NUMPY", FileKind("a NumPy array (.npy)", _DATA_HINT)),
    (0, b"MATLAB 5.0 MAT-file", FileKind("a MATLAB file (.mat)", _DATA_HINT)),
    (0, b"MATLAB 7.3 MAT-file", FileKind("a MATLAB file (.mat, version 7.3)", _DATA_HINT)),
    (0, b"CDF", FileKind("a NetCDF file", _DATA_HINT)),
    (0, b"PAR1", FileKind("a Parquet table", _DATA_HINT)),
    (0, b"ARROW1", FileKind("an Arrow table", _DATA_HINT)),
    (0, b"SQLite format 3\0", FileKind("an SQLite database", _DATA_HINT)),
    (0, b"root", FileKind("a ROOT file", _DATA_HINT)),
    (0, b"\x89PNG\r\n\x1a\n", FileKind("an image (PNG)")),
    (0, b"\xff\xd8\xff", FileKind("an image (JPEG)")),
    (0, b"GIF8", FileKind("an image (GIF)")),
    (0, b"II*\0", FileKind("an image (TIFF)")),
    (0, b"MM\0*", FileKind("an image (TIFF)")),
    (0, b"RIFF", FileKind("a sound or an image (RIFF)")),
    (0, b"OggS", FileKind("a sound (Ogg)")),
    (0, b"%PDF", FileKind("a PDF document")),
    (0, b"BZh", FileKind("a compressed file (bzip2)", "bunzip2 unpacks it")),
    (0, b"\xfd7zXZ\0", FileKind("a compressed file (xz)", "unxz unpacks it")),
    (0, b"\x28\xb5\x2f\xfd", FileKind("a compressed file (Zstandard)", "unzstd unpacks it")),
    (0, b"7z\xbc\xaf\x27\x1c", FileKind("an archive (7z)", _UNPACK)),
    (0, b"Rar!", FileKind("an archive (RAR)", _UNPACK)),
    (0, b"version https://git-lfs", FileKind("a pointer of Git LFS, not the file", "git lfs pull")),
)


def refuse_unsupported_file(path: str | Path) -> None:
    """Refuse a file or folder of a known kind that lstm-cli does not read as a network.

    An unreadable file passes: the reader that opens it reports the problem.

    Raises
    ------
    WeightsError
        The file is of such a kind; names the kind and what to do.
    """
    path = Path(path)
    try:
        kind = recognize(path)
    except (OSError, ValueError):
        return
    if kind is not None:
        raise WeightsError(
            f"{path} is {kind.name}, which lstm-cli does not read as a network",
            expected="a YAML config or a weights file: safetensors, PyTorch, Keras, ONNX, TMVA",
            hint=kind.hint,
        )


def recognize(path: Path) -> FileKind | None:
    """Kind of a file or folder; None if it may be a network or a config, or is of no known kind.

    Raises
    ------
    OSError, ValueError
        The path cannot be read.
    """
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(4096)
    for offset, signature, kind in _SIGNATURES:
        if head[offset : offset + len(signature)] == signature:
            return kind
    if head.startswith(b"PK"):
        return _zip(path)
    if head.startswith(b"\x1f\x8b"):
        return _gzip(path)
    if head[257:262] == b"ustar":
        return _tar(path)
    if head.startswith(b"\x80") and head[1:2] in b"\2\3\4\5":
        return _pickle(head, path)
    if head[:1] == b"\x78" and head[1:2] in (b"\x01", b"\x5e", b"\x9c", b"\xda"):
        return FileKind(
            "a compressed file (zlib), as joblib writes it", _pickle_code(path, "joblib")
        )
    return _protobuf(head, path) or _text(head, path)


def _folder(path: Path) -> FileKind | None:
    names = _entries(path)
    if "saved_model.pb" in names or "keras_metadata.pb" in names:
        return FileKind("a TensorFlow SavedModel", _SAVE_KERAS)
    if path.suffix.lower() in (".mlpackage", ".mlmodelc") or "coremldata.bin" in names:
        return FileKind("a Core ML model", _SAVE_ANY)
    if ".zgroup" in names or "zarr.json" in names:
        return FileKind("a Zarr store", _DATA_HINT)
    if "data.pkl" in names and "data" in names:
        hint = "zip the folder again: torch.save writes a zip archive"
        return FileKind("an unpacked file of torch.save", hint)
    if {"model.safetensors", "config.yaml"} <= names:
        best = quote(path / "model.safetensors")
        return FileKind("the folder of a training run", f"name the network in the folder: {best}")
    weights = [
        n for n in sorted(names) if n.endswith((".safetensors", ".bin", ".pt", ".keras", ".onnx"))
    ]
    if weights and not any(name.endswith((".yaml", ".yml")) for name in names):
        return FileKind("a folder", f"name the file in the folder: {quote(path / weights[0])}")
    return None


def _entries(path: Path) -> set[str]:
    return {entry.name for entry in islice(path.iterdir(), MAX_FOLDER_ENTRIES)}


def _zip(path: Path) -> FileKind | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # struct, zipfile, memory: the codec reports the damage
        return None
    last = {name.rsplit("/", 1)[-1] for name in names}
    if "data.pkl" in last or any(name.endswith(".weights.h5") for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return FileKind(
            "a NumPy archive (.npz)",
            "if the arrays have the names of a state dict: import numpy; from safetensors.numpy "
            f"import save_file; save_file(dict(numpy.load({str(path)!r})), "
            f"{str(path.with_suffix('.safetensors'))!r})",
        )
    if "saved_model.pb" in last:
        return FileKind("a zip archive of a TensorFlow SavedModel", _SAVE_KERAS)
    if "archive_format" in last or "models/model.json" in names:
        command = (
            f"torch.save(torch.export.load({str(path)!r}).state_dict, {weights_file_name(path)!r})"
        )
        return FileKind("a torch.export program", command)
    if "coremldata.bin" in last or any(".mlpackage/" in name for name in names):
        return FileKind("a zip archive of a Core ML model", _SAVE_ANY)
    if "[Content_Types].xml" in names:
        return FileKind("an office document", _DATA_HINT)
    return _archive_of_files(names, "a zip archive") if "config.json" not in names else None


def _archive_of_files(names: Iterable[str], what: str) -> FileKind:
    """Archive of other files; the hint names the first one that may hold a network."""
    endings = (".safetensors", ".pt", ".pth", ".ckpt", ".keras", ".h5", ".onnx", ".bin", ".xml")
    inside = next((name for name in names if name.lower().endswith(endings)), None)
    return FileKind(what, f"unpack the archive, and name {inside}" if inside else _UNPACK)


def _gzip(path: Path) -> FileKind:
    try:
        with gzip.open(path) as file:
            head = file.read(512)
    except Exception:  # zlib, EOF: damaged, but still a compressed file
        head = b""
    if head[257:262] == b"ustar":
        return FileKind("a compressed archive (tar, gzip)", f"tar -xzf {quote(path)} unpacks it")
    return FileKind("a compressed file (gzip)", "gunzip unpacks it")


def _tar(path: Path) -> FileKind:
    names = []
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                names.append(member.name)
                if len(names) == 100:
                    break
    except Exception:  # damaged, but still an archive
        pass
    return _archive_of_files(names, "an archive (tar)")


def _pickle(head: bytes, path: Path) -> FileKind | None:
    """Bare pickle of another tool; the PyTorch codec handles its own old files."""
    if LEGACY_MAGIC in head:
        return None
    for package in (b"joblib", b"sklearn", b"pandas", b"numpy"):
        if re.search(rb"\b" + package + rb"[.\w]*\n|[\x8c\x8d].{1,8}?" + package, head, re.DOTALL):
            name = package.decode()
            return FileKind(f"a Python pickle of {name} objects", _pickle_code(path, name))
    return None


def _pickle_code(path: Path, package: str) -> str:
    load = f"pathlib, pickle; found = pickle.loads({_path(path)}.read_bytes())"
    if package == "joblib":
        load = f"joblib; found = joblib.load({str(path)!r})"
    return (
        "in Python, if the file holds a dict of arrays with the names of a state dict: import "
        f"{load}; from safetensors.numpy import save_file; "
        f"save_file(found, {str(path.with_suffix('.safetensors'))!r}); loading runs code that "
        "the file names: only for a file you trust"
    )


def _path(path: Path) -> str:
    return f"pathlib.Path({str(path)!r})"


def _protobuf(head: bytes, path: Path) -> FileKind | None:
    """Model whose message starts like ONNX's, with a message instead of a name in field 2."""
    match = re.match(rb"\x08[\x01-\x7f]\x12[\x80-\xff]*[\x00-\x7f]\n", head)
    if match is not None:
        if head[1] == 1 and path.suffix.lower() != ".mlmodel":
            return FileKind("a TensorFlow SavedModel", _SAVE_KERAS)
        return FileKind("a Core ML model", _SAVE_ANY)
    if head.startswith(b"\n") and re.search(rb"\x12[\x01-\x7f](Placeholder|Const)", head):
        return FileKind("a frozen graph of TensorFlow", _SAVE_KERAS)
    return None


def _text(head: bytes, path: Path) -> FileKind | None:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if re.match(rb"(<!doctype html|<html)", start, re.IGNORECASE):
        return FileKind("an HTML page", _DOWNLOAD)
    if re.match(rb"(<\?xml[^>]*>\s*)?<net\s", start):
        return FileKind("a model of OpenVINO", _SAVE_ANY)
    if start.startswith((b"{", b"[")):
        return _json(path)
    if path.suffix.lower() in (".csv", ".tsv") or _is_table(head):
        return FileKind("a table of text (CSV)", _DATA_HINT)
    return None


def _is_table(head: bytes) -> bool:
    """Whether the first lines hold numbers between equally many commas, semicolons or tabs."""
    lines = head.splitlines()[:5]
    if len(lines) < 3:
        return False
    for comma in (b",", b";", b"\t"):
        counts = {line.count(comma) for line in lines[:3]}
        if counts != {0} and len(counts) == 1:
            cells = lines[1].split(comma)
            return all(re.fullmatch(rb"\s*[-+\d.eE]*\s*", cell) for cell in cells[1:])
    return False


def _json(path: Path) -> FileKind | None:
    """Kind of a JSON text from another tool; None: the text may be a config."""
    if path.stat().st_size > MAX_JSON_BYTES:
        return FileKind("a large JSON text", _SAVE_ANY)
    try:
        value: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or "model" in value:
        return None
    keys = value.keys()
    if isinstance(value.get("state_dict"), dict):
        return FileKind(
            "a state dict as JSON",
            "import json, pathlib, torch; torch.save({k: torch.tensor(v) for k, v in json.loads("
            f"{_path(path)}.read_text())['state_dict'].items()}}, {weights_file_name(path)!r})",
        )
    if {"architecture", "config", "weights"} <= keys:
        hint = (
            "the trainer's .ckpt holds the weights by name; this file holds one list without names"
        )
        return FileKind("a Neural Amp Modeler file (.nam)", hint)
    if "in_shape" in keys and "layers" in keys:
        return FileKind("an RTNeural model", _SAVE_ANY)
    if "class_name" in keys and "config" in keys:
        hint = (
            "with a file of its weights: import keras, pathlib; model = "
            f"keras.models.model_from_json({_path(path)}.read_text()); "
            "model.load_weights(FILE); model.save('model.keras')"
        )
        return FileKind("a Keras model's description, without its weights", hint)
    if "modelTopology" in keys or "weightsManifest" in keys:
        return FileKind("a TensorFlow.js model", _SAVE_KERAS)
    if "weight_map" in keys and isinstance(value["weight_map"], dict):
        return FileKind("an index of safetensors files, without the weights", _SAVE_ANY)
    if "nbformat" in keys:
        return FileKind("a Jupyter notebook")
    if "architectures" in keys or "model_type" in keys:
        return FileKind("a description of a Hugging Face model", "name the weights file next to it")
    return None
