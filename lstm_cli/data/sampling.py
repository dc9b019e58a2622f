"""Sequences for training: which ones are held out for validation, and the order of an epoch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lstm_cli.data.batches import Indices, SequencesInFiles, targets_are_per_step
from lstm_cli.data.sequence_data import SequenceData
from lstm_cli.data.types import Array
from lstm_cli.errors import DataError, UsageError, counted

HOLD_OUT_STREAM = 1
"""Second word of the generator's counter in `hold_out`. Dropout has 0 there."""


def hold_out(
    dataset: SequenceData,
    share: float,
    seed: int,
    *,
    per_step: bool | None = None,
    classes: bool = True,
) -> tuple[Indices, Indices]:
    """Numbers of the sequences for training, and of those held out for validation; both sorted.

    Sequences are drawn by `seed`, in proportion for each class if targets are classes. All
    windows of a sequence go together. Windows of one series are not drawn: the last ones are held
    out. Earlier windows with a step or target in the last ones are not used at all. Windows
    without targets are not used.

    Parameters
    ----------
    share
        Share of the sequences to hold out, between 0 and 1.
    seed
        Seed of the draw.
    per_step
        See `SequenceData.batches`.
    classes
        Integer targets are class indices: the loss is cross_entropy.

    Raises
    ------
    DataError
        One side would have no sequence.
    """
    numbers = dataset.numbers
    if dataset.windowed:
        sequences = dataset.files.sequences(numbers)
        if dataset.layout == "series" or len(np.unique(sequences)) == 1:
            return _last_windows(dataset, numbers, share)
        units, unit_of = np.unique(sequences, return_inverse=True)
    else:
        units, unit_of = numbers, np.arange(len(numbers))
    validation_count = _validation_count(dataset, share, len(units))
    philox = np.random.Philox(key=seed, counter=[0, HOLD_OUT_STREAM, 0, 0])
    rng = np.random.Generator(philox)
    all_classes = _classes(dataset, per_step) if classes else None
    first = np.zeros(len(units), np.int64)
    first[unit_of[::-1]] = numbers[::-1]  # the first window of a sequence has its class
    unit_classes = np.zeros(len(units), np.int64) if all_classes is None else all_classes[first]
    held_out = _stratified(unit_classes, validation_count, rng)[unit_of]
    return numbers[~held_out], numbers[held_out]


def _validation_count(dataset: SequenceData, share: float, count: int) -> int:
    held_out = round(share * count)
    if not 0 < held_out < count:
        raise _empty_side_error(dataset, share, held_out, count)
    return held_out


def require_same_form(
    dataset: SequenceData, validation: SequenceData, per_step: bool | None = None
) -> None:
    """Raise DataError unless features, targets and classes of both data are the same.

    See `SequenceData.batches` for `per_step`.
    """
    properties = {
        "number of features": (dataset.features, validation.features),
        "targets": (_targets_form(dataset, per_step), _targets_form(validation, per_step)),
        "classes": (_label_list(dataset), _label_list(validation)),
    }
    for noun, (first, second) in properties.items():
        if None not in (first, second) and first != second:
            raise _difference_error(dataset, validation, noun, first, second)
    infos = [one.targets for one in (dataset, validation) if one.targets is not None]
    placements = [info.per_step for info in infos if info.per_step is not None]
    if len(set(placements)) > 1:
        first, second = (
            "one per step" if per_step else "one per sequence" for per_step in placements
        )
        raise _difference_error(dataset, validation, "targets", first, second)


def _label_list(dataset: SequenceData) -> str | None:
    return None if dataset.class_labels is None else ", ".join(dataset.class_labels)


def _targets_form(dataset: SequenceData, per_step: bool | None) -> str:
    if dataset.targets is None:
        return "none"
    if dataset.targets_origin is not None:
        return f"{dataset.targets_origin}, {dataset.targets.shape} each"
    info = dataset.targets.resolve(per_step)
    return f"{info.shape} each" if info.shape else "one number each"


def _difference_error(
    dataset: SequenceData, validation: SequenceData, noun: str, first: object, second: object
) -> DataError:
    return DataError(
        f"the validation data differ in {noun}: {first} in {dataset.input_name}, "
        f"{second} in {validation.input_name}",
        expected=str(first),
        found=str(second),
        where=(dataset.input_name, validation.input_name),
        hint="--set train.validation=FILE.h5:/group names other data, "
        "--set train.validation=0.2 holds out a share",
    )


def _empty_side_error(dataset: SequenceData, share: float, held_out: int, N: int) -> DataError:
    hint = f"--set train.validation={1 / max(N, 2):.2g}"
    if N < 2:
        hint = "--set train.validation=FILE.h5:/group holds out other data"
    elif held_out:
        hint = f"--set train.validation={(N - 1) / N:.9g}"
    return DataError(
        f"a share of {share:g} of {N} sequence{'' if N == 1 else 's'} leaves "
        + ("none for training" if held_out else "none for validation"),
        expected="at least one for training and one for validation",
        found=f"{N - held_out} for training, {held_out} held out",
        where=dataset.input_names,
        hint=hint,
    )


def _classes(dataset: SequenceData, per_step: bool | None) -> Array | None:
    info = dataset.targets
    if info is None or targets_are_per_step(info, per_step) or info.resolve(False).kind != "class":
        return None
    source = SequencesInFiles(dataset.files, np.dtype(np.float64), per_step=False)
    return source.targets(np.arange(dataset.count, dtype=np.int64), 1)[0]


def _stratified(classes: Array, count: int, rng: np.random.Generator) -> Array:
    """(N,) true for `count` units, drawn in proportion for each class as nearly as possible."""
    _, class_of, counts = np.unique(classes, return_inverse=True, return_counts=True)
    exact = counts * (count / len(classes))
    quota = np.floor(exact).astype(np.int64)
    # The largest remainders get one more; a class that would be used up comes last.
    order = np.lexsort((quota - exact, quota + 1 >= counts))
    quota[order[: count - int(quota.sum())]] += 1
    shuffled = rng.permutation(len(classes))
    by_class = shuffled[np.argsort(class_of[shuffled], kind="stable")]
    rank = np.arange(len(classes)) - np.repeat(np.cumsum(counts) - counts, counts)
    drawn = np.zeros(len(classes), np.bool_)
    drawn[by_class[rank < np.repeat(quota, counts)]] = True
    return drawn


def _last_windows(dataset: SequenceData, numbers: Indices, share: float) -> tuple[Indices, Indices]:
    """Training windows, and the last windows, which share no step or target with them."""
    count = len(numbers)
    validation_count = _validation_count(dataset, share, count)
    begin, last = dataset.files.step_ranges(numbers)
    sequences = dataset.files.sequences(numbers)
    first = count - validation_count
    separate = (sequences < sequences[first]) | (last < begin[first])
    train = numbers[:first][separate[:first]]
    if not len(train):
        raise DataError(
            f"every window before the {validation_count} held out shares a step with them",
            expected="at least one window to learn from",
            found=f"{counted(first, 'window')} before them",
            where=dataset.input_names,
            hint=_largest_share_hint(begin, last, sequences),
        )
    return train, numbers[first:]


def _largest_share_hint(begin: Array, last: Array, sequences: Array) -> str:
    """Hint with the largest share that leaves a window for training, if there is one."""
    count = len(begin)
    free = np.minimum.accumulate(last)[:-1] < begin[1:]
    fitting = np.flatnonzero(free | (sequences[1:] != sequences[0])) + 1
    if not len(fitting):
        return "a smaller data.window.length, or other data: --set train.validation=FILE.h5:/group"
    return f"--set train.validation={(count - fitting[0]) / count:.9g}"


BLOCK_BATCHES = 32
"""Batches in a block. Sequences are sorted by length within a block, to save padding."""

SHUFFLE_STREAM = 1
"""Third word of the generator's counter. The second word is 1, dropout's is 0; the fourth is the
epoch.
"""


@dataclass(frozen=True, eq=False)
class Sampler:
    """Batches of an epoch.

    Sequences are shuffled and cut into blocks of `BLOCK_BATCHES` batches. Within a block they are
    sorted by length and cut into batches, which are shuffled. If the data do not fit
    in memory, a block holds neighboring sequences, so that reads stay close together. Every
    epoch has its own generator, so a resumed run continues in the same order.

    Parameters
    ----------
    dataset
        The data.
    batch_size
        Sequences in a batch; one batch of an epoch may have fewer.
    seed
        Seed of the shuffle, 0 or more.
    indices
        Numbers of the sequences to draw, such as those for training; None for all.
    stateful
        Keep the order of the files in constant rows, as
        ``SequenceData.batches(keep_rows=True)`` does.

    Raises
    ------
    UsageError
        The batch size is below 1.
    """

    dataset: SequenceData
    batch_size: int
    seed: int = 0
    indices: Indices | None = None
    stateful: bool = False

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise UsageError("a batch holds at least one sequence", found=f"size {self.batch_size}")

    @cached_property
    def numbers(self) -> Indices:
        """Numbers of the sequences to draw, in the order of the files."""
        if self.indices is None:
            return np.arange(self.dataset.count, dtype=np.int64)
        return np.sort(np.asarray(self.indices, np.int64))

    @property
    def batches(self) -> int:
        """Number of batches in an epoch."""
        return sum(-(-len(numbers) // self.batch_size) for numbers in self._file_numbers)

    def order(self, epoch: int) -> list[Indices]:
        """Sequence numbers of every batch of an epoch."""
        if self.stateful:
            return [
                batch
                for numbers in self._file_numbers
                for batch in _split(numbers, self.batch_size)
            ]
        philox = np.random.Philox(key=self.seed, counter=[0, 1, SHUFFLE_STREAM, epoch])
        rng = np.random.Generator(philox)
        lengths = self.dataset.lengths()
        batches: list[Indices] = []
        for block in self._blocks(rng):
            by_length = block[np.argsort(lengths[block], kind="stable")]
            block_batches = _split(by_length, self.batch_size)
            batches += [block_batches[k] for k in rng.permutation(len(block_batches))]
        return batches

    @cached_property
    def _file_numbers(self) -> list[Indices]:
        if not self.stateful:
            return [self.numbers]
        firsts = [first for first, _ in self.dataset.starts[1:]]
        return np.split(self.numbers, np.searchsorted(self.numbers, firsts))

    def _blocks(self, rng: np.random.Generator) -> list[Indices]:
        size = self.batch_size * BLOCK_BATCHES
        if self.dataset.fits_in_memory:
            return _split(rng.permutation(self.numbers), size)
        blocks = _split(self.numbers, size)
        return [rng.permutation(blocks[k]) for k in rng.permutation(len(blocks))]


def _split(numbers: Indices, size: int) -> list[Indices]:
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]
