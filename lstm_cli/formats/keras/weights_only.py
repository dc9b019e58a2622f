"""Files of weights without a description: layers inferred from names and shapes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lstm_cli.engines.types import Layers
from lstm_cli.errors import Problem, WeightsError, shortened
from lstm_cli.formats.keras.architecture import (
    CELL_ROLES,
    AssignedVariables,
    KerasLayer,
    PathVariables,
    VariableSource,
    layer_title,
    snake_case,
    variable_role,
)
from lstm_cli.formats.keras.layer_order import (
    ORDER_INDEPENDENT,
    SAVE_MODEL_HINT,
    NameNumbers,
    UnplacedLayer,
    order_layers,
)
from lstm_cli.formats.keras.network_builder import MAX_PROBLEMS, SAVE_REST
from lstm_cli.formats.keras.options import LayerOptions
from lstm_cli.formats.keras.recurrent import KINDS, cudnn_error, is_cudnn_bias
from lstm_cli.hdf5.image import Hdf5Tree

Shape = tuple[int, ...]

KIND_BY_GATE_COUNT = {4: "LSTM", 3: "GRU", 1: "SimpleRNN"}
WEIGHTLESS = (
    *ORDER_INDEPENDENT,
    "Flatten",
    "Softmax",
    "ReLU",
    "LeakyReLU",
    "ELU",
    "ThresholdedReLU",
)
_KIND_BY_NAME = {snake_case(kind): kind for kind in (*WEIGHTLESS, "Activation")} | {
    "reshape": "Flatten"
}
"""Layers without weights by their usual names. A Reshape is read as a Flatten: the file lacks its
shape, and with another shape the next layer would not fit."""
_UNSUPPORTED_NAMES = re.compile(
    r"add|subtract|multiply|average|maximum|minimum|concatenate|dot|lambda|permute|repeat_vector|"
    r"(additive_)?attention|(global_)?(max|average)_pooling\dd|(up_sampling|zero_padding|cropping)\dd"
)
"""Usual names of unsupported layers without weights."""
_MODELS = ("sequential", "functional", "model")
_WEIGHTED = ("lstm", "gru", "simple_rnn", "rnn", "bidirectional", "time_distributed", "dense")
LAYER_ORDER_ATTRIBUTE = "layer_order"
"""Attribute with the names of the layers in order, in files that lstm-cli wrote."""


def has_variable_paths(tree: Hdf5Tree) -> bool:
    """Whether a file has variables by path, as Keras 3 writes them."""
    return any(re.search(r"(^|/)vars/\d+$", path) for path in tree.datasets())


def layers_by_path(
    tree: Hdf5Tree, layers: Layers | None = None
) -> tuple[list[KerasLayer], list[str], VariableSource]:
    """Layers of a Keras 3 weights file from input to output, notes, and the source of variables.

    Parameters
    ----------
    layers
        Layers of a config that the file's layers must match.

    Raises
    ------
    WeightsError
        The file has an unsupported layer, or does not determine the order.
    """
    listed, attribute_paths = (
        _listed_layer_paths(tree.paths()),
        _attribute_layer_paths(tree.datasets()),
    )
    unlike = [path for path in listed if _stem(path) in _UNSUPPORTED_CLASSES]
    if unlike:
        raise _unsupported_layers(unlike)
    order = tree.texts("layers", LAYER_ORDER_ATTRIBUTE) or []
    places = {f"layers/{name}": k for k, name in enumerate(order)}
    if attribute_paths or places.keys() != set(listed):
        places = {}
    candidates = [
        _layer_at(tree, path, path in listed, places.get(path, 0))
        for path in (*listed, *attribute_paths)
    ]
    numbers = NameNumbers.NO_ORDER if attribute_paths else _number_meaning(tree)
    found, notes = order_layers(candidates, numbers=numbers, layers=layers)
    return found, notes, PathVariables(tree)


def _number_meaning(tree: Hdf5Tree) -> NameNumbers:
    """Meaning of the numbers in paths, which follow the model's list of layers.

    The list of a Sequential or Functional model is in order. A model of a user-defined class lists
    layers as they were constructed; newer files show it by its name.
    """
    name = tree.text("vars", "name")
    if "layers/input_layer" in tree or (name is not None and _stem(name) in _MODELS):
        return NameNumbers.ORDER
    return NameNumbers.UNKNOWN if name is None else NameNumbers.NO_ORDER


def _listed_layer_paths(paths: Iterable[str]) -> list[str]:
    # With the layers of nested models: layers/sequential/layers/gru.
    models = "|".join(_MODELS)
    pattern = re.compile(rf"(?:layers/(?:{models})(?:_\d+)?/)*layers/[^/]+")
    found = {match.group() for path in paths if (match := pattern.match(path))}
    return sorted(path for path in found if _stem(path) not in _MODELS)


def _attribute_layer_paths(datasets: Sequence[str]) -> list[str]:
    # Layers that are attributes of a model of a user-defined class: encoder.
    inner = r"/(cell|layer|forward_layer|backward_layer|vars)/.*"
    others = ("layers/", "vars/", "optimizer/", "_optimizer")
    return sorted({re.sub(inner, "", path) for path in datasets if not path.startswith(others)})


def _stem(path: str) -> str:
    return re.sub(r"_\d+$", "", path.rsplit("/", 1)[-1])


def _layer_at(tree: Hdf5Tree, path: str, listed: bool, place: int) -> UnplacedLayer:
    """Layer whose variables are below a path."""
    stem, shape = _stem(path), tree.shape
    if f"{path}/forward_layer/cell/vars/0" in tree:
        inner = [_recurrent(shape, f"{path}/{d}_layer/cell/vars/") for d in ("forward", "backward")]
        return _unplaced(_bidirectional(*inner), path, place, directions=2)
    if f"{path}/cell/vars/0" in tree:
        guess = _recurrent(shape, f"{path}/cell/vars/")
    elif f"{path}/layer/vars/0" in tree:
        _, config, input_size, output_size = _dense(shape, f"{path}/layer/vars/")
        inner_layer = {"class_name": "Dense", "config": config}
        guess = "TimeDistributed", {"layer": inner_layer}, input_size, output_size
    elif f"{path}/vars/0" in tree:
        if f"{path}/vars/2" in tree:  # only cuDNN's layers have three without a cell
            _recurrent(shape, f"{path}/vars/")
            raise _unknown_weights(path)
        guess = _dense(shape, f"{path}/vars/")
    else:
        return _layer_without_weights(stem, path, place)
    if listed and stem not in _WEIGHTED:
        raise _unsupported(stem, path)
    return _unplaced(guess, path, place)


LayerGuess = tuple[str, dict[str, Any], int, int]
"""Class, config, input size, output size."""


def _recurrent(shape: Callable[[str], Shape | None], folder: str) -> LayerGuess:
    return recurrent_guess([shape(f"{folder}{k}") for k in range(3)], folder)


def recurrent_guess(shapes: Sequence[Shape | None], where: str) -> LayerGuess:
    """Guess a recurrent layer from the shapes of kernel, recurrent kernel and bias."""
    kernel, inner, bias = shapes
    if kernel is None or inner is None or len(kernel) != 2 or len(inner) != 2 or 0 in inner:
        raise _unknown_weights(where)
    D, (H, width) = kernel[0], inner
    kind = KIND_BY_GATE_COUNT.get(width // H)
    if kind is None or width % H or (bias is not None and len(bias) not in (1, 2)):
        raise _unknown_weights(where)
    if is_cudnn_bias(kind, width, bias):
        raise cudnn_error(f"the layer {shortened(where.strip('/'))}", kind)
    config = {"units": H, "use_bias": bias is not None, "return_sequences": True}
    if kind == "GRU" and bias is not None:
        config["reset_after"] = len(bias) == 2
    return kind, config, D, H


def _dense(shape: Callable[[str], Shape | None], folder: str) -> LayerGuess:
    return dense_guess([shape(f"{folder}{k}") for k in range(2)], folder)


def dense_guess(shapes: Sequence[Shape | None], where: str) -> LayerGuess:
    """Guess a dense layer from the shapes of kernel and bias."""
    kernel, bias = shapes
    if kernel is None or len(kernel) != 2 or (bias is not None and bias != kernel[1:]):
        raise _unknown_weights(where)
    config = {"units": kernel[1], "use_bias": bias is not None}
    return "Dense", config, kernel[0], kernel[1]


def _bidirectional(forward: LayerGuess, reverse: LayerGuess) -> LayerGuess:
    (kind, config, D, H), (other, back, _, _) = forward, reverse
    biased = [one for one in (config, back) if one["use_bias"]]
    if kind == other == "GRU" and len(biased) == 1:  # the direction with biases decides for both
        config["reset_after"] = back["reset_after"] = biased[0]["reset_after"]
    both = {
        "layer": {"class_name": kind, "config": config},
        "backward_layer": {"class_name": other, "config": {**back, "go_backwards": True}},
    }
    return "Bidirectional", both, D, 2 * H


def _layer_without_weights(stem: str, path: str, place: int) -> UnplacedLayer:
    kind = _KIND_BY_NAME.get(stem)
    if kind is None:
        raise _unsupported(stem, path)
    return UnplacedLayer(_layer(kind, {}, path, path), path, group=place)


def _unplaced(guess: LayerGuess, path: str, place: int, directions: int = 1) -> UnplacedLayer:
    kind, config, input_size, output_size = guess
    inner = config["layer"]["class_name"] if kind == "Bidirectional" else kind
    return UnplacedLayer(
        _layer(kind, config, path, path),
        path,
        input_size,
        output_size,
        kind=KINDS.get(inner, "dense"),
        directions=directions,
        group=place,
    )


def _layer(kind: str, config: dict[str, Any], path: str, group: str) -> KerasLayer:
    name = path.rsplit("/", 1)[-1]
    return KerasLayer(kind, name, LayerOptions(layer_title(kind, name), config), path, group)


_UNSUPPORTED_CLASSES = {
    snake_case(kind): kind
    for kind in (
        "Embedding", "Conv1D", "Conv2D", "ConvLSTM1D", "SeparableConv1D", "BatchNormalization",
        "LayerNormalization", "UnitNormalization", "GroupNormalization", "PReLU", "Attention",
        "AdditiveAttention", "MultiHeadAttention", "EinsumDense", "Normalization",
    )
}  # fmt: skip
"""Unsupported classes of layers with weights, by their usual names."""


def _unsupported(stem: str, path: str) -> WeightsError:
    return _unsupported_layers([path]) if stem in _UNSUPPORTED_CLASSES else _unknown_weights(path)


def _unsupported_layers(paths: Sequence[str]) -> WeightsError:
    """Error for layers whose names show unsupported classes."""
    hint = "if they are the first layers of the model, up to model.layers[k]: " + SAVE_REST % ""
    return WeightsError(
        [
            Problem(
                f"{layer_title(_UNSUPPORTED_CLASSES[_stem(path)], _last(path))} "
                "has no counterpart in lstm-cli",
                hint=hint,
            )
            for path in paths[:MAX_PROBLEMS]
        ]
    )


def _last(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1]


def _unknown_weights(path: str) -> WeightsError:
    return WeightsError(
        f"the weights of {shortened(path.rstrip('/'))} belong to no layer that lstm-cli has",
        expected="LSTM, GRU, SimpleRNN, Bidirectional or Dense",
        hint=SAVE_MODEL_HINT,
    )


def layers_by_name(
    tree: Hdf5Tree, root: str, layers: Layers | None = None
) -> tuple[list[KerasLayer], list[str], VariableSource]:
    """Layers of a legacy weights file from input to output, notes, and the source of variables.

    The file lists the outermost layers in order. The layers of a nested model are not in order:
    frozen ones come last, and numbers in names count constructed layers. There only sizes or a
    config determine an order.
    """
    candidates: list[UnplacedLayer] = []
    chosen = AssignedVariables(tree)
    notes, left_out, in_own_model = [], [], False
    for place, group in enumerate(tree.texts(root.rstrip("/"), "layer_names") or []):
        names = tree.texts(root + group, "weight_names") or []
        listed = [name for name in names if not variable_role(name).startswith("seed_")]
        if listed:
            in_own_model = in_own_model or _in_own_scope(listed, group)
            found = _layers_of_group(tree, f"{root}{group}/", group, listed, place, chosen)
            candidates += found
            if len(found) > 1 or _is_nested_model(listed, group):
                notes.append(
                    f"{shortened(group)} is read as a nested model: its layers without weights, "
                    "such as activations, are not in the file"
                )
        elif (kind := _KIND_BY_NAME.get(_stem(group))) is not None:
            candidates.append(UnplacedLayer(_layer(kind, {}, group, group), group, group=place))
        elif _UNSUPPORTED_NAMES.fullmatch(_stem(group)):
            raise WeightsError(
                f"the layer {shortened(group)} has, by its name, no counterpart in lstm-cli",
                expected="layers in one chain, each of a kind that lstm-cli has",
                hint=SAVE_MODEL_HINT,
            )
        else:
            left_out.append(shortened(group))
    if in_own_model:
        candidates = [replace(candidate, group=0) for candidate in candidates]
    found_layers, assumed = order_layers(candidates, numbers=NameNumbers.NO_ORDER, layers=layers)
    if left_out:
        names_left = ", ".join(left_out)
        assumed.append(f"assumed to change nothing, since they have no weights: {names_left}")
    return found_layers, [*notes, *assumed], chosen


def _is_nested_model(listed: Sequence[str], group: str) -> bool:
    """Whether a group of one layer seems to be a model, because variables name another layer."""
    owner = _split_path(listed[0].rpartition("/")[0], group)[0].split("/")[-1]
    return owner not in ("", group) and _stem(group) not in _WEIGHTED


def _in_own_scope(listed: Sequence[str], group: str) -> bool:
    """Whether variables stand below a model of a user-defined class: ``net/lstm/kernel:0``.

    Keras lists the layers of such a model in the order of their construction.
    """
    parts = listed[0].split("/")[:-1]
    return group in parts[1:] and group != parts[0] and _stem(parts[0]) not in _MODELS


def _layers_of_group(
    tree: Hdf5Tree,
    folder: str,
    group: str,
    listed: Sequence[str],
    place: int,
    chosen: AssignedVariables,
) -> list[UnplacedLayer]:
    """Layers of one group: a single one, or those of a nested model."""
    units: dict[str, dict[str, str]] = {}
    for name in listed:
        if variable_role(name) not in CELL_ROLES:
            raise _unsupported(_stem(group), group)
        units.setdefault(name.rpartition("/")[0], {})[variable_role(name)] = folder + name
    parts: dict[str, dict[str, str]] = {}
    for unit in units:
        owner, half = _split_path(unit, group)
        halves = parts.setdefault(owner, {})
        if half in halves or (halves and (half == "") != ("" in halves)):
            raise _unknown_weights(f"{folder}{unit}")
        halves[half] = unit
    candidates: list[UnplacedLayer] = []
    for owner, halves in parts.items():
        guesses = [_unit_guess(tree, units[unit], unit or group) for unit in halves.values()]
        one = guesses[0]
        if "" not in halves:
            if len(halves) != 2:
                raise WeightsError(
                    f"{shortened(owner or group)} has only one direction of a Bidirectional",
                    expected="forward_ and backward_ in the names",
                    found=", ".join(shortened(unit) for unit in halves.values()),
                    hint=SAVE_MODEL_HINT,
                )
            by_half = dict(zip(halves, guesses, strict=True))
            one = _bidirectional(by_half["forward"], by_half["backward"])
        path = owner if len(parts) > 1 else group
        candidate = _unplaced(one, path, place, directions=len(halves))
        layer = replace(candidate.layer, path=f"{folder}{owner}", group=group)
        candidates.append(replace(candidate, layer=layer))
        for half, unit in halves.items():
            chosen.add(layer, half, units[unit])
    return candidates


def _split_path(unit: str, group: str) -> tuple[str, str]:
    """Layer of a variable's path, and its half of a Bidirectional; empty for other layers."""
    parts = unit.split("/")
    for k, part in enumerate(parts):
        half = part.partition("_")[0]
        if half in ("forward", "backward") and "_" in part and part != group:
            return "/".join(parts[:k]) or part.removeprefix(f"{half}_"), half
    cell = parts[-1] if len(parts) > 1 and re.fullmatch(r"\w+_cell(_\d+)?", parts[-1]) else None
    return "/".join(parts[:-1] if cell else parts), ""


def _unit_guess(tree: Hdf5Tree, unit: Mapping[str, str], where: str) -> LayerGuess:
    kernel, recurrent, bias = (
        None if role not in unit else tree.shape(unit[role]) for role in CELL_ROLES
    )
    if "recurrent_kernel" in unit:
        return recurrent_guess([kernel, recurrent, bias], where)
    return dense_guess([kernel, bias], where)
