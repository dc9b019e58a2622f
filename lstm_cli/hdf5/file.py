"""Opening an HDF5 file by its DATA argument, and naming what a file is that is no HDF5."""

from __future__ import annotations

import json
import os
import re
import stat
import weakref
import zipfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import h5py

from lstm_cli.errors import DataError, in_yaml, is_memory, printable, quote, short_of_memory
from lstm_cli.hdf5.dataset import CHUNK_CACHE_BYTES
from lstm_cli.hdf5.group import Folder
from lstm_cli.hdf5.heap_check import SIZES, CheckedFile, Guard
from lstm_cli.hdf5.limits import H5_ERRORS, reading
from lstm_cli.hdf5.writing import made_of, text
from lstm_cli.overwriting import PRODUCER

HEADERS = {
    b"MATLAB 7.3 MAT-file": "MATLAB",
    b"HDF5-based Julia Data Format": "Julia",
    b"Julia data file (HDF5)": "Julia",
}
"""How the block in front of an HDF5 file begins, and what wrote it."""

CHUNK_SLOTS = 12_421
"""Chunks of a dataset that can be held at once; a prime, as HDF5 asks for."""


def split_argument(argument: str) -> tuple[str, str]:
    """File and group of a DATA argument; the group is ``/`` if none is named.

    Splits at the last ``:/``, never after a drive letter, and not at all where a file of the
    whole name exists.
    """
    at = argument.rfind(":/")
    drive = at == 1 and argument[0].isalpha()
    if at <= 0 or drive or os.path.isfile(argument):
        return argument, "/"
    return argument[:at], argument[at + 1 :]


class Hdf5File:
    """A file open for reading, as a context manager.

    Parameters
    ----------
    argument
        ``FILE.h5`` or ``FILE.h5:/group``.
    allow_external
        Follow what leads out of the file; None: it cannot be allowed.
    transpose
        Read datasets with their axes reversed.

    Attributes
    ----------
    folder
        The group that was named, or the root.
    root
        The root group.

    Raises
    ------
    DataError
        It is missing, no HDF5, damaged, locked, or has no such group.
    """

    def __init__(
        self,
        argument: str,
        *,
        allow_external: bool | None = False,
        transpose: bool = False,
        _others: dict[str, Hdf5File] | None = None,
    ) -> None:
        self.path, group = split_argument(argument)
        self._options = {
            "allow_external": allow_external is True,
            "optional": allow_external is not None,
            "transpose": transpose,
        }
        self._others: dict[str, Hdf5File] = {} if _others is None else _others
        self._native: Any = None
        head = _need_readable(self.path)
        self._source, self._handle = _open(self.path)
        # HDF5 closes what is left open after Python has ended, and crashes: it calls Python then.
        weakref.finalize(self, _close, self._handle)
        try:
            self.root = Folder(self._handle, self.path, "/", self._guard(head))
            self.folder = _group(self.root, group)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file; a damaged one may fail here too, which helps no one."""
        if hasattr(self, "root"):
            self.root.guard.recent.clear()
            for bands in self.root.guard.bands:
                bands.close()
        others = list(self._others.values())
        self._others.clear()
        for other in others:
            other.close()
        for handle in (self._native, self._handle):
            _close(handle)
        self._source.close()

    def _guard(self, head: bytes) -> Guard:
        with reading(self.path):
            offset_bytes, number_bytes = self._handle.id.get_create_plist().get_sizes()
        if not {offset_bytes, number_bytes} <= SIZES.keys():
            raise DataError(
                f"{self.path} has numbers of a size that HDF5 does not read",
                expected="offsets and sizes of 2, 4 or 8 bytes",
                found=f"{offset_bytes} and {number_bytes} bytes",
                where=self.path,
            )
        self._source.number_bytes = number_bytes
        guard = Guard(
            self._source,
            offset_bytes=offset_bytes,
            writer=next((name for text, name in HEADERS.items() if head.startswith(text)), None),
            **self._options,
        )
        guard.other, guard.native = self._other, self._as_hdf5
        return guard

    def _other(self, name: str) -> Folder:
        """The root of a file that an external link names: beside this one, or where we are."""
        places = [os.path.join(os.path.dirname(self.path), name), name]
        path = next((place for place in places if os.path.isfile(place)), name)
        key = os.path.realpath(path)
        if key not in self._others:
            self._others[key] = Hdf5File(
                f"{path}:/",
                allow_external=self._options["allow_external"],
                transpose=self._options["transpose"],
                _others=self._others,
            )
        return self._others[key].root

    def _as_hdf5(self) -> Any:
        if self._native is None:
            with reading(self.path):
                self._native = h5py.File(self.path, "r", rdcc_nbytes=CHUNK_CACHE_BYTES)
        return self._native

    def __enter__(self) -> Hdf5File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close(handle: Any) -> None:
    with suppress(*H5_ERRORS):
        if handle is not None:
            handle.close()


def _need_readable(path: str) -> bytes:
    """How the file begins; DataError for all that can be told without HDF5."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise _missing(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        if stat.S_ISDIR(status.st_mode):
            raise refuse_folder(path)
        raise DataError(f"{path} is no regular file", expected="an HDF5 file", where=path)
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from error
    _need_hdf5(path, head, status.st_size)
    return head


def _missing(path: str, error: Exception) -> DataError:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        return _unreadable(path, error)
    file, _, group = path.rpartition(":")
    named = quote(f"{file}:/{group}")
    hint = f"{named} names a group of {file}" if os.path.isfile(file) else None
    return DataError(
        f"{printable(path)} does not exist", expected="an HDF5 file", where=path, hint=hint
    )


def _unreadable(path: str, error: Exception) -> DataError:
    if is_memory(error):
        raise short_of_memory(path) from error
    denied = isinstance(error, PermissionError)
    return DataError(
        f"{printable(path)} cannot be opened",
        expected="an HDF5 file that may be read",
        found=getattr(error, "strerror", None) or printable(str(error)),
        where=path,
        hint=f"chmod u+r {quote(path)}" if denied else None,
    )


def _need_hdf5(path: str, head: bytes, size: int) -> None:
    if size == 0:
        raise DataError(f"{path} is empty", expected="an HDF5 file", found="0 bytes", where=path)
    if re.match(rb"CDF[\x01\x02\x05]", head):
        raise DataError(
            f"{path} is NetCDF-3 (classic), which is not HDF5",
            expected="HDF5 or NetCDF-4",
            found=f"a file that begins with {head[:4]!r}",
            where=path,
            hint=f"nccopy -k nc4 {quote(path)} {quote(os.path.splitext(path)[0] + '.h5')}",
        )
    if not h5py.is_hdf5(os.path.realpath(path)):  # h5py takes a .. after a link for its folder
        raise refuse(path, head)


def _open(path: str) -> tuple[CheckedFile, Any]:
    source = None
    try:
        source = CheckedFile(path)
        file = h5py.File(source, "r", rdcc_nbytes=CHUNK_CACHE_BYTES, rdcc_nslots=CHUNK_SLOTS)
        return source, file
    except BlockingIOError as error:
        raise DataError(
            f"{path} is locked: another program has it open for writing",
            expected="a file nobody writes to",
            found=printable(str(error)),
            where=path,
            hint="close the other program, or set HDF5_USE_FILE_LOCKING=FALSE",
        ) from error
    except H5_ERRORS as error:
        if source is not None:
            source.close()
        if is_memory(error):
            raise short_of_memory(path) from error
        raise DataError(
            f"{path} is damaged or truncated",
            expected="an intact HDF5 file",
            found=printable(str(error)),
            where=path,
            hint="copy or make the file again",
        ) from error


def _group(root: Folder, path: str) -> Folder:
    found = root.find(path)
    if isinstance(found, Folder):
        return found
    where = f"{root.file}:{printable(path)}"
    if found is None:
        inside = ", ".join(printable(name) for name in root.names()[:10])
        raise DataError(
            f"{where} does not exist",
            expected="a group of the file",
            found=f"/ holds {inside}" if inside else "an empty file",
            where=where,
            hint=f"lstm-cli data {quote(root.file)}",
        )
    parent, _, name = path.rpartition("/")
    group = quote(f"{root.file}:{parent or '/'}")
    raise DataError(
        f"{where} is a dataset",
        expected="a group that holds one",
        found=f"shape {found.shape}",
        where=where,
        hint=f"{group} names the group; in a config, data.inputs: {in_yaml(name)} names the "
        "dataset",
    )


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
