"""Learning-rate schedules: a linear warm-up to the full rate, then a course of its own.

Updates are counted from 1, epochs from 0. A rate depends on nothing but these counts, except
where the course waits for a metric.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from lstm_cli.training import sections


@dataclass(frozen=True, kw_only=True)
class Schedule(ABC):
    """What every schedule has.

    Attributes
    ----------
    warmup_steps, warmup_epochs
        Updates or epochs, not both, in which the rate rises in equal steps: at update k of W
        it is k / W of the full rate.
    """

    warmup_steps: int = 0
    warmup_epochs: int = 0

    name: ClassVar[str]

    def rate(self, learning_rate: float, step: int, epoch: int, steps_per_epoch: int) -> float:
        """The learning rate of an update.

        Parameters
        ----------
        learning_rate
            The full rate.
        step
            Number of the update, counted from 1.
        epoch
            Number of its epoch, counted from 0.
        steps_per_epoch
            Updates in an epoch.
        """
        warmup = self.warmup_steps or self.warmup_epochs * steps_per_epoch
        if step <= warmup:
            return learning_rate * step / warmup
        # Whole epochs count from the one in which the warm-up ends: changes stay between epochs.
        epoch -= warmup // steps_per_epoch
        elapsed = (step - 1 - warmup) / steps_per_epoch
        return self._course(learning_rate, epoch, elapsed, warmup / steps_per_epoch)

    @abstractmethod
    def _course(self, full: float, epoch: int, elapsed: float, warmup: float) -> float:
        """The rate after the warm-up.

        Parameters
        ----------
        full
            The full rate.
        epoch, elapsed
            Whole epochs, and epochs with their fraction, since the end of the warm-up.
        warmup
            Its length in epochs.
        """

    def epoch_ended(self, metric: float, larger_is_better: bool) -> None:  # noqa: B027
        """Take note of the monitored metric; only a course that waits for it does."""

    def state(self) -> dict[str, float]:
        """What a resumed run needs besides the counts, as plain numbers."""
        return {}

    def load_state(self, state: Mapping[str, float]) -> None:  # noqa: B027
        """Go on from what `state` gave; names that are not the schedule's own are left alone."""


@dataclass(frozen=True, kw_only=True)
class Constant(Schedule):
    """The full rate."""

    name = "constant"

    def _course(self, full: float, epoch: int, elapsed: float, warmup: float) -> float:
        return full


@dataclass(frozen=True, kw_only=True)
class Step(Schedule):
    """The rate is multiplied by `factor` every `every` epochs."""

    every: int = 10
    factor: float = 0.1

    name = "step"

    def _course(self, full: float, epoch: int, elapsed: float, warmup: float) -> float:
        return full * self.factor ** (epoch // self.every)


@dataclass(frozen=True, kw_only=True)
class Exponential(Schedule):
    """The rate is multiplied by `factor` after each epoch."""

    factor: float = 0.95

    name = "exponential"

    def _course(self, full: float, epoch: int, elapsed: float, warmup: float) -> float:
        return full * self.factor**epoch


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    """Half a cosine, update by update, from the full rate to `minimum`: Loshchilov, Hutter 2017.

    Attributes
    ----------
    epochs
        Where the minimum is reached, counted from the start of the run; it stays there.
    minimum
        The rate at the end; a full rate below it stays as it is.
    """

    epochs: int
    minimum: float = 0.0

    name = "cosine"

    def _course(self, full: float, epoch: int, elapsed: float, warmup: float) -> float:
        length = self.epochs - warmup
        share = min(1.0, elapsed / length) if length > 0 else 1.0
        minimum = min(self.minimum, full)
        return minimum + (full - minimum) * 0.5 * (1 + math.cos(math.pi * share))


@dataclass
class _Watch:
    """What `ReduceOnPlateau` has seen: the best metric (NaN: none), bad epochs since, changes."""

    best: float = math.nan
    bad_epochs: int = 0
    reductions: int = 0


@dataclass(frozen=True, kw_only=True)
class ReduceOnPlateau(Schedule):
    """The rate is multiplied by `factor` when the monitored metric has stopped improving.

    Attributes
    ----------
    factor
        Of each change.
    patience
        Epochs without improvement that are waited for; the next such epoch changes the rate,
        and the count starts anew.
    minimum
        The rate goes no lower; a full rate below it stays as it is.
    """

    factor: float = 0.1
    patience: int = 5
    minimum: float = 0.0

    name = "reduce_on_plateau"
    _watch: _Watch = field(default_factory=_Watch, init=False, repr=False, compare=False)

    def _course(self, full: float, epoch: int, elapsed: float, warmup: float) -> float:
        return max(full * self.factor**self._watch.reductions, min(self.minimum, full))

    def epoch_ended(self, metric: float, larger_is_better: bool) -> None:
        """Count the epoch as better than the best so far, or as bad; NaN is bad."""
        watch = self._watch
        if _is_better(metric, watch.best, larger_is_better):
            watch.best, watch.bad_epochs = float(metric), 0
            return
        watch.bad_epochs += 1
        if watch.bad_epochs > self.patience:
            watch.reductions, watch.bad_epochs = watch.reductions + 1, 0

    def state(self) -> dict[str, float]:
        """``best`` (NaN before any metric), ``bad_epochs`` and ``reductions``."""
        return asdict(self._watch)

    def load_state(self, state: Mapping[str, float]) -> None:
        """Go on from what `state` gave."""
        self._watch.best = float(state["best"])
        self._watch.bad_epochs = int(state["bad_epochs"])
        self._watch.reductions = int(state["reductions"])


def _is_better(metric: float, best: float, larger_is_better: bool) -> bool:
    if math.isnan(best):
        return not math.isnan(metric)
    return metric > best if larger_is_better else metric < best


SCHEDULES: dict[str, type[Schedule]] = {
    kind.name: kind for kind in (Constant, Step, Exponential, Cosine, ReduceOnPlateau)
}


def make_schedule(options: Mapping[str, Any], *, epochs: int) -> Schedule:
    """The schedule of the config's section ``train.schedule``; what is left out is default.

    Parameters
    ----------
    epochs
        Epochs of the run: the length of a cosine that names none.

    Raises
    ------
    ConfigError
        An unknown type or key. Values are taken as checked.
    """
    if options.get("type") == Cosine.name and options.get("epochs") is None:
        options = {**options, "epochs": epochs}
    return sections.make("schedule", SCHEDULES, options)
