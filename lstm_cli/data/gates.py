"""Every gate's values, per layer and step: what ``run --gates FILE`` writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import DTypeLike

from lstm_cli.data.dataset import Dataset
from lstm_cli.data.output import OutputFile, Writer
from lstm_cli.data.ragged import starts_of
from lstm_cli.data.results import valid_rows
from lstm_cli.data.types import Array, Batch

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
