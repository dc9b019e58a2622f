"""Files that appear under their name only when they are whole, and leave nothing behind otherwise.

A file is written under a temporary name beside its own, made durable, and renamed. The temporary
file is locked while its process lives. So the next process that writes the same file can remove
what a killed one left, and never what another one is writing.
"""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

from lstm_cli.errors import LstmCliError, UsageError, memory_error, quote
from lstm_cli.version import __version__

_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.part\.(.+)", re.DOTALL)
"""A temporary name; the group is the name that the file is to have, or the end of a long one."""
_LONGEST = 240
"""Bytes of a name that leave room for what a temporary one has in front of it."""

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, getattr(errno, "EOPNOTSUPP", errno.ENOSYS))
_ATTEMPTS = 100


class Discardable(Protocol):
    """A file or folder that is being made."""

    def discard(self) -> None:
        """Remove it, unless it is whole."""


_unfinished: dict[str, Discardable] = {}
"""By path, what this process is making, and has to remove where it ends early."""


class AtomicFile:
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
            require_producer_mark(self.final)
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


def write_atomically(path: Path, data: bytes, what: str, *, force: bool = True) -> None:
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
        if isinstance(unnamed, AtomicFile):
            unnamed.write(data)
        elif is_stream(path):
            with open(path, "wb", buffering=0) as stream:
                write_all(stream, data)
        else:
            with AtomicFile(path, force=force) as temporary:
                temporary.write(data)
                temporary.keep()
    except OSError as error:
        raise write_error(path, what, error) from None


def write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    """Write to an unbuffered file, which may take less than all at once."""
    view = memoryview(data).cast("B")
    while view:
        view = view[file.write(view) :]


def write_error(path: str | Path, what: str, error: OSError) -> LstmCliError:
    """The error to raise where a file could not be written."""
    room = "make room, or name a folder with more of it" if error.errno in _FULL else None
    return LstmCliError(
        f"{what} cannot be written to {path}",
        found=error_reason(error),
        hint=error_hint(error.errno) or room,
    )


def error_hint(number: int | None) -> str | None:
    """Advice that holds wherever a file is written, by the number of the system's error."""
    if number != errno.EFBIG:
        return None
    return "ulimit -f unlimited lifts the limit on the size of files"


def error_reason(error: OSError | ValueError) -> str:
    """Why a file could not be read or written, in the system's words.

    Raises
    ------
    MemoryShortError
        Memory ran out, which is no fault of the file.
    """
    if getattr(error, "errno", None) == errno.ENOMEM:
        raise memory_error(getattr(error, "filename", None) or "the file") from error
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
def discard_on_exit(path: Path, thing: Discardable) -> Iterator[None]:
    """Let a signal that ends the process within this context discard what is being made."""
    _unfinished[str(path)] = thing
    try:
        yield
    finally:
        _unfinished.pop(str(path), None)


def discard_unfinished() -> None:
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


PRODUCER = "lstm-cli"
"""The name in every mark."""
SIGNATURE = f"{PRODUCER} {__version__}"
"""The mark in JSON, under the key ``producer``, and in other texts."""
HDF5_ATTRIBUTE = "lstm_cli_version"
"""The mark in HDF5: an attribute of the root group."""
RUN_FILES = ("model.safetensors", "checkpoint.safetensors", "config.yaml", "metrics.jsonl")
"""Files of a training folder that no other command replaces."""

_HEAD = 4096
_LARGEST_HEADER = 16 << 20
_MOST_PARTS = 64
_STREAM = re.compile(r"/dev/(stdout|stderr|fd/\d+)|/proc/self/fd/\d+")
_JSON = re.compile(
    rb'\{\s*("\$schema": "[^"]*",\s*)?"(producer|\$comment)": "lstm-cli [^"]*"'
    rb'|\{\s*"schema": 1,\s*("mode": "[a-z]+",\s*)?"machine": \{\s*"processor":'  # older baselines
)
_XML = re.compile(rb'<Info\s+name="Creator"\s+value="lstm-cli [^"]*"')


def check_output_path(
    path: str | Path, *, option: str, force: bool, suffix: str = "", streams: bool = False
) -> None:
    """Raise unless a file may be made, or replaced, at a path.

    Parameters
    ----------
    option
        What names another path, for hints: ``--output``, ``DST``.
    force
        Replace what another program wrote.
    suffix
        Of files of this kind, for hints.
    streams
        A device or a pipe can be written to.

    Raises
    ------
    LstmCliError
        Its folder does not exist, or something that is no file has that name.
    UsageError
        It belongs to a training run, or another program wrote it and `force` is not set.
    """
    folder = os.path.dirname(os.path.realpath(path))
    if streams and is_stream(path):
        return
    if not os.path.isdir(folder):
        raise LstmCliError(
            f"{path} cannot be written: its folder does not exist",
            expected=f"a folder {folder}",
            where=str(path),
            hint=f"mkdir -p {quote(folder)}",
        )
    if os.path.exists(path) and not os.path.isfile(path):
        inside = os.path.join(path, f"out{suffix}")
        raise LstmCliError(
            f"{path} cannot be written: it is no regular file",
            expected="a new name, or a file to be replaced",
            found="a folder" if os.path.isdir(path) else "a device or pipe",
            where=str(path),
            hint=f"{option} {quote(inside)}" if os.path.isdir(path) else None,
        )
    if os.path.basename(os.path.realpath(path)) in RUN_FILES and _holds_run(folder):
        raise UsageError(
            f"{path} belongs to the training run in {folder}",
            expected="a file that is not part of a run",
            where=str(path),
            hint=f"{option} OTHER{suffix}",
        )
    if not force:
        require_producer_mark(path)


def require_producer_mark(path: str | Path) -> None:
    """Raise UsageError if a file is there that another program wrote."""
    if os.path.exists(path) and not has_producer_mark(path):
        raise UsageError(
            f"{path} exists, and does not say that lstm-cli wrote it",
            expected="a new name, or a file that lstm-cli wrote",
            where=str(path),
            hint="--force replaces it",
        )


def is_stream(path: str | Path) -> bool:
    """Whether a path leads to a device, a pipe or an open file, which is written to as it is."""
    if _STREAM.fullmatch(str(path)):
        return True
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def has_producer_mark(path: str | Path) -> bool:
    """Whether a file says that lstm-cli wrote it. CSV and PyTorch's archives cannot say it."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
            return (
                _JSON.match(head.lstrip()) is not None
                or (head.startswith(b"<?xml") and _XML.search(head) is not None)
                or _is_own_archive(head)
                or _is_own_hdf5(file, head)
                or _is_own_safetensors(file, head)
                or _is_own_onnx(file)
            )
    except (OSError, ValueError, IndexError, RecursionError):
        return False


def _holds_run(folder: str) -> bool:
    return os.path.exists(os.path.join(folder, "checkpoint.safetensors"))


def _is_own_archive(head: bytes) -> bool:
    """A ``.keras`` file: its first member, which is not compressed, has the mark."""
    name = b"metadata.json"
    key = f'"producer": "{PRODUCER} '.encode()
    return head.startswith(b"PK\3\4") and head[30 : 30 + len(name)] == name and key in head[:512]


def _is_own_safetensors(file: BinaryIO, head: bytes) -> bool:
    """The header's texts: ``format`` in native files, ``producer`` in those for PyTorch."""
    size = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or size > _LARGEST_HEADER:
        return False
    file.seek(8)
    header = json.loads(file.read(size))
    texts = header.get("__metadata__")
    if not isinstance(texts, dict):
        return False
    return texts.get("format") == PRODUCER or str(texts.get("producer")).startswith(f"{PRODUCER} ")


def _is_own_onnx(file: BinaryIO) -> bool:
    """A model's field 2, ``producer_name``; those in front of it are passed over."""
    file.seek(0)
    for _ in range(_MOST_PARTS):
        tag = _varint(file)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            _varint(file)
        elif kind == 2:
            size = _varint(file)
            if number == 2:
                return size == len(PRODUCER) and file.read(size) == PRODUCER.encode()
            file.seek(size, os.SEEK_CUR)
        else:
            return False
    return False


def _varint(file: BinaryIO) -> int:
    """A number of variable length; ValueError where there is none."""
    value = 0
    for k in range(10):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 127) << 7 * k
        if byte[0] < 128:
            return value
    raise ValueError("no varint")


def _is_own_hdf5(file: BinaryIO, head: bytes) -> bool:
    """The messages of the root group's object header, as h5py writes it by default.

    Superblock version 0 with addresses of 8 bytes, and an object header of version 1.
    """
    if not head.startswith(b"\x89HDF\r\n\x1a\n\0") or head[13:15] != b"\x08\x08":
        return False
    address = int.from_bytes(head[64:72], "little")
    file.seek(address)
    prefix = file.read(16)
    if prefix[:1] != b"\1":
        return False
    parts = [(address + 16, int.from_bytes(prefix[8:12], "little"))]
    for start, size in parts:  # grows with each continuation that is met
        file.seek(start)
        block, at = file.read(min(size, 1 << 20)), 0
        while at + 8 <= len(block):
            kind = int.from_bytes(block[at : at + 2], "little")
            length = int.from_bytes(block[at + 2 : at + 4], "little")
            body = block[at + 8 : at + 8 + length]
            if kind == 0x0C and _attribute_name(body) == HDF5_ATTRIBUTE.encode():
                return True
            if kind == 0x10 and len(parts) < _MOST_PARTS:
                numbers = int.from_bytes(body[:8], "little"), int.from_bytes(body[8:16], "little")
                parts.append(numbers)
            at += 8 + length
    return False


def _attribute_name(body: bytes) -> bytes:
    """The name in an attribute's message; version 3 has a byte for its encoding in front."""
    start = 9 if body[:1] == b"\3" else 8
    size = int.from_bytes(body[2:4], "little")
    return body[start : start + size].rstrip(b"\0")
