"""Learning-rate schedules: a linear warm-up to the full rate, then a decay.

Updates are counted from 1, epochs from 0. A rate depends on these counts alone, except for
`PlateauSchedule`, which waits for a metric. A new schedule is a class here, and its row in
`SCHEDULES`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

from lstm_cli.training.options import COUNT, FACTOR, NOT_NEGATIVE, SIZE, from_mapping, option


@dataclass(frozen=True, kw_only=True)
class RateSchedule(ABC):
    """Base class of schedules.

    Attributes
    ----------
    warmup_steps, warmup_epochs
        Length of the warm-up in updates or in epochs, not both. At update k of a warm-up of W
        updates the rate is k / W of the full rate.
    name, description
        Value of the key ``type`` in the config, and its description.
    """

    warmup_steps: int = option(
        0, COUNT, "Updates in which the rate rises from 0; not with warmup_epochs."
    )
    warmup_epochs: int = option(
        0, COUNT, "Epochs in which the rate rises from 0; not with warmup_steps."
    )

    name: ClassVar[str]
    description: ClassVar[str]

    def for_run(self, epochs: int) -> RateSchedule:
        """This schedule for a run of a number of epochs."""
        return self

    def rate(self, learning_rate: float, step: int, epoch: int, steps_per_epoch: int) -> float:
        """Learning rate of an update.

        Parameters
        ----------
        learning_rate
            The full rate.
        step
            Number of the update, counted from 1.
        epoch
            Number of its epoch, counted from 0.
        steps_per_epoch
            Updates per epoch.
        """
        warmup = self.warmup_steps or self.warmup_epochs * steps_per_epoch
        if step <= warmup:
            return learning_rate * step / warmup
        # Whole epochs are counted from the epoch in which the warm-up ends, since the rate changes
        # between epochs.
        epoch -= warmup // steps_per_epoch
        elapsed = (step - 1 - warmup) / steps_per_epoch
        return self._decayed_rate(learning_rate, epoch, elapsed, warmup / steps_per_epoch)

    @abstractmethod
    def _decayed_rate(self, full: float, epoch: int, elapsed: float, warmup: float) -> float:
        """Rate after the warm-up.

        Parameters
        ----------
        full
            The full rate.
        epoch, elapsed
            Whole epochs, and fractional epochs, since the end of the warm-up.
        warmup
            Length of the warm-up in epochs.
        """

    def on_epoch_end(self, metric: float, larger_is_better: bool) -> None:  # noqa: B027
        """Receive the monitored metric. Most schedules ignore it."""

    def state(self) -> dict[str, float]:
        """State for a resumed run besides the counts, as plain numbers."""
        return {}

    def load_state(self, state: Mapping[str, float]) -> None:  # noqa: B027
        """Restore a result of `state`. Other names are ignored."""


@dataclass(frozen=True, kw_only=True)
class ConstantSchedule(RateSchedule):
    """A constant learning rate."""

    name = "constant"
    description = "The learning rate is constant."

    def _decayed_rate(self, full: float, epoch: int, elapsed: float, warmup: float) -> float:
        return full


@dataclass(frozen=True, kw_only=True)
class StepSchedule(RateSchedule):
    """The learning rate is multiplied by a factor after every `every` epochs."""

    every: int = option(10, SIZE, "Epochs between two changes.")
    factor: float = option(0.1, FACTOR, "Factor of each change.")

    name = "step"
    description = "The learning rate is multiplied every `every` epochs."

    def _decayed_rate(self, full: float, epoch: int, elapsed: float, warmup: float) -> float:
        return full * self.factor ** (epoch // self.every)


@dataclass(frozen=True, kw_only=True)
class ExponentialSchedule(RateSchedule):
    """The learning rate is multiplied by a factor after each epoch."""

    factor: float = option(0.95, FACTOR, "Factor of each epoch.")

    name = "exponential"
    description = "The learning rate is multiplied after each epoch."

    def _decayed_rate(self, full: float, epoch: int, elapsed: float, warmup: float) -> float:
        return full * self.factor**epoch


@dataclass(frozen=True, kw_only=True)
class CosineSchedule(RateSchedule):
    """The learning rate follows half a cosine to its minimum.

    Loshchilov and Hutter 2017.

    Attributes
    ----------
    epochs
        Epoch of the minimum, counted from the start of the run. The rate stays there. None: the
        rate stays full, until `for_run` sets the length.
    minimum
        Rate at the end. A full rate below it stays unchanged.
    """

    epochs: int | None = option(None, SIZE, "Length in epochs; default: the whole run.")
    minimum: float = option(0.0, NOT_NEGATIVE, "Learning rate at the end.")

    name = "cosine"
    description = "The learning rate follows half a cosine to its minimum."

    def for_run(self, epochs: int) -> RateSchedule:
        return self if self.epochs is not None else replace(self, epochs=epochs)

    def _decayed_rate(self, full: float, epoch: int, elapsed: float, warmup: float) -> float:
        length = (math.inf if self.epochs is None else self.epochs) - warmup
        share = min(1.0, elapsed / length) if length > 0 else 1.0
        minimum = min(self.minimum, full)
        return minimum + (full - minimum) * 0.5 * (1 + math.cos(math.pi * share))


@dataclass
class _PlateauState:
    """Best metric (NaN: none yet), epochs since without improvement, and reductions so far."""

    best: float = math.nan
    bad_epochs: int = 0
    reductions: int = 0


@dataclass(frozen=True, kw_only=True)
class PlateauSchedule(RateSchedule):
    """The learning rate is multiplied by a factor when the monitored value stops improving.

    Attributes
    ----------
    factor
        Factor of each reduction.
    patience
        Number of epochs without improvement that leave the rate unchanged. One more such epoch
        reduces the rate, and the count restarts.
    minimum
        Lowest rate. A full rate below it stays unchanged.
    """

    factor: float = option(0.1, {"gt": 0, "lt": 1}, "Factor of each change.")
    patience: int = option(5, SIZE, "Epochs without improvement before a change.")
    minimum: float = option(0.0, NOT_NEGATIVE, "Lowest learning rate.")

    name = "reduce_on_plateau"
    description = "The learning rate is multiplied when `monitor` stops improving."
    _state: _PlateauState = field(
        default_factory=_PlateauState, init=False, repr=False, compare=False
    )

    def _decayed_rate(self, full: float, epoch: int, elapsed: float, warmup: float) -> float:
        return max(full * self.factor**self._state.reductions, min(self.minimum, full))

    def on_epoch_end(self, metric: float, larger_is_better: bool) -> None:
        """Count the epoch as an improvement or not. NaN is no improvement."""
        plateau = self._state
        if _is_better(metric, plateau.best, larger_is_better):
            plateau.best, plateau.bad_epochs = float(metric), 0
            return
        plateau.bad_epochs += 1
        if plateau.bad_epochs > self.patience:
            plateau.reductions, plateau.bad_epochs = plateau.reductions + 1, 0

    def state(self) -> dict[str, float]:
        """``best`` (NaN before any metric), ``bad_epochs`` and ``reductions``."""
        return asdict(self._state)

    def load_state(self, state: Mapping[str, float]) -> None:
        """Restore a result of `state`."""
        self._state.best = float(state["best"])
        self._state.bad_epochs = int(state["bad_epochs"])
        self._state.reductions = int(state["reductions"])


def _is_better(metric: float, best: float, larger_is_better: bool) -> bool:
    if math.isnan(best):
        return not math.isnan(metric)
    return metric > best if larger_is_better else metric < best


SCHEDULES: dict[str, type[RateSchedule]] = {
    kind.name: kind
    for kind in (
        ConstantSchedule,
        StepSchedule,
        ExponentialSchedule,
        CosineSchedule,
        PlateauSchedule,
    )
}


def make_schedule(options: Mapping[str, Any], *, epochs: int) -> RateSchedule:
    """The schedule of the config's section ``train.schedule``. Omitted options have defaults.

    Parameters
    ----------
    epochs
        Epochs of the run.

    Raises
    ------
    ConfigError
        The type or a key is unknown. Values are not checked here.
    """
    return from_mapping("schedule", SCHEDULES, options).for_run(epochs)
