"""An HDF5 file that appears under its name only when it is whole."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, BinaryIO, Self

import h5py
import numpy as np
from numpy.typing import DTypeLike

from lstm_cli.data.storage import H5_ERRORS
from lstm_cli.data.types import Array
from lstm_cli.errors import LstmCliError, UsageError, printable
from lstm_cli.output_files import AtomicFile, check_output_path, error_hint, error_reason, write_all

MAX_ATTRIBUTE_BYTES = 60_000
"""HDF5 keeps attributes below 64 KiB; longer text is written as a dataset of the same name."""


@contextmanager
def writing(path: str, option: str = "--output") -> Iterator[None]:
    """Turn what h5py raises while writing into an LstmCliError that names `path`.

    Parameters
    ----------
    option
        What names another path.
    """
    try:
        yield
    except H5_ERRORS as error:
        raise LstmCliError(
            f"{path} cannot be written",
            expected="a folder that may be written to, with room for the results",
            found=_reason(error),
            where=path,
            hint=error_hint(_number(error)) or f"{option} PATH writes elsewhere",
        ) from error


def _reason(error: Exception) -> str:
    """Why a file cannot be written, in the system's words where it has any.

    HDF5 hands the system's number on inside its own words, between times and addresses, and
    sometimes loses it.
    """
    text = printable(" ".join(str(error).split()))
    if number := _number(error):
        return error_reason(OSError(number, os.strerror(number)))
    if re.search(r"(write|flush|truncate)\b.* fail", text):
        return "the system does not take what is written"
    return text.partition(" (")[0] or type(error).__name__


def _number(error: Exception) -> int | None:
    """The system's number of an error."""
    found = re.search(r"errno = ([0-9]+)", str(error))
    return int(found[1]) if found else getattr(error, "errno", None)


class _Sink:
    """The file that HDF5 writes to. Once a write has failed, nothing more is written.

    HDF5 writes again what could not be written, when a file is closed and when the process ends,
    and crashes if that fails too. So it is never told of a failure: `check` is.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: BaseException | None = None

    def check(self) -> None:
        """Raise what kept a write from succeeding."""
        if self._error is not None:
            raise self._error

    def give_up(self) -> None:
        """Write nothing from now on."""
        self._error = self._error or LstmCliError("the file was given up")

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a place in the file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """The place in the file."""
        return self._file.tell()

    def read(self, size: int) -> bytes:
        """Read so many bytes; h5py takes what has this for a file."""
        buffer = bytearray(size)
        return bytes(buffer[: self.readinto(memoryview(buffer))])

    def readinto(self, buffer: memoryview) -> int:
        """Read; of what could not be written, zeros."""
        read = self._file.readinto(buffer) or 0  # type: ignore[attr-defined]
        if self._error is not None:
            buffer[read:] = bytes(len(buffer) - read)
            return len(buffer)
        return int(read)

    def write(self, data: memoryview) -> int:
        """Write all of the data."""
        with self._remembering():
            write_all(self._file, data)
        return len(data)

    def truncate(self, size: int) -> int:
        """Give the file its length."""
        with self._remembering():
            self._file.truncate(size)
        return size

    def flush(self) -> None:
        """Nothing: the file has no buffer."""

    @contextmanager
    def _remembering(self) -> Iterator[None]:
        if self._error is None:
            try:
                yield
            except BaseException as error:  # Ctrl-C too: it cannot pass through HDF5
                self._error = error


class OutputFile:
    """A file being written under a temporary name in the folder of `path`.

    Parameters
    ----------
    path
        Its name once it is whole; an older file stays untouched until then.
    inputs
        Files being read, which it must not replace.
    option
        Of the command line, that names `path`; for hints.
    force
        Replace what another program wrote.
    """

    def __init__(
        self,
        path: str,
        inputs: Sequence[str] = (),
        *,
        option: str = "--output",
        force: bool = False,
    ) -> None:
        for name in inputs:
            if os.path.exists(path) and os.path.samefile(name, path):
                raise UsageError(
                    f"{path} is being read: the results would replace their own input",
                    where=path,
                    hint=f"{option} OTHER.h5",
                )
        check_output_path(path, option=option, force=force, suffix=".h5")
        self.path = path
        self._option, self._force = option, force
        self._temporary: AtomicFile | None = None
        self._sink: _Sink | None = None
        self._handle: Any = None

    def open(self) -> None:
        """Create the temporary file."""
        with self._writing():
            self._temporary = AtomicFile(self.path, force=self._force)
            self._sink = _Sink(self._temporary.file)
            self._handle = h5py.File(self._sink, "w")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        with writing(self.path, self._option):
            try:
                yield
            finally:  # what kept a write from succeeding says more than what HDF5 makes of it
                if self._sink is not None:
                    self._sink.check()

    def create(
        self, name: str, shape: Sequence[int], dtype: DTypeLike, *, vlen: bool = False
    ) -> Any:
        """A dataset of its final shape, filled with zeros until it is written."""
        with self._writing():
            stored = h5py.vlen_dtype(np.dtype(dtype)) if vlen else np.dtype(dtype)
            return self._handle.create_dataset(name, tuple(shape), stored)

    def put(self, name: str, values: Array) -> None:
        """A dataset written at once."""
        with self._writing():
            self._handle.create_dataset(name, data=values)

    def put_texts(self, name: str, texts: Sequence[str]) -> None:
        """A dataset (N,) of text."""
        with self._writing():
            self._handle.create_dataset(
                name, data=[_storable(text) for text in texts], dtype=h5py.string_dtype()
            )

    def fill(self, dataset: Any, place: Any, values: Array) -> None:
        """Write `values` at `place` of a dataset made by `create`."""
        with self._writing():
            dataset[place] = values

    def describe(self, attributes: Mapping[str, Any], dataset: Any = None) -> None:
        """Attributes of the file, or of a dataset."""
        holder = self._handle if dataset is None else dataset
        for name, value in attributes.items():
            with self._writing():
                value = _storable(value) if isinstance(value, str) else value
                if isinstance(value, str) and len(value.encode()) > MAX_ATTRIBUTE_BYTES:
                    self._handle[name] = value
                else:
                    holder.attrs[name] = value

    def finish(self) -> None:
        """Close the file and give it its name."""
        try:
            with self._writing():
                self._handle.close()
            with writing(self.path, self._option):
                if self._temporary is not None:
                    self._temporary.keep()
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove what was written; an older file stays."""
        try:
            if self._sink is not None:
                self._sink.give_up()
            if self._handle is not None:
                with suppress(*H5_ERRORS):
                    self._handle.close()
        finally:
            if self._temporary is not None:
                self._temporary.discard()


def _storable(text: str) -> str:
    """Text HDF5 can hold: no NUL, no half of a surrogate pair."""
    return text.replace("\0", "\ufffd").encode("utf-8", "backslashreplace").decode()


class Writer(ABC):
    """Fills an `OutputFile`; a context manager that keeps it only if nothing goes wrong."""

    _file: OutputFile

    @abstractmethod
    def _prepare(self) -> None:
        """Make what the file holds whatever the batches bring."""

    def __enter__(self) -> Self:
        try:
            self._file.open()
            self._prepare()
        except BaseException:
            self._file.discard()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._file.finish()
        else:
            self._file.discard()
