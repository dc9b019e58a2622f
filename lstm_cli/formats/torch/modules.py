"""The modules that a state dict's names and shapes speak of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lstm_cli.errors import Problem
from lstm_cli.formats.torch.tensors import FLOATS, StoredTensor, shown

Tensors = Mapping[str, StoredTensor]

_RECURRENT = re.compile(
    r"(?P<prefix>(?:.*\.)?)(?P<stem>(?:weight|bias)_(?:ih|hh)|weight_hr)"
    r"(?:_l(?P<layer>[0-9]{1,4})(?P<reverse>_reverse)?)?",
    re.DOTALL,
)
_PLAIN = re.compile(r"(?P<prefix>(?:.*\.)?)(?P<stem>weight|bias)", re.DOTALL)

_COUNT = re.compile(r"(u?int|i|u)[0-9]+|bool")


@dataclass(frozen=True)
class Direction:
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
    tensors: Tensors

    @property
    def output_size(self) -> int:
        return self.projection_size or self.hidden_size


@dataclass(frozen=True)
class Recurrent:
    """An nn.LSTM, nn.GRU or nn.RNN, or one of their cells: layers, each of its directions."""

    name: str
    layers: tuple[tuple[Direction, ...], ...]

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
class Linear:
    """An nn.Linear."""

    name: str
    weight: StoredTensor
    bias: StoredTensor | None

    @property
    def kind(self) -> str:
        return "linear"

    @property
    def input_size(self) -> int:
        return self.weight.shape[1]

    @property
    def output_size(self) -> int:
        return self.weight.shape[0]


Module = Recurrent | Linear


@dataclass
class Group:
    """Tensors of one module: recurrent ones by (layer, reverse) and stem, or all by stem."""

    name: str
    recurrent: bool
    cell: bool
    parts: dict[tuple[int, bool], dict[str, StoredTensor]]

    def tensors(self) -> list[StoredTensor]:
        return [tensor for part in self.parts.values() for tensor in part.values()]


def group(tensors: Tensors) -> tuple[list[Group], list[StoredTensor], list[StoredTensor]]:
    """Modules in stored order; tensors of no module; tensors that hold no weights.

    What holds no real numbers, such as ``num_batches_tracked``, is no weight.
    """
    groups: dict[tuple[str, bool, bool], Group] = {}
    strays: list[StoredTensor] = []
    counts: list[StoredTensor] = []
    for name, tensor in tensors.items():
        match = _RECURRENT.fullmatch(name) or _PLAIN.fullmatch(name)
        if match is None:
            (counts if _COUNT.fullmatch(tensor.dtype) else strays).append(tensor)
            continue
        found = match.groupdict()
        recurrent, cell = "layer" in found, found.get("layer") is None
        key = (found["prefix"], recurrent, cell)
        of = groups.setdefault(key, Group(found["prefix"].rstrip("."), recurrent, cell, {}))
        place = (int(found.get("layer") or 0), found.get("reverse") is not None)
        of.parts.setdefault(place, {})[found["stem"]] = tensor
    return list(groups.values()), strays, counts


def place(name: str) -> tuple[str, str | None, bool] | None:
    """Module, layer and direction of a weight; one of each is one layer's. None: it is none."""
    match = _RECURRENT.fullmatch(name) or _PLAIN.fullmatch(name)
    if match is None:
        return None
    found = match.groupdict()
    kind = found.get("layer") if "layer" in found else "plain"
    return found["prefix"], kind, found.get("reverse") is not None


def problem(group: Group, what: str, found: str | None = None, hint: str | None = None) -> Problem:
    """What is wrong with a module."""
    return Problem(f"the module {shown(group.name or '(the whole model)')} {what}", None, found,
                   hint=hint)  # fmt: skip


def shape_of(tensor: StoredTensor) -> str:
    """A tensor's name and shape in one."""
    return f"{shown(tensor.name)} {tensor.shape}"


def not_floats(group: Group) -> list[Problem]:
    """Weights of a dtype that is not read."""
    return [
        problem(group, "has weights of a dtype that is not read", f"{shown(t.name)}: {t.dtype}")
        for t in group.tensors()
        if t.dtype not in FLOATS
    ]
