"""Results of a run: outputs, gates and states written to HDF5, and read back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from lstm_cli.data.dataset_roles import need_numeric
from lstm_cli.data.lengths import starts_of, valid_steps
from lstm_cli.data.sequence_data import Dataset
from lstm_cli.data.types import Array, Batch
from lstm_cli.errors import DataError, LstmCliError
from lstm_cli.hdf5.dataset import Stored, type_name
from lstm_cli.hdf5.file import Hdf5File
from lstm_cli.hdf5.group import Folder
from lstm_cli.hdf5.writing import OutputFile, Writer

StateShape: TypeAlias = tuple[int, int, int, int | None]
"""Layer index, directions, size of h, size of c or None."""

RESERVED = frozenset(("outputs", "lengths", "names", "classes", "state"))


class ResultWriter(Writer):
    """Writes ``OUT.h5`` batch by batch; a context manager.

    Leaving it without an error gives the file its name; any error, an interruption too, leaves
    nothing behind, and an older file as it was.

    Parameters
    ----------
    path
        The file to make.
    dataset
        What the run reads.
    features
        Outputs F, of a step or of a sequence.
    per_step
        The network returns sequences.
    dtype
        Of outputs and states.
    attributes
        Of the file: version, config, hash of the weights.
    states
        A recurrent layer each.
    force
        Replace a file that another program wrote.

    Raises
    ------
    LstmCliError
        The file cannot be written, or names of sequences collide.
    UsageError
        It is one of the files being read, or another program wrote it.
    """

    def __init__(
        self,
        path: str,
        dataset: Dataset,
        *,
        features: int,
        per_step: bool,
        dtype: DTypeLike,
        attributes: Mapping[str, Any],
        states: Sequence[StateShape] = (),
        force: bool = False,
    ) -> None:
        self._file = OutputFile(path, dataset.paths, force=force)
        self._dataset = dataset
        self._features = features
        self._per_step = per_step
        self._dtype = np.dtype(dtype)
        self._attributes = dict(attributes)
        self._state_shapes = tuple(states)
        self._states: dict[int, tuple[Any, Any]] = {}
        self._outputs: Any = None
        self._starts = starts_of(dataset.lengths())
        # Windows are dense, whatever they were cut from.
        self._layout = "dense" if dataset.windowed else dataset.layout
        if self._layout == "groups":
            _need_own_names(dataset, path)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of ``outputs``; of vlen and groups, that of all rows one after the other."""
        data, F = self._dataset, self._features
        if not self._per_step:
            return data.count, F
        return (data.count, data.width, F) if data.padded else (data.total_steps, F)

    def write(
        self,
        batch: Batch,
        outputs: Array,
        states: Mapping[int, tuple[Array, Array | None]] | None = None,
    ) -> None:
        """Write the outputs (N, T, F) or (N, F) of a batch, and final states by layer index."""
        stop = batch.first + batch.count
        if self._layout == "groups":
            self._write_groups(batch, outputs)
        elif not self._per_step:
            self._file.fill(self._outputs, slice(batch.first, stop), outputs)
        elif self._dataset.padded:
            steps = min(outputs.shape[1], self._dataset.width)
            place = (slice(batch.first, stop), slice(0, steps))
            self._file.fill(self._outputs, place, outputs[:, :steps])
        elif self._layout == "vlen":
            self._write_rows(batch, outputs)
        else:
            rows = slice(int(self._starts[batch.first]), int(self._starts[stop]))
            self._file.fill(self._outputs, rows, valid_rows(batch, outputs, self._dataset))
        for layer, (h, c) in (states or {}).items():
            self._write_state(layer, slice(batch.first, stop), h, c)

    def _prepare(self) -> None:
        data, file = self._dataset, self._file
        file.describe(self._attributes)
        if self._layout == "vlen" and self._per_step:
            self._outputs = file.create("outputs", (data.count,), self._dtype, vlen=True)
            file.describe({"features": self._features}, self._outputs)
        elif self._layout != "groups":
            self._outputs = file.create("outputs", self.shape, self._dtype)
        if data.varying:
            file.put("lengths", data.lengths())
        if data.names is not None and self._layout != "groups":
            file.put_texts("names", data.names)
        if data.windowed:
            file.put_texts("source/file", data.sources.files)
            file.put("source/sequence", data.sources.sequence)
            file.put("source/step", data.sources.step)
            if data.sources.names is not None:
                file.put_texts("source/name", data.sources.names)
        if data.class_labels is not None:
            file.put_texts("classes", data.class_labels)
        for layer, directions, h, c in self._state_shapes:
            self._states[layer] = (
                file.create(f"state/{layer}/h", (data.count, directions, h), self._dtype),
                None
                if c is None
                else file.create(f"state/{layer}/c", (data.count, directions, c), self._dtype),
            )

    def _sequences(self, batch: Batch, outputs: Array) -> Iterator[tuple[int, Array]]:
        """Number of each sequence, and its own valid steps (T, F), or its (F,)."""
        lengths = self._dataset.lengths(batch.first, batch.count)
        for row, length in enumerate(lengths.tolist()):
            own = outputs[row, :length] if self._per_step else outputs[row]
            yield batch.first + row, own.astype(self._dtype, copy=False)

    def _write_groups(self, batch: Batch, outputs: Array) -> None:
        names = self._dataset.names or []
        for number, own in self._sequences(batch, outputs):
            self._file.put(f"{names[number]}/outputs", own)

    def _write_rows(self, batch: Batch, outputs: Array) -> None:
        for number, own in self._sequences(batch, outputs):
            self._file.fill(self._outputs, number, own.reshape(-1))

    def _write_state(self, layer: int, rows: slice, h: Array, c: Array | None) -> None:
        stored_h, stored_c = self._states[layer]
        self._file.fill(stored_h, rows, h)
        if stored_c is not None and c is not None:
            self._file.fill(stored_c, rows, c)


def valid_rows(batch: Batch, padded: Array, dataset: Dataset) -> Array:
    """(rows, ...) the valid steps of (N, T, ...), one sequence after the other."""
    lengths = dataset.lengths(batch.first, batch.count)
    rows: Array = padded[valid_steps(lengths, padded.shape[1])]
    return rows


def _need_own_names(dataset: Dataset, path: str) -> None:
    """Raise LstmCliError if two sequences, or one and what else is written, share a name."""
    names = sorted(dataset.names or [])
    twice = next((a for a, b in pairwise(names) if a == b), None)
    if twice is not None:
        raise LstmCliError(
            f"two sequences are called {twice}: their results would have one place",
            expected="names that differ over all files",
            where=(path, *dataset.paths),
            hint="run the files one at a time",
        )
    reserved = next((name for name in names if name in RESERVED), None)
    if reserved is not None:
        raise LstmCliError(
            f"a sequence is called {reserved}, a name the results need for themselves",
            expected="another name for that group",
            where=(path, *dataset.paths),
        )


Kept: TypeAlias = Mapping[int, Mapping[str, Mapping[str, Array]]]
"""Layer index, direction, and name of gate or state to values (N, T, H)."""


class GateWriter(Writer):
    """Writes ``layers/<k>/<forward|reverse>/<name>`` batch by batch; a context manager.

    Dense data and windows give (N, T, H); other layouts (sum T, H), with ``lengths`` beside it.
    The names come from the first batch. As with `ResultWriter`, the file appears when it is
    whole.

    Raises
    ------
    LstmCliError
        The file cannot be written.
    """

    def __init__(
        self,
        path: str,
        dataset: Dataset,
        *,
        dtype: DTypeLike,
        attributes: Mapping[str, Any],
        force: bool = False,
    ) -> None:
        self._file = OutputFile(path, dataset.paths, option="--gates", force=force)
        self._dataset = dataset
        self._dtype = np.dtype(dtype)
        self._attributes = dict(attributes)
        self._stored: dict[str, Any] = {}
        self._starts = starts_of(dataset.lengths())

    def _prepare(self) -> None:
        self._file.describe(self._attributes)
        if self._dataset.varying or not self._dataset.padded:
            self._file.put("lengths", self._dataset.lengths())
        if self._dataset.names is not None:
            self._file.put_texts("names", self._dataset.names)

    def write(self, batch: Batch, kept: Kept) -> None:
        """Write what a batch kept: layer, direction and name to (N, T, H)."""
        stop = batch.first + batch.count
        for name, values in _flat(kept):
            stored = self._dataset_for(name, values.shape[2])
            if self._dataset.padded:
                steps = min(values.shape[1], self._dataset.width)
                place = (slice(batch.first, stop), slice(0, steps))
                self._file.fill(stored, place, values[:, :steps])
            else:
                rows = slice(int(self._starts[batch.first]), int(self._starts[stop]))
                self._file.fill(stored, rows, valid_rows(batch, values, self._dataset))

    def _dataset_for(self, name: str, size: int) -> Any:
        if name not in self._stored:
            data = self._dataset
            steps = (data.count, data.width) if data.padded else (data.total_steps,)
            self._stored[name] = self._file.create(name, (*steps, size), self._dtype)
        return self._stored[name]


def _flat(kept: Kept) -> Iterator[tuple[str, Array]]:
    for layer, directions in kept.items():
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
        The recurrent layers that need states, as for `ResultWriter`.
    count
        Sequences N of the run.
    unread
        Layers and letters of states that are not asked for, and may be missing.
    one_sided
        Layers of which the states of the reverse direction alone are enough.

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
        self._stored: dict[int, dict[str, Stored]] = {}
        try:
            for layer, directions, *sizes in states:
                self._stored[layer] = {
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
        found = {}
        for layer, stored in self._stored.items():
            parts = {letter: state.read(rows) for letter, state in stored.items()}
            for letter, part in parts.items():
                self._note_not_finite(f"state/{layer}/{letter}", first, part)
            found[layer] = (parts.get("h"), parts.get("c"))
        return found

    def _note_not_finite(self, name: str, first: int, values: Array) -> None:
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if self.not_finite is None and not finite.all():
            place = f"{self._file.folder.where.rstrip('/')}/{name}"
            row = first + int(np.argmin(finite))
            self.not_finite = f"{place} holds NaN or infinity, in sequence {row} say"

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> StateReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _state(self, layer: int, name: str, shape: tuple[int, int, int], one_sided: bool) -> Stored:
        folder = self._file.folder
        stored = folder.dataset(f"state/{layer}/{name}")
        where = f"{folder.where.rstrip('/')}/state/{layer}/{name}"
        letters = "(N, directions, H)" if name == "c" else "(N, directions, H or P)"
        if stored is None:
            raise DataError(
                f"{where} does not exist",
                expected=f"the state of layer {layer}, {letters} = {shape}",
                where=where,
                hint="lstm-cli run ... --output writes a file with states",
            )
        shapes = [shape, (shape[0], 1, shape[2])] if one_sided else [shape]
        if stored.shape not in shapes or not stored.numeric or stored.vlen:
            either = f", or {shapes[-1]} of the reverse direction, the only one in use"
            raise DataError(
                f"{where} does not fit the network and the data",
                expected=f"{letters} = {shape}" + (either if one_sided else ""),
                found=f"{stored.shape}, {type_name(stored)}",
                where=where,
            )
        return stored


DEEPEST = 3
"""Groups within each other that are looked into: ``state/0/h``."""


def read_arrays(argument: str, wanted: Callable[[str], bool]) -> dict[str, Array]:
    """Datasets of numbers of ``FILE.h5`` or ``FILE.h5:/group``, by their path in the group.

    Parameters
    ----------
    wanted
        Whether a dataset is read, by that path.

    Raises
    ------
    DataError
        The file cannot be read, or one that is wanted holds no numbers or leads elsewhere.
    """
    with Hdf5File(argument, allow_external=None) as file:
        found = {}
        for name, stored in _datasets(file.folder, "", wanted):
            need_numeric(stored, name, (stored.where,))
            if stored.vlen:
                raise DataError(f"{stored.where} has rows of their own lengths", where=stored.where)
            found[name] = stored.read()
        return found


def _datasets(
    folder: Folder, prefix: str, wanted: Callable[[str], bool], depth: int = 1
) -> Iterator[tuple[str, Stored]]:
    for name in folder.names():
        path = f"{prefix}{name}"
        if wanted(path):
            stored = folder.dataset(name)
            if stored is not None:
                yield path, stored
        elif depth < DEEPEST and path.split("/", 1)[0] == "state":
            inner = folder.folder(name)
            if inner is not None:
                yield from _datasets(inner, f"{path}/", wanted, depth + 1)
