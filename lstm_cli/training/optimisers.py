"""Optimisers: each one's update written once, for arrays and for symbols alike.

What changes from update to update but is the same for every weight (the rate, Adam's bias
corrections) enters the equations as numbers by name. An engine can therefore trace an
equation once, with symbols for these numbers, and use the result for all updates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from lstm_cli.cells.expression import Value, sqrt
from lstm_cli.training import sections

Slots = Mapping[str, Value]
Update = tuple[Value, dict[str, Value]]


@dataclass(frozen=True, kw_only=True)
class Optimiser(ABC):
    """What every optimiser has. The penalties are applied around the equation, not by it.

    Attributes
    ----------
    learning_rate
        Step size before any schedule.
    weight_decay
        Matrices shrink by rate x this each update, apart from the gradient.
    l1, l2
        This x sign(weight), this x weight are added to the gradients of matrices.
    """

    learning_rate: float = 0.001
    weight_decay: float = 0.0
    l1: float = 0.0
    l2: float = 0.0

    name: ClassVar[str]

    @property
    @abstractmethod
    def slots(self) -> tuple[str, ...]:
        """Names of the arrays kept for each weight, shaped like it and 0 at the start."""

    def numbers(self, rate: float, step: int) -> dict[str, float]:
        """What the equation reads at update number `step`, counted from 1, for all weights."""
        return {"rate": rate}

    @abstractmethod
    def equation(self, w: Value, g: Value, slots: Slots, numbers: Mapping[str, Value]) -> Update:
        """The weight and its slots after an update with gradient `g`.

        Parameters
        ----------
        w, g, slots
            Arrays of one shape, or expressions. Left as they are.
        numbers
            As `numbers` gives them, or expressions.
        """

    def update(self, w: Value, g: Value, slots: Slots, rate: float, step: int) -> Update:
        """The weight and its slots after update number `step`, counted from 1."""
        return self.equation(w, g, slots, self.numbers(rate, step))


@dataclass(frozen=True, kw_only=True)
class SGD(Optimiser):
    """Gradient descent; momentum of Polyak 1964, Nesterov's as in Sutskever et al. 2013.

    Attributes
    ----------
    momentum
        Share of the last step that is kept.
    nesterov
        Step from where the momentum leads.
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
class Adam(Optimiser):
    """Adam: Kingma and Ba 2015, algorithm 1.

    Attributes
    ----------
    beta1, beta2
        Decay of the means of gradients and of squared gradients.
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
        """The rate, and what the means are divided by because they start at 0."""
        return {
            "rate": rate,
            "m_correction": 1 - self.beta1**step,
            "v_correction": 1 - self.beta2**step,
        }

    def equation(self, w: Value, g: Value, slots: Slots, numbers: Mapping[str, Value]) -> Update:
        """w = w - rate m̂ / (√v̂ + epsilon), of the corrected means of g and g²."""
        m = self.beta1 * slots["m"] + (1 - self.beta1) * g
        v = self.beta2 * slots["v"] + (1 - self.beta2) * (g * g)
        m_hat = m / numbers["m_correction"]
        v_hat = v / numbers["v_correction"]
        return w - numbers["rate"] * m_hat / (sqrt(v_hat) + self.epsilon), {"m": m, "v": v}


@dataclass(frozen=True, kw_only=True)
class AdamW(Adam):
    """Adam, by default with decoupled weight decay: Loshchilov and Hutter 2019."""

    weight_decay: float = 0.01

    name = "adamw"


@dataclass(frozen=True, kw_only=True)
class RMSprop(Optimiser):
    """RMSprop: Hinton 2012, Neural Networks for Machine Learning, lecture 6e.

    Attributes
    ----------
    rho
        Decay of the mean of squared gradients.
    momentum
        Share of the last step that is kept.
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
        """velocity = momentum velocity + g / (√v + epsilon); w = w - rate velocity."""
        v = self.rho * slots["v"] + (1 - self.rho) * (g * g)
        scaled = g / (sqrt(v) + self.epsilon)
        if not self.momentum:
            return w - numbers["rate"] * scaled, {"v": v}
        velocity = self.momentum * slots["velocity"] + scaled
        return w - numbers["rate"] * velocity, {"v": v, "velocity": velocity}


@dataclass(frozen=True, kw_only=True)
class Adagrad(Optimiser):
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
        """w = w - rate g / (√sum + epsilon), of the sum of all g²."""
        total = slots["sum"] + g * g
        return w - numbers["rate"] * g / (sqrt(total) + self.epsilon), {"sum": total}


@dataclass(frozen=True, kw_only=True)
class Adadelta(Optimiser):
    """Adadelta: Zeiler 2012, algorithm 1, its step multiplied by the rate.

    Attributes
    ----------
    rho
        Decay of the means of squared gradients and squared steps.
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


OPTIMISERS: dict[str, type[Optimiser]] = {
    kind.name: kind for kind in (SGD, Adam, AdamW, RMSprop, Adagrad, Adadelta)
}


def make_optimiser(options: Mapping[str, Any]) -> Optimiser:
    """The optimiser of the config's section ``train.optimizer``; what is left out is default.

    Raises
    ------
    ConfigError
        An unknown type or key. Values are taken as checked.
    """
    return sections.make("optimizer", OPTIMISERS, options)
