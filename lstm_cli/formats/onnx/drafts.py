"""Layers as they are found, from the last to the first: options, tensors, where these stood."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lstm_cli.cells import Activation
from lstm_cli.cells.activations import SIGMOID, TANH
from lstm_cli.engines.types import Array
from lstm_cli.formats.interchange import TensorSource
from lstm_cli.formats.onnx.unrolled import stored_weight
from lstm_cli.formats.onnx.values import Guess, Linear, Recurrent, RefusedError, Weight

LARGEST, WIDEST = 1 << 27, 1 << 25
"""Numbers of the largest matrix, and of the largest one that is mostly 0."""


@dataclass
class Draft:
    """One layer.

    Attributes
    ----------
    config
        As the YAML has it.
    tensors
        By native name within the layer.
    inputs
        Names of those whose columns are input features.
    stored
        Native names within the layer.
    where
        The node it comes from.
    directions
        Those of a recurrent layer.
    """

    config: dict[str, Any]
    tensors: dict[str, Array] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()
    stored: list[TensorSource] = field(default_factory=list)
    where: str = ""
    directions: tuple[Recurrent, ...] = ()

    def widen(self, places: Array, size: int, blocks: int = 1) -> None:
        """Read features `places` of `size` ones, of each of `blocks` steps side by side.

        Raises
        ------
        RefusedError
            The matrix would be out of proportion.
        """
        if places.size == size and (places == np.arange(size)).all():
            return
        for name in self.inputs:
            matrix = self.tensors[name]
            rows = matrix.shape[0]
            if rows * size * blocks > WIDEST:
                raise RefusedError(f"{rows} x {size * blocks} weights, most of them 0")
            wide = np.zeros((rows, blocks, size), matrix.dtype)
            own = matrix.reshape(rows, blocks, -1)
            if np.unique(places).size == places.size:
                wide[:, :, places] = own
            else:
                for k, place in enumerate(places):
                    wide[:, :, place] += own[:, :, k]
            self.tensors[name] = wide.reshape(rows, -1)
        self.stored = [
            replace(entry, change=", ".join(filter(None, (entry.change, "columns placed"))))
            if entry.native in self.inputs
            else entry
            for entry in self.stored
        ]

    def reorder(self, places: Array) -> None:
        """Read an input whose feature ``places[k]`` is what was feature k."""
        self.widen(places, places.size)


def selection(places: Array, size: int, dtype: Any, where: str) -> Draft:
    """A dense layer that only picks features."""
    if places.size * size > WIDEST:
        raise RefusedError(f"a matrix of {places.size:,} x {size:,}")
    weight = np.zeros((places.size, size), dtype)
    weight[np.arange(places.size), places] = 1
    return Draft(
        {"type": "dense", "units": int(places.size), "bias": False},
        {"weight": weight},
        ("weight",),
        where=where,
    )


def dense(atom: Linear, activation: Activation | None) -> Draft:
    """A dense layer: all summands' matrices side by side; None is softmax."""
    rows = sum(term.source.pick.size for term in atom.terms)
    if rows * atom.size > LARGEST:
        raise RefusedError(f"a matrix of {rows:,} x {atom.size:,}")
    matrices = [_matrix(term.weight) for term in atom.terms]
    weight = np.concatenate(matrices, axis=0).T if len(matrices) > 1 else matrices[0].T
    stored = [e for term in atom.terms for e in stored_weight(term.weight, "weight")]
    stored += stored_weight(atom.bias, "bias")
    config: dict[str, Any] = {"type": "dense", "units": atom.size}
    if activation is None:
        config["activation"] = "softmax"
    elif activation.name != "identity":
        config["activation"] = named(activation)
    arrays = {"weight": weight}
    if atom.bias is None:
        config["bias"] = False
    else:
        arrays["bias"] = atom.bias.array
    dtype = np.result_type(*arrays.values())
    tensors = {name: array.astype(dtype, copy=False) for name, array in arrays.items()}
    return Draft(config, tensors, ("weight",), stored, atom.where)


def _matrix(weight: Weight) -> Array:
    """(in, out)."""
    if not weight.diagonal:
        return weight.array
    if weight.array.size**2 > WIDEST:
        raise RefusedError(f"{weight.array.size} x {weight.array.size} weights, most of them 0")
    dtype = np.float32 if weight.identity else weight.array.dtype
    return np.diag(weight.array.astype(dtype))


def named(activation: Activation) -> Any:
    """An activation as the YAML has it: a name, or a mapping where a parameter is not usual."""
    plain = Activation(activation.name)
    found = {
        key: getattr(activation, key)
        for key in ("alpha", "beta")
        if getattr(activation, key) != getattr(plain, key)
    }
    return {"name": activation.name, **found} if found else activation.name


def recurrent(parts: Sequence[Recurrent], returns: bool) -> Draft:
    """A recurrent layer of a forward direction and perhaps a reverse one."""
    first = parts[0]
    config: dict[str, Any] = {"type": first.kind, "hidden_size": first.size}
    if len(parts) == 2:
        config["bidirectional"] = True
    biases = dict.fromkeys(name for part in parts for name in part.tensors if "bias" in name)
    if not biases:
        config["bias"] = False
    if not returns:
        config["return_sequences"] = False
    config |= _options([part.options for part in parts], [part.guesses for part in parts])
    draft = Draft(config, where=first.where, directions=tuple(parts))
    for prefix, part in zip(("", "reverse."), parts, strict=False):
        draft.tensors |= {prefix + name: value for name, value in part.tensors.items()}
        for name in biases:  # 0 in a direction that has none, beside one that has
            rows = part.tensors["weight_hh"][:, 0]
            draft.tensors.setdefault(prefix + name, np.zeros_like(rows))
        draft.inputs += (prefix + "weight_ih",)
        draft.stored += [replace(e, native=prefix + e.native) for e in part.stored]
    return draft


def silent(part: Recurrent) -> Recurrent:
    """A forward direction of zeros, to stand before a reverse one."""
    tensors = {name: np.zeros_like(value) for name, value in part.tensors.items()}
    return replace(part, reverse=False, tensors=tensors, stored=())


def _options(
    options: Sequence[Mapping[str, Any]], guesses: Sequence[Sequence[Guess]]
) -> dict[str, Any]:
    """What differs from the defaults; activations as mappings where parameters are a guess."""
    found: dict[str, Any] = {}
    open_ = any(guesses)
    for key, value in options[0].items():
        pair = [own.get(key) for own in options]
        if isinstance(value, Activation) and open_:
            names = [_parametrised(activation) for activation in pair]
            found[key] = names[0] if all(a == pair[0] for a in pair) else names
        elif isinstance(value, Activation):
            found |= _activations(key, pair, options)
        elif key == "reset_after":
            found |= {} if value else {key: False}
        elif value:
            found[key] = value
    return found


def _parametrised(activation: Any) -> Any:
    """An activation with all of its parameters, so that ``--set`` can change one of them."""
    given = {"name": activation.name, "alpha": activation.alpha, "beta": activation.beta}
    found = {key: value for key, value in given.items() if value is not None}
    return found if len(found) > 1 else activation.name


def guess_notes(drafts: Sequence[Draft]) -> Iterator[str]:
    """Parameters of activations that may be meant otherwise, and how to set them."""
    for k, draft in enumerate(drafts):
        for d, part in enumerate(draft.directions):
            for guess in part.guesses:
                place = f".{d}" if isinstance(draft.config[guess.role], list) else ""
                yield (
                    f"{part.where}: the {guess.letter} of its {guess.name} is read as "
                    f"{guess.value:g}; {guess.why} {guess.other:g}: --set model.layers.{k}."
                    f"{guess.role}{place}.{guess.letter}={guess.other:g}"
                )


def zero_states(drafts: Sequence[Draft]) -> dict[tuple[int, str], tuple[int, ...]]:
    """States that the model begins with 0: layer and letter to directions.

    Empty for a model that is fed no state at all: it says nothing of how it would go on.
    """
    found: dict[tuple[int, str], tuple[int, ...]] = {}
    layers = [(k, draft) for k, draft in enumerate(drafts) if "hidden_size" in draft.config]
    if not any(part.fed for _, draft in layers for part in draft.directions):
        return found
    for k, draft in layers:
        for letter in "hc" if draft.config["type"] == "lstm" else "h":
            own = [d for d, part in enumerate(draft.directions) if letter not in part.fed]
            found |= {(k, letter): tuple(own)} if own else {}
    return found


def state_notes(
    drafts: Sequence[Draft], zero: Mapping[tuple[int, str], tuple[int, ...]]
) -> Iterator[str]:
    """Which states begin with 0 though others are fed."""
    for (k, letter), directions in zero.items():
        parts = [drafts[k].directions[d] for d in directions]
        for where in dict.fromkeys(part.where for part in parts):
            yield (
                f"{where} has no initial_{letter} that is fed: its {letter} (layer {k}) begins "
                "with 0, as in ONNX Runtime, whatever --state holds"
            )


def _activations(
    key: str, pair: Sequence[Any], options: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    usual: list[Any] = [SIGMOID if key == "recurrent_activation" else TANH] * len(pair)
    if key == "cell_activation":
        usual = [own["activation"] for own in options]
    if list(pair) == usual:
        return {}
    names = [named(activation) for activation in pair]
    return {key: names[0] if all(a == pair[0] for a in pair) else names}
