"""One step of an unrolled recurrence: which cell it is, matched against the cells' equations."""

from __future__ import annotations

from lstm_cli.cells import Activation
from lstm_cli.formats.onnx.arithmetic import terms
from lstm_cli.formats.onnx.matching import (
    Gate,
    Step,
    gate_of,
    gates_of,
    negative,
    nothing,
    one_minus,
    opened,
    same_state,
    sides,
    summands_of,
    whole_terms,
)
from lstm_cli.formats.onnx.values import Linear, Vector, Zeros
from lstm_cli.formats.onnx.vectors import complete, same_vector


def match(h: Vector) -> Step | None:
    """The step of a cell whose output is `h`, or None."""
    if not complete(h) or h.step is not None:
        return None
    return lstm_step(h) or gru_step(h) or rnn_step(h)


def lstm_step(h: Vector) -> Step | None:
    """h = o act(c), c = f c_prev + i g."""
    for out, cell in sides(h):
        cell_activation, c = opened(cell)
        summands = summands_of(c)
        if summands is None:
            continue
        recurrent, pre_o = opened(out)
        for keep, enter in (summands, summands[::-1]):
            for forget, c_prev in sides(keep):
                if not isinstance(c_prev.atom, Zeros) and summands_of(c_prev) is None:
                    continue
                for i, g in sides(enter):
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
    (own, pre_i), (activation, pre_g) = opened(i), opened(g)
    pre = {"i": pre_i, "g": pre_g, "o": pre_o}
    left = one_minus(forget)
    coupled = left is not None and same_vector(left, i)
    if not coupled:
        other, pre["f"] = opened(forget)
        if other != recurrent:
            return None
    h_prev = _state_before(pre_o, c_prev)
    found = gates_of(pre, h_prev) if own == recurrent else None
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
        for _, cell in sides(source):
            if same_vector(opened(cell)[1], c_prev):
                return source
    return None


def gru_step(h: Vector) -> Step | None:
    """h = z h_prev + (1 - z) n, or n + z (h_prev - n)."""
    summands = summands_of(h)
    if summands is None:
        return _gru_of_difference(h)
    for keep, enter in (summands, summands[::-1]):
        for z, h_prev in sides(keep):
            for rest, n in sides(enter):
                left = one_minus(rest)
                if left is not None and same_vector(left, z):
                    step = _gru(z, n, h_prev)
                    if step is not None:
                        return step
    return None


def _gru_of_difference(h: Vector) -> Step | None:
    parts, bias = whole_terms(h)
    if len(parts) != 2 or bias is not None or not all(part.weight.identity for part in parts):
        return None
    for product, n in (parts, parts[::-1]):
        for z, difference in sides(product.source):
            left, shift = terms(difference)
            less = [t for t in left if same_vector(t.source, n.source) and negative(t.weight)]
            past = [t.source for t in left if t not in less and t.weight.identity]
            if len(less) != 1 or len(past) != len(left) - 1 or len(past) > 1 or not nothing(shift):
                continue
            h_prev = past[0] if past else _zeros(opened(z)[1])
            if h_prev is not None:
                return _gru(z, n.source, h_prev)
    return None


def _zeros(pre: Vector) -> Vector | None:
    """The zeros that a gate reads."""
    sources = [part.source for part in terms(pre)[0]]
    return next((source for source in sources if isinstance(source.atom, Zeros)), None)


def _gru(z: Vector, n: Vector, h_prev: Vector) -> Step | None:
    (recurrent, pre_z), (activation, pre_n) = opened(z), opened(n)
    found = gate_of(pre_n, h_prev)
    if found is None or len(found[2]) != 1:
        return None
    own, source, (rest,) = found
    reset_after = rest.weight.identity
    for r, past in sides(rest.source):
        other, pre_r = opened(r)
        if other != recurrent:
            continue
        if reset_after:
            product = gate_of(past, h_prev)
            if product is None or product[0].x is not None or product[2]:
                continue
            candidate = Gate(own.x, product[0].h, own.bias, product[0].bias)
        elif not rest.weight.diagonal and same_state(past, h_prev):
            candidate = Gate(own.x, rest.weight, own.bias)
        else:
            continue
        gates = gates_of({"r": pre_r, "z": pre_z}, h_prev)
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
    activation, pre = opened(h)
    if not isinstance(pre.atom, Linear):
        return None
    for part in terms(pre)[0]:
        source = part.source
        before = isinstance(source.atom, Zeros)
        if not before and source.step is None and complete(source):
            inner, last = opened(source)
            before = inner == activation and isinstance(last.atom, Linear)
        if before and not part.weight.diagonal and source.pick.size == h.pick.size:
            found = gates_of({"h": pre}, source)
            if found is not None:
                return Step("rnn", {"activation": activation}, found[0], found[1], source)
    return None


def rnn_start(h: Vector, like: Step) -> Step | None:
    """The first step of a simple recurrence, whose product with zeros is left out."""
    activation, pre = opened(h)
    found = gates_of({"h": pre}, None) if isinstance(pre.atom, Linear) else None
    if like.kind != "rnn" or found is None or activation != like.options["activation"]:
        return None
    return Step("rnn", {"activation": activation}, found[0], found[1], None)
