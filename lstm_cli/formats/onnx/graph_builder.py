"""Builder of an ONNX graph: nodes and constants with unique, readable names.

`LengthMasks` adds the masks of valid steps, and `add_activation` the activation of a dense layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, cached_property
from typing import Any, TypeAlias

import numpy as np

from lstm_cli.cells import Activation
from lstm_cli.engines.types import Array
from lstm_cli.errors import WeightsError
from lstm_cli.formats.onnx.proto import (
    ATTRIBUTE_FLOAT,
    ATTRIBUTE_FLOATS,
    ATTRIBUTE_INT,
    ATTRIBUTE_INTS,
    ATTRIBUTE_STRING,
    ATTRIBUTE_STRINGS,
    FLOAT,
    INT32,
    INT64,
    OnnxAttribute,
    OnnxDimension,
    OnnxGraph,
    OnnxNode,
    OnnxShape,
    OnnxTensor,
    OnnxTensorType,
    OnnxType,
    OnnxValueInfo,
)
from lstm_cli.formats.onnx.schemas import ACTIVATION_NAMES

DimensionSize: TypeAlias = "int | str"
"""Size of an axis: a number, or the name of an open size."""

MAX_BYTES = (1 << 31) - (1 << 20)
"""Largest number of bytes of all constants: protobuf's 2 GiB, minus 1 MiB for the graph."""

_ELEMENTS = {np.dtype("f4"): FLOAT, np.dtype("i4"): INT32, np.dtype("i8"): INT64}


class GraphBuilder:
    """Nodes, constants, inputs and outputs of a graph, in the order in which they are added."""

    def __init__(self) -> None:
        self._scope = "network"
        self._nodes: list[OnnxNode] = []
        self._constants: dict[str, OnnxTensor] = {}
        self._inputs: list[OnnxValueInfo] = []
        self._outputs: list[OnnxValueInfo] = []
        self._used: dict[str, int] = {}
        self._bytes = 0

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Prefix all names inside the ``with`` block, for example with ``layers.0``."""
        outer, self._scope = self._scope, name
        try:
            yield
        finally:
            self._scope = outer

    def input(self, name: str, dims: Sequence[DimensionSize], element: int = FLOAT) -> str:
        """Add an input of the graph; return its name."""
        self._inputs.append(_value_info(name, dims, element))
        return name

    def output(self, name: str, value: str, dims: Sequence[DimensionSize]) -> None:
        """Add the output `name` with the value of that name."""
        if not self._rename(value, name):
            self._nodes.append(OnnxNode((value,), (name,), f"{name}.Identity", "Identity"))
        self._outputs.append(_value_info(name, dims, FLOAT))

    def constant(self, name: str, value: Any) -> str:
        """Add a constant, real numbers as float32; return its full name.

        Raises
        ------
        WeightsError
            A number is beyond float32, or the constants exceed `MAX_BYTES`.
        """
        full_name = self._unique(f"{self._scope}.{name}")
        array = np.asarray(value)
        if array.dtype.kind == "f":
            array = to_float32(array, full_name)
        self._constants[full_name] = self._tensor(full_name, array)
        return full_name

    def integers(self, *values: int) -> str:
        """Add a constant vector of integers, once for equal numbers; return its name."""
        name = "_".join(["integers", *map(str, values)])
        if name not in self._constants:
            self._constants[name] = self._tensor(name, np.array(values, np.int64))
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output; return the name of the output."""
        return self.add_node(op, inputs, ("",), attributes)[0]

    def add_node(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[str | None],
        attributes: dict[str, Any],
    ) -> list[str]:
        """Add a node; return the names of its outputs.

        Parameters
        ----------
        inputs
            Names of the inputs; empty for an omitted optional input.
        outputs
            Suffix of the name of each output; None for an omitted output.
        """
        name = self._unique(f"{self._scope}.{op}")
        names = ["" if part is None else name + (part and f".{part}") for part in outputs]
        messages = tuple(_attribute(name, key, value) for key, value in attributes.items())
        used_inputs, used_names = _without_trailing_empty(inputs), _without_trailing_empty(names)
        self._nodes.append(OnnxNode(used_inputs, used_names, name, op, messages))
        return names

    def finish(self, name: str) -> OnnxGraph:
        """Graph of all nodes, constants, inputs and outputs, under this name."""
        return OnnxGraph(
            nodes=tuple(self._nodes),
            name=name,
            initializers=tuple(self._constants.values()),
            inputs=tuple(self._inputs),
            outputs=tuple(self._outputs),
        )

    def _unique(self, name: str) -> str:
        count = self._used[name] = self._used.get(name, 0) + 1
        return name if count == 1 else f"{name}_{count}"

    def _tensor(self, name: str, array: Array) -> OnnxTensor:
        self._bytes += array.nbytes
        if self._bytes > MAX_BYTES:
            raise WeightsError(
                "the network is too large for an ONNX file",
                expected=f"at most {MAX_BYTES:,} bytes of weights",
                found=f"{self._bytes:,} bytes up to {name}",
                hint="the native format (.safetensors) has no such limit",
            )
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        element = _ELEMENTS[array.dtype]
        return OnnxTensor(array.shape, element, name=name, raw_data=little.tobytes())

    def _rename(self, value: str, name: str) -> bool:
        """Rename the output of a node unless another node reads it; True if it was renamed."""
        if any(value in node.inputs for node in self._nodes):
            return False
        for k, node in enumerate(self._nodes):
            if value in node.outputs:
                outputs = tuple(name if other == value else other for other in node.outputs)
                self._nodes[k] = replace(node, outputs=outputs)
                return True
        return False


def to_float32(value: Array, name: str) -> Array:
    """Convert real numbers to float32.

    Raises
    ------
    WeightsError
        A number is beyond float32, or not finite.
    """
    with np.errstate(over="ignore"):
        cast = np.asarray(value, np.float32)
    if not np.isfinite(cast).all():
        raise WeightsError(
            f"{name} holds values that ONNX Runtime cannot compute with",
            expected=f"at most {np.finfo(np.float32).max:g}, the largest float32",
            found=f"{np.abs(value).max():g}",
        )
    return cast


def _without_trailing_empty(names: Sequence[str]) -> tuple[str, ...]:
    last = max((k for k, name in enumerate(names) if name), default=-1)
    return tuple(names[: last + 1])


def _attribute(node: str, name: str, value: Any) -> OnnxAttribute:
    if isinstance(value, str):
        return OnnxAttribute(name, s=value.encode(), type=ATTRIBUTE_STRING)
    if isinstance(value, int):
        return OnnxAttribute(name, i=value, type=ATTRIBUTE_INT)
    if isinstance(value, float):
        single = to_float32(np.array(value), f"{node}.{name}")
        return OnnxAttribute(name, f=float(single), type=ATTRIBUTE_FLOAT)
    if isinstance(value[0], str):
        return OnnxAttribute(
            name, strings=tuple(text.encode() for text in value), type=ATTRIBUTE_STRINGS
        )
    if isinstance(value[0], int):
        return OnnxAttribute(name, ints=tuple(value), type=ATTRIBUTE_INTS)
    singles = to_float32(np.array(value), f"{node}.{name}")
    return OnnxAttribute(name, floats=tuple(singles.tolist()), type=ATTRIBUTE_FLOATS)


def _value_info(name: str, dims: Sequence[DimensionSize], element: int) -> OnnxValueInfo:
    shape = OnnxShape(tuple(_dimension(size) for size in dims))
    return OnnxValueInfo(name, OnnxType(OnnxTensorType(element, shape)))


def _dimension(size: DimensionSize) -> OnnxDimension:
    return OnnxDimension(name=size) if isinstance(size, str) else OnnxDimension(value=size)


class LengthMasks:
    """The graph input ``lengths`` (N,) and its masks, which are added when first used.

    Masks select values and never multiply them, so that NaN in the padding does not spread.
    """

    def __init__(self, builder: GraphBuilder, x: str) -> None:
        self.builder, self._x = builder, x
        self.lengths = builder.input("lengths", ("N",), INT32)
        self.valid = cache(self._valid)
        self.filled = cache(self._filled)

    @cached_property
    def zero(self) -> str:
        """Constant 0, which replaces masked values."""
        with self.builder.scope("lengths"):
            return self.builder.constant("zero", np.float32(0))

    @cached_property
    def _counts(self) -> str:
        return self.builder.add("Cast", self.lengths, to=INT64)  # (N,)

    @cached_property
    def _steps(self) -> str:
        add, constant = self.builder.add, self.builder.constant
        steps = add("Gather", add("Shape", self._x), constant("axis", np.int64(1)), axis=0)
        first, stride = constant("first", np.int64(0)), constant("stride", np.int64(1))
        return add("Range", first, steps, stride)  # (T,): 0, 1, ..., T - 1

    def _valid(self, *, time_first: bool) -> str:
        """Mask of the valid steps of each sequence: (N, T, 1), or (T, N, 1)."""
        with self.builder.scope("lengths"):
            add, integers = self.builder.add, self.builder.integers
            steps = add("Unsqueeze", self._steps, integers(1 if time_first else 0))
            counts = add("Unsqueeze", self._counts, integers(0 if time_first else 1))
            return add("Unsqueeze", add("Less", steps, counts), integers(2))

    def _filled(self, rank: int) -> str:
        """Mask of the sequences with at least one step: (N, 1, ...) of this rank."""
        with self.builder.scope("lengths"):
            add, axes = self.builder.add, range(1, rank)
            zero_steps = self.builder.constant("none", np.int64(0))
            mask = add("Greater", self._counts, zero_steps)
            return add("Unsqueeze", mask, self.builder.integers(*axes))


_OPERATORS = ACTIVATION_NAMES | {"symmrelu": "Abs"}


def add_activation(graph: GraphBuilder, value: str, activation: Activation | None) -> str:
    """Add the operators of a dense layer's activation (None: softmax); return the output's name."""
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
    parameters = {"alpha": alpha, "beta": beta}
    attributes = {key: number for key, number in parameters.items() if number is not None}
    return graph.add(_OPERATORS[name], value, **attributes)


def _scaled(graph: GraphBuilder, value: str, factor: float | None) -> str:
    return graph.add("Mul", value, _number(graph, factor))


def _number(graph: GraphBuilder, value: float | None) -> str:
    return graph.constant("factor", np.float64(0 if value is None else value))
