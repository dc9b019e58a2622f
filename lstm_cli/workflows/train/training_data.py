"""Training data for the loop: batches, scaled targets, validation, and names of places."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

import numpy as np

from lstm_cli.data import AS_CLASSES, Sampler, SequenceData
from lstm_cli.engines.types import Array
from lstm_cli.errors import DataError, Problem, quote
from lstm_cli.network.network import Network
from lstm_cli.network.normalization import Normalization, fold
from lstm_cli.training.interfaces import Exchange, TrainingBatch
from lstm_cli.training.metrics import Metrics, evaluate
from lstm_cli.training.micro_batches import ONE_RANK

COUNTS = ("sequences", "features", "steps")
"""Entries of a fingerprint that are counts; the others are hashes."""
FINGERPRINT_BYTES = 16 << 20
"""Bytes of inputs that are hashed at the start, and at the end, of a dataset."""


@dataclass(frozen=True)
class DataPlaces:
    """Names of places in a dataset; see `lstm_cli.training.interfaces.Places`."""

    dataset: SequenceData

    def input(self, number: int, step: int, feature: int) -> str:
        """An input, such as ``words.h5:/inputs, sequence 17, step 3, feature 5``."""
        return self.dataset.input_location(number, step, feature)

    def target(self, number: int, step: int | None, feature: int | None) -> str:
        """A target, such as ``words.h5:/targets, sequence 17, step 3, value 5``."""
        return self.dataset.target_location(number, step, feature)

    def sequence(self, number: int) -> str:
        """A sequence, such as ``sequence 17 of words.h5:/inputs``."""
        return f"{self.dataset.sequence(number)} of {self.dataset.place(number)}"


@dataclass(frozen=True)
class DatasetSource:
    """The training part of a dataset; see `lstm_cli.training.interfaces.TrainingSource`.

    Attributes
    ----------
    dtype
        Dtype of the inputs, which the network normalizes itself.
    per_step
        The network's outputs are one for each step.
    targets
        Scaling of the targets; None: no scaling.
    """

    sampler: Sampler
    dtype: str
    per_step: bool
    targets: Normalization | None

    @property
    def places(self) -> DataPlaces:
        """Names of places in the dataset."""
        return DataPlaces(self.sampler.dataset)

    def order(self, epoch: int) -> list[Array]:
        """Return every batch of an epoch, as numbers of sequences."""
        return self.sampler.order(epoch)

    def read(self, numbers: Array) -> TrainingBatch:
        """Read one batch and scale its targets."""
        batch = read_batch(self.sampler.dataset, numbers, self.dtype, self.per_step)
        if self.targets is None:
            return batch
        y = self.targets.apply(batch.targets, batch.lengths if self.per_step else None)
        return replace(batch, targets=y)

    def raw(self, values: Array) -> Array:
        """Return outputs or targets in the units of the data."""
        return values if self.targets is None else self.targets.undo(values)


@dataclass(frozen=True)
class Validator:
    """Validation on held-out sequences, with the weights as a model file stores them.

    Attributes
    ----------
    sampler
        Sampler of the sequences, in the order of the files.
    dtype
        Dtype of the inputs, which the network normalizes itself.
    per_step
        The network's outputs are one for each step.
    network
        Network with the layers of the trained network; each call sets its weights.
    targets
        Scaling of the targets while training; None: no scaling.
    metrics
        Function that makes empty metrics.
    stop
        Function that returns True once the user interrupts the run.
    exchange
        Exchange with the other ranks. Each rank takes every R-th batch; all ranks take every
        batch of a stateful network.
    """

    sampler: Sampler
    dtype: str
    per_step: bool
    network: Network
    targets: Normalization | None
    metrics: Callable[[], Metrics]
    stop: Callable[[], bool]
    exchange: Exchange = ONE_RANK

    def __call__(self, weights: Mapping[str, Array]) -> dict[str, float] | None:
        """Return metrics by name; None if the user interrupts."""
        self.network.set_weights(fold(self.network.layers, weights, None, self.targets))
        places, batches = DataPlaces(self.sampler.dataset), self._batches()
        metrics, stop = self.metrics(), self.stop
        return evaluate(self.network, batches, metrics, places, stop, self._sharing)

    @property
    def _sharing(self) -> Exchange:
        """Exchange with the ranks that batches are shared with."""
        return ONE_RANK if self.sampler.stateful else self.exchange

    def _batches(self) -> Iterator[tuple[int, TrainingBatch]]:
        ranks, dataset = self._sharing, self.sampler.dataset
        for k, numbers in enumerate(self._order()):
            if k % ranks.size == ranks.rank:
                yield k, read_batch(dataset, numbers, self.dtype, self.per_step)

    def _order(self) -> list[Array]:
        if self.sampler.stateful:
            return self.sampler.order(0)
        # Sequences of similar lengths together, so that little is padded; metrics are the same.
        numbers = self.sampler.numbers
        by_length = numbers[np.argsort(self.sampler.dataset.lengths()[numbers], kind="stable")]
        size = self.sampler.batch_size
        return [by_length[k : k + size] for k in range(0, len(by_length), size)]


def no_validation(weights: Mapping[str, Array]) -> dict[str, float]:
    """Return no metrics, for a run that holds out no sequences."""
    return {}


def read_batch(dataset: SequenceData, numbers: Array, dtype: str, per_step: bool) -> TrainingBatch:
    """Read sequences and their targets, unscaled.

    Raises
    ------
    DataError
        There are no targets, or a file is damaged.
    """
    batch = dataset.take(numbers, dtype, per_step=per_step)
    if batch.targets is None:
        raise missing_targets(dataset)
    return TrainingBatch(batch.x, batch.targets, batch.lengths, numbers, batch.file)


def missing_targets(dataset: SequenceData) -> DataError:
    """Return the error for data without targets."""
    text_notes = [note for note in dataset.notes if " holds text" in note and "targets" in note]
    if text_notes:
        return DataError(
            "the targets are text, but a network learns numbers",
            expected="a class index (N,) for each, from 0, and the texts once in an attribute "
            "`classes` of the file",
            found=text_notes[0],
            where=dataset.input_names,
            hint=AS_CLASSES,
        )
    return DataError(
        "the data have no targets to learn",
        expected="targets beside the inputs: a class (N,), values (N, K), or one for each step",
        found="; ".join(dataset.notes) or None,
        where=dataset.input_names,
        hint=f"lstm-cli data {quote(dataset.paths[0])} lists the datasets; "
        "`data.targets` names one",
    )


def fingerprint(dataset: SequenceData, dtype: str, per_step: bool) -> dict[str, Any]:
    """Return values that identify a dataset, without reading a large one whole.

    The values are counts, a hash of all lengths, and hashes of the first and last sequences in
    `dtype`.
    """
    numbers = dataset.numbers
    N = len(numbers)
    row = 8 * dataset.features * max(dataset.max_steps, 1)
    count = max(1, min(FINGERPRINT_BYTES // row, N))
    ends = numbers[np.unique(np.concatenate([np.arange(count), np.arange(N - count, N)]))]
    batch = dataset.take(ends, dtype, per_step=per_step)
    y = batch.targets
    if y is not None and y.dtype.kind == "f":
        y = y.astype(dtype, copy=False)
    lengths = dataset.lengths()[numbers]
    return {
        "sequences": N,
        "features": dataset.features,
        "steps": int(lengths.sum()),
        "lengths": _digest(lengths),
        "inputs": _digest(batch.x),
        "targets": "none" if y is None else _digest(y),
    }


def data_change(
    old: Mapping[str, Any], new: Mapping[str, Any], dataset: SequenceData
) -> Problem | None:
    """Compare two fingerprints of a dataset; None if they are equal."""
    names = [name for name, value in new.items() if old.get(name) != value]
    if not names:
        return None
    counts = [name for name in names if name in COUNTS]
    kinds = " and ".join(names)
    return Problem(
        "the data differ from those that the run began with",
        expected=", ".join(f"{old.get(name)} {name}" for name in counts) or f"the same {kinds}",
        found=", ".join(f"{new[name]} {name}" for name in counts) or f"other values in {kinds}",
        where=tuple(dict.fromkeys(dataset.input_names)),
        hint="--output names another folder for a run on other data",
    )


def _digest(values: Array) -> str:
    return sha256(np.ascontiguousarray(values).tobytes()).hexdigest()[:16]
