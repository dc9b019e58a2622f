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
from lstm_cli.formats.onnx.tensors import short
from lstm_cli.formats.onnx.values import (
    ALL,
    FEATURES,
    Anything,
    Axis,
    CellState,
    Constant,
    Recurrent,
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
    """

    def __init__(self, call: Call, frame: Frame, notes: dict[str, None]) -> None:
        self.call, self.frame, self.notes = call, frame, notes
        self.kind = call.op.lower()
        self.gates = GATES[self.kind]
        direction = call.text("direction", "forward").lower()
        if direction not in DIRECTIONS:
            raise self._refused("direction", repr(direction)[:80], " or ".join(DIRECTIONS))
        self.directions = DIRECTIONS[direction]
        self.batch_first = bool(call.integer("layout", 0))

    def outputs(self) -> list[Anything]:
        """Y, Y_h and, of an LSTM, Y_c."""
        source = self._source()
        if isinstance(source, Unknown):
            return [source] * 3
        weights = {slot: self._weight(slot) for slot in ("W", "R", "B", "P")}
        made = [self._direction(d, source, weights) for d in range(len(self.directions))]
        self.hidden = made[0].size
        self._check_extras()
        return [self._every_step(made), *self._final(made)]

    def _source(self) -> Vector | Unknown:
        x = self.call.given(0)
        if isinstance(x, Unknown):
            return x
        if not isinstance(x, Value) or len(x.axes) != 3:
            raise ValueError("its X is not the sequences, or not of three axes")
        time, batch = (x.axes[1], x.axes[0]) if self.batch_first else x.axes[:2]
        self.frame.claim(time, batch)
        self.batch = batch
        self.time = time
        self.backwards = x.step
        return Vector(x.atom, ALL if x.atom.timed else None, x.pick.reshape(-1))

    def _check_extras(self) -> None:
        lengths, steps = self.call.given(4), self.frame.steps
        if isinstance(lengths, Constant):
            array = lengths.array
            equal = {str(n) for n in np.asarray(array).flat}
            if equal != {str(steps if steps is not None else self.frame.size(self.time[0]))}:
                raise self._refused("sequence_lens", str(sorted(equal))[:80], f"all of T = {steps}")
        elif lengths is not None:
            self._external("sequence_lens", lengths, "lengths of the data")
        for k in (5, 6):
            self._check_state(k)

    def _check_state(self, k: int) -> None:
        state = self.call.given(k)
        if state is None:
            return
        if not isinstance(state, Constant):
            self._external(_SLOTS[k], state, "--state")
        elif state.array.any():
            raise self._refused(
                _SLOTS[k], "constants that are not 0", "none, zeros, or an input of the graph"
            )
        elif state.array.ndim != 3 or state.array.shape[2] != self.hidden:
            raise self._refused(
                _SLOTS[k], f"shape {state.array.shape}", f"3 axes, the last of H = {self.hidden}"
            )

    def _external(self, slot: str, value: Anything, ours: str) -> None:
        if not isinstance(value, Side):
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
        if value is None or isinstance(value, Constant):
            return value
        raise self._refused(slot, "a computed value", "an initialiser")

    def _direction(
        self, d: int, source: Vector, weights: Mapping[str, Constant | None]
    ) -> Recurrent:
        R = weights["R"]
        if R is None or weights["W"] is None or R.array.ndim != 3:
            raise self._refused("W and R", "missing or not of three axes", "(directions, G H, D)")
        H, D, G, dirs = R.array.shape[2], source.pick.size, len(self.gates), len(self.directions)
        shapes = {"W": (dirs, G * H, D), "R": (dirs, G * H, H), "B": (dirs, 2 * G * H)}
        shapes["P"] = (dirs, 3 * H)
        for slot, value in weights.items():
            if value is not None and value.array.shape != shapes[slot]:
                raise self._refused(slot, str(value.array.shape), str(shapes[slot]))
        if self.call.integer("hidden_size", H) != H or H < 1:
            raise self._refused("hidden_size", str(self.call.integer("hidden_size", H)), str(H))
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
        )

    def _options(self, d: int, peepholes: bool) -> dict[str, Any]:
        call = self.call
        options: dict[str, Any] = dict(self._activations()[d])
        clip = call.number("clip")
        if clip is not None:
            if not clip > 0:
                raise self._refused("clip", f"{clip:g}", "a number above 0")
            options["clip"] = short(clip)
        if self.kind == "lstm":
            options["coupled_input_forget"] = bool(call.integer("input_forget", 0))
            options["peepholes"] = peepholes
        if self.kind == "gru":
            options["reset_after"] = bool(call.integer("linear_before_reset", 0))
        return options

    def _activations(self) -> list[dict[str, Activation]]:
        roles, count = _ROLES[self.kind], len(self.directions)
        given = self.call.texts("activations") or list(_DEFAULTS[self.kind] * count)
        if len(given) != len(roles) * count:
            raise self._refused(
                "activations", f"{len(given)} of them", f"{len(roles)} for each direction"
            )
        alphas, betas = self.call.numbers("activation_alpha"), self.call.numbers("activation_beta")
        # As ONNX Runtime reads them: one for each activation that takes any, in order.
        found = [self._activation(name, alphas, betas) for name in given]
        each = len(roles)
        return [
            dict(zip(roles, found[d * each : d * each + each], strict=True)) for d in range(count)
        ]

    def _activation(self, given: str, alphas: list[float], betas: list[float]) -> Activation:
        name = NAMES.get(given.lower())
        if name is None:
            guess = nearest(given, NAMES)
            raise self._refused("activations", repr(given)[:80], ", ".join(NAMES), guess)
        plain = Activation(name)
        alpha = short(alphas.pop(0)) if plain.alpha is not None and alphas else None
        beta = short(betas.pop(0)) if plain.beta is not None and betas else None
        return Activation(name, alpha, beta)

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
        self, attribute: str, found: str, expected: str, guess: str | None = None
    ) -> WeightsError:
        return WeightsError(
            f"{self.call.where}: its {attribute} cannot be represented",
            expected=expected,
            found=found,
            where=str(self.call.path),
            hint=f"did you mean `{guess}`?" if guess else None,
        )
