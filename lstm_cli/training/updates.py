"""Weight updates: clipping, penalties, weight decay, the optimizer's step and its state."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from lstm_cli.cells.expression import Expression, Value, clip, select, symbol
from lstm_cli.engines.protocols import ArrayOperations
from lstm_cli.engines.reference.arrays import NUMPY
from lstm_cli.engines.types import Array, Deferred, EngineArray
from lstm_cli.errors import Problem, WeightsError, counted
from lstm_cli.training.optimizers import Optimizer
from lstm_cli.training.schedules import RateSchedule


@dataclass(frozen=True)
class UpdateReport:
    """Report of one update.

    Attributes
    ----------
    norm
        Norm of all gradients together, before clipping. The norm is infinite if the squares of the
        clipped gradients overflow in the weights' precision.
    rate
        Learning rate of the update.
    clipped
        Whether clipping changed the gradients.
    """

    norm: float
    rate: float
    clipped: bool

    @property
    def finite(self) -> bool:
        """Whether the gradients were finite. If not, the update changed nothing."""
        return math.isfinite(self.norm)


_SAME_CONFIG = "resume with the config the run was started with"


class Updates:
    """The updates of a run: they change weights in place, and keep the optimizer's state.

    Gradients are clipped value by value, then by the norm of all gradients together. Penalties
    follow, so they are never clipped, and then weight decay. Both apply to matrices only, not to
    biases and peepholes. All is computed in the precision of the weights, except the norm. One
    pass over a weight, its gradient and its slots computes the whole update.

    Parameters
    ----------
    optimizer, schedule
        Update equation with rate and penalties, and schedule of the rate.
    clip_norm, clip_value
        Limits of the norm, and of each value. None: no limit.
    steps_per_epoch
        Updates per epoch, for a warm-up in epochs and for a cosine.

    Attributes
    ----------
    count
        Number of updates so far.
    epoch
        Number of completed epochs.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: RateSchedule,
        *,
        clip_norm: float | None = None,
        clip_value: float | None = None,
        steps_per_epoch: int = 1,
    ) -> None:
        self.optimizer, self.schedule = optimizer, schedule
        # Python numbers do not change the precision of arrays.
        self.clip_norm = None if clip_norm is None else float(clip_norm)
        self.clip_value = None if clip_value is None else float(clip_value)
        self.steps_per_epoch = steps_per_epoch
        self.count = 0
        self.epoch = 0
        self._slots: dict[str, dict[str, EngineArray]] = {}

    @property
    def rate(self) -> float:
        """Learning rate of the next update."""
        full = float(self.optimizer.learning_rate)
        return self.schedule.rate(full, self.count + 1, self.epoch, self.steps_per_epoch)

    def norm(
        self,
        weights: Mapping[str, EngineArray],
        gradients: Mapping[str, EngineArray],
        engine: ArrayOperations = NUMPY,
    ) -> Deferred:
        """Deferred norm of all gradients, for `apply`."""
        return deferred_norm(_fitting(weights, gradients, engine), engine)

    def apply(
        self,
        weights: Mapping[str, EngineArray],
        gradients: Mapping[str, EngineArray],
        engine: ArrayOperations = NUMPY,
        norm: Deferred | None = None,
    ) -> UpdateReport:
        """Update the weights in place. Gradients that are not finite change nothing.

        Parameters
        ----------
        weights
            Writable arrays by name, without gaps, in NumPy's memory or the engine's.
        gradients
            Gradient of every weight, in the weight's shape. The method does not change gradients,
            and ignores other names.
        engine
            Engine that computes the update.
        norm
            Result of the method `norm` for these gradients. None: this method computes it.

        Raises
        ------
        WeightsError
            A weight has no gradient, or one of another shape; or a loaded state belongs to other
            weights.
        """
        # Overflow shows in the norm or the next loss, not as a warning.
        with np.errstate(over="ignore", invalid="ignore"):
            fitted = _fitting(weights, gradients, engine)
            slots = {name: self._slots_of(name, w, engine) for name, w in weights.items()}
            limits = self._limits(fitted, engine, norm or deferred_norm(fitted, engine))
        report = UpdateReport(limits.norm, self.rate, limits.clipped)
        if report.finite:
            self.count += 1
            self._slots = slots
            numbers = self.optimizer.numbers(report.rate, self.count) | {_FACTOR: limits.factor}
            for name, w in weights.items():
                roots = self._roots(w)
                out = {_WEIGHT: w} | slots[name]
                engine.evaluate(roots, {**out, _GRADIENT: fitted[name], **numbers}, out)
        return report

    def on_epoch_end(self, metric: float, larger_is_better: bool) -> None:
        """Count an epoch, and pass the monitored metric to the schedule."""
        self.epoch += 1
        self.schedule.on_epoch_end(metric, larger_is_better)

    def state_arrays(self, engine: ArrayOperations = NUMPY) -> dict[str, Array]:
        """State for a resumed run: ``step``, ``epoch``, ``adam.m/<weight>``, ...

        The arrays are copies in NumPy's memory, which later updates do not change.

        Parameters
        ----------
        engine
            Engine that computed the updates.
        """
        kind = self.optimizer.name
        arrays = {
            f"{kind}.{slot}/{name}": engine.download(value)
            for name, slots in self._slots.items()
            for slot, value in slots.items()
        }
        return arrays | self._counts()

    def load_state(self, arrays: Mapping[str, Array]) -> None:
        """Restore a result of `state_arrays`.

        Raises
        ------
        WeightsError
            Names every array that is missing, or unknown to this optimizer and schedule.
        """
        kind, counts = self.optimizer.name, self._counts()
        weights = sorted({name.partition("/")[2] for name in arrays if "/" in name})
        places = {
            f"{kind}.{slot}/{name}": (name, slot)
            for name in weights
            for slot in self.optimizer.slots
        }
        _check(arrays, places, counts, f"{kind} and {self.schedule.name}")
        self.count, self.epoch = arrays["step"].item(), arrays["epoch"].item()
        names = self.schedule.state()
        self.schedule.load_state({n: arrays[f"{self.schedule.name}.{n}"].item() for n in names})
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
        """Slots of a weight: zeros before the first update."""
        if not self.count or not self.optimizer.slots:
            return {slot: engine.zeros_like(w) for slot in self.optimizer.slots}
        slots = self._slots.get(name)
        if slots is None:
            raise WeightsError(
                f"the state of {self.optimizer.name} after {counted(self.count, 'update')} "
                f"lacks {name}",
                hint=_SAME_CONFIG,
            )
        for slot, value in slots.items():
            if value.shape != w.shape or value.dtype != w.dtype:
                raise WeightsError(
                    f"{self.optimizer.name}.{slot} does not fit {name}",
                    expected=f"{w.shape} {w.dtype}",
                    found=f"{value.shape} {value.dtype}",
                    hint=_SAME_CONFIG,
                )
        return {slot: engine.convert_like(value, w) for slot, value in slots.items()}

    def _limits(
        self, gradients: Mapping[str, EngineArray], engine: ArrayOperations, deferred: Deferred
    ) -> _Limits:
        norm = remaining = deferred()
        factor, outside = 1.0, False
        if not math.isfinite(norm):
            return _Limits(norm, factor, outside)
        if self.clip_value is not None:
            outside = exceeds(gradients, self.clip_value, engine)
            remaining = global_norm(gradients, engine, self.clip_value) if outside else norm
        if self.clip_norm is not None:
            factor = norm_factor(remaining, self.clip_norm)
            remaining = min(remaining, self.clip_norm)
        largest = min((float(np.finfo(g.dtype).max) for g in gradients.values()), default=math.inf)
        return _Limits(norm if remaining < math.sqrt(largest) else math.inf, factor, outside)

    def _roots(self, w: EngineArray) -> Mapping[str, Expression]:
        scaled = self.clip_norm is not None
        return _equation(self.optimizer, self.clip_value, scaled, penalties=w.ndim > 1)


@dataclass(frozen=True)
class _Limits:
    """Result of clipping for all gradients together.

    Attributes
    ----------
    norm
        `UpdateReport.norm`.
    factor
        Factor of the gradients, after each value is limited.
    outside
        Whether any value exceeded its limit.
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
    optimizer: Optimizer, clip_value: float | None, scaled: bool, *, penalties: bool
) -> Mapping[str, Expression]:
    """Whole update of a weight: expressions of its new value and its slots, by name."""
    w, g = symbol(_WEIGHT), clipped(symbol(_GRADIENT), clip_value)
    numbers = {name: symbol(name) for name in optimizer.numbers(0.0, 1)}
    if scaled:
        g = g * symbol(_FACTOR)
    shrunk = w
    if penalties:
        g = penalized(w, g, optimizer.l1, optimizer.l2)
        shrunk = decayed(w, numbers["rate"], optimizer.weight_decay)
    slots = {slot: symbol(slot) for slot in optimizer.slots}
    new, new_slots = optimizer.equation(shrunk, g, slots, numbers)
    return {_WEIGHT: new} | new_slots


def _fitting(
    weights: Mapping[str, EngineArray],
    gradients: Mapping[str, EngineArray],
    engine: ArrayOperations,
) -> dict[str, EngineArray]:
    """Gradient of every weight, in the precision of the weight."""
    fitted = {}
    for name, w in weights.items():
        gradient = gradients.get(name)
        if gradient is None or gradient.shape != w.shape:
            is_what = "is missing" if gradient is None else "has another shape"
            raise WeightsError(
                f"the gradient of {name} {is_what}",
                expected=str(w.shape),
                found=None if gradient is None else str(gradient.shape),
            )
        fitted[name] = engine.convert_like(gradient, w)
    return fitted


def _check(
    arrays: Mapping[str, Array],
    places: Collection[str],
    counts: Mapping[str, Array],
    owner: str,
) -> None:
    """Raise WeightsError unless `arrays` has exactly `places`, and numbers like `counts`."""
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
    return [Problem(f"{name} is not a count of a training state", expected, f"{value!r}")]


# Penalties and clipping


def penalized(w: Value, g: Value, l1: float, l2: float) -> Value:
    """Gradient with penalties, g + l2 w + l1 sign(w), for arrays or expressions."""
    if l2:
        g = g + l2 * w
    if l1:
        # A selection, since a factor sign(w) would not have the precision of the weights.
        g = select(w < 0.0, g - l1, select(-w < 0.0, g + l1, g))
    return g


def decayed(w: Value, rate: Value, weight_decay: float) -> Value:
    """Decoupled weight decay, w - rate weight_decay w (Loshchilov and Hutter 2019)."""
    return w - rate * (weight_decay * w) if weight_decay else w


def clipped(g: Value, limit: float | None) -> Value:
    """Gradient with each value limited to [-limit, limit], for arrays or expressions."""
    return g if limit is None else clip(g, -limit, limit)


def global_norm(
    gradients: Mapping[str, EngineArray],
    engine: ArrayOperations = NUMPY,
    limit: float | None = None,
) -> float:
    """Euclidean norm of all gradients together, in float64. The order of gradients has no effect.

    Parameters
    ----------
    limit
        Limit of each value before it is squared.
    """
    return deferred_norm(gradients, engine, limit)()


def deferred_norm(
    gradients: Mapping[str, EngineArray],
    engine: ArrayOperations = NUMPY,
    limit: float | None = None,
) -> Deferred:
    """Deferred `global_norm`."""
    square = _square(limit)
    squares = engine.totals(square, [{"g": g} for g in gradients.values()])
    return lambda: math.sqrt(sum(sorted(one() for one in squares)))


@lru_cache(maxsize=64)
def _square(limit: float | None) -> Expression:
    g = clipped(symbol("g"), limit)
    return g * g  # type: ignore[no-any-return]


def exceeds(
    gradients: Mapping[str, EngineArray], limit: float, engine: ArrayOperations = NUMPY
) -> bool:
    """Whether any value is outside [-limit, limit]."""
    counts = engine.totals(_outside(limit), [{"g": g} for g in gradients.values()])
    return any(count() > 0 for count in counts)


@lru_cache(maxsize=64)
def _outside(limit: float) -> Expression:
    g = symbol("g")
    return select(-g < -limit, 1.0, select(g < -limit, 1.0, 0.0))  # type: ignore[no-any-return]


def norm_factor(norm: float, limit: float) -> float:
    """Factor of all gradients that reduces their common `norm` to `limit`; 1 below the limit.

    Pascanu et al. 2013, algorithm 1.
    """
    return limit / norm if norm > limit else 1.0
