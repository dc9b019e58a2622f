"""From the tensors of one recurrent module to its layers, with every shape checked."""

from __future__ import annotations

from lstm_cli.errors import Problem
from lstm_cli.formats.gates import NATIVE
from lstm_cli.formats.torch.modules import (
    Direction,
    Group,
    Recurrent,
    Tensors,
    problem,
    shape_of,
)

_KINDS = {len(gates): kind for kind, gates in NATIVE.items()}
_BIASES = ("bias_ih", "bias_hh")


class Unfit(Exception):  # noqa: N818 -- it carries a problem, and never leaves this package
    """A module that lstm-cli cannot represent."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem


def recurrent(group: Group) -> Recurrent:
    """The module's layers, first to last.

    Raises
    ------
    Unfit
        A tensor is missing, or of a shape that does not fit the others.
    """
    count = max(layer for layer, _ in group.parts) + 1
    both = any(reverse for _, reverse in group.parts)
    wanted = [
        (k, reverse) for k in range(count) for reverse in ([False, True] if both else [False])
    ]
    missing = next((place for place in wanted if place not in group.parts), None)
    if missing is not None:
        raise Unfit(problem(group, f"lacks {_named('weight_ih', missing, group)}"))
    sides = {place: _direction(group, place) for place in wanted}
    layers = tuple(
        tuple(sides[k, reverse] for reverse in ([False, True] if both else [False]))
        for k in range(count)
    )
    module = Recurrent(group.name, layers)
    _check_alike(group, module)
    return module


def _named(stem: str, place: tuple[int, bool], group: Group) -> str:
    if group.cell:
        return stem
    return f"{stem}_l{place[0]}" + ("_reverse" if place[1] else "")


def _direction(group: Group, place: tuple[int, bool]) -> Direction:
    tensors = group.parts[place]
    for stem in ("weight_ih", "weight_hh"):
        if stem not in tensors:
            raise Unfit(problem(group, f"lacks {_named(stem, place, group)}"))
    if ("bias_ih" in tensors) != ("bias_hh" in tensors):
        stem = next(stem for stem in _BIASES if stem not in tensors)
        raise Unfit(problem(group, f"has one bias of two: it lacks {_named(stem, place, group)}"))
    if any(0 in tensor.shape for tensor in tensors.values()):
        raise Unfit(problem(group, "has a tensor without values"))
    kind, H, P = _sizes(group, tensors)
    _check_shapes(group, tensors, len(NATIVE[kind]) * H)
    return Direction(kind, tensors["weight_ih"].shape[1], H, P, tensors)


def _sizes(group: Group, tensors: Tensors) -> tuple[str, int, int | None]:
    """Kind, H and P: weight_hh is (gates x H, H), or (4H, P) beside weight_hr (P, H)."""
    hh, hr = tensors["weight_hh"], tensors.get("weight_hr")
    shapes = [shape_of(t) for t in (hh, hr) if t is not None]
    fits = len(hh.shape) == 2 and (hr is None or len(hr.shape) == 2)
    if fits:
        rows, columns = hh.shape
        H = columns if hr is None else hr.shape[1]
        kind = None if rows % H else _KINDS.get(rows // H)
        if hr is None and kind is not None:
            return kind, H, None
        if hr is not None and kind == "lstm" and hr.shape[0] == columns:
            return kind, H, columns
    raise Unfit(
        problem(
            group,
            "is neither an LSTM, a GRU nor an RNN",
            ", ".join(shapes),
            "weight_hh is (4H, H), (3H, H) or (H, H) in these; with a projection (4H, P)",
        )
    )


def _check_shapes(group: Group, tensors: Tensors, rows: int) -> None:
    for stem, tensor in tensors.items():
        rank = 1 if stem in _BIASES else 2
        fits = len(tensor.shape) == rank and (stem == "weight_hr" or tensor.shape[0] == rows)
        if not fits:
            shape = f"({rows},)" if rank == 1 else f"({rows}, D)"
            raise Unfit(
                problem(group, f"has tensors that do not fit: expected {shape}", shape_of(tensor))
            )


def _check_alike(group: Group, module: Recurrent) -> None:
    """All directions and layers of one size, each layer reading what the one before gives."""
    first = module.layers[0][0]
    kinds = {(d.kind, d.hidden_size, d.projection_size) for layer in module.layers for d in layer}
    if len(kinds) > 1:
        raise Unfit(problem(group, "has layers or directions of different sizes"))
    size = module.input_size
    for k, layer in enumerate(module.layers):
        for direction in layer:
            if direction.input_size != size:
                tensor = direction.tensors["weight_ih"]
                what = f"reads {size} features in layer {k}, which does not fit"
                raise Unfit(problem(group, what, shape_of(tensor)))
        size = len(layer) * first.output_size
