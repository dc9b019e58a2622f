"""Where a layer's variables stand: by path in today's files, by name in older ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from lstm_cli.errors import WeightsError
from lstm_cli.formats.keras.architecture import Layer
from lstm_cli.formats.keras.hdf5 import Tree, Variable
from lstm_cli.formats.keras.words import shown

CELL = ("kernel", "recurrent_kernel", "bias")
DENSE = ("kernel", "bias")


class Source(Protocol):
    """Gives variables, layer by layer in the model's order."""

    def take(self, layer: Layer, inner: str, roles: Sequence[str]) -> list[Variable]:
        """The variables of these roles.

        Parameters
        ----------
        inner
            Where in the layer's own path they are: ``cell``, ``forward_layer/cell``.
        """


class Paths:
    """Keras 3, and Keras 2.12 on in ``.keras``: ``layers/lstm/cell/vars/0``."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    def take(self, layer: Layer, inner: str, roles: Sequence[str]) -> list[Variable]:
        folder = "/".join(part for part in (layer.path, inner, "vars") if part)
        found = []
        for k, role in enumerate(roles):
            variable = self._tree.variable(f"{folder}/{k}")
            if variable is None:
                raise _missing(layer, role, f"{folder}/{k}")
            found.append(variable)
        return found


class Names:
    """Legacy ``.h5`` with a description: each outermost layer lists its variables by name."""

    def __init__(self, tree: Tree, root: str) -> None:
        self._tree, self._root = tree, root
        self._left: dict[str, list[str]] = {}

    def take(self, layer: Layer, inner: str, roles: Sequence[str]) -> list[Variable]:
        if layer.group not in self._left:
            names = self._tree.texts(self._root + layer.group, "weight_names") or []
            self._left[layer.group] = [n for n in names if role_of(n) in CELL]
        return [self._one(layer, inner, role) for role in roles]

    def _one(self, layer: Layer, inner: str, role: str) -> Variable:
        left = self._left[layer.group]
        names = [n for n in _narrowed(left, layer, inner) if role_of(n) == role]
        if not names:
            raise _missing(layer, role, None)
        if len(names) > 1:
            raise WeightsError(
                f"the file does not say which {role} is that of {layer.title}",
                expected=f"one name that tells it: {shown(layer.name)}/{role}",
                found=", ".join(shown(name) for name in names[:8]),
                hint="load the model and save it again: model.save('model.keras')",
            )
        left.remove(names[0])
        path = f"{self._root}{layer.group}/{names[0]}"
        variable = self._tree.variable(path)
        if variable is None:
            raise _missing(layer, role, path)
        return variable


def _narrowed(names: Sequence[str], layer: Layer, inner: str) -> Sequence[str]:
    """Names of the layer and its direction; all, where none names them.

    A list does not tell: what was frozen in training stands at its end. Of several that name the
    layer, the ones that do so last: a model may have the name of a layer in it.
    """
    parts = {name: name.split("/")[:-1] for name in names}
    last = {n: len(p) - p[::-1].index(layer.name) for n, p in parts.items() if layer.name in p}
    own = [n for n in names if last.get(n) == max(last.values())] if last else names
    direction = inner.split("_")[0] + "_"
    return [n for n in own if any(p.startswith(direction) for p in parts[n])] or own


class Chosen:
    """Legacy ``.h5`` without a description: variables that were told apart beforehand."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._places: dict[tuple[str, str], Mapping[str, str]] = {}

    def add(self, layer: Layer, half: str, places: Mapping[str, str]) -> None:
        """Variables of a layer, or of its ``forward`` or ``backward`` half, by role."""
        self._places[layer.path, half] = places

    def take(self, layer: Layer, inner: str, roles: Sequence[str]) -> list[Variable]:
        half = inner.partition("_")[0] if "_" in inner else ""
        found = []
        for role in roles:
            place = self._places[layer.path, half].get(role)
            variable = None if place is None else self._tree.variable(place)
            if variable is None:
                raise _missing(layer, role, place)
            found.append(variable)
        return found


def role_of(name: str) -> str:
    """What a variable of this name is: ``kernel`` for ``lstm/lstm_cell/kernel:0``."""
    return name.rsplit("/", 1)[-1].split(":")[0]


def _missing(layer: Layer, role: str, place: str | None) -> WeightsError:
    return WeightsError(
        f"{layer.title} has no {role} in the file",
        expected=role,
        found="nothing" if place is None else shown(place),
    )
