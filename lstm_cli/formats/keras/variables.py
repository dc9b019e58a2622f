"""Where a layer's variables stand: by path in today's files, by name in older ones."""

from __future__ import annotations

from collections.abc import Sequence
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
    """Legacy ``.h5``: each outermost layer lists its variables by name."""

    def __init__(self, tree: Tree, root: str) -> None:
        self._tree, self._root = tree, root
        self._left: dict[str, list[str]] = {}

    def listed(self, group: str) -> list[str]:
        """Names of the variables of an outermost layer."""
        return self._tree.texts(self._root + group, "weight_names") or []

    def take(self, layer: Layer, inner: str, roles: Sequence[str]) -> list[Variable]:
        if layer.group not in self._left:
            self._left[layer.group] = [n for n in self.listed(layer.group) if role_of(n) in CELL]
        return [self._one(layer, inner, role) for role in roles]

    def _one(self, layer: Layer, inner: str, role: str) -> Variable:
        left = self._left[layer.group]
        found = next((n for n in _narrowed(left, layer, inner) if role_of(n) == role), None)
        if found is None:
            raise _missing(layer, role, None)
        left.remove(found)
        path = f"{self._root}{layer.group}/{found}"
        variable = self._tree.variable(path)
        if variable is None:
            raise _missing(layer, role, path)
        return variable


def _narrowed(names: Sequence[str], layer: Layer, inner: str) -> Sequence[str]:
    """Those that name the layer and its direction; all, where none does.

    The list alone would not do: what was frozen in training stands at its end.
    """
    own = [name for name in names if layer.name in name.split("/")] or names
    direction = inner.split("_")[0] + "_"
    return [n for n in own if any(p.startswith(direction) for p in n.split("/"))] or own


def role_of(name: str) -> str:
    """What a variable of this name is: ``kernel`` for ``lstm/lstm_cell/kernel:0``."""
    return name.rsplit("/", 1)[-1].split(":")[0]


def _missing(layer: Layer, role: str, place: str | None) -> WeightsError:
    return WeightsError(
        f"{layer.title} has no {role} in the file",
        expected=role,
        found="nothing" if place is None else shown(place),
    )
