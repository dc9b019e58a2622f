"""One pass over a group's sequences: values that are no numbers, constant features, classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from lstm_cli.data.dataset import Dataset
from lstm_cli.data.ragged import valid_steps
from lstm_cli.data.types import Array, Batch, TargetInfo
from lstm_cli.errors import Problem, counted

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
