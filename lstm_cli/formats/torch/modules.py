"""Modules in a state dict: grouped by the names of their tensors, with every shape checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lstm_cli.errors import Problem
from lstm_cli.formats.gates import NATIVE_GATES
from lstm_cli.formats.torch.tensors import FLOATS, StateTensor, printable

StateTensors = Mapping[str, StateTensor]

_RECURRENT = re.compile(
    r"(?P<prefix>(?:.*\.)?)(?P<stem>(?:weight|bias)_(?:ih|hh)|weight_hr)"
    r"(?:_l(?P<layer>[0-9]{1,4})(?P<reverse>_reverse)?)?",
    re.DOTALL,
)
_PLAIN = re.compile(r"(?P<prefix>(?:.*\.)?)(?P<stem>weight|bias)", re.DOTALL)

_COUNT = re.compile(r"(u?int|i|u)[0-9]+|bool")


@dataclass(frozen=True)
class TorchDirection:
    """One direction of one layer of a recurrent module.

    Attributes
    ----------
    kind
        ``lstm``, ``gru`` or ``rnn``.
    tensors
        By PyTorch's stem: ``weight_ih``, ``weight_hh``, ``bias_ih``, ``bias_hh``, ``weight_hr``.
    """

    kind: str
    input_size: int
    hidden_size: int
    projection_size: int | None
    tensors: StateTensors

    @property
    def output_size(self) -> int:
        return self.projection_size or self.hidden_size


@dataclass(frozen=True)
class RecurrentModule:
    """An nn.LSTM, nn.GRU or nn.RNN, or one of their cells: layers, each of its directions."""

    name: str
    layers: tuple[tuple[TorchDirection, ...], ...]

    @property
    def kind(self) -> str:
        return self.layers[0][0].kind

    @property
    def input_size(self) -> int:
        return self.layers[0][0].input_size

    @property
    def output_size(self) -> int:
        return len(self.layers[-1]) * self.layers[-1][0].output_size


@dataclass(frozen=True)
class LinearModule:
    """An nn.Linear."""

    name: str
    weight: StateTensor
    bias: StateTensor | None

    @property
    def kind(self) -> str:
        return "linear"

    @property
    def input_size(self) -> int:
        return self.weight.shape[1]

    @property
    def output_size(self) -> int:
        return self.weight.shape[0]


Module = RecurrentModule | LinearModule


@dataclass
class ModuleTensors:
    """Tensors of one module: recurrent ones by (layer, reverse) and stem, or all by stem."""

    name: str
    recurrent: bool
    cell: bool
    parts: dict[tuple[int, bool], dict[str, StateTensor]]

    def tensors(self) -> list[StateTensor]:
        return [tensor for part in self.parts.values() for tensor in part.values()]


def group(
    tensors: StateTensors,
) -> tuple[list[ModuleTensors], list[StateTensor], list[StateTensor]]:
    """Modules in stored order; tensors of no module; tensors that hold no weights.

    What holds no real numbers, such as ``num_batches_tracked``, is no weight.
    """
    groups: dict[tuple[str, bool, bool], ModuleTensors] = {}
    strays: list[StateTensor] = []
    counts: list[StateTensor] = []
    for name, tensor in tensors.items():
        match = _RECURRENT.fullmatch(name) or _PLAIN.fullmatch(name)
        if match is None:
            (counts if _COUNT.fullmatch(tensor.dtype) else strays).append(tensor)
            continue
        found = match.groupdict()
        recurrent, cell = "layer" in found, found.get("layer") is None
        key = (found["prefix"], recurrent, cell)
        of = groups.setdefault(key, ModuleTensors(found["prefix"].rstrip("."), recurrent, cell, {}))
        place = (int(found.get("layer") or 0), found.get("reverse") is not None)
        of.parts.setdefault(place, {})[found["stem"]] = tensor
    return list(groups.values()), strays, counts


def weight_place(name: str) -> tuple[str, str | None, bool] | None:
    """Module, layer and direction of a weight; one of each is one layer's. None: it is none."""
    match = _RECURRENT.fullmatch(name) or _PLAIN.fullmatch(name)
    if match is None:
        return None
    found = match.groupdict()
    kind = found.get("layer") if "layer" in found else "plain"
    return found["prefix"], kind, found.get("reverse") is not None


def problem(
    group: ModuleTensors, what: str, found: str | None = None, hint: str | None = None
) -> Problem:
    """What is wrong with a module."""
    return Problem(f"the module {printable(group.name or '(the whole model)')} {what}", None, found,
                   hint=hint)  # fmt: skip


def shape_of(tensor: StateTensor) -> str:
    """A tensor's name and shape in one."""
    return f"{printable(tensor.name)} {tensor.shape}"


def not_floats(group: ModuleTensors) -> list[Problem]:
    """Weights of a dtype that is not read."""
    return [
        problem(group, "has weights of a dtype that is not read", f"{printable(t.name)}: {t.dtype}")
        for t in group.tensors()
        if t.dtype not in FLOATS
    ]


_KINDS = {len(gates): kind for kind, gates in NATIVE_GATES.items()}
_BIASES = ("bias_ih", "bias_hh")


class UnfitModuleError(Exception):
    """A module that lstm-cli cannot represent."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem


def recurrent(group: ModuleTensors) -> RecurrentModule:
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
        raise UnfitModuleError(problem(group, f"lacks {_named('weight_ih', missing, group)}"))
    sides = {place: _direction(group, place) for place in wanted}
    layers = tuple(
        tuple(sides[k, reverse] for reverse in ([False, True] if both else [False]))
        for k in range(count)
    )
    module = RecurrentModule(group.name, layers)
    _check_alike(group, module)
    return module


def _named(stem: str, place: tuple[int, bool], group: ModuleTensors) -> str:
    if group.cell:
        return stem
    return f"{stem}_l{place[0]}" + ("_reverse" if place[1] else "")


def _direction(group: ModuleTensors, place: tuple[int, bool]) -> TorchDirection:
    tensors = group.parts[place]
    for stem in ("weight_ih", "weight_hh"):
        if stem not in tensors:
            raise UnfitModuleError(problem(group, f"lacks {_named(stem, place, group)}"))
    if ("bias_ih" in tensors) != ("bias_hh" in tensors):
        stem = next(stem for stem in _BIASES if stem not in tensors)
        raise UnfitModuleError(
            problem(group, f"has one bias of two: it lacks {_named(stem, place, group)}")
        )
    if any(0 in tensor.shape for tensor in tensors.values()):
        raise UnfitModuleError(problem(group, "has a tensor without values"))
    kind, H, P = _sizes(group, tensors)
    _check_shapes(group, tensors, len(NATIVE_GATES[kind]) * H)
    return TorchDirection(kind, tensors["weight_ih"].shape[1], H, P, tensors)


def _sizes(group: ModuleTensors, tensors: StateTensors) -> tuple[str, int, int | None]:
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
    raise UnfitModuleError(
        problem(
            group,
            "is neither an LSTM, a GRU nor an RNN",
            ", ".join(shapes),
            "weight_hh is (4H, H), (3H, H) or (H, H) in these; with a projection (4H, P)",
        )
    )


def _check_shapes(group: ModuleTensors, tensors: StateTensors, rows: int) -> None:
    for stem, tensor in tensors.items():
        rank = 1 if stem in _BIASES else 2
        fits = len(tensor.shape) == rank and (stem == "weight_hr" or tensor.shape[0] == rows)
        if not fits:
            shape = f"({rows},)" if rank == 1 else f"({rows}, D)"
            raise UnfitModuleError(
                problem(group, f"has tensors that do not fit: expected {shape}", shape_of(tensor))
            )


def _check_alike(group: ModuleTensors, module: RecurrentModule) -> None:
    """All directions and layers of one size, each layer reading what the one before gives."""
    first = module.layers[0][0]
    kinds = {(d.kind, d.hidden_size, d.projection_size) for layer in module.layers for d in layer}
    if len(kinds) > 1:
        raise UnfitModuleError(problem(group, "has layers or directions of different sizes"))
    size = module.input_size
    for k, layer in enumerate(module.layers):
        for direction in layer:
            if direction.input_size != size:
                tensor = direction.tensors["weight_ih"]
                what = f"reads {size} features in layer {k}, which does not fit"
                raise UnfitModuleError(problem(group, what, shape_of(tensor)))
        size = len(layer) * first.output_size
