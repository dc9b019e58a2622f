"""A Functional model's layers, followed from its output to its input: one chain, or an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

from lstm_cli.errors import WeightsError
from lstm_cli.formats.keras.words import Options, shown, shown_value

DEEPEST = 16


def chained(model: Options, entries: Sequence[Any]) -> list[Any]:
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
            raise WeightsError(f"{model.owner} has no way from {shown(last)} back to its input")
        found.append(entry)
        if name == first:
            return found[::-1]
        name = _source(entry, name)


def _only(model: Options, key: str) -> str:
    """The one input or output; Keras 3 writes a bare triple for one, Keras 2 a list of one."""
    value = model.get(key)
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list) and value and not isinstance(value[0], str):
        if len(value) > 1:
            names = ", ".join(shown_value(v[0] if isinstance(v, list) and v else v) for v in value)
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
        _refuse(entry, name, "reads no other layer")
    if len(nodes) > 1:
        _refuse(entry, name, "is used more than once")
    histories = list(_histories(nodes[0]))
    if len(histories) != 1:
        names = ", ".join(shown_value(history[0]) for history in histories)
        _refuse(entry, name, f"reads {len(histories)} tensors: {names}" if names else "reads none")
    # The number of the use may be 1: Keras 2 counts the making of a model within it as one.
    source, _, tensor = histories[0]
    if tensor != 0:
        _refuse(entry, name, f"reads a state of {shown_value(source)}")
    if not isinstance(source, str):
        _refuse(entry, name, "reads what has no name")
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
    if depth > DEEPEST:
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
    if depth > DEEPEST:
        raise WeightsError("the model's description is nested too deep")
    if not isinstance(value, list):
        return
    if len(value) == 3 and isinstance(value[0], str) and isinstance(value[1], int):
        yield value[0], value[1], value[2]
        return
    for item in value:
        yield from _references(item, depth + 1)


def _refuse(entry: Mapping[str, Any], name: str, why: str) -> NoReturn:
    kind = shown_value(entry.get("class_name"))
    raise WeightsError(
        f"the layer {shown(name)} ({kind}) {why}", expected="layers in one chain, each used once"
    )
