"""The loss's derivatives through a whole network, layer by layer from the last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lstm_cli.engines.stacks import backward_layers, forward_layers
from lstm_cli.engines.types import Array, DropoutSpec, EngineArray, State, TrainingPass
from lstm_cli.network.network import Network
from lstm_cli.network.results import hosted


@dataclass(frozen=True)
class Tape:
    """A forward pass of training.

    Attributes
    ----------
    network
        What was run.
    values, logit_values
        Of the last layer, in the engine's form: its output, and what `logits` is made from.
    state
        Final states of every recurrent layer, in the engine's memory.
    lengths
        (N,) valid steps, or None.
    steps
        T.
    layers
        What each layer's backward pass needs.
    """

    network: Network
    values: EngineArray
    logit_values: EngineArray | None
    state: list[State]
    lengths: Array | None
    steps: int
    layers: tuple[Any, ...]

    @cached_property
    def outputs(self) -> Array:
        """As `Result` has them, in NumPy's memory."""
        y = self.network.engine.to_host(self.values)
        return self.network.without_empty(y, self.steps, self.lengths)

    @cached_property
    def logits(self) -> Array | None:
        """As `Result` has them, in NumPy's memory; None if no dense layer stands at the end."""
        values = self.logit_values
        return None if values is None else self.network.engine.to_host(values)


@dataclass(frozen=True)
class Gradients:
    """Derivatives of the loss, in NumPy's memory when they are asked for.

    Attributes
    ----------
    network
        Whose they are.
    tensors, input_values, states
        In the engine's memory and form.
    """

    network: Network
    tensors: dict[str, EngineArray]
    input_values: EngineArray
    states: Mapping[int, State]

    @cached_property
    def weights(self) -> dict[str, Array]:
        """By stored name."""
        return {name: self.network.engine.to_host(v) for name, v in self.tensors.items()}

    @cached_property
    def inputs(self) -> Array:
        """For the inputs as they were given, (N, T, D), 0 in the padding."""
        d, scaling = self.network.engine.to_host(self.input_values), self.network.normalization
        if scaling is None:
            return d
        with np.errstate(over="ignore"):
            return np.asarray(d / scaling.scale, d.dtype)

    @cached_property
    def state(self) -> Mapping[int, State]:
        """(dh, dc) of every recurrent layer, by its index."""
        to_host = self.network.engine.to_host
        return {k: hosted(state, to_host) for k, state in self.states.items()}


def forward(
    network: Network,
    x: Any,
    lengths: Any,
    state: Sequence[Any] | None,
    training: TrainingPass,
) -> Tape:
    """Forward pass with dropout that keeps what `backward` needs; see `Network.run`."""
    x, n = network.check(x, lengths)
    states = network.check_state(state, x.shape[0])
    y, layers = network.engine.from_padded(x, n), tuple(network.prepared())
    made = forward_layers(network.engine, layers, y, n, states, training=training)
    specs = zip(network.layers, made, strict=True)
    last = [result for spec, result in specs if not isinstance(spec, DropoutSpec)][-1:]
    logits = last[0].logits if last else None
    finals = [result.state for result in made if result.state is not None]
    tapes = tuple(result.tape for result in made)
    return Tape(network, made[-1].output, logits, finals, n, x.shape[1], tapes)


def backward(network: Network, tape: Tape, d: EngineArray, *, d_logits: bool) -> Gradients:
    """Derivatives for all weights, the inputs and the initial states.

    Parameters
    ----------
    d
        Derivative for the outputs, or with `d_logits` for the last dense layer's values before
        its activation; 0 wherever nothing is counted. In NumPy's memory or the engine's form.
    """
    layers = tuple(network.prepared())
    made = backward_layers(network.engine, layers, tape.layers, d, d_logits=d_logits)
    weights = {name: value for one in made for name, value in one.weights.items()}
    pairs = zip(network.layers, made, strict=True)
    states = {spec.index: one.state for spec, one in pairs if one.state is not None}
    tensors = {name: weights[name] for name in network.weight_names}
    return Gradients(network, tensors, made[0].x, states)
