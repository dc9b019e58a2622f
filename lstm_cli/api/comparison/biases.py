"""The two biases of a gru: summed, shared out, or exchanged, gate by gate."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lstm_cli.api.comparison.rules import SLACK, Rule, rules
from lstm_cli.engines.types import Array

PAIR = ("bias_ih", "bias_hh")

SHARES: Mapping[str, tuple[str, Callable[[Array, Array], tuple[Array, Array]]]] = {
    "": ("as in A", lambda b, b_h: (b, b_h)),
    "summed into b": ("summed into b, and b_h is 0", lambda b, b_h: (b + b_h, 0 * b)),
    "summed into b_h": ("summed into b_h, and b is 0", lambda b, b_h: (0 * b, b + b_h)),
    "halved": ("summed, and b and b_h hold half each", lambda b, b_h: ((b + b_h) / 2,) * 2),
    "doubled": ("summed, and b and b_h both hold the sum", lambda b, b_h: (b + b_h,) * 2),
    "exchanged": ("exchanged: b is A's b_h, and b_h is A's b", lambda b, b_h: (b_h, b)),
}
"""How B may have A's two biases b and b_h: in words, and made of them."""
SHARED_OTHERWISE = "shared out"
"""Neither of the above, but the sums agree."""
KEEPS_SUM = {"", "summed into b", "summed into b_h", "halved", "exchanged", SHARED_OTHERWISE}


@dataclass(frozen=True)
class Sharing:
    """How B has A's two biases.

    Attributes
    ----------
    order
        The gates of A that stand in B's places.
    shares
        By gate of A: a key of `SHARES`, or `SHARED_OTHERWISE`.
    rule
        How the numbers agree.
    """

    order: tuple[str, ...]
    shares: Mapping[str, str]
    rule: Rule

    @property
    def neutral(self) -> frozenset[str]:
        """Gates whose biases have the same sum as in A."""
        return frozenset(gate for gate, share in self.shares.items() if share in KEEPS_SUM)


def sharing(
    a: Mapping[str, Array],
    b: Mapping[str, Array],
    letters: tuple[str, ...],
    orders: Sequence[tuple[str, ...]],
    tolerance: float,
) -> Sharing | None:
    """How B's two biases follow from A's, or None; `orders` of the gates are tried first."""
    pairs = [
        [np.split(side[name].astype(np.float64), len(letters)) for name in PAIR] for side in (a, b)
    ]
    (a_b, a_h), (b_b, b_h) = pairs
    every = list(dict.fromkeys([*orders, letters, *itertools.permutations(letters)]))
    for rule, order in itertools.product(rules(tolerance), every):
        shares = {}
        for p, gate in enumerate(order):
            q = letters.index(gate)
            share = _share((a_b[q], a_h[q]), (b_b[p], b_h[p]), rule)
            if share is None:
                break
            shares[gate] = share
        else:
            return Sharing(order, {gate: shares[gate] for gate in letters}, rule)
    return None


@np.errstate(all="ignore")
def _share(a: tuple[Array, Array], b: tuple[Array, Array], rule: Rule) -> str | None:
    slack = SLACK * np.max(np.abs([*a, *b]), axis=0)
    for name, (_, made) in SHARES.items():
        if _near(made(*a), b, slack if name else 0 * slack, rule):
            return name
    if rule.name == "" and _near([a[0] + a[1]], [b[0] + b[1]], slack, rule):
        return SHARED_OTHERWISE
    return None


def _near(found: Iterable[Array], wanted: Iterable[Array], slack: Array, rule: Rule) -> bool:
    """Whether numbers agree under a rule, or as nearly as after an addition in float32."""
    return all(
        bool(((np.abs(x - y) <= slack) | rule.holds(x, y)).all())
        for x, y in zip(found, wanted, strict=True)
    )
