"""Statistics of what training sees: each feature's moments and extremes, each class's count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from lstm_cli.data.dataset import Dataset
from lstm_cli.data.ragged import valid_steps
from lstm_cli.data.sequences import Indices, StoredSequences, placing
from lstm_cli.errors import DataError, quote

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
