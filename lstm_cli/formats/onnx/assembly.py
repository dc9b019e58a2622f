"""A network as a graph: each layer adds its operators to the value that the one before gave."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from lstm_cli.engines.types import Array, DenseSpec, FlattenSpec, Layers, LayerSpec, RecurrentSpec
from lstm_cli.formats.interchange import WriteOptions
from lstm_cli.formats.onnx.builder import GraphBuilder, Size
from lstm_cli.formats.onnx.functions import add_activation
from lstm_cli.formats.onnx.masks import Masks
from lstm_cli.formats.onnx.messages import Graph
from lstm_cli.formats.onnx.recurrence import Recurrence, swapped

Layout: TypeAlias = Literal["batch", "time", "rows"]
"""(N, T, F), (T, N, F), or (N, F) after the steps are gone."""


@dataclass(frozen=True)
class Flow:
    """The value between two layers.

    Attributes
    ----------
    value
        Its name.
    padded
        Whether something else than 0 may stand in the padding; never without `lengths`.
    """

    value: str
    layout: Layout
    padded: bool


class Assembly:
    """The graph of a network.

    Parameters
    ----------
    layers
        Specifications, input to output.
    tensors
        By native name.
    options
        Which inputs and outputs the graph has besides ``x`` and ``y``.
    steps
        Of every sequence; None: as many as a flatten layer takes, or any number.
    """

    def __init__(
        self,
        layers: Layers,
        tensors: Mapping[str, Array],
        options: WriteOptions,
        steps: int | None = None,
    ) -> None:
        self.layers, self.tensors, self.options = layers, tensors, options
        flat = next((spec.steps for spec in layers if isinstance(spec, FlattenSpec)), None)
        self.steps: Size = steps or flat or "T"
        self.builder = GraphBuilder()
        x = self.builder.input("x", ("N", self.steps, layers[0].input_size))
        self.masks = Masks(self.builder, x) if options.lengths else None
        self.recurrence = Recurrence(self.builder, tensors, self.masks, options.states)

    def graph(self, name: str) -> Graph:
        """All layers between ``x`` and ``y``.

        Raises
        ------
        WeightsError
            A layer that ONNX cannot represent, or more weights than a file holds.
        """
        flow = Flow("x", "batch", padded=self.options.lengths)
        for spec in self.layers:
            with self.builder.scope(f"layers.{spec.index}"):
                flow = self._layer(spec, flow)
        flow = self._laid_out(self._without_padding(flow), "batch")
        middle = () if flow.layout == "rows" else (self.steps,)
        self.builder.output("y", flow.value, ("N", *middle, self.layers[-1].output_size))
        for final in self.recurrence.finals:
            self.builder.output(*final)
        return self.builder.finish(name)

    def _layer(self, spec: LayerSpec, flow: Flow) -> Flow:
        if isinstance(spec, RecurrentSpec):
            value = self.recurrence.add(spec, self._laid_out(flow, "time").value)
            return Flow(value, "time" if spec.return_sequences else "rows", padded=False)
        if isinstance(spec, DenseSpec):
            return self._dense(spec, flow)
        if isinstance(spec, FlattenSpec):
            return self._flatten(spec, self._laid_out(self._without_padding(flow), "batch"))
        return flow  # dropout

    def _flatten(self, spec: FlattenSpec, flow: Flow) -> Flow:
        add, integers, value = self.builder.add, self.builder.integers, flow.value
        missing = spec.steps - self.steps if isinstance(self.steps, int) else 0
        if missing > 0:
            value = add("Pad", value, integers(0, 0, 0, 0, missing, 0))
        return Flow(add("Reshape", value, integers(0, spec.output_size)), "rows", padded=False)

    def _dense(self, spec: DenseSpec, flow: Flow) -> Flow:
        builder, prefix = self.builder, f"layers.{spec.index}."
        W = builder.constant("W", self.tensors[prefix + "weight"].T)  # (D, units)
        value = builder.add("MatMul", flow.value, W)
        if spec.bias:
            value = builder.add("Add", value, builder.constant("b", self.tensors[prefix + "bias"]))
        value = add_activation(builder, value, spec.activation)
        return Flow(value, flow.layout, padded=self.options.lengths)

    def _without_padding(self, flow: Flow) -> Flow:
        """0 past every sequence's end, and for a sequence of length 0."""
        if self.masks is None or not flow.padded:
            return flow
        if flow.layout == "rows":
            mask = self.masks.filled(2)
        else:
            mask = self.masks.valid(time_first=flow.layout == "time")
        value = self.builder.add("Where", mask, flow.value, self.masks.zero)
        return replace(flow, value=value, padded=False)

    def _laid_out(self, flow: Flow, layout: Layout) -> Flow:
        if flow.layout in (layout, "rows"):
            return flow
        return replace(flow, value=swapped(self.builder, flow.value), layout=layout)
