"""Matcher of one step of an unrolled loop against the equations of LSTM, GRU and RNN cells.

`match_step` takes the symbolic output h of one step, and returns the cell, its gates' weights and
the previous states. The factors of a product and the summands of a sum may have any order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lstm_cli.cells import Activation
from lstm_cli.formats.onnx.ops_math import linear_terms
from lstm_cli.formats.onnx.symbolic import (
    ActivationOutput,
    ElementwiseProduct,
    FeatureVector,
    LinearMap,
    Term,
    Weight,
    ZeroState,
    is_complete,
    same_array,
    same_vector,
)

IDENTITY = Activation("identity")


@dataclass(frozen=True, eq=False)
class GateWeights:
    """Weights of one gate: its pre-activation is input * `x` + h_prev * `h` + `bias`.

    `h_bias` is the bias of the recurrent product alone (the candidate of a GRU), else None.
    """

    x: Weight | None
    h: Weight | None
    bias: Weight | None
    h_bias: Weight | None = None


@dataclass(frozen=True, eq=False)
class CellStep:
    """One step of a recurrent cell.

    Attributes
    ----------
    kind, options
        Cell and options, as in the config.
    gates
        Weights of each gate by native letter.
    source
        Input of the step.
    h_prev, c_prev
        States before the step; None for a state of zeros that the graph leaves out.
    """

    kind: str
    options: dict[str, Any]
    gates: dict[str, GateWeights]
    source: FeatureVector
    h_prev: FeatureVector | None
    c_prev: FeatureVector | None = field(default=None)

    @property
    def is_first(self) -> bool:
        """True for the first step of a loop."""
        return self.h_prev is None or isinstance(self.h_prev.signal, ZeroState)


def same_state(one: FeatureVector | None, other: FeatureVector | None) -> bool:
    """True if both vectors are the same state; all zeros of one size are the same state."""
    if one is None or other is None:
        return one is other
    if isinstance(one.signal, ZeroState) and isinstance(other.signal, ZeroState):
        return one.indices.size == other.indices.size
    return same_vector(one, other)


def same_gate(one: GateWeights, other: GateWeights) -> bool:
    """True if the gates of two steps have the same weights; a missing weight fits any weight."""
    pairs = ((one.x, other.x), (one.h, other.h), (one.bias, other.bias), (one.h_bias, other.h_bias))
    return all(a is None or b is None or same_array(a.array, b.array) for a, b in pairs)


def factor_orders(vector: FeatureVector) -> Iterator[tuple[FeatureVector, FeatureVector]]:
    """Yield the two factors of a product in both orders; nothing for another vector."""
    if isinstance(vector.signal, ElementwiseProduct) and is_complete(vector):
        yield vector.signal.first, vector.signal.second
        yield vector.signal.second, vector.signal.first


def summed_products(vector: FeatureVector) -> tuple[FeatureVector, FeatureVector] | None:
    """Both products of a state that is the sum of two elementwise products, else None."""
    signal = vector.signal
    if not isinstance(signal, LinearMap) or not is_complete(vector) or not is_zero(signal.bias):
        return None
    if len(signal.terms) != 2 or not all(term.weight.identity for term in signal.terms):
        return None
    first, second = (term.source for term in signal.terms)
    are_products = all(isinstance(v.signal, ElementwiseProduct) for v in (first, second))
    return (first, second) if are_products else None


def split_activation(vector: FeatureVector) -> tuple[Activation, FeatureVector]:
    """Activation of a vector and its argument; the identity for any other vector."""
    signal = vector.signal
    if isinstance(signal, ActivationOutput) and is_complete(vector) and vector.step is None:
        return signal.activation, signal.source
    return IDENTITY, vector


def one_minus(vector: FeatureVector) -> FeatureVector | None:
    """Return v if the vector is 1 - v, else None."""
    parts, bias = linear_terms(vector)
    if len(parts) != 1 or not parts[0].weight.diagonal or bias is None:
        return None
    if (parts[0].weight.array == -1).all() and (bias.array == 1).all():
        return parts[0].source
    return None


def split_gate(
    pre: FeatureVector, h_prev: FeatureVector | None
) -> tuple[GateWeights, FeatureVector | None, list[Term]]:
    """Split a pre-activation into the gate's weights, its input, and all other summands."""
    parts, bias = linear_terms(pre)
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
    gate = GateWeights(x.weight if x else None, h.weight if h else None, bias)
    return gate, (x.source if x else None), others


def split_gates(
    pre: dict[str, FeatureVector], h_prev: FeatureVector | None
) -> tuple[dict[str, GateWeights], FeatureVector] | None:
    """Split the pre-activations of several gates; None unless all gates have the same input."""
    gates: dict[str, GateWeights] = {}
    source: FeatureVector | None = None
    for letter, vector in pre.items():
        gate, gate_source, others = split_gate(vector, h_prev)
        if others or gate_source is None:
            return None
        if source is not None and not same_vector(source, gate_source):
            return None
        gates[letter], source = gate, gate_source
    return None if source is None else (gates, source)


def is_zero(bias: Weight | None) -> bool:
    """True for an absent bias, or a bias of zeros."""
    return bias is None or not bias.array.any()


def is_minus_one(weight: Weight) -> bool:
    """True for the identity matrix times -1."""
    return weight.diagonal and bool((weight.array == -1).all())


def state_terms(vector: FeatureVector) -> tuple[tuple[Term, ...], Weight | None]:
    """Summands and bias of a linear map; unlike `linear_terms`, also those of a cell's state."""
    signal = vector.signal
    return (signal.terms, signal.bias) if isinstance(signal, LinearMap) else ((), None)


def match_step(h: FeatureVector) -> CellStep | None:
    """Match the step of a cell whose output is `h`; None if no cell fits."""
    if not is_complete(h) or h.step is not None:
        return None
    return lstm_step(h) or gru_step(h) or rnn_step(h)


def lstm_step(h: FeatureVector) -> CellStep | None:
    """LSTM: h = o * act(c), c = f * c_prev + i * g."""
    for out, cell in factor_orders(h):
        cell_activation, c = split_activation(cell)
        summands = summed_products(c)
        if summands is None:
            continue
        recurrent, pre_o = split_activation(out)
        for keep, enter in (summands, summands[::-1]):
            for forget, c_prev in factor_orders(keep):
                if not isinstance(c_prev.signal, ZeroState) and summed_products(c_prev) is None:
                    continue
                for i, g in factor_orders(enter):
                    step = _lstm(forget, i, g, pre_o, recurrent, cell_activation, c_prev)
                    if step is not None:
                        return step
    return None


def _lstm(
    forget: FeatureVector,
    i: FeatureVector,
    g: FeatureVector,
    pre_o: FeatureVector,
    recurrent: Activation,
    cell_activation: Activation,
    c_prev: FeatureVector,
) -> CellStep | None:
    (input_activation, pre_i), (activation, pre_g) = split_activation(i), split_activation(g)
    pre = {"i": pre_i, "g": pre_g, "o": pre_o}
    complement = one_minus(forget)
    coupled = complement is not None and same_vector(complement, i)
    if not coupled:
        other, pre["f"] = split_activation(forget)
        if other != recurrent:
            return None
    h_prev = _state_before(pre_o, c_prev)
    split = split_gates(pre, h_prev) if input_activation == recurrent else None
    if split is None:
        return None
    options = {
        "recurrent_activation": recurrent,
        "activation": activation,
        "cell_activation": cell_activation,
        "coupled_input_forget": coupled,
    }
    gates, source = split
    return CellStep("lstm", options, gates, source, h_prev, c_prev)


def _state_before(pre: FeatureVector, c_prev: FeatureVector) -> FeatureVector | None:
    """Previous h that belongs to the previous c, among the inputs of a gate."""
    for part in linear_terms(pre)[0]:
        source = part.source
        if isinstance(source.signal, ZeroState) and isinstance(c_prev.signal, ZeroState):
            return source
        for _, cell in factor_orders(source):
            if same_vector(split_activation(cell)[1], c_prev):
                return source
    return None


def gru_step(h: FeatureVector) -> CellStep | None:
    """GRU: h = z * h_prev + (1 - z) * n, or h = n + z * (h_prev - n)."""
    summands = summed_products(h)
    if summands is None:
        return _gru_of_difference(h)
    for keep, enter in (summands, summands[::-1]):
        for z, h_prev in factor_orders(keep):
            for rest, n in factor_orders(enter):
                complement = one_minus(rest)
                if complement is not None and same_vector(complement, z):
                    step = _gru(z, n, h_prev)
                    if step is not None:
                        return step
    return None


def _gru_of_difference(h: FeatureVector) -> CellStep | None:
    parts, bias = state_terms(h)
    if len(parts) != 2 or bias is not None or not all(part.weight.identity for part in parts):
        return None
    for product, n in (parts, parts[::-1]):
        for z, difference in factor_orders(product.source):
            summands, shift = linear_terms(difference)
            minus_n = [
                t for t in summands if same_vector(t.source, n.source) and is_minus_one(t.weight)
            ]
            states = [t.source for t in summands if t not in minus_n and t.weight.identity]
            is_difference = len(minus_n) == 1 and len(states) == len(summands) - 1 <= 1
            if not is_difference or not is_zero(shift):
                continue
            h_prev = states[0] if states else _zeros(split_activation(z)[1])
            if h_prev is not None:
                return _gru(z, n.source, h_prev)
    return None


def _zeros(pre: FeatureVector) -> FeatureVector | None:
    sources = [part.source for part in linear_terms(pre)[0]]
    return next((source for source in sources if isinstance(source.signal, ZeroState)), None)


def _gru(z: FeatureVector, n: FeatureVector, h_prev: FeatureVector) -> CellStep | None:
    (recurrent, pre_z), (activation, pre_n) = split_activation(z), split_activation(n)
    gate, source, others = split_gate(pre_n, h_prev)
    if len(others) != 1:
        return None
    (rest,) = others
    reset_after = rest.weight.identity
    for r, state in factor_orders(rest.source):
        reset_activation, pre_r = split_activation(r)
        if reset_activation != recurrent:
            continue
        if reset_after:
            product, _, other_terms = split_gate(state, h_prev)
            if product.x is not None or other_terms:
                continue
            candidate = GateWeights(gate.x, product.h, gate.bias, product.bias)
        elif not rest.weight.diagonal and same_state(state, h_prev):
            candidate = GateWeights(gate.x, rest.weight, gate.bias)
        else:
            continue
        gates = split_gates({"r": pre_r, "z": pre_z}, h_prev)
        if gates is not None and source is not None and same_vector(source, gates[1]):
            options = {
                "recurrent_activation": recurrent,
                "activation": activation,
                "reset_after": reset_after,
            }
            return CellStep("gru", options, gates[0] | {"n": candidate}, source, h_prev)
    return None


def rnn_step(h: FeatureVector) -> CellStep | None:
    """RNN: h = act(x W + h_prev U + b)."""
    activation, pre = split_activation(h)
    if not isinstance(pre.signal, LinearMap):
        return None
    for part in linear_terms(pre)[0]:
        source = part.source
        is_state = isinstance(source.signal, ZeroState)
        if not is_state and source.step is None and is_complete(source):
            inner_activation, inner = split_activation(source)
            is_state = inner_activation == activation and isinstance(inner.signal, LinearMap)
        if is_state and not part.weight.diagonal and source.indices.size == h.indices.size:
            split = split_gates({"h": pre}, source)
            if split is not None:
                gates, inputs = split
                return CellStep("rnn", {"activation": activation}, gates, inputs, source)
    return None


def rnn_start(h: FeatureVector, like: CellStep) -> CellStep | None:
    """First step of an RNN whose product with the state of zeros is left out.

    `like` is the second step of the loop.
    """
    activation, pre = split_activation(h)
    split = split_gates({"h": pre}, None) if isinstance(pre.signal, LinearMap) else None
    if like.kind != "rnn" or split is None or activation != like.options["activation"]:
        return None
    gates, source = split
    return CellStep("rnn", {"activation": activation}, gates, source, None)
