"""Reader of TMVA files: each layer in turn, checked against the output of the one before."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lstm_cli.errors import WeightsError, counted
from lstm_cli.formats.builder import (
    NativeTensor,
    NetworkBuilder,
    bias_names,
    stack_gates,
    whole_tensor,
)
from lstm_cli.formats.interchange import Imported, ReadOptions, TmvaOrder
from lstm_cli.formats.tmva.document import (
    FLOAT32_DIGITS,
    TmvaDocument,
    XmlElement,
    check_declared,
    find_network,
    format_title,
    known_writer_order,
    parse,
    read_activation,
    read_output_function,
    read_size,
    read_switch,
    training_notes,
)
from lstm_cli.formats.tmva.slots import (
    LAYER_KINDS,
    RecurrentElements,
    find_orders,
    matrix,
    recurrent_elements,
)

MAX_IDENTITY_SIZE = 4096
"""Most outputs of an extra layer that only applies the output function."""
GATE_ORDERS = {"lstm": "i f g o", "gru": "r z n", "rnn": "h"}


def read(path: Path, options: ReadOptions) -> Imported:
    """Read a TMVA weights file.

    Raises
    ------
    WeightsError
        The file is not well-formed, hostile, ambiguous or not from the method DL, or has an
        unsupported layer; the error names the layer and a remedy.
    """
    document = parse(path)
    network = find_network(document)
    builder = _Reader(document, network).run(options)
    orders = builder.used_gate_orders(GATE_ORDERS)
    title = format_title(document)
    return builder.finish(path, "tmva", title, document.sha256, orders, describes_layers=True)


class _Reader:
    def __init__(self, document: TmvaDocument, network: XmlElement) -> None:
        self.document, self.network = document, network
        self.dtype = "float64" if document.digits > FLOAT32_DIGITS else "float32"
        self.builder = NetworkBuilder(steps=read_size(document, network, "InputHeight"))

    def run(self, options: ReadOptions) -> NetworkBuilder:
        """Read all layers."""
        recurrent = self._recurrent_layers()
        writer = known_writer_order(self.document)
        layer_orders, note = find_orders(self.document, recurrent, options.tmva_order, writer)
        order_by_position = {
            layer.position: order for layer, order in zip(recurrent, layer_orders, strict=True)
        }
        recurrent_by_position = {layer.position: layer for layer in recurrent}
        self.builder.notes += [note] if note else []
        for position, element in enumerate(self.network.children):
            if position in recurrent_by_position:
                self._recurrent(recurrent_by_position[position], order_by_position[position])
            elif element.name == "ReshapeLayer":
                self._reshape(element, position)
            else:
                self._dense(element, position)
        self._check_input()
        self._finish()
        return self.builder

    def _recurrent_layers(self) -> list[RecurrentElements]:
        layers = self.network.children
        for position, element in enumerate(layers):
            if element.name not in (*LAYER_KINDS, "ReshapeLayer", "DenseLayer"):
                raise WeightsError(
                    f"layer {position} is a TMVA layer that lstm-cli does not have",
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
        document, builder, element = self.document, self.builder, layer.layer
        H, D = layer.sizes
        if not builder.has_steps:
            raise self._misfit(layer.name, element, "every step", "one vector a sequence")
        if builder.size not in (None, D):
            raise self._misfit(layer.name, element, counted(D, "feature"), str(builder.size))
        check_declared(document, element, "StateSize", H, "rows of its matrices")
        check_declared(document, element, "CellSize", H, "rows of its matrices")
        check_declared(document, element, "InputSize", D, "columns of its input matrices")
        self._read_steps(layer)
        options = self._options(layer)
        builder.set_input(D)
        builder.add(layer.kind.name, self._tensors(layer, order), **options)

    def _tensors(self, layer: RecurrentElements, order: TmvaOrder) -> dict[str, NativeTensor]:
        """Native tensors of a recurrent layer, whose gates are separate elements."""
        kind, contents = layer.kind, layer.kind.slot_contents(order)
        labels = kind.slot_contents("labels")
        blocks: dict[str, dict[str, NativeTensor]] = {"W": {}, "U": {}}
        for element, (which, letter), label in zip(layer.weights, contents, labels, strict=True):
            change = "" if label == (which, letter) else f"labeled {'_'.join(label)}"
            name = f"{layer.name}/{element.name}"
            blocks[which][letter] = self._tensor(element, name, change)
        biases = {
            letter: self._tensor(element, f"{layer.name}/{element.name}", flat=True)
            for letter, element in zip(kind.letters, layer.biases, strict=True)
        }
        stacked = [stack_gates(kind.name, gates) for gates in (*blocks.values(), biases)]
        names = ("weight_ih", "weight_hh", *bias_names(kind.name))
        stacked.append(NativeTensor(np.zeros_like(stacked[2].values)))  # bias_hh of a gru
        return dict(zip(names, stacked, strict=False))

    def _tensor(
        self, element: XmlElement, name: str, change: str = "", *, flat: bool = False
    ) -> NativeTensor:
        """Native tensor of one element; a bias loses its second axis."""
        values = np.zeros((0, 0)) if element.values is None else element.values
        with np.errstate(over="ignore"):  # infinity is refused when all weights are checked
            values = values.astype(self.dtype)
        native = values.ravel() if flat else values
        return whole_tensor(name, native, self.dtype, shape=values.shape, change=change)

    def _read_steps(self, layer: RecurrentElements) -> None:
        """Set T from TimeSteps; the input layout does not count if the first layer is recurrent."""
        builder, steps = self.builder, read_size(self.document, layer.layer, "TimeSteps")
        if steps is None:
            return
        if builder.size is not None and builder.steps not in (None, steps):
            raise self._misfit(layer.name, layer.layer, counted(steps, "step"), str(builder.steps))
        builder.steps = steps

    def _options(self, layer: RecurrentElements) -> dict[str, bool]:
        document, element, k = self.document, layer.layer, len(self.builder.layers)
        returns = read_switch(document, element, "ReturnSequence")
        stateful = read_switch(document, element, "RememberState")
        options = {"return_sequences": returns is not False, "stateful": bool(stateful)}
        if returns is None:
            self.builder.notes.append(
                f"{layer.name} does not state ReturnSequence: every step is assumed, as its "
                f"writer gave; otherwise --set model.layers.{k}.return_sequences=false"
            )
        if layer.kind.name == "gru":
            after = read_switch(document, element, "ResetGateAfter")
            if after is None:
                self.builder.notes.append(
                    f"{layer.name} does not state ResetGateAfter: 0 is assumed, TMVA's default; "
                    f"otherwise --set model.layers.{k}.reset_after=true"
                )
            options["reset_after"] = bool(after)
        return options

    def _reshape(self, element: XmlElement, position: int) -> None:
        document, builder = self.document, self.builder
        depth, height, width = (
            read_size(document, element, name) for name in ("Depth", "Height", "Width")
        )
        if read_switch(document, element, "Flattening"):
            self._flatten(element, position)
            return
        if builder.size is None and depth in (None, 1) and height and width:
            builder.steps = height
            builder.set_input(width)
            return
        raise WeightsError(
            f"ReshapeLayer[{position}] gives a shape for which lstm-cli has no layer",
            expected="Flattening 1, or the first layer giving 1 x steps x features",
            found=f"{depth} x {height} x {width}",
            where=document.where(element),
        )

    def _flatten(self, element: XmlElement, position: int) -> None:
        builder = self.builder
        if builder.size is None:
            width = read_size(self.document, self.network, "InputWidth")
            if width is None or builder.steps is None:
                raise self._misfit(
                    f"ReshapeLayer[{position}]",
                    element,
                    "InputHeight and InputWidth of Weights, as it is the first layer",
                    "none",
                )
            builder.set_input(width)
        if not builder.has_steps:
            builder.notes.append(f"ReshapeLayer[{position}] flattens one step: left out")
            return
        if builder.steps is None:
            raise self._misfit(
                f"ReshapeLayer[{position}]", element, "TimeSteps of the layers before it", "none"
            )
        builder.add("flatten")
        if read_size(self.document, element, "Depth") in (None, 1):
            check_declared(
                self.document,
                element,
                "Width",
                builder.size or 0,
                f"{counted(builder.steps, 'step')} side by side",
            )

    def _dense(self, element: XmlElement, position: int) -> None:
        document, builder, name = self.document, self.builder, f"DenseLayer[{position}]"
        weights, biases = (matrix(document, element, position, n) for n in ("Weights", "Biases"))
        units, columns = (0, 0) if weights.values is None else weights.values.shape
        check_declared(document, element, "Width", units, "rows of its Weights")
        bias = (0, 0) if biases.values is None else biases.values.shape
        if bias not in ((units, 1), (1, units)):
            raise self._misfit(
                f"Biases of {name}", biases, f"{units} x 1", f"{bias[0]} x {bias[1]}"
            )
        self._check_dense_input(name, element, columns)
        function, fast = read_activation(document, element)
        if fast:
            builder.notes.append(f"{name} has the activation FastTanh, read as tanh")
        tensors = {
            "weight": self._tensor(weights, f"{name}/Weights"),
            "bias": self._tensor(biases, f"{name}/Biases", flat=True),
        }
        builder.add("dense", tensors, activation=function)

    def _check_dense_input(self, name: str, element: XmlElement, columns: int) -> None:
        """Match a dense layer, which reads one vector in TMVA, to the layer before it."""
        builder = self.builder
        if builder.size is None:
            builder.steps = None
            builder.has_steps = False
            builder.set_input(columns)
        elif (
            builder.has_steps
            and builder.steps is not None
            and columns == builder.size * builder.steps
        ):
            builder.notes.append(f"{name} reads all steps: they are flattened before it")
            builder.add("flatten")
        elif builder.has_steps and columns == builder.size:
            builder.notes.append(f"{name} reads one step's features: applied to every step")
        if builder.size != columns:
            raise self._misfit(
                name,
                element,
                f"{counted(columns, 'input')}, as its Weights have columns",
                str(builder.size),
            )

    def _check_input(self) -> None:
        """Check the input layout, if the file states it, against the first layer."""
        sizes = [
            read_size(self.document, self.network, f"Input{name}")
            for name in ("Depth", "Height", "Width")
        ]
        D, T = self.builder.input_size or 0, self.builder.steps or 1
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
        """Add the output function, as the last layer's activation or as an extra layer."""
        builder = self.builder
        function = read_output_function(self.document, self.network)
        if function is None:
            builder.notes.append(
                "Weights do not state OutputFunction: the identity is assumed; otherwise "
                f"--set model.layers.{len(builder.layers) - 1}.activation=sigmoid, or softmax"
            )
        if function not in (None, "identity"):
            self._append_output_function(function or "")
        builder.notes += training_notes(self.network)

    def _append_output_function(self, function: str) -> None:
        builder = self.builder
        last = builder.layers[-1]
        if last["type"] == "dense" and "activation" not in last:
            last["activation"] = function
            return
        size = builder.size or 0
        if size > MAX_IDENTITY_SIZE:
            raise self._misfit(
                f"OutputFunction {function}",
                self.network,
                f"at most {MAX_IDENTITY_SIZE} outputs",
                str(size),
            )
        identity = {"weight": np.eye(size, dtype=self.dtype), "bias": np.zeros(size, self.dtype)}
        tensors = {name: NativeTensor(values) for name, values in identity.items()}
        builder.notes.append(
            f"the output function {function} is in a dense layer of its own, "
            f"{len(builder.layers)}, whose matrix is the identity"
        )
        builder.add("dense", tensors, activation=function)

    def _misfit(self, what: str, element: XmlElement, expected: str, actual: str) -> WeightsError:
        return WeightsError(
            f"{what} does not fit the network around it",
            expected=expected,
            found=actual,
            where=self.document.where(element),
        )
