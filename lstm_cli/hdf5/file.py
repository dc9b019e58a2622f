"""Opening the HDF5 file of a DATA argument, and errors that name the kind of other files."""

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

from lstm_cli.errors import DataError, is_memory_error, memory_error, printable, quote, quote_yaml
from lstm_cli.hdf5.dataset import CHUNK_CACHE_BYTES
from lstm_cli.hdf5.group import Group
from lstm_cli.hdf5.heap_check import SIZES, CheckedFile, FileAccess
from lstm_cli.hdf5.limits import H5_ERRORS, reading_errors
from lstm_cli.hdf5.writer import conversion_command, python_string
from lstm_cli.output_files import PRODUCER

REVERSING_HEADERS = {
    b"MATLAB 7.3 MAT-file": "MATLAB",
    b"HDF5-based Julia Data Format": "Julia",
    b"Julia data file (HDF5)": "Julia",
}
"""First bytes of the block before the HDF5 data, and the program that writes them.

All of these programs store axes in reversed order.
"""

CHUNK_SLOTS = 12_421
"""Slots of HDF5's chunk cache. HDF5 recommends a prime number."""


def split_argument(argument: str) -> tuple[str, str]:
    """File and group of a DATA argument. The default group is ``/``.

    The argument is split at the last ``:/``. It is not split after a drive letter, or if a file
    of the whole name exists.
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
        Follow links and storage outside the file. None means that the command has no option
        for it.
    transpose
        Read datasets with their axes reversed.

    Attributes
    ----------
    group
        The group in the argument, or the root.
    root
        The root group.

    Raises
    ------
    DataError
        The file is missing, not HDF5, damaged or locked, or has no such group.
    """

    def __init__(
        self,
        argument: str,
        *,
        allow_external: bool | None = False,
        transpose: bool = False,
        _other_files: dict[str, Hdf5File] | None = None,
    ) -> None:
        self.path, group = split_argument(argument)
        self._allow_external, self._transpose = allow_external, transpose
        self._other_files: dict[str, Hdf5File] = {} if _other_files is None else _other_files
        self._native: Any = None
        head = _require_readable(self.path)
        self._source, self._handle = _open(self.path)
        # Otherwise HDF5 closes the file after the end of Python, calls Python, and crashes.
        weakref.finalize(self, _close, self._handle)
        try:
            self.root = Group(self._handle, self.path, "/", self._file_access(head))
            self.group = _group(self.root, group)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the file. Errors of damaged files are ignored."""
        if hasattr(self, "root"):
            self.root.access.recent_datasets.clear()
            for slabs in self.root.access.slabs:
                slabs.close()
        others = list(self._other_files.values())
        self._other_files.clear()
        for other in others:
            other.close()
        for handle in (self._native, self._handle):
            _close(handle)
        self._source.close()

    def _file_access(self, head: bytes) -> FileAccess:
        with reading_errors(self.path):
            plist = self._handle.id.get_create_plist()
            offset_bytes, number_bytes = plist.get_sizes()
            superblock = int(plist.get_userblock())
        if not {offset_bytes, number_bytes} <= SIZES.keys():
            raise DataError(
                f"{self.path} has numbers of a size that HDF5 does not read",
                expected="offsets and sizes of 2, 4 or 8 bytes",
                found=f"{offset_bytes} and {number_bytes} bytes",
                where=self.path,
            )
        self._source.number_bytes = number_bytes
        access = FileAccess(
            self._source,
            offset_bytes=offset_bytes,
            superblock=superblock if offset_bytes == number_bytes == 8 else None,
            reversing_program=next(
                (name for start, name in REVERSING_HEADERS.items() if head.startswith(start)),
                None,
            ),
            allow_external=self._allow_external is True,
            has_option=self._allow_external is not None,
            transpose=self._transpose,
        )
        access.open_other, access.open_native = self._open_other, self._open_natively
        return access

    def _open_other(self, name: str) -> Group:
        """Root group of the file that an external link names.

        The name is relative to the folder of this file, else to the working folder.
        """
        candidates = [os.path.join(os.path.dirname(self.path), name), name]
        path = next((path for path in candidates if os.path.isfile(path)), name)
        key = os.path.realpath(path)
        if key not in self._other_files:
            self._other_files[key] = Hdf5File(
                f"{path}:/",
                allow_external=self._allow_external is True,
                transpose=self._transpose,
                _other_files=self._other_files,
            )
        return self._other_files[key].root

    def _open_natively(self) -> Any:
        if self._native is None:
            with reading_errors(self.path):
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


def _require_readable(path: str) -> bytes:
    """First bytes of the file; DataError for every problem that shows without HDF5."""
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        raise _missing(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        if stat.S_ISDIR(status.st_mode):
            raise folder_error(path)
        raise DataError(f"{path} is no regular file", expected="an HDF5 file", where=path)
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from error
    _require_hdf5(path, head, status.st_size)
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
    if is_memory_error(error):
        raise memory_error(path) from error
    denied = isinstance(error, PermissionError)
    return DataError(
        f"{printable(path)} cannot be opened",
        expected="a readable HDF5 file",
        found=getattr(error, "strerror", None) or printable(str(error)),
        where=path,
        hint=f"chmod u+r {quote(path)}" if denied else None,
    )


def _require_hdf5(path: str, head: bytes, size: int) -> None:
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
    # realpath: h5py itself drops a link that is followed by `..` in the path.
    if not h5py.is_hdf5(os.path.realpath(path)):
        raise not_hdf5_error(path, head)


def _open(path: str) -> tuple[CheckedFile, Any]:
    source = None
    try:
        source = CheckedFile(path)
        file = h5py.File(source, "r", rdcc_nbytes=CHUNK_CACHE_BYTES, rdcc_nslots=CHUNK_SLOTS)
        return source, file
    except BlockingIOError as error:
        raise DataError(
            f"{path} is locked: another program has it open for writing",
            expected="a file that no program writes to",
            found=printable(str(error)),
            where=path,
            hint="close the other program, or set HDF5_USE_FILE_LOCKING=FALSE",
        ) from error
    except H5_ERRORS as error:
        if source is not None:
            source.close()
        if is_memory_error(error):
            raise memory_error(path) from error
        raise DataError(
            f"{path} is damaged or truncated",
            expected="an intact HDF5 file",
            found=printable(str(error)),
            where=path,
            hint="copy or make the file again",
        ) from error


def _group(root: Group, path: str) -> Group:
    target = root.find(path)
    if isinstance(target, Group):
        return target
    where = f"{root.file}:{printable(path)}"
    if target is None:
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
        expected="a group that holds a dataset",
        found=f"shape {target.shape}",
        where=where,
        hint=f"{group} names the group; in a config, data.inputs: {quote_yaml(name)} names the "
        "dataset",
    )


HEAD_BYTES = 4096
"""First bytes of a file that are read to find its kind."""

LARGEST_HEADER = 16 << 20
"""Largest number of bytes of a safetensors header that are read."""

CONFIGS = (".yaml", ".yml")

TABLES = (".csv", ".tsv", ".txt", ".dat")

AS_CONFIG = "give the file as CONFIG"
"""Beginning of the hint for files that are configs or weights."""

COMPRESSION_SIGNATURES = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
}
"""First bytes of compressed files."""

OTHER_SIGNATURES = {
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3\0": "an SQLite database",
    b"MATLAB 5.0 MAT-file": "a MAT-file of MATLAB's older format",
    b"%PDF": "a PDF document",
    b"\xd0\xcf\x11\xe0": "an Excel or other Office document",
    b"RIFF": "a sound or video file (RIFF)",
}
"""First bytes of other files, and their kind."""

READERS = {
    "a Parquet file": "pandas.read_parquet",
    "an Arrow file": "pandas.read_feather",
    "a MAT-file of MATLAB's older format": "scipy.io.loadmat",
    "an Excel workbook": "pandas.read_excel",
}
"""Python function that reads each kind of file."""


@dataclass(frozen=True)
class NotHdf5:
    """Kind of a file that is not HDF5.

    Attributes
    ----------
    what
        Name of the kind, with its article.
    hint
        A command or advice for such files, or None.
    contents
        Contents of the file in a few words, or None.
    """

    what: str
    hint: str | None
    contents: str | None = None


def not_hdf5_error(path: str, head: bytes) -> DataError:
    """The error for a file that is not HDF5; `head` is its first bytes."""
    kind = _kind(path, head)
    if kind is None:
        kind = NotHdf5("not an HDF5 file", None, f"a file that begins with {head[:8]!r}")
    return DataError(
        f"{path} is {kind.what}",
        expected="an HDF5 file",
        found=kind.contents,
        where=path,
        hint=kind.hint,
    )


def folder_error(path: str) -> DataError:
    """The error for a folder given as DATA."""
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
    """Whether a file can be the CONFIG argument, by its name and first bytes."""
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


def _kind(path: str, head: bytes) -> NotHdf5 | None:
    """Kind of a file; None if it is unknown."""
    if head.startswith(b"PK\3\4"):
        return _archive_kind(path)
    if head[8:9] == b"{":
        return _safetensors_kind(path, int.from_bytes(head[:8], "little"))
    if head.startswith(b"\x93NUMPY"):
        return NotHdf5(
            "a NumPy array",
            conversion_command(path, f'["inputs"] = np.load({python_string(path)})'),
        )
    compression = next(
        (name for start, name in COMPRESSION_SIGNATURES.items() if head.startswith(start)), None
    )
    if compression is None and head[257:262] == b"ustar":
        compression = "tar"
    if compression is not None:
        return NotHdf5(f"compressed ({compression})", "unpack the file first")
    for start, what in OTHER_SIGNATURES.items():
        if head.startswith(start):
            return NotHdf5(what, _read_by(what))
    if head[:1] == b"\x80" and head[1:2] in (b"\2", b"\3", b"\4", b"\5"):
        return NotHdf5(
            "a Python pickle", "load the file in Python; h5py writes arrays to an HDF5 file"
        )
    if path.lower().endswith((".onnx", ".pt", ".pth", ".keras")):
        return NotHdf5("a network's weights", _as_config(path))
    return _text_kind(path, head)


def _read_by(what: str) -> str | None:
    reader = READERS.get(what)
    return None if reader is None else f"in Python, {reader} reads the file and h5py writes HDF5"


def _archive_kind(path: str) -> NotHdf5:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # damaged: the contents are unknown
        return NotHdf5("a damaged zip archive", None)
    if names and all(name.endswith(".npy") for name in names):
        arrays = ", ".join(name.removesuffix(".npy") for name in names[:8])
        hint = conversion_command(path, f".update(np.load({python_string(path)}))")
        return NotHdf5("a NumPy archive (.npz)", hint, f"arrays {arrays}")
    if any(name.rsplit("/", 1)[-1] == "data.pkl" for name in names):
        return NotHdf5("a PyTorch file", _as_config(path))
    if "config.json" in names or any(name.endswith(".weights.h5") for name in names):
        return NotHdf5("a Keras model", _as_config(path))
    if "[Content_Types].xml" in names:
        return NotHdf5("an Excel workbook", _read_by("an Excel workbook"))
    return NotHdf5("a zip archive", "unpack the file first", _listed(names))


def _safetensors_kind(path: str, size: int) -> NotHdf5 | None:
    """Kind of a safetensors file: weights or a checkpoint; None for any other file."""
    try:
        with open(path, "rb") as file:
            file.seek(8)
            header: dict[str, Any] = json.loads(file.read(min(size, LARGEST_HEADER)))
        texts = header.pop("__metadata__", None) or {}
        shapes = [f"{name} {tuple(one['shape'])}" for name, one in header.items()]
        from_lstm_cli, training = texts.get("format") == PRODUCER, "training" in texts
    except (OSError, ValueError, AttributeError, KeyError, TypeError, RecursionError):
        return None
    if from_lstm_cli and training:
        folder = quote(os.path.dirname(path) or ".")
        hint = f"lstm-cli train CONFIG DATA --output {folder} --resume continues that run"
        return NotHdf5("the checkpoint of a training run", hint, _listed(shapes))
    scaled = " of a network that normalizes its inputs" if "inputs.mean" in header else ""
    what = f"lstm-cli's weights{scaled}" if from_lstm_cli else "a file of weights (safetensors)"
    return NotHdf5(what, _as_config(path), _listed(shapes))


def _text_kind(path: str, head: bytes) -> NotHdf5 | None:
    """Kind of a text file: a config, metrics, a table; None if it is unknown."""
    try:
        start = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # the end of the head may cut a character in two
            return None
        start = head[: error.start].decode()
    if "\0" in start:
        return None
    lines = [line for line in start.splitlines() if line.strip()]
    if path.lower().endswith(CONFIGS) or re.search(r"^model:\s*$", start, re.MULTILINE):
        return NotHdf5("a config", _as_config(path))
    if start.startswith('{"epoch":'):
        model, hint = os.path.join(os.path.dirname(path), "model.safetensors"), None
        if os.path.isfile(model):
            hint = f"lstm-cli run {quote(model)} DATA runs the network of that run"
        return NotHdf5("the metrics of a training run, one line per epoch", hint, lines[0][:72])
    if start.lstrip().startswith("<MethodSetup") or "<MethodSetup" in start[:400]:
        return NotHdf5("a TMVA network", _as_config(path))
    if path.lower().endswith(TABLES) and lines:
        return _table_kind(path, lines)
    if start.lstrip()[:1] in ("{", "["):
        return NotHdf5("JSON", None)
    return None


def _table_kind(path: str, lines: list[str]) -> NotHdf5:
    delimiter = next((mark for mark in (",", ";", "\t") if mark in lines[-1]), None)
    try:
        [float(cell) for cell in lines[0].split(delimiter)]
        names = 0
    except ValueError:
        names = 1
    option = "" if delimiter is None else f", delimiter={python_string(delimiter)}"
    read = f"np.loadtxt({python_string(path)}{option}, skiprows={names}, ndmin=2)"
    hint = conversion_command(path, f'["inputs"] = {read}') + ", if all columns are numbers"
    return NotHdf5("a table in plain text", hint, lines[0][:72])


def _listed(names: Iterable[str]) -> str:
    all_names = list(names)
    return ", ".join(all_names[:4]) + (", ..." if len(all_names) > 4 else "")
