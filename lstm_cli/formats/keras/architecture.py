"""A model's description as the chain of layers that it is."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lstm_cli.errors import WeightsError
from lstm_cli.formats.keras.graph import chained
from lstm_cli.formats.keras.words import Options, options, shown, shown_value

MODELS = ("Sequential", "Functional", "Model")
DEEPEST = 8
MOST_LAYERS = 10_000
_OURS = ("keras", "tf_keras", "tensorflow", "builtins")


@dataclass(frozen=True)
class Layer:
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
    options: Options
    path: str
    group: str

    @property
    def title(self) -> str:
        """The layer in an error's words."""
        return self.options.owner


def title(kind: str, name: str) -> str:
    """A layer in an error's words."""
    return f"the layer {shown(name)} ({shown(kind)})"


def layers_of(model: Any, path: str = "", group: str | None = None, depth: int = 0) -> list[Layer]:
    """All layers, input to output, those of models within it in their place.

    Raises
    ------
    WeightsError
        The layers are no chain, one is the user's own class, or the description is malformed.
    """
    kind, name = class_of(model), _name(model)
    if kind not in MODELS or depth > DEEPEST:
        raise WeightsError(
            f"the model {shown(name)} is of class {shown(kind)}, whose code is not in the file",
            expected="a Sequential or Functional model",
            hint="rebuild it as one and load the weights there, then save that one",
        )
    entries = _entries(model, name)
    listed = _places([class_of(entry) for entry in entries], path)
    places = {id(entry): place for entry, place in zip(entries, listed, strict=True)}
    if kind != "Sequential":
        entries = chained(options(f"the model {shown(name)}", model["config"]), entries)
    found: list[Layer] = []
    for entry in entries:
        own = group if group is not None else _name(entry)
        if class_of(entry) in MODELS:
            found += layers_of(entry, places[id(entry)] + "/", own, depth + 1)
        else:
            found.append(described(entry, places[id(entry)], own))
        if len(found) > MOST_LAYERS:
            raise WeightsError(f"the model {shown(name)} has more than {MOST_LAYERS:,} layers")
    return found


def described(entry: Any, path: str, group: str) -> Layer:
    """One layer of a description."""
    kind, name = class_of(entry), _name(entry)
    return Layer(kind, name, options(title(kind, name), entry.get("config")), path, group)


def class_of(entry: Any) -> str:
    """The class of a serialised object.

    Raises
    ------
    WeightsError
        It has none, or it is one that the user made: its code is not in the file, and would not
        be run if it were.
    """
    kind = entry.get("class_name") if isinstance(entry, Mapping) else None
    if not isinstance(kind, str):
        raise WeightsError("the model's description is malformed", found=shown_value(entry))
    module, registered = entry.get("module"), entry.get("registered_name")
    own = isinstance(module, str) and module.split(".")[0] not in _OURS
    if own or ">" in kind or (isinstance(registered, str) and ">" in registered):
        raise WeightsError(
            f"{title(kind, _name(entry))} is a class of your own, which lstm-cli does not run",
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
    if not isinstance(found, list) or len(found) > MOST_LAYERS:
        raise WeightsError(
            f"the model {shown(name)} has no list of layers", found=shown_value(found)
        )
    return found


def snake(kind: str) -> str:
    """A class as Keras writes it in paths: ``simple_rnn`` for SimpleRNN."""
    text = re.sub(r"\W+", "", kind)
    text = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", text)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", text).lower()


def _places(kinds: Sequence[str], path: str) -> list[str]:
    """Where each layer's variables are: by class, counted, in the order of the list."""
    counts: Counter[str] = Counter()
    found = []
    for kind in map(snake, kinds):
        found.append(f"{path}layers/{kind}" + (f"_{counts[kind]}" if counts[kind] else ""))
        counts[kind] += 1
    return found
