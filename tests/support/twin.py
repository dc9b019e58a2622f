"""The loop twin: recurrent networks from the textbook equations, one step of one sequence.

It is independent of ``lstm_cli.cells``. It reads a layer's options and computes in float64
without batches, masks or stacked products. Each sequence is first cut to its length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from networks import (
    assert_close,
    assert_states_close,
    random_inputs,
    random_lengths,
    random_states,
    random_weights,
)
from numpy.typing import NDArray

from lstm_cli.cells import Activation
from lstm_cli.engines.protocols import Engine
from lstm_cli.engines.types import DenseSpec, DropoutSpec, FlattenSpec, LayerSpec, RecurrentSpec
from lstm_cli.network.network import Network

Array = NDArray[Any]
Weights = Mapping[str, Array]

ACTIVATIONS = {
    "sigmoid": lambda x, a, b: 1 / (1 + np.exp(-x)),
    "tanh": lambda x, a, b: np.tanh(x),
    "relu": lambda x, a, b: np.maximum(0, x),
    "identity": lambda x, a, b: x,
    "affine": lambda x, a, b: a * x + b,
    "elu": lambda x, a, b: np.where(x >= 0, x, a * np.expm1(x)),
    "hard_sigmoid": lambda x, a, b: np.minimum(np.maximum(a * x + b, 0), 1),
    "leaky_relu": lambda x, a, b: np.where(x >= 0, x, a * x),
    "scaled_tanh": lambda x, a, b: a * np.tanh(b * x),
    "softplus": lambda x, a, b: np.log(1 + np.exp(x)),
    "softsign": lambda x, a, b: x / (1 + np.abs(x)),
    "thresholded_relu": lambda x, a, b: np.where(x > a, x, 0),
    "symmrelu": lambda x, a, b: np.abs(x),
    "gauss": lambda x, a, b: np.exp(-(x**2)),
}


def activate(activation: Activation, x: Array) -> Array:
    """An activation in float64."""
    return np.asarray(ACTIVATIONS[activation.name](x, activation.alpha, activation.beta))


def _clipped(cell: Any, a: Array) -> Array:
    return a if cell.clip is None else np.minimum(np.maximum(a, -cell.clip), cell.clip)


def _blocks(tensor: Array, names: str) -> dict[str, Array]:
    return dict(zip(names, np.split(tensor, len(names)), strict=True))


def lstm_step(cell: Any, w: Weights, x: Array, h: Array, c: Array) -> tuple[Any, ...]:
    """One step: (gates, h, c)."""
    W, U, b = (_blocks(w[key], "ifgo") for key in ("weight_ih", "weight_hh", "bias"))
    zero = np.zeros(cell.hidden_size)
    p = _blocks(w["peephole"], "ifo") if cell.peepholes else dict.fromkeys("ifo", zero)
    a = {gate: W[gate] @ x + U[gate] @ h + b[gate] for gate in "ifgo"}
    gates = {}
    gates["i"] = activate(cell.recurrent_activation, _clipped(cell, a["i"] + p["i"] * c))
    gates["f"] = activate(cell.recurrent_activation, _clipped(cell, a["f"] + p["f"] * c))
    if cell.coupled_input_forget:
        gates["f"] = 1 - gates["i"]
    if not cell.use_forget_gate:
        gates["f"] = np.ones(cell.hidden_size)
    gates["g"] = activate(cell.activation, _clipped(cell, a["g"]))
    new_c = gates["f"] * c + gates["i"] * gates["g"]
    gates["o"] = activate(cell.recurrent_activation, _clipped(cell, a["o"] + p["o"] * new_c))
    new_h = gates["o"] * activate(cell.cell_activation, new_c)
    if cell.projection_size is not None:
        new_h = w["weight_hr"] @ new_h
    return gates, new_h, new_c


def gru_step(cell: Any, w: Weights, x: Array, h: Array) -> tuple[Any, ...]:
    """One step: (gates, h)."""
    W, U = _blocks(w["weight_ih"], "rzn"), _blocks(w["weight_hh"], "rzn")
    b, v = _blocks(w["bias_ih"], "rzn"), _blocks(w["bias_hh"], "rzn")
    sigma = cell.recurrent_activation
    r = activate(sigma, _clipped(cell, W["r"] @ x + b["r"] + U["r"] @ h + v["r"]))
    z = activate(sigma, _clipped(cell, W["z"] @ x + b["z"] + U["z"] @ h + v["z"]))
    if cell.reset_after:
        past = r * (U["n"] @ h + v["n"])
    else:
        past = U["n"] @ (r * h) + v["n"]
    n = activate(cell.activation, _clipped(cell, W["n"] @ x + b["n"] + past))
    return {"r": r, "z": z, "n": n}, n - z * n + z * h


def rnn_step(cell: Any, w: Weights, x: Array, h: Array) -> tuple[Any, ...]:
    """One step: (gates, h)."""
    h = activate(
        cell.activation, _clipped(cell, w["weight_ih"] @ x + w["weight_hh"] @ h + w["bias"])
    )
    return {"h": h}, h


STEPS = {"lstm": lstm_step, "gru": gru_step, "rnn": rnn_step}


class Twin:
    """Results of the loops: padded `outputs`, final `state`, and gates by layer and direction."""

    def __init__(self, specs: Sequence[LayerSpec], weights: Weights) -> None:
        self.specs, self.weights = specs, weights
        self.outputs = np.zeros(0)
        self.state: list[Any] = []
        self.gates: list[dict[tuple[int, str, str], Array]] = []

    def run(self, x: Array, lengths: Array | None = None, state: Any = None) -> Twin:
        """Forward pass over (N, T, D), one sequence after another."""
        N, T, _ = x.shape
        lengths = np.full(N, T) if lengths is None else lengths
        results = [self._sequence(x[n, : lengths[n]], _row(state, n)) for n in range(N)]
        per_step = results[0][0].ndim == 2
        shape = (N, T, results[0][0].shape[-1]) if per_step else results[0][0].shape
        self.outputs = np.zeros(shape if per_step else (N, *shape))
        for n, (y, _) in enumerate(results):
            if per_step:
                self.outputs[n, : lengths[n]] = y
            elif lengths[n]:
                self.outputs[n] = y
        layers = len(results[0][1])
        self.state = [
            tuple(
                None if part is None else np.stack([finals[k][s] for _, finals in results])
                for s, part in enumerate(results[0][1][k])
            )
            for k in range(layers)
        ]
        return self

    def _sequence(self, x: Array, state: Any) -> tuple[Array, list[Any]]:
        self.gates.append({})
        finals = []
        for spec in self.specs:
            if isinstance(spec, RecurrentSpec):
                initial = None if state is None else state[len(finals)]
                x, final = self._recurrent(spec, x, initial)
                finals.append(final)
            elif isinstance(spec, DenseSpec):
                x = self._dense(spec, x)
            elif isinstance(spec, FlattenSpec):
                x = np.concatenate([*x, np.zeros((spec.steps - len(x)) * spec.input_size)])
            else:
                assert isinstance(spec, DropoutSpec)
        return x, finals

    def _dense(self, spec: DenseSpec, x: Array) -> Array:
        weight = self.weights[f"layers.{spec.index}.weight"]
        a = x @ weight.T + self.weights.get(f"layers.{spec.index}.bias", 0.0)
        if spec.activation is not None:
            return activate(spec.activation, a)
        return np.asarray(np.exp(a) / np.exp(a).sum(axis=-1, keepdims=True))

    def _recurrent(self, spec: RecurrentSpec, x: Array, initial: Any) -> tuple[Array, Any]:
        sequences, lasts, finals = [], [], []
        for d, cell in enumerate(spec.cells):
            prefix = f"layers.{spec.index}." + ("reverse." if d else "")
            w = {k.removeprefix(prefix): v for k, v in self.weights.items() if k.startswith(prefix)}
            w = dict.fromkeys(("bias", "bias_ih", "bias_hh"), np.zeros(len(w["weight_ih"]))) | w
            sizes = [(cell.projection_size if spec.kind == "lstm" else None) or cell.hidden_size]
            sizes += [cell.hidden_size] if spec.kind == "lstm" else []
            parts = [
                np.zeros(size) if initial is None or initial[s] is None else initial[s][d]
                for s, size in enumerate(sizes)
            ]
            outputs = np.zeros((len(x), sizes[0]))
            gates: dict[str, Array] = {}
            for t in range(len(x))[:: -1 if d else 1]:
                step, *parts = STEPS[spec.kind](cell, w, x[t], *parts)
                outputs[t] = parts[0]
                for gate, value in step.items():
                    gates.setdefault(gate, np.zeros((len(x), len(value))))[t] = value
            for gate, values in gates.items():
                self.gates[-1][spec.index, ("forward", "reverse")[d], gate] = values
            sequences.append(outputs)
            lasts.append(parts[0])
            finals.append(parts)
        final = (
            np.stack([parts[0] for parts in finals]),
            np.stack([parts[1] for parts in finals]) if spec.kind == "lstm" else None,
        )
        return np.concatenate(sequences if spec.return_sequences else lasts, axis=-1), final


def _row(state: Any, n: int) -> Any:
    if state is None:
        return None
    return [None if s is None else (s[0][n], None if s[1] is None else s[1][n]) for s in state]


def twin(
    specs: Sequence[LayerSpec], weights: Weights, x: Array, lengths: Any = None, state: Any = None
) -> Twin:
    """Result of the twin for a network of `specs` with float64 `weights`."""
    return Twin(specs, weights).run(x, lengths, state)


def check_forward(
    specs: Sequence[LayerSpec],
    engine: Engine,
    N: int,
    T: int,
    *,
    ragged: bool = True,
    scale: float = 1.0,
) -> None:
    """Compare an engine with the twin on random inputs, from non-zero states.

    Parameters
    ----------
    ragged
        Whether sequences have random lengths.
    scale
        Factor of inputs and weights.
    """
    x, state = scale * random_inputs(N, T, specs[0].input_size), random_states(specs, N)
    lengths = random_lengths(N, T) if ragged else None
    weights = {name: scale * value for name, value in random_weights(specs).items()}
    expected = twin(specs, weights, x, lengths, state)
    actual = Network(specs, weights, engine).run(x, lengths, state)
    assert_close(actual.outputs, expected.outputs, engine.dtype)
    assert_states_close(actual.state, expected.state, engine.dtype)
