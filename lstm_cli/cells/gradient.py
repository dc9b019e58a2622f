"""Reverse-mode differentiation of the expression graph: derivatives as expressions.

A cell's backward step comes from the same graph as its forward step. So an engine that can emit
one can emit the other. `backward` is the oracle for the backward phases that jit and cuda use
(`lstm_cli.engines.schedule`): the reference engine computes with it, and tests compare both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lstm_cli.cells.cell import CellGraph, Stage
from lstm_cli.cells.expression import Expression, lift, select, symbol, topological

Adjoints = dict[Expression, Expression]


def _clip(d: Expression, x: Expression, low: Expression, high: Expression) -> Expression:
    """Derivative of clipping: 1 on the closed interval, 0 outside it."""
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
"""Adjoints of an operation's arguments, from its adjoint `d`, its value `y` and its arguments."""


def gradient(seeds: Mapping[Expression, Expression]) -> dict[str, Expression]:
    """Derivatives with respect to every symbol.

    Parameters
    ----------
    seeds
        Adjoint of each result. A result may be a symbol, whose derivative is then its adjoint.

    Returns
    -------
    Derivatives by symbol name: the sum over results of the adjoint times the result's derivative.
    A symbol that no result depends on is absent.
    """
    adjoints: Adjoints = {}
    for result, seed in seeds.items():
        _accumulate(adjoints, result, seed)
    derivatives: dict[str, Expression] = {}
    for node in reversed(topological(seeds)):
        d = adjoints.get(node)
        if d is None or node.op == "constant":
            continue
        if node.op == "symbol":
            derivatives[str(node.payload)] = d
            continue
        parts = RULES[node.op](d, node, *node.args)
        for arg, part in zip(node.args, parts, strict=True):
            if part is not None and arg.op != "constant":
                _accumulate(adjoints, arg, part)
    return derivatives


def _accumulate(adjoints: Adjoints, node: Expression, part: Expression) -> None:
    before = adjoints.get(node)
    adjoints[node] = part if before is None else before + part


@dataclass(frozen=True)
class BackwardStage:
    """Backward computation of one matrix product of a step.

    Attributes
    ----------
    stage
        The matrix product.
    gradients
        Derivatives by symbol, through the vector that the product reads. The adjoint of that
        vector is the symbol ``d_reads``.
    """

    stage: Stage
    gradients: Mapping[str, Expression]


@dataclass(frozen=True)
class BackwardGraph:
    """A cell's backward step: first the states, then the stages from last to first.

    Attributes
    ----------
    states
        Derivatives by symbol, through the new states. The adjoints of the states are the symbols
        ``d_<state>``.
    stages
        Stages, last first. Each needs the adjoints of its results: ``h_<gate>`` or ``projected``.
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
