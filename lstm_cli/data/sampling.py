"""The order in which training sees the sequences: a pure function of seed and epoch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lstm_cli.data.dataset import Dataset
from lstm_cli.data.sequences import Indices
from lstm_cli.errors import UsageError

BLOCK_BATCHES = 32
"""Batches whose sequences are sorted by length together, so that little is padded."""
SHUFFLING = 1
"""Third word of the generator's counter; the second, 1, keeps it apart from dropout's, and the
fourth is the epoch."""


@dataclass(frozen=True, eq=False)
class Sampler:
    """Batches of an epoch.

    Sequences are shuffled, cut into blocks of `BLOCK_BATCHES` batches, sorted by length within
    a block and cut into batches, which are shuffled within their block. Where the data do not
    stay in memory, a block is made of neighbours, so that reads stay close together. As every
    epoch has a generator of its own, a resumed run goes on in the same order.

    Parameters
    ----------
    dataset
        What is drawn from.
    batch_size
        Sequences in a batch; one batch of an epoch may have fewer.
    seed
        Of the shuffling, 0 or more.
    indices
        Numbers of the sequences to draw, such as those of the training part; None: all.
    stateful
        The order of the files instead, in constant rows, as
        ``Dataset.batches(keep_rows=True)`` gives it.

    Raises
    ------
    UsageError
        A batch size below 1.
    """

    dataset: Dataset
    batch_size: int
    seed: int = 0
    indices: Indices | None = None
    stateful: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError("a batch holds at least one sequence", found=f"size {self.batch_size}")

    @cached_property
    def numbers(self) -> Indices:
        """The sequences to draw, in the order of the files."""
        if self.indices is None:
            return np.arange(self.dataset.count, dtype=np.int64)
        return np.sort(np.asarray(self.indices, np.int64))

    @property
    def batches(self) -> int:
        """Batches of an epoch."""
        return sum(-(-len(part) // self.batch_size) for part in self._parts)

    def order(self, epoch: int) -> list[Indices]:
        """Every batch of an epoch, as the numbers of its sequences."""
        if self.stateful:
            return [batch for part in self._parts for batch in _cut(part, self.batch_size)]
        philox = np.random.Philox(key=self.seed, counter=[0, 1, SHUFFLING, epoch])
        rng = np.random.Generator(philox)
        lengths = self.dataset.lengths()
        batches: list[Indices] = []
        for block in self._blocks(rng):
            by_length = block[np.argsort(lengths[block], kind="stable")]
            cut = _cut(by_length, self.batch_size)
            batches += [cut[k] for k in rng.permutation(len(cut))]
        return batches

    @cached_property
    def _parts(self) -> list[Indices]:
        """What is cut into batches on its own: each file if rows go on from batch to batch."""
        if not self.stateful:
            return [self.numbers]
        firsts = [first for first, _ in self.dataset.starts[1:]]
        return np.split(self.numbers, np.searchsorted(self.numbers, firsts))

    def _blocks(self, rng: np.random.Generator) -> list[Indices]:
        size = self.batch_size * BLOCK_BATCHES
        if self.dataset.fits_in_memory:
            return _cut(rng.permutation(self.numbers), size)
        blocks = _cut(self.numbers, size)
        return [rng.permutation(blocks[k]) for k in rng.permutation(len(blocks))]


def _cut(numbers: Indices, size: int) -> list[Indices]:
    """Pieces of `size`; the last may be smaller."""
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]
