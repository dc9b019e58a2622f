"""Cache of compiled kernels on disk, so that only the first run of a network compiles them.

The program executes the contents of these files. So a file must belong to this user, and no other
user may have write permission for file or folder. A hash over contents and key shows that it is
complete and belongs to the key. Otherwise the kernels are compiled again: a failure of the cache is
never an error of the program.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lstm_cli.output_files import AtomicFile, is_temporary, remove_leftovers

ENVIRONMENT_VARIABLE = "LSTM_CLI_CACHE_DIR"
"""Environment variable with another folder. An empty value disables the cache."""

LIMIT_BYTES, LIMIT_FILES = 256 << 20, 2000
"""Largest size of the cache, in bytes and in files."""

_MAGIC = b"lstm-cli kernels 1\n"
_SUFFIX = ".kernels"
_DAY = 86_400


@dataclass(frozen=True)
class CompiledKernels:
    """Object code, and the names of the functions that the code exports."""

    exported: tuple[str, ...]
    code: bytes


@dataclass(frozen=True)
class CacheState:
    """Status of the cache.

    Attributes
    ----------
    folder
        Folder of the cache. None: there is no suitable folder.
    usable, reason
        Whether kernels are read from the cache. The reason says why not, or why none are added.
    files, bytes
        Number and total size of the files.
    """

    folder: Path | None
    usable: bool
    reason: str | None = None
    files: int = 0
    bytes: int = 0


class _NotUsed(Exception):  # noqa: N818 - a state, not a failure
    """Reason why the program does not use the cache, or one file of it."""


def load(key: str) -> CompiledKernels | None:
    """Kernels stored under a key. None if there are none."""
    try:
        path = _private(_location()) / (key + _SUFFIX)
        kernels = _parsed(key, _read(path))
    except (OSError, _NotUsed):
        return None
    _touch(path)
    return kernels


def store(key: str, compiled: CompiledKernels) -> None:
    """Store kernels under a key if possible."""
    with suppress(OSError, _NotUsed):
        folder = _created_folder()
        _write(folder / (key + _SUFFIX), _contents(key, compiled))
        _prune(folder)


def state() -> CacheState:
    """Folder, use and size of the cache. The call changes nothing."""
    folder = None
    try:
        folder = _location()
        _private(folder)
        sizes = [status.st_size for _, status in _files(folder)]
    except FileNotFoundError:
        return CacheState(folder, True, _read_only(_nearest_existing(folder)))
    except _NotUsed as why:
        return CacheState(folder, False, str(why))
    except OSError as error:
        return CacheState(folder, False, error.strerror or str(error))
    return CacheState(folder, True, _read_only(folder), len(sizes), sum(sizes))


def _read_only(folder: Path | None) -> str | None:
    """Reason why no kernels can be added."""
    if folder is not None and os.access(folder, os.W_OK | os.X_OK):
        return None
    return f"{folder} cannot be written to"


def _nearest_existing(folder: Path | None) -> Path | None:
    parents = () if folder is None else folder.parents
    return next((parent for parent in parents if os.path.isdir(parent)), None)


# The folder


def _location() -> Path:
    chosen = os.environ.get(ENVIRONMENT_VARIABLE)
    if chosen is not None:
        if not chosen:
            raise _NotUsed(f"turned off by an empty {ENVIRONMENT_VARIABLE}")
        return Path(chosen).absolute() / "kernels"
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if not base.is_absolute():  # the XDG specification says to ignore it
            base = home / ".cache"
    if not base.is_absolute():
        raise _NotUsed("no home folder is known")
    return base / "lstm-cli" / "kernels"


def _created_folder() -> Path:
    folder = _location()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    return _private(folder)


def _private(folder: Path) -> Path:
    _require_private(folder.lstat(), directory=True)
    return folder


def _require_private(status: os.stat_result, *, directory: bool) -> None:
    """Raise unless the entry is no link, and this user alone may write to it."""
    what = "folder" if directory else "file"
    if stat.S_ISLNK(status.st_mode):
        raise _NotUsed(f"the {what} is a link")
    if stat.S_IFMT(status.st_mode) != (stat.S_IFDIR if directory else stat.S_IFREG):
        raise _NotUsed(f"something that is no {what} is in its place")
    if (
        sys.platform != "win32"
    ):  # on Windows the mode says nothing, but the folder belongs to the user
        if status.st_uid != os.geteuid():
            raise _NotUsed(f"the {what} belongs to another user")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise _NotUsed(f"others may write to the {what}")


# One file: magic, a hash of the rest; then the key, the exported names, and the object code


def _contents(key: str, compiled: CompiledKernels) -> bytes:
    body = f"{key}\n{' '.join(compiled.exported)}\n".encode() + compiled.code
    return _MAGIC + hashlib.sha256(body).digest() + body


def _parsed(key: str, content: bytes) -> CompiledKernels:
    start = len(_MAGIC) + hashlib.sha256().digest_size
    body = content[start:]
    if content[:start] != _MAGIC + hashlib.sha256(body).digest():
        raise _NotUsed("the file is damaged, or not a file of this program")
    stored_key, names, code = body.split(b"\n", 2)
    if stored_key != key.encode():
        raise _NotUsed("the file belongs to another key")
    return CompiledKernels(tuple(names.decode().split()), code)


def _read(path: Path) -> bytes:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    # Without O_NONBLOCK, a pipe at this path would block the program.
    with open(os.open(path, flags | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        _require_private(os.fstat(file.fileno()), directory=False)
        return file.read()


def _write(path: Path, content: bytes) -> None:
    with AtomicFile(path, mode=0o600, durable=False, follow=False) as file:
        file.write(content)
        file.keep()


# Size


def _touch(path: Path) -> None:
    """Update the time of a file in use, at most once a day to save writes."""
    with suppress(OSError):
        if time.time() - path.stat().st_mtime > _DAY:
            os.utime(path)


def _prune(folder: Path) -> None:
    """Remove files beyond the limits, the least recently used first."""
    remove_leftovers(folder)
    entries = _files(folder)
    files, size = len(entries), sum(status.st_size for _, status in entries)
    for path, status in sorted(entries, key=lambda file: file[1].st_mtime_ns):
        if files <= LIMIT_FILES and size <= LIMIT_BYTES:
            return
        _remove(path)
        files, size = files - 1, size - status.st_size


def _files(folder: Path) -> list[tuple[str, os.stat_result]]:
    """Files of the cache with their status. Files that vanish meanwhile are left out."""
    files = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(_SUFFIX) and not is_temporary(entry.name):
                with suppress(FileNotFoundError):
                    files.append((entry.path, os.lstat(entry.path)))
    return files


def _remove(path: str) -> None:
    with suppress(OSError):  # removed by another process, or on Windows read by one
        os.unlink(path)
