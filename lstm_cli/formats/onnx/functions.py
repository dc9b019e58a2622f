"""Activations: their names in ONNX, and dense layers' ones as operators."""

from __future__ import annotations

import numpy as np

from lstm_cli.cells import Activation
from lstm_cli.formats.onnx.builder import GraphBuilder

RECURRENT = {
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
"""Our names of the activations that ONNX's recurrent operators have, and theirs."""

_OPERATORS = RECURRENT | {"symmrelu": "Abs"}


def add_activation(graph: GraphBuilder, value: str, activation: Activation | None) -> str:
    """Add what computes a dense layer's activation, None being softmax; the result's name."""
    if activation is None:
        return graph.add("Softmax", value, axis=-1)
    name, alpha, beta = activation.name, activation.alpha, activation.beta
    if name == "identity":
        return value
    if name == "gauss":
        return graph.add("Exp", graph.add("Neg", graph.add("Mul", value, value)))
    if name == "affine":
        return graph.add("Add", _scaled(graph, value, alpha), _number(graph, beta))
    if name == "scaled_tanh":
        return _scaled(graph, graph.add("Tanh", _scaled(graph, value, beta)), alpha)
    given = {"alpha": alpha, "beta": beta}
    return graph.add(
        _OPERATORS[name], value, **{key: v for key, v in given.items() if v is not None}
    )


def _scaled(graph: GraphBuilder, value: str, factor: float | None) -> str:
    return graph.add("Mul", value, _number(graph, factor))


def _number(graph: GraphBuilder, value: float | None) -> str:
    return graph.constant("factor", np.float64(0 if value is None else value))
