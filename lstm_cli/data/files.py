"""Opening a file: the DATA argument, and what is said when it is no HDF5."""

from __future__ import annotations

import os
import re
import stat
import weakref
from contextlib import suppress
from typing import Any

import h5py

from lstm_cli.data.axes import HEADERS
from lstm_cli.data.bands import CHUNK_CACHE_BYTES
from lstm_cli.data.guard import SIZES, CheckedFile, Guard
from lstm_cli.data.links import Folder
from lstm_cli.data.not_hdf5 import HEAD_BYTES, refuse, refuse_folder
from lstm_cli.data.storage import H5_ERRORS, reading
from lstm_cli.errors import DataError, is_memory_error, memory_error, printable, quote, quote_yaml

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
    if is_memory_error(error):
        raise memory_error(path) from error
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
        if is_memory_error(error):
            raise memory_error(path) from error
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
        hint=f"{group} names the group; in a config, data.inputs: {quote_yaml(name)} names the "
        "dataset",
    )
