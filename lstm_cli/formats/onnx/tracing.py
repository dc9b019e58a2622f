"""Sizes that an exporter wrote into a graph as numbers, though the graph declares them open."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lstm_cli.formats.onnx.inputs import Inputs
from lstm_cli.formats.onnx.messages import Model
from lstm_cli.formats.onnx.tensors import to_array

MOST_TRIED = 4
"""Different numbers that are tried."""
MOST_NODES = 5_000
"""Of a graph that is read more than once."""


def traced_sizes(model: Model, path: Path) -> Iterator[dict[str, int]]:
    """What an open axis may have been: sizes that constant targets of Reshape begin with.

    Raises
    ------
    WeightsError
        Such a target is damaged.
    """
    graph = model.graph
    if graph is None or len(graph.nodes) > MOST_NODES:
        return
    axes = [axis for axis, size in Inputs(graph, path).sizes.items() if size is None]
    targets = {n.inputs[1] for n in graph.nodes if n.op_type == "Reshape" and len(n.inputs) > 1}
    sizes: dict[int, None] = {}
    for tensor in graph.initializers:
        if tensor.name in targets and len(tensor.dims) == 1 and 0 < tensor.dims[0] < 8:
            values = to_array(tensor, path)[:2]
            if values.dtype.kind == "i":  # a damaged target may be of any type
                sizes |= {int(n): None for n in values if n > 1}
    for size in list(sizes)[:MOST_TRIED]:
        for axis in axes:
            yield {axis: size}
