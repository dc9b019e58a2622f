"""Weights after their gradients: clipping, penalties, the optimiser's step, and what it keeps."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from lstm_cli.cells.expression import Expression, symbol
from lstm_cli.engines.reference.arrays import NUMPY
from lstm_cli.engines.types import Array, ArrayOperations, Deferred, EngineArray
from lstm_cli.errors import Problem, WeightsError, counted
from lstm_cli.training.optimisers import Optimiser
from lstm_cli.training.regularisation import (
    clipped,
    decayed,
    exceeds,
    global_norm,
    late_norm,
    norm_factor,
    penalised,
)
from lstm_cli.training.schedules import Schedule


@dataclass(frozen=True)
class UpdateReport:
    """What one update did.

    Attributes
    ----------
    norm
        Of all gradients together, before clipping; infinite too where what clipping left is
        so large that its square overflows in the weights' precision.
    rate
        The learning rate.
    clipped
        Whether the gradients were limited.
    """

    norm: float
    rate: float
    clipped: bool

    @property
    def finite(self) -> bool:
        """Whether the gradients could be used; if not, nothing was changed."""
        return math.isfinite(self.norm)


_SAME_CONFIG = "resume with the config the run was started with"


class Updates:
    """Updates weights in place, and keeps what that needs from one update to the next.

    The gradient is clipped value by value, then by the norm of all gradients together. Then
    come the penalties, whose share is therefore never clipped, and weight decay. Both concern
    matrices only, never biases and peepholes (one dimension). Everything is computed in the
    weights' own precision, but for the norm; all of it in one pass over a weight, its gradient
    and what the optimiser keeps for it.

    Parameters
    ----------
    optimiser, schedule
        The equation, its rate and penalties; the course of the rate.
    clip_norm, clip_value
        Limits, or None.
    steps_per_epoch
        Updates in an epoch; for a warm-up in epochs and for a cosine.

    Attributes
    ----------
    count
        Updates made.
    epoch
        Epochs ended.
    """

    def __init__(
        self,
        optimiser: Optimiser,
        schedule: Schedule,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        steps_per_epoch: int = 1,
    ) -> None:
        self.optimiser, self.schedule = optimiser, schedule
        # As Python's numbers, which leave the precision of arrays as it is.
        self.clip_norm = None if clip_norm is None else float(clip_norm)
        self.clip_value = None if clip_value is None else float(clip_value)
        self.steps_per_epoch = steps_per_epoch
        self.count = 0
        self.epoch = 0
        self._slots: dict[str, dict[str, EngineArray]] = {}

    @property
    def rate(self) -> float:
        """The learning rate of the next update."""
        full = float(self.optimiser.learning_rate)
        return self.schedule.rate(full, self.count + 1, self.epoch, self.steps_per_epoch)

    def norm(
        self,
        weights: Mapping[str, EngineArray],
        gradients: Mapping[str, EngineArray],
        engine: ArrayOperations = NUMPY,
    ) -> Deferred:
        """The norm of all gradients, for `apply`, once somebody asks for it."""
        return late_norm(_fitting(weights, gradients, engine), engine)

    def apply(
        self,
        weights: Mapping[str, EngineArray],
        gradients: Mapping[str, EngineArray],
        engine: ArrayOperations = NUMPY,
        norm: Deferred | None = None,
    ) -> UpdateReport:
        """Change the weights by their gradients; leave them if these are not finite.

        Parameters
        ----------
        weights
            Writable arrays by name, without gaps, in NumPy's memory or the engine's own.
        gradients
            Of every weight, in its shape; left as they are. Further names are not looked at.
        engine
            What computes.
        norm
            As `norm` gave it, for an engine that has computed it by now.

        Raises
        ------
        WeightsError
            A weight without a gradient or with one of another shape, or a loaded state that
            belongs to other weights.
        """
        # What overflows shows in the norm or the next loss, not as a warning.
        with np.errstate(over="ignore", invalid="ignore"):
            found = _fitting(weights, gradients, engine)
            slots = {name: self._slots_of(name, w, engine) for name, w in weights.items()}
            limits = self._limits(found, engine, norm or late_norm(found, engine))
        report = UpdateReport(limits.norm, self.rate, limits.clipped)
        if report.finite:
            self.count += 1
            self._slots = slots
            numbers = self.optimiser.numbers(report.rate, self.count) | {_FACTOR: limits.factor}
            for name, w in weights.items():
                roots = self._roots(w)
                out = {_WEIGHT: w} | slots[name]
                engine.evaluate(roots, {**out, _GRADIENT: found[name], **numbers}, out)
        return report

    def epoch_ended(self, metric: float, larger_is_better: bool) -> None:
        """Count an epoch, and let the schedule see the monitored metric."""
        self.epoch += 1
        self.schedule.epoch_ended(metric, larger_is_better)

    def state_arrays(self, engine: ArrayOperations = NUMPY) -> dict[str, Array]:
        """All that a resumed run needs: ``step``, ``epoch``, ``adam.m/<weight>``, ...

        The arrays are a snapshot in NumPy's memory: later updates do not change them.

        Parameters
        ----------
        engine
            What made the updates.
        """
        kind = self.optimiser.name
        arrays = {
            f"{kind}.{slot}/{name}": engine.download(value)
            for name, slots in self._slots.items()
            for slot, value in slots.items()
        }
        return arrays | self._counts()

    def load_state(self, arrays: Mapping[str, Array]) -> None:
        """Go on from what `state_arrays` gave.

        Raises
        ------
        WeightsError
            Names every array that is missing, or that this optimiser and schedule do not have.
        """
        kind, counts = self.optimiser.name, self._counts()
        weights = sorted({name.partition("/")[2] for name in arrays if "/" in name})
        places = {
            f"{kind}.{slot}/{name}": (name, slot)
            for name in weights
            for slot in self.optimiser.slots
        }
        _check(arrays, places, counts, f"{kind} and {self.schedule.name}")
        self.count, self.epoch = arrays["step"].item(), arrays["epoch"].item()
        own = self.schedule.state()
        self.schedule.load_state({n: arrays[f"{self.schedule.name}.{n}"].item() for n in own})
        self._slots = {name: {} for name in weights}
        for full, (name, slot) in places.items():
            self._slots[name][slot] = np.array(arrays[full], order="C")

    def _counts(self) -> dict[str, Array]:
        state = {f"{self.schedule.name}.{name}": n for name, n in self.schedule.state().items()}
        numbers: dict[str, float] = {"step": self.count, "epoch": self.epoch} | state
        return {
            name: np.asarray(n, np.int64 if isinstance(n, int) else np.float64)
            for name, n in numbers.items()
        }

    def _slots_of(
        self, name: str, w: EngineArray, engine: ArrayOperations
    ) -> dict[str, EngineArray]:
        """What is kept for a weight; zeros before the first update."""
        if not self.count or not self.optimiser.slots:
            return {slot: engine.zeros_like(w) for slot in self.optimiser.slots}
        found = self._slots.get(name)
        if found is None:
            raise WeightsError(
                f"the state of {self.optimiser.name} after {counted(self.count, 'update')} "
                f"lacks {name}",
                hint=_SAME_CONFIG,
            )
        for slot, value in found.items():
            if value.shape != w.shape or value.dtype != w.dtype:
                raise WeightsError(
                    f"{self.optimiser.name}.{slot} does not fit {name}",
                    expected=f"{w.shape} {w.dtype}",
                    found=f"{value.shape} {value.dtype}",
                    hint=_SAME_CONFIG,
                )
        return {slot: engine.convert_like(value, w) for slot, value in found.items()}

    def _limits(
        self, gradients: Mapping[str, EngineArray], engine: ArrayOperations, late: Deferred
    ) -> _Limits:
        norm = left = late()
        factor, outside = 1.0, False
        if not math.isfinite(norm):
            return _Limits(norm, factor, outside)
        if self.clip_value is not None:
            outside = exceeds(gradients, self.clip_value, engine)
            left = global_norm(gradients, engine, self.clip_value) if outside else norm
        if self.clip_norm is not None:
            factor = norm_factor(left, self.clip_norm)
            left = min(left, self.clip_norm)
        largest = min((float(np.finfo(g.dtype).max) for g in gradients.values()), default=math.inf)
        return _Limits(norm if left < math.sqrt(largest) else math.inf, factor, outside)

    def _roots(self, w: EngineArray) -> Mapping[str, Expression]:
        scaled = self.clip_norm is not None
        return _equation(self.optimiser, self.clip_value, scaled, penalties=w.ndim > 1)


@dataclass(frozen=True)
class _Limits:
    """What clipping does to all gradients together.

    Attributes
    ----------
    norm
        As in `UpdateReport`.
    factor
        What they are multiplied by, after their numbers were limited.
    outside
        Whether any of these numbers had to be.
    """

    norm: float
    factor: float
    outside: bool

    @property
    def clipped(self) -> bool:
        return self.outside or self.factor != 1


_WEIGHT, _GRADIENT, _FACTOR = "the weight", "the gradient", "the factor"


@lru_cache(maxsize=256)
def _equation(
    optimiser: Optimiser, clip_value: float | None, scaled: bool, *, penalties: bool
) -> Mapping[str, Expression]:
    """The whole update of a weight: its new value and its slots, by name."""
    w, g = symbol(_WEIGHT), clipped(symbol(_GRADIENT), clip_value)
    numbers = {name: symbol(name) for name in optimiser.numbers(0.0, 1)}
    if scaled:
        g = g * symbol(_FACTOR)
    shrunk = w
    if penalties:
        g = penalised(w, g, optimiser.l1, optimiser.l2)
        shrunk = decayed(w, numbers["rate"], optimiser.weight_decay)
    slots = {slot: symbol(slot) for slot in optimiser.slots}
    new, kept = optimiser.equation(shrunk, g, slots, numbers)
    return {_WEIGHT: new} | kept


def _fitting(
    weights: Mapping[str, EngineArray],
    gradients: Mapping[str, EngineArray],
    engine: ArrayOperations,
) -> dict[str, EngineArray]:
    """The gradient of every weight, in its precision."""
    fitting = {}
    for name, w in weights.items():
        found = gradients.get(name)
        if found is None or found.shape != w.shape:
            is_what = "is missing" if found is None else "has another shape"
            raise WeightsError(
                f"the gradient of {name} {is_what}",
                expected=str(w.shape),
                found=None if found is None else str(found.shape),
            )
        fitting[name] = engine.convert_like(found, w)
    return fitting


def _check(
    arrays: Mapping[str, Array],
    places: Collection[str],
    counts: Mapping[str, Array],
    owner: str,
) -> None:
    """Raise if `arrays` are not those at `places` and numbers like `counts`."""
    problems = [Problem(f"{name} is missing") for name in [*places, *counts] if name not in arrays]
    for name, value in arrays.items():
        if name in counts:
            problems += _number_problems(name, value, counts[name].dtype)
        elif name not in places:
            problems.append(Problem(f"{name} belongs to no state of {owner}"))
    if problems:
        raise WeightsError(
            [replace(problem, hint=_SAME_CONFIG) for problem in problems],
            headline=f"the training state is not one of {owner}",
        )


def _number_problems(name: str, value: Array, dtype: np.dtype[Any]) -> list[Problem]:
    if value.shape == () and value.dtype == dtype and (dtype.kind == "f" or value >= 0):
        return []
    expected = "one number" if dtype.kind == "f" else "one whole number, at least 0"
    return [Problem(f"{name} is no count of a training state", expected, f"{value!r}")]
