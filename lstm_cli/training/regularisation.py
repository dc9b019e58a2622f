"""What keeps weights and gradients small: penalties, weight decay and clipping.

What does not have to change is passed on as it is, the same object.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from lstm_cli.cells.expression import Value, select
from lstm_cli.engines.types import Array


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


def global_norm(gradients: Mapping[str, Array]) -> float:
    """Euclidean norm of all gradients together, in float64, whatever order they are in."""
    with np.errstate(over="ignore"):
        squares = [float(np.square(g, dtype=np.float64).sum()) for g in gradients.values()]
    return math.sqrt(sum(sorted(squares)))


def clip_values(gradients: Mapping[str, Array], limit: float) -> Mapping[str, Array]:
    """Each number limited to [-limit, limit], if any is outside."""
    if all(g.size == 0 or np.abs(g).max() <= limit for g in gradients.values()):
        return gradients
    return {name: np.clip(g, -limit, limit) for name, g in gradients.items()}


def clip_norm(gradients: Mapping[str, Array], norm: float, limit: float) -> Mapping[str, Array]:
    """All gradients scaled by one factor if their common `norm` is above `limit`.

    Pascanu et al. 2013, algorithm 1.
    """
    if norm <= limit:
        return gradients
    return {name: g * (limit / norm) for name, g in gradients.items()}
