"""Files that DATA arguments name: a file, a folder of HDF5 files, or a quoted glob pattern."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from contextlib import suppress

from lstm_cli.errors import DataError, printable
from lstm_cli.hdf5.file import folder_error, split_argument
from lstm_cli.hdf5.group import natural_order
from lstm_cli.output_files import is_temporary

SHARD = re.compile(r"(.+)\.shard-([0-9]+)-of-([0-9]+)", re.DOTALL)
"""Name of a shard of results; the groups are the name of the results, the number, and the count."""

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_OFFSETS = (0, 512, 1024, 2048)
"""Places where HDF5 data may begin in a file; MATLAB's begin at 512."""

_FILES_BESIDE = 256
"""Number of open files that a process needs besides its data."""


def data_files(arguments: Sequence[str]) -> list[str]:
    """Arguments of one file each, as ``FILE.h5`` or ``FILE.h5:/group``.

    A folder stands for its HDF5 files, and a pattern for the files that match it, both in natural
    order. A group after ``:/`` goes to every file.

    Raises
    ------
    DataError
        A folder holds no HDF5 file, or no file matches a pattern.
    """
    return [one for argument in arguments for one in _files(argument)]


def allow_open_files(count: int) -> None:
    """Raise the system's limit on open files for this many data files, as far as it lets us."""
    with suppress(ImportError, OSError, ValueError):
        from resource import RLIMIT_NOFILE, getrlimit, setrlimit

        soft, hard = getrlimit(RLIMIT_NOFILE)
        needed = 2 * count + _FILES_BESIDE
        if soft < needed:
            setrlimit(RLIMIT_NOFILE, (needed if hard < 0 else min(needed, hard), hard))


def _files(argument: str) -> list[str]:
    path = split_argument(argument)[0]
    suffix = argument[len(path) :]
    if os.path.isdir(path):
        paths = _files_of_folder(path)
    elif any(letter in path for letter in "*?[") and not os.path.lexists(path):
        paths = _matching_files(path)
    else:
        return [argument]
    return [f"{one}{suffix}" for one in paths]


def _files_of_folder(folder: str) -> list[str]:
    try:
        names = natural_order(os.listdir(folder))
    except OSError as error:
        raise DataError(
            f"{printable(folder)} cannot be read", found=error.strerror, where=folder
        ) from error
    if {"model.safetensors", "config.yaml"} <= set(names):
        raise folder_error(folder)
    paths = [os.path.join(folder, name) for name in names if _may_be_data(name)]
    paths = [path for path in paths if _has_signature(path)]
    if not paths:
        shown = ", ".join(printable(name) for name in names[:10])
        raise DataError(
            f"{printable(folder)} holds no HDF5 file",
            expected="HDF5 files in the folder itself, with names that do not begin with a dot",
            found=shown + (", ..." if len(names) > 10 else "") if names else "an empty folder",
            where=folder,
        )
    return paths


def _matching_files(pattern: str) -> list[str]:
    paths = [path for path in glob.glob(pattern, recursive=True) if os.path.isfile(path)]
    if not paths:
        raise DataError(
            f"no file matches {printable(pattern)}",
            expected="a file, a folder, or a pattern such as 'days/*.h5'",
            found=f"nothing, searched from {printable(os.getcwd())}",
            where=pattern,
        )
    return natural_order(paths)


def _may_be_data(name: str) -> bool:
    return name[:1] != "." and not is_temporary(name) and SHARD.fullmatch(name) is None


def _has_signature(path: str) -> bool:
    """Whether a regular file is HDF5. Other files of a folder are passed over."""
    if not os.path.isfile(path):
        return False
    with suppress(OSError), open(path, "rb") as file:
        head = file.read(_OFFSETS[-1] + len(_SIGNATURE))
        return any(head.startswith(_SIGNATURE, offset) for offset in _OFFSETS)
    return True  # reading it tells why it cannot be read
