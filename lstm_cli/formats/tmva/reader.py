"""A TMVA weights file as a network: each layer in turn, and what flows between them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lstm_cli.errors import WeightsError
from lstm_cli.formats.interchange import Imported, ReadOptions, TmvaOrder
from lstm_cli.formats.tmva.document import (
    FLOAT32_DIGITS,
    TmvaDocument,
    XmlElement,
    check_declared,
    parse,
    read_activation,
    read_output_function,
    read_size,
    read_switch,
)
from lstm_cli.formats.tmva.header import (
    find_network,
    format_title,
    known_writer_order,
    training_notes,
)
from lstm_cli.formats.tmva.network_builder import TmvaNetworkBuilder
from lstm_cli.formats.tmva.slots import (
    LAYER_KINDS,
    RecurrentElements,
    find_orders,
    matrix,
    recurrent_elements,
)

MAX_IDENTITY_SIZE = 4096
"""Outputs of the largest extra layer that only applies the output function."""
GATE_ORDERS = {"lstm": "i f g o", "gru": "r z n", "rnn": "h"}


def read(path: Path, options: ReadOptions) -> Imported:
    """Read a TMVA weights file.

    Raises
    ------
    WeightsError
        Not well-formed, hostile, of another method than DL, with a layer that lstm-cli has not,
        or ambiguous: names the layer, and what mends it.
    """
    document = parse(path)
    network = find_network(document)
    reader = _Reader(document, network)
    reader.run(options)
    made = reader.made
    return Imported(
        path=path,
        format="tmva",
        title=format_title(document),
        sha256=document.sha256,
        config=made.config,
        tensors=made.tensors,
        sources=tuple(made.sources),
        gate_orders={
            layer["type"]: GATE_ORDERS[layer["type"]] for layer in made.layers if _gated(layer)
        },
        notes=tuple(made.notes),
        describes_layers=True,
    )


def _gated(layer: Mapping[str, Any]) -> bool:
    return layer["type"] in GATE_ORDERS


class _Reader:
    def __init__(self, document: TmvaDocument, network: XmlElement) -> None:
        self.document, self.network = document, network
        dtype = "float64" if document.digits > FLOAT32_DIGITS else "float32"
        self.made = TmvaNetworkBuilder(dtype, steps=read_size(document, network, "InputHeight"))

    def run(self, options: ReadOptions) -> None:
        """Read all layers."""
        recurrent = self._recurrent_layers()
        writer = known_writer_order(self.document)
        found, note = find_orders(self.document, recurrent, options.tmva_order, writer)
        chosen = {layer.position: order for layer, order in zip(recurrent, found, strict=True)}
        known = {layer.position: layer for layer in recurrent}
        self.made.notes += [note] if note else []
        for position, element in enumerate(self.network.children):
            if position in known:
                self._recurrent(known[position], chosen[position])
            elif element.name == "ReshapeLayer":
                self._reshape(element, position)
            else:
                self._dense(element, position)
        self._check_input()
        self._finish()

    def _recurrent_layers(self) -> list[RecurrentElements]:
        layers = self.network.children
        for position, element in enumerate(layers):
            if element.name not in (*LAYER_KINDS, "ReshapeLayer", "DenseLayer"):
                raise WeightsError(
                    f"layer {position} is a TMVA layer that lstm-cli has not",
                    expected="LSTMLayer, GRULayer, RNNLayer, ReshapeLayer or DenseLayer",
                    found=repr(element.name[:60]),
                    where=self.document.where(element),
                )
        return [
            recurrent_elements(self.document, e, k)
            for k, e in enumerate(layers)
            if e.name in LAYER_KINDS
        ]

    def _recurrent(self, layer: RecurrentElements, order: TmvaOrder) -> None:
        document, made, element = self.document, self.made, layer.layer
        H, D = layer.sizes
        if not made.has_steps:
            raise self._misfit(layer.name, element, "every step", "one vector a sequence")
        if made.size not in (None, D):
            raise self._misfit(layer.name, element, f"{D} features", str(made.size))
        check_declared(document, element, "StateSize", H, "rows of its matrices")
        check_declared(document, element, "CellSize", H, "rows of its matrices")
        check_declared(document, element, "InputSize", D, "columns of its input matrices")
        self._steps(layer)
        made.recurrent(layer, order, self._options(layer))

    def _steps(self, layer: RecurrentElements) -> None:
        """TimeSteps say T; a file whose first layer is recurrent may lay its input out anyhow."""
        made, steps = self.made, read_size(self.document, layer.layer, "TimeSteps")
        if steps is None:
            return
        if made.size is not None and made.steps not in (None, steps):
            raise self._misfit(layer.name, layer.layer, f"{steps} steps", str(made.steps))
        made.steps = steps

    def _options(self, layer: RecurrentElements) -> dict[str, Any]:
        document, element, k = self.document, layer.layer, len(self.made.layers)
        options: dict[str, Any] = {}
        returns = read_switch(document, element, "ReturnSequence")
        if returns is None:
            self.made.notes.append(
                f"{layer.name} does not say ReturnSequence: taken to give every step, as its "
                f"writer did; else --set model.layers.{k}.return_sequences=false"
            )
        elif not returns:
            options["return_sequences"] = False
        if read_switch(document, element, "RememberState"):
            options["stateful"] = True
        if layer.kind.name == "gru":
            after = read_switch(document, element, "ResetGateAfter")
            if after is None:
                self.made.notes.append(
                    f"{layer.name} does not say ResetGateAfter: taken as before, TMVA's default; "
                    f"else --set model.layers.{k}.reset_after=true"
                )
            options["reset_after"] = bool(after)
        return {key: value for key, value in options.items() if key != "reset_after" or not value}

    def _reshape(self, element: XmlElement, position: int) -> None:
        document, made = self.document, self.made
        depth, height, width = (
            read_size(document, element, name) for name in ("Depth", "Height", "Width")
        )
        if read_switch(document, element, "Flattening"):
            self._flatten(element, position)
            return
        if made.size is None and depth in (None, 1) and height and width:
            made.steps = height
            made.reads(width)
            return
        raise WeightsError(
            f"ReshapeLayer[{position}] gives another shape, which lstm-cli has no layer for",
            expected="Flattening 1, or the first layer giving 1 x steps x features",
            found=f"{depth} x {height} x {width}",
            where=document.where(element),
        )

    def _flatten(self, element: XmlElement, position: int) -> None:
        made = self.made
        if made.size is None:
            width = read_size(self.document, self.network, "InputWidth")
            if width is None or made.steps is None:
                raise self._misfit(
                    f"ReshapeLayer[{position}]",
                    element,
                    "InputHeight and InputWidth of Weights, as it is the first layer",
                    "none",
                )
            made.reads(width)
        if not made.has_steps:
            made.notes.append(f"ReshapeLayer[{position}] flattens one step: left out")
            return
        if made.steps is None:
            raise self._misfit(
                f"ReshapeLayer[{position}]", element, "TimeSteps of the layers before it", "none"
            )
        made.flatten()
        if read_size(self.document, element, "Depth") in (None, 1):
            check_declared(
                self.document, element, "Width", made.size or 0, f"{made.steps} steps side by side"
            )

    def _dense(self, element: XmlElement, position: int) -> None:
        document, made, name = self.document, self.made, f"DenseLayer[{position}]"
        weights, biases = (matrix(document, element, position, n) for n in ("Weights", "Biases"))
        units, columns = (0, 0) if weights.values is None else weights.values.shape
        check_declared(document, element, "Width", units, "rows of its Weights")
        bias = (0, 0) if biases.values is None else biases.values.shape
        if bias not in ((units, 1), (1, units)):
            raise self._misfit(
                f"Biases of {name}", biases, f"{units} x 1", f"{bias[0]} x {bias[1]}"
            )
        self._into_dense(name, element, columns)
        function, fast = read_activation(document, element)
        if fast:
            made.notes.append(f"{name} has the activation FastTanh, taken as tanh")
        k = made.dense(units, function)
        made.take(f"layers.{k}.weight", weights, f"{name}/Weights")
        made.take(f"layers.{k}.bias", biases, f"{name}/Biases")

    def _into_dense(self, name: str, element: XmlElement, columns: int) -> None:
        """What flows into a dense layer: TMVA's reads one vector, whatever stands before it."""
        made = self.made
        if made.size is None:
            made.steps = None
            made.has_steps = False
            made.reads(columns)
        elif made.has_steps and made.steps is not None and columns == made.size * made.steps:
            made.notes.append(f"{name} reads all steps: they are flattened before it")
            made.flatten()
        elif made.has_steps and columns == made.size:
            made.notes.append(f"{name} reads one step's features: applied to every step alike")
        if made.size != columns:
            raise self._misfit(
                name, element, f"{columns} inputs, as its Weights have columns", str(made.size)
            )

    def _check_input(self) -> None:
        """Where the file says how its input is laid out, it must be the first layer's."""
        sizes = [
            read_size(self.document, self.network, f"Input{name}")
            for name in ("Depth", "Height", "Width")
        ]
        D, T = self.made.input_size or 0, self.made.steps or 1
        product = int(np.prod([n or 1 for n in sizes], dtype=object))
        if None in sizes or sizes[-1] == D or product == D * T:
            return
        raise self._misfit(
            "the input layout",
            self.network,
            f"{T} x {D}, as the first layer reads",
            " x ".join(str(n) for n in sizes),
        )

    def _finish(self) -> None:
        """The output function, as the last layer's activation or as a layer of its own."""
        made = self.made
        function = read_output_function(self.document, self.network)
        if function is None:
            made.notes.append(
                "Weights do not say OutputFunction: taken as the identity; else "
                f"--set model.layers.{len(made.layers) - 1}.activation=sigmoid, or softmax"
            )
        if function not in (None, "identity"):
            self._apply(function or "")
        made.notes += training_notes(self.network)

    def _apply(self, function: str) -> None:
        made = self.made
        last = made.layers[-1]
        if last["type"] == "dense" and "activation" not in last:
            last["activation"] = function
            return
        size = made.size or 0
        if size > MAX_IDENTITY_SIZE:
            raise self._misfit(
                f"OutputFunction {function}",
                self.network,
                f"at most {MAX_IDENTITY_SIZE} outputs",
                str(size),
            )
        k = made.dense(size, function)
        made.tensors[f"layers.{k}.weight"] = np.eye(size, dtype=made.dtype)
        made.tensors[f"layers.{k}.bias"] = np.zeros(size, made.dtype)
        made.notes.append(
            f"the output function {function} stands in a dense layer of its own, {k}, whose "
            "matrix is the identity"
        )

    def _misfit(self, what: str, element: XmlElement, expected: str, found: str) -> WeightsError:
        return WeightsError(
            f"{what} does not fit the network around it",
            expected=expected,
            found=found,
            where=self.document.where(element),
        )
