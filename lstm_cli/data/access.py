"""Random access: batches of any sequences, from memory where everything fits there."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from lstm_cli.data.memory import fits_in_memory, keep
from lstm_cli.data.sequences import Files, Indices, Sequences, StoredSequences, placing
from lstm_cli.data.types import Batch
from lstm_cli.errors import UsageError


class Access:
    """Sequences of some files by number; see `lstm_cli.data.dataset.Dataset.take`."""

    def __init__(self, files: Files) -> None:
        self.files = files
        self._kept: tuple[object, Sequences] | None = None

    @cached_property
    def in_memory(self) -> bool:
        """Whether everything is read once and kept."""
        return fits_in_memory(self.files)

    def take(self, indices: Indices, dtype: np.dtype[Any], per_step: bool | None) -> Batch:
        """The sequences of these numbers, in their order."""
        files = self.files
        numbers = _checked(indices, int(files.firsts[-1]))
        sequences = self._sequences(dtype, placing(files.targets, per_step))
        lengths, T = files.lengths[numbers], files.steps(numbers)
        x, nbytes = sequences.inputs(numbers, T)
        y, more = sequences.targets(numbers, T)
        told = None if (lengths == T).all() else lengths
        file = int(files.file_of(numbers[:1])[0])
        known = None if y is None else files.known(numbers)
        return Batch(x, told, y, int(numbers[0]), file, nbytes + more, known)

    def _sequences(self, dtype: np.dtype[Any], by_step: bool) -> Sequences:
        """Where rows come from."""
        stored = StoredSequences(self.files, dtype, by_step)
        if not self.in_memory:
            return stored
        if self._kept is None or self._kept[0] != (dtype, by_step):
            self._kept = (dtype, by_step), keep(stored)
        return self._kept[1]


def _checked(indices: Indices, count: int) -> Indices:
    """The numbers as int64; UsageError if one is of no sequence."""
    numbers = np.asarray(indices, np.int64)
    if numbers.ndim != 1 or not len(numbers) or numbers.min() < 0 or numbers.max() >= count:
        raise UsageError(
            "no such sequences",
            expected=f"at least one number from 0 to {count - 1}",
            found=f"{numbers.min()} to {numbers.max()}" if numbers.size else "none",
        )
    return numbers
