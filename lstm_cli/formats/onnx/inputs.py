"""The inputs of a graph: which one is the sequences, and what its axes are."""

from __future__ import annotations

from pathlib import Path

from lstm_cli.errors import WeightsError
from lstm_cli.formats.onnx import messages as m
from lstm_cli.formats.onnx.messages import Graph, Node, TensorType, ValueInfo
from lstm_cli.formats.onnx.operators import NODES
from lstm_cli.formats.onnx.schemas import title, unread
from lstm_cli.formats.onnx.tensors import quoted
from lstm_cli.formats.onnx.values import ALL, FEATURES, MOST_FEATURES, Anything, Input, Side, Value
from lstm_cli.formats.onnx.vectors import counted

STANDARD = ("", "ai.onnx", "com.microsoft")
"""Domains whose operators no function of a model stands for."""
_FLOATS = (m.FLOAT, m.DOUBLE, m.FLOAT16, m.BFLOAT16)


class Inputs:
    """What a graph is fed.

    Attributes
    ----------
    features
        D of the sequences.
    sizes
        Of their free axes, by name; None: left open.
    names
        Free axes as messages name them.
    """

    def __init__(self, graph: Graph, path: Path) -> None:
        self.graph, self.path = graph, path
        stored = {tensor.name for tensor in graph.initializers}
        self.fed = [value for value in graph.inputs if value.name not in stored]
        self.main = self._sequences()
        other = self.main.type.other if self.main.type is not None else None
        if other is not None:
            raise self._refused(
                f"the model's input {quoted(self.main.name)} is of the type {other}", "a tensor"
            )
        dims = self._dims(self.main)
        self.features = self._features(dims)
        free = dims[:-1]
        self.sizes: dict[str, int | None] = {f"axis {k}": n for k, n in enumerate(free)}
        shape = _type(self.main).shape
        own = [dim.name for dim in shape.dims] if shape is not None else [None] * len(free)
        self.names = {
            f"axis {k}": (f"{quoted(name)}, " if name else "")
            + f"axis {k} of the input {quoted(self.main.name)}"
            for k, name in enumerate(own[:-1])
        }

    def values(self) -> dict[str, Anything]:
        """The inputs' values by name."""
        found: dict[str, Anything] = {value.name: Side(quoted(value.name)) for value in self.fed}
        atom = Input(self.features, True, f"the input {quoted(self.main.name)}")
        axes = (*((name,) for name in self.sizes), (FEATURES,))
        found[self.main.name] = Value(atom, ALL, counted(self.features), axes)
        return found

    def _sequences(self) -> ValueInfo:
        """The input that reaches X of the first recurrent operator, or else the first of reals."""
        roots = {value.name: value for value in self.fed}
        for node in self.graph.nodes:
            known = [roots[name] for name in node.inputs if name in roots]
            if node.op_type in NODES and node.inputs:
                found = roots.get(node.inputs[0])
                if found is not None:
                    return found
            if known:
                roots |= {name: known[0] for name in node.outputs if name not in roots}
        reals = [value for value in self.fed if _type(value).element in (*_FLOATS, m.UNDEFINED)]
        if not reals:
            raise self._refused("the model has no input of real numbers", "a float input")
        return reals[0]

    def _dims(self, value: ValueInfo) -> list[int | None]:
        shape = _type(value).shape
        if shape is None:
            return [None, None, None]
        dims = [dim.value if dim.value and dim.value > 0 else None for dim in shape.dims]
        if len(dims) not in (2, 3):
            raise self._refused(
                f"the model's input {quoted(value.name)} has {len(dims)} axes",
                "sequences (N, T, D) or (T, N, D)",
                self._reader(),
            )
        return dims

    def _features(self, dims: list[int | None]) -> int:
        features = dims[-1] if dims[-1] is not None else self._read_by_first()
        if features is None or features > MOST_FEATURES:
            raise self._refused(
                f"the features of the model's input {quoted(self.main.name)} are left open",
                "a fixed last axis",
                self._reader(),
            )
        return features

    def _read_by_first(self) -> int | None:
        """D of the first recurrent operator's W."""
        stored = {tensor.name: tensor.dims for tensor in self.graph.initializers}
        for node in self.graph.nodes:
            if node.op_type in NODES and len(node.inputs) > 1:
                dims = stored.get(node.inputs[1], ())
                return dims[-1] if dims and dims[-1] > 0 else None
        return None

    def _reader(self) -> Node | None:
        """The first node on the way from the sequences that is no layer of ours."""
        known = {self.main.name}
        for node in self.graph.nodes:
            if known.intersection(node.inputs):
                if node.domain in STANDARD and unread(node) is not None:
                    return node
                known.update(node.outputs)
        return None

    def _refused(self, what: str, expected: str, reader: Node | None = None) -> WeightsError:
        if reader is None:
            return WeightsError(what, expected=expected, where=str(self.path))
        return WeightsError(
            f"{title(reader)} stands between the model's input {quoted(self.main.name)} and its "
            f"layers: {unread(reader)}",
            expected=expected,
            found=what,
            where=str(self.path),
            hint="export what follows this node as a model of its own, and feed it the node's "
            "outputs",
        )


def _type(value: ValueInfo) -> TensorType:
    found = value.type.tensor if value.type is not None else None
    return TensorType() if found is None else found
