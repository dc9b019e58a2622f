"""Forward pass for training, and derivatives of the loss through the whole network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lstm_cli.engines.stacks import backward_layers, forward_layers
from lstm_cli.engines.types import (
    Array,
    DropoutSpec,
    EngineArray,
    LayerTape,
    State,
    TrainingPass,
)
from lstm_cli.network.network import Network
from lstm_cli.network.results import state_to_host


@dataclass(frozen=True)
class Tape:
    """Values of a forward pass for training.

    Attributes
    ----------
    network
        The network that computed the pass.
    values, logit_values
        Output and logits of the last layer, in the engine's layout. The logits are None if the
        last layer is not dense.
    state
        Final states of every recurrent layer, in the engine's memory.
    lengths
        (N,) valid steps, or None.
    steps
        Number of steps T of the batch.
    layers
        Each layer's tape.
    """

    network: Network
    values: EngineArray
    logit_values: EngineArray | None
    state: list[State]
    lengths: Array | None
    steps: int
    layers: tuple[LayerTape | None, ...]

    @cached_property
    def outputs(self) -> Array:
        """Outputs as in `Result`, in NumPy's memory."""
        y = self.network.engine.to_host(self.values)
        return self.network.without_empty(y, self.steps, self.lengths)

    @cached_property
    def logits(self) -> Array | None:
        """Logits as in `Result`, in NumPy's memory. None if the last layer is not dense."""
        values = self.logit_values
        return None if values is None else self.network.engine.to_host(values)


@dataclass(frozen=True)
class GradientPart:
    """Derivatives for the rows of one pass.

    Attributes
    ----------
    rows
        (N,) row of each sequence in the batch. None: the pass has all rows of the batch.
    inputs, states
        Derivatives for inputs, and for initial states by layer index, in the engine's memory and
        layout.
    """

    rows: Array | None
    inputs: EngineArray
    states: Mapping[int, State]


@dataclass(frozen=True)
class Gradients:
    """Derivatives of the loss. Each property copies them to NumPy's memory at its first use.

    Attributes
    ----------
    network
        The network of the weights.
    tensors
        Derivatives for weights, in the engine's memory and layout.
    parts
        Derivatives that each pass has for its own rows.
    """

    network: Network
    tensors: dict[str, EngineArray]
    parts: tuple[GradientPart, ...]

    @cached_property
    def weights(self) -> dict[str, Array]:
        """Derivatives for the weights by stored name."""
        return {name: self.network.engine.to_host(v) for name, v in self.tensors.items()}

    @cached_property
    def inputs(self) -> Array:
        """Derivative for the caller's inputs (N, T, D), with padding of 0."""
        scaling = self.network.normalization
        arrays = [self.network.engine.to_host(part.inputs) for part in self.parts]
        steps = max(d.shape[1] for d in arrays)
        arrays = [np.pad(d, ((0, 0), (0, steps - d.shape[1]), (0, 0))) for d in arrays]
        d = self._by_row(arrays)
        if scaling is None:
            return d
        with np.errstate(over="ignore"):
            return np.asarray(d / scaling.scale, d.dtype)

    @cached_property
    def state(self) -> Mapping[int, State]:
        """(dh, dc) for the initial states of every recurrent layer, by layer index."""
        to_host, states = self.network.engine.to_host, dict[int, State]()
        for index in self.parts[0].states:
            parts = [state_to_host(part.states[index], to_host) for part in self.parts]
            dc = [c for _, c in parts if c is not None]
            states[index] = self._by_row([h for h, _ in parts]), self._by_row(dc) if dc else None
        return states

    def _by_row(self, arrays: list[Array]) -> Array:
        """Arrays of the parts as one array, in the order of the batch's rows."""
        return join_rows([part.rows for part in self.parts], arrays)


def join_rows(rows: Sequence[Array | None], arrays: Sequence[Array]) -> Array:
    """One array with the rows of all arrays, in the order of the batch.

    Parameters
    ----------
    rows
        Row of the batch of each array's rows. None: the only array has all rows in order.
    """
    if len(arrays) == 1:
        return arrays[0]
    order = np.argsort(np.concatenate([np.asarray(places) for places in rows]))
    return np.asarray(np.concatenate(arrays)[order])


def forward(
    network: Network,
    x: Any,
    lengths: Any,
    state: Sequence[Any] | None,
    training: TrainingPass,
) -> Tape:
    """Forward pass with dropout that stores the values `backward` needs; see `Network.run`."""
    x, n = network.check(x, lengths)
    states = network.check_state(state, x.shape[0])
    y, layers = network.engine.from_padded(x, n), network.engine_layers
    results = forward_layers(network.engine, layers, y, n, states, training=training)
    specs = zip(network.layers, results, strict=True)
    last = [result for spec, result in specs if not isinstance(spec, DropoutSpec)][-1:]
    logits = last[0].logits if last else None
    finals = [result.state for result in results if result.state is not None]
    tapes = tuple(result.tape for result in results)
    return Tape(network, results[-1].output, logits, finals, n, x.shape[1], tapes)


def backward(
    network: Network, tape: Tape, d: EngineArray, rows: Array | None = None, *, d_logits: bool
) -> Gradients:
    """Derivatives for all weights, the inputs and the initial states.

    Parameters
    ----------
    d
        Derivative for the outputs, or with `d_logits` for the logits. It is in NumPy's memory or
        the engine's layout. Rows that do not count in the loss are 0.
    rows
        (N,) row of each sequence in the batch. None: the pass has all rows of the batch.
    """
    layers = network.engine_layers
    gradients = backward_layers(network.engine, layers, tape.layers, d, d_logits=d_logits)
    weights = {name: value for one in gradients for name, value in one.weights.items()}
    pairs = zip(network.layers, gradients, strict=True)
    states = {spec.index: one.state for spec, one in pairs if one.state is not None}
    tensors = {name: weights[name] for name in network.weight_names}
    return Gradients(network, tensors, (GradientPart(rows, gradients[0].x, states),))
