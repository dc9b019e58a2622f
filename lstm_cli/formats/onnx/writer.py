"""Writer of ONNX models.

The model's input and output are batch-first, (N, T, F); between the layers values are time-first,
(T, N, F), as ONNX's recurrent operators need them. `RecurrentWriter` adds LSTM, GRU and RNN.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, assert_never

import numpy as np

from lstm_cli.cells import LSTM, Activation, Cell
from lstm_cli.engines.types import (
    DIRECTIONS,
    Array,
    DenseSpec,
    DropoutSpec,
    FlattenSpec,
    Layers,
    RecurrentSpec,
)
from lstm_cli.errors import WeightsError
from lstm_cli.formats.capabilities import StorableLayer, storable_layers
from lstm_cli.formats.gates import (
    NATIVE_GATES,
    ONNX_GATES,
    ONNX_PEEPHOLES,
    lacks_forget_gate,
    open_forget_gate,
    reorder_gates,
)
from lstm_cli.formats.interchange import Export, WriteOptions
from lstm_cli.formats.onnx.graph_builder import (
    DimensionSize,
    GraphBuilder,
    LengthMasks,
    add_activation,
)
from lstm_cli.formats.onnx.proto import OnnxGraph, OnnxModel, OnnxOperatorSet, OnnxProperty
from lstm_cli.formats.onnx.schemas import ACTIVATION_NAMES
from lstm_cli.output_files import PRODUCER, write_atomically
from lstm_cli.version import __version__

OPSET = 14
"""Oldest opset with today's recurrent operators, except for options that no runtime has."""
IR_VERSION = 8
"""IR version that every runtime since 2021 reads."""
CONFIG = "lstm-cli.config"
"""Metadata key of the config, as YAML."""


def write(path: Path, export: Export, options: WriteOptions | None = None) -> tuple[str, ...]:
    """Write a model with the input ``x`` (N, T, D) and the output ``y`` (N, T, F) or (N, F).

    Raises
    ------
    WeightsError
        ONNX cannot represent the network: the error names the layer and the option.
    LstmCliError
        The file cannot be written; an existing file stays unchanged.
    """
    options = options or WriteOptions()
    write_atomically(path, build_model(export, options).encode(), "the ONNX model")
    return tuple(export_notes(export, options))


def build_model(export: Export, options: WriteOptions, steps: int | None = None) -> OnnxModel:
    """Build the model of `write` in memory.

    Parameters
    ----------
    steps
        Number of steps of every sequence, for a model of fixed length; None: open.
    """
    name = export.name.encode(errors="replace").decode()  # a file name may not be valid Unicode
    graph = NetworkGraphWriter(export.layers, export.tensors, options, steps).graph(
        name or "network"
    )
    return OnnxModel(
        ir_version=IR_VERSION,
        producer_name=PRODUCER,
        producer_version=__version__,
        graph=graph,
        operator_sets=(OnnxOperatorSet("", OPSET),),
        metadata=(OnnxProperty(CONFIG, export.config),),
    )


Layout: TypeAlias = Literal["batch", "time", "rows"]
"""Axes of a value: (N, T, F), (T, N, F), or (N, F) without steps."""


@dataclass(frozen=True)
class LayerOutput:
    """Output of one layer, which the next layer reads.

    Attributes
    ----------
    value
        Name of the value in the graph.
    layout
        Axes of the value.
    padded
        The padding may hold values other than 0; always False without the input ``lengths``.
    """

    value: str
    layout: Layout
    padded: bool


class NetworkGraphWriter:
    """Builds the graph of a network, layer by layer.

    Parameters
    ----------
    layers
        Specifications of the layers, from input to output.
    tensors
        Weights by native name.
    options
        Inputs and outputs of the graph besides ``x`` and ``y``.
    steps
        Number of steps of every sequence; None: the number that a flatten layer needs, or open.
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
        self.steps: DimensionSize = steps or flat or "T"
        self.builder = GraphBuilder()
        x = self.builder.input("x", ("N", self.steps, layers[0].input_size))
        self.masks = LengthMasks(self.builder, x) if options.lengths else None
        self.recurrence = RecurrentWriter(self.builder, tensors, self.masks, options.states)

    def graph(self, name: str) -> OnnxGraph:
        """Graph with all layers between ``x`` and ``y``.

        Raises
        ------
        WeightsError
            ONNX cannot represent a layer, or the weights exceed the limit of a file.
        """
        output = LayerOutput("x", "batch", padded=self.options.lengths)
        for spec in storable_layers(self.layers):
            with self.builder.scope(f"layers.{spec.index}"):
                output = self._layer(spec, output)
        output = self._with_layout(self._without_padding(output), "batch")
        middle = () if output.layout == "rows" else (self.steps,)
        self.builder.output("y", output.value, ("N", *middle, self.layers[-1].output_size))
        for state, value, dims in self.recurrence.final_states:
            self.builder.output(state, value, dims)
        return self.builder.finish(name)

    def _layer(self, spec: StorableLayer, output: LayerOutput) -> LayerOutput:
        match spec:
            case RecurrentSpec():
                value = self.recurrence.add(spec, self._with_layout(output, "time").value)
                return LayerOutput(value, "time" if spec.return_sequences else "rows", padded=False)
            case DenseSpec():
                return self._dense(spec, output)
            case FlattenSpec():
                rows = self._with_layout(self._without_padding(output), "batch")
                return self._flatten(spec, rows)
            case DropoutSpec():
                return output
            case _:
                assert_never(spec)

    def _flatten(self, spec: FlattenSpec, output: LayerOutput) -> LayerOutput:
        add, integers, value = self.builder.add, self.builder.integers, output.value
        missing = spec.steps - self.steps if isinstance(self.steps, int) else 0
        if missing > 0:
            value = add("Pad", value, integers(0, 0, 0, 0, missing, 0))
        rows = add("Reshape", value, integers(0, spec.output_size))
        return LayerOutput(rows, "rows", padded=False)

    def _dense(self, spec: DenseSpec, output: LayerOutput) -> LayerOutput:
        builder, prefix = self.builder, f"layers.{spec.index}."
        W = builder.constant("W", self.tensors[prefix + "weight"].T)  # (D, units)
        value = builder.add("MatMul", output.value, W)
        if spec.bias:
            value = builder.add("Add", value, builder.constant("b", self.tensors[prefix + "bias"]))
        value = add_activation(builder, value, spec.activation)
        return LayerOutput(value, output.layout, padded=self.options.lengths)

    def _without_padding(self, output: LayerOutput) -> LayerOutput:
        """Replace padded steps, and sequences of length 0, by zeros."""
        if self.masks is None or not output.padded:
            return output
        if output.layout == "rows":
            mask = self.masks.filled(2)
        else:
            mask = self.masks.valid(time_first=output.layout == "time")
        value = self.builder.add("Where", mask, output.value, self.masks.zero)
        return replace(output, value=value, padded=False)

    def _with_layout(self, output: LayerOutput, layout: Layout) -> LayerOutput:
        if output.layout in (layout, "rows"):
            return output
        return replace(output, value=swap_first_axes(self.builder, output.value), layout=layout)


def swap_first_axes(builder: GraphBuilder, value: str) -> str:
    """Add a Transpose of the first two of three axes; return the name of the output."""
    return builder.add("Transpose", value, perm=[1, 0, 2])


class RecurrentWriter:
    """Adds recurrent layers to a graph.

    Parameters
    ----------
    tensors
        Weights by native name.
    masks
        Masks of the input ``lengths``; None without this input.
    states
        The states of every layer are inputs and outputs of the graph.

    Attributes
    ----------
    final_states
        Name, value and shape (N, dirs, H) of each final state that is an output of the graph.
    """

    def __init__(
        self,
        builder: GraphBuilder,
        tensors: Mapping[str, Array],
        masks: LengthMasks | None,
        states: bool,
    ) -> None:
        self.builder, self.tensors, self.masks, self.states = builder, tensors, masks, states
        self.final_states: list[tuple[str, str, tuple[DimensionSize, ...]]] = []

    def add(self, spec: RecurrentSpec, value: str) -> str:
        """Add a layer that reads (T, N, D); return the name of its output (T, N, F) or (N, F)."""
        initial_states = self._initial_states(spec) if self.states else {}
        tensors = operator_tensors(spec, self.tensors)
        weights = {name: self.builder.constant(name, array) for name, array in tensors.items()}
        inputs = [value, weights["W"], weights["R"], weights.get("B", "")]
        inputs.append("" if self.masks is None else self.masks.lengths)
        states = [swap_first_axes(self.builder, name) for name in initial_states.values()]
        inputs += states or ["", ""]
        if "P" in weights:
            inputs.append(weights["P"])
        outputs = self._operator(spec, inputs)
        for (state, initial), final in zip(initial_states.items(), outputs[1:], strict=False):
            self._add_final_state(spec, state, initial, final)
        return self._output(spec, outputs[0] if spec.return_sequences else outputs[1])

    def _operator(self, spec: RecurrentSpec, inputs: list[str]) -> list[str]:
        """Add the operator; return the names of Y, Y_h and Y_c, empty for unused outputs."""
        used = {
            "Y": spec.return_sequences,
            "Y_h": self.states or not spec.return_sequences,
            "Y_c": self.states and "c" in spec.cells[0].states,
        }
        outputs = [name if is_used else None for name, is_used in used.items()]
        return self.builder.add_node(spec.kind.upper(), inputs, outputs, operator_attributes(spec))

    def _output(self, spec: RecurrentSpec, value: str) -> str:
        value = self._join_directions(spec, value)
        if not spec.cells[0].projects:
            return value
        matrix = self.builder.constant("projection", projection(spec, self.tensors))
        return self.builder.add("MatMul", value, matrix)

    def _join_directions(self, spec: RecurrentSpec, value: str) -> str:
        """Reshape Y (T, dirs, N, H) to (T, N, dirs*H), or Y_h (dirs, N, H) to (N, dirs*H)."""
        add, integers = self.builder.add, self.builder.integers
        outer = (0, 0) if spec.return_sequences else (0,)  # 0: Reshape keeps the size
        if spec.directions == 1:
            return add("Squeeze", value, integers(len(outer) - 1))
        perm = [0, 2, 1, 3] if spec.return_sequences else [1, 0, 2]
        value = add("Transpose", value, perm=perm)
        return add("Reshape", value, integers(*outer, spec.directions * spec.hidden_size))

    def _initial_states(self, spec: RecurrentSpec) -> dict[str, str]:
        """Add an input (N, dirs, H) for each state; return the name of the input by state."""
        if spec.cells[0].projects:
            raise WeightsError(
                f"layer {spec.index} ({spec.kind}): ONNX has no initial state of a projected layer",
                expected="no projection_size, as the states are inputs of the model",
                found=f"projection_size {spec.cells[0].output_size}",
                hint="write it without states",
            )
        dims = ("N", spec.directions, spec.hidden_size)
        return {
            state: self.builder.input(f"initial_{state}.{spec.index}", dims)
            for state in spec.cells[0].states
        }

    def _add_final_state(self, spec: RecurrentSpec, state: str, initial: str, final: str) -> None:
        """Record a final state; a sequence of length 0 keeps its initial state."""
        value = swap_first_axes(self.builder, final)
        if self.masks is not None:
            value = self.builder.add("Where", self.masks.filled(3), value, initial)
        dims = ("N", spec.directions, spec.hidden_size)
        self.final_states.append((f"final_{state}.{spec.index}", value, dims))


def operator_tensors(spec: RecurrentSpec, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Tensors W (dirs, G*H, D) and R (dirs, G*H, H), optionally B (dirs, 2*G*H) and P (dirs, 3*H).

    Raises
    ------
    WeightsError
        No bias can hold the forget gate open that the cell does not have.
    """
    directions = []
    for d, cell in enumerate(spec.cells):
        weights = {name: tensors[spec.prefix(d) + name] for name in cell.tensor_names}
        directions.append(_direction_tensors(spec, d, weights))
    return {name: np.stack([weights[name] for weights in directions]) for name in directions[0]}


def projection(spec: RecurrentSpec, tensors: Mapping[str, Array]) -> Array:
    """Block-diagonal projection (dirs*H, dirs*P) of the joined outputs of all directions."""
    H, P = spec.hidden_size, spec.cells[0].output_size
    matrix = np.zeros((spec.directions * H, spec.directions * P))
    for d in range(spec.directions):
        matrix[d * H : (d + 1) * H, d * P : (d + 1) * P] = tensors[spec.prefix(d) + "weight_hr"].T
    return matrix


def _direction_tensors(
    spec: RecurrentSpec, direction: int, weights: Mapping[str, Array]
) -> dict[str, Array]:
    cell = spec.cells[direction]
    native = {name: np.array(value, np.float64) for name, value in weights.items()}
    if cell.projects:
        native["weight_hh"] = native["weight_hh"] @ native["weight_hr"]  # U W_hr, (4H, H)
    if lacks_forget_gate(cell):
        native = open_forget_gate(native, _opening_bias(spec, direction))
    native_order, onnx_order = NATIVE_GATES[cell.kind], ONNX_GATES[cell.kind]
    operands = {
        "W": reorder_gates(native["weight_ih"], native_order, onnx_order),
        "R": reorder_gates(native["weight_hh"], native_order, onnx_order),
    }
    if cell.bias:
        bias = native[cell.bias_names[0]]
        biases = (bias, native.get("bias_hh", np.zeros_like(bias)))
        operands["B"] = np.concatenate(
            [reorder_gates(part, native_order, onnx_order) for part in biases]
        )
    if "peephole" in native:
        operands["P"] = reorder_gates(native["peephole"], cell.peephole_gates, ONNX_PEEPHOLES)
    return operands


def _opening_bias(spec: RecurrentSpec, direction: int) -> float:
    """Pre-activation whose gate activation is exactly 1 in float32."""
    cell = spec.cells[direction]
    function = cell.recurrent_activation
    limit = np.inf if cell.clip is None else cell.clip
    with np.errstate(all="ignore"):
        for bias in np.clip(list(_candidates(function)), -limit, limit):
            if np.isfinite(bias) and np.float32(function(np.float64(np.float32(bias)))) == 1:
                return float(bias)
    within = "" if cell.clip is None else f" within the clip of {cell.clip:g}"
    raise WeightsError(
        f"layer {spec.index} ({spec.kind}, {DIRECTIONS[direction]}) has no forget gate, and "
        "ONNX's LSTM has one that must stay at exactly 1",
        expected="a recurrent_activation that reaches 1",
        found=f"{function}, which does not{within}",
    )


def _candidates(function: Activation) -> Iterator[float]:
    """Yield pre-activations for saturating activations, then for clipped straight lines."""
    yield from (40.0, 1.0, 0.0)
    if function.alpha is not None and function.beta is not None and function.alpha != 0:
        yield (1 - function.beta) / function.alpha
        yield 2 * (1 - function.beta) / function.alpha


def operator_attributes(spec: RecurrentSpec) -> dict[str, Any]:
    """Attributes of the recurrent operator.

    Raises
    ------
    WeightsError
        ONNX's recurrent operators do not have an activation of the layer.
    """
    cell = spec.cells[0]
    attributes: dict[str, Any] = {
        "hidden_size": spec.hidden_size,
        "direction": "bidirectional" if spec.directions == 2 else "forward",
        **_activations(spec),
        **_clip(spec),
    }
    if isinstance(cell, LSTM) and cell.coupled_input_forget and cell.use_forget_gate:
        attributes["input_forget"] = 1
    if spec.kind == "gru":
        attributes["linear_before_reset"] = int(getattr(cell, "reset_after", True))
    return attributes


def _clip(spec: RecurrentSpec) -> dict[str, float]:
    clip = spec.cells[0].clip
    if clip is None or clip > float(np.finfo(np.float32).max):
        return {}
    if np.float32(clip) == 0:
        raise WeightsError(
            f"layer {spec.index} ({spec.kind}): its clip is 0 in float32, which ONNX refuses",
            found=f"{clip:g}",
        )
    return {"clip": float(clip)}


def _activations(spec: RecurrentSpec) -> dict[str, Any]:
    """Names of the activations, and the parameters of the activations that have parameters."""
    functions = [
        _operator_activation(spec, d, function)
        for d, cell in enumerate(spec.cells)
        for function in _activation_functions(cell)
    ]
    attributes: dict[str, Any] = {"activations": [ACTIVATION_NAMES[f.name] for f in functions]}
    for key in ("alpha", "beta"):
        values = [value for f in functions if (value := getattr(f, key)) is not None]
        if values:
            attributes[f"activation_{key}"] = values
    return attributes


def _activation_functions(cell: Cell) -> tuple[Activation, ...]:
    """Activations of one direction in ONNX's order: f g h (LSTM), f g (GRU), or f (RNN)."""
    if cell.kind == "rnn":
        return (cell.activation,)
    if isinstance(cell, LSTM):
        return (cell.recurrent_activation, cell.activation, cell.cell_activation)
    return (cell.recurrent_activation, cell.activation)


def _operator_activation(spec: RecurrentSpec, direction: int, function: Activation) -> Activation:
    """Activation as the operator has it; the identity becomes affine."""
    if function.name == "identity":
        return Activation("affine", 1.0, 0.0)
    if function.name not in ACTIVATION_NAMES:
        raise WeightsError(
            f"layer {spec.index} ({spec.kind}, {DIRECTIONS[direction]}): ONNX's recurrent "
            f"operators have no activation {function.name}",
            expected="one of " + ", ".join(["identity", *ACTIVATION_NAMES]),
        )
    return function


def export_notes(export: Export, options: WriteOptions) -> Iterator[str]:
    """Yield notes on a written model: omitted parts, and what a run of the model must know."""
    if any(np.asarray(value).dtype == np.float64 for value in export.tensors.values()):
        yield (
            "the weights are rounded from float64 to float32: ONNX Runtime has no recurrent "
            "operators in float64"
        )
    for spec in storable_layers(export.layers):
        match spec:
            case RecurrentSpec():
                yield from _recurrent_notes(spec, options)
            case DenseSpec():
                pass
            case FlattenSpec():
                yield from _flatten_note(spec, options)
            case DropoutSpec():
                yield f"layer {spec.index} (dropout) is left out: it acts in training only"
            case _:
                assert_never(spec)


def _flatten_note(spec: FlattenSpec, options: WriteOptions) -> Iterator[str]:
    shorter = (
        "shorter ones are padded to it, with their length in `lengths`"
        if options.lengths
        else "shorter ones need the model with --lengths"
    )
    yield f"layer {spec.index} (flatten) fixes sequences at {spec.steps} steps: {shorter}"


def _recurrent_notes(spec: RecurrentSpec, options: WriteOptions) -> Iterator[str]:
    name, cell = f"layer {spec.index} ({spec.kind})", spec.cells[0]
    if spec.dropout or spec.recurrent_dropout:
        yield f"{name}: its dropout is left out: it acts in training only"
    if spec.stateful:
        advice = "feed them from run to run" if options.states else "--states makes them inputs"
        yield f"{name} is stateful, but a run begins with the given states, or with 0: {advice}"
    if cell.projects:
        yield (
            f"{name}: ONNX has no projection, so it is multiplied into the recurrent matrix and "
            "into the output; the model takes no initial states for the layer"
        )
    if lacks_forget_gate(cell):
        yield f"{name}: its forget gate, which the layer does not have, is kept at 1 by its bias"
