"""Files that hold no network lstm-cli reads: what they are, by what they hold, and what helps.

First bytes tell most of them, members an archive, keys a JSON text, names a folder.
"""

from __future__ import annotations

import gzip
import json
import re
import tarfile
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lstm_cli.errors import WeightsError, quote
from lstm_cli.formats.torch.archive import LEGACY
from lstm_cli.formats.torch.foreign_values import renamed

LARGEST_JSON = 16 << 20
LARGEST_NUMBER_OF_ENTRIES = 10_000

_KERAS = "save the Keras model that it was made from: model.save('model.keras')"
_EITHER = (
    "save the model that it was made from, in Keras with model.save('model.keras'), in PyTorch "
    "with torch.save(model.state_dict(), 'model.pt'), or as ONNX"
)
_TABLE = "the config comes first, then the data, which are HDF5: lstm-cli run CONFIG DATA.h5"
_UNPACK = "unpack it, and name the file in it that holds the weights"
_LINK = "download the file itself: this is a page or a pointer in its place"


@dataclass(frozen=True)
class Kind:
    """What a file is, and what to do today."""

    name: str
    hint: str | None = None


_SIGNATURES: tuple[tuple[int, bytes, Kind], ...] = (
    (4, b"TFL3", Kind("a TensorFlow Lite model", _KERAS)),
    (0, b"GGUF", Kind("a GGUF file, as llama.cpp reads it", _EITHER)),
    (0, b"\x7fELF", Kind("a program or library of Linux (ELF)", _EITHER)),
    (0, b"MZ", Kind("a program or library of Windows", _EITHER)),
    (0, b"\xcf\xfa\xed\xfe", Kind("a program or library of macOS", _EITHER)),
    (0, b"\xca\xfe\xba\xbe", Kind("a program or library of macOS, or a class of Java", _EITHER)),
    (0, b"\0asm", Kind("a WebAssembly module", _EITHER)),
    (0, b"!<arch>\n", Kind("a static library", _EITHER)),
    (0, b"\x93NUMPY", Kind("a NumPy array (.npy)", _TABLE)),
    (0, b"MATLAB 5.0 MAT-file", Kind("a MATLAB file (.mat)", _TABLE)),
    (0, b"MATLAB 7.3 MAT-file", Kind("a MATLAB file (.mat, version 7.3)", _TABLE)),
    (0, b"CDF", Kind("a NetCDF file", _TABLE)),
    (0, b"PAR1", Kind("a Parquet table", _TABLE)),
    (0, b"ARROW1", Kind("an Arrow table", _TABLE)),
    (0, b"SQLite format 3\0", Kind("an SQLite database", _TABLE)),
    (0, b"root", Kind("a ROOT file", _TABLE)),
    (0, b"\x89PNG\r\n\x1a\n", Kind("an image (PNG)")),
    (0, b"\xff\xd8\xff", Kind("an image (JPEG)")),
    (0, b"GIF8", Kind("an image (GIF)")),
    (0, b"II*\0", Kind("an image (TIFF)")),
    (0, b"MM\0*", Kind("an image (TIFF)")),
    (0, b"RIFF", Kind("a sound or an image (RIFF)")),
    (0, b"OggS", Kind("a sound (Ogg)")),
    (0, b"%PDF", Kind("a PDF document")),
    (0, b"BZh", Kind("a compressed file (bzip2)", "bunzip2 unpacks it")),
    (0, b"\xfd7zXZ\0", Kind("a compressed file (xz)", "unxz unpacks it")),
    (0, b"\x28\xb5\x2f\xfd", Kind("a compressed file (Zstandard)", "unzstd unpacks it")),
    (0, b"7z\xbc\xaf\x27\x1c", Kind("an archive (7z)", _UNPACK)),
    (0, b"Rar!", Kind("an archive (RAR)", _UNPACK)),
    (0, b"version https://git-lfs", Kind("a pointer of Git LFS, not the file", "git lfs pull")),
)


def refuse(path: str | Path) -> None:
    """Raise WeightsError if the file or folder is of a known kind that holds no such network.

    What cannot be read passes: it is said by what opens it.
    """
    path = Path(path)
    try:
        found = recognize(path)
    except (OSError, ValueError):
        return
    if found is not None:
        raise WeightsError(
            f"{path} is {found.name}, which lstm-cli does not read as a network",
            expected="a YAML config or a weights file: safetensors, PyTorch, Keras, ONNX, TMVA",
            hint=found.hint,
        )


def recognize(path: Path) -> Kind | None:
    """What a file or folder is; None: it may be a network or a config, or is of no known kind.

    Raises
    ------
    OSError, ValueError
        It cannot be read.
    """
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(4096)
    for place, signature, kind in _SIGNATURES:
        if head[place : place + len(signature)] == signature:
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
        return Kind("a compressed file (zlib), as joblib writes it", _pickled(path, "joblib"))
    return _protobuf(head, path) or _text(head, path)


def _folder(path: Path) -> Kind | None:
    names = _entries(path)
    if "saved_model.pb" in names or "keras_metadata.pb" in names:
        return Kind("a TensorFlow SavedModel", _KERAS)
    if path.suffix.lower() in (".mlpackage", ".mlmodelc") or "coremldata.bin" in names:
        return Kind("a Core ML model", _EITHER)
    if ".zgroup" in names or "zarr.json" in names:
        return Kind("a Zarr store", _TABLE)
    if "data.pkl" in names and "data" in names:
        hint = "zip the folder again: torch.save's file is a zip archive of it"
        return Kind("an unpacked file of torch.save", hint)
    if {"model.safetensors", "config.yaml"} <= names:
        best = quote(path / "model.safetensors")
        return Kind("the folder of a training run", f"name the network in it: {best}")
    weights = [
        n for n in sorted(names) if n.endswith((".safetensors", ".bin", ".pt", ".keras", ".onnx"))
    ]
    if weights and not any(name.endswith((".yaml", ".yml")) for name in names):
        return Kind("a folder", f"name the file in it: {quote(path / weights[0])}")
    return None


def _entries(path: Path) -> set[str]:
    found: set[str] = set()
    for entry in path.iterdir():
        found.add(entry.name)
        if len(found) == LARGEST_NUMBER_OF_ENTRIES:
            break
    return found


def _zip(path: Path) -> Kind | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # struct, zipfile, memory: the codec says what is wrong with it
        return None
    last = {name.rsplit("/", 1)[-1] for name in names}
    if "data.pkl" in last or any(name.endswith(".weights.h5") for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return Kind(
            "a NumPy archive (.npz)",
            "where its arrays have the names of a state dict: import numpy; from safetensors.numpy "
            f"import save_file; save_file(dict(numpy.load({str(path)!r})), "
            f"{str(path.with_suffix('.safetensors'))!r})",
        )
    if "saved_model.pb" in last:
        return Kind("a zip archive of a TensorFlow SavedModel", _KERAS)
    if "archive_format" in last or "models/model.json" in names:
        taken = f"torch.save(torch.export.load({str(path)!r}).state_dict, {renamed(path)!r})"
        return Kind("a program of torch.export", taken)
    if "coremldata.bin" in last or any(".mlpackage/" in name for name in names):
        return Kind("a zip archive of a Core ML model", _EITHER)
    if "[Content_Types].xml" in names:
        return Kind("a document of an office program", _TABLE)
    return _packed(names, "a zip archive") if "config.json" not in names else None


def _packed(names: Iterable[str], what: str) -> Kind:
    """An archive of other files, those that may hold a network named."""
    endings = (".safetensors", ".pt", ".pth", ".ckpt", ".keras", ".h5", ".onnx", ".bin", ".xml")
    inside = next((name for name in names if name.lower().endswith(endings)), None)
    return Kind(what, f"unpack it, and name {inside} in it" if inside else _UNPACK)


def _gzip(path: Path) -> Kind:
    try:
        with gzip.open(path) as file:
            head = file.read(512)
    except Exception:  # zlib, EOF: damaged, and compressed all the same
        head = b""
    if head[257:262] == b"ustar":
        return Kind("a compressed archive (tar, gzip)", f"tar -xzf {quote(path)} unpacks it")
    return Kind("a compressed file (gzip)", "gunzip unpacks it")


def _tar(path: Path) -> Kind:
    names = []
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                names.append(member.name)
                if len(names) == 100:
                    break
    except Exception:  # damaged, and an archive all the same
        pass
    return _packed(names, "an archive (tar)")


def _pickle(head: bytes, path: Path) -> Kind | None:
    """A bare pickle of another tool; PyTorch's old files are its codec's to tell."""
    if LEGACY in head:
        return None
    for package in (b"joblib", b"sklearn", b"pandas", b"numpy"):
        if re.search(rb"\b" + package + rb"[.\w]*\n|[\x8c\x8d].{1,8}?" + package, head, re.DOTALL):
            name = package.decode()
            return Kind(f"a Python pickle of {name}'s objects", _pickled(path, name))
    return None


def _pickled(path: Path, package: str) -> str:
    load = f"pathlib, pickle; found = pickle.loads({_path(path)}.read_bytes())"
    if package == "joblib":
        load = f"joblib; found = joblib.load({str(path)!r})"
    return (
        "in Python, where it is a dict of arrays with the names of a state dict: import "
        f"{load}; from safetensors.numpy import save_file; "
        f"save_file(found, {str(path.with_suffix('.safetensors'))!r}); it runs what the file "
        "names: only for a file you trust"
    )


def _path(path: Path) -> str:
    return f"pathlib.Path({str(path)!r})"


def _protobuf(head: bytes, path: Path) -> Kind | None:
    """Models whose message begins like ONNX's: a version, then a message instead of a name."""
    match = re.match(rb"\x08[\x01-\x7f]\x12[\x80-\xff]*[\x00-\x7f]\n", head)
    if match is not None:
        if head[1] == 1 and path.suffix.lower() != ".mlmodel":
            return Kind("a TensorFlow SavedModel", _KERAS)
        return Kind("a Core ML model", _EITHER)
    if head.startswith(b"\n") and re.search(rb"\x12[\x01-\x7f](Placeholder|Const)", head):
        return Kind("a frozen graph of TensorFlow", _KERAS)
    return None


def _text(head: bytes, path: Path) -> Kind | None:
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if re.match(rb"(<!doctype html|<html)", start, re.IGNORECASE):
        return Kind("an HTML page", _LINK)
    if re.match(rb"(<\?xml[^>]*>\s*)?<net\s", start):
        return Kind("a model of OpenVINO", _EITHER)
    if start.startswith((b"{", b"[")):
        return _json(path)
    if path.suffix.lower() in (".csv", ".tsv") or _is_table(head):
        return Kind("a table of text (CSV)", _TABLE)
    return None


def _is_table(head: bytes) -> bool:
    """Whether the first lines are of numbers between as many commas, semicolons or tabs."""
    lines = head.splitlines()[:5]
    if len(lines) < 3:
        return False
    for comma in (b",", b";", b"\t"):
        counts = {line.count(comma) for line in lines[:3]}
        if counts != {0} and len(counts) == 1:
            cells = lines[1].split(comma)
            return all(re.fullmatch(rb"\s*[-+\d.eE]*\s*", cell) for cell in cells[1:])
    return False


def _json(path: Path) -> Kind | None:
    """A description of a network of another tool; None: it may be a config."""
    if path.stat().st_size > LARGEST_JSON:
        return Kind("a large JSON text", _EITHER)
    try:
        value: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or "model" in value:
        return None
    keys = value.keys()
    if isinstance(value.get("state_dict"), dict):
        return Kind(
            "a state dict as JSON",
            "import json, pathlib, torch; torch.save({k: torch.tensor(v) for k, v in json.loads("
            f"{_path(path)}.read_text())['state_dict'].items()}}, {renamed(path)!r})",
        )
    if {"architecture", "config", "weights"} <= keys:
        hint = (
            "the trainer's .ckpt holds the weights by their names; here they are one list without"
        )
        return Kind("a Neural Amp Modeler file (.nam)", hint)
    if "in_shape" in keys and "layers" in keys:
        return Kind("a model of RTNeural", _EITHER)
    if "class_name" in keys and "config" in keys:
        hint = (
            "with the weights: import keras, pathlib; model = keras.models.model_from_json("
            f"{_path(path)}.read_text()); "
            "model.load_weights(FILE); model.save('model.keras')"
        )
        return Kind("a Keras model's description, without its weights", hint)
    if "modelTopology" in keys or "weightsManifest" in keys:
        return Kind("a model of TensorFlow.js", _KERAS)
    if "weight_map" in keys and isinstance(value["weight_map"], dict):
        return Kind("an index of safetensors files, without the weights", _EITHER)
    if "nbformat" in keys:
        return Kind("a Jupyter notebook")
    if "architectures" in keys or "model_type" in keys:
        return Kind("a description of a Hugging Face model", "name the weights file beside it")
    return None
