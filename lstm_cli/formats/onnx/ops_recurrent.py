"""LSTM, GRU and RNN of ONNX: their attributes and weights, converted to lstm-cli's terms.

The attribute ``linear_before_reset`` of a GRU becomes the cell's option ``reset_after``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lstm_cli.cells import Activation
from lstm_cli.errors import WeightsError, counted, nearest
from lstm_cli.formats.builder import NativeTensor, bias_names, gate_sources, rounded_sum
from lstm_cli.formats.gates import (
    NATIVE_GATES,
    ONNX_GATES,
    ONNX_PEEPHOLES,
    PEEPHOLE_GATES,
    reorder_gates,
)
from lstm_cli.formats.interchange import TensorSource
from lstm_cli.formats.onnx.node import GraphContext, GraphNode
from lstm_cli.formats.onnx.schemas import (
    ACTIVATION_NAMES,
    NATIVE_ACTIVATIONS,
)
from lstm_cli.formats.onnx.sizes import OpenSizeError
from lstm_cli.formats.onnx.symbolic import (
    ALL_STEPS,
    FEATURES,
    AmbiguousParameter,
    Axis,
    ConstantTensor,
    FeatureVector,
    FinalCellState,
    GraphValue,
    RecurrentDirection,
    RuntimeInput,
    SymbolicTensor,
    UnsupportedError,
    UnsupportedValue,
    all_features,
    concatenate,
    shortest_decimal,
    vector_at,
)

DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
"""Directions by the attribute ``direction``: True for a direction that runs in reverse."""

_DEFAULTS = {
    "lstm": ("sigmoid", "tanh", "tanh"),
    "gru": ("sigmoid", "tanh"),
    "rnn": ("tanh",),
}
_ROLES = {
    "lstm": ("recurrent_activation", "activation", "cell_activation"),
    "gru": ("recurrent_activation", "activation"),
    "rnn": ("activation",),
}
_ZERO_IN_RUNTIME = ("affine", "scaled_tanh", "thresholded_relu")
"""Activations whose omitted parameters are 0 in ONNX Runtime."""
_STATES = {"h": 5, "c": 6}
"""Input of the initial value of each state."""
_SLOTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")


class RecurrentOperator:
    """One LSTM, GRU or RNN node; its X reveals the axis of steps and the batch axis."""

    def __init__(self, node: GraphNode, context: GraphContext) -> None:
        self.node, self.inputs = node, context.inputs
        self.free_axes, self.notes = context.free_axes, context.notes
        self.kind = node.op.lower()
        self.gates = ONNX_GATES[self.kind]
        direction = node.attributes["direction"]
        if direction not in DIRECTIONS:
            raise self._error("direction", repr(direction)[:80], " or ".join(DIRECTIONS))
        self.directions = DIRECTIONS[direction]
        self.batch_first = node.flag("layout")

    def outputs(self) -> list[GraphValue]:
        """Outputs Y, Y_h and (LSTM only) Y_c."""
        source = self._source()
        if isinstance(source, UnsupportedValue):
            return [source] * 3
        weights = {slot: self._weight(slot) for slot in ("W", "R", "B", "P")}
        R = weights["R"]
        if R is None or weights["W"] is None or R.array.ndim != 3:
            raise self._error(
                "W and R",
                "missing or not of 3 axes",
                "W (directions, G*H, D), R (directions, G*H, H)",
            )
        self.hidden = R.array.shape[2]
        self._check_lengths()
        states = [name for name in _STATES if name == "h" or self.kind == "lstm"]
        self.input_states = frozenset(
            name for name in states if self._is_graph_input(_STATES[name])
        )
        self.activations = self._activations()
        signals = [self._direction(d, source, weights) for d in range(len(self.directions))]
        return [self._all_outputs(signals), *self._final_states(signals)]

    def _source(self) -> FeatureVector | UnsupportedValue:
        x = self.node.input(0)
        if isinstance(x, UnsupportedValue):
            return x
        if not isinstance(x, SymbolicTensor) or len(x.axes) != 3:
            raise UnsupportedError("its X is not the sequences, or does not have 3 axes")
        time, batch = (x.axes[1], x.axes[0]) if self.batch_first else x.axes[:2]
        self.free_axes.claim_axes(time, batch)
        self.batch, self.time, self.source_step = batch, time, x.step
        step = ALL_STEPS if x.signal.per_step else None
        return FeatureVector(x.signal, step, x.indices.reshape(-1))

    def _check_lengths(self) -> None:
        lengths, steps = self.node.input(4), self.free_axes.steps
        if isinstance(lengths, ConstantTensor):
            distinct = {str(n) for n in np.asarray(lengths.array).flat}
            size = steps if steps is not None else self.free_axes.size(self.time[0])
            if distinct != {str(size)}:
                found = str(sorted(distinct))[:80]
                label = "all T" if steps is None else f"all {steps}"
                raise self._error("sequence_lens", found, f"{label} steps for every sequence")
        elif lengths is not None:
            self._note_runtime_input("sequence_lens", lengths, "the lengths of the data")

    def _is_graph_input(self, k: int) -> bool:
        """True if a state is an input of the graph, which may have zeros as its default."""
        state = self.node.input(k)
        if state is None:
            return False
        if not isinstance(state, ConstantTensor):
            self._note_runtime_input(_SLOTS[k], state, "--state")
            return True
        if state.array.any():
            raise self._error(
                _SLOTS[k],
                "constants that are not 0",
                "none, zeros, or an input of the graph",
                "make it an input of the graph, which --state sets",
            )
        if state.array.ndim != 3 or state.array.shape[2] != self.hidden:
            raise self._error(
                _SLOTS[k], f"shape {state.array.shape}", f"3 axes, the last of H = {self.hidden}"
            )
        return self.node.message.inputs[k] in self.inputs

    def _note_runtime_input(self, slot: str, value: GraphValue, replacement: str) -> None:
        if not isinstance(value, RuntimeInput) or value.computed:
            raise self._error(slot, "a computed value", "a constant or an input of the graph")
        name = f"{value.name} ({slot} of {self.node.where})"
        self.notes[f"the model's input {name} comes from {replacement}"] = None

    def _weight(self, slot: str) -> ConstantTensor | None:
        if slot == "P" and self.kind != "lstm":
            return None
        value = self.node.input(_SLOTS.index(slot))
        if isinstance(value, RuntimeInput):
            raise WeightsError(
                f"{self.node.where}: its {slot} is fed at run time and is not in the file",
                expected=f"{slot} as an initializer",
                found=f"the input {value.name}",
                where=str(self.node.path),
            )
        if value is None:
            return None
        if not isinstance(value, ConstantTensor):
            raise self._error(slot, "a computed value", "an initializer")
        if value.array.dtype == object:
            raise OpenSizeError(f"its {slot} is computed from open sizes")
        if value.array.dtype.kind != "f":
            raise self._error(slot, str(value.array.dtype), "real numbers")
        return value

    def _direction(
        self, d: int, source: FeatureVector, weights: Mapping[str, ConstantTensor | None]
    ) -> RecurrentDirection:
        H, D, G, dirs = self.hidden, source.indices.size, len(self.gates), len(self.directions)
        shapes = {"W": (dirs, G * H, D), "R": (dirs, G * H, H), "B": (dirs, 2 * G * H)}
        shapes["P"] = (dirs, 3 * H)
        for slot, value in weights.items():
            if value is not None and value.array.shape != shapes[slot]:
                raise self._error(slot, str(value.array.shape), str(shapes[slot]))
        declared = self.node.attributes.get("hidden_size", H)
        if declared != H or H < 1:
            raise self._error("hidden_size", str(declared), str(H))
        reverse = self.directions[d] != (self.source_step != ALL_STEPS)
        return RecurrentDirection(
            H,
            True,
            self.node.where,
            self.kind,
            self._options(d),
            source,
            reverse,
            _native_tensors(self.kind, weights, d),
            self.input_states,
            self.activations[d][1],
            isinstance(self.node.input(4), RuntimeInput),
        )

    def _options(self, d: int) -> dict[str, Any]:
        node = self.node
        options: dict[str, Any] = dict(self.activations[d][0])
        clip = node.attributes.get("clip", np.inf)
        if not clip > 0:
            raise self._error("clip", f"{clip:g}", "a number above 0")
        if clip != np.inf:
            options["clip"] = shortest_decimal(clip)
        if self.kind == "lstm":
            options["coupled_input_forget"] = node.flag("input_forget")
        if self.kind == "gru":
            options["reset_after"] = node.flag("linear_before_reset")
        return options

    def _activations(self) -> list[tuple[dict[str, Activation], tuple[AmbiguousParameter, ...]]]:
        """Activations by option, and their ambiguous parameters, for each direction."""
        roles, count, attributes = _ROLES[self.kind], len(self.directions), self.node.attributes
        names = attributes.get("activations") or list(_DEFAULTS[self.kind] * count)
        if len(names) != len(roles) * count:
            expected = f"{len(roles)} for each direction"
            raise self._error("activations", counted(len(names), "activation"), expected)
        lists = {
            letter: _ParameterList(letter, attributes.get(f"activation_{letter}", []), len(names))
            for letter in ("alpha", "beta")
        }
        directions = []
        for d in range(count):
            options, ambiguous = {}, []
            for k, role in enumerate(roles):
                position = d * len(roles) + k
                native = self._native_activation(names[position])
                values = {}
                for letter, parameters in lists.items():
                    values[letter], doubt = parameters.take(native, position, role, names[position])
                    ambiguous += [] if doubt is None else [doubt]
                options[role] = Activation(native, **values)
            directions.append((options, tuple(ambiguous)))
        return directions

    def _native_activation(self, name: str) -> str:
        native = NATIVE_ACTIVATIONS.get(name.lower())
        if native is None:
            guess = nearest(name, NATIVE_ACTIVATIONS)
            spelling = ACTIVATION_NAMES[NATIVE_ACTIVATIONS[guess]] if guess else ""
            hint = f"did you mean `{spelling}`?" if guess else None
            expected = ", ".join(ACTIVATION_NAMES.values())
            raise self._error("activations", repr(name)[:80], expected, hint)
        return native

    def _all_outputs(self, signals: Sequence[RecurrentDirection]) -> SymbolicTensor:
        """Output Y: (T, directions, N, H), or (N, T, directions, H) with layout 1."""
        source = concatenate([all_features(signal) for signal in signals], self.node.where)
        step = self.source_step if isinstance(self.source_step, str) else ALL_STEPS
        indices = source.indices.reshape(len(signals), -1)
        axes: tuple[Axis, ...] = (self.time, (FEATURES,), self.batch, (FEATURES,))
        if self.batch_first:
            axes = (self.batch, self.time, (FEATURES,), (FEATURES,))
        return SymbolicTensor(source.signal, step, indices, axes)

    def _final_states(self, signals: Sequence[RecurrentDirection]) -> list[SymbolicTensor]:
        """Outputs Y_h and Y_c: (directions, N, H), or (N, directions, H) with layout 1."""
        axes: tuple[Axis, ...] = ((FEATURES,), self.batch, (FEATURES,))
        if self.batch_first:
            axes = (self.batch, (FEATURES,), (FEATURES,))
        h = concatenate([self._last_output(signal) for signal in signals], self.node.where)
        cell_states = [FinalCellState(signal.size, False, signal.where) for signal in signals]
        c = concatenate([all_features(state) for state in cell_states], self.node.where)
        return [
            SymbolicTensor(v.signal, v.step, v.indices.reshape(len(signals), -1), axes)
            for v in (h, c)
        ]

    def _last_output(self, signal: RecurrentDirection) -> FeatureVector:
        step = self.free_axes.step_index(0 if signal.reverse else -1)
        return vector_at(all_features(signal), step)

    def _error(
        self, attribute: str, actual: str, expected: str, hint: str | None = None
    ) -> WeightsError:
        return WeightsError(
            f"{self.node.where}: its {attribute} cannot be represented",
            expected=expected,
            found=actual,
            where=str(self.node.path),
            hint=hint,
        )


class _ParameterList:
    """Values of activation_alpha or activation_beta, assigned to activations in order.

    Each activation that has the parameter takes the next value, as in ONNX Runtime. An omitted
    value is the default of the activation's own operator, as in ONNX's specification.
    """

    def __init__(self, letter: str, values: Sequence[float], activations: int) -> None:
        self.letter, self.values = letter, [shortest_decimal(value) for value in values]
        self.by_position = len(values) == activations
        self.unassigned = list(self.values)

    def take(
        self, native: str, position: int, role: str, name: str
    ) -> tuple[float | None, AmbiguousParameter | None]:
        """Value for the activation at `position`, None if it has no such parameter.

        The second result is the alternative reading of the value, if there is one.
        """
        default = getattr(Activation(native), self.letter)
        if default is None:
            return None, None
        if self.unassigned:
            value = self.unassigned.pop(0)
            other = self.values[position] if self.by_position else None
            why = f"counted by activations, activation_{self.letter} has"
        else:
            value, other = default, 0.0 if native in _ZERO_IN_RUNTIME else None
            why = "ONNX Runtime takes"
        if other is None or other == value:
            return value, None
        return value, AmbiguousParameter(role, self.letter, name, value, other, why)


def _native_tensors(
    kind: str, weights: Mapping[str, ConstantTensor | None], d: int
) -> dict[str, NativeTensor]:
    """Native tensors of direction `d` from W, R, B and P of the operator; None if omitted."""
    order, tensors = ONNX_GATES[kind], {}
    for slot, name in {"W": "weight_ih", "R": "weight_hh"}.items():
        if (value := weights[slot]) is not None:
            tensors[name] = _native_tensor(value, d, order, NATIVE_GATES[kind])
    if (value := weights["B"]) is not None:
        change = "" if kind == "gru" else "Wb and Rb added"
        pair = [_native_tensor(value, d, order, NATIVE_GATES[kind], half, change) for half in "WR"]
        if kind == "gru":
            tensors |= zip(bias_names(kind), pair, strict=True)
        else:
            total = rounded_sum(pair[0].values, pair[1].values)
            tensors["bias"] = NativeTensor(total, pair[0].sources + pair[1].sources)
    if (value := weights["P"]) is not None:
        tensors["peephole"] = _native_tensor(value, d, ONNX_PEEPHOLES, PEEPHOLE_GATES)
    return tensors


def _native_tensor(
    value: ConstantTensor,
    d: int,
    order: Sequence[str],
    native_order: Sequence[str],
    half: str = "",
    change: str = "",
) -> NativeTensor:
    """Native tensor of direction `d`; of a half of B, ``W`` or ``R``, if one is named."""
    stacked = value.array[d]
    size = len(stacked) // (len(order) * (2 if half else 1))
    offset = size * len(order) if half == "R" else 0
    sources: list[TensorSource] = []
    for origin in value.origins:
        if value.change or origin.shape != value.array.shape:
            label = value.change or "reshaped"
            sources.append(TensorSource(origin.name, origin.shape, origin.dtype, "", "", "", label))
            continue
        sources += gate_sources(
            origin.name,
            origin.shape,
            origin.dtype,
            order,
            leading=(d,),
            offset=offset,
            size=size,
            change=change,
        )
    part = stacked[offset : offset + size * len(order)]
    return NativeTensor(reorder_gates(part, order, native_order), tuple(sources))
