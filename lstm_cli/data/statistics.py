"""Statistics of the data in two passes: exact moments for training, a scan for `lstm-cli data`.

The pass for training stops at the first NaN. The scan of `lstm-cli data` reads on and reports all
problems.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import prod

import numpy as np
from numpy.typing import NDArray

from lstm_cli.data.batches import Indices, SequencesInFiles, targets_are_per_step
from lstm_cli.data.lengths import valid_steps
from lstm_cli.data.sequence_data import SequenceData
from lstm_cli.data.types import Array, Batch, TargetInfo
from lstm_cli.errors import DataError, Problem, counted, quote

PIECE_SEQUENCES = 1024
"""Largest number of sequences that are read together."""

PIECE_BYTES = 32 << 20
"""Approximate bytes that are read together."""

FLOAT64 = np.dtype(np.float64)

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FeatureStatistics:
    """Statistics of each feature over all valid steps. Overlapping windows count steps repeatedly.

    Attributes
    ----------
    mean, std, minimum, maximum
        (D,) values. The standard deviation is the population's, and exactly 0 for a constant.
    count
        Number of steps, or of targets that are one per sequence.
    """

    mean: Vector
    std: Vector
    minimum: Vector
    maximum: Vector
    count: int


def feature_statistics(dataset: SequenceData, indices: Indices | None = None) -> FeatureStatistics:
    """Statistics of the inputs of some sequences, by default of all, in float64.

    Raises
    ------
    DataError
        A value is NaN or infinite, there are no steps, or a file is damaged.
    """
    moments = _Moments()
    for piece in _pieces(dataset, indices):
        moments.add(piece.finite_inputs())
    return moments.finish(dataset.input_names)


def target_statistics(
    dataset: SequenceData, indices: Indices | None = None, *, per_step: bool | None = None
) -> FeatureStatistics | None:
    """Statistics of the targets of some sequences, (K,) each; None without targets.

    Targets of sequences without steps are left out, as in the loss.

    Raises
    ------
    DataError
        See `feature_statistics`.
    """
    if dataset.targets is None:
        return None
    moments = _Moments()
    for piece in _pieces(dataset, indices, per_step):
        moments.add(piece.finite_targets())
    return moments.finish((dataset.targets.name,))


def class_counts(
    dataset: SequenceData,
    indices: Indices | None = None,
    *,
    classes: int,
    per_step: bool | None = None,
) -> NDArray[np.int64]:
    """(classes,) number of sequences, or valid steps, of each class.

    Raises
    ------
    DataError
        There are no targets, a target is not a class index, or a file is damaged.
    """
    info = None if dataset.targets is None else dataset.targets.resolve(bool(per_step))
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
        bad = (rows < 0) | (rows >= classes) | (rows != np.floor(rows))
        if bad.any():
            raise piece.target_error(rows, bad, f"a class from 0 to {classes - 1}")
        counts += np.bincount(rows[:, 0].astype(np.int64), minlength=classes)
    return counts


class _Moments:
    """Mean and sum of squared deviations, merged piece by piece (Chan et al. 1983).

    The first row is subtracted from all rows. So an offset much larger than the deviations does
    not lose digits, and the deviation of a constant is exactly 0.
    """

    def __init__(self) -> None:
        self.count = 0
        self.origin: Vector = np.zeros(1)
        self.mean: Vector = np.zeros(1)  # from `origin`
        self.squares: Vector = np.zeros(1)
        self.low: Vector = np.full(1, np.inf)
        self.high: Vector = np.full(1, -np.inf)

    def add(self, rows: Vector) -> None:
        """Add rows (n, D)."""
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
        """Statistics of all rows; `names` are places for the error."""
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
    """Some sequences of a dataset, which are read at each call."""

    dataset: SequenceData
    source: SequencesInFiles
    numbers: Indices

    @property
    def valid(self) -> NDArray[np.bool_]:
        """(n, T) true at valid steps."""
        files = self.source.files
        return valid_steps(files.lengths[self.numbers], files.steps(self.numbers))

    @property
    def counted(self) -> NDArray[np.bool_]:
        """(n, T) or (n,) true at targets that count in the loss."""
        return self.valid if self.source.per_step else np.asarray(self.valid.any(axis=1))

    def finite_inputs(self) -> Vector:
        """(steps, D) valid steps; DataError if a value is NaN or infinite."""
        valid = self.valid
        x, _ = self.source.inputs(self.numbers, valid.shape[1])
        rows: Vector = x[valid]
        bad = ~np.isfinite(rows)
        if bad.any():
            row, feature = np.argwhere(bad)[0].tolist()
            n, step = np.argwhere(valid)[row].tolist()
            number = int(self.numbers[n])
            place = self.dataset.input_location(number, step, feature)
            raise self._value_error(number, rows[row, feature], place, "finite numbers")
        return rows

    def finite_targets(self) -> Vector:
        """(rows, K) float64 targets that count; DataError if a value is NaN or infinite."""
        counted = self.counted
        y = np.asarray(self.source.targets(self.numbers, self.valid.shape[1])[0])
        rows = y[counted].reshape(counted.sum(), prod(y.shape[counted.ndim :])).astype(FLOAT64)
        bad = ~np.isfinite(rows)
        if bad.any():
            raise self.target_error(rows, bad, "finite numbers")
        return rows

    def target_error(self, rows: Vector, bad: NDArray[np.bool_], expected: str) -> DataError:
        """The error for the first `bad` value of `finite_targets`."""
        row, value = np.argwhere(bad)[0].tolist()
        n, *step = np.argwhere(self.counted)[row].tolist()
        number = int(self.numbers[n])
        place = self.dataset.target_location(number, step[0] if step else None, value)
        return self._value_error(number, rows[row, value], place, expected)

    def _value_error(self, number: int, value: float, place: str, expected: str) -> DataError:
        name, _, within = place.partition(", ")
        file = int(self.source.files.file_of(np.array([number]))[0])
        return DataError(
            f"{name} holds {value:g}",
            expected=expected,
            found=f"{value:g} in {within}",
            where=name,
            hint=f"lstm-cli data {quote(self.dataset.paths[file])} lists what is wrong with it",
        )


def _pieces(
    dataset: SequenceData, indices: Indices | None, per_step: bool | None = None
) -> Iterator[_Piece]:
    files = dataset.files
    numbers = np.arange(dataset.count, dtype=np.int64) if indices is None else np.sort(indices)
    source = SequencesInFiles(files, FLOAT64, targets_are_per_step(files.targets, per_step))
    widest = max(dataset.features, prod(() if dataset.targets is None else dataset.targets.shape))
    max_steps = PIECE_BYTES // (widest * FLOAT64.itemsize)
    for piece in files.pieces(numbers, PIECE_SEQUENCES, max_steps):
        yield _Piece(dataset, source, piece)


SCAN_SEQUENCES = 1024
"""Largest number of sequences in a batch of the scan."""

SCAN_BYTES = 32 << 20
"""Largest number of bytes in a batch of the scan."""

MAX_LISTED_SEQUENCES = 10
"""Largest number of sequences that a problem lists."""

USUALLY_IGNORED = frozenset((9, 99, 127, 255, 999, 9999, 32767, 65535))
"""Class indices that usually mark targets to ignore."""

LABEL_GAP = 10
"""A label that exceeds all others by more than this seems to mark targets to ignore."""


MAX_CLASSES = 1000
"""Largest number of different integers that count as class indices."""


@dataclass
class DataScan:
    """Facts from one pass over the data.

    Attributes
    ----------
    bad
        For each feature, the count of NaN or infinite values, and sequence and step of the first.
    low, high
        (D,) smallest and largest finite value of each feature.
    classes
        Count of each integer in the targets.
    bad_targets
        For each value of a target, the same as `bad`; the step is None for targets per sequence.
    """

    features: int
    bad: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    classes: Counter[int] = field(default_factory=Counter)
    bad_targets: dict[int, tuple[int, int, int | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.low = np.full(self.features, np.inf)
        self.high = np.full(self.features, -np.inf)

    def add(self, batch: Batch, info: TargetInfo | None) -> None:
        """Add a batch of float64, with targets that `info` describes."""
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
        if len(self.classes) <= MAX_CLASSES:
            classes, counts = np.unique(values, return_counts=True)
            self.classes.update(dict(zip(classes.tolist(), counts.tolist(), strict=True)))

    def _add_bad_targets(self, first: int, bad: Array, per_step: bool) -> None:
        places = np.argwhere(bad.reshape(*bad.shape[: 1 + per_step], -1))
        for value in np.unique(places[:, -1]).tolist():
            rows = places[places[:, -1] == value]
            step = int(rows[0, 1]) if per_step else None
            count, n, t = self.bad_targets.get(value, (0, first + int(rows[0, 0]), step))
            self.bad_targets[value] = count + len(rows), n, t


def scan_data(dataset: SequenceData) -> DataScan:
    """Read all data once, in batches. Targets that may be one per step are read as such.

    Raises
    ------
    DataError
        The file is damaged.
    """
    scan = DataScan(dataset.features)
    info = None if dataset.targets is None else dataset.targets.resolve(True)
    for batch in dataset.batches(SCAN_SEQUENCES, np.float64, per_step=True, max_bytes=SCAN_BYTES):
        scan.add(batch, info)
    return scan


def _mask(batch: Batch) -> Array:
    if batch.lengths is None:
        return np.ones(batch.x.shape[:2], np.bool_)
    return valid_steps(batch.lengths, batch.x.shape[1])


def input_problems(dataset: SequenceData, scan: DataScan) -> list[Problem]:
    """Problems of the inputs: NaN and infinite values, constant features, empty sequences."""
    problems = [
        Problem(
            f"feature {feature} has {counted(count, 'NaN or infinite value')}",
            expected="finite numbers",
            found=f"the first in {dataset.sequence(sequence)}, step {step}",
            where=(dataset.place(sequence),),
        )
        for feature, (count, sequence, step) in sorted(scan.bad.items())
    ]
    constant = np.flatnonzero(scan.low == scan.high).tolist()
    if constant and dataset.total_steps > 1:
        listed = ", ".join(f"{k} ({scan.low[k]:g})" for k in constant[:10])
        more = f" and {len(constant) - 10} more" if len(constant) > 10 else ""
        noun = "feature never changes" if len(constant) == 1 else "features never change"
        problems.append(
            Problem(
                f"{len(constant)} {noun}: {listed}{more}",
                found="constant",
                where=(dataset.input_name,),
            )
        )
    return problems + _empty_sequence_problems(dataset)


def _empty_sequence_problems(dataset: SequenceData) -> list[Problem]:
    empty = np.flatnonzero(dataset.lengths() == 0).tolist()
    if not empty:
        return []
    noun = "sequence has" if len(empty) == 1 else "sequences have"
    listed = ", ".join(dataset.sequence(n) for n in empty[:MAX_LISTED_SEQUENCES])
    more = len(empty) - MAX_LISTED_SEQUENCES
    return [
        Problem(
            f"{len(empty)} {noun} no step",
            expected="at least one step",
            found=listed + (f" and {more} more" if more > 0 else ""),
            where=(dataset.place(empty[0]),),
        )
    ]


def target_problems(dataset: SequenceData, scan: DataScan) -> list[Problem]:
    """Problems of the targets: NaN and infinite values, class indices with gaps or out of range."""
    info = dataset.targets
    if info is None:
        return []
    where, shaped = (info.name,), info.resolve(True).shape != ()
    if scan.bad_targets:
        return [
            Problem(
                f"{count} target{' is' if count == 1 else 's are'} NaN or infinite",
                expected="finite numbers",
                found=f"the first in {within}",
                where=(name,),
            )
            for value, (count, number, step) in sorted(scan.bad_targets.items())
            for name, _, within in [
                dataset.target_location(number, step, value if shaped else None).partition(", ")
            ]
        ]
    return _class_problems(dataset, scan, where)


def _class_problems(dataset: SequenceData, scan: DataScan, where: tuple[str, ...]) -> list[Problem]:
    if not scan.classes or len(scan.classes) > MAX_CLASSES:
        return []
    if ignored := ignored_labels(scan.classes):
        return [_ignored_problem(dataset, scan.classes, ignored)]
    low, high = min(scan.classes), max(scan.classes)
    labels = dataset.class_labels
    problems = []
    if low < 0:
        signs = set(scan.classes) == {-1, 1}
        problems.append(
            Problem(
                "a class index is negative",
                "0 or more",
                str(low),
                where,
                f"{dataset.relabeling_command([-1], 0)}: two classes" if signs else None,
            )
        )
        if signs:
            return problems
    absent = [] if high > MAX_CLASSES else sorted(set(range(high)) - set(scan.classes))
    if absent or high > MAX_CLASSES:
        listed = ", ".join(map(str, absent[:10])) or "most"
        problems.append(
            Problem(
                f"class indices have gaps: {low} to {high}, without {listed}",
                f"every index from 0 to {high}",
                f"{len(scan.classes)} different ones",
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


def ignored_labels(classes: Mapping[int, int]) -> list[int]:
    """Labels that seem to mark targets to ignore: negative, or far above all others."""
    indices = sorted(label for label in classes if label >= 0)
    ignored = [label for label in classes if label < 0]
    if len(ignored) > 1 or set(classes) == {-1, 1}:
        return []  # values, or two classes
    if len(indices) > 1:
        below, high = indices[-2], indices[-1]
        usual = high in USUALLY_IGNORED and high > below + 1
        if usual or high > max(below + LABEL_GAP, 2 * below):
            ignored.append(high)
    return ignored


def spare_class(classes: Mapping[int, int]) -> int:
    """First class index above all labels that are not `ignored_labels`."""
    ignored = ignored_labels(classes)
    return max((label for label in classes if label not in ignored), default=-1) + 1


def _ignored_problem(
    dataset: SequenceData, classes: Mapping[int, int], labels: list[int]
) -> Problem:
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
        hint=f"{dataset.relabeling_command(labels, spare)}; in a config, units: {spare + 1} and "
        f"train.class_weights: {{{spare}: 0}} keep that class from being learned",
    )
