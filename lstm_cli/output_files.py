"""Output files: atomic writing, and marks that tell which existing files may be replaced.

A file is written under a temporary name in the same folder, made durable, and renamed. The
temporary file is locked while its process lives. So the next process that writes the same file
removes the leftovers of killed processes only.

Without ``--force``, only files with a mark of lstm-cli are replaced. The mark is in a file's first
bytes, and this module reads it without format libraries. So damaged, hostile and very large files
take no longer and do no harm.
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
"""A temporary name; the group is the final name, or the end of a long one."""
_LONGEST = 240
"""Bytes of a final name that fit into a temporary name."""

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, getattr(errno, "EOPNOTSUPP", errno.ENOSYS))
_ATTEMPTS = 100


class Discardable(Protocol):
    """A file or folder that is being written."""

    def discard(self) -> None:
        """Remove the file or folder unless it is complete."""


_unfinished: dict[str, Discardable] = {}
"""Files and folders that this process is writing, by path; they are removed if it ends early."""


class AtomicFile:
    """A file under a temporary name that replaces the final file when complete; a context manager.

    Leaving the context without `keep` removes the temporary file. An older file is unchanged.

    Parameters
    ----------
    path
        Final name of the file.
    force
        Replace another program's file.
    mode
        Permissions, as for `os.open`.
    durable
        Wait until the file is on the disk before it is renamed.
    follow
        If `path` is a link, replace its target instead of the link.

    Attributes
    ----------
    path
        The temporary name. It ends with the final name.
    final
        The final name.
    file
        The open file for reading and writing, unbuffered.

    Raises
    ------
    OSError
        The folder is missing, or the system refuses a new file.
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
        """Replace the content of the temporary file."""
        self.file.seek(0)
        self.file.truncate()
        write_all(self.file, data)

    def keep(self) -> None:
        """Rename the file to its final name.

        Raises
        ------
        OSError
            The system refuses, or the disk is full.
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
            _unlock(self.file.fileno())  # a program that waits for the file may open it at once
        os.replace(self.path, self.final)
        _unfinished.pop(str(self.path), None)
        self.file.close()
        if self._durable:
            _sync_folder(self.final.parent)

    def discard(self) -> None:
        """Remove the temporary file; does nothing after `keep`."""
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
        for _ in range(_ATTEMPTS):
            name = f".{secrets.token_hex(4)}.part.{_ending(self.final.name)}"
            self.path = self.final.with_name(name)
            _unfinished[str(self.path)] = self  # before it exists, since a signal may come
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
            try:
                self.file = os.fdopen(os.open(self.path, flags, self._mode), "r+b", buffering=0)
            except FileExistsError:
                _unfinished.pop(str(self.path), None)
                continue
            # Another process may have removed the file as a leftover before it was locked.
            if _locked(self.file.fileno()) is not False and self.path.exists():
                return
            self.discard()
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self.final))


def write_atomically(path: Path, data: bytes, what: str, *, force: bool = True) -> None:
    """Write a file under a temporary name, make it durable, and rename it.

    Devices and pipes are written in place. If `path` is the temporary name of an `AtomicFile`,
    that file is filled, but not renamed.

    Parameters
    ----------
    what
        Description of the file for errors: ``the weights``.
    force
        Replace another program's file.

    Raises
    ------
    LstmCliError
        The folder does not exist, is not writable, or is full. An older file is unchanged.
    UsageError
        Another program wrote the existing file, and `force` is not set.
    """
    try:
        atomic_file = _unfinished.get(str(path))
        if isinstance(atomic_file, AtomicFile):
            atomic_file.write(data)
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
    """Write all bytes to an unbuffered file, which may accept fewer per call."""
    view = memoryview(data).cast("B")
    while view:
        view = view[file.write(view) :]


def write_error(path: str | Path, what: str, error: OSError) -> LstmCliError:
    """The error to raise if a file could not be written."""
    space = "free some space, or name a folder with more space" if error.errno in _FULL else None
    return LstmCliError(
        f"{what} cannot be written to {path}",
        found=error_reason(error),
        hint=error_hint(error.errno) or space,
    )


def error_hint(number: int | None) -> str | None:
    """A hint for the system's error number that suits every file, or None."""
    if number != errno.EFBIG:
        return None
    return "ulimit -f unlimited lifts the limit on the size of files"


def error_reason(error: OSError | ValueError) -> str:
    """The system's reason why a file could not be read or written.

    Raises
    ------
    MemoryShortError
        The reason is lack of memory, not the file.
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
        Final name of the files; None: any name.
    """
    name = None if name is None else _ending(name)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            match = _TEMPORARY.fullmatch(entry.name)
            if match is None or name not in (None, match[1]) or entry.path in _unfinished:
                continue
            with suppress(OSError):
                _remove_leftover(entry.path)


def is_temporary(name: str) -> bool:
    """Whether a file name is a temporary one."""
    return _TEMPORARY.fullmatch(name) is not None


@contextmanager
def discard_on_exit(path: Path, thing: Discardable) -> Iterator[None]:
    """Discard `thing` if a signal ends the process within this context."""
    _unfinished[str(path)] = thing
    try:
        yield
    finally:
        _unfinished.pop(str(path), None)


def discard_unfinished() -> None:
    """Remove all files and folders that this process is writing, before it ends."""
    for thing in reversed(list(_unfinished.values())):  # a folder after its files
        with suppress(Exception):
            thing.discard()


if hasattr(os, "register_at_fork"):  # a child process must not remove its parent's files
    os.register_at_fork(after_in_child=_unfinished.clear)


def _ending(name: str) -> str:
    encoded = os.fsencode(name)
    whole = len(encoded) <= _LONGEST
    return name if whole else encoded[-_LONGEST:].decode(errors="ignore")


def _remove_leftover(path: str) -> None:
    """Remove a file of this user that no process has locked."""
    if os.name == "nt":
        os.unlink(path)  # fails where another process has it open
        return
    handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(handle)
        is_own_file = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
        if is_own_file and _locked(handle):
            os.unlink(path)
    finally:
        os.close(handle)


def _locked(handle: int) -> bool | None:
    """Lock an open file; False if another process holds the lock, None without locks."""
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
    if os.name == "nt":  # Windows cannot sync folders
        return
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


PRODUCER = "lstm-cli"
"""Name of this program in every mark."""
SIGNATURE = f"{PRODUCER} {__version__}"
"""Mark in JSON, under the key ``producer``, and in other texts."""
HDF5_ATTRIBUTE = "lstm_cli_version"
"""Mark in HDF5: an attribute of the root group."""
RUN_FILES = ("model.safetensors", "checkpoint.safetensors", "config.yaml", "metrics.jsonl")
"""Files of a training folder that no other command replaces."""

_HEAD = 4096
_LARGEST_HEADER = 16 << 20
_MOST_PARTS = 64
"""Most bytes read at a file's start, bytes of a safetensors header, and parts of a file."""
_STREAM = re.compile(r"/dev/(stdout|stderr|fd/\d+)|/proc/self/fd/\d+")
_JSON = re.compile(
    rb'\{\s*("\$schema": "[^"]*",\s*)?"(producer|\$comment)": "lstm-cli [^"]*"'
    rb'|\{\s*"schema": 1,\s*("mode": "[a-z]+",\s*)?"machine": \{\s*"processor":'  # older baselines
)
_XML = re.compile(rb'<Info\s+name="Creator"\s+value="lstm-cli [^"]*"')


def check_output_path(
    path: str | Path, *, option: str, force: bool, suffix: str = "", streams: bool = False
) -> None:
    """Raise unless a file may be created or replaced at a path.

    Parameters
    ----------
    option
        Option or argument that names the path, for hints: ``--output``, ``DST``.
    force
        Replace another program's file.
    suffix
        Suffix of files of this kind, for hints.
    streams
        The path may be a device or a pipe.

    Raises
    ------
    LstmCliError
        The folder does not exist, or the path is no regular file.
    UsageError
        The file belongs to a training run, or another program wrote it and `force` is not set.
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
            expected="a new name, or a file to replace",
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
    """Raise UsageError if another program wrote the file."""
    if os.path.exists(path) and not has_producer_mark(path):
        raise UsageError(
            f"{path} exists, and has no mark that lstm-cli wrote it",
            expected="a new name, or a file that lstm-cli wrote",
            where=str(path),
            hint="--force replaces it",
        )


def is_stream(path: str | Path) -> bool:
    """Whether a path leads to a device, a pipe or an open file, which is written in place."""
    if _STREAM.fullmatch(str(path)):
        return True
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def has_producer_mark(path: str | Path) -> bool:
    """Whether a file has the mark of lstm-cli; CSV and PyTorch's archives cannot have one."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD)
            return (
                _JSON.match(head.lstrip()) is not None
                or (head.startswith(b"<?xml") and _XML.search(head) is not None)
                or _is_marked_archive(head)
                or _is_marked_hdf5(file, head)
                or _is_marked_safetensors(file, head)
                or _is_marked_onnx(file)
            )
    except (OSError, ValueError, IndexError, RecursionError):
        return False


def _holds_run(folder: str) -> bool:
    return os.path.exists(os.path.join(folder, "checkpoint.safetensors"))


def _is_marked_archive(head: bytes) -> bool:
    # The first member of a ``.keras`` file is not compressed.
    name = b"metadata.json"
    key = f'"producer": "{PRODUCER} '.encode()
    return head.startswith(b"PK\3\4") and head[30 : 30 + len(name)] == name and key in head[:512]


def _is_marked_safetensors(file: BinaryIO, head: bytes) -> bool:
    # Native files have the mark as ``format``, files for PyTorch as ``producer``.
    size = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or size > _LARGEST_HEADER:
        return False
    file.seek(8)
    header = json.loads(file.read(size))
    texts = header.get("__metadata__")
    if not isinstance(texts, dict):
        return False
    return texts.get("format") == PRODUCER or str(texts.get("producer")).startswith(f"{PRODUCER} ")


def _is_marked_onnx(file: BinaryIO) -> bool:
    file.seek(0)
    for _ in range(_MOST_PARTS):
        tag = _varint(file)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            _varint(file)
        elif kind == 2:
            size = _varint(file)
            if number == 2:  # producer_name of the model
                return size == len(PRODUCER) and file.read(size) == PRODUCER.encode()
            file.seek(size, os.SEEK_CUR)
        else:
            return False
    return False


def _varint(file: BinaryIO) -> int:
    """Read a protobuf number of variable length; ValueError if there is none."""
    value = 0
    for k in range(10):
        byte = file.read(1)
        if not byte:
            break
        value |= (byte[0] & 127) << 7 * k
        if byte[0] < 128:
            return value
    raise ValueError("no varint")


def _is_marked_hdf5(file: BinaryIO, head: bytes) -> bool:
    """Look for the mark in the root group's object header, as h5py writes it by default.

    That is superblock version 0 with addresses of 8 bytes, and object header version 1.
    """
    if not head.startswith(b"\x89HDF\r\n\x1a\n\0") or head[13:15] != b"\x08\x08":
        return False
    address = int.from_bytes(head[64:72], "little")
    file.seek(address)
    prefix = file.read(16)
    if prefix[:1] != b"\1":
        return False
    parts = [(address + 16, int.from_bytes(prefix[8:12], "little"))]
    for start, size in parts:  # grows with each continuation message
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
    """The name in an attribute message; version 3 has an encoding byte before it."""
    start = 9 if body[:1] == b"\3" else 8
    size = int.from_bytes(body[2:4], "little")
    return body[start : start + size].rstrip(b"\0")
