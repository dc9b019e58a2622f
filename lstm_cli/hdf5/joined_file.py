"""One file of the rows of several HDF5 files, copied block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import h5py

from lstm_cli.hdf5.limits import reading_errors
from lstm_cli.hdf5.writer import OutputFile, Writer

BLOCK_BYTES = 16 << 20
"""Bytes of values that are copied at a time."""
BLOCK_ROWS, BLOCK_TEXTS = 64, 4096
"""Rows of variable length, and texts, that are copied at a time."""


class JoinedFile(Writer):
    """Writes the datasets of several files, one after the other; a context manager.

    Parameters
    ----------
    path
        Path of the file to write.
    parts
        Paths of files in the order of their rows.
    group
        Group in each part whose datasets are copied, to the root.
    has_rows
        Function of a dataset's name: true if its rows follow those of the part before. Any other
        dataset is copied from the first part that has it.
    attributes
        Attributes of the file.
    force
        Replace a file that another program wrote.

    Raises
    ------
    DataError
        A part is damaged, or lacks a dataset.
    LstmCliError
        The file cannot be written.
    """

    def __init__(
        self,
        path: str,
        parts: Sequence[str],
        *,
        group: str,
        has_rows: Callable[[str], bool],
        attributes: Mapping[str, Any],
        force: bool = False,
    ) -> None:
        self._file = OutputFile(path, parts, force=force)
        self._parts, self._group, self._has_rows = tuple(parts), group, has_rows
        self._attributes = dict(attributes)
        self._targets: dict[str, Any] = {}
        self._rows: dict[str, int] = {}
        self._copied: set[str] = set()

    def _prepare(self) -> None:
        """Create the datasets with rows, at the sum of their lengths in all parts."""
        self._file.describe(self._attributes)
        shapes: dict[str, tuple[int, ...]] = {}
        for part in self._parts:
            with self._datasets(part) as datasets:
                for name, dataset in datasets:
                    if self._has_rows(name):
                        rows = shapes.get(name, (0,))[0] + dataset.shape[0]
                        shapes[name] = (rows, *dataset.shape[1:])
        with self._datasets(self._parts[0]) as datasets:
            for name, dataset in datasets:
                if self._has_rows(name):
                    self._targets[name] = self._create(name, shapes[name], dataset)
                    self._rows[name] = 0

    def copy(self) -> Iterator[str]:
        """Copy part by part, and yield the path of each."""
        for part in self._parts:
            with self._datasets(part) as datasets:
                for name, dataset in datasets:
                    self._copy(name, dataset)
            yield part

    def _copy(self, name: str, dataset: Any) -> None:
        if self._has_rows(name):
            self._fill(self._targets[name], self._rows[name], dataset)
            self._rows[name] += dataset.shape[0]
        elif name not in self._copied:
            self._copied.add(name)
            self._fill(self._create(name, dataset.shape, dataset), 0, dataset)

    def _create(self, name: str, shape: tuple[int, ...], like: Any) -> Any:
        dataset = self._file.create(name, shape, like.dtype)
        self._file.describe(dict(like.attrs), dataset)
        return dataset

    def _fill(self, target: Any, first: int, dataset: Any) -> None:
        """Copy a dataset to the rows of another one from `first`."""
        count, is_vlen = dataset.shape[0], h5py.check_vlen_dtype(dataset.dtype) not in (None, str)
        size = BLOCK_ROWS if is_vlen else BLOCK_TEXTS
        if dataset.dtype.kind != "O":
            size = max(1, BLOCK_BYTES * max(count, 1) // max(dataset.nbytes, 1))
        for start in range(0, count, size):
            block = dataset[start : start + size]
            if is_vlen:  # h5py may take several rows of one length for an array
                for row, values in enumerate(block, first + start):
                    self._file.fill(target, row, values)
            else:
                self._file.fill(target, slice(first + start, first + start + len(block)), block)

    @contextmanager
    def _datasets(self, part: str) -> Iterator[Iterator[tuple[str, Any]]]:
        """Names of a part's datasets in its group, and the datasets, opened one by one."""
        names: list[str] = []
        with reading_errors(part), h5py.File(part, "r") as file:
            group = file[self._group]
            group.visit(names.append)
            items = ((name, group[name]) for name in names)
            yield ((name, item) for name, item in items if isinstance(item, h5py.Dataset))
