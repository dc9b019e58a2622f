"""Builder of a native config and native tensors from the layers of a TMVA file."""

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
    """Network built layer by layer.

    Attributes
    ----------
    dtype
        Dtype of all tensors.
    input_size
        Number of input features D; None before the first layer.
    steps
        Number of steps T; None until the file states it.
    size
        Number of features after the last layer; None before the first layer.
    has_steps
        Whether the last layer gives every step, not one vector per sequence.
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
        """Config with the YAML's keys."""
        steps = {} if self.steps is None else {"steps": self.steps}
        return {"model": {"input_size": self.input_size, **steps, "layers": self.layers}}

    def set_input(self, size: int) -> None:
        """Set the input size of the next layer; the first one also sets that of the network."""
        if self.input_size is None:
            self.input_size = size
        self.size = size

    def add_recurrent(
        self, layer: RecurrentElements, order: TmvaOrder, options: dict[str, Any]
    ) -> None:
        """Append a recurrent layer."""
        H, D = layer.sizes
        self.set_input(D)
        k = len(self.layers)
        self.layers.append({"type": layer.kind.name, "hidden_size": H, **options})
        slot_contents = layer.kind.slot_contents(order)
        for name, which in (("weight_ih", "W"), ("weight_hh", "U")):
            blocks = {
                letter: element
                for element, (matrix, letter) in zip(layer.weights, slot_contents, strict=True)
                if matrix == which
            }
            label_contents = layer.kind.slot_contents("labels")
            changes = {
                element.name: f"labeled {'_'.join(label)}" if label != content else ""
                for element, label, content in zip(
                    layer.weights, label_contents, slot_contents, strict=True
                )
            }
            self._stack_gates(f"layers.{k}.{name}", layer, blocks, changes)
        biases = dict(zip(layer.kind.letters, layer.biases, strict=True))
        gru = layer.kind.name == "gru"
        self._stack_gates(f"layers.{k}.bias" + ("_ih" if gru else ""), layer, biases, {})
        if gru:
            self.tensors[f"layers.{k}.bias_hh"] = np.zeros(3 * H, self.dtype)
        self.size = H
        self.has_steps = options.get("return_sequences", True)

    def add_dense(self, units: int, activation: str) -> int:
        """Append a dense layer, and return its index."""
        options = {} if activation == "identity" else {"activation": activation}
        self.layers.append({"type": "dense", "units": units, **options})
        self.size = units
        return len(self.layers) - 1

    def add_flatten(self) -> None:
        """Append a flatten layer."""
        if self.steps is None or self.size is None:  # callers check both
            raise ValueError("nothing to flatten")
        self.layers.append({"type": "flatten"})
        self.size *= self.steps
        self.has_steps = False

    def add_tensor(self, native: str, element: XmlElement, name: str) -> None:
        """Add a tensor stored in one element; a bias loses its second axis."""
        values = self._cast(element)
        self.tensors[native] = values.ravel() if native.endswith("bias") else values
        self.sources.append(TensorSource(name, values.shape, self.dtype, "", native, ""))

    def _stack_gates(
        self,
        native: str,
        layer: RecurrentElements,
        blocks: dict[str, XmlElement],
        changes: dict[str, str],
    ) -> None:
        """Add a tensor whose gates are separate elements."""
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
        with np.errstate(over="ignore"):  # infinity is refused when all weights are checked
            return values.astype(self.dtype)
