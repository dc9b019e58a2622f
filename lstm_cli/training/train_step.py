"""One training step: forward pass, loss, backward pass and weight update.

A batch may be computed in micro-batches: parts of its rows, one after another or on several ranks.
Their gradients are added before the update, in an order that follows from the batch alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lstm_cli.cells.expression import symbol
from lstm_cli.engines.protocols import Engine, array_dtype
from lstm_cli.engines.types import Array, EngineArray, State, TrainingPass
from lstm_cli.network import backpropagation
from lstm_cli.network.backpropagation import Gradients, Tape, join_rows
from lstm_cli.network.network import Network
from lstm_cli.network.results import state_to_host
from lstm_cli.training.interfaces import Exchange
from lstm_cli.training.losses import Criterion, LossValue, MeanLoss
from lstm_cli.training.micro_batches import (
    ONE_RANK,
    Node,
    merged,
    micro_batch_rows,
    rank_micro_batches,
    rank_nodes,
    sum_over_ranks,
    tree_sum,
)
from lstm_cli.training.updates import UpdateReport, Updates


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
        Rows and last forward pass of each micro-batch of this rank.
    exchange
        Exchange with the other ranks.
    """

    loss: float
    weight: float
    updates: tuple[UpdateReport, ...]
    gradients: Gradients
    final: tuple[tuple[Array | None, Tape], ...]
    exchange: Exchange

    def states(self) -> list[State]:
        """Final states of every recurrent layer for all ranks' rows, in NumPy's memory.

        All ranks call it at the same time.
        """
        to_host = self.gradients.network.engine.to_host
        own = [(rows, [state_to_host(one, to_host) for one in t.state]) for rows, t in self.final]
        parts = [part for rank in self.exchange.gather(own) for part in rank]
        rows, states = [rows for rows, _ in parts], list[State]()
        for layer in zip(*(layers for _, layers in parts), strict=True):
            c = [part for _, part in layer if part is not None]
            h = join_rows(rows, [part for part, _ in layer])
            states.append((h, join_rows(rows, c) if c else None))
        return states


@dataclass(frozen=True)
class Division:
    """The rows of a batch that this rank computes.

    Attributes
    ----------
    rows
        (n,) row of each given sequence in the batch, ascending.
    count, steps
        Number of rows N and of steps T of the whole batch.
    """

    rows: Array
    count: int
    steps: int


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
    exchange
        Exchange with other ranks, which compute other micro-batches of the same batch.
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
        exchange: Exchange = ONE_RANK,
    ) -> None:
        self.network, self.criterion, self.updates = network, criterion, updates
        self.seed, self.truncate, self.micro_batches = seed, truncate, micro_batches
        self.exchange = exchange
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
        parts = self._micro_batches(chunk, state, None)
        inputs = {part.chunk.micro_batch: (part.chunk, part.state) for part in parts}
        _, loss, gradients = self._passes(inputs, len(parts))
        return loss, gradients

    def step(
        self,
        x: EngineArray,
        targets: EngineArray,
        lengths: Array | None,
        state: Sequence[Any] | None = None,
        *,
        division: Division | None = None,
        watch: Callable[[StepTrace], None] | None = None,
    ) -> StepReport:
        """Train on one batch: one update, or one per chunk with truncation.

        A loss or gradient that is not finite changes no weights.

        Parameters
        ----------
        state
            Initial states of all rows of the batch.
        division
            The rows of the batch that `x`, `targets` and `lengths` hold. None: all.
        watch
            Function that is called after every update.

        Raises
        ------
        DataError
            Inputs or targets do not fit.
        """
        total, weight = 0.0, 0.0
        updates: list[UpdateReport] = []
        parts = self._micro_batches(Chunk(x, targets, lengths), state, division)
        if division is None:
            division = Division(np.arange(x.shape[0]), int(x.shape[0]), int(x.shape[1]))
        count = max(1, min(self.micro_batches, division.count))
        chunks = [list(self._chunks(part, division.steps)) for part in parts]
        rounds = max(self.exchange.gather(max(map(len, chunks), default=0)))
        for k in range(rounds):
            inputs = {
                part.chunk.micro_batch: (own[k], part.state)
                for part, own in zip(parts, chunks, strict=True)
                if k < len(own)
            }
            number = self.updates.count
            passes, loss, gradients = self._passes(inputs, count)
            update = self._update(loss, gradients)
            total, weight = total + loss.value * loss.weight, weight + loss.weight
            if update is not None:
                updates.append(update)
            if watch is not None:
                watch(StepTrace(passes, number, loss, gradients, update))
            tapes = {one.chunk.micro_batch: one.tape for one in passes}
            for part in parts:
                if (tape := tapes.get(part.chunk.micro_batch)) is not None:
                    part.tape, part.state = tape, tape.state
        mean = total / weight if weight else 0.0
        final = tuple((part.chunk.rows, part.tape) for part in parts if part.tape is not None)
        return StepReport(mean, weight, tuple(updates), gradients, final, self.exchange)

    def _passes(
        self, inputs: Mapping[int, tuple[Chunk, Sequence[Any] | None]], count: int
    ) -> tuple[tuple[PassTrace, ...], MeanLoss, Gradients]:
        """Forward and backward passes: the passes of this rank, loss and derivatives of all.

        Parameters
        ----------
        inputs
            Chunks of this rank with their initial states, by micro-batch.
        count
            Number of micro-batches of the batch.
        """
        if self.micro_batches == 1:
            one, gradients = self._pass(*inputs[0], None)
            return (one,), one.loss, gradients
        engine, exchange = self.network.engine, self.exchange
        weights = merged(
            exchange.gather({k: self._weight(chunk) for k, (chunk, _) in inputs.items()})
        )
        whole, passes = math.fsum(weights.values()), dict[int, PassTrace]()

        def leaf(node: Node) -> Gradients | None:
            if node[0] not in inputs:
                return None
            one, gradients = self._pass(*inputs[node[0]], whole)
            # Only the backward pass needs the layers' values.
            passes[node[0]] = replace(one, tape=replace(one.tape, layers=()))
            return gradients

        def add(a: Gradients, b: Gradients) -> Gradients:
            tensors = {name: _sum(a.tensors[name], b.tensors[name], engine) for name in a.tensors}
            return Gradients(self.network, tensors, (*a.parts, *b.parts))

        nodes = rank_nodes(count, exchange.rank, exchange.size)
        sums = {node: tree_sum(node, leaf, add) for node in nodes}
        present = {node: total for node, total in sums.items() if total is not None}
        own = {k: (one.loss.value, one.loss.weight) for k, one in passes.items()}
        if exchange.size == 1:
            (gradients,) = present.values()
        else:
            gradients = self._over_ranks(present, count, weights)
        losses = merged(exchange.gather(own))
        mean = MeanLoss(lambda: _mean(list(losses.values())), whole)
        return tuple(passes.values()), mean, gradients

    def _weight(self, chunk: Chunk) -> float:
        targets = self.network.engine.to_host(chunk.targets)
        return self.criterion.weight(targets, chunk.lengths, int(chunk.x.shape[1]))

    def _over_ranks(
        self, own: Mapping[Node, Gradients], count: int, present: Mapping[int, float]
    ) -> Gradients:
        """Sum of the weights' derivatives over all ranks; parts are those of this rank."""
        engine, weights = self.network.engine, self.engine_weights
        flat = {
            node: np.concatenate([engine.to_host(one.tensors[name]).ravel() for name in weights])
            for node, one in own.items()
        }
        size, dtype = sum(math.prod(v.shape) for v in weights.values()), array_dtype(engine)
        total, first = sum_over_ranks(flat, count, present, size, dtype, self.exchange), 0
        tensors: dict[str, EngineArray] = {}
        for name, weight in weights.items():
            shape = tuple(weight.shape)
            stop = first + math.prod(shape)
            tensors[name] = engine.copy(total[first:stop].reshape(shape))
            first = stop
        parts = tuple(part for one in own.values() for part in one.parts)
        return Gradients(self.network, tensors, parts)

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

    def _micro_batches(
        self, batch: Chunk, state: Sequence[Any] | None, division: Division | None
    ) -> list[_MicroBatch]:
        """This rank's micro-batches of a batch, each padded to its own longest sequence."""
        if self.micro_batches == 1:
            return [_MicroBatch(batch, state)]
        network, to_host, N = self.network, self.network.engine.to_host, int(batch.x.shape[0])
        division = division or Division(np.arange(N), N, int(batch.x.shape[1]))
        x, targets, n = to_host(batch.x), to_host(batch.targets), batch.lengths
        states, T, parts = network.check_state(state, division.count), x.shape[1], []
        every = micro_batch_rows(self.micro_batches, division.count)
        for k in rank_micro_batches(len(every), self.exchange.rank, self.exchange.size):
            rows = every[k]
            given = np.searchsorted(division.rows, rows)
            lengths = None if n is None else n[given]
            steps = T if lengths is None else min(T, max(1, int(lengths.max(initial=0))))
            y = targets[given]
            if self.criterion.targets.per_step and y.ndim > 1 and y.shape[1] == T:
                y = y[:, :steps]
            chunk = Chunk(x[given, :steps], y, lengths, 0, rows, k)
            initial = [_rows(states.get(spec.index), rows, to_host) for spec in network.recurrent]
            parts.append(_MicroBatch(chunk, initial if states else None))
        return parts

    def _chunks(self, part: _MicroBatch, steps: int) -> Iterator[Chunk]:
        """Steps of a micro-batch that one backward pass covers, of a batch of `steps` steps."""
        k, chunk = self.truncate, part.chunk
        if k is None or k >= steps:
            yield chunk
            return
        x, targets = (self.network.engine.to_host(v) for v in (chunk.x, chunk.targets))
        T = x.shape[1]
        n = np.full(len(x), T) if chunk.lengths is None else np.asarray(chunk.lengths)
        if self.criterion.targets.per_step:
            for first in range(0, max(int(n.max(initial=1)), 1), k):
                covered = slice(first, first + k)
                valid = np.clip(n - first, 0, k)
                yield replace(
                    chunk, x=x[:, covered], targets=targets[:, covered], lengths=valid, before=first
                )
        else:
            # The target belongs to the end, so a pass covers the last steps of each sequence. The
            # first steps only carry the state forward.
            before = np.maximum(n - k, 0)
            early = x[:, : int(before.max(initial=0))]
            part.state = self.network.run(early, before, part.state).state
            at = np.minimum(before[:, None] + np.arange(k), T - 1)
            last = x[np.arange(len(x))[:, None], at]
            yield replace(chunk, x=last, targets=targets, lengths=n - before, before=before)


@dataclass
class _MicroBatch:
    """Rows of a batch, the states that their next steps start from, and their last pass."""

    chunk: Chunk
    state: Sequence[Any] | None
    tape: Tape | None = None


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


def _mean(losses: Sequence[tuple[float, float]]) -> float:
    """Mean of pairs (mean, weight), added in their order."""
    weight = math.fsum(weight for _, weight in losses)
    return sum(mean * weight for mean, weight in losses) / weight if weight else 0.0
