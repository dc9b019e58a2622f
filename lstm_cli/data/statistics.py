"""One pass over a group's sequences: values that are no numbers, constant features, classes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from lstm_cli.data.dataset import Dataset
from lstm_cli.data.ragged import valid_steps
from lstm_cli.data.types import Array, Batch
from lstm_cli.errors import Problem

SCAN_SEQUENCES = 1024
SCAN_BYTES = 32 << 20
SHOWN_SEQUENCES = 10
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
    """

    features: int
    bad: dict[int, tuple[int, int, int]] = field(default_factory=dict)
    classes: Counter[int] = field(default_factory=Counter)
    bad_targets: int = 0

    def __post_init__(self) -> None:
        self.low = np.full(self.features, np.inf)
        self.high = np.full(self.features, -np.inf)

    def add(self, batch: Batch, classes: bool) -> None:
        """Take in a batch of float64."""
        mask = _mask(batch)
        rows = batch.x[mask]  # (steps, D)
        finite = np.isfinite(rows)
        if not finite.all():
            self._add_bad(batch, mask, ~finite)
        self.low = np.minimum(self.low, np.where(finite, rows, np.inf).min(0, initial=np.inf))
        self.high = np.maximum(self.high, np.where(finite, rows, -np.inf).max(0, initial=-np.inf))
        if batch.targets is not None:
            self._add_targets(batch.targets, mask, classes)

    def _add_bad(self, batch: Batch, mask: Array, bad: Array) -> None:
        places = np.argwhere(mask)  # (steps, 2): sequence, step
        for feature in np.flatnonzero(bad.any(axis=0)).tolist():
            n, t = places[int(np.argmax(bad[:, feature]))].tolist()
            count, first, step = self.bad.get(feature, (0, batch.first + n, t))
            self.bad[feature] = (count + int(bad[:, feature].sum()), first, step)

    def _add_targets(self, targets: Array, mask: Array, classes: bool) -> None:
        if not classes:
            self.bad_targets += int((~np.isfinite(targets)).sum())
            return
        values = targets[mask] if targets.ndim == 2 else targets
        if len(self.classes) <= MOST_CLASSES:
            found, counts = np.unique(values, return_counts=True)
            self.classes.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))


def gather(dataset: Dataset) -> Statistics:
    """Read the whole dataset once, in batches.

    Raises
    ------
    DataError
        The file is damaged.
    """
    statistics = Statistics(dataset.features)
    classes = dataset.targets is not None and dataset.targets.kind == "class"
    for batch in dataset.batches(SCAN_SEQUENCES, np.float64, max_bytes=SCAN_BYTES):
        statistics.add(batch, classes)
    return statistics


def _mask(batch: Batch) -> Array:
    if batch.lengths is None:
        return np.ones(batch.x.shape[:2], np.bool_)
    return valid_steps(batch.lengths, batch.x.shape[1])


def input_problems(dataset: Dataset, statistics: Statistics) -> list[Problem]:
    """Values that are no numbers, and features that never change."""
    problems = [
        Problem(
            f"feature {feature} has {count} NaN or infinite value{'s' if count > 1 else ''}",
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
    where = (info.name,)
    if statistics.bad_targets:
        count = statistics.bad_targets
        noun = "target is" if count == 1 else "targets are"
        return [Problem(f"{count} {noun} NaN or infinite", "finite numbers", where=where)]
    if not statistics.classes or len(statistics.classes) > MOST_CLASSES:
        return []
    low, high = min(statistics.classes), max(statistics.classes)
    labels = dataset.class_labels
    problems = []
    if low < 0:
        problems.append(Problem("a class index is negative", "0 or more", str(low), where))
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
