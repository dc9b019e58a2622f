"""What keeps weights and gradients small: penalties, weight decay and clipping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

from lstm_cli.cells.expression import Expression, Value, clip, select, symbol
from lstm_cli.engines.reference.arrays import NUMPY
from lstm_cli.engines.types import ArrayOperations, Deferred, EngineArray


def penalised(w: Value, g: Value, l1: float, l2: float) -> Value:
    """The gradient with those of the penalties: g + l2 w + l1 sign(w). Arrays or expressions."""
    if l2:
        g = g + l2 * w
    if l1:
        # Chosen instead of multiplied by a sign, which would not have the weights' precision.
        g = select(w < 0.0, g - l1, select(-w < 0.0, g + l1, g))
    return g


def decayed(w: Value, rate: Value, weight_decay: float) -> Value:
    """Decoupled decay, w - rate weight_decay w: Loshchilov and Hutter 2019. As `penalised`."""
    return w - rate * (weight_decay * w) if weight_decay else w


def clipped(g: Value, limit: float | None) -> Value:
    """The gradient with each number limited to [-limit, limit]. As `penalised`."""
    return g if limit is None else clip(g, -limit, limit)


def global_norm(
    gradients: Mapping[str, EngineArray],
    engine: ArrayOperations = NUMPY,
    limit: float | None = None,
) -> float:
    """Euclidean norm of all gradients together, in float64, whatever order they are in.

    Parameters
    ----------
    limit
        Of each number, before it is squared.
    """
    return late_norm(gradients, engine, limit)()


def late_norm(
    gradients: Mapping[str, EngineArray],
    engine: ArrayOperations = NUMPY,
    limit: float | None = None,
) -> Deferred:
    """The `global_norm`, for later."""
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
    """Whether a number is outside [-limit, limit]."""
    counts = engine.totals(_outside(limit), [{"g": g} for g in gradients.values()])
    return any(count() > 0 for count in counts)


@lru_cache(maxsize=64)
def _outside(limit: float) -> Expression:
    g = symbol("g")
    return select(-g < -limit, 1.0, select(g < -limit, 1.0, 0.0))  # type: ignore[no-any-return]


def norm_factor(norm: float, limit: float) -> float:
    """What all gradients are multiplied by to bring their common `norm` down to `limit`.

    Pascanu et al. 2013, algorithm 1.
    """
    return limit / norm if norm > limit else 1.0
