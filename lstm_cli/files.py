"""Files that appear under their name only when they are whole, and leave nothing behind otherwise.

A file is written under a temporary name beside its own, made durable, and renamed. The temporary
file is locked while its process lives. So the next process that writes the same file can remove
what a killed one left, and never what another one is writing.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

from lstm_cli.errors import LstmCliError, short_of_memory
from lstm_cli.overwriting import is_stream, need_own

_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.part\.(.+)", re.DOTALL)
"""A temporary name; the group is the name that the file is to have, or the end of a long one."""
_LONGEST = 240
"""Bytes of a name that leave room for what a temporary one has in front of it."""

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, getattr(errno, "EOPNOTSUPP", errno.ENOSYS))
_ATTEMPTS = 100


class Unfinished(Protocol):
    """A file or folder that is being made."""

    def discard(self) -> None:
        """Remove it, unless it is whole."""


_unfinished: dict[str, Unfinished] = {}
"""By path, what this process is making, and has to remove where it ends early."""


class Temporary:
    """A file that is being written beside the one it will replace; a context manager.

    Leaving the context without `keep` removes it, and an older file stays as it was.

    Parameters
    ----------
    path
        The name that the file is to have.
    force
        Replace what another program wrote.
    mode
        Permissions, as `os.open` takes them.
    durable
        Wait until the file is on the disk before it gets its name.
    follow
        Where `path` is a link, replace what it points to; else the link.

    Attributes
    ----------
    path
        The temporary name. It ends with the name that the file is to have.
    final
        That name.
    file
        Open for reading and writing, unbuffered.

    Raises
    ------
    OSError
        The folder is missing, or does not take a new file.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        force: bool = True,
        mode: int = 0o666,
        durable: bool = True,
        follow: bool = True,
    ) -> None:
        self.final = Path(os.path.realpath(path) if follow else path)
        if not self.final.name:
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        self._force, self._mode, self._durable = force, mode, durable
        self.path = self.final
        self.file: BinaryIO
        remove_leftovers(self.final.parent, self.final.name)
        try:
            self._create()
        except BaseException:
            self.discard()
            raise

    def write(self, data: bytes) -> None:
        """Write all of the file's content, in place of what it holds."""
        self.file.seek(0)
        self.file.truncate()
        write_all(self.file, data)

    def keep(self) -> None:
        """Give the file its name.

        Raises
        ------
        OSError
            The system does not let us, or the disk is full.
        UsageError
            Another program has written a file of that name meanwhile, and `force` is not set.
        """
        if self._durable:
            os.fsync(self.file.fileno())
        if not self._force:
            need_own(self.final)
        if os.name == "nt":
            self.file.close()  # Windows renames no open file
        else:
            _unlock(self.file.fileno())  # who waits for the file may open it at once
        os.replace(self.path, self.final)
        _unfinished.pop(str(self.path), None)
        self.file.close()
        if self._durable:
            _sync_folder(self.final.parent)

    def discard(self) -> None:
        """Remove what was written; nothing where it was kept."""
        if str(self.path) not in _unfinished:
            return
        if os.name == "nt" and hasattr(self, "file"):
            self.file.close()  # Windows removes no open file
        with suppress(OSError):
            os.unlink(self.path)
        _unfinished.pop(str(self.path), None)
        if hasattr(self, "file"):
            self.file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.discard()

    def _create(self) -> None:
        """Open a new file and lock it."""
        for _ in range(_ATTEMPTS):
            name = f".{secrets.token_hex(4)}.part.{_ending(self.final.name)}"
            self.path = self.final.with_name(name)
            _unfinished[str(self.path)] = self  # before it is there: a signal may come
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            try:
                self.file = os.fdopen(os.open(self.path, flags, self._mode), "r+b", buffering=0)
            except FileExistsError:
                _unfinished.pop(str(self.path), None)
                continue
            # Before it was locked, another process may have taken it for a leftover.
            if _locked(self.file.fileno()) is not False and self.path.exists():
                return
            self.discard()
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self.final))


def write_whole(path: Path, data: bytes, what: str, *, force: bool = True) -> None:
    """Write a file under a temporary name, make it durable, and rename it.

    A device or a pipe is written to; a `Temporary` of this process is filled, and not renamed.

    Parameters
    ----------
    what
        What the file is, for errors: ``the weights``.
    force
        Replace what another program wrote.

    Raises
    ------
    LstmCliError
        The folder is not there, not writable, or full. An older file stays as it was.
    UsageError
        Another program wrote the file that is there, and `force` is not set.
    """
    try:
        unnamed = _unfinished.get(str(path))
        if isinstance(unnamed, Temporary):
            unnamed.write(data)
        elif is_stream(path):
            with open(path, "wb", buffering=0) as stream:
                write_all(stream, data)
        else:
            with Temporary(path, force=force) as temporary:
                temporary.write(data)
                temporary.keep()
    except OSError as error:
        raise not_written(path, what, error) from None


def write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write to an unbuffered file, which may take less than all at once."""
    view = memoryview(data).cast("B")
    while view:
        view = view[file.write(view) :]


def not_written(path: str | Path, what: str, error: OSError) -> LstmCliError:
    """The error to raise where a file could not be written."""
    room = "make room, or name a folder with more of it" if error.errno in _FULL else None
    return LstmCliError(
        f"{what} cannot be written to {path}",
        found=reason(error),
        hint=remedy(error.errno) or room,
    )


def remedy(number: int | None) -> str | None:
    """Advice that holds wherever a file is written, by the number of the system's error."""
    if number != errno.EFBIG:
        return None
    return "ulimit -f unlimited lifts the limit on the size of files"


def reason(error: OSError | ValueError) -> str:
    """Why a file could not be read or written, in the system's words.

    Raises
    ------
    MemoryShortError
        Memory ran out, which is no fault of the file.
    """
    if getattr(error, "errno", None) == errno.ENOMEM:
        raise short_of_memory(getattr(error, "filename", None) or "the file") from error
    if getattr(error, "errno", None) == errno.EFBIG:
        return "file too large: the limit on the size of files (ulimit -f) is reached"
    return (getattr(error, "strerror", None) or str(error)).lower()


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove temporary files of processes that ended while they wrote.

    Parameters
    ----------
    name
        The name that the files were to have; None: whatever it was.
    """
    name = None if name is None else _ending(name)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _TEMPORARY.fullmatch(entry.name)
            if found is None or name not in (None, found[1]) or entry.path in _unfinished:
                continue
            with suppress(OSError):
                _remove_if_left(entry.path)


def is_temporary(name: str) -> bool:
    """Whether a file's name is a temporary one."""
    return _TEMPORARY.fullmatch(name) is not None


@contextmanager
def unfinished(path: Path, thing: Unfinished) -> Iterator[None]:
    """Let a signal that ends the process within this context discard what is being made."""
    _unfinished[str(path)] = thing
    try:
        yield
    finally:
        _unfinished.pop(str(path), None)


def remove_unfinished() -> None:
    """Remove all that this process is writing: it is about to end."""
    for thing in reversed(list(_unfinished.values())):  # a folder after what is in it
        with suppress(Exception):
            thing.discard()


if hasattr(os, "register_at_fork"):  # what its parent writes is not a child's to remove
    os.register_at_fork(after_in_child=_unfinished.clear)


def _ending(name: str) -> str:
    """As much of a name as a temporary one has room for."""
    encoded = os.fsencode(name)
    whole = len(encoded) <= _LONGEST
    return name if whole else encoded[-_LONGEST:].decode(errors="ignore")


def _remove_if_left(path: str) -> None:
    """Remove a file of this user's that nobody has locked."""
    if os.name == "nt":
        os.unlink(path)  # fails where another process has it open
        return
    handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(handle)
        own = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        if own and _locked(handle):
            os.unlink(path)
    finally:
        os.close(handle)


def _locked(handle: int) -> bool | None:
    """Lock an open file; False if another process has, None where there are no locks."""
    if os.name == "nt":
        return None
    import fcntl

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return None if error.errno in _NO_LOCKS else False
    return True


def _unlock(handle: int) -> None:
    import fcntl

    with suppress(OSError):
        fcntl.flock(handle, fcntl.LOCK_UN)


def _sync_folder(folder: Path) -> None:
    """Make the new name durable, where the system can."""
    if os.name == "nt":
        return
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
