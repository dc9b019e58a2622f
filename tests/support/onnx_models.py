"""Models built with the onnx package, and their outputs in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from lstm_cli.cells import Activation
from lstm_cli.engines.types import RecurrentSpec

Array = NDArray[Any]

ORDERS = {"lstm": ("ifgo", "iofg"), "gru": ("rzn", "zrn"), "rnn": ("h", "h")}
NAMES = {
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
WITH_ALPHA = {"affine", "elu", "hard_sigmoid", "leaky_relu", "scaled_tanh", "thresholded_relu"}
WITH_BETA = {"affine", "hard_sigmoid", "scaled_tanh"}
IR_VERSION = 8
CPU = ["CPUExecutionProvider"]


def save_model(
    path: Path,
    nodes: Sequence[Any],
    tensors: Mapping[str, Array],
    inputs: Mapping[str, Sequence[Any]],
    outputs: Sequence[str] = ("y",),
    opset: int = 14,
) -> Path:
    """Save a model of these nodes and stored tensors; `inputs` are float tensors by shape."""
    info, real = helper.make_tensor_value_info, TensorProto.FLOAT
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [info(name, real, shape) for name, shape in inputs.items()],
        [info(name, real, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    versions = [helper.make_opsetid("", opset)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=IR_VERSION)
    path.write_bytes(model.SerializeToString())
    return path


def runtime_outputs(path: Path, *inputs: Array, **feeds: Array) -> list[Array]:
    """Outputs of ONNX Runtime; `inputs` in the model's order, `feeds` by name, reals in float32."""
    session = onnxruntime.InferenceSession(str(path), providers=CPU)
    names = [entry.name for entry in session.get_inputs()]
    feeds |= dict(zip(names, inputs, strict=False))
    cast = {k: v.astype("f4") if v.dtype.kind == "f" else v for k, v in feeds.items()}
    return list(session.run(None, cast))


def _reordered(tensor: Array, source: str, target: str) -> Array:
    parts = dict(zip(source, np.split(tensor, len(source)), strict=True))
    return np.concatenate([parts[gate] for gate in target])


def _tensors(spec: RecurrentSpec, direction: int, weights: Mapping[str, Array]) -> dict[str, Array]:
    """W, R, B and P of one direction, without the axis of directions."""
    prefix, (native, onnx_order) = spec.prefix(direction), ORDERS[spec.kind]
    W, R = (_reordered(weights[prefix + n], native, onnx_order) for n in ("weight_ih", "weight_hh"))
    if spec.kind == "gru":
        pair = [weights[prefix + "bias_ih"], weights[prefix + "bias_hh"]]
    else:
        bias = weights[prefix + "bias"]
        pair = [0.75 * bias, 0.25 * bias]  # uneven, so that exchanged halves would show
    tensors = {
        "W": W,
        "R": R,
        "B": np.concatenate([_reordered(b, native, onnx_order) for b in pair]),
    }
    if prefix + "peephole" in weights:
        tensors["P"] = _reordered(weights[prefix + "peephole"], "ifo", "iof")
    return tensors


def _activations(spec: RecurrentSpec) -> dict[str, list[Any]]:
    chosen: list[Activation] = []
    for cell in spec.cells:
        gates = [] if spec.kind == "rnn" else [cell.recurrent_activation]
        chosen += [*gates, cell.activation]
        chosen += [cell.cell_activation] if spec.kind == "lstm" else []
    # Parameters are listed only for the activations that have them, in order.
    return {
        "activations": [NAMES[a.name] for a in chosen],
        "activation_alpha": [a.alpha for a in chosen if a.name in WITH_ALPHA],
        "activation_beta": [a.beta for a in chosen if a.name in WITH_BETA],
    }


def run(
    spec: RecurrentSpec,
    weights: Mapping[str, Array],
    x: Array,
    lengths: Array | None = None,
    state: tuple[Array, Array | None] | None = None,
    *,
    opset: int = 14,
    direction: str | None = None,
) -> tuple[Array, Array, Array | None]:
    """Run one recurrent operator: outputs (N, T, F), h and c (N, directions, H).

    The direction ``reverse`` is the second direction of a bidirectional `spec` alone.
    """
    which = {"reverse": [1], "forward": [0]}.get(direction or "", list(range(spec.directions)))
    shown = RecurrentSpec(0, spec.input_size, tuple(spec.cells[d] for d in which))
    per_direction = [_tensors(spec, d, weights) for d in which]
    tensors = {name: np.stack([t[name] for t in per_direction]) for name in per_direction[0]}
    feeds: dict[str, Array] = {"X": x.transpose(1, 0, 2).astype(np.float32)}
    if lengths is not None:
        feeds["lens"] = lengths.astype(np.int32)
    if state is not None:
        for name, part in zip(("h0", "c0"), state, strict=True):
            if part is not None:
                feeds[name] = part[:, which].transpose(1, 0, 2).astype(np.float32)
    model = _model(shown, tensors, feeds, opset, direction)
    session = onnxruntime.InferenceSession(model, providers=CPU)
    found = session.run(None, feeds)
    y = found[0].transpose(2, 0, 1, 3)  # (T, directions, N, H) to (N, T, directions, H)
    states = [part.transpose(1, 0, 2) for part in found[1:]]
    return y.reshape(*y.shape[:2], -1), states[0], states[1] if len(states) > 1 else None


def _model(
    spec: RecurrentSpec,
    tensors: Mapping[str, Array],
    feeds: Mapping[str, Array],
    opset: int,
    direction: str | None,
) -> bytes:
    cell, kind = spec.cells[0], spec.kind
    attributes: dict[str, Any] = _activations(spec)
    attributes = {key: value for key, value in attributes.items() if value}
    attributes |= {
        "hidden_size": spec.hidden_size,
        "direction": direction or ("bidirectional" if spec.directions == 2 else "forward"),
    }
    if cell.clip is not None:
        attributes["clip"] = cell.clip
    if kind == "gru":
        attributes["linear_before_reset"] = int(cell.reset_after)
    if kind == "lstm":
        attributes["input_forget"] = int(cell.coupled_input_forget)
    slots = ["X", "W", "R", "B", "lens", "h0", "c0", "P"][: 8 if kind == "lstm" else 6]
    present = {*tensors, *feeds}
    outputs = ["Y", "Y_h", "Y_c"][: 3 if kind == "lstm" else 2]
    names = [slot if slot in present else "" for slot in slots]
    node = helper.make_node(kind.upper(), names, outputs, **attributes)
    graph = helper.make_graph(
        [node],
        kind,
        [
            helper.make_tensor_value_info(
                name, TensorProto.INT32 if name == "lens" else TensorProto.FLOAT, value.shape
            )
            for name, value in feeds.items()
        ],
        [
            helper.make_tensor_value_info(
                name, TensorProto.FLOAT, [None] * (4 if name == "Y" else 3)
            )
            for name in outputs
        ],
        [numpy_helper.from_array(v.astype(np.float32), name) for name, v in tensors.items()],
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION
    )
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
