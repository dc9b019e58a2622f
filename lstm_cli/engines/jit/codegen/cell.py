"""An expression graph as instructions on vectors.

Same operations in the same order for every number of lanes. They differ from what the graph says
in two ways, both of which keep NaN and round less often: a product that is only added to something
becomes one fused multiply-add, and divisions are put off and merged, since one division
takes as long as ten products.

tanh and sigmoid are fractions. Where such a value is a factor of one product and nothing else, the
product is made of numerators and denominators, and divided once: i g of an LSTM, sigmoid times
tanh, takes one division; f c_prev is c_prev over the denominator of f. Numerators are bounded and
denominators at least 1, so no 0 / 0 and no infinity / infinity comes of finite numbers. What is
given up: where the product of two denominators overflows, two factors give 0 whose product
would have been at most 1e-30 (float) or 1e-290 (double). A quotient of the graph itself has no such
bounds and is divided at once; so is a fraction that meets a third factor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from lstm_cli.cells.expression import Expression, topological
from lstm_cli.engines.jit.codegen import vector_math
from lstm_cli.engines.jit.codegen.ir import Function, Lanes, Value, fma


@dataclass(frozen=True)
class Fraction:
    """A value that is not divided yet.

    Attributes
    ----------
    numerator
        None for 1.
    merged
        Whether it is a product of two.
    """

    numerator: Value | None
    denominator: Value
    merged: bool = False


@dataclass(frozen=True)
class Product:
    """A value that is not multiplied yet."""

    a: Value
    b: Value


Pending: TypeAlias = Value | Fraction | Product


def emit(
    f: Function, lanes: Lanes, roots: Mapping[str, Expression], symbols: Mapping[str, Value]
) -> dict[str, Value]:
    """The instructions that compute `roots`.

    Parameters
    ----------
    symbols
        The vector of every symbol; a scalar in every lane of one.

    Raises
    ------
    KeyError
        A symbol of the expressions has no value.
    """
    order = _longest_wait_first(topological(roots.values()))
    emitter = _Emitter(f, lanes, symbols, _single_readers(order, roots))
    for node in order:
        emitter.emit(node)
    return {name: emitter.value(root) for name, root in roots.items()}


def _longest_wait_first(order: list[Expression]) -> list[Expression]:
    """Arguments before what reads them, and first what the longest chain of operations waits for.

    A processor takes what is ready in the order in which it is written: the output gate of an
    LSTM is not to delay the three gates from which c is made.
    """
    chain = dict.fromkeys(order, 0)
    for node in reversed(order):
        for arg in node.args:
            chain[arg] = max(chain[arg], chain[node] + 1)
    return sorted(order, key=lambda node: -chain[node])


def _single_readers(
    order: list[Expression], roots: Mapping[str, Expression]
) -> dict[Expression, str]:
    """What is read once only, and no root: the operation that reads it."""
    uses = Counter(arg for node in order for arg in node.args)
    uses.update(roots.values())
    return {arg: node.op for node in order for arg in node.args if uses[arg] == 1}


class _Emitter:
    """Values of nodes as they become known."""

    def __init__(
        self,
        f: Function,
        lanes: Lanes,
        symbols: Mapping[str, Value],
        readers: Mapping[Expression, str],
    ) -> None:
        self.f, self.lanes, self.symbols, self.readers = f, lanes, symbols, readers
        self._known: dict[Expression, Pending] = {}

    def emit(self, node: Expression) -> None:
        """Make the value of `node` known; all that it reads is known."""
        if node.op == "symbol":
            self._known[node] = self.symbols[str(node.payload)]
        elif node.op == "constant":
            self._known[node] = self.lanes.number(float(str(node.payload)))
        elif node.op in ("tanh", "sigmoid"):
            self._known[node] = self._fraction(node)
        else:
            self._known[node] = _EMITTED[node.op](self, *node.args)
        self._settle(node)

    def value(self, node: Expression) -> Value:
        """The value of `node`, its division or product made if it was pending."""
        known = self._known[node]
        if not isinstance(known, Value):
            known = self._known[node] = self._made(known)
        return known

    def _settle(self, node: Expression) -> None:
        """Leave pending only what its one reader can merge."""
        known, reader = self._known[node], self.readers.get(node)
        divided = isinstance(known, Fraction) and reader != "multiply"
        multiplied = isinstance(known, Product) and reader not in ("add", "subtract")
        if divided or multiplied:
            self.value(node)

    def _made(self, pending: Fraction | Product) -> Value:
        if isinstance(pending, Product):
            return self.f.fmul(pending.a, pending.b)
        numerator = pending.numerator or self.lanes.number(1.0)
        return self.f.fdiv(numerator, pending.denominator)

    def _fraction(self, node: Expression) -> Fraction:
        x = self.value(node.args[0])
        if node.op == "tanh":
            return Fraction(*vector_math.tanh_fraction(self.f, self.lanes, x))
        return Fraction(None, vector_math.sigmoid_fraction(self.f, self.lanes, x)[1])

    def _multiply(self, a: Expression, b: Expression) -> Pending:
        left, right = self._known[a], self._known[b]
        if isinstance(right, Fraction) and not isinstance(left, Fraction):
            a, b, left, right = b, a, right, left
        if isinstance(left, Fraction) and not left.merged:
            if isinstance(right, Fraction) and not right.merged:
                return self._merged(left, right)
            if left.numerator is None:
                return self.f.fdiv(self.value(b), left.denominator)
        return Product(self.value(a), self.value(b))

    def _merged(self, a: Fraction, b: Fraction) -> Fraction:
        numerators = [n for n in (a.numerator, b.numerator) if n is not None]
        if len(numerators) == 2:
            numerators = [self.f.fmul(*numerators)]
        numerator = numerators[0] if numerators else None
        return Fraction(numerator, self.f.fmul(a.denominator, b.denominator), merged=True)

    def _add(self, a: Expression, b: Expression) -> Value:
        left, right = self._known[a], self._known[b]
        if isinstance(left, Product):
            return self._fma(left.a, left.b, self.value(b))
        if isinstance(right, Product):
            return self._fma(right.a, right.b, self.value(a))
        return self.f.fadd(self.value(a), self.value(b))

    def _subtract(self, a: Expression, b: Expression) -> Value:
        left, right = self._known[a], self._known[b]
        if isinstance(left, Product):
            return self._fma(left.a, left.b, self.f.fneg(self.value(b)))
        if isinstance(right, Product):
            return self._fma(self.f.fneg(right.a), right.b, self.value(a))
        return self.f.fsub(self.value(a), self.value(b))

    def _fma(self, a: Value, b: Value, c: Value) -> Value:
        return fma(self.f, self.lanes, a, b, c)

    def _clip(self, x: Expression, low: Expression, high: Expression) -> Value:
        limited = vector_math.at_least(self.f, self.value(x), self.value(low))
        return vector_math.at_most(self.f, limited, self.value(high))

    def _exp(self, x: Expression) -> Value:
        return vector_math.exp(self.f, self.lanes, self.value(x))

    def _log1p(self, x: Expression) -> Value:
        return vector_math.log1p(self.f, self.lanes, self.value(x))

    def _sqrt(self, x: Expression) -> Value:
        return vector_math.sqrt(self.f, self.lanes, self.value(x))

    def _select(self, condition: Expression, yes: Expression, no: Expression) -> Value:
        return self.f.select(*map(self.value, (condition, yes, no)))


_EMITTED: Mapping[str, Callable[..., Pending]] = {
    "add": _Emitter._add,
    "subtract": _Emitter._subtract,
    "multiply": _Emitter._multiply,
    "divide": lambda e, a, b: e.f.fdiv(e.value(a), e.value(b)),
    "negative": lambda e, a: e.f.fneg(e.value(a)),
    "less": lambda e, a, b: e.f.fcompare("olt", e.value(a), e.value(b)),
    "less_equal": lambda e, a, b: e.f.fcompare("ole", e.value(a), e.value(b)),
    "exp": _Emitter._exp,
    "log1p": _Emitter._log1p,
    "sqrt": _Emitter._sqrt,
    "select": _Emitter._select,
    "clip": _Emitter._clip,
}
