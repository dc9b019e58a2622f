"""Expression graph of a cell's equations, from which engines emit code.

An `Expression` is one node. A function of this module builds a node from expressions, and computes
an array from NumPy arrays. So one equation serves both. Equal nodes are one object, so common
subexpressions are always shared.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias
from weakref import WeakValueDictionary

import numpy as np

Value: TypeAlias = Any
"""A NumPy array or an `Expression`."""

Number: TypeAlias = float | int


class Expression:
    """One node: an operation on other nodes, a named symbol, or a constant.

    Attributes
    ----------
    op
        ``symbol``, ``constant``, or a key of `OPERATIONS`.
    args
        Nodes that the operation reads.
    payload
        Name of a symbol, or value of a constant. None for an operation.
    """

    __slots__ = ("__weakref__", "args", "op", "payload")
    __array_ufunc__ = None  # an array on the left of an operator defers to this class

    op: str
    args: tuple[Expression, ...]
    payload: str | float | None

    def __new__(
        cls, op: str, args: tuple[Expression, ...] = (), payload: str | float | None = None
    ) -> Expression:
        key = (op, tuple(map(id, args)), repr(payload))
        node = _NODES.get(key)
        if node is None:
            node = super().__new__(cls)
            node.op, node.args, node.payload = op, args, payload
            _NODES[key] = node
        return node

    def __add__(self, other: Expression | Number) -> Expression:
        return Expression("add", (self, lift(other)))

    def __radd__(self, other: Number) -> Expression:
        return Expression("add", (lift(other), self))

    def __sub__(self, other: Expression | Number) -> Expression:
        return Expression("subtract", (self, lift(other)))

    def __rsub__(self, other: Number) -> Expression:
        return Expression("subtract", (lift(other), self))

    def __mul__(self, other: Expression | Number) -> Expression:
        return Expression("multiply", (self, lift(other)))

    def __rmul__(self, other: Number) -> Expression:
        return Expression("multiply", (lift(other), self))

    def __truediv__(self, other: Expression | Number) -> Expression:
        return Expression("divide", (self, lift(other)))

    def __rtruediv__(self, other: Number) -> Expression:
        return Expression("divide", (lift(other), self))

    def __neg__(self) -> Expression:
        return Expression("negative", (self,))

    def __lt__(self, other: Expression | Number) -> Expression:
        return Expression("less", (self, lift(other)))

    def __le__(self, other: Expression | Number) -> Expression:
        return Expression("less_equal", (self, lift(other)))

    def __ge__(self, other: Expression | Number) -> Expression:
        return Expression("less_equal", (lift(other), self))

    def __repr__(self) -> str:
        if self.op in ("symbol", "constant"):
            return str(self.payload)
        return f"{self.op}({', '.join(map(repr, self.args))})"


_NODES: WeakValueDictionary[tuple[str, tuple[int, ...], str], Expression] = WeakValueDictionary()


def symbol(name: str) -> Expression:
    """A named input of the graph."""
    return Expression("symbol", payload=name)


def lift(value: Expression | Number) -> Expression:
    """A constant node for a number; a node unchanged."""
    return value if isinstance(value, Expression) else Expression("constant", payload=float(value))


def _sigmoid(x: Value) -> Value:
    # exp(-x) may overflow to infinity, and 1 / infinity is the correct 0.
    with np.errstate(over="ignore"):
        return 1.0 / (1.0 + np.exp(-x))


OPERATIONS: Mapping[str, Callable[..., Value]] = {
    "add": np.add,
    "subtract": np.subtract,
    "multiply": np.multiply,
    "divide": np.divide,
    "negative": np.negative,
    "less": np.less,
    "less_equal": np.less_equal,
    "exp": np.exp,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "tanh": np.tanh,
    "sigmoid": _sigmoid,
    "select": np.where,
    "clip": np.clip,
}
"""NumPy function of each operation. NaN propagates, but for the branch that `select` drops."""


def _apply(op: str, *values: Value) -> Value:
    if any(isinstance(value, Expression) for value in values):
        return Expression(op, tuple(lift(value) for value in values))
    return OPERATIONS[op](*values)


def exp(x: Value) -> Value:
    """e to the power of `x`."""
    return _apply("exp", x)


def log1p(x: Value) -> Value:
    """log(1 + x), accurate for small `x`."""
    return _apply("log1p", x)


def sqrt(x: Value) -> Value:
    """Square root."""
    return _apply("sqrt", x)


def tanh(x: Value) -> Value:
    """Hyperbolic tangent."""
    return _apply("tanh", x)


def sigmoid(x: Value) -> Value:
    """Logistic function 1 / (1 + exp(-x)), saturating without a warning."""
    return _apply("sigmoid", x)


def select(condition: Value, yes: Value, no: Value) -> Value:
    """`yes` where `condition` holds, else `no`. A NaN in the other branch has no effect."""
    return _apply("select", condition, yes, no)


def clip(x: Value, low: Number, high: Number) -> Value:
    """`x` limited to [low, high]; NaN stays NaN."""
    return _apply("clip", x, low, high)


def topological(roots: Iterable[Expression]) -> list[Expression]:
    """Every node of the graph below `roots`, once, arguments before the nodes that read them."""
    order: dict[Expression, None] = {}
    stack = [(root, False) for root in reversed(list(roots))]
    while stack:
        node, expanded = stack.pop()
        if node in order:
            continue
        if expanded:
            order[node] = None
        else:
            stack.append((node, True))
            stack.extend((arg, False) for arg in reversed(node.args))
    return list(order)


class Program:
    """Expressions compiled for repeated evaluation.

    Parameters
    ----------
    roots
        Expressions to compute, by name.
    """

    def __init__(self, roots: Mapping[str, Expression]) -> None:
        order = topological(roots.values())
        place = {node: k for k, node in enumerate(order)}
        self._roots = {name: place[root] for name, root in roots.items()}
        self._symbols = [(k, str(n.payload)) for k, n in enumerate(order) if n.op == "symbol"]
        self._constants = [(k, n.payload) for k, n in enumerate(order) if n.op == "constant"]
        self._operations = [
            (k, OPERATIONS[n.op], [place[arg] for arg in n.args])
            for k, n in enumerate(order)
            if n.op in OPERATIONS
        ]
        self._size = len(order)

    def __call__(self, symbols: Mapping[str, Value]) -> dict[str, Value]:
        """Values of all roots by name.

        Raises
        ------
        KeyError
            A symbol of the expressions has no value in `symbols`.
        """
        values: list[Value] = [None] * self._size
        for k, name in self._symbols:
            values[k] = symbols[name]
        for k, constant in self._constants:
            values[k] = constant
        for k, operation, args in self._operations:
            values[k] = operation(*[values[arg] for arg in args])
        return {name: values[k] for name, k in self._roots.items()}


def evaluate(roots: Mapping[str, Expression], symbols: Mapping[str, Value]) -> dict[str, Value]:
    """Values of all roots by name, from values of all symbols; `Program` is for repeated use."""
    return Program(roots)(symbols)
