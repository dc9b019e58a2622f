"""The first step at which two values part, and how far they come to be apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from lstm_cli.api.comparison.words import listed
from lstm_cli.engines.types import Array

STATES = {"h": "state h", "c": "state c", "output": "its output"}


@dataclass(frozen=True)
class Part:
    """How one value of a layer parts.

    Attributes
    ----------
    layer, direction, value
        Such as 0, ``reverse``, ``f``; the direction is empty where there is one only.
    first_step, first_sequence
        Where the difference first exceeds the threshold, in the order in which the direction
        runs; the step is None for a value without steps, and both where it never does.
    turn
        How many steps its direction had run there.
    largest
        Difference anywhere, and its `sequence` and `step`.
    """

    layer: int
    direction: str
    value: str
    turn: int | None
    first_step: int | None
    first_sequence: int | None
    largest: float
    sequence: int
    step: int | None

    @property
    def apart(self) -> bool:
        """Whether the threshold was exceeded."""
        return self.turn is not None

    def joined(self, before: Part | None) -> Part:
        """With what an earlier batch gave."""
        if before is None:
            return self
        first = before if _turn(before) <= _turn(self) else self
        most = before if before.largest >= self.largest else self
        return replace(first, largest=most.largest, sequence=most.sequence, step=most.step)


def _turn(part: Part) -> float:
    return float("inf") if part.turn is None else part.turn


@dataclass(frozen=True)
class Parting:
    """Compares values of one batch.

    Attributes
    ----------
    number
        Of the batch's first sequence.
    lengths
        (N,); None if all steps are valid.
    """

    number: int
    lengths: Array | None
    threshold: float

    def part(self, layer: int, direction: str, value: str, a: Array, b: Array) -> Part:
        """How two arrays (N, T, F) or (N, F) part."""
        with np.errstate(all="ignore"):
            apart = np.abs(a - b).max(axis=-1, initial=0.0)
        apart = np.where(np.isnan(apart), np.where(_same_nan(a, b), 0.0, np.inf), apart)
        per_step = apart.ndim == 2
        at = np.unravel_index(int(np.argmax(apart)), apart.shape)
        first = self._first(apart, direction) if per_step else _first_row(apart, self.threshold)
        turn, row, step = first if first is not None else (None, None, None)
        return Part(
            layer,
            direction,
            value,
            turn,
            step,
            None if row is None else self.number + row,
            float(apart[at]),
            self.number + int(at[0]),
            int(at[1]) if per_step else None,
        )

    def _first(self, apart: Array, direction: str) -> tuple[int, int, int] | None:
        """The turn, sequence and step of the first difference beyond the threshold."""
        rows, steps = np.nonzero(apart > self.threshold)
        if not len(rows):
            return None
        turns = steps
        if direction == "reverse":
            lengths = np.full(len(apart), apart.shape[1]) if self.lengths is None else self.lengths
            turns = lengths[rows] - 1 - steps
        k = int(np.lexsort((rows, turns))[0])
        return int(turns[k]), int(rows[k]), int(steps[k])


def _first_row(apart: Array, threshold: float) -> tuple[int, int, None] | None:
    rows = np.flatnonzero(apart > threshold)
    return (0, int(rows[0]), None) if len(rows) else None


def _same_nan(a: Array, b: Array) -> Array:
    """Whether all of the last axis that is NaN on one side is on the other."""
    return np.asarray((np.isnan(a) == np.isnan(b)).all(axis=-1))


def sentence(parts: Sequence[Part], threshold: float) -> str:
    """Where the networks part first: the first layer, its first step, the gates there."""
    apart = [part for part in parts if part.apart]
    if not apart:
        most = max(parts, key=lambda part: part.largest, default=None)
        place = "" if most is None else f"; the largest difference is {most.largest:.3g}"
        return f"nothing parts by more than {threshold:g}{place}"
    layer = apart[0].layer
    mine = [part for part in apart if part.layer == layer]
    turn = min(_turn(part) for part in mine)
    first = [part for part in mine if part.turn == turn and part.direction == _leading(mine, turn)]
    gates = [part for part in first if part.value not in STATES] or first
    row = min(part.first_sequence or 0 for part in gates)
    there = [part for part in gates if part.first_sequence == row]
    direction = f" {there[0].direction}" if there[0].direction else ""
    step = "" if there[0].first_step is None else f", step {there[0].first_step}"
    return f"the outputs part at layer {layer}{direction}, {_named(there)}{step} (sequence {row})"


def _leading(parts: Sequence[Part], turn: float) -> str:
    return next(part.direction for part in parts if part.turn == turn)


def _named(parts: Sequence[Part]) -> str:
    values = [part.value for part in parts]
    if values[0] in STATES:
        return listed([STATES[value] for value in values])
    return f"gate{'s' if len(values) > 1 else ''} {listed(values)}"
