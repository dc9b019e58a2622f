"""An ONNX model of a network: opset 14, shapes fixed, batch first outside.

Between layers a sequence is time first (T, N, F), as ONNX's recurrent operators want it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lstm_cli.bench.peers.base import Unsupported
from lstm_cli.bench.sizes import Size
from lstm_cli.cells import Activation, Cell
from lstm_cli.engines.types import (
    Array,
    DenseSpec,
    FlattenSpec,
    Layers,
    LayerSpec,
    RecurrentSpec,
)

OPSET = 14
IR_VERSION = 8

_GATES = {"lstm": "iofg", "gru": "zrn", "rnn": "h"}
"""ONNX's order of gates, in our letters; peepholes are i, o, f."""

_NAMES = {
    "sigmoid": "Sigmoid",
    "tanh": "Tanh",
    "relu": "Relu",
    "affine": "Affine",
    "elu": "Elu",
    "hard_sigmoid": "HardSigmoid",
    "leaky_relu": "LeakyRelu",
    "scaled_tanh": "ScaledTanh",
    "softplus": "Softplus",
    "softsign": "Softsign",
    "thresholded_relu": "ThresholdedRelu",
}
"""Activations of ONNX's recurrent operators; `identity` is ``Affine`` with 1 and 0."""

_DENSE = {
    "identity": "",
    "tanh": "Tanh",
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "softsign": "Softsign",
    "softplus": "Softplus",
}


def build_model(
    layers: Layers, weights: Mapping[str, Array], size: Size, lengths: Array | None = None
) -> bytes:
    """The network as a serialised model from ``x`` (N, T, D) to ``y`` (N, T, F) or (N, F).

    `lengths` (N,) are kept in the model, where recurrent operators have them as
    ``sequence_lens``.

    Raises
    ------
    Unsupported
        ONNX has no operator for a layer or an option.
    """
    from onnx import TensorProto, helper

    graph = _Graph(weights, size, lengths)
    last = graph.network(layers)
    shape = (size.batch, size.steps, layers[0].input_size)
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "network",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(last, TensorProto.FLOAT, None)],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    return bytes(model.SerializeToString())


class _Graph:
    """Nodes and constants, as layers are added."""

    def __init__(self, weights: Mapping[str, Array], size: Size, lengths: Array | None) -> None:
        self.weights, self.size = weights, size
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.steps = True  # whether the value is still (T, N, F)
        self.lengths = "" if lengths is None else self.constant(lengths.astype(np.int32))

    def network(self, layers: Layers) -> str:
        """Add all layers; the name of the output."""
        value = self.add("Transpose", "x", perm=[1, 0, 2])
        for spec in layers:
            value = self._layer(spec, value)
        return self.add("Transpose", value, perm=[1, 0, 2]) if self.steps else value

    def add(self, op: str, *inputs: str, outputs: tuple[str, ...] = (), **attributes: Any) -> str:
        """Add a node; the name of its first output that has one."""
        from onnx import helper

        outputs = outputs or (f"{op}_{len(self.nodes)}",)
        self.nodes.append(helper.make_node(op, list(inputs), list(outputs), **attributes))
        return next(name for name in outputs if name)

    def constant(self, value: Array) -> str:
        """Add a constant; its name."""
        from onnx import numpy_helper

        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def _layer(self, spec: LayerSpec, value: str) -> str:
        if isinstance(spec, RecurrentSpec):
            return self._recurrent(spec, value)
        if isinstance(spec, DenseSpec):
            return self._dense(spec, value)
        if isinstance(spec, FlattenSpec):
            return self._flatten(spec, value)
        return value  # dropout

    def _dense(self, spec: DenseSpec, value: str) -> str:
        prefix = f"layers.{spec.index}."
        weight = self.constant(self.weights[prefix + "weight"].T)
        value = self.add("MatMul", value, weight)
        value = self.add("Add", value, self.constant(self.weights[prefix + "bias"]))
        if spec.activation is None:
            return self.add("Softmax", value, axis=-1)
        if spec.activation_name not in _DENSE:
            raise Unsupported(
                f"layer {spec.index}: {spec.activation_name} of a dense layer is not written "
                "as ONNX here"
            )
        op = _DENSE[spec.activation_name]
        return self.add(op, value) if op else value

    def _flatten(self, spec: FlattenSpec, value: str) -> str:
        if self.lengths:
            raise Unsupported(f"layer {spec.index}: flatten of ragged sequences is not written")
        missing = spec.steps - self.size.steps
        if missing > 0:
            pads = self.constant(np.array([0, 0, 0, missing, 0, 0]))
            value = self.add("Pad", value, pads)
        self.steps = False
        value = self.add("Transpose", value, perm=[1, 0, 2])
        return self._reshape(value, self.size.batch, -1)

    def _reshape(self, value: str, *shape: int) -> str:
        return self.add("Reshape", value, self.constant(np.array(shape)))

    def _recurrent(self, spec: RecurrentSpec, value: str) -> str:
        tensors = [self.constant(t) for t in _matrices(spec, self.weights)]
        inputs = [value, *tensors, self.lengths, "", ""]  # initial states are 0
        if getattr(spec.cells[0], "peepholes", False):
            inputs.append(self.constant(_peepholes(spec, self.weights)))
        while not inputs[-1]:
            inputs.pop()
        name = f"layer_{spec.index}"
        outputs = (name,) if spec.return_sequences else ("", name)
        self.add(spec.kind.upper(), *inputs, outputs=outputs, **_attributes(spec))
        if not spec.return_sequences:  # (directions, N, H)
            self.steps = False
            value = self.add("Transpose", name, perm=[1, 0, 2])
            return self._reshape(value, self.size.batch, spec.output_size)
        if spec.directions == 1:
            return self.add("Squeeze", name, self.constant(np.array([1])))
        value = self.add("Transpose", name, perm=[0, 2, 1, 3])  # (T, N, directions, H)
        return self._reshape(value, self.size.steps, self.size.batch, spec.output_size)


def _reordered(tensor: Array, cell: Cell) -> Array:
    """Gate blocks in ONNX's order."""
    blocks = dict(zip(cell.letters, np.split(tensor, len(cell.letters)), strict=True))
    return np.concatenate([blocks[letter] for letter in _GATES[cell.kind]])


def _matrices(spec: RecurrentSpec, weights: Mapping[str, Array]) -> list[Array]:
    """W (directions, G*H, D), R (directions, G*H, H) and B (directions, 2*G*H)."""
    W, R, B = [], [], []
    for d, cell in enumerate(spec.cells):
        own = {
            name: _reordered(weights[spec.prefix(d) + name], cell)
            for name in cell.tensor_names
            if name != "peephole" and name != "weight_hr"
        }
        W.append(own["weight_ih"])
        R.append(own["weight_hh"])
        first = own["bias_ih"] if cell.recurrent_bias else own["bias"]
        B.append(np.concatenate([first, own.get("bias_hh", np.zeros_like(first))]))
    return [np.stack(W), np.stack(R), np.stack(B)]


def _peepholes(spec: RecurrentSpec, weights: Mapping[str, Array]) -> Array:
    """P (directions, 3H), from i, f, o to i, o, f."""
    rows = []
    for d in range(spec.directions):
        i, f, o = np.split(weights[spec.prefix(d) + "peephole"], 3)
        rows.append(np.concatenate([i, o, f]))
    return np.stack(rows)


def _attributes(spec: RecurrentSpec) -> dict[str, Any]:
    cell = spec.cells[0]
    _check(spec, cell)
    found: dict[str, Any] = {
        "hidden_size": spec.hidden_size,
        "direction": "bidirectional" if spec.directions == 2 else "forward",
    }
    functions = [f for cell in spec.cells for f in _functions(cell)]
    found["activations"] = [_function_name(spec, f) for f in functions]
    pairs = [(1.0, 0.0) if f.name == "identity" else (f.alpha, f.beta) for f in functions]
    for key, values in zip(
        ("activation_alpha", "activation_beta"), zip(*pairs, strict=True), strict=True
    ):
        # Listed for those functions only that have the parameter.
        given = [value for value in values if value is not None]
        if given:
            found[key] = given
    if cell.clip is not None:
        found["clip"] = float(cell.clip)
    if getattr(cell, "coupled_input_forget", False):
        found["input_forget"] = 1
    if spec.kind == "gru":
        found["linear_before_reset"] = int(getattr(cell, "reset_after", True))
    return found


def _functions(cell: Cell) -> tuple[Activation, ...]:
    """A direction's activations in the operator's order: f g h, f g, or f."""
    if cell.kind == "rnn":
        return (cell.activation,)
    functions: list[Activation] = [cell.recurrent_activation, cell.activation]
    if cell.kind == "lstm":
        functions.append(getattr(cell, "cell_activation", cell.activation))
    return tuple(functions)


def _function_name(spec: RecurrentSpec, function: Activation) -> str:
    name = "affine" if function.name == "identity" else function.name
    if name not in _NAMES:
        raise Unsupported(f"layer {spec.index}: ONNX has no activation {function}")
    return _NAMES[name]


def _check(spec: RecurrentSpec, cell: Cell) -> None:
    """Raise `Unsupported` for what ONNX's operators cannot express."""
    if getattr(cell, "projection_size", None) is not None:
        raise Unsupported(f"layer {spec.index}: ONNX has no projection")
    if not getattr(cell, "use_forget_gate", True):
        raise Unsupported(f"layer {spec.index}: ONNX has no LSTM without a forget gate")
