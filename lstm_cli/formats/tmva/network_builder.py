"""Layers put together as they are come upon: config, tensors, and what flows between them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.formats.gates import NATIVE_GATES
from lstm_cli.formats.interchange import TensorSource, TmvaOrder
from lstm_cli.formats.tmva.document import XmlElement
from lstm_cli.formats.tmva.slots import RecurrentElements


@dataclass
class TmvaNetworkBuilder:
    """A network as far as it has been read.

    Attributes
    ----------
    dtype
        Of all its tensors.
    input_size
        D; None before the first layer.
    steps
        T, where something has said it.
    size
        Features that flow at this point; None before the first layer.
    has_steps
        Whether steps flow at this point, or one vector a sequence.
    """

    dtype: str
    steps: int | None = None
    input_size: int | None = None
    size: int | None = None
    has_steps: bool = True
    layers: list[dict[str, Any]] = field(default_factory=list)
    tensors: dict[str, Array] = field(default_factory=dict)
    sources: list[TensorSource] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def config(self) -> dict[str, Any]:
        """In the YAML's words."""
        steps = {} if self.steps is None else {"steps": self.steps}
        return {"model": {"input_size": self.input_size, **steps, "layers": self.layers}}

    def reads(self, size: int) -> None:
        """The next layer reads this many features: the network's own, if it is the first."""
        if self.input_size is None:
            self.input_size = size
        self.size = size

    def recurrent(
        self, layer: RecurrentElements, order: TmvaOrder, options: dict[str, Any]
    ) -> None:
        """Append a recurrent layer that reads steps."""
        H, D = layer.sizes
        self.reads(D)
        k = len(self.layers)
        self.layers.append({"type": layer.kind.name, "hidden_size": H, **options})
        slot_contents = layer.kind.slot_contents(order)
        for name, which in (("weight_ih", "W"), ("weight_hh", "U")):
            blocks = {
                letter: element
                for element, (matrix, letter) in zip(layer.weights, slot_contents, strict=True)
                if matrix == which
            }
            labels = layer.kind.slot_contents("labels")
            changes = {
                element.name: f"labelled {'_'.join(label)}" if label != hold else ""
                for element, label, hold in zip(layer.weights, labels, slot_contents, strict=True)
            }
            self._stack(f"layers.{k}.{name}", layer, blocks, changes)
        biases = dict(zip(layer.kind.letters, layer.biases, strict=True))
        gru = layer.kind.name == "gru"
        self._stack(f"layers.{k}.bias" + ("_ih" if gru else ""), layer, biases, {})
        if gru:
            self.tensors[f"layers.{k}.bias_hh"] = np.zeros(3 * H, self.dtype)
        self.size = H
        self.has_steps = options.get("return_sequences", True)

    def dense(self, units: int, activation: str) -> int:
        """Append a dense layer; its index."""
        options = {} if activation == "identity" else {"activation": activation}
        self.layers.append({"type": "dense", "units": units, **options})
        self.size = units
        return len(self.layers) - 1

    def flatten(self) -> None:
        """Append a layer that lays the steps side by side."""
        if self.steps is None or self.size is None:  # the caller has made sure of both
            raise ValueError("nothing to flatten")
        self.layers.append({"type": "flatten"})
        self.size *= self.steps
        self.has_steps = False

    def take(self, native: str, element: XmlElement, name: str) -> None:
        """A tensor that is one element; a bias loses its second axis."""
        values = self._cast(element)
        self.tensors[native] = values.ravel() if native.endswith("bias") else values
        self.sources.append(TensorSource(name, values.shape, self.dtype, "", native, ""))

    def _stack(
        self,
        native: str,
        layer: RecurrentElements,
        blocks: dict[str, XmlElement],
        changes: dict[str, str],
    ) -> None:
        """A tensor whose gates stand in elements of their own."""
        flat = "bias" in native
        letters = NATIVE_GATES[layer.kind.name]
        values = [self._cast(blocks[letter]) for letter in letters]
        self.tensors[native] = np.concatenate([v.ravel() if flat else v for v in values])
        for letter, value in zip(letters, values, strict=True):
            element = blocks[letter]
            change = changes.get(element.name, "")
            name = f"{layer.name}/{element.name}"
            self.sources.append(
                TensorSource(name, value.shape, self.dtype, "", native, letter, change)
            )

    def _cast(self, element: XmlElement) -> Array:
        values = np.zeros((0, 0)) if element.values is None else element.values
        with np.errstate(over="ignore"):  # infinity is refused where all weights are checked
            return values.astype(self.dtype)
