"""One training step: forward pass, loss, backward pass and weight update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from lstm_cli.engines.types import Array, EngineArray, State, TrainingPass, array_dtype
from lstm_cli.network import backpropagation
from lstm_cli.network.backpropagation import Gradients, Tape
from lstm_cli.network.network import Network
from lstm_cli.network.results import state_to_host
from lstm_cli.training.losses import Criterion, LossValue
from lstm_cli.training.updates import UpdateReport, Updates


@dataclass(frozen=True)
class Chunk:
    """A batch, or those steps of a batch that one backward pass covers (truncated BPTT).

    Attributes
    ----------
    x, targets, lengths
        Inputs (N, T, D), targets and valid steps (N,) of these steps.
    before
        Number of earlier steps of the batch: for all sequences, or (N,).
    """

    x: EngineArray
    targets: EngineArray
    lengths: Array | None
    before: int | Array = 0


@dataclass(frozen=True)
class StepTrace:
    """Inputs and results of training on one chunk, for metrics and error messages.

    Attributes
    ----------
    chunk, state
        Chunk, and its initial states. None: the states are zeros.
    number
        Number of earlier updates. Dropout masks depend on it.
    loss, tape, gradients
        Loss, forward pass and derivatives.
    update
        Report of the update. None if no row counts, or the loss is not finite.
    """

    chunk: Chunk
    state: Sequence[Any] | None
    number: int
    loss: LossValue
    tape: Tape
    gradients: Gradients
    update: UpdateReport | None


@dataclass(frozen=True)
class StepReport:
    """Result of training on one batch.

    Attributes
    ----------
    loss
        Mean over the rows that count.
    weight
        Divisor of the mean: the number of rows, or the sum of the class weights of the rows.
    updates
        Updates of the batch: one, or one per chunk with truncation.
    tape
        Last forward pass.
    gradients
        Last derivatives.
    """

    loss: float
    weight: float
    updates: tuple[UpdateReport, ...]
    tape: Tape
    gradients: Gradients

    @cached_property
    def state(self) -> list[State]:
        """Final states of every recurrent layer, in NumPy's memory."""
        to_host = self.tape.network.engine.to_host
        return [state_to_host(state, to_host) for state in self.tape.state]


class TrainStep:
    """A network with its criterion and its updates.

    Parameters
    ----------
    network
        Network whose weights every step changes.
    criterion, updates
        Loss, and the updates from its derivatives.
    seed
        Seed of dropout.
    truncate
        Largest number of steps that one backward pass covers. None: no limit.
    """

    def __init__(
        self,
        network: Network,
        criterion: Criterion,
        updates: Updates,
        *,
        seed: int = 0,
        truncate: int | None = None,
    ) -> None:
        self.network, self.criterion, self.updates = network, criterion, updates
        self.seed, self.truncate = seed, truncate
        self.engine_weights: dict[str, EngineArray] = {
            name: network.engine.copy(value) for name, value in network.weights.items()
        }
        network.set_weights(self.engine_weights)

    @property
    def weights(self) -> dict[str, Array]:
        """Tensors by stored name in NumPy's memory. On the CPU they are the trained arrays."""
        return {name: self.network.engine.to_host(v) for name, v in self.engine_weights.items()}

    @property
    def tensors(self) -> dict[str, Array]:
        """`weights`, and the normalization of the inputs, which updates do not change."""
        scaling = self.network.normalization
        return self.weights if scaling is None else self.weights | scaling.tensors

    @property
    def weights_finite(self) -> bool:
        """Whether all weights are finite."""
        return self.network.engine.all_finite(list(self.engine_weights.values()))

    def gradients(
        self, chunk: Chunk, state: Sequence[Any] | None = None
    ) -> tuple[LossValue, Gradients, Tape]:
        """Loss, derivatives and tape of a chunk, with the dropout of the next update."""
        training = TrainingPass(self.seed, self.updates.count)
        tape = backpropagation.forward(self.network, chunk.x, chunk.lengths, state, training)
        loss = self.criterion(
            tape.values, tape.logit_values, chunk.targets, tape.lengths, self.network.engine
        )
        gradients = backpropagation.backward(
            self.network, tape, loss.gradient, d_logits=self.criterion.fused
        )
        return loss, gradients, tape

    def step(
        self,
        x: EngineArray,
        targets: EngineArray,
        lengths: Array | None,
        state: Sequence[Any] | None = None,
        *,
        watch: Callable[[StepTrace], None] | None = None,
    ) -> StepReport:
        """Train on one batch: one update, or one per chunk with truncation.

        A loss or gradient that is not finite changes no weights.

        Parameters
        ----------
        watch
            Function that is called after every chunk.

        Raises
        ------
        DataError
            Inputs or targets do not fit.
        """
        total, weight = 0.0, 0.0
        updates: list[UpdateReport] = []
        for chunk in self._chunks(x, targets, lengths):
            if isinstance(chunk, _Prefix):
                state = self.network.run(chunk.x, chunk.lengths, state).state
                continue
            number = self.updates.count
            loss, gradients, tape = self.gradients(chunk, state)
            update = self._update(loss, gradients)
            total, weight = total + loss.value * loss.weight, weight + loss.weight
            if update is not None:
                updates.append(update)
            if watch is not None:
                watch(StepTrace(chunk, state, number, loss, tape, gradients, update))
            state = tape.state
        mean = total / weight if weight else 0.0
        return StepReport(mean, weight, tuple(updates), tape, gradients)

    def _update(self, loss: LossValue, gradients: Gradients) -> UpdateReport | None:
        """Update the weights, unless no row counts or the loss is not finite."""
        if not loss.weight:
            return None
        engine, weights = self.network.engine, self.engine_weights
        # The norm starts before the wait for the loss, so that an engine waits for both at once.
        norm = self.updates.norm(weights, gradients.tensors, engine)
        if not math.isfinite(loss.value):
            return None
        update = self.updates.apply(weights, gradients.tensors, engine, norm)
        self.network.set_weights(weights)
        return update

    def load_weights(self, weights: dict[str, Array]) -> None:
        """Replace the weights by tensors of the same names and shapes.

        Raises
        ------
        KeyError
            A weight of the network is missing.
        """
        engine = self.network.engine
        dtype = array_dtype(engine)
        self.engine_weights = {
            name: engine.copy(np.asarray(weights[name], dtype)) for name in self.engine_weights
        }
        self.network.set_weights(self.engine_weights)

    def _chunks(
        self, x: EngineArray, targets: EngineArray, lengths: Array | None
    ) -> Iterator[Chunk | _Prefix]:
        k, T = self.truncate, x.shape[1]
        if k is None or k >= T:
            yield Chunk(x, targets, lengths)
            return
        x, targets = (self.network.engine.to_host(values) for values in (x, targets))
        n = np.full(len(x), T) if lengths is None else np.asarray(lengths)
        if self.criterion.targets.per_step:
            for first in range(0, max(int(n.max(initial=1)), 1), k):
                valid = np.clip(n - first, 0, k)
                part = slice(first, first + k)
                yield Chunk(x[:, part], targets[:, part], valid, first)
        else:
            # The target belongs to the end, so a pass covers the last steps of each sequence.
            before = np.maximum(n - k, 0)
            yield _Prefix(x[:, : int(before.max(initial=0))], before)
            at = np.minimum(before[:, None] + np.arange(k), T - 1)
            yield Chunk(x[np.arange(len(x))[:, None], at], targets, n - before, before)


@dataclass(frozen=True)
class _Prefix:
    """First steps of a batch, which only carry the state forward."""

    x: Array
    lengths: Array
