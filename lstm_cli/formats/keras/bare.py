"""Weights without a description: layers told from names, shapes and the order in the file."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from lstm_cli.errors import WeightsError
from lstm_cli.formats.keras.architecture import Layer, snake, title
from lstm_cli.formats.keras.hdf5 import Tree
from lstm_cli.formats.keras.order import HARMLESS, Piece, ordered
from lstm_cli.formats.keras.variables import Names, role_of
from lstm_cli.formats.keras.words import Options, shown

Shape = tuple[int, ...]

BY_GATES = {4: "LSTM", 3: "GRU", 1: "SimpleRNN"}
WEIGHTLESS = (
    *HARMLESS,
    "Flatten",
    "Softmax",
    "ReLU",
    "LeakyReLU",
    "ELU",
)
_BY_NAME = {snake(kind): kind for kind in (*WEIGHTLESS, "Activation")}
_MODELS = ("sequential", "functional", "model")
_WEIGHTED = ("lstm", "gru", "simple_rnn", "rnn", "bidirectional", "time_distributed", "dense")
HINT = "save the whole model, which says it: model.save('model.keras')"


def is_bare(tree: Tree) -> bool:
    """Whether the file has variables as Keras 3 writes them."""
    return any(re.search(r"(^|/)vars/\d+$", path) for path in tree.datasets())


def by_paths(tree: Tree) -> tuple[list[Layer], list[str]]:
    """The layers of a Keras 3 weights file, input to output, and what was assumed.

    Raises
    ------
    WeightsError
        A layer that lstm-cli does not have, or an order that cannot be told.
    """
    addresses = tree.addresses()
    listed = _listed_paths(list(addresses))
    own = _own_paths(tree.datasets())
    pieces = [piece for path in listed if (piece := _piece(tree, path, True)) is not None]
    pieces += [piece for path in own if (piece := _piece(tree, path, False)) is not None]
    return ordered(pieces, {} if own else addresses)


def _listed_paths(paths: Sequence[str]) -> list[str]:
    """Paths of the layers, those of models within models too: ``layers/sequential/layers/gru``."""
    models = "|".join(_MODELS)
    pattern = re.compile(rf"(?:layers/(?:{models})(?:_\d+)?/)*layers/[^/]+")
    found = {match.group() for path in paths if (match := pattern.match(path))}
    return sorted(path for path in found if _stem(path) not in _MODELS)


def _own_paths(datasets: Sequence[str]) -> list[str]:
    """Paths of layers that are attributes of a model of the user's own class: ``encoder``."""
    inner = r"/(cell|layer|forward_layer|backward_layer|vars)/.*"
    others = ("layers/", "vars/", "optimizer/", "_optimizer")
    return sorted({re.sub(inner, "", path) for path in datasets if not path.startswith(others)})


def _stem(path: str) -> str:
    return re.sub(r"_\d+$", "", path.rsplit("/", 1)[-1])


def _piece(tree: Tree, path: str, listed: bool) -> Piece | None:
    """What stands under a path; None for what does nothing."""
    stem, shape = _stem(path), tree.shape
    if f"{path}/forward_layer/cell/vars/0" in tree:
        inner = [_recurrent(shape, f"{path}/{d}_layer/cell/vars/") for d in ("forward", "backward")]
        return _bidirectional(path, inner)
    if f"{path}/cell/vars/0" in tree:
        found = _recurrent(shape, f"{path}/cell/vars/")
    elif f"{path}/layer/vars/0" in tree:
        found = _dense(shape, f"{path}/layer/vars/")
        inner_layer = {"class_name": "Dense", "config": found[1]}
        return _made("TimeDistributed", {"layer": inner_layer}, path, found[2], found[3])
    elif f"{path}/vars/0" in tree:
        found = _dense(shape, f"{path}/vars/")
    else:
        return _weightless(stem, path)
    if listed and stem not in _WEIGHTED:
        raise _unknown(path)
    return _made(found[0], found[1], path, found[2], found[3])


Found = tuple[str, dict[str, Any], int, int]
"""Class, config, features read, features given."""


def _recurrent(shape: Callable[[str], Shape | None], folder: str) -> Found:
    return recurrent_of([shape(f"{folder}{k}") for k in range(3)], folder)


def recurrent_of(shapes: Sequence[Shape | None], where: str) -> Found:
    """A recurrent layer by the shapes of kernel, recurrent kernel and bias."""
    kernel, inner, bias = shapes
    if kernel is None or inner is None or len(kernel) != 2 or len(inner) != 2 or 0 in inner:
        raise _unknown(where)
    D, (H, width) = kernel[0], inner
    kind = BY_GATES.get(width // H)
    if kind is None or width % H or (bias is not None and len(bias) not in (1, 2)):
        raise _unknown(where)
    config = {"units": H, "use_bias": bias is not None, "return_sequences": True}
    if kind == "GRU":  # without a bias Keras's default, which a note says
        config["reset_after"] = bias is None or len(bias) == 2
    return kind, config, D, H


def _dense(shape: Callable[[str], Shape | None], folder: str) -> Found:
    if shape(f"{folder}2") is not None:
        raise _unknown(folder)
    return dense_of([shape(f"{folder}{k}") for k in range(2)], folder)


def dense_of(shapes: Sequence[Shape | None], where: str) -> Found:
    """A dense layer by the shapes of kernel and bias."""
    kernel, bias = shapes
    if kernel is None or len(kernel) != 2 or (bias is not None and bias != kernel[1:]):
        raise _unknown(where)
    config = {"units": kernel[1], "use_bias": bias is not None}
    return "Dense", config, kernel[0], kernel[1]


def _bidirectional(path: str, inner: Sequence[Found]) -> Piece:
    (kind, forward, D, H), (other, reverse, _, _) = inner
    biased = [one for one in (forward, reverse) if one["use_bias"]]
    if kind == other == "GRU" and len(biased) == 1:  # the one that has biases tells of both
        forward["reset_after"] = reverse["reset_after"] = biased[0]["reset_after"]
    config = {
        "layer": {"class_name": kind, "config": forward},
        "backward_layer": {"class_name": other, "config": {**reverse, "go_backwards": True}},
    }
    return _made("Bidirectional", config, path, D, 2 * H)


def _weightless(stem: str, path: str) -> Piece:
    kind = _BY_NAME.get(stem)
    if stem == "reshape":  # to which shape is not stored; but for one row, what follows misfits
        kind = "Flatten"
    if kind is None:
        raise _unknown(path)
    return _made(kind, {}, path, None, None)


def _made(
    kind: str, config: dict[str, Any], path: str, reads: int | None, gives: int | None
) -> Piece:
    name = path.rsplit("/", 1)[-1]
    layer = Layer(kind, name, Options(title(kind, name), config), path, path)
    return Piece(layer, path, re.sub(r"_\d+$", "", path), reads, gives)


def _unknown(path: str) -> WeightsError:
    return WeightsError(
        f"the weights of {shown(path.rstrip('/'))} are those of no layer that lstm-cli has",
        expected="LSTM, GRU, SimpleRNN, Bidirectional or Dense",
        hint=HINT,
    )


def by_names(tree: Tree, root: str) -> tuple[list[Layer], list[str]]:
    """The layers of a legacy weights file, which lists them in order, and what was assumed."""
    names, found, left_out = Names(tree, root), [], []
    for group in tree.texts(root.rstrip("/"), "layer_names") or []:
        listed = [name for name in names.listed(group) if not role_of(name).startswith("seed_")]
        if listed:
            found += _listed(tree, f"{root}{group}/", group, listed)
        elif (kind := _BY_NAME.get(_stem(group))) is not None:
            found.append(Layer(kind, group, Options(title(kind, group), {}), "", group))
        else:
            left_out.append(shown(group))
    note = f"taken for layers that change nothing, since they have no weights: {left_out}"
    return found, [note.translate({39: None, 91: None, 93: None})] if left_out else []


def _listed(tree: Tree, folder: str, group: str, listed: Sequence[str]) -> list[Layer]:
    """The layers of one group: one, or those of a model within the model."""
    units: list[list[str]] = []
    for name in listed:
        if role_of(name) == "kernel":
            units.append([])
        elif role_of(name) not in ("recurrent_kernel", "bias") or not units:
            raise _unknown(f"{folder}{name}")
        units[-1].append(name)
    found: list[Layer] = []
    pieces = [_unit(tree, folder, unit) for unit in units]
    k = 0
    while k < len(units):
        two = k + 1 < len(units) and "/forward_" in units[k][0] and "/backward_" in units[k + 1][0]
        if two:
            layer = _bidirectional(group, pieces[k : k + 2]).layer
        else:
            layer = _made(pieces[k][0], pieces[k][1], group, None, None).layer
        found.append(layer)
        k += 2 if two else 1
    return found


def _unit(tree: Tree, folder: str, unit: Sequence[str]) -> Found:
    by_role = {role_of(name): tree.shape(folder + name) for name in unit}
    kernel, bias = by_role.get("kernel"), by_role.get("bias")
    if "recurrent_kernel" in by_role:
        return recurrent_of([kernel, by_role["recurrent_kernel"], bias], folder + unit[0])
    return dense_of([kernel, bias], folder + unit[0])
