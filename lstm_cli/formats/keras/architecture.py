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

from lstm_cli.errors import WeightsError, shortened
from lstm_cli.formats.keras.options import LayerOptions, parse_options, printable_value
from lstm_cli.hdf5.image import Hdf5Tree, StoredVariable

MODELS = ("Sequential", "Functional", "Model")
MAX_MODEL_DEPTH = 8
MAX_LAYERS = 10_000
_KERAS_PACKAGES = ("keras", "tf_keras", "tensorflow", "builtins")


@dataclass(frozen=True)
class KerasLayer:
    """Layer in a Keras description.

    Attributes
    ----------
    kind
        Class of the layer in Keras.
    name
        Name of the layer, chosen by the user or by Keras.
    options
        Config of the layer.
    path
        Path of its variables in files of Keras 3: ``layers/lstm_1``.
    group
        Group of its variables in older files: the name of the layer in the outermost model.
    """

    kind: str
    name: str
    options: LayerOptions
    path: str
    group: str

    @property
    def title(self) -> str:
        """Layer in words, for errors."""
        return self.options.owner


def layer_title(kind: str, name: str) -> str:
    """Layer in words, for errors: ``the layer lstm_1 (LSTM)``."""
    return f"the layer {shortened(name)} ({shortened(kind)})"


def list_layers(
    model: Any, path: str = "", group: str | None = None, depth: int = 0
) -> list[KerasLayer]:
    """List all layers of a model, input to output, with the layers of nested models in place.

    Raises
    ------
    WeightsError
        The layers are not a chain, one is of a user-defined class, or the description is
        malformed.
    """
    kind, name = class_name_of(model), _name(model)
    if kind not in MODELS or depth > MAX_MODEL_DEPTH:
        raise WeightsError(
            f"the model {shortened(name)} is of class {shortened(kind)}, "
            "whose code is not in the file",
            expected="a Sequential or Functional model",
            hint="build the same layers as such a model, load the weights into it, and save it",
        )
    entries = _entries(model, name)
    listed = _variable_paths([class_name_of(entry) for entry in entries], path)
    places = {id(entry): place for entry, place in zip(entries, listed, strict=True)}
    if kind != "Sequential":
        entries = chain_layers(
            parse_options(f"the model {shortened(name)}", model["config"]), entries
        )
    layers: list[KerasLayer] = []
    for entry in entries:
        outermost = group if group is not None else _name(entry)
        if class_name_of(entry) in MODELS:
            layers += list_layers(entry, places[id(entry)] + "/", outermost, depth + 1)
        else:
            layers.append(describe_layer(entry, places[id(entry)], outermost))
        if len(layers) > MAX_LAYERS:
            raise WeightsError(f"the model {shortened(name)} has more than {MAX_LAYERS:,} layers")
    return layers


def describe_layer(entry: Any, path: str, group: str) -> KerasLayer:
    """Layer of an entry of a description."""
    kind, name = class_name_of(entry), _name(entry)
    return KerasLayer(
        kind, name, parse_options(layer_title(kind, name), entry.get("config")), path, group
    )


def class_name_of(entry: Any) -> str:
    """Class name of a serialized object.

    Raises
    ------
    WeightsError
        The object has no class, or a user-defined one, whose code lstm-cli would not run.
    """
    kind = entry.get("class_name") if isinstance(entry, Mapping) else None
    if not isinstance(kind, str):
        raise WeightsError("the model's description is malformed", found=printable_value(entry))
    module, registered = entry.get("module"), entry.get("registered_name")
    is_foreign = isinstance(module, str) and module.split(".")[0] not in _KERAS_PACKAGES
    if is_foreign or ">" in kind or (isinstance(registered, str) and ">" in registered):
        raise WeightsError(
            f"{layer_title(kind, _name(entry))} is of a user-defined class, which lstm-cli never "
            "runs",
            expected="Keras's own layers",
        )
    return kind


def _name(entry: Any) -> str:
    config = entry.get("config")
    inner = config.get("name") if isinstance(config, Mapping) else None
    name = inner if isinstance(inner, str) else entry.get("name")
    return name if isinstance(name, str) else str(entry.get("class_name"))


def _entries(model: Mapping[str, Any], name: str) -> list[Any]:
    """Descriptions of the layers; Keras before 2.2.3 wrote a Sequential as the list alone."""
    config = model.get("config")
    entries = config.get("layers") if isinstance(config, Mapping) else config
    if not isinstance(entries, list) or len(entries) > MAX_LAYERS:
        raise WeightsError(
            f"the model {shortened(name)} has no list of layers", found=printable_value(entries)
        )
    return entries


def snake_case(kind: str) -> str:
    """Class name as Keras writes it in paths: ``simple_rnn`` for SimpleRNN."""
    text = re.sub(r"\W+", "", kind)
    text = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", text)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", text).lower()


def _variable_paths(kinds: Sequence[str], path: str) -> list[str]:
    """Path of each layer's variables: its class, with a count from the second one on."""
    counts: Counter[str] = Counter()
    paths = []
    for kind in map(snake_case, kinds):
        paths.append(f"{path}layers/{kind}" + (f"_{counts[kind]}" if counts[kind] else ""))
        counts[kind] += 1
    return paths


MAX_NESTING = 16


def chain_layers(model: LayerOptions, entries: Sequence[Any]) -> list[Any]:
    """Descriptions of the layers from the only input to the only output.

    Layers that compute masks, which Keras writes next to the chain, are left out.

    Raises
    ------
    WeightsError
        The model has several inputs or outputs, a layer reads several tensors, or a layer is used
        twice.
    """
    by_name = {entry["name"]: entry for entry in entries if isinstance(entry.get("name"), str)}
    first, last = (_only_endpoint(model, key) for key in ("input_layers", "output_layers"))
    chain: list[Any] = []
    name = last
    while True:
        entry = by_name.get(name)
        if entry is None or len(chain) > len(entries):
            raise WeightsError(
                f"{model.owner} has no path from {shortened(last)} back to its input"
            )
        chain.append(entry)
        if name == first:
            return chain[::-1]
        name = _source(entry, name)


def _only_endpoint(model: LayerOptions, key: str) -> str:
    """Name of the only input or output: a triple in Keras 3, a list of one in Keras 2."""
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
    """Name of the layer whose output this layer reads."""
    nodes = entry.get("inbound_nodes")
    if not isinstance(nodes, list) or not nodes:
        _refuse(entry, name, "reads no other layer")
    if len(nodes) > 1:
        _refuse(entry, name, "is used more than once")
    histories = list(_histories(nodes[0]))
    if len(histories) != 1:
        names = ", ".join(printable_value(history[0]) for history in histories)
        _refuse(entry, name, f"reads {len(histories)} tensors: {names}" if names else "reads none")
    # The number of the use may be 1: Keras 2 counts the construction of a nested model.
    source, _, tensor = histories[0]
    if tensor != 0:
        _refuse(entry, name, f"reads a state of {printable_value(source)}")
    if not isinstance(source, str):
        _refuse(entry, name, "reads a tensor without a name")
    return source


def _histories(node: Any) -> Iterator[tuple[Any, Any, Any]]:
    """Layer, use and output of every tensor that a call reads, except masks."""
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
    """Histories in Keras 3, where a tensor is an object with its history."""
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
    """Histories in Keras 2, where a tensor among the arguments is [layer, use, output]."""
    if depth > MAX_NESTING:
        raise WeightsError("the model's description is nested too deep")
    if not isinstance(value, list):
        return
    if len(value) == 3 and isinstance(value[0], str) and isinstance(value[1], int):
        yield value[0], value[1], value[2]
        return
    for item in value:
        yield from _references(item, depth + 1)


def _refuse(entry: Mapping[str, Any], name: str, why: str) -> NoReturn:
    kind = printable_value(entry.get("class_name"))
    raise WeightsError(
        f"the layer {shortened(name)} ({kind}) {why}",
        expected="layers in one chain, each used once",
    )


CELL_ROLES = ("kernel", "recurrent_kernel", "bias")
DENSE_ROLES = ("kernel", "bias")


class VariableSource(Protocol):
    """Source of variables, asked for layer by layer in the model's order."""

    def variables(
        self, layer: KerasLayer, inner: str, roles: Sequence[str]
    ) -> list[StoredVariable]:
        """Variables of a layer, one for each role.

        Parameters
        ----------
        inner
            Path below the layer: ``cell``, ``forward_layer/cell``; empty for a dense layer.
        roles
            ``kernel``, ``recurrent_kernel`` or ``bias``, in the order of the result.
        """


class PathVariables:
    """Variables by path, of Keras 3 and of ``.keras`` since 2.12: ``layers/lstm/cell/vars/0``."""

    def __init__(self, tree: Hdf5Tree) -> None:
        self._tree = tree

    def variables(
        self, layer: KerasLayer, inner: str, roles: Sequence[str]
    ) -> list[StoredVariable]:
        folder = "/".join(part for part in (layer.path, inner, "vars") if part)
        result = []
        for k, role in enumerate(roles):
            variable = self._tree.variable(f"{folder}/{k}")
            if variable is None:
                raise _missing(layer, role, f"{folder}/{k}")
            result.append(variable)
        return result


class NamedVariables:
    """Variables by name, of a legacy ``.h5`` where outermost layers list their own."""

    def __init__(self, tree: Hdf5Tree, root: str) -> None:
        self._tree, self._root = tree, root
        self._unused_names: dict[str, list[str]] = {}

    def variables(
        self, layer: KerasLayer, inner: str, roles: Sequence[str]
    ) -> list[StoredVariable]:
        if layer.group not in self._unused_names:
            names = self._tree.texts(self._root + layer.group, "weight_names") or []
            self._unused_names[layer.group] = [n for n in names if variable_role(n) in CELL_ROLES]
        return [self._one(layer, inner, role) for role in roles]

    def _one(self, layer: KerasLayer, inner: str, role: str) -> StoredVariable:
        unused = self._unused_names[layer.group]
        names = [n for n in _narrowed(unused, layer, inner) if variable_role(n) == role]
        if not names:
            raise _missing(layer, role, None)
        if len(names) > 1:
            raise WeightsError(
                f"the file does not state which {role} belongs to {layer.title}",
                expected=f"one variable with the name of the layer: {shortened(layer.name)}/{role}",
                found=", ".join(shortened(name) for name in names[:8]),
                hint="load the model and save it again: model.save('model.keras')",
            )
        unused.remove(names[0])
        path = f"{self._root}{layer.group}/{names[0]}"
        variable = self._tree.variable(path)
        if variable is None:
            raise _missing(layer, role, path)
        return variable


def _narrowed(names: Sequence[str], layer: KerasLayer, inner: str) -> Sequence[str]:
    """Names that contain the layer and its direction; all names if none does.

    The order of a list is no help, because frozen variables stand at its end. The deepest
    match wins, because a model may have the name of a layer in it.
    """
    parts = {name: name.split("/")[:-1] for name in names}
    last_part = {n: len(p) - p[::-1].index(layer.name) for n, p in parts.items() if layer.name in p}
    of_layer = (
        [n for n in names if last_part.get(n) == max(last_part.values())] if last_part else names
    )
    direction = inner.split("_")[0] + "_"
    return [n for n in of_layer if any(p.startswith(direction) for p in parts[n])] or of_layer


class AssignedVariables:
    """Variables that `weights_only` has assigned to layers, of a ``.h5`` without a description."""

    def __init__(self, tree: Hdf5Tree) -> None:
        self._tree = tree
        self._places: dict[tuple[str, str], Mapping[str, str]] = {}

    def add(self, layer: KerasLayer, half: str, places: Mapping[str, str]) -> None:
        """Assign variables to a layer, or to its ``forward`` or ``backward`` half, by role."""
        self._places[layer.path, half] = places

    def variables(
        self, layer: KerasLayer, inner: str, roles: Sequence[str]
    ) -> list[StoredVariable]:
        half = inner.partition("_")[0] if "_" in inner else ""
        result = []
        for role in roles:
            place = self._places[layer.path, half].get(role)
            variable = None if place is None else self._tree.variable(place)
            if variable is None:
                raise _missing(layer, role, place)
            result.append(variable)
        return result


def variable_role(name: str) -> str:
    """Role of a variable by its name: ``kernel`` for ``lstm/lstm_cell/kernel:0``."""
    return name.rsplit("/", 1)[-1].split(":")[0]


def _missing(layer: KerasLayer, role: str, place: str | None) -> WeightsError:
    return WeightsError(
        f"{layer.title} has no {role} in the file",
        expected=role,
        found="nothing" if place is None else shortened(place),
    )
