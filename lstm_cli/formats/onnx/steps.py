"""One step of an unrolled recurrence: which cell it is, matched against the cells' equations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lstm_cli.cells import Activation
from lstm_cli.formats.onnx.arithmetic import terms
from lstm_cli.formats.onnx.values import (
    Activated,
    Linear,
    Product,
    Term,
    Vector,
    Weight,
    Zeros,
    complete,
    same_array,
    same_vector,
)

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


def match(h: Vector) -> Step | None:
    """The step of a cell whose output is `h`, or None."""
    if not complete(h) or h.step is not None:
        return None
    return lstm_step(h) or gru_step(h) or rnn_step(h)


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


def _sides(vector: Vector) -> Iterator[tuple[Vector, Vector]]:
    """Both orders of a product's factors."""
    if isinstance(vector.atom, Product) and complete(vector):
        yield vector.atom.left, vector.atom.right
        yield vector.atom.right, vector.atom.left


def _summands(vector: Vector) -> tuple[Vector, Vector] | None:
    """The two products that a state is the sum of."""
    atom = vector.atom
    if not isinstance(atom, Linear) or not complete(vector) or not _none(atom.bias):
        return None
    if len(atom.terms) != 2 or not all(term.weight.identity for term in atom.terms):
        return None
    first, second = (term.source for term in atom.terms)
    if isinstance(first.atom, Product) and isinstance(second.atom, Product):
        return first, second
    return None


def _opened(vector: Vector) -> tuple[Activation, Vector]:
    """An activation, and what it is of."""
    atom = vector.atom
    if isinstance(atom, Activated) and complete(vector) and vector.step is None:
        return atom.activation, atom.source
    return IDENTITY, vector


def _one_minus(vector: Vector) -> Vector | None:
    """v, where the vector is 1 - v."""
    parts, bias = terms(vector)
    if len(parts) != 1 or not parts[0].weight.diagonal or bias is None:
        return None
    if (parts[0].weight.array == -1).all() and (bias.array == 1).all():
        return parts[0].source
    return None


def _gate(pre: Vector, h_prev: Vector | None) -> tuple[Gate, Vector | None, list[Term]] | None:
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


def _gates(pre: dict[str, Vector], h_prev: Vector | None) -> tuple[dict[str, Gate], Vector] | None:
    """Several gates that read the same; None if they do not, or are more than that."""
    gates: dict[str, Gate] = {}
    source: Vector | None = None
    for letter, vector in pre.items():
        found = _gate(vector, h_prev)
        if found is None or found[2] or found[1] is None:
            return None
        if source is not None and not same_vector(source, found[1]):
            return None
        gates[letter], source = found[0], found[1]
    return None if source is None else (gates, source)


def lstm_step(h: Vector) -> Step | None:
    """h = o act(c), c = f c_prev + i g."""
    for out, cell in _sides(h):
        cell_activation, c = _opened(cell)
        summands = _summands(c)
        if summands is None:
            continue
        recurrent, pre_o = _opened(out)
        for keep, enter in (summands, summands[::-1]):
            for forget, c_prev in _sides(keep):
                if not isinstance(c_prev.atom, Zeros) and _summands(c_prev) is None:
                    continue
                for i, g in _sides(enter):
                    step = _lstm(forget, i, g, pre_o, recurrent, cell_activation, c_prev)
                    if step is not None:
                        return step
    return None


def _lstm(
    forget: Vector,
    i: Vector,
    g: Vector,
    pre_o: Vector,
    recurrent: Activation,
    cell_activation: Activation,
    c_prev: Vector,
) -> Step | None:
    (own, pre_i), (activation, pre_g) = _opened(i), _opened(g)
    pre = {"i": pre_i, "g": pre_g, "o": pre_o}
    left = _one_minus(forget)
    coupled = left is not None and same_vector(left, i)
    if not coupled:
        other, pre["f"] = _opened(forget)
        if other != recurrent:
            return None
    h_prev = _state_before(pre_o, c_prev)
    found = _gates(pre, h_prev) if own == recurrent else None
    if found is None:
        return None
    options = {
        "recurrent_activation": recurrent,
        "activation": activation,
        "cell_activation": cell_activation,
        "coupled_input_forget": coupled,
    }
    return Step("lstm", options, found[0], found[1], h_prev, c_prev)


def _state_before(pre: Vector, c_prev: Vector) -> Vector | None:
    """The h that goes with a c, among what a gate reads."""
    for part in terms(pre)[0]:
        source = part.source
        if isinstance(source.atom, Zeros) and isinstance(c_prev.atom, Zeros):
            return source
        for _, cell in _sides(source):
            if same_vector(_opened(cell)[1], c_prev):
                return source
    return None


def gru_step(h: Vector) -> Step | None:
    """h = z h_prev + (1 - z) n, or n + z (h_prev - n)."""
    summands = _summands(h)
    if summands is None:
        return _gru_of_difference(h)
    for keep, enter in (summands, summands[::-1]):
        for z, h_prev in _sides(keep):
            for rest, n in _sides(enter):
                left = _one_minus(rest)
                if left is not None and same_vector(left, z):
                    step = _gru(z, n, h_prev)
                    if step is not None:
                        return step
    return None


def _gru_of_difference(h: Vector) -> Step | None:
    parts, bias = _whole_terms(h)
    if len(parts) != 2 or bias is not None or not all(part.weight.identity for part in parts):
        return None
    for product, n in (parts, parts[::-1]):
        for z, difference in _sides(product.source):
            left, shift = terms(difference)
            less = [t for t in left if same_vector(t.source, n.source) and _negative(t.weight)]
            past = [t.source for t in left if t not in less and t.weight.identity]
            if len(less) != 1 or len(past) != len(left) - 1 or len(past) > 1 or not _none(shift):
                continue
            h_prev = past[0] if past else _zeros(_opened(z)[1])
            if h_prev is not None:
                return _gru(z, n.source, h_prev)
    return None


def _whole_terms(vector: Vector) -> tuple[tuple[Term, ...], Weight | None]:
    """The summands of all of an atom, a state's too."""
    atom = vector.atom
    return (atom.terms, atom.bias) if isinstance(atom, Linear) else ((), None)


def _none(bias: Weight | None) -> bool:
    return bias is None or not bias.array.any()


def _negative(weight: Weight) -> bool:
    return weight.diagonal and bool((weight.array == -1).all())


def _zeros(pre: Vector) -> Vector | None:
    """The zeros that a gate reads."""
    sources = [part.source for part in terms(pre)[0]]
    return next((source for source in sources if isinstance(source.atom, Zeros)), None)


def _gru(z: Vector, n: Vector, h_prev: Vector) -> Step | None:
    (recurrent, pre_z), (activation, pre_n) = _opened(z), _opened(n)
    found = _gate(pre_n, h_prev)
    if found is None or len(found[2]) != 1:
        return None
    own, source, (rest,) = found
    reset_after = rest.weight.identity
    for r, past in _sides(rest.source):
        other, pre_r = _opened(r)
        if other != recurrent:
            continue
        if reset_after:
            product = _gate(past, h_prev)
            if product is None or product[0].x is not None or product[2]:
                continue
            candidate = Gate(own.x, product[0].h, own.bias, product[0].bias)
        elif not rest.weight.diagonal and same_state(past, h_prev):
            candidate = Gate(own.x, rest.weight, own.bias)
        else:
            continue
        gates = _gates({"r": pre_r, "z": pre_z}, h_prev)
        if gates is not None and source is not None and same_vector(source, gates[1]):
            options = {
                "recurrent_activation": recurrent,
                "activation": activation,
                "reset_after": reset_after,
            }
            return Step("gru", options, gates[0] | {"n": candidate}, source, h_prev)
    return None


def rnn_step(h: Vector) -> Step | None:
    """h = act(x W + h_prev U + b)."""
    activation, pre = _opened(h)
    if not isinstance(pre.atom, Linear):
        return None
    for part in terms(pre)[0]:
        source = part.source
        before = isinstance(source.atom, Zeros)
        if not before and source.step is None and complete(source):
            inner, last = _opened(source)
            before = inner == activation and isinstance(last.atom, Linear)
        if before and not part.weight.diagonal and source.pick.size == h.pick.size:
            found = _gates({"h": pre}, source)
            if found is not None:
                return Step("rnn", {"activation": activation}, found[0], found[1], source)
    return None


def rnn_start(h: Vector, like: Step) -> Step | None:
    """The first step of a simple recurrence, whose product with zeros is left out."""
    activation, pre = _opened(h)
    found = _gates({"h": pre}, None) if isinstance(pre.atom, Linear) else None
    if like.kind != "rnn" or found is None or activation != like.options["activation"]:
        return None
    return Step("rnn", {"activation": activation}, found[0], found[1], None)
