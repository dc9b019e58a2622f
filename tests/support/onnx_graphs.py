"""ONNX models built from this package's own messages, without the onnx package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstm_cli.formats.interchange import Imported, ReadOptions
from lstm_cli.formats.onnx import proto as m
from lstm_cli.formats.onnx.proto import (
    OnnxAttribute,
    OnnxGraph,
    OnnxModel,
    OnnxNode,
    OnnxOperatorSet,
    OnnxTensor,
)
from lstm_cli.formats.onnx.reader import read

Array = NDArray[Any]
D, H = 3, 2
"""Features of the input and units of the recurrent cells."""


def value(name: str, *sizes: int | str) -> m.OnnxValueInfo:
    dims = [
        m.OnnxDimension(value=n) if isinstance(n, int) else m.OnnxDimension(name=n) for n in sizes
    ]
    return m.OnnxValueInfo(name, m.OnnxType(m.OnnxTensorType(m.FLOAT, m.OnnxShape(tuple(dims)))))


def stored(name: str, array: Any) -> OnnxTensor:
    array = np.asarray(array)
    kind = {"f": m.FLOAT, "i": m.INT64, "b": m.BOOL}[array.dtype.kind]
    array = array.astype({m.FLOAT: "<f4", m.INT64: "<i8", m.BOOL: "?"}[kind])
    return OnnxTensor(array.shape, kind, name=name, raw_data=array.tobytes())


def attribute(name: str, constant: Any) -> OnnxAttribute:
    if isinstance(constant, str):
        return OnnxAttribute(name, s=constant.encode(), type=m.ATTRIBUTE_STRING)
    if isinstance(constant, float):
        return OnnxAttribute(name, f=constant, type=m.ATTRIBUTE_FLOAT)
    if isinstance(constant, int):
        return OnnxAttribute(name, i=constant, type=m.ATTRIBUTE_INT)
    if isinstance(constant, OnnxGraph):
        return OnnxAttribute(name, g=constant, type=m.ATTRIBUTE_GRAPH)
    if isinstance(constant[0], str):
        return OnnxAttribute(
            name, strings=tuple(s.encode() for s in constant), type=m.ATTRIBUTE_STRINGS
        )
    return OnnxAttribute(name, ints=tuple(constant), type=m.ATTRIBUTE_INTS)


def node(op: str, inputs: str, outputs: str, name: str = "", **attributes: Any) -> OnnxNode:
    """A node whose inputs and outputs are names in one string, ``-`` for an omitted one."""
    ins, outs = (tuple("" if n == "-" else n for n in s.split()) for s in (inputs, outputs))
    return OnnxNode(
        ins, outs, name or op.lower(), op, tuple(attribute(*a) for a in attributes.items())
    )


def weights(kind: str = "LSTM", directions: int = 1, seed: int = 0) -> list[OnnxTensor]:
    rng, G = np.random.default_rng(seed), {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
    shapes = {"W": (G * H, D), "R": (G * H, H), "B": (2 * G * H,)}
    return [stored(n, rng.standard_normal((directions, *s))) for n, s in shapes.items()]


def model(
    nodes: Sequence[OnnxNode],
    tensors: Sequence[OnnxTensor] = (),
    outputs: Sequence[str] = ("y",),
    inputs: Sequence[m.OnnxValueInfo] = (value("x", "T", "N", D),),
    **options: Any,
) -> OnnxModel:
    graph = OnnxGraph(
        tuple(nodes), "g", tuple(tensors), tuple(inputs), tuple(value(n) for n in outputs)
    )
    return OnnxModel(8, graph=graph, operator_sets=(OnnxOperatorSet("", 17),), **options)


def load(folder: Path, onnx_model: OnnxModel) -> Imported:
    path = folder / "model.onnx"
    path.write_bytes(onnx_model.encode())
    return read(path, ReadOptions())


def layers(imported: Imported) -> list[dict[str, Any]]:
    assert imported.config is not None
    return list(imported.config["model"]["layers"])


LSTM = node("LSTM", "x W R B", "Y Yh", "cell", hidden_size=H)


LAST = [LSTM, node("Squeeze", "Yh zero", "y")]


ZERO = stored("zero", [0])


def lstm(inputs: str = "x W R B", outputs: str = "Y Yh", **attributes: Any) -> list[OnnxNode]:
    cell = node("LSTM", inputs, outputs, "cell", hidden_size=H, **attributes)
    return [cell, node("Squeeze", "Yh zero", "y")]
