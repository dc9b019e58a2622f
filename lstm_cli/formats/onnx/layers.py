"""Extraction of a chain of layers from a symbolic graph, from its output to its input.

`LayerExtractor` turns signals into layers: `dense_layer`, `recurrent_layer`, `selection_layer`
and flatten. An `ImportedLayer` holds the options, the tensors and their `TensorSource` entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lstm_cli.cells import Activation
from lstm_cli.engines.types import Array
from lstm_cli.errors import WeightsError
from lstm_cli.formats.builder import NativeTensor, is_biased, join_directions, one_or_each
from lstm_cli.formats.onnx.node import GraphContext
from lstm_cli.formats.onnx.ops_math import linear_terms, reads_all_steps
from lstm_cli.formats.onnx.sizes import is_all_steps
from lstm_cli.formats.onnx.symbolic import (
    ALL_STEPS,
    REVERSED_STEPS,
    ActivationOutput,
    ElementwiseProduct,
    FeatureVector,
    FinalCellState,
    FlattenedSteps,
    InputSequences,
    LinearMap,
    RecurrentDirection,
    Signal,
    SoftmaxOutput,
    UnsupportedError,
    Weight,
    all_features,
    concatenate,
    is_complete,
    is_identity_selection,
    parts_of,
    same_vector,
    shortest_decimal,
    vector_at,
)
from lstm_cli.formats.onnx.unroll import LoopReroller, weight_sources
from lstm_cli.formats.onnx.unroll_match import IDENTITY

MAX_MATRIX, MAX_SPARSE_MATRIX = 1 << 27, 1 << 25
"""Largest number of entries of a matrix, and of a matrix of mostly zeros."""
MAX_LAYERS = 1000


@dataclass
class ImportedLayer:
    """One layer of the imported network.

    Attributes
    ----------
    kind, options
        Kind of the layer, and its options except those that its tensors show.
    tensors
        Weights with their sources, by native name within the layer.
    where
        Node that the layer comes from, for errors.
    directions
        Directions of a recurrent layer.
    """

    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, NativeTensor] = field(default_factory=dict)
    where: str = ""
    directions: tuple[RecurrentDirection, ...] = ()

    def widen(self, positions: Array, size: int, blocks: int = 1) -> None:
        """Spread the input columns over `size` features, to the given positions.

        The matrix has `blocks` blocks of columns, one for each step of a flattened input.

        Raises
        ------
        UnsupportedError
            The matrix would be too large.
        """
        if is_identity_selection(positions, size):
            return
        for name, tensor in self.tensors.items():
            if not name.endswith(("weight", "weight_ih")):
                continue
            rows = len(tensor.values)
            if rows * size * blocks > MAX_SPARSE_MATRIX:
                raise UnsupportedError(f"it needs {rows} x {size * blocks} weights, most of them 0")
            wide = np.zeros((rows, blocks, size), tensor.values.dtype)
            columns = tensor.values.reshape(rows, blocks, -1)
            if np.unique(positions).size == positions.size:
                wide[:, :, positions] = columns
            else:
                for k, position in enumerate(positions):
                    wide[:, :, position] += columns[:, :, k]
            sources = [
                replace(source, change=", ".join(filter(None, (source.change, "columns placed"))))
                for source in tensor.sources
            ]
            self.tensors[name] = NativeTensor(wide.reshape(rows, -1), tuple(sources))


def selection_layer(positions: Array, size: int, dtype: Any, where: str) -> ImportedLayer:
    """Dense layer that selects features by a matrix of zeros and ones."""
    if positions.size * size > MAX_SPARSE_MATRIX:
        raise UnsupportedError(f"it needs a matrix of {positions.size:,} x {size:,}")
    weight = np.zeros((positions.size, size), dtype)
    weight[np.arange(positions.size), positions] = 1
    return ImportedLayer("dense", {}, {"weight": NativeTensor(weight)}, where)


def dense_layer(signal: LinearMap, activation: Activation | None) -> ImportedLayer:
    """Dense layer of a linear map, with the matrices of all summands joined; None: softmax."""
    rows = sum(term.source.indices.size for term in signal.terms)
    if rows * signal.size > MAX_MATRIX:
        raise UnsupportedError(f"it needs a matrix of {rows:,} x {signal.size:,}")
    matrices = [_matrix(term.weight) for term in signal.terms]
    arrays = {"weight": (np.concatenate(matrices) if len(matrices) > 1 else matrices[0]).T}
    sources = {"weight": [s for term in signal.terms for s in weight_sources(term.weight)]}
    if signal.bias is not None:
        arrays["bias"], sources["bias"] = signal.bias.array, [*weight_sources(signal.bias)]
    dtype = np.result_type(*arrays.values())
    tensors = {
        name: NativeTensor(array.astype(dtype, copy=False), tuple(sources[name]))
        for name, array in arrays.items()
    }
    name = "softmax" if activation is None else activation_config(activation)
    return ImportedLayer("dense", {"activation": name}, tensors, signal.where)


def _matrix(weight: Weight) -> Array:
    """Full matrix (in, out) of a weight."""
    if not weight.diagonal:
        return weight.array
    if weight.array.size**2 > MAX_SPARSE_MATRIX:
        size = weight.array.size
        raise UnsupportedError(f"it needs {size} x {size} weights, most of them 0")
    dtype = np.float32 if weight.identity else weight.array.dtype
    return np.diag(weight.array.astype(dtype))


def activation_config(activation: Activation) -> Any:
    """Activation as in the YAML config: a name, or a mapping for parameters off the default."""
    default = Activation(activation.name)
    parameters = {
        key: getattr(activation, key)
        for key in ("alpha", "beta")
        if getattr(activation, key) != getattr(default, key)
    }
    return {"name": activation.name, **parameters} if parameters else activation.name


def recurrent_layer(parts: Sequence[RecurrentDirection], returns: bool) -> ImportedLayer:
    """Recurrent layer of a forward direction and an optional reverse direction."""
    first, is_ambiguous = parts[0], any(part.ambiguous_parameters for part in parts)
    options: dict[str, Any] = {"return_sequences": returns}
    for key, value in first.options.items():
        if not isinstance(value, Activation):
            options[key] = value
            continue
        pair = [part.options[key] for part in parts]
        is_default = key == "cell_activation" and pair == [p.options["activation"] for p in parts]
        if is_ambiguous:
            options[key] = one_or_each([_with_parameters(activation) for activation in pair])
        elif not is_default:
            options[key] = one_or_each([activation_config(activation) for activation in pair])
    tensors = join_directions(first.kind, [part.tensors for part in parts])
    return ImportedLayer(first.kind, options, tensors, first.where, tuple(parts))


def zero_direction(part: RecurrentDirection) -> RecurrentDirection:
    """Forward direction of zeros, for a layer that has only the reverse direction `part`."""
    tensors = {
        name: NativeTensor(np.zeros_like(tensor.values)) for name, tensor in part.tensors.items()
    }
    return replace(part, reverse=False, tensors=tensors)


def _with_parameters(activation: Any) -> Any:
    """Activation with all of its parameters, so that ``--set`` can change one parameter."""
    parameters = {"name": activation.name, "alpha": activation.alpha, "beta": activation.beta}
    config = {key: value for key, value in parameters.items() if value is not None}
    return config if len(config) > 1 else activation.name


def ambiguity_notes(layers: Sequence[ImportedLayer]) -> Iterator[str]:
    """Yield a note for each ambiguous parameter, with the ``--set`` of its alternative."""
    for k, layer in enumerate(layers):
        for d, part in enumerate(layer.directions):
            for doubt in part.ambiguous_parameters:
                place = f".{d}" if isinstance(layer.options[doubt.role], list) else ""
                yield (
                    f"{part.where}: the {doubt.letter} of its {doubt.name} is read as "
                    f"{doubt.value:g}; {doubt.why} {doubt.other:g}: --set model.layers.{k}."
                    f"{doubt.role}{place}.{doubt.letter}={doubt.other:g}"
                )


def zero_states(layers: Sequence[ImportedLayer]) -> dict[tuple[int, str], tuple[int, ...]]:
    """Directions whose initial state the model fixes at 0, by layer number and state.

    Empty for a model without any state input, whose runs may continue from given states.
    """
    states: dict[tuple[int, str], tuple[int, ...]] = {}
    recurrent = [(k, layer) for k, layer in enumerate(layers) if layer.directions]
    if not any(part.input_states for _, layer in recurrent for part in layer.directions):
        return states
    for k, layer in recurrent:
        for letter in "hc" if layer.kind == "lstm" else "h":
            parts = enumerate(layer.directions)
            directions = tuple(d for d, part in parts if letter not in part.input_states)
            states |= {(k, letter): directions} if directions else {}
    return states


def state_notes(
    layers: Sequence[ImportedLayer], zero: Mapping[tuple[int, str], tuple[int, ...]]
) -> Iterator[str]:
    """Yield a note for each state that begins with 0 although other states are inputs."""
    for (k, letter), directions in zero.items():
        parts = [layers[k].directions[d] for d in directions]
        for where in dict.fromkeys(part.where for part in parts):
            yield (
                f"{where} has no input initial_{letter}: its {letter} (layer {k}) begins with 0, "
                "as in ONNX Runtime, whatever --state holds"
            )


_DESCRIPTIONS: dict[type[Signal], str] = {
    ElementwiseProduct: "a product of two tensors",
    FinalCellState: "the cell state of a recurrent layer",
    InputSequences: "the input",
    LinearMap: "a linear map",
    ActivationOutput: "an activation",
    SoftmaxOutput: "a softmax",
    RecurrentDirection: "a recurrent layer",
}


class LayerExtractor:
    """Extracts the layers of a graph one by one, from its output to its input.

    Attributes
    ----------
    consumer
        Layer extracted last, which reads the next layer; None at the output.
    blocks
        Steps that `consumer` reads joined in one vector, 1 without a flatten layer.
    directions
        Directions of all recurrent layers.
    last_step_reads
        Forward directions of which only the last step is read, which may be padding.
    """

    def __init__(self, context: GraphContext, reroller: LoopReroller) -> None:
        self.free_axes, self.notes = context.free_axes, context.notes
        self.budget, self.reroller = context.budget, reroller
        self._reversed_layers: list[ImportedLayer] = []
        self.consumer: ImportedLayer | None = None
        self.blocks = 1
        self.directions: list[RecurrentDirection] = []
        self.last_step_reads: list[RecurrentDirection] = []

    def layers(self, output: FeatureVector) -> list[ImportedLayer]:
        """Layers from input to output.

        Raises
        ------
        WeightsError
            lstm-cli has no such layer: the error names the node.
        """
        vector: FeatureVector | None = output
        while vector is not None:
            if len(self._reversed_layers) > MAX_LAYERS:
                raise WeightsError(f"the model has more than {MAX_LAYERS} layers")
            vector = self._extract_layer(vector)
        return self._reversed_layers[::-1]

    def _extract_layer(self, vector: FeatureVector) -> FeatureVector | None:
        """Extract the layer that computes `vector`; return its input, None at the graph's input."""
        rerolled = [self._rerolled(part) for part in parts_of(vector)]
        parts = [part for joined in rerolled for part in parts_of(joined)]
        signals = list(dict.fromkeys(part.signal for part in parts))
        if not signals:
            raise WeightsError("the model's output is empty")
        if all(isinstance(signal, RecurrentDirection) for signal in signals):
            return self._recurrent(parts)
        if len(signals) > 1 or len({part.step for part in parts}) > 1:
            raise self._mixed_error(signals, parts)
        signal, step = signals[0], parts[0].step
        indices = np.concatenate([part.indices for part in parts])
        if isinstance(signal, InputSequences):
            self._input(signal, step, indices)
            return None
        if isinstance(signal, FlattenedSteps):
            return self._flattened(signal, indices)
        return self._dense(signal, step, indices)

    def _rerolled(self, part: FeatureVector) -> FeatureVector:
        if part.signal.per_step:
            return part
        return self.reroller.final(part) or part

    def _append(self, layer: ImportedLayer) -> None:
        arrays = [tensor.values for tensor in layer.tensors.values()]
        new_bytes = sum(array.nbytes for array in arrays if array.base is None)
        self.budget.spend(byte_count=new_bytes, where=layer.where)
        self._reversed_layers.append(layer)
        self.consumer, self.blocks = layer, 1

    def _add_flatten(self, steps: int, where: str) -> None:
        self._reversed_layers.append(ImportedLayer("flatten", where=where))
        self.blocks = steps

    def _select_features(self, indices: Array, size: int, where: str) -> None:
        """Make the consumer read features `indices` of the `size` features of the next layer."""
        if is_identity_selection(indices, size):
            return
        if self.consumer is None:
            self.notes[f"a dense layer at the end selects the model's outputs from {where}"] = None
            total = self.blocks * indices.size
            self.consumer = selection_layer(np.arange(total), total, np.float32, where)
            self._reversed_layers.insert(0, self.consumer)
        self.consumer.widen(indices, size, self.blocks)

    def _input(self, signal: InputSequences, step: object, indices: Array) -> None:
        if step != ALL_STEPS:
            raise self._steps_error(signal, "the input", step)
        self._select_features(indices, signal.size, "the input")

    def _flattened(self, signal: FlattenedSteps, indices: Array) -> FeatureVector:
        self._select_features(indices, signal.size, signal.where)
        self._add_flatten(signal.steps, signal.where)
        return signal.source

    def _dense(self, signal: Signal, step: object, indices: Array) -> FeatureVector:
        linear, activation = self._split(signal)
        self._select_features(indices, signal.size, signal.where)
        self._append(dense_layer(linear, activation))
        source = concatenate([term.source for term in linear.terms], signal.where)
        return vector_at(source, step) if is_all_steps(step) or isinstance(step, int) else source  # type: ignore[arg-type]

    def _split(self, signal: Signal) -> tuple[LinearMap, Activation | None]:
        """Linear map and activation of a dense layer; None: softmax."""
        if isinstance(signal, LinearMap):
            return _rescaled(signal)
        if isinstance(signal, SoftmaxOutput):
            return _linear(signal.source, signal.where), None
        if isinstance(signal, ActivationOutput):
            return _linear(signal.source, signal.where), signal.activation
        raise self._mixed_error([signal], [all_features(signal)])

    def _recurrent(self, parts: Sequence[FeatureVector]) -> FeatureVector:
        signals = [part.signal for part in parts if isinstance(part.signal, RecurrentDirection)]
        layer, reverse_ids = self._directions(list(dict.fromkeys(signals)))
        without_bias = [s for s in layer if not is_biased(s.tensors)]
        for signal in without_bias if len(without_bias) < len(layer) else ():
            self.notes[
                f"{signal.where} has no bias, but the other direction has: its bias is read as 0"
            ] = None
        features = sum(signal.size for signal in layer)
        offsets = {id(signal): k * layer[0].size for k, signal in enumerate(layer)}
        positions = [part.indices + offsets[id(part.signal)] for part in parts]
        returns_sequences = all(part.step == ALL_STEPS for part in parts)
        if not returns_sequences and not self._are_final_states(parts, reverse_ids):
            return self._single_steps(layer, parts, positions)
        self._select_features(np.concatenate(positions), features, layer[0].where)
        self._append(recurrent_layer(layer, returns_sequences))
        self.directions += layer
        if not returns_sequences:
            self.last_step_reads += [signal for signal in layer if not signal.reverse]
        return layer[-1].source

    def _are_final_states(self, parts: Sequence[FeatureVector], reverse_ids: set[int]) -> bool:
        """True for forward directions at the last step and reverse directions at step 0."""
        return all(
            self.free_axes.is_first(part.step)
            if id(part.signal) in reverse_ids
            else self.free_axes.is_last(part.step)
            for part in parts
        )

    def _directions(
        self, signals: list[RecurrentDirection]
    ) -> tuple[list[RecurrentDirection], set[int]]:
        """Forward and reverse direction of one layer, and the ids of reverse directions."""
        if len(signals) > 2:
            raise self._mixed_error(signals, [])
        if len(signals) == 1:
            only = signals[0]
            if not only.reverse:
                return [only], set()
            self.notes[
                f"{only.where} runs in reverse only: it is read as a bidirectional layer whose "
                "forward half is 0 and unused"
            ] = None
            return [zero_direction(only), only], {id(only)}
        forward = [signal for signal in signals if not signal.reverse]
        reverse = [signal for signal in signals if signal.reverse]
        if len(forward) == 2 and self.free_axes.steps == 1:
            forward, reverse = forward[:1], forward[1:]  # one step has no direction
        if len(forward) != 1 or not _same_layer(forward[0], reverse[0]):
            raise self._mixed_error(signals, [])
        return [forward[0], reverse[0]], {id(reverse[0])}

    def _single_steps(
        self,
        layer: Sequence[RecurrentDirection],
        parts: Sequence[FeatureVector],
        positions: Sequence[Array],
    ) -> FeatureVector:
        """Select single steps by a flatten layer, whose consumer reads these steps only."""
        steps, where = self.free_axes.steps, layer[0].where
        if steps is None or any(not isinstance(part.step, int) for part in parts):
            raise self._steps_error(parts[0].signal, where, parts[0].step)
        features = sum(signal.size for signal in layer)
        offsets = [int(part.step or 0) % steps * features for part in parts]
        indices = [p + offset for p, offset in zip(positions, offsets, strict=True)]
        self._select_features(np.concatenate(indices), steps * features, where)
        self.notes[
            f"single steps of {where} are selected from all {steps}: sequences of another length "
            "cannot be run"
        ] = None
        self._add_flatten(steps, where)
        self._append(recurrent_layer(layer, True))
        self.directions += layer
        return layer[-1].source

    def _steps_error(self, signal: Signal, label: str, step: object) -> WeightsError:
        if step == REVERSED_STEPS:
            actual = "all steps, from the last to the first"
        elif isinstance(step, int):
            actual = f"step {step}" + (" (the last)" if self.free_axes.is_last(step) else "")
        else:
            actual = "all steps mixed with single steps"
        is_recurrent = isinstance(signal, RecurrentDirection)
        return WeightsError(
            f"the steps that the model reads of {label} cannot be represented",
            expected="every step in order, or a forward direction's last step and a reverse "
            "direction's final step (step 0)"
            if is_recurrent
            else "every step in order",
            found=actual,
            hint="export it with a fixed number of steps, so that single steps can be read; the "
            "final states (Y_h, PyTorch's h_n) are other vectors"
            if is_recurrent
            else None,
        )

    def _mixed_error(
        self, signals: Sequence[Signal], parts: Sequence[FeatureVector]
    ) -> WeightsError:
        shown = [
            f"{_DESCRIPTIONS.get(type(signal), 'a value')} of {signal.where}"
            for signal in signals[:4]
        ]
        more = ", ..." if len(signals) > 4 else ""
        return WeightsError(
            f"{signals[0].where} is not a layer that lstm-cli has, or is combined with others in "
            "an unsupported way",
            expected="a chain of lstm, gru, rnn, dense, dropout and flatten layers",
            found=", ".join(shown) + more,
        )


def _same_layer(forward: RecurrentDirection, reverse: RecurrentDirection) -> bool:
    """True if two directions can be one layer: only activations and biases may differ."""
    options = [
        {k: v for k, v in signal.options.items() if not isinstance(v, Activation)}
        for signal in (forward, reverse)
    ]
    return (
        (forward.kind, forward.size) == (reverse.kind, reverse.size)
        and options[0] == options[1]
        and _matrices(forward) == _matrices(reverse)
        and same_vector(forward.source, reverse.source)
    )


def _matrices(signal: RecurrentDirection) -> set[str]:
    """Names of the tensors without biases, which one direction alone may have."""
    return {name for name in signal.tensors if "bias" not in name}


def _linear(source: FeatureVector, where: str) -> LinearMap:
    parts, bias = linear_terms(source)
    return LinearMap(source.indices.size, reads_all_steps(source), where, parts, bias)


def _rescaled(signal: LinearMap) -> tuple[LinearMap, Activation]:
    """Split a linear map into a linear map and an activation, affine or scaled_tanh if possible.

    A map that scales and shifts all features of a layer equally is the activation of that layer.
    """
    term = signal.terms[0]
    arrays = [w.array for w in (term.weight, signal.bias) if w is not None]
    if len(signal.terms) > 1 or not term.weight.diagonal or not is_complete(term.source):
        return signal, IDENTITY
    if any((array != array[0]).any() for array in arrays):
        return signal, IDENTITY
    if term.source.step not in (None, ALL_STEPS):
        return signal, IDENTITY
    alpha = shortest_decimal(arrays[0][0])
    beta = shortest_decimal(arrays[1][0]) if len(arrays) > 1 else 0.0
    inner = term.source.signal
    if isinstance(inner, LinearMap):
        return inner, Activation("affine", alpha, beta)
    if isinstance(inner, ActivationOutput) and inner.activation.name == "tanh" and not beta:
        argument, slope = _linear(inner.source, inner.where), 1.0
        if len(argument.terms) == 1 and argument.terms[0].weight.diagonal and argument.bias is None:
            scales, scaled = argument.terms[0].weight.array, argument.terms[0].source
            is_uniform = (scales == scales[0]).all() and is_complete(scaled)
            if is_uniform and isinstance(scaled.signal, LinearMap):
                argument, slope = scaled.signal, shortest_decimal(scales[0])
        return argument, Activation("scaled_tanh", alpha, slope)
    return signal, IDENTITY
