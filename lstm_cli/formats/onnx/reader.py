"""Reader of ONNX models.

The interpreter evaluates the graph from its inputs with symbolic values; `LayerExtractor` then
extracts the layers from the output back to the input. `GraphInputs` finds the sequences.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from lstm_cli.errors import WeightsError, memory_error, memory_is_short
from lstm_cli.formats.builder import NetworkBuilder
from lstm_cli.formats.gates import ONNX_GATES
from lstm_cli.formats.interchange import Imported, ReadOptions
from lstm_cli.formats.limits import read_whole
from lstm_cli.formats.onnx import proto
from lstm_cli.formats.onnx.interpreter import (
    MISFIT_ERRORS,
    Dispatcher,
    Interpreter,
    node_weight,
    opset,
)
from lstm_cli.formats.onnx.layers import (
    ImportedLayer,
    LayerExtractor,
    ambiguity_notes,
    state_notes,
    zero_states,
)
from lstm_cli.formats.onnx.node import (
    FLOAT_TYPES,
    GraphContext,
    WorkBudget,
    external_file,
    to_array,
)
from lstm_cli.formats.onnx.ops_math import output_vector
from lstm_cli.formats.onnx.proto import (
    OnnxGraph,
    OnnxModel,
    OnnxNode,
    OnnxTensorType,
    OnnxValueInfo,
    WireError,
    quote_name,
)
from lstm_cli.formats.onnx.schemas import (
    NEWEST,
    RECURRENT_OPERATORS,
    node_title,
    unsupported_reason,
)
from lstm_cli.formats.onnx.sizes import FreeAxes
from lstm_cli.formats.onnx.symbolic import (
    ALL_STEPS,
    FEATURES,
    MAX_FEATURES,
    FinalCellState,
    GraphValue,
    InputSequences,
    RecurrentDirection,
    RuntimeInput,
    SymbolicTensor,
    UnsupportedError,
    UnsupportedValue,
    count_axes,
    parts_of,
)

STANDARD_DOMAINS = ("", "ai.onnx", "com.microsoft")
"""Domains of operators that no function of a model defines."""
MAX_TRIED_SIZES = 4
"""Largest number of sizes that are tried for an open axis."""
MAX_TRACED_NODES = 5_000
"""Largest number of nodes of a graph that is read more than once."""
MAX_BYTES = 1 << 31
"""Largest number of bytes of a file, which is the limit of protobuf."""
OLDEST_OPSET = 7
"""First opset with today's recurrent operators."""
SHOWN_ORDERS = {"lstm": "i o f c", "gru": "z r h", "rnn": "i"}
"""Gate order of each operator, in the letters of ONNX's specification."""


def read(path: Path, options: ReadOptions) -> Imported:
    """Read an ONNX model.

    Raises
    ------
    WeightsError
        The file is malformed, or lstm-cli cannot represent the network: the error names the node.
    """
    data = read_whole(path, "the ONNX model", MAX_BYTES)
    try:
        with np.errstate(all="ignore"):  # the caller checks the values of the weights
            return _read_model(path, data, OnnxModel.decode(memoryview(data)))
    except WireError as error:
        message = f"{path} is not an ONNX model, or is damaged"
        raise WeightsError(message, found=str(error)) from None
    except (MemoryError, RecursionError) as error:
        if isinstance(error, MemoryError) and memory_is_short():
            raise memory_error(str(path)) from error
        raise WeightsError(f"{path} holds a model that needs too much memory") from None


def _read_model(path: Path, data: bytes, model: OnnxModel) -> Imported:
    version = opset(model) or 1
    if model.graph is None:
        raise WeightsError(f"{path} is not an ONNX model, or is damaged", found="no graph")
    if version < OLDEST_OPSET:
        raise WeightsError(
            f"{path} uses operators of ONNX's opset {version}",
            expected=f"opset {OLDEST_OPSET} or newer",
            hint="onnx.version_converter converts a model to a newer opset",
        )
    budget = WorkBudget(_stored_bytes(path, model, data), _count_nodes(model), path)
    reading, layers = _read_layers(model, budget)
    if version > NEWEST:
        reading.notes[
            f"opset {version} is newer than {NEWEST}, the newest opset that lstm-cli knows: "
            f"operators are read as in opset {NEWEST}"
        ] = None
    network = NetworkBuilder(reading.features, notes=list(reading.notes))
    if any(layer.kind == "flatten" for layer in layers):
        network.steps = reading.free_axes.steps
    for layer in layers:
        config = network.add(layer.kind, layer.tensors, **layer.options)
        if any(part.ambiguous_parameters for part in layer.directions):
            # all are stated, so that --set can change one parameter
            config |= {k: v for k, v in layer.options.items() if k.endswith("activation")}
    kinds = {node.op_type.lower() for node in model.graph.nodes} & ONNX_GATES.keys()
    return network.finish(
        path,
        "onnx",
        _title(model, version),
        hashlib.sha256(data).hexdigest(),
        {kind: SHOWN_ORDERS[kind] for kind in SHOWN_ORDERS if kind in kinds},
        describes_layers=True,
        zero_states=zero_states(layers),
    )


def _read_layers(model: OnnxModel, budget: WorkBudget) -> tuple[_ModelReading, list[ImportedLayer]]:
    """Layers of a model, whose exporter may have written an open size as a number.

    If the model cannot be read as it is, each number that may be such a size is tried.
    """
    try:
        reading = _ModelReading(model, budget)
        return reading, reading.layers()
    except WeightsError as error:
        first_error = error
    for sizes in traced_sizes(model, budget.path):
        with suppress(WeightsError):
            budget.refill()
            reading = _ModelReading(model, budget, sizes)
            layers = reading.layers()
            if any(layer.kind == "flatten" for layer in layers):
                continue  # the number may be a number of features, so T cannot depend on it
            steps = ", ".join(map(str, sizes.values()))
            reading.notes[
                f"the model declares an axis open and computes with {steps} there, the size at "
                "export: it is read as a network of an open number of steps"
            ] = None
            return reading, layers
    raise first_error


def _stored_bytes(path: Path, model: OnnxModel, data: bytes) -> int:
    """Bytes of the model and of its existing external data."""
    tensors = () if model.graph is None else model.graph.initializers
    external = {
        entry.value for t in tensors for entry in t.external_data if entry.key == "location"
    }
    size = len(data)
    for name in external:
        with suppress(OSError, ValueError, WeightsError):
            size += external_file(path, name, "").stat().st_size
    return size


def _count_nodes(model: OnnxModel) -> int:
    """Operators in the file, with those in functions and branches."""
    graphs = [] if model.graph is None else [model.graph]
    nodes = [node for function in model.functions for node in function.nodes]
    weight = 0
    while graphs or nodes:
        nodes += graphs.pop().nodes if graphs else ()
        weight += sum(map(node_weight, nodes))
        graphs += [a.g for node in nodes for a in node.attributes if a.g is not None]
        nodes = []
    return weight


def _title(model: OnnxModel, version: int) -> str:
    producer = " ".join(filter(None, (model.producer_name, model.producer_version)))
    suffix = f", written by {producer}" if producer and producer.isprintable() else ""
    return f"ONNX opset {version}{suffix}"[:200]


class _ModelReading:
    """One attempt at reading a model, with open sizes of axes replaced by `sizes`."""

    def __init__(
        self, model: OnnxModel, budget: WorkBudget, sizes: Mapping[str, int] = MappingProxyType({})
    ) -> None:
        if model.graph is None:
            raise WireError("no graph")
        self.path, self.graph = budget.path, model.graph
        inputs = GraphInputs(self.graph, self.path)
        inputs.sizes |= {axis: n for axis, n in sizes.items() if inputs.sizes.get(axis, n) is None}
        self.features = inputs.features
        self.free_axes = FreeAxes(inputs.sizes, inputs.labels, traced=bool(sizes))
        names = frozenset(value.name for value in self.graph.inputs)
        context = GraphContext(self.free_axes, budget, names)
        self.notes = context.notes
        dispatcher = Dispatcher(context)
        self.values = Interpreter(model, dispatcher).run(self.graph, inputs.values())
        self.extractor = LayerExtractor(context, dispatcher.reroller)

    def layers(self) -> list[ImportedLayer]:
        """Layers of the network, from input to output."""
        try:
            return self._layers()
        except WeightsError:
            broken_loop = self.extractor.reroller.broken_loop
            if broken_loop is None:
                raise
            raise broken_loop.error(str(self.path)) from None

    def _layers(self) -> list[ImportedLayer]:
        outputs = self._outputs()
        name, main = self._main(outputs)
        try:
            layers = self.extractor.layers(output_vector(self.free_axes, main))
        except UnsupportedError as error:
            raise self._error(f"the model's output {quote_name(name)}: {error}") from None
        except MISFIT_ERRORS:
            raise self._error(
                f"the model's output {quote_name(name)} is not computed by layers"
            ) from None
        if not layers:
            raise self._error("the model returns its input and has no layers")
        for other, value in outputs.items():
            if other != name:
                self._check_other(other, value)
        self._note_axes(name, main)
        self._note_last_steps()
        notes = (*state_notes(layers, zero_states(layers)), *ambiguity_notes(layers))
        self.notes |= dict.fromkeys(notes)
        return layers

    def _outputs(self) -> dict[str, GraphValue]:
        outputs: dict[str, GraphValue] = {}
        for name in (info.name for info in self.graph.outputs):
            value = self.values.get(name)
            missing = UnsupportedValue(f"{quote_name(name)}, which no node computes")
            outputs[name] = missing if value is None else value
        if not outputs:
            raise self._error("the model has no output")
        return outputs

    def _main(self, outputs: Mapping[str, GraphValue]) -> tuple[str, SymbolicTensor]:
        """Name and value of the network's output: the first output that is not a state.

        If all outputs are states, it is the first output with a hidden state h.
        """
        tensors = {
            name: value for name, value in outputs.items() if isinstance(value, SymbolicTensor)
        }
        for accept_h in (False, True):
            for name, value in tensors.items():
                if not _is_state(value, accept_h=accept_h):
                    return name, value
        for other in outputs.values():
            if isinstance(other, UnsupportedValue):
                raise self._unsupported(other)
        raise self._error("no output of the model depends on its sequences")

    def _check_other(self, name: str, value: GraphValue) -> None:
        """Check a further output, which must be a final state of the network."""
        if isinstance(value, RuntimeInput):
            return
        if isinstance(value, SymbolicTensor) and self._is_network_state(value):
            self.notes["final states are part of the results, not outputs of the model"] = None
            return
        if isinstance(value, UnsupportedValue):
            raise self._unsupported(value)
        raise self._error(
            f"the model gives {quote_name(name)} besides its other outputs",
            hint="export it with one output; only final states may be further outputs",
        )

    def _is_network_state(self, value: SymbolicTensor) -> bool:
        """True if a tensor holds final states of the network's layers."""
        nodes = {signal.where for signal in self.extractor.directions}
        ids = {id(signal) for signal in self.extractor.directions}
        for part in parts_of(value.vector):
            signal = part.signal
            if isinstance(signal, FinalCellState) and signal.where in nodes:
                continue
            is_direction = isinstance(signal, RecurrentDirection) and id(signal) in ids
            if not is_direction or not isinstance(part.step, int):
                return False
        return True

    def _note_last_steps(self) -> None:
        """Note a last step of Y, which is not the last valid step of shorter sequences."""
        vectors = self.free_axes.indexed_vectors
        selected = {part.signal for vector in vectors for part in parts_of(vector)}
        for signal in self.extractor.last_step_reads:
            if signal.ragged and signal in selected:
                self.notes[
                    f"the model reads the last step of {signal.where}, which ONNX Runtime gives as "
                    "0 for sequences shorter than the others; lstm-cli takes the last valid step "
                    "of each sequence"
                ] = None

    def _note_axes(self, name: str, value: SymbolicTensor) -> None:
        """Note axes of the input and output that are in another order than lstm-cli's."""
        letters = {self.free_axes.batch: "N", self.free_axes.time: "T"}
        sizes = [*value.indices.shape]
        texts = iter(map(str, sizes) if len(sizes) > 1 else "F")
        layout = [
            "x".join(next(texts) if part == FEATURES else letters.get(part, "?") for part in axis)
            or "1"
            for axis in value.axes
        ]
        native_layout = ["N", "T", "F"] if "T" in layout else ["N", "F"]
        if layout != native_layout:
            self.notes[
                f"the model's output {quote_name(name)} is laid out as ({', '.join(layout)}); "
                f"lstm-cli gives ({', '.join(native_layout)})"
            ] = None
        free = list(self.free_axes.sizes)
        if free[:1] == [self.free_axes.time]:
            input_layout = "(T, N, D)" if len(free) > 1 else "one sequence (T, D)"
            self.notes[f"the model reads {input_layout}; lstm-cli reads (N, T, D)"] = None

    def _unsupported(self, value: UnsupportedValue) -> WeightsError:
        if isinstance(value.error, WeightsError):
            problems = [
                problem if problem.where else replace(problem, where=(str(self.path),))
                for problem in value.error.problems
            ]
            return WeightsError(problems, headline=value.error.headline)
        what = value.what if value.error is None else f"{value.what}: {value.error}"
        return self._error(f"the model depends on a value that lstm-cli cannot represent: {what}")

    def _error(self, problem: str, hint: str | None = None) -> WeightsError:
        return WeightsError(problem, where=str(self.path), hint=hint)


def _is_state(value: SymbolicTensor, *, accept_h: bool) -> bool:
    """True for a final state; with `accept_h` only for a cell state c."""
    parts = list(parts_of(value.vector))
    if all(isinstance(part.signal, FinalCellState) for part in parts):
        return True
    are_states = all(
        isinstance(part.signal, RecurrentDirection | FinalCellState)
        and isinstance(part.step, int | None)
        for part in parts
    )
    return are_states and not accept_h


class GraphInputs:
    """Inputs of a graph: the sequences, and other inputs such as states and lengths.

    Attributes
    ----------
    features
        Number of features D of the sequences.
    sizes
        Size of each free axis of the sequences by name; None: open.
    labels
        Text for each free axis in errors.
    """

    def __init__(self, graph: OnnxGraph, path: Path) -> None:
        self.graph, self.path = graph, path
        stored = {tensor.name for tensor in graph.initializers}
        self.runtime_inputs = [value for value in graph.inputs if value.name not in stored]
        self.sequences = self._find_sequences()
        self.label = f"the model's input {quote_name(self.sequences.name)}"
        kind = self.sequences.type.non_tensor_kind if self.sequences.type is not None else None
        if kind is not None:
            raise self._error(f"{self.label} is of the type {kind}", "a tensor")
        sizes = self._sizes(self.sequences)
        self.features = self._features(sizes)
        free = sizes[:-1]
        self.sizes: dict[str, int | None] = {f"axis {k}": n for k, n in enumerate(free)}
        shape = _type(self.sequences).shape
        axis_names = [dim.name for dim in shape.dims] if shape is not None else [None] * len(free)
        self.labels = {
            f"axis {k}": (f"{quote_name(name)}, " if name else "")
            + f"axis {k} of the input {quote_name(self.sequences.name)}"
            for k, name in enumerate(axis_names[:-1])
        }

    def values(self) -> dict[str, GraphValue]:
        """Symbolic value of each input by name."""
        values: dict[str, GraphValue] = {
            info.name: RuntimeInput(quote_name(info.name)) for info in self.runtime_inputs
        }
        name, indices = self.sequences.name, np.arange(self.features)
        signal = InputSequences(self.features, True, f"the input {quote_name(name)}")
        axes = (*((axis,) for axis in self.sizes), (FEATURES,))
        values[name] = SymbolicTensor(signal, ALL_STEPS, indices, axes)
        return values

    def _find_sequences(self) -> OnnxValueInfo:
        """Input that reaches X of the first recurrent operator, else the first real input."""
        roots = {info.name: info for info in self.runtime_inputs}
        for node in self.graph.nodes:
            node_roots = [roots[name] for name in node.inputs if name in roots]
            if node.op_type in RECURRENT_OPERATORS and node.inputs:
                root = roots.get(node.inputs[0])
                if root is not None:
                    return root
            if node_roots:
                roots |= {name: node_roots[0] for name in node.outputs if name not in roots}
        types = (*FLOAT_TYPES, proto.UNDEFINED)
        real_inputs = [info for info in self.runtime_inputs if _type(info).element in types]
        if not real_inputs:
            raise self._error("the model has no input of real numbers", "a float input")
        return real_inputs[0]

    def _sizes(self, info: OnnxValueInfo) -> list[int | None]:
        """Sizes of an input's axes, None for open sizes."""
        shape = _type(info).shape
        if shape is None:
            return [None, None, None]
        sizes = [dim.value if dim.value and dim.value > 0 else None for dim in shape.dims]
        if len(sizes) not in (2, 3):
            raise self._error(
                f"{self.label} has {count_axes(len(sizes))}",
                "sequences (N, T, D) or (T, N, D)",
                self._first_unsupported(),
            )
        return sizes

    def _features(self, sizes: list[int | None]) -> int:
        features = sizes[-1] if sizes[-1] is not None else self._recurrent_features()
        if features is None or features > MAX_FEATURES:
            raise self._error(
                f"the number of features of {self.label} is open or too large",
                "a fixed last axis",
                self._first_unsupported(),
            )
        return features

    def _recurrent_features(self) -> int | None:
        """Number of features in W of the first recurrent operator."""
        stored = {tensor.name: tensor.dims for tensor in self.graph.initializers}
        for node in self.graph.nodes:
            if node.op_type in RECURRENT_OPERATORS and len(node.inputs) > 1:
                dims = stored.get(node.inputs[1], ())
                return dims[-1] if dims and dims[-1] > 0 else None
        return None

    def _first_unsupported(self) -> OnnxNode | None:
        """First unsupported node on the path from the sequences."""
        reached = {self.sequences.name}
        for node in self.graph.nodes:
            if reached.intersection(node.inputs):
                if node.domain in STANDARD_DOMAINS and unsupported_reason(node) is not None:
                    return node
                reached.update(node.outputs)
        return None

    def _error(self, problem: str, expected: str, node: OnnxNode | None = None) -> WeightsError:
        if node is None:
            return WeightsError(problem, expected=expected, where=str(self.path))
        return WeightsError(
            f"{node_title(node)} is between {self.label} and the layers: "
            f"{unsupported_reason(node)}",
            expected=expected,
            found=problem,
            where=str(self.path),
            hint="export the part after this node as a separate model, and feed it the node's "
            "outputs",
        )


def _type(info: OnnxValueInfo) -> OnnxTensorType:
    tensor = info.type.tensor if info.type is not None else None
    return OnnxTensorType() if tensor is None else tensor


def traced_sizes(model: OnnxModel, path: Path) -> Iterator[dict[str, int]]:
    """Yield sizes for one open axis that the exporter may have written into the graph.

    The sizes are the first numbers of constant targets of Reshape.

    Raises
    ------
    WeightsError
        The target of a Reshape is damaged.
    """
    graph = model.graph
    if graph is None or len(graph.nodes) > MAX_TRACED_NODES:
        return
    axes = [axis for axis, size in GraphInputs(graph, path).sizes.items() if size is None]
    targets = {n.inputs[1] for n in graph.nodes if n.op_type == "Reshape" and len(n.inputs) > 1}
    sizes: dict[int, None] = {}
    for tensor in graph.initializers:
        if tensor.name in targets and len(tensor.dims) == 1 and 0 < tensor.dims[0] < 8:
            values = to_array(tensor, path)[:2]
            if values.dtype.kind == "i":  # a damaged target may have any dtype
                sizes |= {int(n): None for n in values if n > 1}
    for size in list(sizes)[:MAX_TRIED_SIZES]:
        for axis in axes:
            yield {axis: size}
