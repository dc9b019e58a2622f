"""Result files of a run: outputs, gates and states written to HDF5, and read back.

`ResultWriter` writes outputs and final states, and `GateWriter` the gates. `StateReader` reads
initial states.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from lstm_cli.data.dataset_roles import require_numeric
from lstm_cli.data.lengths import starts_of, valid_steps
from lstm_cli.data.sequence_data import SequenceData
from lstm_cli.data.types import Array, Batch
from lstm_cli.errors import DataError, LstmCliError
from lstm_cli.hdf5.dataset import Dataset, type_name
from lstm_cli.hdf5.file import Hdf5File
from lstm_cli.hdf5.group import Group
from lstm_cli.hdf5.writer import OutputFile, Writer

StateShape: TypeAlias = tuple[int, int, int, int | None]
"""Layer index, number of directions, size of h, and size of c or None."""

BY_SEQUENCE = frozenset(("outputs", "lengths", "names", "state", "source"))
"""Names in a results file of datasets with a row, or several, for each sequence."""

ORIGINS_BLOCK = 1 << 16
"""Number of sequences whose origins are written at a time."""

RESERVED = BY_SEQUENCE | {"classes"}
"""Names in a results file that no sequence may have."""


class ResultWriter(Writer):
    """Writes a results file batch by batch; a context manager.

    The file gets its name at the end. Any error, also an interruption, leaves no file behind and
    keeps an older file.

    Parameters
    ----------
    path
        Path of the results file.
    dataset
        The data of the run.
    features
        Number of outputs F per step or per sequence.
    per_step
        The network returns sequences.
    dtype
        Type of outputs and states.
    attributes
        Attributes of the file: version, config, hash of the weights.
    states
        Shapes of the states of each recurrent layer.
    force
        Replace a file that another program wrote.
    span
        Number of the first sequence that the file holds, and of the one after the last; None: all.
    group
        Group that gets the datasets.

    Raises
    ------
    LstmCliError
        The file cannot be written, or names of sequences collide.
    UsageError
        The file is being read, or another program wrote it.
    """

    def __init__(
        self,
        path: str,
        dataset: SequenceData,
        *,
        features: int,
        per_step: bool,
        dtype: DTypeLike,
        attributes: Mapping[str, Any],
        states: Sequence[StateShape] = (),
        force: bool = False,
        span: tuple[int, int] | None = None,
        group: str = "",
    ) -> None:
        self._file = OutputFile(path, dataset.paths, force=force)
        self._dataset = dataset
        self._first, self._stop = span or (0, dataset.count)
        self._prefix = f"{group}/" if group else ""
        self._features = features
        self._per_step = per_step
        self._dtype = np.dtype(dtype)
        self._attributes = dict(attributes)
        self._state_shapes = tuple(states)
        self._states: dict[int, tuple[Any, Any]] = {}
        self._outputs: Any = None
        self._starts = starts_of(dataset.lengths())
        # Windows are written as dense.
        self._layout = "dense" if dataset.windowed else dataset.layout
        if self._layout == "groups":
            _require_unique_names(dataset, path)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of ``outputs``; for vlen and groups, the shape of all rows one after the other."""
        data, F, count = self._dataset, self._features, self._stop - self._first
        if not self._per_step:
            return count, F
        steps = int(self._starts[self._stop] - self._starts[self._first])
        return (count, data.width, F) if data.padded else (steps, F)

    def write(
        self,
        batch: Batch,
        outputs: Array,
        states: Mapping[int, tuple[Array, Array | None]] | None = None,
    ) -> None:
        """Write the outputs (N, T, F) or (N, F) of a batch, and final states by layer index."""
        first, stop = batch.first, batch.first + batch.count
        rows = slice(first - self._first, stop - self._first)
        if self._layout == "groups":
            self._write_groups(batch, outputs)
        elif not self._per_step:
            self._file.fill(self._outputs, rows, outputs)
        elif self._dataset.padded:
            steps = min(outputs.shape[1], self._dataset.width)
            self._file.fill(self._outputs, (rows, slice(0, steps)), outputs[:, :steps])
        elif self._layout == "vlen":
            self._write_rows(batch, outputs)
        else:
            begin, end = (int(self._starts[n] - self._starts[self._first]) for n in (first, stop))
            valid = valid_rows(batch, outputs, self._dataset)
            self._file.fill(self._outputs, slice(begin, end), valid)
        for layer, (h, c) in (states or {}).items():
            self._write_state(layer, rows, h, c)

    def put(self, name: str, values: Array | str) -> None:
        """Write a further dataset, outside of the group of results."""
        if isinstance(values, str):
            self._file.put_texts(name, [values])
        else:
            self._file.put(name, values)

    def _prepare(self) -> None:
        data, file, prefix = self._dataset, self._file, self._prefix
        first, stop = self._first, self._stop
        count = stop - first
        file.describe(self._attributes)
        if self._layout == "vlen" and self._per_step:
            self._outputs = file.create(f"{prefix}outputs", (count,), self._dtype, vlen=True)
            file.describe({"features": self._features}, self._outputs)
        elif self._layout != "groups":
            self._outputs = file.create(f"{prefix}outputs", self.shape, self._dtype)
        if data.varying:
            file.put(f"{prefix}lengths", data.lengths(first, count))
        if data.names is not None and self._layout != "groups":
            file.put_texts(f"{prefix}names", data.names[first:stop])
        self._write_origins()
        if data.class_labels is not None:
            file.put_texts(f"{prefix}classes", data.class_labels)
        for layer, directions, h, c in self._state_shapes:
            sizes = {"h": h} if c is None else {"h": h, "c": c}
            datasets = {
                letter: file.create(
                    f"{prefix}state/{layer}/{letter}", (count, directions, size), self._dtype
                )
                for letter, size in sizes.items()
            }
            self._states[layer] = datasets["h"], datasets.get("c")

    def _write_origins(self) -> None:
        """Write where the sequences come from, block by block, since texts take much memory."""
        file, place, first, stop = self._file, f"{self._prefix}source", self._first, self._stop
        count = stop - first
        files = file.create_texts(f"{place}/file", count)
        sequence = file.create(f"{place}/sequence", (count,), np.int64)
        step = names = None
        if self._dataset.windowed:
            step = file.create(f"{place}/step", (count,), np.int64)
        if self._dataset.has_names:
            names = file.create_texts(f"{place}/name", count)
        for start in range(first, stop, ORIGINS_BLOCK):
            end = min(stop, start + ORIGINS_BLOCK)
            rows, origins = slice(start - first, end - first), self._dataset.origins(start, end)
            file.fill_texts(files, rows, origins.files)
            file.fill(sequence, rows, origins.sequence)
            if step is not None and origins.step is not None:
                file.fill(step, rows, origins.step)
            if names is not None and origins.names is not None:
                file.fill_texts(names, rows, origins.names)

    def _sequences(self, batch: Batch, outputs: Array) -> Iterator[tuple[int, Array]]:
        """Number and outputs of each sequence: its valid steps (T, F), or (F,)."""
        lengths = self._dataset.lengths(batch.first, batch.count)
        for row, length in enumerate(lengths.tolist()):
            values = outputs[row, :length] if self._per_step else outputs[row]
            yield batch.first + row, values.astype(self._dtype, copy=False)

    def _write_groups(self, batch: Batch, outputs: Array) -> None:
        names = self._dataset.names or []
        for number, values in self._sequences(batch, outputs):
            self._file.put(f"{self._prefix}{names[number]}/outputs", values)

    def _write_rows(self, batch: Batch, outputs: Array) -> None:
        for number, values in self._sequences(batch, outputs):
            self._file.fill(self._outputs, number - self._first, values.reshape(-1))

    def _write_state(self, layer: int, rows: slice, h: Array, c: Array | None) -> None:
        dataset_h, dataset_c = self._states[layer]
        self._file.fill(dataset_h, rows, h)
        if dataset_c is not None and c is not None:
            self._file.fill(dataset_c, rows, c)


def valid_rows(batch: Batch, padded: Array, dataset: SequenceData) -> Array:
    """(rows, ...) valid steps of (N, T, ...), one sequence after the other."""
    lengths = dataset.lengths(batch.first, batch.count)
    rows: Array = padded[valid_steps(lengths, padded.shape[1])]
    return rows


def _require_unique_names(dataset: SequenceData, path: str) -> None:
    """Raise LstmCliError if two sequences share a name, or a name is reserved."""
    names = sorted(dataset.names or [])
    duplicate = next((a for a, b in pairwise(names) if a == b), None)
    if duplicate is not None:
        raise LstmCliError(
            f"two sequences are called {duplicate}: their results would have the same name",
            expected="names that differ over all files",
            where=(path, *dataset.paths),
            hint="run the files one at a time",
        )
    reserved = next((name for name in names if name in RESERVED), None)
    if reserved is not None:
        raise LstmCliError(
            f"a sequence is called {reserved}, a name that is reserved in results",
            expected="another name for that group",
            where=(path, *dataset.paths),
        )


GateValues: TypeAlias = Mapping[int, Mapping[str, Mapping[str, Array]]]
"""Values (N, T, H) by layer index, direction, and name of gate or state."""


class GateWriter(Writer):
    """Writes ``layers/<k>/<forward|reverse>/<name>`` batch by batch; a context manager.

    Dense data and windows give (N, T, H); other layouts give (sum T, H) and ``lengths``. The
    names come from the first batch. The file gets its name at the end, as with `ResultWriter`.

    Raises
    ------
    LstmCliError
        The file cannot be written.
    """

    def __init__(
        self,
        path: str,
        dataset: SequenceData,
        *,
        dtype: DTypeLike,
        attributes: Mapping[str, Any],
        force: bool = False,
    ) -> None:
        self._file = OutputFile(path, dataset.paths, option="--gates", force=force)
        self._dataset = dataset
        self._dtype = np.dtype(dtype)
        self._attributes = dict(attributes)
        self._datasets: dict[str, Any] = {}
        self._starts = starts_of(dataset.lengths())

    def _prepare(self) -> None:
        self._file.describe(self._attributes)
        if self._dataset.varying or not self._dataset.padded:
            self._file.put("lengths", self._dataset.lengths())
        if self._dataset.names is not None:
            self._file.put_texts("names", self._dataset.names)

    def write(self, batch: Batch, gates: GateValues) -> None:
        """Write the gates and states of a batch."""
        stop = batch.first + batch.count
        for name, values in _flat_names(gates):
            dataset = self._dataset_for(name, values.shape[2])
            if self._dataset.padded:
                steps = min(values.shape[1], self._dataset.width)
                place = (slice(batch.first, stop), slice(0, steps))
                self._file.fill(dataset, place, values[:, :steps])
            else:
                rows = slice(int(self._starts[batch.first]), int(self._starts[stop]))
                self._file.fill(dataset, rows, valid_rows(batch, values, self._dataset))

    def _dataset_for(self, name: str, size: int) -> Any:
        if name not in self._datasets:
            data = self._dataset
            steps = (data.count, data.width) if data.padded else (data.total_steps,)
            self._datasets[name] = self._file.create(name, (*steps, size), self._dtype)
        return self._datasets[name]


def _flat_names(gates: GateValues) -> Iterator[tuple[str, Array]]:
    for layer, directions in gates.items():
        for direction, arrays in directions.items():
            for name, values in arrays.items():
                yield f"layers/{layer}/{direction}/{name}", values


class StateReader:
    """Reads ``state/<layer>/h`` and ``/c`` of a results file; a context manager.

    Parameters
    ----------
    path
        ``FILE.h5`` or ``FILE.h5:/group``.
    states
        Shapes of the states of each recurrent layer that needs states.
    count
        Number of sequences N of the run.
    unread
        Layers and letters of states that are not read and may be missing.
    one_sided
        Layers that need the states of the reverse direction only.

    Attributes
    ----------
    not_finite
        The first state that was read and holds NaN or infinity, in words, or None.

    Raises
    ------
    DataError
        The file is missing or damaged, or a state is missing or has another shape.
    """

    def __init__(
        self,
        path: str,
        states: Sequence[StateShape],
        count: int,
        unread: Collection[tuple[int, str]] = (),
        one_sided: Collection[int] = (),
    ) -> None:
        self._file = Hdf5File(path, allow_external=None)
        self.not_finite: str | None = None
        self._datasets: dict[int, dict[str, Dataset]] = {}
        try:
            for layer, directions, *sizes in states:
                self._datasets[layer] = {
                    letter: self._state(
                        layer, letter, (count, directions, size), layer in one_sided
                    )
                    for letter, size in zip("hc", sizes, strict=True)
                    if size is not None and (layer, letter) not in unread
                }
        except BaseException:
            self.close()
            raise

    def read(self, first: int, n: int) -> dict[int, tuple[Array | None, Array | None]]:
        """States h (n, directions, P or H) and c, or None, of `n` sequences, by layer index."""
        rows = slice(first, first + n)
        states = {}
        for layer, datasets in self._datasets.items():
            values = {letter: dataset.read(rows) for letter, dataset in datasets.items()}
            for letter, state in values.items():
                self._note_not_finite(f"state/{layer}/{letter}", first, state)
            states[layer] = (values.get("h"), values.get("c"))
        return states

    def _note_not_finite(self, name: str, first: int, values: Array) -> None:
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if self.not_finite is None and not finite.all():
            place = f"{self._file.group.where.rstrip('/')}/{name}"
            row = first + int(np.argmin(finite))
            self.not_finite = f"{place} holds NaN or infinity, for example in sequence {row}"

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> StateReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _state(
        self, layer: int, name: str, shape: tuple[int, int, int], one_sided: bool
    ) -> Dataset:
        group = self._file.group
        dataset = group.dataset(f"state/{layer}/{name}")
        where = f"{group.where.rstrip('/')}/state/{layer}/{name}"
        letters = "(N, directions, H)" if name == "c" else "(N, directions, H or P)"
        if dataset is None:
            raise DataError(
                f"{where} does not exist",
                expected=f"the state of layer {layer}, {letters} = {shape}",
                where=where,
                hint="lstm-cli run ... --output writes a file with states",
            )
        shapes = [shape, (shape[0], 1, shape[2])] if one_sided else [shape]
        if dataset.shape not in shapes or not dataset.numeric or dataset.vlen:
            either = f", or {shapes[-1]} of the reverse direction, the only one in use"
            raise DataError(
                f"{where} does not fit the network and the data",
                expected=f"{letters} = {shape}" + (either if one_sided else ""),
                found=f"{dataset.shape}, {type_name(dataset)}",
                where=where,
            )
        return dataset


MAX_GROUP_DEPTH = 3
"""Largest depth of datasets that are read, as of ``state/0/h``."""


def read_arrays(argument: str, selects: Callable[[str], bool]) -> dict[str, Array]:
    """Numeric datasets of ``FILE.h5`` or ``FILE.h5:/group``, by their path in the group.

    Parameters
    ----------
    selects
        Function of the path: true for a dataset that is read.

    Raises
    ------
    DataError
        The file cannot be read, or a selected dataset is not numeric or is stored elsewhere.
    """
    with Hdf5File(argument, allow_external=None) as file:
        arrays = {}
        for name, dataset in _selected_datasets(file.group, "", selects):
            require_numeric(dataset, name, (dataset.where,))
            if dataset.vlen:
                raise DataError(
                    f"{dataset.where} has rows of their own lengths", where=dataset.where
                )
            arrays[name] = dataset.read()
        return arrays


def _selected_datasets(
    group: Group, prefix: str, selects: Callable[[str], bool], depth: int = 1
) -> Iterator[tuple[str, Dataset]]:
    for name in group.names():
        path = f"{prefix}{name}"
        if selects(path):
            dataset = group.dataset(name)
            if dataset is not None:
                yield path, dataset
        elif depth < MAX_GROUP_DEPTH and path.split("/", 1)[0] == "state":
            inner = group.group(name)
            if inner is not None:
                yield from _selected_datasets(inner, f"{path}/", selects, depth + 1)
