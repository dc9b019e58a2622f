"""The description of a Keras model as a chain of layers, and the variables of each layer.

The layers of a Functional model are followed from its output back to its input. Variables are found
by path in the files of Keras 3, and by name in older ones.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

from lstm_cli.errors import WeightsError
from lstm_cli.formats.keras.hdf5 import Hdf5Tree, StoredVariable
from lstm_cli.formats.keras.options import (
    LayerOptions,
    parse_options,
    printable_name,
    printable_value,
)

MODELS = ("Sequential", "Functional", "Model")
DEEPEST = 8
MAX_LAYERS = 10_000
_OURS = ("keras", "tf_keras", "tensorflow", "builtins")


@dataclass(frozen=True)
class KerasLayer:
    """One layer as Keras describes it.

    Attributes
    ----------
    kind
        Keras's class.
    name
        The user's or Keras's own.
    options
        Its config.
    path
        Where today's files keep its variables: ``layers/lstm_1``.
    group
        Where older files do: the name of the layer of the outermost model.
    """

    kind: str
    name: str
    options: LayerOptions
    path: str
    group: str

    @property
    def title(self) -> str:
        """The layer in an error's words."""
        return self.options.owner


def layer_title(kind: str, name: str) -> str:
    """A layer in an error's words."""
    return f"the layer {printable_name(name)} ({printable_name(kind)})"


def list_layers(
    model: Any, path: str = "", group: str | None = None, depth: int = 0
) -> list[KerasLayer]:
    """All layers, input to output, those of models within it in their place.

    Raises
    ------
    WeightsError
        The layers are no chain, one is the user's own class, or the description is malformed.
    """
    kind, name = class_name_of(model), _name(model)
    if kind not in MODELS or depth > DEEPEST:
        raise WeightsError(
            f"the model {printable_name(name)} is of class {printable_name(kind)}, whose code is not in the file",
            expected="a Sequential or Functional model",
            hint="rebuild it as one and load the weights there, then save that one",
        )
    entries = _entries(model, name)
    listed = _places([class_name_of(entry) for entry in entries], path)
    places = {id(entry): place for entry, place in zip(entries, listed, strict=True)}
    if kind != "Sequential":
        entries = chain_layers(
            parse_options(f"the model {printable_name(name)}", model["config"]), entries
        )
    found: list[KerasLayer] = []
    for entry in entries:
        own = group if group is not None else _name(entry)
        if class_name_of(entry) in MODELS:
            found += list_layers(entry, places[id(entry)] + "/", own, depth + 1)
        else:
            found.append(describe_layer(entry, places[id(entry)], own))
        if len(found) > MAX_LAYERS:
            raise WeightsError(
                f"the model {printable_name(name)} has more than {MAX_LAYERS:,} layers"
            )
    return found


def describe_layer(entry: Any, path: str, group: str) -> KerasLayer:
    """One layer of a description."""
    kind, name = class_name_of(entry), _name(entry)
    return KerasLayer(
        kind, name, parse_options(layer_title(kind, name), entry.get("config")), path, group
    )


def class_name_of(entry: Any) -> str:
    """The class of a serialised object.

    Raises
    ------
    WeightsError
        It has none, or it is one that the user made: its code is not in the file, and would not
        be run if it were.
    """
    kind = entry.get("class_name") if isinstance(entry, Mapping) else None
    if not isinstance(kind, str):
        raise WeightsError("the model's description is malformed", found=printable_value(entry))
    module, registered = entry.get("module"), entry.get("registered_name")
    own = isinstance(module, str) and module.split(".")[0] not in _OURS
    if own or ">" in kind or (isinstance(registered, str) and ">" in registered):
        raise WeightsError(
            f"{layer_title(kind, _name(entry))} is a class of your own, which lstm-cli does not run",
            expected="layers that are Keras's own",
        )
    return kind


def _name(entry: Any) -> str:
    config = entry.get("config")
    inner = config.get("name") if isinstance(config, Mapping) else None
    name = inner if isinstance(inner, str) else entry.get("name")
    return name if isinstance(name, str) else str(entry.get("class_name"))


def _entries(model: Mapping[str, Any], name: str) -> list[Any]:
    """Descriptions of the layers; Keras before 2.2.3 wrote a Sequential's as the bare list."""
    config = model.get("config")
    found = config.get("layers") if isinstance(config, Mapping) else config
    if not isinstance(found, list) or len(found) > MAX_LAYERS:
        raise WeightsError(
            f"the model {printable_name(name)} has no list of layers", found=printable_value(found)
        )
    return found


def snake_case(kind: str) -> str:
    """A class as Keras writes it in paths: ``simple_rnn`` for SimpleRNN."""
    text = re.sub(r"\W+", "", kind)
    text = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", text)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", text).lower()


def _places(kinds: Sequence[str], path: str) -> list[str]:
    """Where each layer's variables are: by class, counted, in the order of the list."""
    counts: Counter[str] = Counter()
    found = []
    for kind in map(snake_case, kinds):
        found.append(f"{path}layers/{kind}" + (f"_{counts[kind]}" if counts[kind] else ""))
        counts[kind] += 1
    return found


MAX_NESTING = 16


def chain_layers(model: LayerOptions, entries: Sequence[Any]) -> list[Any]:
    """The descriptions of the layers from the one input to the one output.

    What computes masks (Keras writes it as layers beside the chain) is left out.

    Raises
    ------
    WeightsError
        Several inputs or outputs, a layer that reads several, or one that is used twice.
    """
    by_name = {entry["name"]: entry for entry in entries if isinstance(entry.get("name"), str)}
    first, last = (_only(model, key) for key in ("input_layers", "output_layers"))
    found: list[Any] = []
    name = last
    while True:
        entry = by_name.get(name)
        if entry is None or len(found) > len(entries):
            raise WeightsError(
                f"{model.owner} has no way from {printable_name(last)} back to its input"
            )
        found.append(entry)
        if name == first:
            return found[::-1]
        name = _source(entry, name)


def _only(model: LayerOptions, key: str) -> str:
    """The one input or output; Keras 3 writes a bare triple for one, Keras 2 a list of one."""
    value = model.get(key)
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list) and value and not isinstance(value[0], str):
        if len(value) > 1:
            names = ", ".join(
                printable_value(v[0] if isinstance(v, list) and v else v) for v in value
            )
            raise WeightsError(
                f"{model.owner} has {len(value)} {key.replace('_', ' ')}: {names}",
                expected="one input and one output",
            )
        value = value[0]
    if not isinstance(value, list) or not value or not isinstance(value[0], str):
        raise model.refused(key, "the name of a layer")
    return value[0]


def _source(entry: Mapping[str, Any], name: str) -> str:
    """Name of the layer that this one reads."""
    nodes = entry.get("inbound_nodes")
    if not isinstance(nodes, list) or not nodes:
        _refuse_layer(entry, name, "reads no other layer")
    if len(nodes) > 1:
        _refuse_layer(entry, name, "is used more than once")
    histories = list(_histories(nodes[0]))
    if len(histories) != 1:
        names = ", ".join(printable_value(history[0]) for history in histories)
        _refuse_layer(
            entry, name, f"reads {len(histories)} tensors: {names}" if names else "reads none"
        )
    # The number of the use may be 1: Keras 2 counts the making of a model within it as one.
    source, _, tensor = histories[0]
    if tensor != 0:
        _refuse_layer(entry, name, f"reads a state of {printable_value(source)}")
    if not isinstance(source, str):
        _refuse_layer(entry, name, "reads what has no name")
    return source


def _histories(node: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Layer, use and output of every tensor that a call reads, masks apart."""
    if isinstance(node, Mapping):
        yield from _tensors(node.get("args"), 0)
        arguments = node.get("kwargs")
        if isinstance(arguments, Mapping):
            yield from _tensors([v for key, v in arguments.items() if key != "mask"], 0)
    elif isinstance(node, list):
        for read in node:
            if isinstance(read, list) and len(read) >= 3:
                yield read[0], read[1], read[2]
            arguments = read[3] if isinstance(read, list) and len(read) > 3 else {}
            if isinstance(arguments, Mapping):
                yield from _references([v for k, v in arguments.items() if k != "mask"], 0)


def _tensors(value: Any, depth: int) -> Iterator[tuple[Any, Any, Any]]:
    """Keras 3: a tensor is an object that tells its history."""
    if depth > MAX_NESTING:
        raise WeightsError("the model's description is nested too deep")
    if isinstance(value, Mapping):
        config = value.get("config")
        history = config.get("keras_history") if isinstance(config, Mapping) else None
        if isinstance(history, list) and len(history) == 3:
            yield history[0], history[1], history[2]
            return
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _tensors(item, depth + 1)


def _references(value: Any, depth: int) -> Iterator[tuple[Any, Any, Any]]:
    """Keras 2: a tensor among a call's other arguments is [layer, use, output]."""
    if depth > MAX_NESTING:
        raise WeightsError("the model's description is nested too deep")
    if not isinstance(value, list):
        return
    if len(value) == 3 and isinstance(value[0], str) and isinstance(value[1], int):
        yield value[0], value[1], value[2]
        return
    for item in value:
        yield from _references(item, depth + 1)


def _refuse_layer(entry: Mapping[str, Any], name: str, why: str) -> NoReturn:
    kind = printable_value(entry.get("class_name"))
    raise WeightsError(
        f"the layer {printable_name(name)} ({kind}) {why}",
        expected="layers in one chain, each used once",
    )


CELL_ROLES = ("kernel", "recurrent_kernel", "bias")
DENSE_ROLES = ("kernel", "bias")


class VariableSource(Protocol):
    """Gives variables, layer by layer in the model's order."""

    def take(self, layer: KerasLayer, inner: str, roles: Sequence[str]) -> list[StoredVariable]:
        """The variables of these roles.

        Parameters
        ----------
        inner
            Where in the layer's own path they are: ``cell``, ``forward_layer/cell``.
        """


class PathVariables:
    """Keras 3, and Keras 2.12 on in ``.keras``: ``layers/lstm/cell/vars/0``."""

    def __init__(self, tree: Hdf5Tree) -> None:
        self._tree = tree

    def take(self, layer: KerasLayer, inner: str, roles: Sequence[str]) -> list[StoredVariable]:
        folder = "/".join(part for part in (layer.path, inner, "vars") if part)
        found = []
        for k, role in enumerate(roles):
            variable = self._tree.variable(f"{folder}/{k}")
            if variable is None:
                raise _missing(layer, role, f"{folder}/{k}")
            found.append(variable)
        return found


class NamedVariables:
    """Legacy ``.h5`` with a description: each outermost layer lists its variables by name."""

    def __init__(self, tree: Hdf5Tree, root: str) -> None:
        self._tree, self._root = tree, root
        self._left: dict[str, list[str]] = {}

    def take(self, layer: KerasLayer, inner: str, roles: Sequence[str]) -> list[StoredVariable]:
        if layer.group not in self._left:
            names = self._tree.texts(self._root + layer.group, "weight_names") or []
            self._left[layer.group] = [n for n in names if variable_role(n) in CELL_ROLES]
        return [self._one(layer, inner, role) for role in roles]

    def _one(self, layer: KerasLayer, inner: str, role: str) -> StoredVariable:
        left = self._left[layer.group]
        names = [n for n in _narrowed(left, layer, inner) if variable_role(n) == role]
        if not names:
            raise _missing(layer, role, None)
        if len(names) > 1:
            raise WeightsError(
                f"the file does not say which {role} is that of {layer.title}",
                expected=f"one name that tells it: {printable_name(layer.name)}/{role}",
                found=", ".join(printable_name(name) for name in names[:8]),
                hint="load the model and save it again: model.save('model.keras')",
            )
        left.remove(names[0])
        path = f"{self._root}{layer.group}/{names[0]}"
        variable = self._tree.variable(path)
        if variable is None:
            raise _missing(layer, role, path)
        return variable


def _narrowed(names: Sequence[str], layer: KerasLayer, inner: str) -> Sequence[str]:
    """Names of the layer and its direction; all, where none names them.

    A list does not tell: what was frozen in training stands at its end. Of several that name the
    layer, the ones that do so last: a model may have the name of a layer in it.
    """
    parts = {name: name.split("/")[:-1] for name in names}
    last = {n: len(p) - p[::-1].index(layer.name) for n, p in parts.items() if layer.name in p}
    own = [n for n in names if last.get(n) == max(last.values())] if last else names
    direction = inner.split("_")[0] + "_"
    return [n for n in own if any(p.startswith(direction) for p in parts[n])] or own


class AssignedVariables:
    """Legacy ``.h5`` without a description: variables that were told apart beforehand."""

    def __init__(self, tree: Hdf5Tree) -> None:
        self._tree = tree
        self._places: dict[tuple[str, str], Mapping[str, str]] = {}

    def add(self, layer: KerasLayer, half: str, places: Mapping[str, str]) -> None:
        """Variables of a layer, or of its ``forward`` or ``backward`` half, by role."""
        self._places[layer.path, half] = places

    def take(self, layer: KerasLayer, inner: str, roles: Sequence[str]) -> list[StoredVariable]:
        half = inner.partition("_")[0] if "_" in inner else ""
        found = []
        for role in roles:
            place = self._places[layer.path, half].get(role)
            variable = None if place is None else self._tree.variable(place)
            if variable is None:
                raise _missing(layer, role, place)
            found.append(variable)
        return found


def variable_role(name: str) -> str:
    """What a variable of this name is: ``kernel`` for ``lstm/lstm_cell/kernel:0``."""
    return name.rsplit("/", 1)[-1].split(":")[0]


def _missing(layer: KerasLayer, role: str, place: str | None) -> WeightsError:
    return WeightsError(
        f"{layer.title} has no {role} in the file",
        expected=role,
        found="nothing" if place is None else printable_name(place),
    )
