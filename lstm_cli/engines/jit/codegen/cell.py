"""Vector instructions for a cell's equations: gates, states and activations.

The input is any expression graph, so optimizer updates and losses use this emitter too. Every
vector length gets the same operations in the same order. They differ from the graph in two ways,
which keep NaN and round less often. A product that is only added becomes one fused multiply-add.
Divisions are deferred and merged, since one division takes as long as ten products.

tanh and sigmoid are fractions. If a fraction is only a factor of one product, the numerators and
the denominators are multiplied, then divided once. So i g of an LSTM (sigmoid times tanh) takes one
division; f c_prev is c_prev over the denominator of f. Numerators are bounded and denominators at
least 1, so finite numbers never yield 0 / 0 or infinity / infinity. One result differs: if the
product of two denominators overflows, the result is 0. The exact value is at most 1e-30 (float) or
1e-290 (double). A quotient of the graph itself has no such bounds and is divided at once. So is a
fraction with a third factor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from lstm_cli.cells.expression import Expression, topological
from lstm_cli.engines.jit.codegen import vector_math
from lstm_cli.engines.jit.codegen.ir import Function, Value, VectorType, fma


@dataclass(frozen=True)
class DeferredFraction:
    """A deferred division.

    Attributes
    ----------
    numerator, denominator
        Values of the fraction. A numerator of None is 1.
    merged
        True if the fraction is a product of two fractions.
    """

    numerator: Value | None
    denominator: Value
    merged: bool = False


@dataclass(frozen=True)
class DeferredProduct:
    """A deferred multiplication."""

    a: Value
    b: Value


Deferred: TypeAlias = Value | DeferredFraction | DeferredProduct


def emit(
    f: Function, vector: VectorType, roots: Mapping[str, Expression], symbols: Mapping[str, Value]
) -> dict[str, Value]:
    """Emit instructions that compute expressions. Returns the values by name of root.

    Parameters
    ----------
    roots
        Expressions by name.
    symbols
        Vector of every symbol; a scalar is in all lanes of its vector.

    Raises
    ------
    KeyError
        A symbol of the expressions has no value.
    """
    order = _longest_wait_first(topological(roots.values()))
    emitter = _Emitter(f, vector, symbols, _single_readers(order, roots))
    for node in order:
        emitter.emit(node)
    return {name: emitter.value(root) for name, root in roots.items()}


def _longest_wait_first(order: list[Expression]) -> list[Expression]:
    """Arguments before the operations that read them, and the longest chain of operations first.

    A processor starts ready operations in their order in the code. The output gate of an LSTM
    must not delay the three gates that c depends on.
    """
    chain = dict.fromkeys(order, 0)
    for node in reversed(order):
        for arg in node.args:
            chain[arg] = max(chain[arg], chain[node] + 1)
    return sorted(order, key=lambda node: -chain[node])


def _single_readers(
    order: list[Expression], roots: Mapping[str, Expression]
) -> dict[Expression, str]:
    """Operation that reads a node, for nodes that are read once and are no root."""
    uses = Counter(arg for node in order for arg in node.args)
    uses.update(roots.values())
    return {arg: node.op for node in order for arg in node.args if uses[arg] == 1}


class _Emitter:
    """Emitter of the nodes of a graph, which keeps the value of each node."""

    def __init__(
        self,
        f: Function,
        vector: VectorType,
        symbols: Mapping[str, Value],
        readers: Mapping[Expression, str],
    ) -> None:
        self.f, self.vector, self.symbols, self.readers = f, vector, symbols, readers
        self._values: dict[Expression, Deferred] = {}

    def emit(self, node: Expression) -> None:
        """Emit one node, whose arguments have been emitted."""
        if node.op == "symbol":
            self._values[node] = self.symbols[str(node.payload)]
        elif node.op == "constant":
            self._values[node] = self.vector.number(float(str(node.payload)))
        elif node.op in ("tanh", "sigmoid"):
            self._values[node] = self._fraction(node)
        else:
            self._values[node] = _EMITTED[node.op](self, *node.args)
        self._settle(node)

    def value(self, node: Expression) -> Value:
        """The value of `node`. If its operation is deferred, emit the operation now."""
        known = self._values[node]
        if not isinstance(known, Value):
            known = self._values[node] = self._emit_deferred(known)
        return known

    def _settle(self, node: Expression) -> None:
        """Emit a deferred operation that its only reader cannot merge."""
        known, reader = self._values[node], self.readers.get(node)
        divided = isinstance(known, DeferredFraction) and reader != "multiply"
        multiplied = isinstance(known, DeferredProduct) and reader not in ("add", "subtract")
        if divided or multiplied:
            self.value(node)

    def _emit_deferred(self, pending: DeferredFraction | DeferredProduct) -> Value:
        if isinstance(pending, DeferredProduct):
            return self.f.fmul(pending.a, pending.b)
        numerator = pending.numerator or self.vector.number(1.0)
        return self.f.fdiv(numerator, pending.denominator)

    def _fraction(self, node: Expression) -> DeferredFraction:
        x = self.value(node.args[0])
        if node.op == "tanh":
            return DeferredFraction(*vector_math.tanh_fraction(self.f, self.vector, x))
        return DeferredFraction(None, vector_math.sigmoid_fraction(self.f, self.vector, x)[1])

    def _multiply(self, a: Expression, b: Expression) -> Deferred:
        first, second = self._values[a], self._values[b]
        if isinstance(second, DeferredFraction) and not isinstance(first, DeferredFraction):
            a, b, first, second = b, a, second, first
        if isinstance(first, DeferredFraction) and not first.merged:
            if isinstance(second, DeferredFraction) and not second.merged:
                return self._merged(first, second)
            if first.numerator is None:
                return self.f.fdiv(self.value(b), first.denominator)
        return DeferredProduct(self.value(a), self.value(b))

    def _merged(self, a: DeferredFraction, b: DeferredFraction) -> DeferredFraction:
        numerators = [n for n in (a.numerator, b.numerator) if n is not None]
        if len(numerators) == 2:
            numerators = [self.f.fmul(*numerators)]
        numerator = numerators[0] if numerators else None
        return DeferredFraction(numerator, self.f.fmul(a.denominator, b.denominator), merged=True)

    def _add(self, a: Expression, b: Expression) -> Value:
        left, right = self._values[a], self._values[b]
        if isinstance(left, DeferredProduct):
            return self._fma(left.a, left.b, self.value(b))
        if isinstance(right, DeferredProduct):
            return self._fma(right.a, right.b, self.value(a))
        return self.f.fadd(self.value(a), self.value(b))

    def _subtract(self, a: Expression, b: Expression) -> Value:
        left, right = self._values[a], self._values[b]
        if isinstance(left, DeferredProduct):
            return self._fma(left.a, left.b, self.f.fneg(self.value(b)))
        if isinstance(right, DeferredProduct):
            return self._fma(self.f.fneg(right.a), right.b, self.value(a))
        return self.f.fsub(self.value(a), self.value(b))

    def _fma(self, a: Value, b: Value, c: Value) -> Value:
        return fma(self.f, self.vector, a, b, c)

    def _clip(self, x: Expression, low: Expression, high: Expression) -> Value:
        limited = vector_math.at_least(self.f, self.value(x), self.value(low))
        return vector_math.at_most(self.f, limited, self.value(high))

    def _exp(self, x: Expression) -> Value:
        return vector_math.exp(self.f, self.vector, self.value(x))

    def _log1p(self, x: Expression) -> Value:
        return vector_math.log1p(self.f, self.vector, self.value(x))

    def _sqrt(self, x: Expression) -> Value:
        return vector_math.sqrt(self.f, self.vector, self.value(x))

    def _select(self, condition: Expression, yes: Expression, no: Expression) -> Value:
        return self.f.select(*map(self.value, (condition, yes, no)))


_EMITTED: Mapping[str, Callable[..., Deferred]] = {
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
