"""Optimizers. Each update equation is written once, for arrays and for symbols.

Some numbers change between updates and are the same for all weights, such as the rate. The
equations read these numbers by name. So an engine traces an equation once, with symbols for the
numbers, and uses the result for all updates. A new optimizer is a class here, and its row in
`OPTIMIZERS`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lstm_cli.cells.expression import Value, sqrt
from lstm_cli.training.options import ANY, NOT_NEGATIVE, POSITIVE, SHARE, from_mapping, option

Slots = Mapping[str, Value]
Update = tuple[Value, dict[str, Value]]

_DECAY = "Weights shrink by learning_rate x this value per update, beyond the gradient."
_EPSILON = "Added to the root in the denominator."
_MEAN_SQUARE = "Decay of the mean of squared gradients."
_MOMENTUM = "Share of the last update that is kept."


@dataclass(frozen=True, kw_only=True)
class Optimizer(ABC):
    """Base class of optimizers. `lstm_cli.training.updates` applies the penalties.

    Attributes
    ----------
    name, description
        Value of the key ``type`` in the config, and its description.
    """

    learning_rate: float = option(0.001, POSITIVE, "Step size.")
    weight_decay: float = option(0.0, NOT_NEGATIVE, _DECAY)
    l1: float = option(0.0, NOT_NEGATIVE, "This value x sign(weight) is added to the gradient.")
    l2: float = option(0.0, NOT_NEGATIVE, "This value x weight is added to the gradient.")

    name: ClassVar[str]
    description: ClassVar[str]

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
    """Stochastic gradient descent.

    Momentum of Polyak 1964, Nesterov's as in Sutskever et al. 2013.
    """

    learning_rate: float = option(0.01, POSITIVE, "Step size.")
    momentum: float = option(0.0, SHARE, _MOMENTUM)
    nesterov: bool = option(False, ANY, "Nesterov's momentum; needs momentum.")

    name = "sgd"
    description = "Gradient descent, optionally with momentum."

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
    """Adam (Kingma and Ba 2015).

    Algorithm 1 of the paper.
    """

    beta1: float = option(0.9, SHARE, "Decay of the mean of gradients.")
    beta2: float = option(0.999, SHARE, _MEAN_SQUARE)
    epsilon: float = option(1e-8, POSITIVE, _EPSILON)

    name = "adam"
    description = "Adam."

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
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""

    weight_decay: float = option(0.01, NOT_NEGATIVE, _DECAY)

    name = "adamw"
    description = "Adam with weight decay apart from the gradient."


@dataclass(frozen=True, kw_only=True)
class RMSpropOptimizer(Optimizer):
    """RMSprop (Hinton 2012).

    Neural Networks for Machine Learning, lecture 6e.
    """

    rho: float = option(0.9, SHARE, _MEAN_SQUARE)
    momentum: float = option(0.0, SHARE, _MOMENTUM)
    epsilon: float = option(1e-8, POSITIVE, _EPSILON)

    name = "rmsprop"
    description = "RMSprop."

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
    """Adagrad (Duchi et al. 2011).

    The diagonal case.
    """

    learning_rate: float = option(0.01, POSITIVE, "Step size.")
    epsilon: float = option(1e-10, POSITIVE, _EPSILON)

    name = "adagrad"
    description = "Adagrad."

    @property
    def slots(self) -> tuple[str, ...]:
        return ("sum",)

    def equation(self, w: Value, g: Value, slots: Slots, numbers: Mapping[str, Value]) -> Update:
        """w = w - rate g / (√sum + epsilon), with the sum of all g²."""
        total = slots["sum"] + g * g
        return w - numbers["rate"] * g / (sqrt(total) + self.epsilon), {"sum": total}


@dataclass(frozen=True, kw_only=True)
class AdadeltaOptimizer(Optimizer):
    """Adadelta (Zeiler 2012).

    Algorithm 1 of the paper, its step multiplied by the rate.
    """

    learning_rate: float = option(1.0, POSITIVE, "Factor of each step.")
    rho: float = option(0.95, SHARE, "Decay of the means.")
    epsilon: float = option(1e-6, POSITIVE, "Added to both means.")

    name = "adadelta"
    description = "Adadelta."

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
