"""The loss's derivatives through a whole network, layer by layer from the last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lstm_cli.engines.types import Array, DropoutSpec, State, TrainingPass
from lstm_cli.errors import ConfigError
from lstm_cli.network.network import Network


@dataclass(frozen=True)
class Tape:
    """A forward pass of training.

    Attributes
    ----------
    outputs, logits
        As `Result` has them; `logits` None if no dense layer stands at the end.
    state
        Final states of every recurrent layer.
    lengths
        (N,) valid steps, or None.
    layers
        What each layer's backward pass needs.
    """

    outputs: Array
    logits: Array | None
    state: list[State]
    lengths: Array | None
    layers: tuple[Any, ...]


@dataclass(frozen=True)
class Gradients:
    """Derivatives of the loss.

    Attributes
    ----------
    weights
        By stored name.
    inputs
        (N, T, D), 0 in the padding.
    state
        (dh, dc) of every recurrent layer, by its index.
    """

    weights: dict[str, Array]
    inputs: Array
    state: Mapping[int, State]


def forward(
    network: Network,
    x: Any,
    lengths: Any,
    state: Sequence[Any] | None,
    training: TrainingPass,
) -> Tape:
    """Forward pass with dropout that keeps what `backward` needs; see `Network.run`."""
    x, n = network.check(x, lengths)
    states = network.check_state(state, len(x))
    y, logits = x, None
    finals: list[State] = []
    tapes = []
    for spec, prepared in network.prepared():
        given = states.get(spec.index)
        result = network.engine.forward(spec, prepared, y, n, given, training=training)
        y = result.output
        if not isinstance(spec, DropoutSpec):
            logits = result.logits
        if result.state is not None:
            finals.append(result.state)
        tapes.append(result.tape)
    return Tape(network.without_empty(y, x.shape[1], n), logits, finals, n, tuple(tapes))


def backward(network: Network, tape: Tape, d: Array, *, d_logits: bool) -> Gradients:
    """Derivatives for all weights, the inputs and the initial states.

    Parameters
    ----------
    d
        Derivative for the outputs, or with `d_logits` for the last dense layer's values before
        its activation; 0 wherever nothing is counted.
    """
    weights: dict[str, Array] = {}
    states: dict[int, State] = {}
    pairs = list(zip(network.prepared(), tape.layers, strict=True))
    for (spec, prepared), layer in reversed(pairs):
        ends = d_logits and spec.kind == "dense"
        if d_logits and spec.kind not in ("dense", "dropout"):
            raise ConfigError("the loss is computed from the logits of a last dense layer")
        found = network.engine.backward(spec, prepared, layer, d, d_logits=ends)
        d_logits = d_logits and not ends
        weights |= found.weights
        if found.state is not None:
            states[spec.index] = found.state
        d = found.x
    return Gradients({name: weights[name] for name in network.weights}, d, states)
