"""A graph as it grows: values and constants get readable names, and none twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from lstm_cli.engines.types import Array
from lstm_cli.errors import WeightsError
from lstm_cli.formats.onnx.messages import (
    A_FLOAT,
    A_FLOATS,
    A_INT,
    A_INTS,
    A_STRING,
    A_STRINGS,
    FLOAT,
    INT32,
    INT64,
    Attribute,
    Dimension,
    Graph,
    Node,
    Shape,
    Tensor,
    TensorType,
    Type,
    ValueInfo,
)

Size: TypeAlias = "int | str"
"""A dimension: a number, or the name of one that a run decides."""

LARGEST = (1 << 31) - (1 << 20)
"""Bytes of all constants; protobuf ends at 2 GB, and the graph itself takes some."""

_ELEMENTS = {np.dtype("f4"): FLOAT, np.dtype("i4"): INT32, np.dtype("i8"): INT64}


class GraphBuilder:
    """Nodes, constants, inputs and outputs of a graph, in the order in which they are added."""

    def __init__(self) -> None:
        self._scope = "network"
        self._nodes: list[Node] = []
        self._constants: dict[str, Tensor] = {}
        self._inputs: list[ValueInfo] = []
        self._outputs: list[ValueInfo] = []
        self._used: dict[str, int] = {}
        self._bytes = 0

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Let names begin with this one, such as ``layers.0``."""
        before, self._scope = self._scope, name
        try:
            yield
        finally:
            self._scope = before

    def input(self, name: str, dims: Sequence[Size], element: int = FLOAT) -> str:
        """Add an input of the graph; its name."""
        self._inputs.append(_value_info(name, dims, element))
        return name

    def output(self, name: str, value: str, dims: Sequence[Size]) -> None:
        """Make a value an output of this name."""
        if not self._rename(value, name):
            self._nodes.append(Node((value,), (name,), f"{name}.Identity", "Identity"))
        self._outputs.append(_value_info(name, dims, FLOAT))

    def constant(self, name: str, value: Any) -> str:
        """Add a constant, real numbers as float32; its whole name.

        Raises
        ------
        WeightsError
            A number beyond float32, or more of them than a file holds.
        """
        whole = self._unique(f"{self._scope}.{name}")
        array = np.asarray(value)
        if array.dtype.kind == "f":
            array = narrowed(array, whole)
        self._constants[whole] = self._tensor(whole, array)
        return whole

    def integers(self, *values: int) -> str:
        """A constant vector of integers, the same one for the same numbers; its name."""
        name = "_".join(["integers", *map(str, values)])
        if name not in self._constants:
            self._constants[name] = self._tensor(name, np.array(values, np.int64))
        return name

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output; the output's name."""
        return self.add_node(op, inputs, ("",), attributes)[0]

    def add_node(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[str | None],
        attributes: dict[str, Any],
    ) -> list[str]:
        """Add a node.

        Parameters
        ----------
        inputs
            Names; empty for an optional one that is not given.
        outputs
            What each output's name ends with; None for one that is not wanted.

        Returns
        -------
        The outputs' names.
        """
        name = self._unique(f"{self._scope}.{op}")
        names = ["" if part is None else name + (part and f".{part}") for part in outputs]
        found = tuple(_attribute(name, key, value) for key, value in attributes.items())
        self._nodes.append(Node(_trimmed(inputs), _trimmed(names), name, op, found))
        return names

    def finish(self, name: str) -> Graph:
        """The graph."""
        return Graph(
            nodes=tuple(self._nodes),
            name=name,
            initializers=tuple(self._constants.values()),
            inputs=tuple(self._inputs),
            outputs=tuple(self._outputs),
        )

    def _unique(self, name: str) -> str:
        """The name, with a number behind it from its second use on."""
        count = self._used[name] = self._used.get(name, 0) + 1
        return name if count == 1 else f"{name}_{count}"

    def _tensor(self, name: str, array: Array) -> Tensor:
        self._bytes += array.nbytes
        if self._bytes > LARGEST:
            raise WeightsError(
                "the network is too large for an ONNX file",
                expected=f"at most {LARGEST:,} bytes of weights",
                found=f"{self._bytes:,} bytes up to {name}",
                hint="the native format (.safetensors) has no such limit",
            )
        little = np.ascontiguousarray(array, array.dtype.newbyteorder("<"))
        element = _ELEMENTS[array.dtype]
        return Tensor(array.shape, element, name=name, raw_data=little.tobytes())

    def _rename(self, value: str, name: str) -> bool:
        """Give the value that a node makes another name, if no other node reads it."""
        if any(value in node.inputs for node in self._nodes):
            return False
        for k, node in enumerate(self._nodes):
            if value in node.outputs:
                outputs = tuple(name if other == value else other for other in node.outputs)
                self._nodes[k] = replace(node, outputs=outputs)
                return True
        return False


def narrowed(value: Array, name: str) -> Array:
    """Real numbers in float32.

    Raises
    ------
    WeightsError
        One is beyond it.
    """
    with np.errstate(over="ignore"):
        cast = np.asarray(value, np.float32)
    if not np.isfinite(cast).all():
        raise WeightsError(
            f"{name} holds values that ONNX's runtimes cannot compute with",
            expected=f"at most {np.finfo(np.float32).max:g}, the largest of float32",
            found=f"{np.abs(value).max():g}",
        )
    return cast


def _trimmed(names: Sequence[str]) -> tuple[str, ...]:
    """Names without the empty ones at the end."""
    last = max((k for k, name in enumerate(names) if name), default=-1)
    return tuple(names[: last + 1])


def _attribute(node: str, name: str, value: Any) -> Attribute:
    if isinstance(value, str):
        return Attribute(name, s=value.encode(), type=A_STRING)
    if isinstance(value, int):
        return Attribute(name, i=value, type=A_INT)
    if isinstance(value, float):
        single = narrowed(np.array(value), f"{node}.{name}")
        return Attribute(name, f=float(single), type=A_FLOAT)
    if isinstance(value[0], str):
        return Attribute(name, strings=tuple(text.encode() for text in value), type=A_STRINGS)
    if isinstance(value[0], int):
        return Attribute(name, ints=tuple(value), type=A_INTS)
    singles = narrowed(np.array(value), f"{node}.{name}")
    return Attribute(name, floats=tuple(singles.tolist()), type=A_FLOATS)


def _value_info(name: str, dims: Sequence[Size], element: int) -> ValueInfo:
    shape = Shape(tuple(_dimension(size) for size in dims))
    return ValueInfo(name, Type(TensorType(element, shape)))


def _dimension(size: Size) -> Dimension:
    return Dimension(name=size) if isinstance(size, str) else Dimension(value=size)
