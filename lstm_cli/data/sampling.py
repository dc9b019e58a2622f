"""Which sequences training sees: what is held out, and the order of an epoch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lstm_cli.data.batches import Indices, StoredSequences, placing
from lstm_cli.data.sequence_data import Dataset
from lstm_cli.data.types import Array
from lstm_cli.errors import DataError, UsageError, counted

HOLDING_OUT = 1
"""Second word of the generator's counter, which dropout leaves at 0; the third is 0 here."""


def hold_out(
    dataset: Dataset, share: float, seed: int, *, per_step: bool | None = None, classes: bool = True
) -> tuple[Indices, Indices]:
    """Numbers of the sequences to learn from, and of those held out; both sorted.

    Sequences are drawn by `seed`, each class in proportion where targets are classes; all windows
    of a sequence go with it. Windows of series are not drawn: the last ones are held out, and
    those before them that share a step with them, or have their target there, belong to neither
    side. Windows without targets belong to none.

    Parameters
    ----------
    share
        Of the sequences, between 0 and 1.
    per_step
        As `Dataset.batches` takes it.
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
        present, units = np.unique(sequences, return_inverse=True)
    else:
        present, units = numbers, np.arange(len(numbers))
    held = _held(dataset, share, len(present))
    philox = np.random.Philox(key=seed, counter=[0, HOLDING_OUT, 0, 0])
    rng = np.random.Generator(philox)
    kinds = _classes(dataset, per_step) if classes else None
    first = np.zeros(len(present), np.int64)
    first[units[::-1]] = numbers[::-1]  # a sequence's first window has its class
    own = np.zeros(len(present), np.int64) if kinds is None else kinds[first]
    chosen = _stratified(own, held, rng)[units]
    return numbers[~chosen], numbers[chosen]


def _held(dataset: Dataset, share: float, count: int) -> int:
    """How many of `count` are held out; DataError if one side would have none."""
    held = round(share * count)
    if not 0 < held < count:
        raise _one_sided(dataset, share, held, count)
    return held


def need_same_form(dataset: Dataset, validation: Dataset, per_step: bool | None = None) -> None:
    """Raise DataError unless what is learned from one dataset can be measured on the other.

    `per_step` is as `Dataset.batches` takes it.
    """
    sides = {
        "number of features": (dataset.features, validation.features),
        "targets": (_form(dataset, per_step), _form(validation, per_step)),
        "classes": (_labels(dataset), _labels(validation)),
    }
    for side, (own, other) in sides.items():
        if None not in (own, other) and own != other:
            raise _differ(dataset, validation, side, own, other)
    infos = [one.targets for one in (dataset, validation) if one.targets is not None]
    placings = [info.per_step for info in infos if info.per_step is not None]
    if len(set(placings)) > 1:
        words = ["one a step" if by_step else "one a sequence" for by_step in placings]
        raise _differ(dataset, validation, "targets", *words)


def _labels(dataset: Dataset) -> str | None:
    return None if dataset.class_labels is None else ", ".join(dataset.class_labels)


def _form(dataset: Dataset, per_step: bool | None) -> str:
    if dataset.targets is None:
        return "none"
    if dataset.targets_of is not None:
        return f"{dataset.targets_of}, {dataset.targets.shape} each"
    info = dataset.targets.placed(per_step)
    return f"{info.shape} each" if info.shape else "one number each"


def _differ(
    dataset: Dataset, validation: Dataset, side: str, own: object, other: object
) -> DataError:
    return DataError(
        f"the validation data differ in {side}: {own} in {dataset.input_name}, "
        f"{other} in {validation.input_name}",
        expected=str(own),
        found=str(other),
        where=(dataset.input_name, validation.input_name),
        hint="--set train.validation=FILE.h5:/group names other data, "
        "--set train.validation=0.2 holds out a share",
    )


def _one_sided(dataset: Dataset, share: float, held: int, N: int) -> DataError:
    hint = f"--set train.validation={1 / max(N, 2):.2g}"
    if N < 2:
        hint = "--set train.validation=FILE.h5:/group holds out other data"
    elif held:
        hint = f"--set train.validation={(N - 1) / N:.9g}"
    return DataError(
        f"a share of {share:g} of {N} sequence{'' if N == 1 else 's'} leaves "
        + ("none to learn from" if held else "none for validation"),
        expected="at least one on either side",
        found=f"{N - held} to learn from, {held} held out",
        where=dataset.input_names,
        hint=hint,
    )


def _classes(dataset: Dataset, per_step: bool | None) -> Array | None:
    """(N,) class of each sequence, or None if the targets do not say one."""
    info = dataset.targets
    if info is None or placing(info, per_step) or info.placed(False).kind != "class":
        return None
    stored = StoredSequences(dataset.files, np.dtype(np.float64), by_step=False)
    return stored.targets(np.arange(dataset.count, dtype=np.int64), 1)[0]


def _stratified(kinds: Array, held: int, rng: np.random.Generator) -> Array:
    """(N,) true for `held` sequences, each kind in proportion as nearly as can be."""
    _, kind, counts = np.unique(kinds, return_inverse=True, return_counts=True)
    exact = counts * (held / len(kinds))
    quota = np.floor(exact).astype(np.int64)
    # The largest remainders get one more; a kind that would be used up comes last.
    order = np.lexsort((quota - exact, quota + 1 >= counts))
    quota[order[: held - int(quota.sum())]] += 1
    shuffled = rng.permutation(len(kinds))
    grouped = shuffled[np.argsort(kind[shuffled], kind="stable")]
    rank = np.arange(len(kinds)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.zeros(len(kinds), np.bool_)
    chosen[grouped[rank < np.repeat(quota, counts)]] = True
    return chosen


def _last_windows(dataset: Dataset, numbers: Indices, share: float) -> tuple[Indices, Indices]:
    """The last windows, and those before them that end, target and all, before they begin."""
    count = len(numbers)
    held = _held(dataset, share, count)
    begin, last = dataset.files.seen(numbers)
    own = dataset.files.sequences(numbers)
    first = count - held
    apart = (own < own[first]) | (last < begin[first])
    train = numbers[:first][apart[:first]]
    if not len(train):
        raise DataError(
            f"every window before the {held} held out shares a step with them",
            expected="at least one window to learn from",
            found=f"{counted(first, 'window')} before them",
            where=dataset.input_names,
            hint=_fewer_windows(begin, last, own),
        )
    return train, numbers[first:]


def _fewer_windows(begin: Array, last: Array, own: Array) -> str:
    """Hint with the largest share that leaves a window to learn from, if there is one."""
    count = len(begin)
    free = np.minimum.accumulate(last)[:-1] < begin[1:]
    fitting = np.flatnonzero(free | (own[1:] != own[0])) + 1
    if not len(fitting):
        return "a smaller data.window.length, or other data: --set train.validation=FILE.h5:/group"
    return f"--set train.validation={(count - fitting[0]) / count:.9g}"


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
