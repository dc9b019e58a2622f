"""One training step: forward pass, loss, backward pass and weight update.

A batch may be computed in micro-batches: parts of its rows, one after another, whose gradients are
added in one fixed order before the update. Everything about them follows from the batch alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import zip_longest
from typing import Any, TypeVar

import numpy as np

from lstm_cli.cells.expression import symbol
from lstm_cli.engines.types import Array, Engine, EngineArray, State, TrainingPass, array_dtype
from lstm_cli.network import backpropagation
from lstm_cli.network.backpropagation import Gradients, Tape, join_rows
from lstm_cli.network.network import Network
from lstm_cli.network.results import state_to_host
from lstm_cli.training.losses import Criterion, LossValue, MeanLoss
from lstm_cli.training.updates import UpdateReport, Updates

Leaf = TypeVar("Leaf")


@dataclass(frozen=True)
class Chunk:
    """Rows of a batch, or those of their steps that one backward pass covers (truncated BPTT).

    Attributes
    ----------
    x, targets, lengths
        Inputs (N, T, D), targets and valid steps (N,) of these rows and steps.
    before
        Number of earlier steps of the batch: for all sequences, or (N,).
    rows
        (N,) row of each sequence in the batch. None: the chunk has all rows of the batch.
    micro_batch
        Number of the micro-batch, 0 if the batch is not divided.
    """

    x: EngineArray
    targets: EngineArray
    lengths: Array | None
    before: int | Array = 0
    rows: Array | None = None
    micro_batch: int = 0

    def training_pass(self, seed: int, update: int) -> TrainingPass:
        """The forward pass for training on this chunk, with its dropout."""
        return TrainingPass(seed, update, self.micro_batch)


@dataclass(frozen=True)
class PassTrace:
    """Inputs and results of the passes over one chunk, for metrics and error messages.

    Attributes
    ----------
    chunk, state
        Chunk, and its initial states. None: the states are zeros.
    loss, tape
        Loss and forward pass. If a batch is divided, the tape has no values for a backward pass.
    """

    chunk: Chunk
    state: Sequence[Any] | None
    loss: LossValue
    tape: Tape


@dataclass(frozen=True)
class StepTrace:
    """Inputs and results of one update, for metrics and error messages.

    Attributes
    ----------
    passes
        Passes over the chunks whose gradients were added: one, or one per micro-batch.
    number
        Number of earlier updates. Dropout masks depend on it.
    loss, gradients
        Mean loss over all passes, and its derivatives.
    update
        Report of the update. None if no row counts, or the loss is not finite.
    """

    passes: tuple[PassTrace, ...]
    number: int
    loss: MeanLoss
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
    gradients
        Last derivatives.
    final
        Rows and last forward pass of each micro-batch.
    """

    loss: float
    weight: float
    updates: tuple[UpdateReport, ...]
    gradients: Gradients
    final: tuple[tuple[Array | None, Tape], ...]

    @cached_property
    def state(self) -> list[State]:
        """Final states of every recurrent layer, in NumPy's memory."""
        to_host = self.gradients.network.engine.to_host
        rows, states = [rows for rows, _ in self.final], list[State]()
        for layer in zip(*(tape.state for _, tape in self.final), strict=True):
            parts = [state_to_host(state, to_host) for state in layer]
            c = [part for _, part in parts if part is not None]
            h = join_rows(rows, [part for part, _ in parts])
            states.append((h, join_rows(rows, c) if c else None))
        return states


def micro_batch_rows(count: int, rows: int) -> list[Array]:
    """Rows of each micro-batch of a batch.

    Row j goes to micro-batch 0, 1, ..., M - 1, M - 1, ..., 1, 0, 0, 1, ... Batches are sorted by
    length, so all micro-batches have about equal work.

    Parameters
    ----------
    count
        Number of micro-batches M; at most as many as rows are made.
    rows
        Number of rows of the batch.
    """
    M = max(1, min(count, rows))
    place = np.arange(rows) % (2 * M)
    place = np.minimum(place, 2 * M - 1 - place)
    return [np.flatnonzero(place == k) for k in range(M)]


def tree_sum(
    first: int, stop: int, leaf: Callable[[int], Leaf], add: Callable[[Leaf, Leaf], Leaf]
) -> Leaf:
    """Sum of leaves in one binary tree: [a, b) is [a, m) + [m, b) with m = (a + b) // 2.

    The tree is walked depth first, so at most log2(stop - first) + 1 sums are held.
    """
    if stop - first == 1:
        return leaf(first)
    middle = (first + stop) // 2
    left = tree_sum(first, middle, leaf, add)
    return add(left, tree_sum(middle, stop, leaf, add))


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
    micro_batches
        Number of parts that a batch is computed in; see `micro_batch_rows`.
    """

    def __init__(
        self,
        network: Network,
        criterion: Criterion,
        updates: Updates,
        *,
        seed: int = 0,
        truncate: int | None = None,
        micro_batches: int = 1,
    ) -> None:
        self.network, self.criterion, self.updates = network, criterion, updates
        self.seed, self.truncate, self.micro_batches = seed, truncate, micro_batches
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
    ) -> tuple[MeanLoss, Gradients]:
        """Loss and derivatives of a batch, with the dropout of the next update."""
        parts = self._micro_batches(chunk, state)
        _, loss, gradients = self._passes([(part.chunk, part.state) for part in parts])
        return loss, gradients

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
            Function that is called after every update.

        Raises
        ------
        DataError
            Inputs or targets do not fit.
        """
        total, weight = 0.0, 0.0
        updates: list[UpdateReport] = []
        parts = self._micro_batches(Chunk(x, targets, lengths), state)
        steps = int(x.shape[1])
        for chunks in zip_longest(*(self._chunks(part.chunk, steps) for part in parts)):
            inputs = []
            for part, chunk in zip(parts, chunks, strict=True):
                if isinstance(chunk, _Prefix):
                    part.state = self.network.run(chunk.x, chunk.lengths, part.state).state
                elif chunk is not None:
                    inputs.append((chunk, part.state))
            if not inputs:
                continue
            number = self.updates.count
            passes, loss, gradients = self._passes(inputs)
            update = self._update(loss, gradients)
            total, weight = total + loss.value * loss.weight, weight + loss.weight
            if update is not None:
                updates.append(update)
            if watch is not None:
                watch(StepTrace(passes, number, loss, gradients, update))
            for one in passes:
                part = parts[one.chunk.micro_batch]
                part.tape, part.state = one.tape, one.tape.state
        mean = total / weight if weight else 0.0
        final = tuple((part.chunk.rows, part.tape) for part in parts if part.tape is not None)
        return StepReport(mean, weight, tuple(updates), gradients, final)

    def _passes(
        self, inputs: Sequence[tuple[Chunk, Sequence[Any] | None]]
    ) -> tuple[tuple[PassTrace, ...], MeanLoss, Gradients]:
        """Forward and backward passes of chunks with their initial states: loss and derivatives."""
        if len(inputs) == 1:
            ((chunk, state),) = inputs
            one, gradients = self._pass(chunk, state, None)
            return (one,), one.loss, gradients
        engine, traces = self.network.engine, []
        weights = [
            self.criterion.weight(engine.to_host(chunk.targets), chunk.lengths, chunk.x.shape[1])
            for chunk, _ in inputs
        ]
        whole = math.fsum(weights)

        def leaf(k: int) -> Gradients:
            chunk, state = inputs[k]
            one, gradients = self._pass(chunk, state, whole)
            traces.append(replace(one, tape=replace(one.tape, layers=())))
            return gradients

        def add(a: Gradients, b: Gradients) -> Gradients:
            tensors = {name: _sum(a.tensors[name], b.tensors[name], engine) for name in a.tensors}
            return Gradients(self.network, tensors, (*a.parts, *b.parts))

        gradients = tree_sum(0, len(inputs), leaf, add)
        mean = MeanLoss(lambda: _mean([one.loss for one in traces]), whole)
        return tuple(traces), mean, gradients

    def _pass(
        self, chunk: Chunk, state: Sequence[Any] | None, whole: float | None
    ) -> tuple[PassTrace, Gradients]:
        """Passes over a chunk. `whole` is the weight of the batch that the mean is taken over."""
        training = chunk.training_pass(self.seed, self.updates.count)
        tape = backpropagation.forward(self.network, chunk.x, chunk.lengths, state, training)
        loss = self.criterion(
            tape.values, tape.logit_values, chunk.targets, tape.lengths, self.network.engine, whole
        )
        gradients = backpropagation.backward(
            self.network, tape, loss.gradient, chunk.rows, d_logits=self.criterion.fused
        )
        return PassTrace(chunk, state, loss, tape), gradients

    def _update(self, loss: MeanLoss, gradients: Gradients) -> UpdateReport | None:
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

    def _micro_batches(self, batch: Chunk, state: Sequence[Any] | None) -> list[_MicroBatch]:
        """The batch in micro-batches, each padded to its own longest sequence."""
        N, T = batch.x.shape[:2]
        if self.micro_batches == 1 or N < 2:
            return [_MicroBatch(batch, state)]
        network, to_host = self.network, self.network.engine.to_host
        x, targets, n = to_host(batch.x), to_host(batch.targets), batch.lengths
        states = network.check_state(state, N)
        parts = []
        for k, rows in enumerate(micro_batch_rows(self.micro_batches, N)):
            steps = T if n is None else min(T, max(1, int(n[rows].max(initial=0))))
            y = targets[rows]
            if self.criterion.targets.per_step and y.ndim > 1 and y.shape[1] == T:
                y = y[:, :steps]
            lengths = None if n is None else n[rows]
            chunk = Chunk(x[rows, :steps], y, lengths, 0, rows, k)
            initial = [_rows(states.get(spec.index), rows, to_host) for spec in network.recurrent]
            parts.append(_MicroBatch(chunk, initial if states else None))
        return parts

    def _chunks(self, chunk: Chunk, steps: int) -> Iterator[Chunk | _Prefix]:
        """Steps of a chunk that one backward pass covers, of a batch of `steps` steps."""
        k, T = self.truncate, chunk.x.shape[1]
        if k is None or k >= steps:
            yield chunk
            return
        x, targets = (self.network.engine.to_host(v) for v in (chunk.x, chunk.targets))
        n = np.full(len(x), T) if chunk.lengths is None else np.asarray(chunk.lengths)
        if self.criterion.targets.per_step:
            for first in range(0, max(int(n.max(initial=1)), 1), k):
                part = slice(first, first + k)
                valid = np.clip(n - first, 0, k)
                yield replace(
                    chunk, x=x[:, part], targets=targets[:, part], lengths=valid, before=first
                )
        else:
            # The target belongs to the end, so a pass covers the last steps of each sequence.
            before = np.maximum(n - k, 0)
            yield _Prefix(x[:, : int(before.max(initial=0))], before)
            at = np.minimum(before[:, None] + np.arange(k), T - 1)
            last = x[np.arange(len(x))[:, None], at]
            yield replace(chunk, x=last, targets=targets, lengths=n - before, before=before)


@dataclass
class _MicroBatch:
    """Rows of a batch, the states that their next steps start from, and their last pass."""

    chunk: Chunk
    state: Sequence[Any] | None
    tape: Tape | None = None


@dataclass(frozen=True)
class _Prefix:
    """First steps of a batch, which only carry the state forward."""

    x: Array
    lengths: Array


def _rows(
    state: State | None, rows: Array, to_host: Callable[[EngineArray], Array]
) -> State | None:
    if state is None:
        return None
    h, c = state_to_host(state, to_host)
    return h[rows], None if c is None else c[rows]


_SUM = {"sum": symbol("a") + symbol("b")}


def _sum(a: EngineArray, b: EngineArray, engine: Engine) -> EngineArray:
    """The sum of two arrays, in the memory of the first."""
    engine.evaluate(_SUM, {"a": a, "b": b}, {"sum": a})
    return a


def _mean(losses: Sequence[LossValue]) -> float:
    """Mean over the rows of several passes, added in the order of the passes."""
    weight = math.fsum(loss.weight for loss in losses)
    return sum(loss.value * loss.weight for loss in losses) / weight if weight else 0.0
