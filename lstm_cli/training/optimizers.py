"""Optimizers. Each update equation is written once, for arrays and for symbols.

Some numbers change between updates and are the same for all weights, such as the rate. The
equations read these numbers by name. So an engine traces an equation once, with symbols for the
numbers, and uses the result for all updates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import numpy as np

from lstm_cli.cells.expression import Value, sqrt
from lstm_cli.errors import ConfigError, nearest

Slots = Mapping[str, Value]
Update = tuple[Value, dict[str, Value]]


@dataclass(frozen=True, kw_only=True)
class Optimizer(ABC):
    """Base class of optimizers. `lstm_cli.training.updates` applies the penalties.

    Attributes
    ----------
    learning_rate
        Step size before the schedule.
    weight_decay
        Matrices shrink by rate x `weight_decay` per update, independently of the gradient.
    l1, l2
        Terms `l1` x sign(weight) and `l2` x weight are added to the gradients of matrices.
    """

    learning_rate: float = 0.001
    weight_decay: float = 0.0
    l1: float = 0.0
    l2: float = 0.0

    name: ClassVar[str]

    @property
    @abstractmethod
    def slots(self) -> tuple[str, ...]:
        """Names of the state arrays per weight. Each has the weight's shape and starts at 0."""

    def numbers(self, rate: float, step: int) -> dict[str, float]:
        """Numbers of the equation at update number `step`, counted from 1."""
        return {"rate": rate}

    @abstractmethod
    def equation(self, w: Value, g: Value, slots: Slots, numbers: Mapping[str, Value]) -> Update:
        """The weight and its slots after an update with gradient `g`.

        Parameters
        ----------
        w, g, slots
            Arrays of one shape, or expressions. The method does not change them.
        numbers
            Result of the method `numbers`, or expressions.
        """

    def update(self, w: Value, g: Value, slots: Slots, rate: float, step: int) -> Update:
        """The weight and its slots after update number `step`, counted from 1."""
        return self.equation(w, g, slots, self.numbers(rate, step))


@dataclass(frozen=True, kw_only=True)
class SGDOptimizer(Optimizer):
    """Gradient descent; momentum of Polyak 1964, Nesterov's as in Sutskever et al. 2013.

    Attributes
    ----------
    momentum
        Share of the last step that is repeated.
    nesterov
        True: the gradient is applied after the momentum (Nesterov).
    """

    learning_rate: float = 0.01
    momentum: float = 0.0
    nesterov: bool = False

    name = "sgd"

    @property
    def slots(self) -> tuple[str, ...]:
        return ("velocity",) if self.momentum else ()

    def equation(self, w: Value, g: Value, slots: Slots, numbers: Mapping[str, Value]) -> Update:
        """velocity = momentum velocity + g; w = w - rate velocity."""
        if not self.momentum:
            return w - numbers["rate"] * g, {}
        velocity = self.momentum * slots["velocity"] + g
        ahead = g + self.momentum * velocity if self.nesterov else velocity
        return w - numbers["rate"] * ahead, {"velocity": velocity}


@dataclass(frozen=True, kw_only=True)
class AdamOptimizer(Optimizer):
    """Adam: Kingma and Ba 2015, algorithm 1.

    Attributes
    ----------
    beta1, beta2
        Decay rates of the means of gradients and of squared gradients.
    epsilon
        Added to the root in the denominator.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    name = "adam"

    @property
    def slots(self) -> tuple[str, ...]:
        return ("m", "v")

    def numbers(self, rate: float, step: int) -> dict[str, float]:
        """The rate, and the bias corrections of the means, which start at 0."""
        return {
            "rate": rate,
            "m_correction": 1 - self.beta1**step,
            "v_correction": 1 - self.beta2**step,
        }

    def equation(self, w: Value, g: Value, slots: Slots, numbers: Mapping[str, Value]) -> Update:
        """w = w - rate m̂ / (√v̂ + epsilon), with corrected means of g and g²."""
        m = self.beta1 * slots["m"] + (1 - self.beta1) * g
        v = self.beta2 * slots["v"] + (1 - self.beta2) * (g * g)
        m_hat = m / numbers["m_correction"]
        v_hat = v / numbers["v_correction"]
        return w - numbers["rate"] * m_hat / (sqrt(v_hat) + self.epsilon), {"m": m, "v": v}


@dataclass(frozen=True, kw_only=True)
class AdamWOptimizer(AdamOptimizer):
    """Adam, by default with decoupled weight decay: Loshchilov and Hutter 2019."""

    weight_decay: float = 0.01

    name = "adamw"


@dataclass(frozen=True, kw_only=True)
class RMSpropOptimizer(Optimizer):
    """RMSprop: Hinton 2012, Neural Networks for Machine Learning, lecture 6e.

    Attributes
    ----------
    rho
        Decay rate of the mean of squared gradients.
    momentum
        Share of the last step that is repeated.
    epsilon
        Added to the root in the denominator.
    """

    rho: float = 0.9
    momentum: float = 0.0
    epsilon: float = 1e-8

    name = "rmsprop"

    @property
    def slots(self) -> tuple[str, ...]:
        return ("v", "velocity") if self.momentum else ("v",)

    def equation(self, w: Value, g: Value, slots: Slots, numbers: Mapping[str, Value]) -> Update:
        """velocity = momentum velocity + g / (√v + epsilon); w = w - rate velocity.

        v is the mean of g².
        """
        v = self.rho * slots["v"] + (1 - self.rho) * (g * g)
        scaled = g / (sqrt(v) + self.epsilon)
        if not self.momentum:
            return w - numbers["rate"] * scaled, {"v": v}
        velocity = self.momentum * slots["velocity"] + scaled
        return w - numbers["rate"] * velocity, {"v": v, "velocity": velocity}


@dataclass(frozen=True, kw_only=True)
class AdagradOptimizer(Optimizer):
    """Adagrad: Duchi et al. 2011, the diagonal case.

    Attributes
    ----------
    epsilon
        Added to the root in the denominator.
    """

    learning_rate: float = 0.01
    epsilon: float = 1e-10

    name = "adagrad"

    @property
    def slots(self) -> tuple[str, ...]:
        return ("sum",)

    def equation(self, w: Value, g: Value, slots: Slots, numbers: Mapping[str, Value]) -> Update:
        """w = w - rate g / (√sum + epsilon), with the sum of all g²."""
        total = slots["sum"] + g * g
        return w - numbers["rate"] * g / (sqrt(total) + self.epsilon), {"sum": total}


@dataclass(frozen=True, kw_only=True)
class AdadeltaOptimizer(Optimizer):
    """Adadelta: Zeiler 2012, algorithm 1, its step multiplied by the rate.

    Attributes
    ----------
    rho
        Decay rate of the means of squared gradients and squared steps.
    epsilon
        Added to both means.
    """

    learning_rate: float = 1.0
    rho: float = 0.95
    epsilon: float = 1e-6

    name = "adadelta"

    @property
    def slots(self) -> tuple[str, ...]:
        return ("v", "steps")

    def equation(self, w: Value, g: Value, slots: Slots, numbers: Mapping[str, Value]) -> Update:
        """w = w - rate d, with d = g √(mean of d² + epsilon) / √(mean of g² + epsilon)."""
        v = self.rho * slots["v"] + (1 - self.rho) * (g * g)
        d = g * (sqrt(slots["steps"] + self.epsilon) / sqrt(v + self.epsilon))
        steps = self.rho * slots["steps"] + (1 - self.rho) * (d * d)
        return w - numbers["rate"] * d, {"v": v, "steps": steps}


OPTIMIZERS: dict[str, type[Optimizer]] = {
    kind.name: kind
    for kind in (
        SGDOptimizer,
        AdamOptimizer,
        AdamWOptimizer,
        RMSpropOptimizer,
        AdagradOptimizer,
        AdadeltaOptimizer,
    )
}


def make_optimizer(options: Mapping[str, Any]) -> Optimizer:
    """The optimizer of the config's section ``train.optimizer``. Omitted options have defaults.

    Raises
    ------
    ConfigError
        The type or a key is unknown. Values are not checked here.
    """
    return from_mapping("optimizer", OPTIMIZERS, options)


# From a section of the config

Record = TypeVar("Record")


def from_mapping(
    section: str, kinds: Mapping[str, type[Record]], options: Mapping[str, Any]
) -> Record:
    """An object of the class that ``options["type"]`` names, with the other options as fields.

    Parameters
    ----------
    section
        Name of the section for errors, such as ``optimizer``.
    kinds
        Dataclasses by type.

    Raises
    ------
    ConfigError
        The type is missing or unknown, or lacks an option.
    """
    if "type" not in options:
        raise ConfigError(f"{section} has no type", expected=", ".join(kinds))
    kind = str(options["type"])
    if kind not in kinds:
        raise ConfigError(
            f"{kind} is not a kind of {section}",
            expected=", ".join(kinds),
            hint=_did_you_mean(kind, kinds),
        )
    names = [field.name for field in fields(kinds[kind]) if field.init]  # type: ignore[arg-type]
    for key in options:
        if key != "type" and key not in names:
            raise ConfigError(
                f"{section}.{key} is not a key of {kind}",
                expected=", ".join(names),
                hint=_did_you_mean(key, names),
            )
    return kinds[kind](**{key: _plain(value) for key, value in options.items() if key != "type"})


def _plain(value: Any) -> Any:
    """A NumPy number as a Python number, which does not change the precision of arrays."""
    return value.item() if isinstance(value, np.generic) else value


def _did_you_mean(name: str, names: Iterable[str]) -> str | None:
    guess = nearest(name, names)
    return f"did you mean `{guess}`?" if guess else None
