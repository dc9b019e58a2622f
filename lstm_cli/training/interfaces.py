"""Interfaces that the training loop depends on: data, validation, storage and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lstm_cli.engines.types import Array, EngineArray
from lstm_cli.training.checkpoint import Checkpoint, Progress

EpochRow = dict[str, float]
"""Metrics of one epoch: ``epoch, updates, loss, …, val_loss, …, rate, seconds``."""


@dataclass(frozen=True)
class TrainingBatch:
    """A batch for the network.

    Attributes
    ----------
    x
        Inputs (N, T, D) as in the data. They may be in the engine's memory.
    targets
        Targets (N,) or (N, K), or with a step axis (N, T, ...). Training may have scaled them.
    lengths
        (N,) valid steps. None: all T steps are valid.
    numbers
        (N,) number of each row's sequence, for error messages.
    file
        Number of the file. Stateful layers start anew with each file.
    """

    x: EngineArray
    targets: Array
    lengths: Array | None
    numbers: Array
    file: int


class Places(Protocol):
    """Names of places in the data, for error messages."""

    def input(self, number: int, step: int, feature: int) -> str:
        """Place of an input: ``words.h5:/inputs, sequence 17, step 3, feature 5``."""

    def target(self, number: int, step: int | None, feature: int | None) -> str:
        """Place of a target. `step` and `feature` are None for targets without them."""

    def sequence(self, number: int) -> str:
        """Place of a sequence: ``sequence 17 of words.h5:/inputs``."""


class TrainingSource(Protocol):
    """The training data."""

    @property
    def places(self) -> Places:
        """Names of places in the data."""

    def order(self, epoch: int) -> Sequence[Array]:
        """Sequence numbers of every batch of an epoch. Epochs are counted from 0."""

    def read(self, numbers: Array) -> TrainingBatch:
        """The batch with these sequence numbers."""

    def raw(self, values: Array) -> Array:
        """Outputs or targets (..., F) in the units of the data."""


class Validation(Protocol):
    """Measures the network on validation data."""

    def __call__(self, weights: Mapping[str, Array]) -> dict[str, float] | None:
        """Metrics by name, empty without validation data. None if it was interrupted."""


class RunStore(Protocol):
    """Storage of a run. Each method returns when its argument is safely stored."""

    def save_best(self, weights: Mapping[str, Array]) -> None:
        """Store the best weights so far."""

    def append(self, row: EpochRow) -> None:
        """Store the metrics of an epoch."""

    def save(self, checkpoint: Checkpoint) -> None:
        """Store a checkpoint."""


class Reporter(Protocol):
    """Receives reports on the progress of a run."""

    def on_batch_end(self, progress: Progress, batches: int, loss: float | None) -> None:
        """Report a batch, one of `batches` of the epoch. `loss` is the epoch's mean so far."""

    def on_epoch_end(self, progress: Progress, row: EpochRow, improved: bool) -> None:
        """Report an epoch that is complete and stored."""


class Exchange(Protocol):
    """Communication between the ranks of a training run: processes with the same weights.

    All ranks call each method in the same order.
    """

    @property
    def rank(self) -> int:
        """Number of this process, from 0."""

    @property
    def size(self) -> int:
        """Number of processes."""

    def gather(self, value: Any) -> list[Any]:
        """The value of every rank, in the order of ranks, on every rank. For small objects."""

    def scatter_slices(self, slices: Sequence[Array]) -> list[Array]:
        """Send each rank its slice; return the slices that all ranks sent to this one.

        Parameters
        ----------
        slices
            One array (n, P_s) for each rank s, in one dtype. P_s is the same on all ranks, n may
            differ.
        """

    def join_slices(self, mine: Array, out: Array) -> None:
        """Fill `out` (P,) with the arrays (P_s,) of all ranks, in the order of ranks."""
