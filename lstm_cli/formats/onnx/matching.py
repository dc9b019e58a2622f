"""Parts of a cell's step that is matched: gates, products, sums."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lstm_cli.cells import Activation
from lstm_cli.formats.onnx.arithmetic import terms
from lstm_cli.formats.onnx.values import Activated, Linear, Product, Term, Vector, Weight, Zeros
from lstm_cli.formats.onnx.vectors import complete, same_array, same_vector

IDENTITY = Activation("identity")


@dataclass(frozen=True, eq=False)
class Gate:
    """A pre-activation: x times `x`, plus h_prev times `h`, plus `bias`.

    `h_bias` is that of the recurrent product alone, where the cell keeps it apart.
    """

    x: Weight | None
    h: Weight | None
    bias: Weight | None
    h_bias: Weight | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a cell.

    Attributes
    ----------
    options
        As the config has them.
    gates
        By native letter.
    source
        What it reads.
    h_prev, c_prev
        States before it; None where they are not there because they are 0.
    """

    kind: str
    options: dict[str, Any]
    gates: dict[str, Gate]
    source: Vector
    h_prev: Vector | None
    c_prev: Vector | None = field(default=None)

    @property
    def first(self) -> bool:
        """Whether nothing comes before it."""
        return self.h_prev is None or isinstance(self.h_prev.atom, Zeros)


def same_state(one: Vector | None, other: Vector | None) -> bool:
    """Whether both are the same state; zeros are the same wherever they were made."""
    if one is None or other is None:
        return one is other
    if isinstance(one.atom, Zeros) and isinstance(other.atom, Zeros):
        return one.pick.size == other.pick.size
    return same_vector(one, other)


def same_gate(one: Gate, other: Gate) -> bool:
    """Whether two steps' gates have the same weights, as far as both show them."""
    return all(
        _same(getattr(one, name), getattr(other, name)) for name in ("x", "h", "bias", "h_bias")
    )


def _same(one: Weight | None, other: Weight | None) -> bool:
    if one is None or other is None:
        return True
    return same_array(one.array, other.array)


def sides(vector: Vector) -> Iterator[tuple[Vector, Vector]]:
    """Both orders of a product's factors."""
    if isinstance(vector.atom, Product) and complete(vector):
        yield vector.atom.left, vector.atom.right
        yield vector.atom.right, vector.atom.left


def summands_of(vector: Vector) -> tuple[Vector, Vector] | None:
    """The two products that a state is the sum of."""
    atom = vector.atom
    if not isinstance(atom, Linear) or not complete(vector) or not nothing(atom.bias):
        return None
    if len(atom.terms) != 2 or not all(term.weight.identity for term in atom.terms):
        return None
    first, second = (term.source for term in atom.terms)
    if isinstance(first.atom, Product) and isinstance(second.atom, Product):
        return first, second
    return None


def opened(vector: Vector) -> tuple[Activation, Vector]:
    """An activation, and what it is of."""
    atom = vector.atom
    if isinstance(atom, Activated) and complete(vector) and vector.step is None:
        return atom.activation, atom.source
    return IDENTITY, vector


def one_minus(vector: Vector) -> Vector | None:
    """v, where the vector is 1 - v."""
    parts, bias = terms(vector)
    if len(parts) != 1 or not parts[0].weight.diagonal or bias is None:
        return None
    if (parts[0].weight.array == -1).all() and (bias.array == 1).all():
        return parts[0].source
    return None


def gate_of(pre: Vector, h_prev: Vector | None) -> tuple[Gate, Vector | None, list[Term]] | None:
    """A pre-activation's weights, what it reads, and summands of another kind."""
    parts, bias = terms(pre)
    x: Term | None = None
    h: Term | None = None
    others = []
    for part in parts:
        if part.weight.diagonal:
            others.append(part)
        elif h is None and h_prev is not None and same_state(part.source, h_prev):
            h = part
        elif x is None:
            x = part
        else:
            others.append(part)
    gate = Gate(x.weight if x else None, h.weight if h else None, bias)
    return gate, (x.source if x else None), others


def gates_of(
    pre: dict[str, Vector], h_prev: Vector | None
) -> tuple[dict[str, Gate], Vector] | None:
    """Several gates that read the same; None if they do not, or are more than that."""
    gates: dict[str, Gate] = {}
    source: Vector | None = None
    for letter, vector in pre.items():
        found = gate_of(vector, h_prev)
        if found is None or found[2] or found[1] is None:
            return None
        if source is not None and not same_vector(source, found[1]):
            return None
        gates[letter], source = found[0], found[1]
    return None if source is None else (gates, source)


def nothing(bias: Weight | None) -> bool:
    return bias is None or not bias.array.any()


def negative(weight: Weight) -> bool:
    return weight.diagonal and bool((weight.array == -1).all())


def whole_terms(vector: Vector) -> tuple[tuple[Term, ...], Weight | None]:
    """The summands of all of an atom, a state's too."""
    atom = vector.atom
    return (atom.terms, atom.bias) if isinstance(atom, Linear) else ((), None)
