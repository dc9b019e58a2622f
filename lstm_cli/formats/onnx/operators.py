"""ONNX's recurrent operators: attributes and weights in native terms, one direction at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lstm_cli.cells import Activation
from lstm_cli.errors import WeightsError, nearest
from lstm_cli.formats.onnx.calls import Call
from lstm_cli.formats.onnx.frame import Frame
from lstm_cli.formats.onnx.operator_tensors import OperatorTensors
from lstm_cli.formats.onnx.orders import GATES
from lstm_cli.formats.onnx.sizes import OpenSizeError
from lstm_cli.formats.onnx.tensors import short
from lstm_cli.formats.onnx.values import (
    ALL,
    FEATURES,
    Anything,
    Axis,
    CellState,
    Constant,
    Guess,
    Recurrent,
    RefusedError,
    Side,
    Unknown,
    Value,
    Vector,
)
from lstm_cli.formats.onnx.vectors import at, joined, whole

NODES = frozenset(kind.upper() for kind in GATES)

DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}
"""Whether each direction runs backwards."""

NAMES = {
    "relu": "relu",
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "affine": "affine",
    "leakyrelu": "leaky_relu",
    "thresholdedrelu": "thresholded_relu",
    "scaledtanh": "scaled_tanh",
    "hardsigmoid": "hard_sigmoid",
    "elu": "elu",
    "softsign": "softsign",
    "softplus": "softplus",
}
"""Our names of the activations, by ONNX's in small letters."""

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
_ZERO = ("affine", "scaled_tanh", "thresholded_relu")
"""Activations whose parameters ONNX Runtime takes for 0 where a file leaves them out."""
_STATES = {"h": 5, "c": 6}
"""States, and the inputs that they begin with."""
_SLOTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")


class Operator:
    """One LSTM, GRU or RNN node.

    Parameters
    ----------
    call
        The node with its inputs.
    frame
        Free axes; X tells which are the steps and the batch.
    notes
        To be added to.
    inputs
        Names of the graph's inputs, those among them that have a default in the file.
    """

    def __init__(
        self,
        call: Call,
        frame: Frame,
        notes: dict[str, None],
        inputs: frozenset[str] = frozenset(),
    ) -> None:
        self.call, self.frame, self.notes, self.inputs = call, frame, notes, inputs
        self.kind = call.op.lower()
        self.gates = GATES[self.kind]
        direction = call.attributes["direction"]
        if direction not in DIRECTIONS:
            raise self._refused("direction", repr(direction)[:80], " or ".join(DIRECTIONS))
        self.directions = DIRECTIONS[direction]
        self.batch_first = call.flag("layout")

    def outputs(self) -> list[Anything]:
        """Y, Y_h and, of an LSTM, Y_c."""
        source = self._source()
        if isinstance(source, Unknown):
            return [source] * 3
        weights = {slot: self._weight(slot) for slot in ("W", "R", "B", "P")}
        R = weights["R"]
        if R is None or weights["W"] is None or R.array.ndim != 3:
            raise self._refused("W and R", "missing or not of three axes", "(directions, G H, D)")
        self.hidden = R.array.shape[2]
        self._check_lengths()
        states = [name for name in _STATES if name == "h" or self.kind == "lstm"]
        self.fed = frozenset(name for name in states if self._is_fed(_STATES[name]))
        self.activations = self._activations()
        made = [self._direction(d, source, weights) for d in range(len(self.directions))]
        return [self._every_step(made), *self._final(made)]

    def _source(self) -> Vector | Unknown:
        x = self.call.given(0)
        if isinstance(x, Unknown):
            return x
        if not isinstance(x, Value) or len(x.axes) != 3:
            raise RefusedError("its X is not the sequences, or not of three axes")
        time, batch = (x.axes[1], x.axes[0]) if self.batch_first else x.axes[:2]
        self.frame.claim(time, batch)
        self.batch = batch
        self.time = time
        self.backwards = x.step
        return Vector(x.atom, ALL if x.atom.timed else None, x.pick.reshape(-1))

    def _check_lengths(self) -> None:
        lengths, steps = self.call.given(4), self.frame.steps
        if isinstance(lengths, Constant):
            array = lengths.array
            equal = {str(n) for n in np.asarray(array).flat}
            if equal != {str(steps if steps is not None else self.frame.size(self.time[0]))}:
                raise self._refused("sequence_lens", str(sorted(equal))[:80], f"all of T = {steps}")
        elif lengths is not None:
            self._external("sequence_lens", lengths, "lengths of the data")

    def _is_fed(self, k: int) -> bool:
        """Whether a state comes from an input of the graph, perhaps one with zeros as default."""
        state = self.call.given(k)
        if state is None:
            return False
        if not isinstance(state, Constant):
            self._external(_SLOTS[k], state, "--state")
            return True
        if state.array.any():
            raise self._refused(
                _SLOTS[k],
                "constants that are not 0",
                "none, zeros, or an input of the graph",
                "an input of the graph in its place is left to --state",
            )
        if state.array.ndim != 3 or state.array.shape[2] != self.hidden:
            raise self._refused(
                _SLOTS[k], f"shape {state.array.shape}", f"3 axes, the last of H = {self.hidden}"
            )
        return self.call.node.inputs[k] in self.inputs

    def _external(self, slot: str, value: Anything, ours: str) -> None:
        if not isinstance(value, Side) or value.computed:
            raise self._refused(slot, "a computed value", "a constant or an input of the graph")
        self.notes[
            f"the model's input {value.name} ({slot} of {self.call.where}) is left to {ours}"
        ] = None

    def _weight(self, slot: str) -> Constant | None:
        value = self.call.given(_SLOTS.index(slot)) if slot != "P" or self.kind == "lstm" else None
        if isinstance(value, Side):
            raise WeightsError(
                f"{self.call.where}: its {slot} is fed at run time and stands nowhere in the file",
                expected=f"{slot} as an initialiser",
                found=f"the input {value.name}",
                where=str(self.call.path),
            )
        if value is None:
            return None
        if not isinstance(value, Constant):
            raise self._refused(slot, "a computed value", "an initialiser")
        if value.array.dtype == object:
            raise OpenSizeError(f"its {slot} is made of sizes")
        if value.array.dtype.kind != "f":
            raise self._refused(slot, str(value.array.dtype), "real numbers")
        return value

    def _direction(
        self, d: int, source: Vector, weights: Mapping[str, Constant | None]
    ) -> Recurrent:
        H, D, G, dirs = self.hidden, source.pick.size, len(self.gates), len(self.directions)
        shapes = {"W": (dirs, G * H, D), "R": (dirs, G * H, H), "B": (dirs, 2 * G * H)}
        shapes["P"] = (dirs, 3 * H)
        for slot, value in weights.items():
            if value is not None and value.array.shape != shapes[slot]:
                raise self._refused(slot, str(value.array.shape), str(shapes[slot]))
        declared = self.call.attributes.get("hidden_size", H)
        if declared != H or H < 1:
            raise self._refused("hidden_size", str(declared), str(H))
        tensors = OperatorTensors(self.kind, self.gates, d, H)
        for slot, value in weights.items():
            tensors.take(slot, value)
        reverse = self.directions[d] != (self.backwards != ALL)
        return Recurrent(
            H,
            True,
            self.call.where,
            self.kind,
            self._options(d, weights["P"] is not None),
            source,
            reverse,
            tensors.found,
            tuple(tensors.stored),
            self.fed,
            self.activations[d][1],
            isinstance(self.call.given(4), Side),
        )

    def _options(self, d: int, peepholes: bool) -> dict[str, Any]:
        call = self.call
        options: dict[str, Any] = dict(self.activations[d][0])
        clip = call.attributes.get("clip", np.inf)
        if not clip > 0:
            raise self._refused("clip", f"{clip:g}", "a number above 0")
        if clip != np.inf:
            options["clip"] = short(clip)
        if self.kind == "lstm":
            options["coupled_input_forget"] = call.flag("input_forget")
            options["peepholes"] = peepholes
        if self.kind == "gru":
            options["reset_after"] = call.flag("linear_before_reset")
        return options

    def _activations(self) -> list[tuple[dict[str, Activation], tuple[Guess, ...]]]:
        """Activations by option, and what of their parameters is a guess, by direction."""
        roles, count, attributes = _ROLES[self.kind], len(self.directions), self.call.attributes
        given = attributes.get("activations") or list(_DEFAULTS[self.kind] * count)
        if len(given) != len(roles) * count:
            raise self._refused(
                "activations", f"{len(given)} of them", f"{len(roles)} for each direction"
            )
        parameters = {
            letter: _Parameters(letter, attributes.get(f"activation_{letter}", []), len(given))
            for letter in ("alpha", "beta")
        }
        found = []
        for d in range(count):
            options, guesses = {}, []
            for k, role in enumerate(roles):
                at = d * len(roles) + k
                name = self._activation_name(given[at])
                taken = {}
                for letter, values in parameters.items():
                    taken[letter], guess = values.take(name, at, role, given[at])
                    guesses += [] if guess is None else [guess]
                options[role] = Activation(name, **taken)
            found.append((options, tuple(guesses)))
        return found

    def _activation_name(self, given: str) -> str:
        name = NAMES.get(given.lower())
        if name is None:
            guess = nearest(given, NAMES)
            hint = f"did you mean `{guess}`?" if guess else None
            raise self._refused("activations", repr(given)[:80], ", ".join(NAMES), hint)
        return name

    def _every_step(self, made: Sequence[Recurrent]) -> Value:
        """Y: (T, directions, N, H), or (N, T, directions, H)."""
        source = joined([whole(atom) for atom in made], self.call.where)
        step = self.backwards if isinstance(self.backwards, str) else ALL
        pick = source.pick.reshape(len(made), -1)
        axes: tuple[Axis, ...] = (self.time, (FEATURES,), self.batch, (FEATURES,))
        if self.batch_first:
            axes = (self.batch, self.time, (FEATURES,), (FEATURES,))
        return Value(source.atom, step, pick, axes)

    def _final(self, made: Sequence[Recurrent]) -> list[Value]:
        """Y_h and Y_c: (directions, N, H), or (N, directions, H)."""
        axes: tuple[Axis, ...] = ((FEATURES,), self.batch, (FEATURES,))
        if self.batch_first:
            axes = (self.batch, (FEATURES,), (FEATURES,))
        h = joined([self._last(atom) for atom in made], self.call.where)
        states = [whole(CellState(atom.size, False, atom.where)) for atom in made]
        c = joined(states, self.call.where)
        return [Value(v.atom, v.step, v.pick.reshape(len(made), -1), axes) for v in (h, c)]

    def _last(self, atom: Recurrent) -> Vector:
        return at(whole(atom), self.frame.index(0 if atom.reverse else -1))

    def _refused(
        self, attribute: str, found: str, expected: str, hint: str | None = None
    ) -> WeightsError:
        return WeightsError(
            f"{self.call.where}: its {attribute} cannot be represented",
            expected=expected,
            found=found,
            where=str(self.call.path),
            hint=hint,
        )


class _Parameters:
    """The values of activation_alpha or activation_beta, given out one by one.

    As ONNX Runtime reads them: each activation that has the parameter takes the next one. What
    is left out has the default of the activation's own operator, as the specification wants it.
    """

    def __init__(self, letter: str, values: Sequence[float], activations: int) -> None:
        self.letter, self.values = letter, [short(value) for value in values]
        self.by_position = len(values) == activations
        self.left = list(self.values)

    def take(self, name: str, at: int, role: str, given: str) -> tuple[float | None, Guess | None]:
        """The value for an activation, None if it has none, and whether that is a guess."""
        default = getattr(Activation(name), self.letter)
        if default is None:
            return None, None
        if self.left:
            value, other = self.left.pop(0), self.values[at] if self.by_position else None
            why = f"counted by activations, activation_{self.letter} has"
        else:
            value, other = default, 0.0 if name in _ZERO else None
            why = "ONNX Runtime takes"
        if other is None or other == value:
            return value, None
        return value, Guess(role, self.letter, given, value, other, why)
