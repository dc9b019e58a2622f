"""Reverse mode on the expression graph: derivatives as expressions.

A cell's backward step is generated from the same graph as its forward step, so that an engine
which can emit one can emit the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lstm_cli.cells.expression import Expression, lift, select, symbol, topological
from lstm_cli.cells.tracing import CellGraph, Stage

Adjoints = dict[Expression, Expression]


def _clip(d: Expression, x: Expression, low: Expression, high: Expression) -> Expression:
    """1 on the closed interval, 0 outside it."""
    return Expression(
        "select", (x < low, lift(0.0), Expression("select", (high < x, lift(0.0), d)))
    )


RULES: Mapping[str, Callable[..., tuple[Expression | None, ...]]] = {
    "add": lambda d, y, a, b: (d, d),
    "subtract": lambda d, y, a, b: (d, -d),
    "multiply": lambda d, y, a, b: (d * b, d * a),
    "divide": lambda d, y, a, b: (d / b, -d * y / b),
    "negative": lambda d, y, a: (-d,),
    "exp": lambda d, y, a: (d * y,),
    "log1p": lambda d, y, a: (d / (1.0 + a),),
    "sqrt": lambda d, y, a: (d / (2.0 * y),),
    "tanh": lambda d, y, a: (d * (1.0 - y * y),),
    "sigmoid": lambda d, y, a: (d * (y * (1.0 - y)),),
    "select": lambda d, y, c, a, b: (None, select(c, d, 0.0), select(c, 0.0, d)),
    "clip": lambda d, y, a, low, high: (_clip(d, a, low, high), None, None),
    "less": lambda d, y, a, b: (None, None),
    "less_equal": lambda d, y, a, b: (None, None),
}
"""Adjoints of an operation's arguments, from its own adjoint `d`, its value `y`, its arguments."""


def gradient(seeds: Mapping[Expression, Expression]) -> dict[str, Expression]:
    """Derivatives with respect to every symbol.

    Parameters
    ----------
    seeds
        The adjoint of each result. A result that is a symbol passes its adjoint on.

    Returns
    -------
    For every symbol that the results depend on, the sum over results of adjoint times
    derivative, by the symbol's name.
    """
    adjoints: Adjoints = {}
    for result, seed in seeds.items():
        _accumulate(adjoints, result, seed)
    found: dict[str, Expression] = {}
    for node in reversed(topological(seeds)):
        d = adjoints.get(node)
        if d is None or node.op == "constant":
            continue
        if node.op == "symbol":
            found[str(node.payload)] = d
            continue
        parts = RULES[node.op](d, node, *node.args)
        for arg, part in zip(node.args, parts, strict=True):
            if part is not None and arg.op != "constant":
                _accumulate(adjoints, arg, part)
    return found


def _accumulate(adjoints: Adjoints, node: Expression, part: Expression) -> None:
    before = adjoints.get(node)
    adjoints[node] = part if before is None else before + part


@dataclass(frozen=True)
class BackwardStage:
    """One matrix product of a step, backwards.

    Attributes
    ----------
    stage
        The product.
    gradients
        Derivatives of the vector it reads, by symbol, from the adjoint ``d_reads``.
    """

    stage: Stage
    gradients: Mapping[str, Expression]


@dataclass(frozen=True)
class BackwardGraph:
    """A cell's step backwards: the states first, then the stages from last to first.

    Attributes
    ----------
    states
        Derivatives of the new states, by symbol, from the adjoints ``d_<state>``.
    stages
        Last first. Each needs the adjoints of what it gives: ``h_<gate>`` or ``projected``.
    """

    states: Mapping[str, Expression]
    stages: tuple[BackwardStage, ...]


def backward(graph: CellGraph) -> BackwardGraph:
    """The backward step of a traced cell."""
    seeds: dict[Expression, Expression] = {}
    for name, state in graph.states.items():
        _accumulate(seeds, state, symbol(f"d_{name}"))
    stages = tuple(
        BackwardStage(stage, gradient({stage.reads: symbol("d_reads")}))
        for stage in reversed(graph.stages)
    )
    return BackwardGraph(gradient(seeds), stages)
