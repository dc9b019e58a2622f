"""A file given as DATA that is no HDF5: what it is, by its first bytes, and what to do with it."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lstm_cli.data.rewriting import made_of, text
from lstm_cli.errors import DataError, quote
from lstm_cli.output_files import PRODUCER

HEAD_BYTES = 4096
LARGEST_HEADER = 16 << 20
"""Bytes of a safetensors header that are looked into."""
CONFIGS = (".yaml", ".yml")
TABLES = (".csv", ".tsv", ".txt", ".dat")
AS_CONFIG = "it stands in the place of CONFIG"

PACKED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
}
"""How compressed files begin."""
OTHERS = {
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3\0": "a database of SQLite",
    b"MATLAB 5.0 MAT-file": "a MAT-file of MATLAB's older format",
    b"%PDF": "a PDF document",
    b"\xd0\xcf\x11\xe0": "an Excel or other Office document",
    b"RIFF": "a sound or video file (RIFF)",
}
"""How other files begin, and what they are."""
READERS = {
    "a Parquet file": "pandas.read_parquet",
    "an Arrow file": "pandas.read_feather",
    "a MAT-file of MATLAB's older format": "scipy.io.loadmat",
    "an Excel workbook": "pandas.read_excel",
}
"""What reads such files in Python."""


@dataclass(frozen=True)
class Kind:
    """A kind of file: what it is, what was found, and what to do with it."""

    what: str
    hint: str | None
    found: str | None = None


def refuse(path: str, head: bytes) -> DataError:
    """The error for a file that is no HDF5; `head` is how it begins."""
    kind = _kind(path, head)
    if kind is None:
        kind = Kind("no HDF5 file", None, f"a file that begins with {head[:8]!r}")
    return DataError(
        f"{path} is {kind.what}",
        expected="an HDF5 file",
        found=kind.found,
        where=path,
        hint=kind.hint,
    )


def refuse_folder(path: str) -> DataError:
    """The error for a folder in the place of DATA."""
    hint, what = None, "a folder"
    names = sorted(os.listdir(path)) if os.access(path, os.R_OK | os.X_OK) else []
    files = [name for name in names if name.endswith((".h5", ".hdf5", ".nc", ".mat"))]
    if "model.safetensors" in names and "config.yaml" in names:
        what = "the folder of a training run"
        hint = _as_config(os.path.join(path, "model.safetensors"))
    elif files:
        more = " ..." if len(files) > 1 else ""
        hint = f"name its files: {quote(os.path.join(path, files[0]))}{more}"
    return DataError(f"{path} is {what}", expected="an HDF5 file", where=path, hint=hint)


def is_config_or_weights(path: str) -> bool:
    """Whether a file can stand in the place of CONFIG, as far as its name and beginning tell."""
    if not os.path.isfile(path):
        return False
    if path.lower().endswith(CONFIGS):
        return True
    try:
        with open(path, "rb") as file:
            kind = _kind(path, file.read(HEAD_BYTES))
    except OSError:
        return False
    return kind is not None and kind.hint is not None and AS_CONFIG in kind.hint


def _as_config(path: str) -> str:
    return f"{AS_CONFIG}: lstm-cli run {quote(path)} DATA"


def _kind(path: str, head: bytes) -> Kind | None:
    """What a file is; None if nothing tells."""
    if head.startswith(b"PK\3\4"):
        return _of_archive(path)
    if head[8:9] == b"{":
        return _of_safetensors(path, int.from_bytes(head[:8], "little"))
    if head.startswith(b"\x93NUMPY"):
        return Kind("an array of NumPy", made_of(path, f'["inputs"] = np.load({text(path)})'))
    packed = next((name for start, name in PACKED.items() if head.startswith(start)), None)
    if packed is None and head[257:262] == b"ustar":
        packed = "tar"
    if packed is not None:
        return Kind(f"packed ({packed})", "unpack it first")
    for start, what in OTHERS.items():
        if head.startswith(start):
            return Kind(what, _read_by(what))
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return Kind("a pickle of Python", "load it in Python; h5py writes arrays as an HDF5 file")
    if path.lower().endswith((".onnx", ".pt", ".pth", ".keras")):
        return Kind("a network's weights", _as_config(path))
    return _of_text(path, head)


def _read_by(what: str) -> str | None:
    reader = READERS.get(what)
    return None if reader is None else f"{reader} reads it in Python; h5py writes it as HDF5"


def _of_archive(path: str) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # damaged: what it was is not known
        return Kind("a damaged zip archive", None)
    if names and all(name.endswith(".npy") for name in names):
        arrays = ", ".join(name.removesuffix(".npy") for name in names[:8])
        hint = made_of(path, f".update(np.load({text(path)}))")
        return Kind("an archive of NumPy's arrays", hint, f"arrays {arrays}")
    if any(name.rsplit("/", 1)[-1] == "data.pkl" for name in names):
        return Kind("a file of PyTorch", _as_config(path))
    if "config.json" in names or any(name.endswith(".weights.h5") for name in names):
        return Kind("a model of Keras", _as_config(path))
    if "[Content_Types].xml" in names:
        return Kind("an Excel workbook", _read_by("an Excel workbook"))
    return Kind("a zip archive", "unpack it first", _listed(names))


def _of_safetensors(path: str, size: int) -> Kind | None:
    """Weights, or the checkpoint of a training run."""
    try:
        with open(path, "rb") as file:
            file.seek(8)
            header: dict[str, Any] = json.loads(file.read(min(size, LARGEST_HEADER)))
        texts = header.pop("__metadata__", None) or {}
        shapes = [f"{name} {tuple(one['shape'])}" for name, one in header.items()]
        own, training = texts.get("format") == PRODUCER, "training" in texts
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return None
    if own and training:
        folder = quote(os.path.dirname(path) or ".")
        hint = f"lstm-cli train CONFIG DATA --output {folder} --resume goes on with its run"
        return Kind("the checkpoint of a training run", hint, _listed(shapes))
    scaled = " of a network that normalizes its inputs" if "inputs.mean" in header else ""
    what = f"lstm-cli's weights{scaled}" if own else "a file of weights (safetensors)"
    return Kind(what, _as_config(path), _listed(shapes))


def _of_text(path: str, head: bytes) -> Kind | None:
    """What a text is: a config, metrics, numbers in columns."""
    try:
        start = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # else a letter is cut in two
            return None
        start = head[: error.start].decode()
    if "\0" in start:
        return None
    lines = [line for line in start.splitlines() if line.strip()]
    if path.lower().endswith(CONFIGS) or re.search(r"^model:\s*$", start, re.MULTILINE):
        return Kind("a config", f"{AS_CONFIG}: lstm-cli run {quote(path)} DATA")
    if start.startswith('{"epoch":'):
        model, hint = os.path.join(os.path.dirname(path), "model.safetensors"), None
        if os.path.isfile(model):
            hint = f"lstm-cli run {quote(model)} DATA runs the network of that run"
        return Kind("the metrics of a training run, one line an epoch", hint, lines[0][:72])
    if start.lstrip().startswith("<MethodSetup") or "<MethodSetup" in start[:400]:
        return Kind("a network of TMVA", _as_config(path))
    if path.lower().endswith(TABLES) and lines:
        return _of_columns(path, lines)
    if start.lstrip()[:1] in ("{", "["):
        return Kind("JSON", None)
    return None


def _of_columns(path: str, lines: list[str]) -> Kind:
    delimiter = next((mark for mark in (",", ";", "\t") if mark in lines[-1]), None)
    try:
        [float(cell) for cell in lines[0].split(delimiter)]
        names = 0
    except ValueError:
        names = 1
    apart = "" if delimiter is None else f", delimiter={text(delimiter)}"
    read = f"np.loadtxt({text(path)}{apart}, skiprows={names}, ndmin=2)"
    hint = made_of(path, f'["inputs"] = {read}') + ", if all columns are numbers"
    return Kind("a table in plain text", hint, lines[0][:72])


def _listed(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every[:4]) + (", ..." if len(every) > 4 else "")
