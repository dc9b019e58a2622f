"""Files that appear under their name only when they are whole, and stay when power fails."""

from __future__ import annotations

import errno
import glob
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from lstm_cli.errors import LstmCliError

SUFFIX = ".part"

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


def write_whole(path: Path, data: bytes, what: str) -> None:
    """Write a file under a temporary name, make it durable, and rename it.

    Parameters
    ----------
    what
        What the file is, for errors: ``the weights``.

    Raises
    ------
    LstmCliError
        The folder is not there, not writable, or full. An older file stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{SUFFIX}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise not_written(path, what, error) from None


def not_written(path: Path, what: str, error: OSError) -> LstmCliError:
    """What to raise where a file could not be written."""
    return LstmCliError(
        f"{what} cannot be written to {path}",
        found=reason(error),
        hint="make room, or name a folder with more of it" if error.errno in _FULL else None,
    )


def reason(error: OSError | ValueError) -> str:
    """Why a file could not be read or written, in the system's words."""
    return (getattr(error, "strerror", None) or str(error)).lower()


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Remove temporary files of processes that ended while they wrote one of these files."""
    for name in names:
        for path in folder.glob(f".{glob.escape(name)}.*{SUFFIX}"):
            with suppress(OSError):
                path.unlink()


def _sync_folder(folder: Path) -> None:
    """Make the new name durable; Windows has no way to, and none is needed there."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
