"""Statistics of the data, in two passes: for training, and for `lstm-cli data`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from lstm_cli.data.batches import Indices, StoredSequences, placing
from lstm_cli.data.lengths import valid_steps
from lstm_cli.data.sequence_data import Dataset
from lstm_cli.data.types import Array, Batch, TargetInfo
from lstm_cli.errors import DataError, Problem, counted, quote

PIECE = 1024

PIECE_BYTES = 32 << 20

FLOAT64 = np.dtype(np.float64)

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Of each feature, over valid steps; windows count each as they are read.

    Attributes
    ----------
    mean, std, minimum, maximum
        (D,); the standard deviation is the population's, and exactly 0 for a constant.
    count
        Steps, or targets where they are one a sequence.
    """

    mean: Vector
    std: Vector
    minimum: Vector
    maximum: Vector
    count: int


def feature_statistics(dataset: Dataset, indices: Indices | None = None) -> FeatureStatistics:
    """Statistics of the inputs of some sequences, in float64; None: of all.

    Raises
    ------
    DataError
        A value is NaN or infinite, there is no step at all, or a file is damaged.
    """
    moments = _Moments()
    for piece in _pieces(dataset, indices):
        moments.add(piece.finite_inputs())
    return moments.finish(dataset.input_names)


def target_statistics(
    dataset: Dataset, indices: Indices | None = None, *, per_step: bool | None = None
) -> FeatureStatistics | None:
    """Statistics of the targets of some sequences, (K,) each; None without targets.

    Targets of sequences without steps count in no loss, and not here.

    Raises
    ------
    DataError
        As of `feature_statistics`.
    """
    if dataset.targets is None:
        return None
    moments = _Moments()
    for piece in _pieces(dataset, indices, per_step):
        moments.add(piece.finite_targets())
    return moments.finish((dataset.targets.name,))


def class_counts(
    dataset: Dataset,
    indices: Indices | None = None,
    *,
    classes: int,
    per_step: bool | None = None,
) -> NDArray[np.int64]:
    """(classes,) how many sequences, or valid steps, are of each class.

    Raises
    ------
    DataError
        There are no targets, one is no class from 0 to `classes` - 1, or a file is damaged.
    """
    info = None if dataset.targets is None else dataset.targets.placed(bool(per_step))
    if info is None or info.shape not in ((), (1,)):
        raise DataError(
            "there are no classes to count",
            expected="targets of one class index each",
            found="none" if info is None else f"{info.shape} numbers each in {info.name}",
            where=dataset.input_names if info is None else info.name,
        )
    counts = np.zeros(classes, np.int64)
    for piece in _pieces(dataset, indices, per_step):
        rows = piece.finite_targets()
        wrong = (rows < 0) | (rows >= classes) | (rows != np.floor(rows))
        if wrong.any():
            raise piece.bad_target(rows, wrong, f"a class from 0 to {classes - 1}")
        counts += np.bincount(rows[:, 0].astype(np.int64), minlength=classes)
    return counts


class _Moments:
    """Mean and sum of squared deviations, merged piece by piece (Chan et al. 1983).

    Of an offset much larger than the deviations nothing is squared, and little is added up: the
    first row is taken off before anything else. That also makes a constant's deviation exactly 0.
    """

    def __init__(self) -> None:
        self.count = 0
        self.origin: Vector = np.zeros(1)
        self.mean: Vector = np.zeros(1)  # from `origin`
        self.squares: Vector = np.zeros(1)
        self.low: Vector = np.full(1, np.inf)
        self.high: Vector = np.full(1, -np.inf)

    def add(self, rows: Vector) -> None:
        """Take in rows (n, D)."""
        n = len(rows)
        if not n:
            return
        if not self.count:
            self.origin = rows[0].copy()
        shifted = rows - self.origin
        mean = shifted.mean(axis=0)
        squares = np.square(shifted - mean).sum(axis=0)
        total = self.count + n
        delta = mean - self.mean
        self.squares = self.squares + squares + np.square(delta) * (self.count * n / total)
        self.mean = self.mean + delta * (n / total)
        self.count = total
        self.low = np.minimum(self.low, rows.min(axis=0))
        self.high = np.maximum(self.high, rows.max(axis=0))

    def finish(self, names: tuple[str, ...]) -> FeatureStatistics:
        """The statistics of all rows; `names` is where they stand."""
        if not self.count:
            raise DataError(
                f"{names[0]} has no step to take statistics of",
                expected="at least one step",
                found="sequences of length 0",
                where=names,
            )
        std = np.sqrt(self.squares / self.count)
        return FeatureStatistics(self.origin + self.mean, std, self.low, self.high, self.count)


@dataclass(frozen=True, eq=False)
class _Piece:
    """Some sequences of a dataset, read when asked for."""

    dataset: Dataset
    stored: StoredSequences
    numbers: Indices

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(n, T) true where a step belongs to its sequence."""
        files = self.stored.files
        return valid_steps(files.lengths[self.numbers], files.steps(self.numbers))

    @property
    def counted(self) -> NDArray[np.bool_]:
        """(n, T) or (n,) true where there is a target that counts."""
        return self.valid if self.stored.by_step else np.asarray(self.valid.any(axis=1))

    def finite_inputs(self) -> Vector:
        """(steps, D) valid steps; DataError if one holds no number."""
        valid = self.valid
        x, _ = self.stored.inputs(self.numbers, valid.shape[1])
        rows: Vector = x[valid]
        bad = ~np.isfinite(rows)
        if bad.any():
            row, feature = np.argwhere(bad)[0].tolist()
            n, step = np.argwhere(valid)[row].tolist()
            number = int(self.numbers[n])
            place = self.dataset.input_place(number, step, feature)
            raise self._bad(number, rows[row, feature], place, "finite numbers")
        return rows

    def finite_targets(self) -> Vector:
        """(rows, K) targets that count, as float64; DataError if one is no number."""
        counted = self.counted
        y = np.asarray(self.stored.targets(self.numbers, self.valid.shape[1])[0])
        rows = y[counted].reshape(counted.sum(), prod(y.shape[counted.ndim :])).astype(FLOAT64)
        bad = ~np.isfinite(rows)
        if bad.any():
            raise self.bad_target(rows, bad, "finite numbers")
        return rows

    def bad_target(self, rows: Vector, bad: NDArray[np.bool_], expected: str) -> DataError:
        """The error for the first of the `bad` among `finite_targets`."""
        row, value = np.argwhere(bad)[0].tolist()
        n, *step = np.argwhere(self.counted)[row].tolist()
        number = int(self.numbers[n])
        place = self.dataset.target_place(number, step[0] if step else None, value)
        return self._bad(number, rows[row, value], place, expected)

    def _bad(self, number: int, found: float, place: str, expected: str) -> DataError:
        name, _, within = place.partition(", ")
        file = int(self.stored.files.file_of(np.array([number]))[0])
        return DataError(
            f"{name} holds {found:g}",
            expected=expected,
            found=f"{found:g} in {within}",
            where=name,
            hint=f"lstm-cli data {quote(self.dataset.paths[file])} lists what is wrong with it",
        )


def _pieces(
    dataset: Dataset, indices: Indices | None, per_step: bool | None = None
) -> Iterator[_Piece]:
    files = dataset.files
    numbers = np.arange(dataset.count, dtype=np.int64) if indices is None else np.sort(indices)
    stored = StoredSequences(files, FLOAT64, placing(files.targets, per_step))
    widest = max(dataset.features, prod(() if dataset.targets is None else dataset.targets.shape))
    for own in files.pieces(numbers, PIECE, PIECE_BYTES // (widest * FLOAT64.itemsize)):
        yield _Piece(dataset, stored, own)


SCAN_SEQUENCES = 1024

SCAN_BYTES = 32 << 20

SHOWN_SEQUENCES = 10

USUALLY_IGNORED = frozenset((9, 99, 127, 255, 999, 9999, 32767, 65535))

FAR = 10
"""A label this far above all others looks like none of them."""


MOST_CLASSES = 1000
"""With more values than this, integers are no class indices."""


@dataclass
class Statistics:
    """What a pass over the data gathers.

    Attributes
    ----------
    bad
        By feature: how many values are NaN or infinite, and sequence and step of the first.
    low, high
        (D,) smallest and largest finite value of each feature.
    classes
        How often each integer stands in the targets.
    bad_targets
        By value of a target: as `bad`; the step is None where targets are one a sequence.
    """

    features: int
    bad: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    classes: Counter[int] = field(default_factory=Counter)
    bad_targets: dict[int, tuple[int, int, int | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.low = np.full(self.features, np.inf)
        self.high = np.full(self.features, -np.inf)

    def add(self, batch: Batch, info: TargetInfo | None) -> None:
        """Take in a batch of float64, with targets as `info` says."""
        mask = _mask(batch)
        rows = batch.x[mask]  # (steps, D)
        finite = np.isfinite(rows)
        if not finite.all():
            self._add_bad(batch, mask, ~finite)
        self.low = np.minimum(self.low, np.where(finite, rows, np.inf).min(0, initial=np.inf))
        self.high = np.maximum(self.high, np.where(finite, rows, -np.inf).max(0, initial=-np.inf))
        if batch.targets is not None and info is not None:
            self._add_targets(batch, batch.targets, mask, info)

    def _add_bad(self, batch: Batch, mask: Array, bad: Array) -> None:
        places = np.argwhere(mask)  # (steps, 2): sequence, step
        for feature in np.flatnonzero(bad.any(axis=0)).tolist():
            n, t = places[int(np.argmax(bad[:, feature]))].tolist()
            count, first, step = self.bad.get(feature, (0, batch.first + n, t))
            self.bad[feature] = (count + int(bad[:, feature].sum()), first, step)

    def _add_targets(self, batch: Batch, targets: Array, mask: Array, info: TargetInfo) -> None:
        per_step = bool(info.per_step)
        if info.kind != "class":
            if not np.isfinite(targets).all():
                self._add_bad_targets(batch.first, ~np.isfinite(targets), per_step)
            return
        values = targets[mask] if per_step else targets
        if len(self.classes) <= MOST_CLASSES:
            found, counts = np.unique(values, return_counts=True)
            self.classes.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))

    def _add_bad_targets(self, first: int, bad: Array, per_step: bool) -> None:
        places = np.argwhere(bad.reshape(*bad.shape[: 1 + per_step], -1))
        for value in np.unique(places[:, -1]).tolist():
            own = places[places[:, -1] == value]
            step = int(own[0, 1]) if per_step else None
            count, n, t = self.bad_targets.get(value, (0, first + int(own[0, 0]), step))
            self.bad_targets[value] = count + len(own), n, t


def gather(dataset: Dataset) -> Statistics:
    """Read the whole dataset once, in batches; targets that may be one a step are taken so.

    Raises
    ------
    DataError
        The file is damaged.
    """
    statistics = Statistics(dataset.features)
    info = None if dataset.targets is None else dataset.targets.placed(True)
    for batch in dataset.batches(SCAN_SEQUENCES, np.float64, per_step=True, max_bytes=SCAN_BYTES):
        statistics.add(batch, info)
    return statistics


def _mask(batch: Batch) -> Array:
    if batch.lengths is None:
        return np.ones(batch.x.shape[:2], np.bool_)
    return valid_steps(batch.lengths, batch.x.shape[1])


def input_problems(dataset: Dataset, statistics: Statistics) -> list[Problem]:
    """Values that are no numbers, and features that never change."""
    problems = [
        Problem(
            f"feature {feature} has {counted(count, 'NaN or infinite value')}",
            expected="finite numbers",
            found=f"the first in {dataset.sequence(sequence)}, step {step}",
            where=(dataset.place(sequence),),
        )
        for feature, (count, sequence, step) in sorted(statistics.bad.items())
    ]
    constant = np.flatnonzero(statistics.low == statistics.high).tolist()
    if constant and dataset.total_steps > 1:
        listed = ", ".join(f"{k} ({statistics.low[k]:g})" for k in constant[:10])
        more = f" and {len(constant) - 10} more" if len(constant) > 10 else ""
        noun = "feature never changes" if len(constant) == 1 else "features never change"
        problems.append(
            Problem(
                f"{len(constant)} {noun}: {listed}{more}",
                found="constant",
                where=(dataset.input_name,),
            )
        )
    return problems + _empty(dataset)


def _empty(dataset: Dataset) -> list[Problem]:
    """Sequences without a step, each by its number and name."""
    empty = np.flatnonzero(dataset.lengths() == 0).tolist()
    if not empty:
        return []
    noun = "sequence has" if len(empty) == 1 else "sequences have"
    listed = ", ".join(dataset.sequence(n) for n in empty[:SHOWN_SEQUENCES])
    more = len(empty) - SHOWN_SEQUENCES
    return [
        Problem(
            f"{len(empty)} {noun} no step",
            expected="at least one step",
            found=listed + (f" and {more} more" if more > 0 else ""),
            where=(dataset.place(empty[0]),),
        )
    ]


def target_problems(dataset: Dataset, statistics: Statistics) -> list[Problem]:
    """Target values that are no numbers, and class indices with gaps or out of range."""
    info = dataset.targets
    if info is None:
        return []
    where, shaped = (info.name,), info.placed(True).shape != ()
    if statistics.bad_targets:
        return [
            Problem(
                f"{count} target{' is' if count == 1 else 's are'} NaN or infinite",
                expected="finite numbers",
                found=f"the first in {within}",
                where=(name,),
            )
            for value, (count, number, step) in sorted(statistics.bad_targets.items())
            for name, _, within in [
                dataset.target_place(number, step, value if shaped else None).partition(", ")
            ]
        ]
    if not statistics.classes or len(statistics.classes) > MOST_CLASSES:
        return []
    if left_out := ignored(statistics.classes):
        return [_ignored_problem(dataset, statistics.classes, left_out)]
    low, high = min(statistics.classes), max(statistics.classes)
    labels = dataset.class_labels
    problems = []
    if low < 0:
        signs = set(statistics.classes) == {-1, 1}
        problems.append(
            Problem(
                "a class index is negative",
                "0 or more",
                str(low),
                where,
                f"{dataset.relabeling([-1], 0)}: two classes" if signs else None,
            )
        )
        if signs:
            return problems
    absent = [] if high > MOST_CLASSES else sorted(set(range(high)) - set(statistics.classes))
    if absent or high > MOST_CLASSES:
        listed = ", ".join(map(str, absent[:10])) or "most"
        problems.append(
            Problem(
                f"class indices have gaps: {low} to {high}, without {listed}",
                f"every index from 0 to {high}",
                f"{len(statistics.classes)} different ones",
                where,
            )
        )
    if labels is not None and high >= len(labels):
        problems.append(
            Problem(
                f"class index {high} has no label",
                f"0 to {len(labels) - 1}, as there are {len(labels)} labels",
                str(high),
                where,
            )
        )
    return problems


def ignored(classes: Mapping[int, int]) -> list[int]:
    """Labels that look as if they marked what is not to be learned: negative, or far above."""
    kept = sorted(label for label in classes if label >= 0)
    left_out = [label for label in classes if label < 0]
    if len(left_out) > 1 or set(classes) == {-1, 1}:
        return []  # values, or two classes
    if len(kept) > 1:
        below, high = kept[-2], kept[-1]
        usual = high in USUALLY_IGNORED and high > below + 1
        if usual or high > max(below + FAR, 2 * below):
            left_out.append(high)
    return left_out


def spare_class(classes: Mapping[int, int]) -> int:
    """The first class index above all labels that are not `ignored`."""
    return max((label for label in classes if label not in ignored(classes)), default=-1) + 1


def _ignored_problem(dataset: Dataset, classes: Mapping[int, int], labels: list[int]) -> Problem:
    info, spare = dataset.targets, spare_class(classes)
    listed = " and ".join(map(str, labels))
    looks = "look like ignored labels" if len(labels) > 1 else "looks like an ignored label"
    count = counted(sum(classes[label] for label in labels), "target")
    negative = len(labels) == 1 and labels[0] < 0
    return Problem(
        "a class index is negative" if negative else f"class index {listed} {looks}",
        expected=f"class indices from 0 to {spare - 1}, as the other targets are",
        found=f"{listed} in {count}" + (f", which {looks}" if negative else ""),
        where=() if info is None else (info.name,),
        hint=f"{dataset.relabeling(labels, spare)}; in a config, units: {spare + 1} and "
        f"train.class_weights: {{{spare}: 0}} keep that class from being learned",
    )
