"""Modules in a state dict: tensors grouped by their names, with every shape checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lstm_cli.errors import Problem, counted
from lstm_cli.formats.gates import KIND_OF_GATES, NATIVE_GATES
from lstm_cli.formats.torch.tensors import FLOATS, StateTensor, printable

StateTensors = Mapping[str, StateTensor]

_RECURRENT = re.compile(
    r"(?P<prefix>(?:.*\.)?)(?P<stem>(?:weight|bias)_(?:ih|hh)|weight_hr)"
    r"(?:_l(?P<layer>[0-9]{1,4})(?P<reverse>_reverse)?)?",
    re.DOTALL,
)
_PLAIN = re.compile(r"(?P<prefix>(?:.*\.)?)(?P<stem>weight|bias)", re.DOTALL)

_INTEGER_DTYPE = re.compile(r"(u?int|i|u)[0-9]+|bool")


@dataclass(frozen=True)
class TorchDirection:
    """One direction of one layer in a recurrent module.

    Attributes
    ----------
    kind
        ``lstm``, ``gru`` or ``rnn``.
    tensors
        Tensors by PyTorch's name: ``weight_ih``, ``weight_hh``, ``bias_ih``, ``bias_hh``,
        ``weight_hr``.
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
    """nn.LSTM, nn.GRU, nn.RNN or one of their cells, as layers of one or two directions."""

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
    """nn.Linear."""

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
    """Tensors of one module, by (layer, reverse) and name; (0, False) if it is not recurrent."""

    name: str
    recurrent: bool
    cell: bool
    parts: dict[tuple[int, bool], dict[str, StateTensor]]

    def tensors(self) -> list[StateTensor]:
        return [tensor for part in self.parts.values() for tensor in part.values()]


def group_tensors(
    tensors: StateTensors,
) -> tuple[list[ModuleTensors], list[StateTensor], list[StateTensor]]:
    """Group tensors into modules in stored order; also return stray tensors and integers.

    Tensors of integers, such as ``num_batches_tracked``, are not weights.
    """
    groups: dict[tuple[str, bool, bool], ModuleTensors] = {}
    strays: list[StateTensor] = []
    integers: list[StateTensor] = []
    for name, tensor in tensors.items():
        match = _RECURRENT.fullmatch(name) or _PLAIN.fullmatch(name)
        if match is None:
            (integers if _INTEGER_DTYPE.fullmatch(tensor.dtype) else strays).append(tensor)
            continue
        parts = match.groupdict()
        recurrent, cell = "layer" in parts, parts.get("layer") is None
        key = (parts["prefix"], recurrent, cell)
        module = groups.setdefault(
            key, ModuleTensors(parts["prefix"].rstrip("."), recurrent, cell, {})
        )
        place = (int(parts.get("layer") or 0), parts.get("reverse") is not None)
        module.parts.setdefault(place, {})[parts["stem"]] = tensor
    return list(groups.values()), strays, integers


def weight_place(name: str) -> tuple[str, str | None, bool] | None:
    """Module, layer and direction of a weight, equal for one layer's weights; else None."""
    match = _RECURRENT.fullmatch(name) or _PLAIN.fullmatch(name)
    if match is None:
        return None
    parts = match.groupdict()
    kind = parts.get("layer") if "layer" in parts else "plain"
    return parts["prefix"], kind, parts.get("reverse") is not None


def module_problem(
    group: ModuleTensors, what: str, found: str | None = None, hint: str | None = None
) -> Problem:
    """Problem of a module."""
    return Problem(f"the module {printable(group.name or '(the whole model)')} {what}", None, found,
                   hint=hint)  # fmt: skip


def name_and_shape(tensor: StateTensor) -> str:
    """Name and shape of a tensor, for messages."""
    return f"{printable(tensor.name)} {tensor.shape}"


def dtype_problems(group: ModuleTensors) -> list[Problem]:
    """Problems of weights with an unsupported dtype."""
    return [
        module_problem(
            group, "has weights of a dtype that is not read", f"{printable(t.name)}: {t.dtype}"
        )
        for t in group.tensors()
        if t.dtype not in FLOATS
    ]


BIASES = ("bias_ih", "bias_hh")


class UnfitModuleError(Exception):
    """Module that lstm-cli cannot represent; used inside this package only."""

    def __init__(
        self, group: ModuleTensors, what: str, found: str | None = None, hint: str | None = None
    ) -> None:
        self.problem = module_problem(group, what, found, hint)


def read_recurrent_module(group: ModuleTensors) -> RecurrentModule:
    """Read the layers of a recurrent module, first to last.

    Raises
    ------
    UnfitModuleError
        A tensor is missing, or its shape does not fit the others.
    """
    count = max(layer for layer, _ in group.parts) + 1
    both = any(reverse for _, reverse in group.parts)
    expected_places = [
        (k, reverse) for k in range(count) for reverse in ([False, True] if both else [False])
    ]
    missing = next((place for place in expected_places if place not in group.parts), None)
    if missing is not None:
        raise UnfitModuleError(group, f"lacks {_named('weight_ih', missing, group)}")
    directions = {place: _direction(group, place) for place in expected_places}
    layers = tuple(
        tuple(directions[k, reverse] for reverse in ([False, True] if both else [False]))
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
            raise UnfitModuleError(group, f"lacks {_named(stem, place, group)}")
    if ("bias_ih" in tensors) != ("bias_hh" in tensors):
        stem = next(stem for stem in BIASES if stem not in tensors)
        raise UnfitModuleError(group, f"has one bias of two: it lacks {_named(stem, place, group)}")
    if any(0 in tensor.shape for tensor in tensors.values()):
        raise UnfitModuleError(group, "has a tensor without values")
    kind, H, P = _sizes(group, tensors)
    _check_shapes(group, tensors, len(NATIVE_GATES[kind]) * H)
    return TorchDirection(kind, tensors["weight_ih"].shape[1], H, P, tensors)


def _sizes(group: ModuleTensors, tensors: StateTensors) -> tuple[str, int, int | None]:
    """Kind, H and P. weight_hh is (gates x H, H), or (4H, P) with weight_hr (P, H)."""
    hh, hr = tensors["weight_hh"], tensors.get("weight_hr")
    shapes = [name_and_shape(t) for t in (hh, hr) if t is not None]
    fits = len(hh.shape) == 2 and (hr is None or len(hr.shape) == 2)
    if fits:
        rows, columns = hh.shape
        H = columns if hr is None else hr.shape[1]
        kind = None if rows % H else KIND_OF_GATES.get(rows // H)
        if hr is None and kind is not None:
            return kind, H, None
        if hr is not None and kind == "lstm" and hr.shape[0] == columns:
            return kind, H, columns
    raise UnfitModuleError(
        group,
        "is neither an LSTM, a GRU nor an RNN",
        ", ".join(shapes),
        "weight_hh is (4H, H) in an LSTM, (4H, P) with a projection, (3H, H) in a GRU, and "
        "(H, H) in an RNN",
    )


def _check_shapes(group: ModuleTensors, tensors: StateTensors, rows: int) -> None:
    for stem, tensor in tensors.items():
        rank = 1 if stem in BIASES else 2
        fits = len(tensor.shape) == rank and (stem == "weight_hr" or tensor.shape[0] == rows)
        if not fits:
            shape = f"({rows},)" if rank == 1 else f"({rows}, D)"
            raise UnfitModuleError(
                group, f"has tensors that do not fit: expected {shape}", name_and_shape(tensor)
            )


def _check_alike(group: ModuleTensors, module: RecurrentModule) -> None:
    """Check that layers and directions have one size, and that each layer fits the one before."""
    first = module.layers[0][0]
    kinds = {(d.kind, d.hidden_size, d.projection_size) for layer in module.layers for d in layer}
    if len(kinds) > 1:
        raise UnfitModuleError(group, "has layers or directions of different sizes")
    size = module.input_size
    for k, layer in enumerate(module.layers):
        for direction in layer:
            if direction.input_size != size:
                tensor = direction.tensors["weight_ih"]
                what = f"reads {counted(size, 'feature')} in layer {k}, which does not fit"
                raise UnfitModuleError(group, what, name_and_shape(tensor))
        size = len(layer) * first.output_size
