"""What the loop needs from around it: batches, validation, a place to save, someone to tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lstm_cli.engines.types import Array, EngineArray
from lstm_cli.training.progress import Checkpoint, Progress

Row = dict[str, float]
"""What one epoch gave: ``epoch, updates, loss, …, val_loss, …, rate, seconds``."""


@dataclass(frozen=True)
class LearningBatch:
    """A batch as the network sees it.

    Attributes
    ----------
    x, targets, lengths
        Targets scaled, where training scales; `x`, as it stands in the data, may be in the
        engine's own memory.
    numbers
        (N,) the number of each row's sequence, to name it.
    file
        Number of the file; stateful layers start anew with each.
    """

    x: EngineArray
    targets: Array
    lengths: Array | None
    numbers: Array
    file: int


class Places(Protocol):
    """Names of places in the data, for errors."""

    def input(self, number: int, step: int, feature: int) -> str:
        """``words.h5:/inputs, sequence 17, step 3, feature 5``."""

    def target(self, number: int, step: int | None, feature: int | None) -> str:
        """The same of a target; `step` and `feature` None where targets have none."""

    def sequence(self, number: int) -> str:
        """``sequence 17 of words.h5:/inputs``."""


class Source(Protocol):
    """The training data."""

    @property
    def places(self) -> Places:
        """Names of places in it."""

    def order(self, epoch: int) -> Sequence[Array]:
        """Every batch of an epoch, counted from 0, as numbers of sequences."""

    def read(self, numbers: Array) -> LearningBatch:
        """One of these batches."""

    def raw(self, values: Array) -> Array:
        """Outputs or targets (..., F) in the units of the data."""


class Validation(Protocol):
    """Measures the network on data that it does not learn from."""

    def __call__(self, weights: Mapping[str, Array]) -> dict[str, float] | None:
        """Metrics by name, none if nothing is held out; None if it was interrupted."""


class Store(Protocol):
    """Where a run is kept. Each call returns when what was given is safe."""

    def keep_best(self, weights: Mapping[str, Array]) -> None:
        """These weights are the best so far."""

    def append(self, row: Row) -> None:
        """An epoch has ended."""

    def save(self, checkpoint: Checkpoint) -> None:
        """All that a resumed run needs."""


class Reporter(Protocol):
    """Who watches."""

    def stepped(self, progress: Progress, batches: int, loss: float | None) -> None:
        """A batch of `batches` is done; `loss` is the mean of the epoch so far."""

    def epoch_ended(self, progress: Progress, row: Row, improved: bool) -> None:
        """An epoch has ended, and is saved."""
