"""An HDF5 file that appears under its name only when it is whole."""

from __future__ import annotations

import os
import re
import secrets
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from shlex import quote
from types import TracebackType
from typing import Any, Self

import h5py
import numpy as np
from numpy.typing import DTypeLike

from lstm_cli.data.storage import H5_ERRORS, printable
from lstm_cli.data.types import Array
from lstm_cli.errors import LstmCliError, UsageError

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
            hint=f"{option} PATH writes elsewhere",
        ) from error


def _reason(error: Exception) -> str:
    """Why a file cannot be written, in the system's words where it has any.

    HDF5 hands the system's number on inside its own words, between times and addresses, and
    sometimes loses it.
    """
    text = " ".join(printable(str(error)).split())
    told = re.search(r"errno = ([0-9]+)", text)
    number = int(told[1]) if told else getattr(error, "errno", None)
    if number:
        return os.strerror(number).lower()
    if re.search(r"(write|flush|truncate)\b.* fail", text):
        return "the system does not take what is written"
    return text.partition(" (")[0] or type(error).__name__


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
    """

    def __init__(self, path: str, inputs: Sequence[str] = (), *, option: str = "--output") -> None:
        _need_target(path, inputs, option)
        self.path = path
        self._option = option
        self._final = os.path.realpath(path)
        folder, name = os.path.split(self._final)
        self._temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.part")
        self._handle: Any = None

    def open(self) -> None:
        """Create the temporary file."""
        with writing(self.path, self._option):
            self._handle = h5py.File(self._temporary, "x")

    def create(
        self, name: str, shape: Sequence[int], dtype: DTypeLike, *, vlen: bool = False
    ) -> Any:
        """A dataset of its final shape, filled with zeros until it is written."""
        with writing(self.path, self._option):
            stored = h5py.vlen_dtype(np.dtype(dtype)) if vlen else np.dtype(dtype)
            return self._handle.create_dataset(name, tuple(shape), stored)

    def put(self, name: str, values: Array) -> None:
        """A dataset written at once."""
        with writing(self.path, self._option):
            self._handle.create_dataset(name, data=values)

    def put_texts(self, name: str, texts: Sequence[str]) -> None:
        """A dataset (N,) of text."""
        with writing(self.path, self._option):
            self._handle.create_dataset(
                name, data=[_storable(text) for text in texts], dtype=h5py.string_dtype()
            )

    def fill(self, dataset: Any, place: Any, values: Array) -> None:
        """Write `values` at `place` of a dataset made by `create`."""
        with writing(self.path, self._option):
            dataset[place] = values

    def describe(self, attributes: Mapping[str, Any], dataset: Any = None) -> None:
        """Attributes of the file, or of a dataset."""
        holder = self._handle if dataset is None else dataset
        for name, value in attributes.items():
            with writing(self.path, self._option):
                value = _storable(value) if isinstance(value, str) else value
                if isinstance(value, str) and len(value.encode()) > MAX_ATTRIBUTE_BYTES:
                    self._handle[name] = value
                else:
                    holder.attrs[name] = value

    def finish(self) -> None:
        """Close the file and give it its name."""
        try:
            with writing(self.path, self._option):
                self._handle.close()
                os.replace(self._temporary, self._final)
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove what was written; an older file stays."""
        try:
            if self._handle is not None:
                with suppress(*H5_ERRORS):
                    self._handle.close()
        finally:
            with suppress(OSError):
                os.unlink(self._temporary)


def _storable(text: str) -> str:
    """Text HDF5 can hold: no NUL, no half of a surrogate pair."""
    return text.replace("\0", "\ufffd").encode("utf-8", "backslashreplace").decode()


def _need_target(path: str, inputs: Sequence[str], option: str) -> None:
    """Raise unless a file may be made at `path`."""
    folder = os.path.dirname(os.path.realpath(path))
    if not os.path.isdir(folder):
        raise LstmCliError(
            f"{path} cannot be written: its folder does not exist",
            expected=f"a folder {folder}",
            where=path,
            hint=f"mkdir -p {quote(folder)}",
        )
    try:
        status = os.stat(path)
    except OSError:
        return
    if not stat.S_ISREG(status.st_mode):
        inside = os.path.join(path, "out.h5")
        raise LstmCliError(
            f"{path} cannot be written: it is no regular file",
            expected="a new name, or a file to be replaced",
            found="a folder" if stat.S_ISDIR(status.st_mode) else "a device or pipe",
            where=path,
            hint=f"{option} {quote(inside)}" if stat.S_ISDIR(status.st_mode) else None,
        )
    for name in inputs:
        if os.path.samefile(name, path):
            raise UsageError(
                f"{path} is being read: the results would replace their own input",
                where=path,
                hint=f"{option} OTHER.h5",
            )


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
