"""Activation functions as equations: the set of ONNX's recurrent operators, and two of TMVA's.

Comparisons are written so that NaN takes the branch that returns NaN. At a kink, the branch has
PyTorch's derivative there: ``docs/training.md`` has the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lstm_cli.cells.expression import Value, exp, log1p, select, sigmoid, tanh
from lstm_cli.errors import ConfigError, nearest


@dataclass(frozen=True)
class Formula:
    """Function of one activation, and the defaults of its parameters.

    Attributes
    ----------
    function
        Equation of the activation: a value from a value, `alpha` and `beta`.
    alpha, beta
        Defaults. None: the activation has no such parameter.
    """

    function: Callable[..., Value]
    alpha: float | None = None
    beta: float | None = None


def _identity(x: Value) -> Value:
    return x


def _relu(x: Value) -> Value:
    return select(x <= 0, 0.0, x)


def _leaky_relu(x: Value, alpha: float) -> Value:
    return select(x <= 0, alpha * x, x)


def _thresholded_relu(x: Value, alpha: float) -> Value:
    return select(x <= alpha, 0.0, x)


def _elu(x: Value, alpha: float) -> Value:
    return select(x <= 0, alpha * (exp(select(x <= 0, x, 0.0)) - 1.0), x)


def _affine(x: Value, alpha: float, beta: float) -> Value:
    return alpha * x + beta


def _scaled_tanh(x: Value, alpha: float, beta: float) -> Value:
    return alpha * tanh(beta * x)


def _hard_sigmoid(x: Value, alpha: float, beta: float) -> Value:
    y = alpha * x + beta
    return select(y <= 0, 0.0, select(y >= 1.0, 1.0, y))


def _symmrelu(x: Value) -> Value:
    return select(x <= 0, select(x < 0, -x, 0.0), x)


def _absolute(x: Value) -> Value:
    # For equations in which the kink at 0 cancels. The derivative at 0 is 1.
    return select(x < 0, -x, x)


def _softsign(x: Value) -> Value:
    return x / (1.0 + _absolute(x))


def _softplus(x: Value) -> Value:
    # The kinks of both terms cancel, since both treat x = 0 like a positive x.
    return log1p(exp(-_absolute(x))) + select(x < 0, 0.0, x)


def _gauss(x: Value) -> Value:
    return exp(-(x * x))


FORMULAS: Mapping[str, Formula] = {
    "sigmoid": Formula(sigmoid),
    "tanh": Formula(tanh),
    "relu": Formula(_relu),
    "identity": Formula(_identity),
    "affine": Formula(_affine, alpha=1.0, beta=0.0),
    "elu": Formula(_elu, alpha=1.0),
    "hard_sigmoid": Formula(_hard_sigmoid, alpha=0.2, beta=0.5),
    "leaky_relu": Formula(_leaky_relu, alpha=0.01),
    "scaled_tanh": Formula(_scaled_tanh, alpha=1.0, beta=1.0),
    "softplus": Formula(_softplus),
    "softsign": Formula(_softsign),
    "thresholded_relu": Formula(_thresholded_relu, alpha=1.0),
    "symmrelu": Formula(_symmrelu),
    "gauss": Formula(_gauss),
}
"""Names and defaults: ONNX operators LSTM/GRU/RNN, opset 14; TMVA's ``SYMMRELU`` and ``GAUSS``."""

SYNONYMS: Mapping[str, str] = {"linear": "identity", "none": "identity"}


@dataclass(frozen=True)
class Activation:
    """An elementwise activation with its parameters. Call it on an array or an expression.

    Attributes
    ----------
    name
        A key of `FORMULAS` or `SYNONYMS`.
    alpha, beta
        Parameters of the equation. None takes the default of `FORMULAS`.

    Raises
    ------
    ConfigError
        The name is unknown, or the activation lacks a given parameter.
    """

    name: str
    alpha: float | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        name = SYNONYMS.get(self.name, self.name)
        formula = FORMULAS.get(name)
        if formula is None:
            guess = nearest(self.name, [*FORMULAS, *SYNONYMS])
            raise ConfigError(
                f"{self.name!r} is not an activation",
                expected="one of " + ", ".join(sorted(FORMULAS)),
                hint=f"did you mean `{guess}`?" if guess else None,
            )
        object.__setattr__(self, "name", name)
        for key in ("alpha", "beta"):
            value, default = getattr(self, key), getattr(formula, key)
            if value is not None and default is None:
                raise ConfigError(f"the activation {name} has no {key}", found=f"{key}: {value:g}")
            object.__setattr__(self, key, default if value is None else float(value))

    def __call__(self, x: Value) -> Value:
        parameters = [value for value in (self.alpha, self.beta) if value is not None]
        return FORMULAS[self.name].function(x, *parameters)

    def __str__(self) -> str:
        formula = FORMULAS[self.name]
        changed = [
            f"{key}={getattr(self, key):g}"
            for key in ("alpha", "beta")
            if getattr(self, key) != getattr(formula, key)
        ]
        return f"{self.name}({', '.join(changed)})" if changed else self.name


SIGMOID = Activation("sigmoid")
TANH = Activation("tanh")
