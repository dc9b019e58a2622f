"""Progress of a run, and the checkpoint from which another process resumes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from lstm_cli.engines.types import Array
from lstm_cli.errors import WeightsError


@dataclass
class Progress:
    """Progress of a run.

    Attributes
    ----------
    epoch
        Number of completed epochs.
    batch
        Number of completed batches of the current epoch.
    file
        Number of the last batch's file.
    seconds
        Seconds spent on the current epoch.
    rate
        Learning rate of the last update.
    best, best_epoch
        Best value of the monitored metric, and its epoch, counted from 1. None before the
        first epoch ends.
    """

    epoch: int = 0
    batch: int = 0
    file: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    best: float | None = None
    best_epoch: int | None = None

    def numbers(self) -> dict[str, float | None]:
        """Progress as plain numbers, for `from_numbers`."""
        return asdict(self)

    @classmethod
    def from_numbers(cls, numbers: Mapping[str, Any]) -> Progress:
        """Progress from a result of `numbers`.

        Raises
        ------
        WeightsError
            An entry is missing, or is not a number.
        """
        values: dict[str, Any] = {}
        for field in fields(cls):
            value = numbers.get(field.name, "nothing")
            optional = field.name.startswith("best")
            kinds = (int, float) if field.name in ("seconds", "rate", "best") else (int,)
            if not (isinstance(value, kinds) or (optional and value is None)):
                raise WeightsError(
                    f"{field.name} is not a number of a run's progress", found=repr(value)
                )
            values[field.name] = value
        return cls(**values)


@dataclass(frozen=True)
class Checkpoint:
    """State of a run, from which a process resumes the run bit for bit.

    Every random number is a function of the seed and of counts in the checkpoint. So a checkpoint
    has no state of a random generator.

    Attributes
    ----------
    progress
        Counts, and the best epoch.
    tensors
        ``weights/…``, ``updates/…`` (slots of the optimizer, counts, the schedule),
        ``metrics/…`` (sums of the epoch) and ``carry/…`` (states of stateful layers).
    """

    progress: Progress
    tensors: Mapping[str, Array]

    def part(self, name: str) -> dict[str, Array]:
        """Tensors whose names begin with ``name/``, by the rest of their names."""
        prefix = name + "/"
        part = {key: value for key, value in self.tensors.items() if key.startswith(prefix)}
        return {key.removeprefix(prefix): value for key, value in part.items()}


def with_prefix(name: str, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Tensors under names that begin with ``name/``."""
    return {f"{name}/{key}": value for key, value in tensors.items()}
