"""How far a run has come, and the checkpoint that another process goes on from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from lstm_cli.engines.types import Array
from lstm_cli.errors import WeightsError


@dataclass
class Progress:
    """How far a run has come.

    Attributes
    ----------
    epoch
        Epochs ended.
    batch
        Batches of the next epoch that are done.
    file
        File of the last batch.
    seconds
        Spent on that epoch.
    rate
        Learning rate of the last update.
    best, best_epoch
        Best value of the monitored metric, and its epoch counted from 1; None before any.
    """

    epoch: int = 0
    batch: int = 0
    file: int = 0
    seconds: float = 0.0
    rate: float = 0.0
    best: float | None = None
    best_epoch: int | None = None

    def numbers(self) -> dict[str, float | None]:
        """As plain numbers, for `of`."""
        return asdict(self)

    @classmethod
    def of(cls, numbers: Mapping[str, Any]) -> Progress:
        """Go on from what `numbers` gave.

        Raises
        ------
        WeightsError
            Something is missing, or is no number.
        """
        found: dict[str, Any] = {}
        for field in fields(cls):
            value = numbers.get(field.name, "nothing")
            optional = field.name.startswith("best")
            kinds = (int, float) if field.name in ("seconds", "rate", "best") else (int,)
            if not (isinstance(value, kinds) or (optional and value is None)):
                raise WeightsError(
                    f"{field.name} is no number of a run's progress", found=repr(value)
                )
            found[field.name] = value
        return cls(**found)


@dataclass(frozen=True)
class Checkpoint:
    """All that a resumed run needs to end in the same bits.

    Every random number is a function of the seed and of counts that stand here, so that there
    is no generator to store.

    Attributes
    ----------
    progress
        Counts, and the best epoch.
    tensors
        ``weights/…``, ``updates/…`` (slots of the optimiser, counts, the schedule),
        ``metrics/…`` (sums of the epoch) and ``carry/…`` (states of stateful layers).
    """

    progress: Progress
    tensors: Mapping[str, Array]

    def part(self, name: str) -> dict[str, Array]:
        """The tensors below ``name/``, without it."""
        prefix = name + "/"
        own = {key: value for key, value in self.tensors.items() if key.startswith(prefix)}
        return {key.removeprefix(prefix): value for key, value in own.items()}


def prefixed(name: str, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Tensors as a part of a checkpoint."""
    return {f"{name}/{key}": value for key, value in tensors.items()}
