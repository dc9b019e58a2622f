"""Compiled kernels on disk, so that only the first run of a network waits for the compiler.

What is read here is executed. So a file counts only if nobody else can have written it (owner and
permissions of folder and file), and if it is whole and made for exactly what is asked (a hash over
its contents and its key). Whatever is amiss, the kernels are compiled instead: no failure of the
cache ever is one of the program.
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

VARIABLE = "LSTM_CLI_CACHE_DIR"
"""Environment variable: another folder, or, where it is empty, no cache."""

LIMIT_BYTES, LIMIT_FILES = 256 << 20, 2000

_MAGIC = b"lstm-cli kernels 1\n"
_SUFFIX = ".kernels"
_DAY = 86_400


@dataclass(frozen=True)
class Compiled:
    """Object code, and the names of the functions it exports."""

    exported: tuple[str, ...]
    code: bytes


@dataclass(frozen=True)
class CacheState:
    """What there is to say about the cache.

    Attributes
    ----------
    folder
        None where there is no place for one.
    usable, reason
        Whether kernels are looked for there; why not, or why none are added.
    files, bytes
        What is kept.
    """

    folder: Path | None
    usable: bool
    reason: str | None = None
    files: int = 0
    bytes: int = 0


class _NotUsed(Exception):  # noqa: N818 - no failure, a state
    """Why the cache, or one file of it, is not used."""


def load(key: str) -> Compiled | None:
    """What is kept under a key, or None."""
    try:
        path = _private(_place()) / (key + _SUFFIX)
        kept = _parsed(key, _read(path))
    except (OSError, _NotUsed):
        return None
    _touch(path)
    return kept


def store(key: str, compiled: Compiled) -> None:
    """Keep it if possible."""
    with suppress(OSError, _NotUsed):
        folder = _made()
        _write(folder / (key + _SUFFIX), _contents(key, compiled))
        _prune(folder)


def state() -> CacheState:
    """Where the cache is, whether it is used, and how much it holds. Changes nothing."""
    folder = None
    try:
        folder = _place()
        _private(folder)
        sizes = [found.st_size for _, found in _files(folder)]
    except FileNotFoundError:
        return CacheState(folder, True, _read_only(_nearest(folder)))
    except _NotUsed as why:
        return CacheState(folder, False, str(why))
    except OSError as error:
        return CacheState(folder, False, error.strerror or str(error))
    return CacheState(folder, True, _read_only(folder), len(sizes), sum(sizes))


def _read_only(folder: Path | None) -> str | None:
    """Why nothing can be added."""
    if folder is not None and os.access(folder, os.W_OK | os.X_OK):
        return None
    return f"{folder} cannot be written to"


def _nearest(folder: Path | None) -> Path | None:
    """The folder in which the first missing one would be made."""
    parents = () if folder is None else folder.parents
    return next((parent for parent in parents if os.path.isdir(parent)), None)


# The folder


def _place() -> Path:
    """Where the cache is to be."""
    chosen = os.environ.get(VARIABLE)
    if chosen is not None:
        if not chosen:
            raise _NotUsed(f"turned off by an empty {VARIABLE}")
        return Path(chosen).absolute() / "kernels"
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", ""))
        if not base.is_absolute():  # to be ignored, says the XDG specification
            base = home / ".cache"
    if not base.is_absolute():
        raise _NotUsed("no home folder is known")
    return base / "lstm-cli" / "kernels"


def _made() -> Path:
    """The folder, which now is there."""
    folder = _place()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    return _private(folder)


def _private(folder: Path) -> Path:
    """The folder, which is one's own."""
    _require_private(folder.lstat(), directory=True)
    return folder


def _require_private(found: os.stat_result, *, directory: bool) -> None:
    """Refuse what someone else may have written, or can lead elsewhere."""
    what = "folder" if directory else "file"
    if stat.S_ISLNK(found.st_mode):
        raise _NotUsed(f"the {what} is a link")
    if stat.S_IFMT(found.st_mode) != (stat.S_IFDIR if directory else stat.S_IFREG):
        raise _NotUsed(f"something that is no {what} is in its place")
    if sys.platform != "win32":  # there the mode says nothing, but the place is the user's own
        if found.st_uid != os.geteuid():
            raise _NotUsed(f"the {what} belongs to another user")
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise _NotUsed(f"others may write to the {what}")


# One file: magic, a hash of the rest; then the key, the exported names, and the object code


def _contents(key: str, compiled: Compiled) -> bytes:
    body = f"{key}\n{' '.join(compiled.exported)}\n".encode() + compiled.code
    return _MAGIC + hashlib.sha256(body).digest() + body


def _parsed(key: str, content: bytes) -> Compiled:
    start = len(_MAGIC) + hashlib.sha256().digest_size
    body = content[start:]
    if content[:start] != _MAGIC + hashlib.sha256(body).digest():
        raise _NotUsed("the file is damaged, or none of this program's")
    own, names, code = body.split(b"\n", 2)
    if own != key.encode():
        raise _NotUsed("the file was made for something else")
    return Compiled(tuple(names.decode().split()), code)


def _read(path: Path) -> bytes:
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    # A pipe in the file's place must not keep the program waiting.
    with open(os.open(path, flags | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
        _require_private(os.fstat(file.fileno()), directory=False)
        return file.read()


def _write(path: Path, content: bytes) -> None:
    """In one step as others see it."""
    with AtomicFile(path, mode=0o600, durable=False, follow=False) as file:
        file.write(content)
        file.keep()


# Size


def _touch(path: Path) -> None:
    """Note that a file is in use; once a day is enough."""
    with suppress(OSError):
        if time.time() - path.stat().st_mtime > _DAY:
            os.utime(path)


def _prune(folder: Path) -> None:
    """Keep within the limits: what was not used for longest goes."""
    remove_leftovers(folder)
    kept = _files(folder)
    files, size = len(kept), sum(found.st_size for _, found in kept)
    for path, found in sorted(kept, key=lambda file: file[1].st_mtime_ns):
        if files <= LIMIT_FILES and size <= LIMIT_BYTES:
            return
        _remove(path)
        files, size = files - 1, size - found.st_size


def _files(folder: Path) -> list[tuple[str, os.stat_result]]:
    """What is kept. A file that another process removes meanwhile is left out."""
    there = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(_SUFFIX) and not is_temporary(entry.name):
                with suppress(FileNotFoundError):
                    there.append((entry.path, os.lstat(entry.path)))
    return there


def _remove(path: str) -> None:
    with suppress(OSError):  # removed by another process, or on Windows read by one
        os.unlink(path)
