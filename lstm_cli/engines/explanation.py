"""Explanation of an engine's choices for a recurrent layer, shown by ``bench --explain``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Explanation:
    """An engine's choice of kernels for one layer and one batch size.

    Attributes
    ----------
    way
        Summary of the choice, such as ``persistent, clusters of 8`` or ``4 threads that share the
        units``.
    reasons
        Short sentences, each a decision and the sizes that led to it.
    floor
        Least seconds per step of all directions, by a cost model that no measurement has
        confirmed. None: there is no model.
    numbers
        Parameters of the plan by name.
    """

    way: str
    reasons: tuple[str, ...] = ()
    floor: float | None = None
    numbers: Mapping[str, str | int | float] = field(default_factory=dict)
