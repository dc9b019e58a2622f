"""Writer of HDF5: complete files only, and Python commands in hints that write changed copies."""

from __future__ import annotations

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, BinaryIO, Self

import h5py
import numpy as np
from numpy.typing import DTypeLike

from lstm_cli.errors import LstmCliError, UsageError, printable, quote
from lstm_cli.hdf5.dataset import Dataset, ReversedDataset
from lstm_cli.hdf5.heap_check import Array
from lstm_cli.hdf5.limits import H5_ERRORS
from lstm_cli.output_files import AtomicFile, check_output_path, error_hint, error_reason, write_all

MAX_ATTRIBUTE_BYTES = 60_000
"""Bytes of text in an attribute, which HDF5 limits to 64 KiB. Longer text becomes a dataset."""

ROWS_BLOCK = 1 << 20
"""Bytes of rows that are gathered before they are written."""


@contextmanager
def writing_errors(path: str, option: str = "--output") -> Iterator[None]:
    """Turn errors of h5py during writing into an LstmCliError that names `path`.

    Parameters
    ----------
    option
        Option of the command that names another path.
    """
    try:
        yield
    except H5_ERRORS as error:
        raise LstmCliError(
            f"{path} cannot be written",
            expected="a writable folder with room for the results",
            found=_reason(error),
            where=path,
            hint=error_hint(_system_error_number(error)) or f"{option} PATH writes elsewhere",
        ) from error


def _reason(error: Exception) -> str:
    """Reason why a file cannot be written, as the operating system's message if there is one.

    HDF5 puts the system's error number into its own message, between times and addresses, and
    sometimes loses the number.
    """
    message = printable(" ".join(str(error).split()))
    if number := _system_error_number(error):
        return error_reason(OSError(number, os.strerror(number)))
    if re.search(r"(write|flush|truncate)\b.* fail", message):
        return "the system refuses the data"
    return message.partition(" (")[0] or type(error).__name__


def _system_error_number(error: Exception) -> int | None:
    match = re.search(r"errno = ([0-9]+)", str(error))
    return int(match[1]) if match else getattr(error, "errno", None)


class _FailSafeFile:
    """The file that HDF5 writes to. After a failed write, nothing more is written.

    HDF5 repeats failed writes when the file is closed and when the process ends, and crashes if
    they fail again. So HDF5 never sees a failure; `raise_error` raises it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: BaseException | None = None

    def raise_error(self) -> None:
        """Raise the error of the first failed write."""
        if self._error is not None:
            raise self._error

    def give_up(self) -> None:
        """Ignore all later writes."""
        self._error = self._error or LstmCliError("the file was given up")

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position in the file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Position in the file, in bytes."""
        return self._file.tell()

    def read(self, size: int) -> bytes:
        """Read `size` bytes. h5py accepts an object with this method as a file."""
        buffer = bytearray(size)
        return bytes(buffer[: self.readinto(memoryview(buffer))])

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer; bytes that could not be written read as zeros."""
        read = self._file.readinto(buffer) or 0  # type: ignore[attr-defined]
        if self._error is not None:
            buffer[read:] = bytes(len(buffer) - read)
            return len(buffer)
        return int(read)

    def write(self, data: memoryview) -> int:
        """Write all of the data, unless a write has failed."""
        with self._keep_error():
            write_all(self._file, data)
        return len(data)

    def truncate(self, size: int) -> int:
        """Set the length of the file, unless a write has failed."""
        with self._keep_error():
            self._file.truncate(size)
        return size

    def flush(self) -> None:
        """Do nothing: the file has no buffer."""

    @contextmanager
    def _keep_error(self) -> Iterator[None]:
        if self._error is None:
            try:
                yield
            except BaseException as error:  # Ctrl-C too: it cannot pass through HDF5
                self._error = error


@dataclass
class _Rows:
    """Rows of a dataset that wait to be written."""

    dataset: Any
    start: int
    stop: int
    parts: list[Array] = field(default_factory=list)
    nbytes: int = 0


class OutputFile:
    """A file being written under a temporary name in the folder of `path`.

    Parameters
    ----------
    path
        Path of the complete file. An older file stays untouched until then.
    inputs
        Files being read, which must not be replaced.
    option
        Command line option that names `path`, for hints.
    force
        Replace a file that another program wrote.
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
        self._sink: _FailSafeFile | None = None
        self._handle: Any = None
        self._rows: dict[int, _Rows] = {}

    def open(self) -> None:
        """Create the temporary file."""
        with self._writing_errors():
            self._temporary = AtomicFile(self.path, force=self._force)
            self._sink = _FailSafeFile(self._temporary.file)
            self._handle = h5py.File(self._sink, "w")

    @contextmanager
    def _writing_errors(self) -> Iterator[None]:
        with writing_errors(self.path, self._option):
            try:
                yield
            finally:  # the first failed write tells more than the error of HDF5
                if self._sink is not None:
                    self._sink.raise_error()

    def create(
        self, name: str, shape: Sequence[int], dtype: DTypeLike, *, vlen: bool = False
    ) -> Any:
        """Create a dataset of its final shape, filled with zeros."""
        with self._writing_errors():
            dataset = h5py.vlen_dtype(np.dtype(dtype)) if vlen else np.dtype(dtype)
            return self._handle.create_dataset(name, tuple(shape), dataset)

    def put(self, name: str, values: Array) -> None:
        """Write a whole dataset."""
        with self._writing_errors():
            self._handle.create_dataset(name, data=values)

    def put_texts(self, name: str, texts: Sequence[str]) -> None:
        """Write a dataset (N,) of text."""
        with self._writing_errors():
            self._handle.create_dataset(
                name,
                data=[_storable(python_string) for python_string in texts],
                dtype=h5py.string_dtype(),
            )

    def create_texts(self, name: str, count: int) -> Any:
        """Create a dataset (count,) of text, to be filled by `fill_texts`."""
        with self._writing_errors():
            return self._handle.create_dataset(name, (count,), h5py.string_dtype())

    def fill_texts(self, dataset: Any, place: slice, texts: Sequence[str]) -> None:
        """Write texts to a part of a dataset from `create_texts`."""
        with self._writing_errors():
            dataset[place] = [_storable(text) for text in texts]

    def fill(self, dataset: Any, place: Any, values: Array) -> None:
        """Write `values` to a selection of a dataset from `create`.

        Rows that follow one another are gathered and written in blocks, since a write of HDF5 takes
        as long as that of thousands of numbers. So `values` may not change later.
        """
        if not isinstance(place, slice) or values.nbytes >= ROWS_BLOCK:
            with self._writing_errors():
                dataset[place] = values
            return
        rows = self._rows.get(id(dataset))
        if rows is None or rows.stop != place.start:
            self._write_rows(rows)
            rows = self._rows[id(dataset)] = _Rows(dataset, place.start, place.start)
        rows.parts.append(values)
        rows.stop, rows.nbytes = place.stop, rows.nbytes + values.nbytes
        if rows.nbytes >= ROWS_BLOCK:
            self._write_rows(self._rows.pop(id(dataset)))

    def _write_rows(self, rows: _Rows | None) -> None:
        if rows is not None and rows.parts:
            with self._writing_errors():
                rows.dataset[rows.start : rows.stop] = np.concatenate(rows.parts)

    def describe(self, attributes: Mapping[str, Any], dataset: Any = None) -> None:
        """Write attributes of the file, or of a dataset."""
        holder = self._handle if dataset is None else dataset
        for name, value in attributes.items():
            with self._writing_errors():
                value = _storable(value) if isinstance(value, str) else value
                if isinstance(value, str) and len(value.encode()) > MAX_ATTRIBUTE_BYTES:
                    self._handle[name] = value
                else:
                    holder.attrs[name] = value

    def finish(self) -> None:
        """Close the file and rename it to `path`."""
        try:
            for rows in self._rows.values():
                self._write_rows(rows)
            self._rows.clear()
            with self._writing_errors():
                self._handle.close()
            with writing_errors(self.path, self._option):
                if self._temporary is not None:
                    self._temporary.keep()
        except BaseException:
            self.discard()
            raise

    def discard(self) -> None:
        """Remove the unfinished file. An older file stays."""
        try:
            if self._sink is not None:
                self._sink.give_up()
            if self._handle is not None:
                with suppress(*H5_ERRORS):
                    self._handle.close()
        finally:
            if self._temporary is not None:
                self._temporary.discard()


def _storable(python_string: str) -> str:
    """Text without NUL and without half of a surrogate pair, which HDF5 cannot store."""
    return python_string.replace("\0", "\ufffd").encode("utf-8", "backslashreplace").decode()


class Writer(ABC):
    """Context manager that fills an `OutputFile`, and discards it after an error."""

    _file: OutputFile

    @abstractmethod
    def _prepare(self) -> None:
        """Create the datasets that do not depend on the batches."""

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


@dataclass(frozen=True)
class PaddedArrays:
    """Padded arrays that belong to a mask or to lengths.

    Attributes
    ----------
    file
        Path of the file.
    inputs
        Inputs (N, T, D).
    targets
        Targets that may be one per step, (N, T, ...), or None.
    lengths
        (N,) lengths in the file, or None.
    """

    file: str
    inputs: Dataset
    targets: Dataset | None = None
    lengths: Array | None = None


def padding_last_command(divider: Dataset, arrays: PaddedArrays) -> str:
    """A command that writes a copy of the file with the valid steps before the padding.

    Parameters
    ----------
    divider
        The mask or lengths of sequences that begin with padding.
    """
    N, T = arrays.inputs.shape[:2]
    mask = divider.rank > 1
    if mask:
        order = f"np.argsort({_expression(divider)}.reshape({N}, {T}) == 0, 1, kind='stable')"
    else:
        order = f"(np.arange({T}) - {_expression(divider)}.reshape({N}, 1).astype(int)) % {T}"
    moved = [arrays.inputs, *([divider] if mask else [])]
    moved += [] if arrays.targets is None else [arrays.targets]
    lines = [f"o = {order}", f"r = np.arange({N})[:, None]"]
    lines += [_assignment(dataset, f"{_expression(dataset)}[r, o]") for dataset in moved]
    targets = "" if arrays.targets is None else ", and their targets"
    return f"{changed_copy_command(arrays.file, lines)} has the valid steps{targets} first"


def inverted_mask_command(mask: Dataset, arrays: PaddedArrays) -> str:
    """A command that writes a copy of the file with an inverted mask."""
    lines = [_assignment(mask, f"{_expression(mask)} == 0")]
    return f"{changed_copy_command(arrays.file, lines)} has 1 at valid steps"


def changed_copy_command(file: str, lines: Sequence[str]) -> str:
    """A command that changes a copy of a file by lines of Python, and the name of the copy."""
    stem, suffix = os.path.splitext(os.path.basename(file))
    copy = f"{stem}-turned{suffix}"
    names = f"{python_string(file)}, {python_string(copy)}"
    opening = f"import shutil, h5py, numpy as np; f = h5py.File(shutil.copyfile({names}), 'r+')"
    code = "; ".join([opening, *lines]).replace("'", '"')
    return f"python -c {quote(code)} writes {quote(copy)}, which"


def series_command(file: str, read: str, array: str) -> str:
    """A command that writes a file whose `inputs` are one array, and advice on its use.

    Parameters
    ----------
    read
        Python statement that reads from the file `f`.
    array
        Python expression of the array (T, D).
    """
    copy = os.path.splitext(os.path.basename(file))[0] + "-inputs.h5"
    code = (
        f"import h5py, numpy as np; f = h5py.File({python_string(file)}); {read}; "
        f'h5py.File({python_string(copy)}, "w")["inputs"] = {array}'
    )
    return (
        f"python -c {quote(code)} writes {quote(copy)}: one series (T, D); `lengths` (N,) next to "
        "it divide it into sequences"
    )


def conversion_command(path: str, statement: str) -> str:
    """A command that writes an HDF5 file from a file of another kind."""
    copy = os.path.splitext(os.path.basename(path))[0] + ".h5"
    code = f'import h5py, numpy as np; h5py.File({python_string(copy)}, "w"){statement}'
    return f"python -c {quote(code)} writes {quote(copy)}"


def python_string(name: str) -> str:
    """A name as a Python literal in double quotes."""
    return json.dumps(name, ensure_ascii=False).replace("'", "\\x27")


def _expression(dataset: Dataset) -> str:
    transpose = ".T" if isinstance(dataset, ReversedDataset) else ""
    return f"f[{python_string(dataset.path)}][:]{transpose}"


def _assignment(dataset: Dataset, value: str) -> str:
    turned = f"({value}).T" if isinstance(dataset, ReversedDataset) else value
    return f"f[{python_string(dataset.path)}][:] = {turned}"
