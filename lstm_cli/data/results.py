"""Results of a run: outputs in the input's layout, lengths, final states, names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from lstm_cli.data.dataset import Dataset
from lstm_cli.data.output import OutputFile, Writer
from lstm_cli.data.ragged import starts_of, valid_steps
from lstm_cli.data.types import Array, Batch
from lstm_cli.errors import LstmCliError

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
